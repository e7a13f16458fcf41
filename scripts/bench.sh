#!/usr/bin/env bash
# Measures GPU, CPU and copy shader on the adapter that the environment chooses (WGPU_BACKEND,
# WGPU_ADAPTER_NAME), records it in docs/bench, and makes README's tables and pictures anew.
set -euo pipefail
cd "$(dirname "$0")/.."

WGPU_BATCHNORM_RECORD="$PWD/docs/bench" cargo bench --bench batch_norm
cargo run --release --example bench_report

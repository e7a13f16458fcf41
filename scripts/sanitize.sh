#!/usr/bin/env bash
# Runs the host-side tests under the address sanitizer. Needs a nightly toolchain.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/sanitized"
RUSTFLAGS="-Zsanitizer=address" cargo +nightly test --target "$target" --lib --test cpu --test fuzz

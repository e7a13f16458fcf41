#!/usr/bin/env bash
# Runs every test. Where the machine has no Vulkan adapter, installs Mesa's software adapters from
# the distribution first (Debian, Ubuntu): lavapipe for Vulkan, llvmpipe for OpenGL.
set -euo pipefail
cd "$(dirname "$0")/.."

has_vulkan() {
    WGPU_BACKEND=vulkan cargo run --quiet --example adapters
}

echo "Looking for a Vulkan adapter ..."
cargo build --quiet --example adapters
if ! has_vulkan; then
    if ! command -v apt-get > /dev/null; then
        echo "No Vulkan adapter and no apt-get here: install a Vulkan driver, then try again." >&2
        exit 1
    fi
    echo "None found: installing Mesa's software adapters with apt-get."
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get update --quiet
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes \
        --no-install-recommends mesa-vulkan-drivers libegl1 libgl1-mesa-dri
    has_vulkan || {
        echo "Mesa is installed, but still no Vulkan adapter is found." >&2
        exit 1
    }
fi

cargo test

#!/usr/bin/env bash
# Shows that the tests can fail: breaks the shaders in the ways listed in tests/mutants.txt, one at
# a time, in a copy of the tree, and expects the GPU tests to fail each time. About half a minute
# a mutant; fails if one survives. An argument narrows the run to mutants whose line contains it.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/mutants"
export WGPU_BACKEND="${WGPU_BACKEND:-vulkan}"

# The tests with a filter, or all but the long ones, which catch nothing more. A mutant that makes
# a loop run on and on fails by the time limit.
passes() {
    (cd "$copy" && cargo test --quiet --test gpu --no-run &&
        WGPU_BATCHNORM_CASES=100 timeout --signal=KILL 900 cargo test --quiet --test gpu -- "$@" \
            --skip 65,535 --skip "128 MiB" --skip "no memory") > "$copy/log" 2>&1
}

# Most mutants fall at once to one of the first, the rest to all.
survives() {
    for first in "many split" "whole columns" agree rounded padding shards slice "every mode" "modes in every" "every f16"; do
        passes "$first" || return 1
    done
    passes
}

passes || {
    cat "$copy/log"
    echo "The tests fail without any mutation." >&2
    exit 1
}

caught=0 survived=0
while IFS='|' read -r file from to; do
    case "$file" in '' | '#'*) continue ;; esac
    line="$file|$from|$to"
    case "$line" in *"${1:-}"*) ;; *) continue ;; esac
    path="$copy/shaders/${file// /}.wgsl"
    from=$(printf '%b' "${from# }") && from=${from% }
    to=$(printf '%b' "${to# }")
    original=$(cat "$path")
    mutated=${original/"$from"/"$to"}
    if [ "$mutated" = "$original" ]; then
        echo "The text is not there: $line" >&2
        exit 1
    fi
    printf '%s\n' "$mutated" > "$path"
    if survives; then
        echo "SURVIVED $line"
        survived=$((survived + 1))
    elif grep -q create_shader_module "$copy/log"; then
        # A mutant must fail for what it computes.
        echo "Not valid WGSL: $line" >&2
        exit 1
    else
        echo "caught   $line"
        caught=$((caught + 1))
    fi
    printf '%s\n' "$original" > "$path"
done < tests/mutants.txt

echo "$caught caught, $survived survived"
[ "$survived" -eq 0 ]

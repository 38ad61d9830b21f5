#!/usr/bin/env bash
# Fuzzes every decoder of bytes from outside: ci/steps/20-fuzz.sh [SECONDS]  (per target; 5 if left out)
# Findings stay in fuzz/artifacts. The corpus that is in the tree only grows in a copy.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-5}

if ! cargo +nightly --version >/dev/null 2>&1; then
    rustup toolchain install nightly --profile minimal
fi
tools=$PWD/target/tools
PATH=$tools/bin:$PATH
if ! command -v cargo-fuzz >/dev/null; then
    cargo install cargo-fuzz --locked --quiet --root "$tools"
fi

corpus=$(mktemp -d)
trap 'rm -rf "$corpus"' EXIT
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
cargo +nightly fuzz build 2>&1 | grep -E "^(warning|error)" || true
for target in $(cargo +nightly fuzz list); do
    mkdir -p "$corpus/$target"
    cargo +nightly fuzz run "$target" "$corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -print_final_stats=1 >"$corpus/log" 2>&1 || {
        cat "$corpus/log"
        exit 1
    }
    awk -v target="$target" '/number_of_executed_units/ { print target ": " $2 " inputs, no finding" }' "$corpus/log"
done

#!/usr/bin/env bash
# The heap and the store's trees under AddressSanitizer, with few runs of the long tests: scripts/asan.sh
set -euo pipefail
cd "$(dirname "$0")/.."
if ! cargo +nightly --version >/dev/null 2>&1; then
    rustup toolchain install nightly --profile minimal
fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/asan
# The simulated worlds of the tests are cycles of references, which are never freed.
export ASAN_OPTIONS=detect_leaks=0
export RUSTFLAGS=-Zsanitizer=address
export UMEM_CRASH_SEEDS=2 VOS_MODEL_RUNS=4 VOS_SPACE_ROUNDS=5 VOS_CRASH_RUNS=2 VOS_FLIPS=20
cargo +nightly test --quiet --target x86_64-unknown-linux-gnu -p daos-umem --tests
cargo +nightly test --quiet --target x86_64-unknown-linux-gnu -p daos-vos --test space --test corruption --test model
echo "umem and vos under AddressSanitizer: no finding"

#!/usr/bin/env bash
# The heap, the trees and the binding to libpmem under AddressSanitizer: ci/steps/50-asan.sh  (three minutes with an empty target)
# Runs of the seeded tests are few here: they are long without it too.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! cargo +nightly --version >/dev/null 2>&1; then
    rustup toolchain install nightly --profile minimal
fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/asan
# The simulated worlds of the tests are cycles of references, which are never freed.
export ASAN_OPTIONS=detect_leaks=0
export RUSTFLAGS=-Zsanitizer=address
# Five seeds of umem's crash test are one round of its lengths.
export UMEM_CRASH_SEEDS=5 VOS_MODEL_RUNS=8 VOS_SPACE_ROUNDS=5 VOS_CRASH_RUNS=2
cargo +nightly test --quiet --target x86_64-unknown-linux-gnu -p daos-umem --lib --tests
cargo +nightly test --quiet --target x86_64-unknown-linux-gnu -p daos-vos --lib \
    --test model --test space --test corruption --test blocks --test crash_points
echo "umem and vos under AddressSanitizer: no finding"

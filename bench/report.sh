#!/usr/bin/env bash
# What the store costs, as docs/vos-numbers.md and docs/vos-growth.svg: bench/report.sh DIR [LARGEST]
# DIR is on the disk to be measured. Measures every row of the store's table of goals, the growth of cost from 10^4 records to LARGEST
# (10^7; that takes 20 GiB of memory and some minutes), instructions of an operation (callgrind) and its system calls (strace).
# SECONDS_EACH=2 is how long the cases that wait for the disk run; OPEN_RECORDS=10000000 how many records the pool has that is opened after
# a crash. Needs jq, python3, fio, valgrind, strace, and cargo build --release -p daos-bench; builds an example of daos-vos itself.
set -euo pipefail
directory=$(realpath "${1:?usage: report.sh DIR [LARGEST]}")
largest=${2:-10000000}
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
perf=$target/release/vos_perf
cargo build --quiet --release -p daos-vos --example operations
operations=$target/release/examples/operations
folder=$(mktemp -d -p "$directory")
trap 'rm -rf "$folder"' EXIT

echo "rows of the table" >&2
array=(--case array-update --case array-read)
"$perf" --json --seconds "${SECONDS_EACH:-2}" --dir "$folder" --media heap --media wal \
    --case kv- --case doc- "${array[@]}" --case durable --case block --case slices >"$folder/rows"
PMEM_IS_PMEM_FORCE=1 "$perf" --json --dir /dev/shm --media pmem --case kv- --case doc- >>"$folder/rows"
"$perf" --json --records "${OPEN_RECORDS:-10000000}" --dir "$folder" --media wal --case open-after-crash >>"$folder/rows"
bench/compare/fio.sh "$folder" "${SECONDS_EACH:-2}" >"$folder/fio"

echo "growth" >&2
for ((records = 10000; records <= largest; records *= 10)); do
    "$perf" --json --records "$records" --dir "$folder" --media heap --case kv- --case doc- >>"$folder/growth"
    # 4 KiB for every fourth record: 1 GiB is enough.
    [ "$records" -gt 1000000 ] || "$perf" --json --records "$records" --dir "$folder" --media heap --case array- >>"$folder/growth"
done

echo "instructions and system calls" >&2
instructions() { # CASE RECORDS ROUNDS
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$operations" "$@" 2>&1 | awk '/Collected/ { print $NF }'
}
calls() { # CASE RECORDS ROUNDS
    strace -f -c -o "$folder/strace" "$operations" "$@"
    awk '$NF == "total" { print $4 }' "$folder/strace"
}
counted=20000
for case in kv-update kv-update-existing kv-fetch kv-fetch-batch doc-update doc-update-existing doc-fetch doc-fetch-batch array-update array-read; do
    jq -cn --arg case "$case" --argjson records "$counted" \
        --argjson instructions "$(($(instructions "$case" "$counted" 2) - $(instructions "$case" "$counted" 1)))" \
        --argjson calls "$(($(calls "$case" "$counted" 2) - $(calls "$case" "$counted" 1)))" \
        '{$case, $records, instructions_per_op: ($instructions / $records), system_calls_per_op: ($calls / $records)}' >>"$folder/counts"
done
python3 bench/report.py "$folder" docs

#!/usr/bin/env bash
# RocksDB's db_bench and vos_perf with the same work on the same disk, and the ratios: bench/compare/rocksdb.sh DIR [RECORDS]
# 16-byte keys, 64-byte values, one thread (RocksDB's own background threads besides); then 32 durable updates in flight, for
# RocksDB 32 threads that sync. vos_perf is on `wal` media: what RocksDB leaves out in the first row, it does behind the updates.
# Needs db_bench (apt-get install rocksdb-tools), jq, and a release build of vos_perf (cargo build --release -p daos-bench).
set -euo pipefail
directory=$(realpath "${1:?usage: rocksdb.sh DIR [RECORDS]}")
records=${2:-2000000}
cd "$(dirname "$0")/../.."
perf=${CARGO_TARGET_DIR:-$PWD/target}/release/vos_perf
for program in db_bench jq "$perf"; do
    command -v "$program" >/dev/null || { echo "$program is not there, see the head of $0" >&2; exit 1; }
done
folder=$(mktemp -d -p "$directory")
trap 'rm -rf "$folder"' EXIT

rocksdb() { # OPTION ...: prints what db_bench says
    db_bench --db="$folder/rocksdb" --key_size=16 --value_size=64 --compression_type=none "$@" 2>"$folder/messages"
    rm -rf "$folder/rocksdb"
}
rate() { # CASE: operations per second, of what db_bench said
    awk -v name="$1" '$1 == name { for (at = 2; at <= NF; at++) if ($at == "ops/sec") rate = $(at - 1) } END { print rate + 0 }'
}
# Reads follow in the same process, as they would in use: what was written is in part in memory, and is being compacted.
both=$(rocksdb --benchmarks=fillrandom,readrandom --num="$records" --threads=1 --disable_wal=1)
fill=$(rate fillrandom <<<"$both")
read=$(rate readrandom <<<"$both")
sync=$(rocksdb --benchmarks=fillrandom --num=2000 --threads=32 --sync=1 | rate fillrandom)

"$perf" --records "$records" --media wal --case kv-update --case kv-fetch --case durable-update --dir "$folder" --json >"$folder/rows"
ours() { # CASE DEPTH
    jq -s --arg case "$1" --argjson depth "$2" 'map(select(.case == $case and .depth == $depth))[0].ops_per_s' "$folder/rows"
}
row() { # WORK PEER_RATE OUR_RATE GOAL
    awk -v work="$1" -v peer="$2" -v ours="$3" -v goal="$4" 'BEGIN {
        ratio = ours / peer
        printf "| %s | %d/s | %d/s | %.1f × | ≥ %s × | %s |\n", work, peer, ours, ratio, goal, (ratio >= goal ? "yes" : "**no**") }'
}
echo "| $records records | RocksDB | vos_perf, wal | ratio | goal | reached |"
echo "|---|---|---|---|---|---|"
row "update without durability" "$fill" "$(ours kv-update 1)" 4
row "fetch in random order" "$read" "$(ours kv-fetch 1)" 10
row "durable updates, 32 in flight" "$sync" "$(ours durable-update 32)" 1.5

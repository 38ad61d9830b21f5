#!/usr/bin/env bash
# RocksDB's db_bench with the work of `vos_perf`: 16-byte keys, 64-byte values, one thread; and 32 threads that sync.
# bench/compare/rocksdb.sh DIR [RECORDS]   (needs db_bench: apt-get install rocksdb-tools)
set -euo pipefail
directory=${1:?usage: rocksdb.sh DIR [RECORDS]}
records=${2:-2000000}
command -v db_bench >/dev/null || { echo "db_bench is not there: apt-get install rocksdb-tools" >&2; exit 1; }
folder=$(mktemp -d -p "$directory")
trap 'rm -rf "$folder"' EXIT
run() { db_bench --db="$folder" --key_size=16 --value_size=64 --num="$records" "$@" | grep -E "^(fill|read)"; }
run --benchmarks=fillrandom,readrandom --threads=1 --disable_wal=1 --compression_type=none
run --benchmarks=fillrandom --threads=32 --sync=1 --num=5000 --compression_type=none

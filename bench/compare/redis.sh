#!/usr/bin/env bash
# SET commands per second that one redis-server on core 0 takes from redis-benchmark on core 1: one connection, 16 commands
# in flight, 64-byte values, nothing written to disk. Prints the rate, or nothing where redis-server is not installed.
set -euo pipefail
command -v redis-server >/dev/null && command -v redis-benchmark >/dev/null || exit 0
folder=$(mktemp -d)
taskset -c 0 redis-server --port 0 --unixsocket "$folder/socket" --save '' --appendonly no --dir "$folder" >/dev/null &
server=$!
trap 'kill "$server"; wait "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
for _ in $(seq 100); do [ -S "$folder/socket" ] && break; sleep 0.02; done
taskset -c 1 redis-benchmark -s "$folder/socket" -t set -n 500000 -c 1 -P 16 -d 64 -r 20000 --csv |
    awk -F'"' '$2 == "SET" { printf "%.0f\n", $4 }'

#!/usr/bin/env bash
# Runs every case of the benchmark programs briefly and checks that each row is whole. Speed is not judged here.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${BENCH_PROFILE:-release}
target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --quiet --profile "$profile" -p daos-bench -p daos-engine
programs=$target/$([ "$profile" = dev ] && echo debug || echo "$profile")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

whole() { # PLACE CASE ...: the rows on stdin have all fields, finite and positive where they must be; each case is there
    local place=$1 beside=limit_name value=limit_value rows
    shift
    # Rows of the store by itself have a peer beside them.
    if [ "$place" = media ]; then beside=peer value=peer_value; fi
    rows=$(cat)
    jq -es --arg place "$place" --arg beside "$beside" --arg value "$value" '
        length > 0 and all(.[];
            (.[$place] | type == "string") and (.case | length > 0) and (.durable | type == "boolean")
            and ([.value_bytes, .depth, .p50_us, .p99_us, .p999_us, .max_us, .cpu_us_per_op, .[$value], .ratio] | all(type == "number" and . >= 0))
            and (.[$beside] | length > 0)
            and (.case == "idle-cpu" or (.ops_per_s > 0 and .p50_us > 0 and .p50_us <= .p99_us and .p99_us <= .p999_us and .p999_us <= .max_us)))
        ' <<<"$rows" >/dev/null || { echo "bench: a row is not whole:" >&2; echo "$rows" >&2; return 1; }
    for case in "$@"; do
        jq -es --arg case "$case" 'any(.[]; .case == $case)' <<<"$rows" >/dev/null || {
            echo "bench: no row for $case" >&2
            return 1
        }
    done
    echo "bench: $(wc -l <<<"$rows") rows by $place, all whole"
}

values="kv-update kv-update-existing kv-fetch kv-fetch-batch doc-update doc-update-existing doc-fetch doc-fetch-batch array-update array-read array-nested array-staggered array-interleaved"
# shellcheck disable=SC2086
PMEM_IS_PMEM_FORCE=1 "$programs/vos_perf" --records 2000 --seconds 0.05 --media heap --media wal --media pmem --dir "$folder" --json |
    whole media $values durable-update block-write block-read open-after-crash \
        checkpoint-slices scrubber-slices
"$programs/daos_perf" --seconds 0.05 --scratch "$folder" --json |
    whole fabric engine-start null-rpc kv-update kv-update-durable kv-fetch array-write array-read idle-cpu wake-after-idle wake-after-idle-raw

# Killed, it leaves neither engine nor folder behind: its keeper removes the folder once the engine has ended.
"$programs/daos_perf" --seconds 60 --case null-rpc --fabric local --scratch "$folder" --json >/dev/null &
perf=$!
until compgen -G "$folder/daos_perf-*/daos.json" >/dev/null; do
    kill -0 "$perf" || { echo "bench: daos_perf ended before it had an engine" >&2; exit 1; }
    sleep 0.05
done
kill -KILL "$perf"
wait "$perf" 2>/dev/null || true
for _ in {1..200}; do
    left=$(find "$folder" -mindepth 1)
    [ -n "$left" ] || break
    sleep 0.1
done
[ -z "$left" ] || { echo "bench: left behind: $left" >&2; exit 1; }
echo "bench: killed, it leaves nothing behind"

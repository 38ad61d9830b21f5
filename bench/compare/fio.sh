#!/usr/bin/env bash
# What fio reaches with io_uring on a file in DIR, beside `vos_perf --case block`: bench/compare/fio.sh DIR [SECONDS]
# Writes of 1 MiB, 8 in flight, each with a data sync of its own; random reads of 4 KiB, 32 in flight.
set -euo pipefail
directory=${1:?usage: fio.sh DIR [SECONDS]}
seconds=${2:-3}
file=$(mktemp -p "$directory" fio.XXXXXX)
trap 'rm -f "$file"' EXIT
job() { # NAME OPTION ...
    local name=$1
    shift
    taskset -c 1 fio --name="$name" --filename="$file" --size=256M --ioengine=io_uring --direct=1 --time_based \
        --runtime="$seconds" --output-format=json "$@" |
        jq -r --arg name "$name" '.jobs[0] | (if .write.total_ios > 0 then .write else .read end)
            | "\($name): \(.iops | floor)/s, p50 \(.clat_ns.percentile["50.000000"] / 1000) us"'
}
fio --name=fill --filename="$file" --size=256M --rw=write --bs=1M --direct=1 --end_fsync=1 --output-format=terse >/dev/null
job block-write --rw=write --bs=1M --iodepth=8 --sync=dsync
job block-read --rw=randread --bs=4k --iodepth=32

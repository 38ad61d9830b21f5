#!/usr/bin/env bash
# Measures what has a goal, several times over, and prints medians and spreads: scripts/bench-goals.sh [RUNS] [OPTION OF daos_perf ...]
# Needs a release build (cargo build --release -p daos-bench -p daos-engine) and a machine that does nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-5}
shift || true
programs=${CARGO_TARGET_DIR:-$PWD/target}/release
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
for _ in $(seq "$runs"); do
    "$programs/daos_perf" --json "$@" >>"$rows" 2>/dev/null
done
jq -rs '
    def median: sort | .[length / 2 | floor];
    def figure: if . >= 1000 then round else . * 100 | round / 100 end | tostring;
    def spread: "\(median | figure) (\(min | figure)–\(max | figure))";
    "| case | fabric | bytes | in flight | p50 µs | operations/s | limit | ratio | goal | reached |",
    "|---|---|---|---|---|---|---|---|---|---|",
    (group_by([.fabric, .case, .value_bytes, .depth])[] |
        "| \(.[0].case) | \(.[0].fabric) | \(.[0].value_bytes) | \(.[0].depth) | \(map(.p50_us) | spread) | \(map(.ops_per_s) | spread)"
        + " | \(.[0].limit_name): \(map(.limit_value) | spread) | \(map(.ratio) | spread) | \(.[0].goal)"
        + " | \(map(select(.reached)) | length) of \(length) |")
' "$rows"

#!/usr/bin/env bash
# Runs every case of the benchmarks briefly and checks that the rows are whole: ci/steps/40-bench.sh  (half a minute once built)
set -euo pipefail
BENCH_PROFILE=dev exec "$(dirname "$0")/../../scripts/bench-smoke.sh"

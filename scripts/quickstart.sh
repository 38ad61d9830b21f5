#!/usr/bin/env bash
# One storage node, end to end, on real files: scripts/quickstart.sh [DIR]
#
# Installs what is missing, builds, starts an engine with two targets, copies DIR (default: /usr/share/doc) into a POSIX
# container, kills the engine with SIGKILL, starts it again, copies the tree back, compares every byte, mode, time and symlink,
# prints rates and latencies beside the limits of this machine, stops, and leaves nothing behind.
# QUICKSTART_PROFILE=dev builds without optimisation across crates: sooner ready, and its figures mean little.
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 0
fi
source_tree=$(realpath -e "${1:-/usr/share/doc}") || {
    echo "quickstart: ${1:-/usr/share/doc} is not there; name a folder to copy" >&2
    exit 1
}
cd "$(dirname "$0")/.."

scripts/install.sh
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
profile=${QUICKSTART_PROFILE:-release}
echo "building (the first time takes some minutes)"
cargo build --profile "$profile" --quiet -p daos-engine -p daos-cli -p daos-bench
PATH="${CARGO_TARGET_DIR:-$PWD/target}/$([ "$profile" = dev ] && echo debug || echo "$profile"):$PATH"

# Everything of this run, and the peer that `cp` is, on one disk.
work=$(mktemp -d "${TMPDIR:-/var/tmp}/daos-quickstart.XXXXXX")
export DAOS_DIR=$work/engine
engine=
cleanup() {
    [ -n "$engine" ] && kill -KILL "$engine" 2>/dev/null && wait "$engine" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT

seconds() { date +%s.%N; }
elapsed() { awk -v from="$1" -v to="$(seconds)" 'BEGIN { printf "%.2f", to - from }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

start_engine() {
    local from
    from=$(seconds)
    daos_engine --dev --dir "$DAOS_DIR" --targets 2 --size "$size" --fabric local,tcp 2>>"$work/engine.log" &
    engine=$!
    for _ in $(seq 500); do
        dmg system query >/dev/null 2>&1 && break
        if ! kill -0 "$engine" 2>/dev/null; then
            tail -n 5 "$work/engine.log" >&2
            exit 1
        fi
        sleep 0.02
    done
    echo "engine $engine serves after $(elapsed "$from") s"
}

# Names, kinds, modes, times and link targets of a tree; contents are compared by diff. Modes of symlinks mean nothing.
shape() { (cd "$1" && find . \( -type f -o -type d -o -type l \) \( -type l -printf '%P l %l\n' -o -printf '%P %y %m %T@\n' \) | LC_ALL=C sort); }

bytes=$(du -s --apparent-size --block-size=1 "$source_tree" | cut -f1)
files=$(find "$source_tree" -type f -printf . | wc -c)
size=$((bytes * 3 + (4 << 30)))
echo "source: $source_tree, $files files, $((bytes >> 20)) MiB"

echo
echo "== start, pool, container"
start_engine
dmg pool create --size 90% quickstart
daos container create quickstart tree --type POSIX

echo
echo "== copy in"
# So that the copy and, later, cp read the same page cache.
find "$source_tree" -type f -exec cat {} + >/dev/null
from=$(seconds)
daos filesystem copy --src "$source_tree" --dst daos://quickstart/tree/copy
copy_in=$(elapsed "$from")

echo
echo "== SIGKILL, start again"
kill -KILL "$engine"
wait "$engine" 2>/dev/null || true
start_engine

echo
echo "== copy back, compare"
from=$(seconds)
daos filesystem copy --src daos://quickstart/tree/copy --dst "$work/back"
copy_out=$(elapsed "$from")
diff -r --no-dereference "$source_tree" "$work/back"
diff <(shape "$source_tree") <(shape "$work/back")
echo "every byte, mode, time and symlink is as it was"

echo
echo "== the same by cp, on the same disk"
from=$(seconds)
cp -r --no-dereference --preserve=mode,timestamps,links "$source_tree" "$work/cp"
sync -f "$work/cp"
peer=$(elapsed "$from")
rm -rf "$work/cp" "$work/back"
printf 'copy in %s s, copy back %s s, cp -r and sync %s s: in %s x, back %s x the speed of cp\n' \
    "$copy_in" "$copy_out" "$peer" "$(ratio "$peer" "$copy_in")" "$(ratio "$peer" "$copy_out")"

echo
echo "== latencies beside the limits of this machine"
echo "(microseconds at depth 1; \`daos_perf\` shows every case, percentile and the CPU time)"
daos_perf --seconds 0.5 --scratch "$work" --json |
    jq -r 'select(.case == "wake-after-idle" or .depth == 1 and (.case != "idle-cpu"))
        | [.fabric, .case, .value_bytes, .p50_us, .p99_us, .limit_name, .limit_value, .limit_unit, .ratio, (.goal // "")] | @tsv' |
    awk -F '\t' 'BEGIN { printf "%-6s %-18s %8s %9s %9s  %s\n", "fabric", "case", "bytes", "p50", "p99", "limit measured beside it" }
        { printf "%-6s %-18s %8d %9.2f %9.2f  %.2f x %s (%.2f %s)%s\n", $1, $2, $3, $4, $5, $9, $6, $7, $8, $10 ? ", goal " $10 : "" }'

echo
echo "== stop"
dmg system stop
wait "$engine"
engine=
if [ -e "$DAOS_DIR/daos.sock" ] || [ -e "$DAOS_DIR/daos.json" ]; then
    echo "quickstart: the engine left its socket or address file behind" >&2
    exit 1
fi
echo "stopped cleanly; nothing is left"

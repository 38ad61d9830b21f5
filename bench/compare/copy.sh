#!/usr/bin/env bash
# `daos filesystem copy` beside `cp -r` + sync and `dd` with fdatasync, on one disk: bench/compare/copy.sh DIR [ROUNDS]
# A tree of 6,000 files (log-normal sizes, median 3 KiB, like /usr/share/doc) and one file of 1 GiB. Sources are in the page
# cache, both sides end flushed, and every round times both, one after the other. Prints each round and the median ratio
# (peer's time over ours: larger is better; the goal is 0.5 for both).
# The programs are taken from PATH; put the release build first (cargo build --release -p daos-engine -p daos-cli).
set -euo pipefail
directory=${1:?usage: copy.sh DIR [ROUNDS]}
rounds=${2:-3}
for program in daos_engine dmg daos; do
    command -v "$program" >/dev/null || { echo "$program is not on the path, see the head of $0" >&2; exit 1; }
done
work=$(mktemp -d -p "$directory" daos-copy.XXXXXX)
export DAOS_DIR=$work/engine
engine=
cleanup() {
    [ -z "$engine" ] || { kill "$engine" && wait "$engine"; } 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

python3 - "$work/tree" <<'PYTHON'
import os, random, sys
random.seed(1)
for folder in range(60):
    path = f"{sys.argv[1]}/package-{folder}/files"
    os.makedirs(path)
    for file in range(100):
        with open(f"{path}/file-{file}", "wb") as out:
            out.write(random.randbytes(min(int(random.lognormvariate(8, 1.6)), 8 << 20)))
PYTHON
head -c 1G /dev/urandom >"$work/large"
cat "$work/large" >/dev/null

daos_engine --dev --targets 2 --size 12GiB 2>"$work/log" &
engine=$!
until dmg system query >/dev/null 2>&1; do
    kill -0 "$engine" || { cat "$work/log"; exit 1; }
    sleep 0.05
done
dmg pool create --size 90% bench >/dev/null

timed() { # COMMAND ...: seconds
    local from=$EPOCHREALTIME
    "$@" >/dev/null
    awk -v from="$from" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.3f", to - from }'
}
cp_tree() { cp -r "$work/tree" "$1" && sync -f "$1"; }

compare() { # NAME SOURCE PEER ...
    local name=$1 source=$2 ratios=() ours peer
    shift 2
    for round in $(seq "$rounds"); do
        daos container create bench "$name-$round" --type POSIX >/dev/null
        sync -f "$work"
        ours=$(timed daos filesystem copy --src "$source" --dst "daos://bench/$name-$round/copy")
        peer=$(timed "$@" "$work/peer")
        rm -rf "$work/peer"
        daos container destroy bench "$name-$round" >/dev/null
        ratios+=("$(awk -v a="$peer" -v b="$ours" 'BEGIN { printf "%.2f", a / b }')")
        echo "$name: $ours s, peer $peer s, ratio ${ratios[-1]}"
    done
    printf '%s\n' "${ratios[@]}" | sort -n | awk -v name="$name" '
        { all[NR] = $1 } END { printf "%s: median %s, from %s to %s (goal 0.5)\n", name, all[int((NR + 1) / 2)], all[1], all[NR] }'
}
dd_file() { dd if="$work/large" of="$1" bs=1M conv=fdatasync status=none; }
compare tree "$work/tree" cp_tree
compare file "$work/large" dd_file

#!/usr/bin/env bash
# The README's first command on a tree with everything that a copy can get wrong: ci/steps/10-quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
tree=$(mktemp -d)
trap 'chmod -R u+rwX "$tree"; rm -rf "$tree"' EXIT

cp -r docs scripts vos/src "$tree"
mkdir -p "$tree/odd/empty folder" "$tree/odd/deep/"{1,2,3}/{a,b}/c "$tree/odd/sticky"
chmod 1777 "$tree/odd/sticky"
cd "$tree/odd"
: >empty
printf 'x' >$'new\nline'
printf 'y' >'bl ank é 漢'
printf 'z' >"$(printf 'n%.0s' $(seq 255))"
ln -s nowhere dangling
ln -s ../docs folder-link
ln -s "$(printf 't%.0s' $(seq 1000))" long-link
# Sizes around the first block, the chunk and the cell, and one with a hole.
for size in 1 4095 4096 4097 65535 65536 65537 1048575 1048576 1048577 5242881 33554433; do
    head -c "$size" /dev/urandom >"size-$size"
done
truncate -s 3000000 hole && printf 'end' >>hole
chmod 0400 size-1 && chmod 4755 size-4095 && chmod 0604 size-4096
touch -d 1969-07-20T20:17:40Z size-4097
cd - >/dev/null

QUICKSTART_PROFILE=${QUICKSTART_PROFILE:-dev} scripts/quickstart.sh "$tree" | grep -v '^$'

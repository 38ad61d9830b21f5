#!/usr/bin/env bash
# Holds every manifest's dependencies within the workspace against ci/layering.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

metadata=$(cargo metadata --format-version 1 --no-deps)
members=$(jq -r '.packages[].name' <<<"$metadata" | sort)
wrong=0

allowed() { # CRATE [dev]: what its line in the table lists, before the bar or (with "dev") on both sides of it
    sed -n "s/^$1: *//p" ci/layering.txt | if [ "${2:-}" = dev ]; then tr -d '|'; else sed 's/|.*//'; fi
}

for crate in $members; do
    if ! grep -q "^$crate:" ci/layering.txt; then
        echo "layering: $crate has no line in ci/layering.txt: decide what it may depend on" >&2
        wrong=1
        continue
    fi
    while read -r dependency kind; do
        grep -qx "$dependency" <<<"$members" || continue
        if ! allowed "$crate" "$kind" | tr ' ' '\n' | grep -qx "$dependency"; then
            echo "layering: $crate must not depend on $dependency (${kind/null/normal})" >&2
            wrong=1
        fi
    done < <(jq -r --arg crate "$crate" \
        '.packages[] | select(.name == $crate) | .dependencies[] | "\(.name) \(.kind)"' <<<"$metadata")
done

# Only the homes of raw memory may contain unsafe code; everyone else says so to the compiler.
while read -r root; do
    case $root in
    */vos/umem/* | */xstream/ofi/* | */xstream/local/* | */xstream/libfabric-sys/* | */xstream/uring/*) ;;
    *)
        if ! grep -q '^#!\[forbid(unsafe_code)\]' "$root"; then
            echo "layering: ${root#"$PWD"/} must forbid unsafe code" >&2
            wrong=1
        fi
        ;;
    esac
done < <(jq -r '.packages[].targets[] | select(.kind[] | . == "lib" or . == "bin") | .src_path' <<<"$metadata")

[ "$wrong" = 0 ] && echo "layering: $(wc -w <<<"$members") crates, every edge points down"
exit "$wrong"

#!/usr/bin/env bash
# Installs what is missing and passes every test: scripts/test.sh [--quick]
#   --quick   leaves out the long seeded runs
set -euo pipefail
cd "$(dirname "$0")/.."

quick=
case "${1:-}" in
"") ;;
--quick) quick=1 ;;
*)
    echo "usage: scripts/test.sh [--quick]" >&2
    exit 2
    ;;
esac

scripts/install.sh
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"

step() {
    echo
    echo "== $1"
    shift
    local start=$SECONDS
    "$@"
    echo "   ($((SECONDS - start)) s)"
}

step "format" cargo fmt --all --check
step "layering" ci/layering.sh
step "clippy" cargo clippy --workspace --all-targets --quiet -- -D warnings
step "tests" cargo test --workspace --quiet
if [ -z "$quick" ]; then
    for check in ci/steps/*.sh; do
        [ -e "$check" ] || continue
        step "$(basename "$check" .sh | sed 's/^[0-9]*-//')" "$check"
    done
fi
echo
echo "all tests passed"

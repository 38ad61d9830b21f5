#!/usr/bin/env bash
# Installs what building and testing need on Debian 12 and the machine lacks. Quick when nothing is missing.
set -euo pipefail
rust=1.95

packages=(build-essential clang curl jq libclang-dev libfabric-dev libpmem-dev pkg-config)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing Debian packages: ${missing[*]}"
    as_root=()
    if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# A toolchain that rustup manages may not be on this shell's path yet.
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
have=$(rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p' || true)
if [ -z "$have" ] || [ "$(printf '%s\n%s\n' "$rust" "$have" | sort -V | head -n 1)" != "$rust" ]; then
    echo "installing Rust $rust (found: ${have:-none})"
    if command -v rustup >/dev/null; then
        rustup toolchain install "$rust" --profile minimal --component clippy,rustfmt
    else
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --profile minimal --component clippy,rustfmt --default-toolchain "$rust"
    fi
fi

#!/bin/sh
# Format, lints and docs, with warnings as errors: for the program, and for the library as an embedder builds it. How many crates
# that one is, and that it can be published.
# usage: scripts/check.sh
set -eu
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_cargo scripts/check.sh || exit 1
cd -- "$repository"
export CLIPPY_CONF_DIR="$repository/scripts"
# It would win over what is set below.
unset CARGO_ENCODED_RUSTDOCFLAGS
cargo fmt --all --check
cargo clippy --locked --all-targets --all-features -- -D warnings
cargo clippy --locked --lib --no-default-features -- -D warnings
cargo clippy --locked --lib --no-default-features --features simulate -- -D warnings
cargo clippy --locked --bins --no-default-features --features cli -- -D warnings
cargo clippy --locked --lib --no-default-features --features admin -- -D warnings
cargo clippy --locked --lib --no-default-features --features exec -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --all-features --quiet
# With it, each counted once; so many at the most are promised.
crates=$(cargo tree --locked --no-default-features --edges normal,build --prefix none --no-dedupe | sort -u | wc -l)
[ "$crates" -le 25 ] || { echo "scripts/check.sh: $crates crates without default features, but at most 25 are promised" >&2; exit 1; }
if ! said=$(cargo publish --dry-run --no-verify --locked --allow-dirty --quiet 2>&1); then
    case $said in
        *"failed to download from"* | *"HTTP request"*)
            echo "NOT TRIED: cargo publish --dry-run: no registry can be reached, so it is only packed"
            cargo package --no-verify --locked --allow-dirty --quiet --offline
            ;;
        *) echo "$said" >&2; exit 1 ;;
    esac
fi
for workspace in tests/bench tests/fuzz; do
    cargo fmt --all --check --manifest-path "$workspace/Cargo.toml"
done
cargo clippy --locked --all-targets --manifest-path tests/bench/Cargo.toml -- -D warnings

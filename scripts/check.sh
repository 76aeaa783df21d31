#!/bin/sh
# Format, lints and docs, with warnings as errors: for the program, and for the library as an embedder builds it.
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
for workspace in tests/bench tests/fuzz; do
    cargo fmt --all --check --manifest-path "$workspace/Cargo.toml"
done
cargo clippy --locked --all-targets --manifest-path tests/bench/Cargo.toml -- -D warnings

#!/bin/sh
# Format, lints and docs, with warnings as errors: for the program, and for the library as an embedder builds it.
# usage: scripts/check.sh
set -eu
cd "$(dirname "$0")/.."
export CLIPPY_CONF_DIR="$PWD/scripts"
cargo fmt --all --check
cargo clippy --locked --all-targets --all-features -- -D warnings
cargo clippy --locked --lib --no-default-features -- -D warnings
cargo clippy --locked --lib --no-default-features --features simulate -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --all-features --quiet

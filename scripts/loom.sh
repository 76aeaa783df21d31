#!/bin/sh
# Runs the loom models: every interleaving of the code that decides who sleeps and who is woken.
# usage: scripts/loom.sh [test name]
set -eu
cd "$(dirname "$0")/.."
# A target directory of its own: the flag rebuilds every crate.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom"
export RUSTFLAGS="--cfg loom ${RUSTFLAGS:-}"
exec cargo test --locked --release --lib --no-default-features -- "${1:-loom_tests}"

#!/bin/sh
# Builds the release binary, target/release/tidemill. Quick when nothing changed.
# usage: ./compile.sh
set -eu
cd "$(dirname "$0")"
if ! command -v cargo >/dev/null 2>&1; then
    echo "compile.sh: cargo not found: install Rust 1.88 or newer, for instance with rustup (https://rustup.rs)" >&2
    exit 1
fi
exec cargo build --release --locked

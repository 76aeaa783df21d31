#!/bin/sh
# Builds the release binary, target/release/tidemill. Quick when nothing changed.
# usage: ./compile.sh
set -eu
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")" && pwd -P)
. "$repository/scripts/program.sh"
need_cargo compile.sh || exit 1
if ! can_write; then
    echo "compile.sh: cannot write to $CARGO_TARGET_DIR: set CARGO_TARGET_DIR to a folder for what is built" >&2
    exit 1
fi
cd -- "$repository"
exec cargo build --release --locked

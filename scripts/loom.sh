#!/bin/sh
# Runs the loom models: every interleaving of the code that decides who sleeps and who is woken.
# usage: scripts/loom.sh [test name]
set -eu
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_cargo scripts/loom.sh || exit 1
cd -- "$repository"
# A target directory of its own: the flag rebuilds every crate.
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/loom"
# It would win over the flag, and no model would be run.
unset CARGO_ENCODED_RUSTFLAGS
export RUSTFLAGS="--cfg loom ${RUSTFLAGS:-}"
# Optimized, as models are slow otherwise, but not as a whole: that takes longer than it saves.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0
exec cargo test --locked --release --lib --no-default-features -- "${1:-loom_tests}"

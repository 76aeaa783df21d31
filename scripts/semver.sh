#!/bin/sh
# Whether the library's API breaks anybody who builds on the baseline: cargo-semver-checks, built beside the
# program if it is not there (minutes).
# A break on purpose moves the baseline to the commit that makes it, and is named in the changelog.
# usage: scripts/semver.sh [OPTIONS OF cargo semver-checks]
#        scripts/semver.sh --only-tool                         builds the tool, and checks nothing
set -eu
unset CDPATH
baseline=cb79d62
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_cargo scripts/semver.sh || exit 1
cd -- "$repository"
has_baseline() { git cat-file -e "$baseline^{commit}" 2>/dev/null; }
# A shallow checkout has not got it.
has_baseline || git fetch --quiet --unshallow 2>/dev/null || git fetch --quiet origin "$baseline" || true
has_baseline || { echo "scripts/semver.sh: the baseline $baseline is not in this checkout and cannot be fetched" >&2; exit 1; }
# Beside the build, so that it is built once.
tools=$CARGO_TARGET_DIR/tools
export PATH="$tools/bin:$PATH"
cargo semver-checks --version >/dev/null 2>&1 ||
    CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --no-default-features --root "$tools" --target-dir "$tools/target" cargo-semver-checks
[ "${1-}" = --only-tool ] || exec cargo semver-checks --baseline-rev "$baseline" --all-features "$@"

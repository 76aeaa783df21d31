#!/bin/sh
# Whether the library's API breaks anybody who builds on the baseline: cargo-semver-checks, installed if it is not there (minutes).
# A break on purpose moves the baseline to the commit that makes it, and is named in the changelog.
# usage: scripts/semver.sh [OPTIONS OF cargo semver-checks]
set -eu
unset CDPATH
baseline=718bc26
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_cargo scripts/semver.sh || exit 1
cd -- "$repository"
if ! git cat-file -e "$baseline^{commit}" 2>/dev/null; then
    echo "scripts/semver.sh: the baseline $baseline is not in this checkout: nothing to compare with" >&2
    exit 0
fi
cargo semver-checks --version >/dev/null 2>&1 || cargo install --quiet --locked --debug cargo-semver-checks
exec cargo semver-checks --baseline-rev "$baseline" --all-features "$@"

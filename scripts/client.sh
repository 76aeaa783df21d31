#!/bin/sh
# The small client: H sends one HELO and prints the reply, K sends KILL_SERVICE.
# usage: scripts/client.sh H|K IP PORT [TEXT]
set -eu
if [ $# -lt 3 ]; then
    echo "usage: scripts/client.sh H|K IP PORT [TEXT]" >&2
    exit 2
fi
dir=$(dirname "$0")/..
"$dir/compile.sh" >/dev/null 2>&1 || exec "$dir/compile.sh" >&2
target=${CARGO_TARGET_DIR:-target}
# Cargo takes it from the folder of the repository.
case $target in /*) ;; *) target=$dir/$target ;; esac
exec "$target/release/tidemill" client "$@"

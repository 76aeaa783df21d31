#!/bin/sh
# Builds the server if needed and serves on PORT in the foreground, for clients on any machine.
# usage: ./start.sh PORT [serve options]      (see: target/release/tidemill serve --help)
set -eu
usage() {
    echo "usage: ./start.sh PORT [serve options], with PORT from 0 to 65535" >&2
    exit 2
}
[ $# -ge 1 ] || usage
case $1 in
'' | *[!0-9]* | ??????*) usage ;;
esac
[ "$1" -le 65535 ] || usage
dir=$(dirname "$0")
# Cargo's words go to standard error, so that standard output is the server's alone.
"$dir/compile.sh" >&2
# The server takes the place of this shell, so that signals reach it.
target=${CARGO_TARGET_DIR:-target}
# Cargo takes it from the folder of the repository.
case $target in /*) ;; *) target=$dir/$target ;; esac
exec "$target/release/tidemill" serve --assignment "$@"

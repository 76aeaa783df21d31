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
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")" && pwd -P)
. "$repository/scripts/program.sh"
need_program || exit 1
# The server takes the place of this shell, so that signals reach it. Its files are named from where this was called.
exec "$tidemill" serve --assignment "$@"

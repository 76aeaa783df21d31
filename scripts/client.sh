#!/bin/sh
# The small client: H sends one HELO and prints the reply, K sends KILL_SERVICE.
# usage: scripts/client.sh H|K IP PORT [TEXT]
set -eu
if [ $# -lt 3 ]; then
    echo "usage: scripts/client.sh H|K IP PORT [TEXT]" >&2
    exit 2
fi
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
# A build says something only if it fails.
need_program 2>/dev/null || need_program || exit 1
exec "$tidemill" client "$@"

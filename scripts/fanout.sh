#!/usr/bin/env bash
# One message for 10 000 subscribers: how long until the last has it, and the server's CPU for each, beside tokio's broadcast.
#
#   scripts/fanout.sh                               about two minutes
#   scripts/fanout.sh --subscribers 1000 --messages 100
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_bench scripts/fanout.sh
exec "$bench/bench" fanout "$@"

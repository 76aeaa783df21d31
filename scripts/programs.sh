#!/usr/bin/env bash
# What it costs to serve requests by programs (`serve --exec`), beside a bare pipe and a bare socket, in turns; and how long a burst
# takes beside starting the programs bare.
#
#   scripts/programs.sh                       about a minute
#   scripts/programs.sh --turns 3 --connections 16
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_program
need_bench scripts/programs.sh
exec "$bench/bench" programs --tidemill "$tidemill" "$@"

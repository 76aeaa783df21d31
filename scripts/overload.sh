#!/usr/bin/env bash
# Overload: an open loop at 1, 2, 5 and 10 times what the server can do, by clients that give up after a time; with
# --queue-timeout at half their patience, and without.
#
#   scripts/overload.sh                              about a minute
#   scripts/overload.sh --duration 30s --patience 1s
#
# Exits with 1 if with --queue-timeout goodput falls below 95 % of its peak at any rate, or all is not as before a second after
# the overload has ended. The handlers block, so the machine need not be quiet.
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_program
need_bench scripts/overload.sh
exec "$bench/bench" overload --tidemill "$tidemill" "$@"

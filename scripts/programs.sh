#!/usr/bin/env bash
# What it costs to serve requests by programs (`serve --exec`), beside bare pipes and bare sockets, in turns; how long a burst takes
# beside starting the programs bare; and how soon a command (`client --pipe`) reaches a program that is ready.
#
#   scripts/programs.sh                       about a minute and a half
#   scripts/programs.sh --turns 3 --connections 16
#   scripts/programs.sh --others              servers of other makes instead, those that are in PATH: socat, tcpserver,
#                                             systemd-socket-activate, supergateway, mcp-proxy; about three minutes
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_program
need_bench scripts/programs.sh
exec "$bench/bench" programs --tidemill "$tidemill" "$@"

#!/usr/bin/env bash
# The long tests: one server under chaos, flood, churn and resizes in turns, whose memory, descriptors and threads must be flat
# and whose counters exact; then many seeds of chaos, many stops at random moments, and many connects.
#
#   scripts/soak.sh                                  30 minutes of turns, 300 seeds, 1000 stops, 100 000 connects
#   scripts/soak.sh --minutes N --seeds N --stops N --connects N
#                                                    as many as you like; 0 leaves a part out
#   scripts/soak.sh --fuzz MINUTES                   each fuzz target for so long besides (scripts/fuzz.sh)
#
# Exits with 1 at the first failure, which names the seed that plays it again. It needs no quiet machine.
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
minutes=30 seeds=300 stops=1000 connects=100000 fuzz=0
usage() {
  sed -n '2,10s/^# \{0,1\}//p' "$script"
  exit "$1"
}
while [[ $# -gt 0 ]]; do
  case $1 in
  -h | --help) usage 0 ;;
  --minutes | --seeds | --stops | --connects | --fuzz)
    [[ ${2-} =~ ^[0-9]+$ ]] || usage 2 >&2
    declare "${1#--}=$2"
    shift 2
    ;;
  *) usage 2 >&2 ;;
  esac
done
. "$repository/scripts/program.sh"
need_cargo scripts/soak.sh
cd -- "$repository"
run() {
  cargo test --release --locked --quiet --test it -- --nocapture --test-threads 1 "$@"
}
[[ $minutes -eq 0 ]] || TIDEMILL_SOAK_SECONDS=$((minutes * 60)) run chaos::soak::
[[ $seeds -eq 0 ]] || TIDEMILL_SEEDS=$seeds run chaos::chaos_
[[ $stops -eq 0 ]] || TIDEMILL_STOPS=$stops run stops::
[[ $connects -eq 0 ]] || TIDEMILL_CONNECTS=$connects run faults::peers::twenty_thousand
[[ $fuzz -eq 0 ]] || scripts/fuzz.sh --minutes "$fuzz"

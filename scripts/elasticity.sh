#!/usr/bin/env bash
# The elasticity scorecard: 27 workloads, and how the pool follows each, against a goal.
#
#   scripts/elasticity.sh                            everything: about 15 minutes
#   scripts/elasticity.sh --quick                    a look: about 4 minutes
#   scripts/elasticity.sh --rows 1,4,13              only these
#   scripts/elasticity.sh --json FILE --page FILE.html --markdown FILE.md --picture FILE.svg
#
# Rows in simulated time (layer S) are in `cargo test` (tests/it/controller_sim.rs). Exits with 1 where a count fails, a time is
# beyond three times its goal, or the 95 % interval of a ratio lies wholly beyond its goal. It wants a quiet machine.
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_program
need_bench scripts/elasticity.sh
exec "$bench/bench" elasticity --tidemill "$tidemill" "$@"

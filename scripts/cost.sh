#!/usr/bin/env bash
# Counts what does not drift with the machine's load: system calls by name, context switches and user instructions per
# request, resident memory per idle connection at 10 000, and wake-ups while nothing happens.
#
#   scripts/cost.sh                                    tidemill, tokio and the floor; a few minutes
#   scripts/cost.sh --only calls --workloads 64x1      only this part, under this load; parts: calls,instructions,idle
#   scripts/cost.sh --server 'old=./old serve {port}' --servers tidemill    one build against another
#   scripts/cost.sh --json FILE                        all figures
#   scripts/cost.sh --help                             all options
#
# It uses perf (or strace) and valgrind where they are installed, and says which it had to do without.
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_program
need_bench scripts/cost.sh
exec "$bench/cost" --tidemill "$tidemill" "$@"

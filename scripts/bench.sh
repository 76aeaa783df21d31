#!/usr/bin/env bash
# Compares tidemill with other servers on this machine: requests/s, CPU time and latency, paired with tokio's.
#
#   scripts/bench.sh                                 everything: 13 workloads, 7 rounds, about 25 minutes
#   scripts/bench.sh --quick                         a look: 3 short rounds against tokio and the floor
#   scripts/bench.sh --workloads 64x1,64x16          only these; --servers tidemill,tokio likewise; --rounds N
#   scripts/bench.sh --scaling                       one request at a time on one connection to 10 000
#   scripts/bench.sh --server 'old=./old serve {port}' --reference old     one build against another
#   scripts/bench.sh --workloads 64x1,64x16 --servers tidemill,redis,memcached    for scale, each with its own lines
#   scripts/bench.sh --json FILE --page FILE.html    all figures; a page with all tables; --markdown FILE.md the README's
#   scripts/bench.sh --help                          all options
#
# It wants a quiet machine: what a neighbour disturbs is measured again. Exits with 1 when any reply was wrong or lost.
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_program
need_bench scripts/bench.sh
exec "$bench/bench" compare --tidemill "$tidemill" "$@"

#!/usr/bin/env bash
# Counts what does not drift with the machine's load: system calls by name, context switches and user instructions per
# request, resident memory per idle connection at 10 000, and wake-ups while nothing happens.
#
#   scripts/cost.sh                                    all of it for tidemill, tokio and the floor; a few minutes
#   scripts/cost.sh calls|instructions|idle            only this part
#   scripts/cost.sh calls '64x1 64x16'                 under these loads: connections x requests pipelined
#   scripts/cost.sh all '64x1' './old serve 0'         of this server, which says where it listens as ours does
#
# What a request costs is the difference between two floods, divided by the requests that one had more. Calls need perf,
# instructions valgrind.
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
part=${1:-all} loads=${2:-1x1 64x1 1000x1 64x16}
case $part in
all | calls | instructions | idle) ;;
*)
  sed -n '2,12s/^# \{0,1\}//p' "$script"
  [[ $part == -h || $part == --help ]] && exit 0
  exit 2
  ;;
esac
. "$repository/scripts/program.sh"
need_program
need_bench scripts/cost.sh
# As a shell reads them: a path may have a blank in it.
servers=('"$tidemill" serve 0 --log-level warn' '"$bench/bench" peer-tokio 0' '"$bench/bench" peer-floor 0')
[[ -z ${3-} ]] || servers=("$3")
scratch=$(mktemp -d "${TMPDIR:-/tmp}/cost.XXXXXX")
server=
cleanup() {
  [[ -z $server ]] || kill -KILL "$server" 2>/dev/null || true
  rm -rf "$scratch"
}
trap cleanup EXIT
ulimit -n "$(ulimit -Hn)"

# Starts a server, by the words given, and waits for its address.
start() {
  : >"$scratch/out"
  "$@" >"$scratch/out" &
  server=$! address=
  for _ in {1..600}; do
    address=$(sed -n 's/^listening on //p' "$scratch/out")
    [[ -z $address ]] || return 0
    kill -0 "$server" 2>/dev/null || break
    sleep 0.05
  done
  echo "scripts/cost.sh: did not start: $*" >&2
  exit 1
}
stop() {
  kill -TERM "$server"
  wait "$server" || true
  server=
}
# flood REQUESTS LOAD [what runs it]
flood() {
  local requests=$1 load=$2
  shift 2
  "$@" "$tidemill" load "$address" -n "$requests" -c "${load%x*}" -P "${load#*x}" --timeout 60s --json >"$scratch/load"
}
# A word before the server, and one before the generator, that put both on one CPU, where there is but one connection.
on_one_cpu() {
  [[ $1 != 1x* ]] || echo "taskset --cpu-list $(taskset --cpu-list --pid $$ | sed 's/.*: *\([0-9]*\).*/\1/')"
}
anonymous() { awk '/^Anonymous:/ {print 1024 * $2}' "/proc/$server/smaps_rollup"; }
switches() { cat /proc/"$server"/task/*/status | awk '/ctxt_switches:/ {sum += $2} END {print sum}'; }

calls() {
  local events=raw_syscalls:sys_enter,context-switches name few=$((20000 * ${1#*x})) many=$((220000 * ${1#*x}))
  for name in accept4 clock_nanosleep close epoll_ctl epoll_pwait epoll_wait futex madvise mmap munmap read readv recvfrom \
    sched_yield sendmsg sendto write writev; do
    events+=,syscalls:sys_enter_$name
  done
  # shellcheck disable=SC2046
  start $(on_one_cpu "$1") "${words[@]}"
  for requests in $few $many; do
    # shellcheck disable=SC2046
    flood "$requests" "$1" perf stat -x, -e "$events" -p "$server" -o "$scratch/perf.$requests" -- $(on_one_cpu "$1")
  done
  stop
  awk -F, -v more=$((many - few)) 'NR == FNR {few[$3] = $1; next} $1 ~ /^[0-9]/ {each = ($1 - few[$3]) / more
    if (each >= 0.00005) {sub(/.*sys_enter_/, "  ", $3); sub(/.*sys_enter/, "system calls", $3); printf "    %-28s %10.4f\n", $3, each}}' \
    "$scratch/perf.$few" "$scratch/perf.$many"
}

instructions() {
  local few=4000 many=24000 requests sums=()
  for requests in $few $many; do
    # Threads take turns; without --fair-sched the same one may get them all.
    start valgrind --quiet --tool=callgrind --fair-sched=yes --callgrind-out-file="$scratch/callgrind" "${words[@]}"
    flood "$requests" "$1"
    stop
    sums+=("$(awk '/^(totals|summary):/ {sum = $2} END {print sum}' "$scratch/callgrind")")
  done
  printf '    %-28s %10d\n' 'user instructions' $(((sums[1] - sums[0]) / (many - few)))
}

idle() {
  local base fresh used before seconds=10
  start "${words[@]}"
  # What a server allocates only once.
  flood 2000 100x1
  sleep 0.5
  base=$(anonymous)
  "$tidemill" load "$address" -c 10000 --shape 'rate=hold:0@4s,hold:5000@2s,hold:0@14s' --json >"$scratch/load" &
  sleep 3
  fresh=$(anonymous)
  sleep 5
  used=$(anonymous) before=$(switches)
  sleep $seconds
  printf '    %-28s %10d\n' 'resident bytes, connected' $(((fresh - base) / 10000)) 'resident bytes, used once' $(((used - base) / 10000))
  printf '    %-28s %10.1f\n' 'context switches a second' "$(awk "BEGIN {print ($(switches) - $before) / $seconds}")"
  wait $!
  stop
}

for command in "${servers[@]}"; do
  eval "words=($command)"
  echo "${words[@]}"
  for load in $loads; do
    [[ $part == idle ]] || echo "  $load, per request"
    case $part in all | calls) calls "$load" ;; esac
    case $part in all | instructions) instructions "$load" ;; esac
  done
  case $part in all | idle) echo "  an idle connection, of 10 000" && idle ;; esac
done

#!/usr/bin/env bash
# The flood test: every reply of the server is compared byte for byte with what it must be.
# usage: scripts/load.sh HOST:PORT [load options]     floods that server
#        scripts/load.sh [--quick] [load options]     starts servers of its own, floods them, plays a shape, and stops each
#                                                     by SIGTERM in mid-flood; about a minute, with --quick under 15 seconds
# Exit status 0 only if every reply was right and none was lost. The pages it leaves are named at the end.
# (load options: see target/release/tidemill load --help; without HOST:PORT they go to the first two floods. They win over
# what this script gives, such as -c 64, -d and --report; a page of your own is then that of the second flood)
set -euo pipefail
case ${1:-} in
-h | --help)
    sed -n '2,8s/^# //p' "$0"
    exit 0
    ;;
esac
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
need_program
out=$CARGO_TARGET_DIR/load-report
if ! mkdir -p "$out" 2>/dev/null || [ ! -w "$out" ]; then
    out=$(mktemp -d "${TMPDIR:-/tmp}/load-report.XXXXXX")
fi

if [[ ${1:-} == *:* ]]; then
    status=0
    # One of an earlier run is not to be taken for that of this one.
    rm -f "$out/flood.html"
    # What is given last wins.
    "$tidemill" load --report "$out/flood.html" "$@" || status=$?
    [ ! -s "$out/flood.html" ] || echo "report: $out/flood.html"
    exit $status
fi

flood=8s pipelined=8s reconnect=4s stop_after=4 shape='rate=hold:500@2s,ramp:500..6000@6s,hold:6000@3s,onoff:0..5000x3@6s,hold:300@4s'
options=() quick=
for option; do
    if [ "$option" = --quick ]; then quick=yes; else options+=("$option"); fi
done
set -- ${options[@]+"${options[@]}"}
if [ -n "$quick" ]; then
    flood=1s pipelined=1s reconnect=500ms stop_after=1 shape='rate=hold:500@500ms,ramp:500..5000@1500ms,onoff:0..4000x2@2s'
fi
# In mid-flood means in the middle of a run that would go on for longer than any of this takes.
endless=5m
pages="shape flood pipelined reconnect stop stop-blocked"
# Those of an earlier run are not to be taken for those of this one.
for page in $pages; do
    rm -f "$out/$page.html" "$out/$page.json"
done

failures=0
fail() {
    echo "  FAILED: $*"
    failures=$((failures + 1))
}
server=
flooder=
cleanup() {
    # Only what this script has started.
    [ -z "$flooder" ] || kill "$flooder" 2>/dev/null || true
    [ -z "$server" ] || kill -KILL "$server" 2>/dev/null || true
}
trap cleanup EXIT

# start NAME [serve options]: a server on a free port. Sets server, address, stats, log; replies counts from 0.
start() {
    stats=$out/$1.stats log=$out/$1.log replies=0
    shift
    : >"$stats"
    "$tidemill" serve 0 --stats-every 50ms "$@" >"$stats" 2>"$log" &
    server=$!
    for _ in {1..200}; do
        address=$(sed -n 's/^listening on //p' "$stats")
        [ -z "$address" ] || return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    echo "the server did not start:" >&2
    cat "$log" >&2
    exit 1
}

# field FILE GROUP NAME: a number of the tool's document.
field() { sed -n "s/.*\"$2\":{[^}]*\"$3\":\([0-9]*\).*/\1/p" "$1"; }

# judge NAME STATUS: adds the replies of a run, and says what was wrong with it.
judge() {
    local json=$out/$1.json
    if [ ! -s "$json" ]; then
        fail "$1 ended with status $2 and no result"
        return
    fi
    local kind
    for kind in right wrong reordered duplicated; do
        replies=$((replies + $(field "$json" total $kind)))
    done
    printf '  %-10s %12s replies right, %s/s, p99 %s us, verdict %s\n' "$1" "$(field "$json" total right)" \
        "$(sed -n 's/.*"requests_per_second":\([0-9]*\).*/\1/p' "$json")" \
        "$(sed -n 's/.*"latency_us":{[^}]*"p99":\([0-9a-z]*\).*/\1/p' "$json")" \
        "$(sed -n 's/.*"verdict":"\([a-z]*\)".*/\1/p' "$json")"
    [ "$2" -eq 0 ] || fail "$1: $(sed -n 's/.*"problems":\[\([^]]*\)\].*/\1/p' "$json")"
}

# load NAME [load options]
load() {
    local name=$1 status=0
    shift
    "$tidemill" load "$address" --json --report "$out/$name.html" --stats "$stats" "$@" >"$out/$name.json" || status=$?
    judge "$name" $status
}

# stop NAME [load options]: SIGTERM in mid-flood; the books of both sides must agree.
stop() {
    local name=$1 status=0 exited=0
    shift
    "$tidemill" load "$address" --json --report "$out/$name.html" --stats "$stats" -d "$endless" --expect-stop "$@" \
        >"$out/$name.json" &
    flooder=$!
    sleep "$stop_after"
    kill -TERM "$server"
    wait "$server" || exited=$?
    server=
    wait "$flooder" || status=$?
    flooder=
    judge "$name" $status
    [ $exited -eq 0 ] || fail "the server exited with status $exited, see $log"
    local counted unread
    counted=$(sed -n 's/.*"replies_total":\([0-9]*\).*/\1/p' "$stats" | tail -n 1)
    unread=$(field "$out/$name.json" total unread)
    echo "  stopped: the server counts ${counted:-no} replies, the tool $replies; $unread requests were never read"
    [ "${counted:-none}" = "$replies" ] || fail "the counts of replies differ"
}

echo "a server that answers at once"
start plain
load flood -c 64 -d $flood --warm-up 300ms "$@"
load pipelined -c 64 -P 16 -d $pipelined --warm-up 300ms "$@"
# Not as fast as it can: the system soon spends its time looking for a port that is free again.
load reconnect -c 64 -d $reconnect --reconnect -r 4000
stop stop -c 200 -P 16

echo "a server whose handler blocks for 5 ms: its pool has to rise and fall"
start blocking --handler-delay 5ms --keep-alive 1s
load shape -c 200 --poisson --shape "$shape" --warm-up 300ms
stop stop-blocked -c 50 -P 8

echo
if [ $failures -gt 0 ]; then
    echo "FAILED: $failures checks, see above; the server's logs are $out/*.log"
else
    echo "OK: no reply was wrong or lost; each stop left a clean prefix on every connection, no reset, and equal counts"
fi
for page in $pages; do
    [ ! -s "$out/$page.html" ] || echo "report: $out/$page.html"
done
[ $failures -eq 0 ]

#!/usr/bin/env bash
# How close HAProxy, with the configuration of scripts/deploy, gets to all that two servers can do, by the weights alone that their
# agents tell: one has half the workers of the other. Says requests replied to a second, and what would be ideal.
#
#   scripts/weights.sh [PERCENT [SECONDS]]     load in percent of what both can do, 90; how long is counted, 20
#
# The handlers only wait, so it measures the shares and not the machine. Needs haproxy. Exit status 1 if it is below 95 % of ideal.
# On two quiet cores it said 100 % at a load of 90 and 99 at 110, and on busy ones 89 at 200: where both servers have nothing left
# both say so, and are given equal parts, until the smaller one holds most of the connections. Against that there is a maxconn for
# each server.
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
case ${1-} in
-h | --help)
  sed -n '2,10s/^# \{0,1\}//p' "$script"
  exit
  ;;
esac
percent=${1-90} seconds=${2-20}
if [[ ! $percent =~ ^[1-9][0-9]{0,2}$ || ! $seconds =~ ^[1-9][0-9]{0,2}$ || $# -gt 2 ]]; then
  sed -n '5s/^# *//p' "$script" >&2
  exit 2
fi
command -v haproxy >/dev/null || { echo "scripts/weights.sh: haproxy not found" >&2 && exit 1; }
. "$repository/scripts/program.sh"
need_program
cd -- "$repository"
# 16 and 8 workers, each 10 requests a second.
most=240
ids=()
end() { kill "${ids[@]}" 2>/dev/null; wait; }
trap end EXIT
port=$((20000 + RANDOM % 10000))
serve() {
  "$tidemill" serve "$port" --bind "$1" --agent "$1:$((port + 1))" --admin "$1:$((port + 2))" --proxy-from loopback \
    --handler-delay 100ms --min-threads "$2" --max-threads "$2" --drain-timeout 1s >/dev/null 2>&1 &
  ids+=($!)
}
replies() {
  local sum=0 ip
  for ip in 127.0.1.1 127.0.1.2; do
    sum=$((sum + $("$tidemill" top "$ip:$((port + 2))" --json | grep -o '"replies_total":[0-9]*' | head -1 | cut -d: -f2)))
  done
  echo "$sum"
}
serve 127.0.1.1 16
serve 127.0.1.2 8
export FRONT=127.0.1.3:$port SERVER_A=127.0.1.1:$port SERVER_B=127.0.1.2:$port
export AGENT_A=127.0.1.1 AGENT_B=127.0.1.2 AGENT_A_PORT=$((port + 1)) AGENT_B_PORT=$((port + 1))
haproxy -db -f scripts/deploy/haproxy.cfg >/dev/null 2>&1 &
ids+=($!)
for _ in {1..100}; do
  if "$tidemill" client H 127.0.1.3 "$port" >/dev/null 2>&1; then break; fi
  for id in "${ids[@]}"; do
    kill -0 "$id" 2>/dev/null && continue
    echo "scripts/weights.sh: a server or HAProxy does not run: is a port from $port to $((port + 2)) taken?" >&2
    exit 1
  done
  sleep 0.1
done
rate=$((most * percent / 100))
# The weights have 10 s to follow.
"$tidemill" load "$FRONT" --reconnect -c 400 -r "$rate" -d $((seconds + 15))s --timeout 60s --json >/dev/null 2>&1 &
ids+=($!)
sleep 10
before=$(replies)
sleep "$seconds"
got=$((($(replies) - before) * 10 / seconds))
ideal=$((10 * (rate < most ? rate : most)))
echo "$percent % load: $((got / 10)).$((got % 10)) of $((ideal / 10)) requests a second, $((100 * got / ideal)) % of ideal"
((100 * got >= 95 * ideal))

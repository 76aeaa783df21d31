#!/usr/bin/env bash
# The example `kv`, on its event loop and through workers, beside redis-server, which keeps nothing on disk here, in turns: for each test
# of redis-benchmark the requests a second and the CPU time of a request, as parts of redis-server's. Medians.
#
#   scripts/kv.sh [TURNS [REQUESTS [PIPELINE]]]     5 turns of 200000 requests of each test, 16 in a pipeline, from 50 clients
#
# Needs redis-server and redis-benchmark. Exit status 1 if in any test the rate is below redis-server's.
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
. "$repository/scripts/program.sh"
usage() { sed -n '2,7s/^# \{0,1\}//p' "$script"; }
case ${1-} in -h | --help) usage && exit ;; esac
turns=${1-5} requests=${2-200000} pipeline=${3-16}
if [[ ! $turns =~ ^[1-9][0-9]{0,2}$ || ! $requests =~ ^[1-9][0-9]{0,8}$ || ! $pipeline =~ ^[1-9][0-9]{0,3}$ || $# -gt 3 ]]; then
  usage >&2
  exit 2
fi
for needed in redis-server redis-benchmark; do
  command -v "$needed" >/dev/null || { echo "scripts/kv.sh: $needed not found" >&2 && exit 1; }
done
need_cargo scripts/kv.sh
cargo build --release --locked --quiet --example kv --manifest-path "$repository/Cargo.toml"
kv=$CARGO_TARGET_DIR/release/examples/kv
scratch=$(mktemp -d)
ids=()
end() {
  kill "${ids[@]}" 2>/dev/null || true
  wait
  rm -rf "$scratch"
}
trap end EXIT
start() { # NAME COMMAND...
  "${@:2}" >"$scratch/$1" 2>&1 &
  ids+=($!)
}
port=$((20000 + RANDOM % 10000))
start redis redis-server --port $port --save '' --appendonly no --dir "$scratch"
start inline "$kv" 127.0.0.1:$((port + 1))
start workers "$kv" 127.0.0.1:$((port + 2)) --workers
tests=(ping_mbulk set get incr)
ask() { redis-benchmark -p "$1" -c 50 -P "$pipeline" -n "$2" -t "$3" --csv 2>/dev/null | tail -1 | cut -d'"' -f4; }
ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
names=(redis inline workers)
for number in 0 1 2; do
  for ((try = 0; try < 100; try++)); do
    redis-cli -p $((port + number)) ping 2>/dev/null | grep -q PONG && continue 2
    sleep 0.1
  done
  echo "scripts/kv.sh: ${names[number]} does not answer" >&2
  exit 1
done
for ((turn = 1; turn <= turns; turn++)); do
  for test in "${tests[@]}"; do
    for number in 0 1 2; do
      before=$(ticks "${ids[number]}")
      rate=$(ask $((port + number)) "$requests" "$test")
      echo "$turn $test ${names[number]} $rate $(($(ticks "${ids[number]}") - before))"
    done
  done
done >"$scratch/rows"
awk -v requests="$requests" -v hertz="$(getconf CLK_TCK)" '
  function median(values, n,   i, j, t) {
    for (i = 2; i <= n; i++) for (j = i; j > 1 && values[j - 1] > values[j]; j--) { t = values[j]; values[j] = values[j - 1]; values[j - 1] = t }
    return n % 2 ? values[(n + 1) / 2] : (values[n / 2] + values[n / 2 + 1]) / 2
  }
  { rate[$1, $2, $3] = $4; cpu[$1, $2, $3] = $5; turns = $1; if (!($2 in seen)) { seen[$2]; order[++tests] = $2 } }
  END {
    print "| test | on the loop: rate | CPU | us a request | by workers: rate | CPU | us a request |"
    print "|---|---|---|---|---|---|---|"
    for (t = 1; t <= tests; t++) {
      line = "| " order[t]
      for (s = 1; s <= 2; s++) {
        name = s == 1 ? "inline" : "workers"
        for (i = 1; i <= turns; i++) {
          rates[i] = rate[i, order[t], name] / rate[i, order[t], "redis"]
          cpus[i] = cpu[i, order[t], name] / (cpu[i, order[t], "redis"] ? cpu[i, order[t], "redis"] : 1)
          us[i] = cpu[i, order[t], name] / hertz * 1e6 / requests
        }
        r = median(rates, turns)
        low = low || r < 1
        line = line sprintf(" | %.2f | %.2f | %.2f", r, median(cpus, turns), median(us, turns))
      }
      print line " |"
    }
    exit low
  }' "$scratch/rows"

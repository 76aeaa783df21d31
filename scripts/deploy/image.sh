#!/usr/bin/env bash
# The steps of the Containerfile where there is no container engine: builds the static program, and lays out what the image holds.
#
#   scripts/deploy/image.sh DIRECTORY            DIRECTORY/tidemill, and nothing else; says its size
#   scripts/deploy/image.sh --try DIRECTORY      and runs it as the image would be: nothing else of the machine to be seen,
#                                                another user, nothing to write to; asks it as HEALTHCHECK does, and stops it
#
# Needs the musl target, rustup target add x86_64-unknown-linux-musl, and for --try to be root.
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/../.." && pwd -P)
try=
if [[ ${1-} = --try ]]; then try=1; shift; fi
[[ $# -eq 1 && $1 != -* ]] || {
  sed -n '2,8s/^# \{0,1\}//p' "$script" >&2
  exit 2
}
if [[ -n $try && $(id -u) -ne 0 ]]; then
  echo "scripts/deploy/image.sh: --try needs to be root" >&2
  exit 1
fi
. "$repository/scripts/program.sh"
need_cargo scripts/deploy/image.sh
mkdir -p -- "$1"
directory=$(cd -- "$1" && pwd -P)
target=$(uname -m)-unknown-linux-musl
cd -- "$repository"
# The linker that comes with Rust: a C compiler for musl is not needed, as there is no C in it.
linker=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$target")_LINKER
env "$linker=rust-lld" cargo build --release --locked --quiet --bin tidemill --target "$target"
install -m 0755 -- "$CARGO_TARGET_DIR/$target/release/tidemill" "$directory/tidemill"
strip -- "$directory/tidemill"
echo "$directory/tidemill: $(stat -c %s -- "$directory/tidemill") bytes"
[[ -n $try ]] || exit 0
pid= log=$(mktemp)
# Whatever goes wrong, no server is left behind; what it said is shown.
finish() {
  local status=$?
  [[ -z $pid ]] || kill -KILL "$pid" 2>/dev/null || true
  [[ $status -eq 0 ]] || cat -- "$log" >&2
  rm -f -- "$log"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
exec {output}< <(exec chroot --userspec=65532:65532 "$directory" /tidemill serve 0 --admin 0 2>"$log")
pid=$!
read -r -t 20 line <&"$output"
admin=
for _ in {1..200}; do
  admin=$(sed -n 's/.*admin address.* address=\([^ ]*\).*/\1/p' "$log")
  [[ -z $admin ]] || break
  sleep 0.1
done
[[ -n $admin ]] || {
  echo "scripts/deploy/image.sh: the server does not say its admin address" >&2
  exit 1
}
"$directory/tidemill" top "$admin" --check 'uptime_seconds>0s'
"$directory/tidemill" client H 127.0.0.1 "${line##*:}"
kill "$pid"
# It has lost nothing.
status=0
wait "$pid" || status=$?
pid=
exit "$status"

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
mkdir -p -- "$1"
directory=$(cd -- "$1" && pwd -P)
target=$(uname -m)-unknown-linux-musl
cd -- "$repository"
# The linker that comes with Rust: a C compiler for musl is not needed, as there is no C in it.
linker=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$target")_LINKER
env "$linker=rust-lld" cargo build --release --locked --quiet --bin tidemill --target "$target"
install -m 0755 -- "${CARGO_TARGET_DIR:-target}/$target/release/tidemill" "$directory/tidemill"
strip -- "$directory/tidemill"
echo "$directory/tidemill: $(stat -c %s -- "$directory/tidemill") bytes"
[[ -n $try ]] || exit 0
admin=$((20000 + RANDOM % 10000))
coproc server { exec chroot --userspec=65532:65532 "$directory" /tidemill serve 0 --admin "$admin" 2>/dev/null; }
pid=$server_PID
read -r line <&"${server[0]}"
"$directory/tidemill" top "$admin" --check 'uptime_seconds>0s'
"$directory/tidemill" client H 127.0.0.1 "${line##*:}"
kill "$pid"
# It has lost nothing.
wait "$pid"

#!/usr/bin/env bash
# The steps of the Containerfile where there is no container engine: builds the static program, and lays out what the image holds.
#
#   scripts/deploy/image.sh DIRECTORY           DIRECTORY/tidemill, and nothing else; says its size
#
# Needs the musl target: rustup target add x86_64-unknown-linux-musl. As the image would be run, with nothing else of the
# machine to be seen, another user, and nothing to write to:
#   chroot --userspec=65532:65532 DIRECTORY /tidemill serve 8000 --bind 0.0.0.0
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/../.." && pwd -P)
[[ $# -eq 1 && $1 != -* ]] || {
  sed -n '2,9s/^# \{0,1\}//p' "$script" >&2
  exit 2
}
mkdir -p -- "$1"
directory=$(cd -- "$1" && pwd -P)
target=$(uname -m)-unknown-linux-musl
cd -- "$repository"
# The linker that comes with Rust: a C compiler for musl is not needed, as there is no C in it.
linker=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$target")_LINKER
env "${linker}=rust-lld" cargo build --release --locked --quiet --bin tidemill --target "$target"
program=${CARGO_TARGET_DIR:-target}/$target/release/tidemill
install -m 0755 -- "$program" "$directory/tidemill"
strip -- "$directory/tidemill"
echo "$directory/tidemill: $(stat -c %s -- "$directory/tidemill") bytes"

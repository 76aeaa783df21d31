#!/usr/bin/env bash
# Lets a fuzzer look for bytes that break framing, PROXY headers, a connection's state machine, the options, or the load tool's
# books.
#
#   scripts/fuzz.sh                                  each target for 20 minutes
#   scripts/fuzz.sh --minutes N [TARGET …]           framing, proxy, connection, options, ledger
#
# Needs `cargo install cargo-fuzz` and a C++ compiler; a stable compiler will do, by RUSTC_BOOTSTRAP=1. No sanitizer: there is no
# unsafe code. What is found lies in tests/fuzz/artifacts, and plays again by
#   RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none --fuzz-dir tests/fuzz TARGET FILE
# and goes to tests/fuzz/corpus once it is mended: a few inputs each, which `cargo test` runs. Others that cover more are kept in
# tests/fuzz/grown, for the next time.
set -euo pipefail
unset CDPATH
script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
repository=$(cd -- "$(dirname -- "$script")/.." && pwd -P)
minutes=20 targets=()
usage() {
  sed -n '2,13s/^# \{0,1\}//p' "$script"
  exit "$1"
}
while [[ $# -gt 0 ]]; do
  case $1 in
  -h | --help) usage 0 ;;
  --minutes)
    [[ ${2-} =~ ^[0-9]+$ ]] || usage 2 >&2
    minutes=$2
    shift 2
    ;;
  framing | proxy | connection | options | ledger)
    targets+=("$1")
    shift
    ;;
  *) usage 2 >&2 ;;
  esac
done
[[ ${#targets[@]} -gt 0 ]] || targets=(framing proxy connection options ledger)
. "$repository/scripts/program.sh"
need_cargo scripts/fuzz.sh
if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "scripts/fuzz.sh: cargo-fuzz not found: cargo install cargo-fuzz" >&2
  exit 1
fi
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="${chosen_target:+$chosen_target/fuzz}"
[[ -n $CARGO_TARGET_DIR ]] || export CARGO_TARGET_DIR=$repository/tests/fuzz/target
cd -- "$repository"
for target in "${targets[@]}"; do
  echo "$target: $minutes minutes"
  mkdir -p "tests/fuzz/grown/$target"
  cargo fuzz run --sanitizer none --fuzz-dir tests/fuzz "$target" "tests/fuzz/grown/$target" "tests/fuzz/corpus/$target" \
    -- -max_total_time=$((minutes * 60)) -max_len=400 -timeout=10 -print_final_stats=1
done

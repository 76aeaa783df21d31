#!/usr/bin/env bash
# The elasticity scorecard: 20 workloads, and how the pool follows each, against a goal.
#
#   scripts/elasticity.sh                            everything: about 13 minutes
#   scripts/elasticity.sh --quick                    a look: about 4 minutes
#   scripts/elasticity.sh --rows 1,4,13              only these
#   scripts/elasticity.sh --json FILE --page FILE.html --markdown FILE.md --picture FILE.svg
#
# Rows in simulated time (layer S) are in `cargo test` (tests/it/controller_sim.rs). Exits with 1 where a count fails, a time is
# beyond three times its goal, or the 95 % interval of a ratio lies wholly beyond its goal. It wants a quiet machine.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bench=$repository/tests/bench
cargo build --release --locked --quiet --manifest-path "$repository/Cargo.toml"
cargo build --release --locked --quiet --manifest-path "$bench/Cargo.toml" --bin elasticity
exec "$bench/target/release/elasticity" --tidemill "$repository/target/release/tidemill" "$@"

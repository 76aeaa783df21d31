//! All that is measured here, by its first word: `bench compare`, `bench elasticity` and so on; `scripts` has one for each.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidemill_bench::main()
}

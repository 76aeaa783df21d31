//! The `tidemill` program: arguments, signals and logs around the library.

mod cli;
mod load;
mod report;
mod socket;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}

//! The `tidemill` program: arguments, signals and logs around the library.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}

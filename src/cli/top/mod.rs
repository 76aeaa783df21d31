//! `tidemill top`: a server in a terminal, as its live page shows it in a browser; one snapshot of it for scripts; and a check.
//!
//! It reads what the admin address says, and nothing else. `ask` fetches it, `stats` is what it says, `history` what comes of
//! several looks, `text` one snapshot, `screen` the terminal, `check` the conditions.

mod ask;
mod check;
mod history;
mod screen;
mod stats;
mod text;

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tidemill::Address;

use super::{FAILED, Failure, admin_address, duration, print};
use crate::load::asserts::Asserts;
use ask::Asked;
use check::Fact;

/// Watch a server in a terminal, at its admin address.
///
/// On a terminal q and CTRL-C end it. Elsewhere, and with --json, it prints one snapshot.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// The server's --admin: a port of 127.0.0.1, an IP address with a port, or unix:PATH
    #[arg(value_name = "[ADDR:]PORT|unix:PATH", value_parser = admin_address)]
    address: Address,
    /// Print /stats.json once
    #[arg(long)]
    json: bool,
    /// Look once whether the conditions hold, such as `pool_saturation<0.9,queue_wait_seconds.p99<20ms,ready=1`: numbers of
    /// /stats.json by their names, objects as their sums. Exit status 0 if they do, else 1, and each that does not is printed
    #[arg(long, value_name = "CONDITION", conflicts_with = "json")]
    check: Vec<Asserts<Fact>>,
    /// How often to look
    #[arg(long, value_name = "DUR", value_parser = duration::positive, default_value = "1s")]
    every: Duration,
    /// How long an answer may take
    #[arg(long, value_name = "DUR", value_parser = duration::positive, default_value = "5s")]
    timeout: Duration,
}

/// Exit status 0; 1 if the server does not answer, or a condition does not hold.
pub(crate) fn run(args: &TopArgs) -> Result<ExitCode, Failure> {
    let asked = Asked { address: args.address.clone(), timeout: args.timeout };
    // Nothing is done to the terminal for a server that is not there.
    let stats = asked.get("/stats.json").map_err(Failure::failed)?;
    if args.json {
        return print(&stats).map(|()| ExitCode::SUCCESS);
    }
    if !args.check.is_empty() {
        let asserts = args.check.iter().flat_map(|asserts| &asserts.0);
        let broken = check::broken(&stats, asserts)?;
        print(&broken)?;
        return Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) });
    }
    let stats = stats::Stats::parse(&stats).map_err(Failure::failed)?;
    if !stdout().is_terminal() {
        return print(&text::snapshot(&stats, &args.address)).map(|()| ExitCode::SUCCESS);
    }
    screen::watch(&asked, args.every)
}

//! Arguments of the program, one module a subcommand.
//!
//! Wrong usage is one line on standard error that names what is wrong, and exit status 2.

mod address_space;
mod bar;
mod client;
mod connect;
mod duration;
mod files;
mod launch;
mod load;
mod manual;
mod output;
mod pipe;
mod serve;
mod simulate;
mod size;
#[cfg(feature = "top")]
mod top;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use clap::builder::StyledStr;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use tidemill::{Address, Config};

#[cfg(any(test, fuzzing))]
pub(crate) use serve::fuzzing;

/// Exit status for what failed.
const FAILED: u8 = 1;
/// Exit status for wrong usage.
const USAGE: u8 = 2;

/// Why the program fails: its exit status, and the line that says why.
#[derive(Debug)]
struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Self { status: USAGE, message: message.into() }
    }

    fn failed(message: impl Into<String>) -> Self {
        Self { status: FAILED, message: message.into() }
    }

    /// Of a file.
    fn of_file(path: &Path, error: impl Display) -> Self {
        Self::failed(format!("{}: {error}", path.display()))
    }

    /// Says why, and is the exit status.
    fn report(&self) -> ExitCode {
        fail(self.status, &self.message)
    }
}

/// A server for line protocols over TCP: one event loop, and a pool of worker threads that sizes itself.
#[derive(Debug, Parser)]
#[command(name = "tidemill", version, max_term_width = 100, arg_required_else_help = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::ServeArgs>),
    Client(client::ClientArgs),
    Load(Box<load::LoadArgs>),
    Simulate(simulate::SimulateArgs),
    #[cfg(feature = "top")]
    Top(top::TopArgs),
    Man(manual::ManArgs),
    Completions(manual::CompletionsArgs),
}

/// Parses the program's arguments and runs the subcommand.
pub(crate) fn run() -> ExitCode {
    if let Some(status) = launch::run().or_else(serve::starter::run) {
        return status;
    }
    // Before the arguments are parsed, which takes more of the stack than there may be.
    if std::env::args_os().nth(1).is_some_and(|command| command == "serve")
        && let Err(message) = address_space::prepare()
    {
        return fail(1, message);
    }
    run_from(std::env::args_os())
}

fn run_from(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    if !matches!(cli.command, Command::Serve(_)) {
        unblock([Signal::SIGINT, Signal::SIGTERM]);
    }
    match cli.command {
        Command::Serve(_) => serve::run(arguments),
        Command::Client(args) => client::run(&args).unwrap_or_else(|failure| failure.report()),
        Command::Load(args) => load::run(&args).unwrap_or_else(|failure| failure.report()),
        Command::Simulate(args) => simulate::run(&args).unwrap_or_else(|failure| failure.report()),
        #[cfg(feature = "top")]
        Command::Top(args) => top::run(&args).unwrap_or_else(|failure| failure.report()),
        Command::Man(args) => manual::man(&args).unwrap_or_else(|failure| failure.report()),
        Command::Completions(args) => manual::completions(&args).unwrap_or_else(|failure| failure.report()),
    }
}

/// The arguments, or help, or what is wrong with them.
fn parse(arguments: &[OsString]) -> clap::error::Result<Cli> {
    let mut program = Cli::command().mut_subcommand("load", |load| load.mut_args(keep_number));
    let mut matches = program.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut program))
}

/// Has the help of an option show `{n}` as it is, which clap takes for a line break: an escape sequence that changes nothing keeps
/// it from that, and is not printed where the output is no terminal.
fn keep_number(arg: Arg) -> Arg {
    let kept = |text: &StyledStr| text.ansi().to_string().replace("{n}", "{n\u{1b}[0m}");
    let (help, long_help) = (arg.get_help().map(kept), arg.get_long_help().map(kept));
    let arg = help.into_iter().fold(arg, Arg::help);
    long_help.into_iter().fold(arg, Arg::long_help)
}

/// Lets signals through that whoever started us may have blocked: that is inherited, and they would wait for ever.
/// Handlers must be in place.
fn unblock(signals: impl IntoIterator<Item = Signal>) {
    // Refused only for what is no signal.
    let _ = signals.into_iter().collect::<SigSet>().thread_unblock();
}

/// Prints help as it is, and a usage error as one line.
fn report_usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let printed = written(error.print().and_then(|()| io::stdout().flush()));
        return printed.map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS);
    }
    fail(USAGE, &one_line(&error.to_string()))
}

/// An admin address; a port alone is one of 127.0.0.1.
fn admin_address(text: &str) -> Result<Address, String> {
    match text.parse::<u16>() {
        Ok(port) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()),
        Err(_) => text.parse().map_err(|_| {
            "must be a port, an IP address with a port, such as 10.0.0.1:9100, or unix:PATH".to_owned()
        }),
    }
}

/// Least and most workers; where only one was given, the other's default yields to it.
fn pool_bounds(min: Option<usize>, max: Option<usize>) -> (usize, usize) {
    let defaults = Config::default();
    match (min, max) {
        (Some(min), Some(max)) => (min, max),
        (Some(min), None) => (min, defaults.max_threads.max(min)),
        // A maximum of 0 is refused as such, and not for a minimum that nobody gave.
        (None, Some(max)) => (defaults.min_threads.min(max).max(1), max),
        (None, None) => (defaults.min_threads, defaults.max_threads),
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::failed(format!("cannot write JSON: {error}"))
    }
}

/// Writes a result to standard output. That its reader has seen enough is no failure.
fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// The same of bytes.
fn print_bytes(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(text).and_then(|()| stdout.flush()))
}

/// What became of writing to standard output, where a closed pipe is no failure.
fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes one line to standard error and returns `status`.
fn fail(status: u8, message: &str) -> ExitCode {
    // A closed standard error must not turn the exit status into that of a panic.
    drop(writeln!(io::stderr(), "tidemill: {message}"));
    ExitCode::from(status)
}

/// The message of a clap error without its colours, usage and tips: its first paragraph, on one line.
fn one_line(rendered: &str) -> String {
    let first = rendered.split("\n\n").next().unwrap_or(rendered);
    let words: Vec<&str> = first.split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

//! The options of `tidemill serve --exec`: programs as handlers.

use std::time::Duration;
use std::{env, thread};

use clap::Args;
use serde::Serialize;
use tidemill::exec::{ExecConfig, Extent, ProgramStats, Programs, ProgramsHandle, ProgramsStats};
use tidemill::{Error, ServerHandle};

use super::arguments::{Limit, ServeArgs, Timeout, limit, timeout};
use super::layers::Options;
use crate::cli::launch;

/// The line that stops the service, from who may say it.
const KILL_SERVICE: &str = "KILL_SERVICE";
/// Descriptors that a program takes up here: its three streams, its process, and what it does.
const DESCRIPTORS_EACH: usize = 5;
/// Programs that end while their successors run already, at the most times: a part of those that run.
const ENDING_SHARE: usize = 4;
/// Programs of which `/stats.json` has a row, the oldest: a look at each takes some 10 µs on the event loop.
const MAX_ROWS: usize = 64;
/// A time that has no meaning: who is waited for always comes.
const LONG: Duration = Duration::from_secs(3600);

/// What can be said of programs, with --exec.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// What a request is: line, lines:N, or until:TEXT, lines up to one that is TEXT
    #[arg(long, value_name = "EXTENT", default_value = "line", requires = "exec")]
    exec_request: Extent,
    /// Where a program's reply ends: line, lines:N, until:TEXT, or none, there are no replies
    #[arg(long, value_name = "EXTENT", default_value = "line", requires = "exec")]
    exec_reply: Extent,
    /// Goes before each request, with {peer}, {peer_ip}, {connection} and {request} replaced [default: nothing]
    #[arg(long, value_name = "TEMPLATE", requires = "exec")]
    exec_prefix: Option<String>,
    /// How long a program may take for one reply; it is ended then and replaced
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "30s", requires = "exec")]
    exec_timeout: Duration,
    /// Programs that are kept started and ready above those in use
    #[arg(long, value_name = "N", default_value_t = 1, requires = "exec")]
    exec_spare: usize,
    /// Replace a program after so many requests
    #[arg(long, value_name = "N", value_parser = limit, default_value = "off", requires = "exec")]
    exec_max_requests: Limit,
    /// Replace a program at this age, between two requests
    #[arg(long, value_name = "DUR", value_parser = timeout, default_value = "off", requires = "exec")]
    exec_max_age: Timeout,
    /// Give programs a terminal for their output, against those that hold back what they write to a pipe
    #[arg(long, requires = "exec")]
    exec_pty: bool,
    /// What a program gets to end in: its input has ended, after a quarter SIGTERM to its process group, at the end SIGKILL
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "2s", requires = "exec")]
    exec_stop: Duration,
}

/// Starts the programs of `command`.
///
/// # Errors
/// As [`Programs::start`].
pub(super) fn start(command: &str, options: &Options) -> Result<Programs, Error> {
    let args = &options.args;
    let programs = &args.programs;
    let mut config = ExecConfig::default();
    config.request = programs.exec_request.clone();
    config.reply = programs.exec_reply.clone();
    config.prefix = programs.exec_prefix.clone().unwrap_or_default();
    config.timeout = programs.exec_timeout;
    config.spare = programs.exec_spare;
    config.max_requests = programs.exec_max_requests.0.map(|most| most as u64);
    config.max_age = programs.exec_max_age.0;
    config.pty = programs.exec_pty;
    config.stop_timeout = programs.exec_stop;
    config.max_request_bytes = args.max_line;
    // An ordinary line, unless it was said who may say it.
    config.stop_line = options.is_given("kill-from").then(|| KILL_SERVICE.to_owned());
    config.launcher = launch::launcher(env::current_exe().ok());
    Programs::start(command, config)
}

/// Has the server say what its programs do, to those who ask and who send clients here.
pub(super) fn show(programs: &ProgramsHandle, server: &ServerHandle) {
    let shown = programs.clone();
    server.set_details("programs", move || {
        let shown = Shown { stats: shown.stats(), rows: shown.programs(MAX_ROWS) };
        serde_json::to_string(&shown).unwrap_or_default()
    });
    let stopping = (server.clone(), programs.clone());
    let waits = thread::Builder::new().name("tidemill-hurry".to_owned()).spawn(move || {
        let (server, programs) = stopping;
        while !server.wait_stopping(LONG) {}
        programs.hurry();
    });
    if let Err(error) = waits {
        tracing::warn!(%error, "a stop waits for programs that are being started");
    }
    let server = server.clone();
    programs.watch(move |available| {
        let reason = "programs end as soon as they are started: requests are refused";
        server.set_not_ready((!available).then(|| reason.to_owned()));
    });
}

/// The member `programs` of `/stats.json`.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    stats: ProgramsStats,
    /// The oldest first.
    rows: Vec<ProgramStats>,
}

/// Descriptors that programs take up at the most.
pub(super) fn descriptors(args: &ServeArgs, max_threads: usize) -> usize {
    if args.exec.is_none() {
        return 0;
    }
    let programs = max_threads.saturating_add(args.programs.exec_spare);
    programs.saturating_add(programs / ENDING_SHARE).saturating_add(1).saturating_mul(DESCRIPTORS_EACH)
}

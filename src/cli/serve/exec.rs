//! The options of `tidemill serve --exec`: programs as handlers.

use std::env;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tidemill::exec::{ExecConfig, Extent, Mode, ProgramStats, Programs, ProgramsHandle, ProgramsStats};
use tidemill::{Config, Error, ServerHandle, StopFrom};

use super::arguments::{Limit, ServeArgs, Timeout, limit, timeout};
use super::layers::Options;
use crate::cli::launch;

/// The line that stops the service, from who may say it.
const KILL_SERVICE: &str = "KILL_SERVICE";
/// The option that says who may.
const KILL_FROM: &str = "kill-from";
/// Descriptors that a program takes up here: its three streams, its process, and what it does.
const DESCRIPTORS_EACH: usize = 5;
/// Programs that end while their successors run already, at the most times: a part of those that run.
const ENDING_SHARE: usize = 4;
/// Programs of which `/stats.json` has a row, the oldest: a look at each takes some 10 µs on the event loop.
const MAX_ROWS: usize = 64;

/// What can be said of programs, with --exec.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// shared: any ready program takes the next request of anybody, and gives one reply. leased: a ready program belongs to one
    /// connection until that closes, bytes flow both ways at any time, and --max-threads is how many there may be
    #[arg(long, value_name = "MODE", value_enum, default_value_t = ModeName::Shared, requires = "exec")]
    exec_mode: ModeName,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeName {
    Shared,
    Leased,
}

/// What means something only where programs are shared.
const OF_SHARED: [&str; 6] =
    ["exec_request", "exec_reply", "exec_prefix", "exec_timeout", "exec_max_requests", "exec_max_age"];

impl ExecArgs {
    fn is_leased(&self) -> bool {
        self.exec_mode == ModeName::Leased
    }
}

/// Where programs are leased each connection has one, and nothing is left for workers to do: the limits of the pool are those of the
/// programs.
pub(super) fn settle(args: &ServeArgs, config: &mut Config) {
    if args.programs.is_leased() {
        config.max_connections = config.max_threads;
        (config.min_threads, config.max_threads) = (1, 1);
    }
}

/// What programs were started with, and keep until a restart.
pub(super) struct Fixed {
    command: Option<String>,
    mode: ModeName,
    may_stop: bool,
    /// Where it limits what is handed to programs.
    max_line: Option<usize>,
    /// Where it says how many are kept.
    min_threads: Option<Option<usize>>,
    spare: usize,
}

impl Fixed {
    pub(super) fn of(options: &Options) -> Fixed {
        let args = &options.args;
        let has_frames = args.exec.is_some() && args.programs.exec_request != Extent::Line;
        Fixed {
            command: args.exec.clone(),
            mode: args.programs.exec_mode,
            may_stop: options.is_given(KILL_FROM),
            max_line: has_frames.then_some(args.max_line),
            min_threads: (args.exec.is_some() && args.programs.is_leased()).then_some(args.min_threads),
            spare: args.programs.exec_spare,
        }
    }

    /// Keeps that in options that were read anew. Returns those of them that cannot be obeyed, but for those of programs.
    pub(super) fn keep(&self, options: &mut Options) -> Vec<&'static str> {
        let gives_kill_from = options.is_given(KILL_FROM);
        let args = &mut options.args;
        (args.exec, args.programs.exec_mode) = (self.command.clone(), self.mode);
        args.programs.exec_spare = self.spare;
        let mut kept = Vec::new();
        if self.command.is_some() && gives_kill_from != self.may_stop {
            // Where nobody is to stop it any more, nobody can; that somebody may takes a restart.
            args.kill_from = StopFrom::None;
            kept.extend(gives_kill_from.then_some(KILL_FROM));
        }
        if let Some(bytes) = self.max_line {
            args.max_line = bytes;
            kept.push("max-line");
        }
        if let Some(least) = self.min_threads {
            args.min_threads = least;
            // Its place is --max-threads'.
            kept.extend(["min-threads", "max-connections"]);
        }
        kept
    }
}

/// Starts the programs of `command`.
///
/// # Errors
/// As [`Programs::start`].
pub(super) fn start(command: &str, options: &Options) -> Result<Programs, Error> {
    let mut config = config(options)?;
    config.launcher = launch::launcher(env::current_exe().ok());
    Programs::start(command, config)
}

/// Looks at what is said of programs, as [`start`] does, and starts none.
///
/// # Errors
/// As [`Programs::start`], for settings.
pub(super) fn check(options: &Options) -> Result<(), Error> {
    let command = options.args.exec.as_deref();
    command.map_or(Ok(()), |command| config(options)?.check(command))
}

fn config(options: &Options) -> Result<ExecConfig, Error> {
    let args = &options.args;
    let programs = &args.programs;
    let mut config = ExecConfig::default();
    if programs.is_leased() {
        let is_given = |name: &&str| options.is_given(&name.replace('_', "-"));
        if let Some(name) = OF_SHARED.into_iter().find(is_given) {
            let must = "left out with --exec-mode leased".to_owned();
            return Err(Error::Setting { name, value: "given".to_owned(), must });
        }
        config.mode = Mode::Leased;
        config.least = crate::cli::pool_bounds(args.min_threads, args.max_threads).0;
    }
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
    config.stop_line = options.is_given(KILL_FROM).then(|| KILL_SERVICE.to_owned());
    Ok(config)
}

/// Has the server say what its programs do, to those who ask and who send clients here.
pub(super) fn show(programs: &ProgramsHandle, server: &ServerHandle) {
    let shown = programs.clone();
    server.set_details("programs", move || {
        let shown = Shown { stats: shown.stats(), rows: shown.programs(MAX_ROWS) };
        serde_json::to_string(&shown).unwrap_or_default()
    });
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

/// Why a server is never replaced by another, if it is not.
pub(super) fn never_upgraded(args: &ServeArgs) -> Option<&'static str> {
    args.programs.is_leased().then_some("programs are leased: each belongs to a connection of this process")
}

/// Descriptors that programs take up at the most.
pub(super) fn descriptors(args: &ServeArgs, config: &Config) -> usize {
    if args.exec.is_none() {
        return 0;
    }
    let in_use = if args.programs.is_leased() { config.max_connections } else { config.max_threads };
    let programs = in_use.saturating_add(args.programs.exec_spare);
    programs.saturating_add(programs / ENDING_SHARE).saturating_add(1).saturating_mul(DESCRIPTORS_EACH)
}

//! `tidemill serve`: the HELO service with its settings, signals, logs and statistics.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use tidemill::{Config, Decision, Delay, Error, Helo, IpNet, Outcome, Server, ServerHandle, StopFrom};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::{USAGE, fail, files};

/// Target of the log lines that SIGUSR1 asks for.
const STATISTICS: &str = "statistics";
/// Log or statistics lines that wait for their reader. More are dropped and counted.
const MAX_WAITING_LINES: usize = 4096;
/// How often, and how long apart, the last lines are tried: a log that stands still delays the end by this at most.
const LAST_LINE_TRIES: usize = 20;
const LAST_LINE_PAUSE: Duration = Duration::from_millis(10);
/// Descriptors left for everything that is not a client's connection.
const SPARE_DESCRIPTORS: usize = 64;

/// Serve clients until told to stop.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct ServeArgs {
    /// TCP port to listen on; 0 picks a free one
    #[arg(value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// Address to listen on, IPv4 or IPv6 [default: 127.0.0.1; with --assignment 0.0.0.0]
    #[arg(long, value_name = "ADDR")]
    bind: Option<IpAddr>,
    /// Least workers at any time [default: 4, or --max-threads if that is less]
    #[arg(long, value_name = "N", env = "MIN_THREADS")]
    min_threads: Option<usize>,
    /// Most workers at any time [default: 32, or --min-threads if that is more]
    #[arg(long, value_name = "N", env = "MAX_THREADS")]
    max_threads: Option<usize>,
    /// No resize while demand and pool differ by this many threads or less, except when waiting work makes no progress
    #[arg(long, value_name = "N", env = "TOLERANCE", default_value_t = Config::default().tolerance)]
    tolerance: usize,
    /// The pool shrinks to the highest demand seen within this window
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "5s")]
    keep_alive: Duration,
    /// The student's number in each reply
    #[arg(long, value_name = "TEXT", env = "STUDENT_ID", default_value = Helo::STUDENT_ID, value_parser = one_line)]
    student_id: String,
    /// The IP address in each reply [default: the one that the client reached]
    #[arg(long, value_name = "IP")]
    advertise_ip: Option<IpAddr>,
    /// Make the handler block that long for each request: to see and to test the pool at work
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "0s")]
    handler_delay: Duration,
    /// Defaults for clients on other machines: --bind 0.0.0.0 --kill-from any
    #[arg(long)]
    assignment: bool,
    /// Who may stop the service with KILL_SERVICE: any, none, loopback, or networks in CIDR form, separated by commas
    /// [default: loopback; with --assignment any]
    #[arg(long, value_name = "LIST", value_parser = stop_from)]
    kill_from: Option<StopFrom>,
    /// Most connections at a time; one more is told "ERROR server full" and closed. Lowered to what the limit of open
    /// files permits
    #[arg(long, value_name = "N", default_value_t = Config::default().max_connections)]
    max_connections: usize,
    /// Longest line in bytes without its terminator; for a longer one the connection is closed
    #[arg(long, value_name = "BYTES", default_value_t = Config::default().max_line_bytes)]
    max_line: usize,
    /// Most requests that wait for a worker or are with one; at the limit the server stops reading
    #[arg(long, value_name = "N", default_value_t = Config::default().max_pending)]
    max_pending: usize,
    /// How long a graceful stop may take before what is left is dropped
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "8s")]
    drain_timeout: Duration,
    /// Print the statistics as one JSON line on standard output each time [default: off]
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    stats_every: Option<Duration>,
    /// Form of the log lines on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Least severe level that is logged
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = LogLevel::Info)]
    log_level: LogLevel,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Durations are checked by the library, but a period of zero is no period.
fn period(args: &ServeArgs) -> Result<Option<Duration>, String> {
    match args.stats_every {
        Some(Duration::ZERO) => Err("--stats-every is 0s, but must be longer".to_owned()),
        every => Ok(every),
    }
}

fn one_line(text: &str) -> Result<String, String> {
    if text.contains(['\n', '\r']) {
        return Err("must be one line".to_owned());
    }
    Ok(text.to_owned())
}

fn stop_from(list: &str) -> Result<StopFrom, String> {
    match list {
        "any" => return Ok(StopFrom::Any),
        "none" => return Ok(StopFrom::None),
        "loopback" => return Ok(StopFrom::Loopback),
        _ => {}
    }
    let network = |text: &str| {
        let text = text.trim();
        let single = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse::<IpNet>().or_else(|_| single()).map_err(|_| {
            format!("'{text}' is not any, none, loopback, an address, or a network such as 10.0.0.0/8")
        })
    };
    list.split(',').map(network).collect::<Result<_, _>>().map(StopFrom::Networks)
}

/// Runs the server until it was stopped. The exit status is 0 only if nothing was dropped.
pub(crate) fn run(args: &ServeArgs) -> ExitCode {
    let every = match period(args) {
        Ok(every) => every,
        Err(message) => return fail(USAGE, &message),
    };
    let (log, _flush_log) = lossy(io::stderr());
    start_log(args, log.clone());

    // Before clients can connect: a signal that comes now must not kill the process.
    let signals = match Signals::new([SIGINT, SIGTERM, SIGUSR1]) {
        Ok(signals) => signals,
        Err(error) => return fail(1, &format!("cannot handle signals: {error}")),
    };
    let server = match start(args) {
        Ok(server) => server,
        Err(error @ Error::Setting { .. }) => return fail(USAGE, &in_options(&error)),
        Err(error) => return fail(1, &error.to_string()),
    };
    let handle = server.handle();
    if let Err(error) = announce(&handle) {
        tracing::warn!(%error, "cannot write to standard output");
    }
    let stop_signals = signals.handle();
    let watcher = thread::Builder::new().name("tidemill-signal".to_owned()).spawn({
        let handle = handle.clone();
        move || watch(signals, &handle)
    });
    if let Err(error) = watcher {
        return fail(1, &format!("cannot start the signal thread: {error}"));
    }
    let reporter = every.map(|every| report_every(every, handle.clone()));

    let outcome = server.wait();
    stop_signals.close();
    drop(reporter);
    let status = match outcome {
        Ok(outcome) => {
            insist(&log, || conclude(&outcome));
            if outcome.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            tracing::error!(%error, "the server failed");
            ExitCode::FAILURE
        }
    };
    let lost = log.error_counter().dropped_lines();
    if lost > 0 {
        insist(&log, || tracing::warn!(lost, "log lines were dropped because their reader stood still"));
    }
    status
}

/// Writes one of the last lines of the log, again if there was no room for it: a reader that has only just gone on gets it.
fn insist(log: &NonBlocking, write: impl Fn()) {
    for _ in 0..LAST_LINE_TRIES {
        let dropped = log.error_counter().dropped_lines();
        write();
        if log.error_counter().dropped_lines() == dropped {
            return;
        }
        thread::sleep(LAST_LINE_PAUSE);
    }
}

fn start(args: &ServeArgs) -> Result<Server, Error> {
    let mut config = Config::default();
    (config.min_threads, config.max_threads) = super::pool_bounds(args.min_threads, args.max_threads);
    let everywhere = if args.assignment { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
    let anyone = if args.assignment { StopFrom::Any } else { StopFrom::Loopback };
    config.listen = vec![SocketAddr::new(args.bind.unwrap_or(everywhere.into()), args.port).into()];
    config.stop_from = args.kill_from.clone().unwrap_or(anyone);
    config.tolerance = args.tolerance;
    config.keep_alive = args.keep_alive;
    config.max_connections = args.max_connections;
    config.max_line_bytes = args.max_line;
    config.max_pending = args.max_pending;
    config.drain_timeout = args.drain_timeout;
    if args.max_connections > 0 {
        let files = files::raise_limit(args.max_connections.saturating_add(SPARE_DESCRIPTORS));
        let possible = files.saturating_sub(SPARE_DESCRIPTORS).max(1);
        if possible < args.max_connections {
            tracing::warn!(
                wanted = args.max_connections,
                possible,
                "the limit of open files lowers --max-connections"
            );
            config.max_connections = possible;
        }
    }

    let mut service = Helo::new().student_id(&args.student_id);
    if let Some(ip) = args.advertise_ip {
        service = service.advertise_ip(ip);
    }
    Server::builder(Delay::new(service, args.handler_delay)).config(config).start()
}

/// The message of a setting's error in the words of the command line.
fn in_options(error: &Error) -> String {
    let Error::Setting { name, value, must } = error else { return error.to_string() };
    let option = |name: &str| format!("--{}", name.trim_end_matches("_bytes").replace('_', "-"));
    format!("{} is {value}, but must be {}", option(name), must.replace("max_threads", "--max-threads"))
}

/// Once clients can connect: one line for each listener.
fn announce(handle: &ServerHandle) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for address in handle.local_addrs() {
        writeln!(out, "listening on {address}")?;
    }
    out.flush()
}

/// A writer that never blocks: lines for which there is no room are dropped and counted.
fn lossy(to: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_WAITING_LINES).finish(to)
}

fn start_log(args: &ServeArgs, log: NonBlocking) {
    let level = match args.log_level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // They are asked for by a signal, whatever else is wanted of the log.
    let statistics = if level == LevelFilter::OFF { level } else { LevelFilter::INFO.max(level) };
    let wanted = Targets::new().with_default(level).with_target(STATISTICS, statistics);
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_writer(log).with_ansi(false);
    let registry = tracing_subscriber::registry();
    match args.log_format {
        LogFormat::Text => registry.with(lines.with_filter(wanted)).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_filter(wanted)).init(),
    }
}

/// The signal thread: until the signals are closed.
fn watch(mut signals: Signals, handle: &ServerHandle) {
    let mut stops = 0;
    for signal in signals.forever() {
        if signal == SIGUSR1 {
            let stats = json(handle, &handle.decisions());
            tracing::info!(target: STATISTICS, %stats, "statistics");
            continue;
        }
        stops += 1;
        let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
        if stops == 1 {
            tracing::info!(signal = name, "stopping; once more stops at once");
            handle.stop();
        } else {
            tracing::warn!(signal = name, "stopping at once");
            handle.stop_now();
        }
    }
}

/// Prints the statistics periodically until what it returns is dropped.
fn report_every(every: Duration, handle: ServerHandle) -> Option<Reporter> {
    let (alive, ended) = mpsc::channel::<()>();
    let (mut out, flush) = lossy(io::stdout());
    let thread = thread::Builder::new().name("tidemill-stats".to_owned()).spawn(move || {
        let mut shown = Duration::ZERO;
        let mut print = |handle: &ServerHandle| {
            let mut decisions = handle.decisions();
            decisions.retain(|decision| decision.at > shown);
            shown = decisions.last().map_or(shown, |last| last.at);
            // Whoever does not read loses lines, which is what a lossy writer is for.
            drop(writeln!(out, "{}", json(handle, &decisions)));
        };
        while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            print(&handle);
        }
        print(&handle);
    });
    match thread {
        Ok(thread) => Some(Reporter { alive: Some(alive), thread: Some(thread), _flush: flush }),
        Err(error) => {
            tracing::warn!(%error, "cannot start the statistics thread");
            None
        }
    }
}

/// Ends the statistics thread when dropped, after its last line.
struct Reporter {
    alive: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    _flush: WorkerGuard,
}

impl Drop for Reporter {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            // It only formats and writes to a writer that does not block; a panic there is not the server's.
            drop(thread.join());
        }
    }
}

/// The statistics, with the wall clock and decisions besides, as one line of JSON.
fn json(handle: &ServerHandle, decisions: &[Decision]) -> String {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        unix_seconds: f64,
        #[serde(flatten)]
        stats: &'a tidemill::Stats,
        decisions: &'a [Decision],
    }
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    serde_json::to_string(&Line { unix_seconds, stats: &handle.stats(), decisions })
        .unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

/// The last log line, with the final statistics.
fn conclude(outcome: &Outcome) {
    let stats = serde_json::to_string(&outcome.stats).unwrap_or_default();
    if outcome.is_clean() {
        tracing::info!(%stats, "stopped; nothing was dropped");
    } else {
        tracing::error!(
            dropped_requests = outcome.dropped_requests,
            dropped_replies = outcome.dropped_replies,
            busy_workers = outcome.busy_workers,
            slow_peers = outcome.slow_peers,
            unread_peers = outcome.unread_peers,
            %stats,
            "stopped with losses: held up by handlers that had not returned and peers that had not read"
        );
    }
}

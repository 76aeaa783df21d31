//! `tidemill serve`: the HELO service with its settings, signals, logs and statistics.

mod arguments;
mod log;
mod signals;
mod statistics;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use tidemill::{Config, Delay, Error, Helo, Outcome, Server, ServerHandle, StopFrom};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::{USAGE, fail, files};
pub(crate) use arguments::ServeArgs;

/// Log or statistics lines that wait for their reader. More are dropped and counted.
const MAX_WAITING_LINES: usize = 4096;
/// How often, and how long apart, the last lines are tried: a log that stands still delays the end by this at most.
const LAST_LINE_TRIES: usize = 20;
const LAST_LINE_PAUSE: Duration = Duration::from_millis(10);
/// Descriptors left for everything that is not a client's connection.
const SPARE_DESCRIPTORS: usize = 64;

/// Runs the server until it was stopped. The exit status is 0 only if nothing was dropped.
pub(crate) fn run(args: &ServeArgs) -> ExitCode {
    let every = match arguments::period(args) {
        Ok(every) => every,
        Err(message) => return fail(USAGE, &message),
    };
    let (lines, _flush_log) = lossy(io::stderr());
    log::start_log(args, lines.clone());

    // Before clients can connect: a signal that comes now must not kill the process.
    let signals = match Signals::new([SIGINT, SIGTERM, SIGUSR1]) {
        Ok(signals) => signals,
        Err(error) => return fail(1, &format!("cannot handle signals: {error}")),
    };
    let server = match start(args) {
        Ok(server) => server,
        Err(error @ Error::Setting { .. }) => return fail(USAGE, &arguments::in_options(&error)),
        Err(error) => return fail(1, &error.to_string()),
    };
    let handle = server.handle();
    if let Err(error) = announce(&handle) {
        tracing::warn!(%error, "cannot write to standard output");
    }
    let stop_signals = signals.handle();
    let watcher = thread::Builder::new().name("tidemill-signal".to_owned()).spawn({
        let handle = handle.clone();
        move || signals::watch(signals, &handle)
    });
    if let Err(error) = watcher {
        return fail(1, &format!("cannot start the signal thread: {error}"));
    }
    let reporter = every.map(|every| statistics::report_every(every, handle.clone()));

    let outcome = server.wait();
    stop_signals.close();
    drop(reporter);
    let status = match outcome {
        Ok(outcome) => {
            insist(&lines, || conclude(&outcome));
            if outcome.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            tracing::error!(%error, "the server failed");
            ExitCode::FAILURE
        }
    };
    let lost = lines.error_counter().dropped_lines();
    if lost > 0 {
        insist(&lines, || tracing::warn!(lost, "log lines were dropped because their reader stood still"));
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

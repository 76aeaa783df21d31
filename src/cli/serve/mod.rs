//! `tidemill serve`: the HELO service, or programs, with its settings, signals, logs and statistics.

mod arguments;
mod exec;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod log;
mod signals;
mod statistics;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::Duration;

use tidemill::exec::ProgramsHandle;
use tidemill::{Address, Builder, Config, Delay, Error, Helo, Outcome, Server, ServerHandle, StopFrom};

use super::output::Output;
use super::{FAILED, USAGE, fail, files};
pub(crate) use arguments::ServeArgs;
use log::ALWAYS;
use signals::Watcher;
use statistics::{Reporter, Running};

/// How long the end waits for the reader of the log, and for that of standard output, at most: enough for one that
/// reads at all, and of no account in the 10 s that containers are given. Less where the drain timeout is less than
/// both together.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(500);
/// The same at least: one that reads gets the last lines where the drain timeout is 0, too.
const MIN_LAST_LINES_TIMEOUT: Duration = Duration::from_millis(100);
/// Descriptors that the server needs beside its listeners and its clients: what it waits with, and what wakes it.
const POLL_DESCRIPTORS: usize = 2;
/// Descriptors that are in use for a moment now and then: the pool's control loop reads what its threads do, and how
/// many CPUs there are.
const PASSING_DESCRIPTORS: usize = 2;
/// Most descriptors that are left for clients who are being told that the server is full: with few allowed, an eighth
/// of them.
const MAX_TURNED_AWAY_DESCRIPTORS: usize = 64;

/// With few descriptors allowed, such a part of them is for connections of the admin address.
const ADMIN_SHARE: usize = 16;

/// Exit status and one line, where there is no server.
type Refusal = (u8, String);

/// Runs the server until it was stopped. The exit status is 0 only if nothing was dropped.
pub(crate) fn run(args: &ServeArgs) -> ExitCode {
    if let Err(message) = arguments::check(args) {
        return fail(USAGE, &message);
    }
    // Whatever the system refuses is known before anybody can connect.
    let log = match log::start(args) {
        Ok(log) => log,
        Err(error) => return fail(FAILED, &format!("cannot start the log's thread: {error}")),
    };
    // A panic is in the log; it must not decide on the exit status.
    let ended = panic::catch_unwind(AssertUnwindSafe(|| serve(args, &log))).unwrap_or(Ok(FAILED));
    log.begin_last_lines();
    let status = ended.unwrap_or_else(|(status, message)| {
        log.line(format!("tidemill: {message}\n").into_bytes());
        status
    });
    if log.dropped() > 0 {
        log::tell_dropped(log.dropped());
    }
    log.finish(last_lines_timeout(args));
    ExitCode::from(status)
}

/// From the first thread to the end of the server. Returns the exit status.
fn serve(args: &ServeArgs, log: &Output) -> Result<u8, Refusal> {
    // What is missing is told in each line of statistics, and at the end.
    let output = Output::start("tidemill-output", io::stdout(), |_| ())
        .map_err(|error| (FAILED, format!("cannot start standard output's thread: {error}")))?;
    let watcher = Watcher::start().map_err(|message| (FAILED, message))?;
    let reporter = args.stats_every.map(|every| Reporter::start(every, output.clone()));
    let reporter = reporter
        .transpose()
        .map_err(|error| (FAILED, format!("cannot start the statistics thread: {error}")))?;
    let (server, programs) = start(args)?;
    let handle = server.handle();
    announce(&handle, &output);
    let running = Running { server: handle, programs: programs.clone() };
    watcher.begin(running.clone(), args.drain_delay);
    match &reporter {
        Some(reporter) => reporter.begin(running),
        None => output.close(),
    }

    let outcome = server.wait();
    if let Some(programs) = programs {
        // They are gone, unless a worker is left behind that waits for one.
        programs.end(Duration::ZERO);
    }
    watcher.end();
    drop(reporter);
    log.begin_last_lines();
    let status = match &outcome {
        Ok(outcome) => {
            conclude(outcome);
            if outcome.is_clean() { 0 } else { FAILED }
        }
        Err(error) => {
            tracing::error!(%error, "the server failed");
            FAILED
        }
    };
    output.finish(last_lines_timeout(args));
    let lost = output.dropped();
    if lost > 0 {
        tracing::warn!(target: ALWAYS, lost, "lines on standard output were dropped because their reader stood still");
    }
    Ok(status)
}

/// How long to wait for each of the two readers at the end.
fn last_lines_timeout(args: &ServeArgs) -> Duration {
    (args.drain_timeout / 2).clamp(MIN_LAST_LINES_TIMEOUT, LAST_LINES_TIMEOUT)
}

fn start(args: &ServeArgs) -> Result<(Server, Option<ProgramsHandle>), Refusal> {
    let mut config = Config::default();
    (config.min_threads, config.max_threads) = super::pool_bounds(args.min_threads, args.max_threads);
    let everywhere = if args.assignment { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
    let anyone = if args.assignment { StopFrom::Any } else { StopFrom::Loopback };
    let default = [IpAddr::V4(everywhere)];
    let bind = if args.bind.is_empty() { &default[..] } else { &args.bind };
    let tcp = bind.iter().map(|ip| Address::Tcp(SocketAddr::new(*ip, args.port)));
    config.listen = tcp.chain(args.unix.iter().cloned().map(Address::Unix)).collect();
    config.unix_mode = args.unix_mode;
    config.reuse_port = args.reuse_port;
    config.stop_from = args.kill_from.clone().unwrap_or(anyone);
    config.proxy_from = args.proxy_from.clone();
    config.tolerance = args.tolerance;
    config.keep_alive = args.keep_alive;
    config.max_connections_per_peer = args.max_connections_per_peer;
    config.max_line_bytes = args.max_line;
    config.max_memory_bytes = args.max_memory;
    config.send_buffer_bytes = args.send_buffer.0;
    config.line_timeout = args.line_timeout.0;
    config.idle_timeout = args.idle_timeout.0;
    config.write_timeout = args.write_timeout.0;
    config.queue_timeout = args.queue_timeout.0;
    config.request_timeout = args.request_timeout.0;
    config.max_pending = args.max_pending;
    config.thread_stack_bytes = args.thread_stack;
    config.drain_timeout = args.drain_timeout;
    config.admin = args.admin.clone();
    let of_admin = args.admin.as_ref().map_or(0, |_| config.admin_connections);
    let (builder, programs) = service(args)?;
    let listeners = config.listen.len() + usize::from(of_admin > 0);
    let descriptors = listeners + exec::descriptors(args, config.max_threads);
    (config.max_connections, config.admin_connections) =
        possible_connections(args.max_connections, of_admin, descriptors)?;
    let lowered_to = (config.max_connections < args.max_connections).then_some(config.max_connections);

    let server = builder.config(config).start().map_err(|error| refusal(&error))?;
    // Not before: a start that is refused is one line.
    if let Some(possible) = lowered_to {
        let wanted = args.max_connections;
        tracing::warn!(wanted, possible, "the limit of open files lowers --max-connections");
    }
    if let Some(address) = server.handle().admin_addr() {
        tracing::info!(%address, "admin address");
    }
    Ok((server, programs))
}

fn refusal(error: &Error) -> Refusal {
    match error {
        Error::Setting { .. } => (USAGE, arguments::in_options(error)),
        _ => (FAILED, error.to_string()),
    }
}

/// What is served: programs, or HELO.
fn service(args: &ServeArgs) -> Result<(Builder, Option<ProgramsHandle>), Refusal> {
    if let Some(command) = &args.exec {
        let programs = exec::start(command, args).map_err(|error| refusal(&error))?;
        let handle = programs.handle();
        return Ok((Server::builder(programs), Some(handle)));
    }
    let mut service = Helo::new().student_id(&args.student_id).inline(args.inline);
    if let Some(ip) = args.advertise_ip {
        service = service.advertise_ip(ip);
    }
    if let Some(port) = args.advertise_port {
        service = service.advertise_port(port);
    }
    Ok((Server::builder(Delay::new(service, args.handler_delay)), None))
}

/// Raises the limit of open files for `wanted` connections, and `of_admin` of the admin address, beside `others`, and lowers both
/// to what it permits.
///
/// # Errors
/// Not even one is possible.
fn possible_connections(wanted: usize, of_admin: usize, others: usize) -> Result<(usize, usize), Refusal> {
    let own = others + POLL_DESCRIPTORS + PASSING_DESCRIPTORS;
    let in_use = files::in_use_below(usize::MAX);
    let limit =
        files::raise_limit(wanted.saturating_add(in_use + own + of_admin + MAX_TURNED_AWAY_DESCRIPTORS));
    let turned_away = (limit / 8).clamp(1, MAX_TURNED_AWAY_DESCRIPTORS);
    let of_admin = of_admin.min((limit / ADMIN_SHARE).max(1));
    let taken = files::in_use_below(limit) + own + turned_away + of_admin;
    if limit <= taken {
        let needed = taken + 1;
        return Err((
            FAILED,
            format!("the limit of open files is {limit}, but at least {needed} are needed"),
        ));
    }
    Ok((wanted.min(limit - taken), of_admin))
}

/// Once clients can connect: one line for each listener. They are the first lines, so there is room for them.
fn announce(handle: &ServerHandle, output: &Output) {
    for address in handle.local_addrs() {
        output.line(format!("listening on {address}\n").into_bytes());
    }
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

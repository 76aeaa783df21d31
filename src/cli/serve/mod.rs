//! `tidemill serve`: the HELO service, or programs, with its settings, signals, logs and statistics.

mod arguments;
mod exec;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod layers;
mod log;
mod records;
mod reload;
mod served;
mod signals;
pub(crate) mod starter;
mod statistics;
mod systemd;
mod upgrade;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use tidemill::exec::{ProgramsHandle, ProgramsStats};
use tidemill::{Address, Builder, Config, Error, Listener, Outcome, Server, ServerHandle, Stats};

use super::output::Output;
use super::{FAILED, USAGE, fail, files, print};
pub(crate) use arguments::ServeArgs;
use exec::Fixed;
use layers::{Layers, Options};
use log::{ALWAYS, Lines};
use reload::{Live, Reload, Reloader};
use served::Served;
use signals::{DrainDelay, Subject, Watcher};
use statistics::{Reporter, Running};
use systemd::Notifier;
use upgrade::{Predecessor, Upgrader};

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
/// Descriptors for the agent address: its listener, and connections that are over at once. One of several balancers that finds
/// none asks again a second later.
const AGENT_DESCRIPTORS: usize = 3;
/// Most descriptors that are left for clients who are being told that the server is full: with few allowed, an eighth
/// of them.
const MAX_TURNED_AWAY_DESCRIPTORS: usize = 64;

/// With few descriptors allowed, such a part of them is for connections of the admin address.
const ADMIN_SHARE: usize = 16;

/// Exit status and one line, where there is no server.
type Refusal = (u8, String);

/// Runs the server until it was stopped. The exit status is 0 only if nothing was dropped. `arguments` are those of the program.
pub(crate) fn run(arguments: Vec<OsString>) -> ExitCode {
    let layers = Layers::new(arguments);
    let options = match layers.read() {
        Ok(options) => options,
        Err(message) => return fail(USAGE, &message),
    };
    if options.args.check {
        return check(&options);
    }
    // Before there are threads.
    let sockets = match OpenSockets::find() {
        Ok(sockets) => sockets,
        Err(message) => return fail(FAILED, &message),
    };
    let args = &options.args;
    // Whatever the system refuses is known before anybody can connect.
    let (log, lines) = match log::start(args) {
        Ok(log) => log,
        Err(error) => return fail(FAILED, &format!("cannot start the log's thread: {error}")),
    };
    // A panic is in the log; it must not decide on the exit status.
    let ended = panic::catch_unwind(AssertUnwindSafe(|| serve(layers, &options, lines, sockets, &log)))
        .unwrap_or(Ok((FAILED, args.drain_timeout)));
    log.begin_last_lines();
    let (status, drain_timeout) = ended.unwrap_or_else(|(status, message)| {
        log.line(format!("tidemill: {message}\n").into_bytes());
        (status, args.drain_timeout)
    });
    if log.dropped() > 0 {
        log::tell_dropped(log.dropped());
    }
    log.finish(last_lines_timeout(drain_timeout));
    ExitCode::from(status)
}

/// Says what would be in force, and binds nothing.
fn check(options: &Options) -> ExitCode {
    let checked = config_of(&options.args).validate().and_then(|()| exec::check(options));
    if let Err(error) = checked {
        return fail(USAGE, &options.in_options(&error));
    }
    print(&options.listing()).map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS)
}

/// From the first thread to the end of the server. Returns the exit status, and the drain timeout that was in force at the end.
fn serve(
    layers: Layers,
    options: &Options,
    lines: Lines,
    sockets: OpenSockets,
    log: &Output,
) -> Result<(u8, Duration), Refusal> {
    let args = &options.args;
    // What is missing is told in each line of statistics, and at the end.
    let output = Output::start("tidemill-output", io::stdout(), |_| ())
        .map_err(|error| (FAILED, format!("cannot start standard output's thread: {error}")))?;
    let watcher = Watcher::start(args.config.is_some()).map_err(|message| (FAILED, message))?;
    // A reload may ask for what is not asked for now.
    let reports = args.stats_every.0.is_some() || args.config.is_some();
    let reporter = reports.then(|| Reporter::start(args.stats_every.0, output.clone()));
    let reporter = reporter
        .transpose()
        .map_err(|error| (FAILED, format!("cannot start the statistics thread: {error}")))?;
    let notifier = Notifier::from_env()
        .map_err(|error| (FAILED, format!("cannot start the thread that notifies: {error}")))?;
    let upgrader = Upgrader::new(args.upgrade_timeout, notifier.clone(), exec::never_upgraded(args));
    let OpenSockets { passed, inherited, predecessor } = sockets;
    let Started { server, served, programs, descriptors } = start(options, passed, inherited)?;
    let handle = server.handle();
    let drain_delay = DrainDelay::new(args.drain_delay);
    let reloader = args.config.is_some().then(|| {
        let (values, notifier) = (options.values.clone(), notifier.clone());
        let programs = Fixed::of(options);
        let reload = Reload {
            layers,
            values,
            live: Live {
                lines,
                drain_delay: drain_delay.clone(),
                upgrader: upgrader.clone(),
                reports: reporter.as_ref().map(Reporter::setter),
                served,
            },
            descriptors,
            notifier,
            programs,
        };
        Reloader::start(reload, handle.clone())
    });
    let reloader =
        reloader.transpose().map_err(|error| (FAILED, format!("cannot start the reload thread: {error}")))?;
    if let Some(programs) = &programs {
        exec::show(programs, &handle);
    }
    let running = Running { server: handle.clone(), programs: programs.clone() };
    watcher.begin(Subject {
        running: running.clone(),
        drain_delay,
        reloader,
        upgrader: upgrader.clone(),
        predecessor: predecessor.clone(),
    });
    if predecessor.as_ref().is_some_and(|predecessor| !predecessor.take_over(&handle)) {
        // It has said why, and goes on.
        handle.stop();
        drop(server.wait());
        return Ok((FAILED, args.drain_timeout));
    }
    upgrader.enable(&handle);
    announce(&handle, &output);
    let teller = notifier.begin(&handle);
    let teller = teller.map_err(|error| (FAILED, format!("cannot start the status thread: {error}")))?;
    match &reporter {
        Some(reporter) => reporter.begin(running),
        None => output.close(),
    }

    let outcome = server.wait();
    let programs = programs.map(|programs| {
        // They are gone, unless a worker is left behind that waits for one.
        programs.end(Duration::ZERO);
        programs.stats()
    });
    upgrader.end();
    let drain_timeout = handle.config().drain_timeout;
    if let Some(predecessor) = predecessor {
        predecessor.wait(drain_timeout);
    }
    watcher.end();
    drop(teller);
    drop(reporter);
    log.begin_last_lines();
    let status = match &outcome {
        Ok(outcome) => {
            conclude(outcome, programs);
            if outcome.is_clean() { 0 } else { FAILED }
        }
        Err(error) => {
            tracing::error!(%error, "the server failed");
            FAILED
        }
    };
    output.finish(last_lines_timeout(drain_timeout));
    let lost = output.dropped();
    if lost > 0 {
        tracing::warn!(target: ALWAYS, lost, "lines on standard output were dropped because their reader stood still");
    }
    Ok((status, drain_timeout))
}

/// How long to wait for each of the two readers at the end.
fn last_lines_timeout(drain_timeout: Duration) -> Duration {
    (drain_timeout / 2).clamp(MIN_LAST_LINES_TIMEOUT, LAST_LINES_TIMEOUT)
}

/// Sockets that listen already when the process starts.
struct OpenSockets {
    /// Passed by the service manager.
    passed: Vec<OwnedFd>,
    /// Of the process whose place this one takes.
    inherited: Vec<Listener>,
    predecessor: Option<Predecessor>,
}

impl OpenSockets {
    fn find() -> Result<OpenSockets, String> {
        let passed = systemd::passed_sockets()?;
        Ok(match Predecessor::find()? {
            Some((predecessor, inherited)) => {
                OpenSockets { passed, inherited, predecessor: Some(predecessor) }
            }
            None => OpenSockets { passed, inherited: Vec::new(), predecessor: None },
        })
    }
}

/// The settings that these options make, before the limit of open files is looked at.
fn config_of(args: &ServeArgs) -> Config {
    let mut config = Config::default();
    (config.min_threads, config.max_threads) = super::pool_bounds(args.min_threads, args.max_threads);
    let tcp = args.bind.iter().map(|ip| Address::Tcp(SocketAddr::new(*ip, args.port)));
    config.listen = tcp.chain(args.unix.iter().cloned().map(Address::Unix)).collect();
    config.unix_mode = args.unix_mode;
    config.reuse_port = args.reuse_port;
    config.stop_from = args.kill_from.clone();
    config.proxy_from = args.proxy_from.clone();
    config.tolerance = args.tolerance;
    config.keep_alive = args.keep_alive;
    config.max_connections = args.max_connections;
    config.max_connections_per_peer = args.max_connections_per_peer.0;
    config.max_line_bytes = args.max_line;
    config.max_memory_bytes = args.max_memory;
    config.send_buffer_bytes = args.send_buffer.0;
    config.line_timeout = args.line_timeout.0;
    config.idle_timeout = args.idle_timeout.0;
    config.write_timeout = args.write_timeout.0;
    config.slow_log = args.slow_log.0;
    config.queue_timeout = args.queue_timeout.0;
    config.request_timeout = args.request_timeout.0;
    config.max_pending = args.max_pending;
    config.thread_stack_bytes = args.thread_stack;
    config.drain_timeout = args.drain_timeout;
    config.admin = args.admin.clone();
    config.agent = args.agent.map(Address::Tcp);
    exec::settle(args, &mut config);
    config
}

/// A server that has been started, and what belongs to it.
struct Started {
    server: Server,
    /// Unless requests are handed to programs.
    served: Option<Served>,
    programs: Option<ProgramsHandle>,
    descriptors: Descriptors,
}

fn start(options: &Options, passed: Vec<OwnedFd>, inherited: Vec<Listener>) -> Result<Started, Refusal> {
    let args = &options.args;
    let mut config = config_of(args);
    if !passed.is_empty() || inherited.iter().any(|listener| listener.address().is_none()) {
        config.listen = Vec::new();
    }
    let (builder, served, programs) = service(options)?;
    let of_admin = args.admin.as_ref().map_or(0, |_| config.admin_connections);
    let wanted = config.max_connections;
    let descriptors = Descriptors::reserve(wanted, of_admin, own_descriptors(args, &config))?;
    config.max_connections = descriptors.connections(wanted);
    config.admin_connections = descriptors.of_admin;
    let lowered_to = (config.max_connections < wanted).then_some(config.max_connections);

    let builder = builder.config(config).inherit(inherited);
    let server = passed.into_iter().fold(builder, Builder::listener).start();
    let server = server.map_err(|error| refusal(options, &error))?;
    // Not before: a start that is refused is one line.
    if let Some(possible) = lowered_to {
        tracing::warn!(wanted, possible, "the limit of open files lowers --max-connections");
    }
    if let Some(address) = server.handle().admin_addr() {
        tracing::info!(%address, "admin address");
    }
    if let Some(address) = server.handle().agent_addr() {
        tracing::info!(%address, "agent address");
    }
    Ok(Started { server, served, programs, descriptors })
}

fn refusal(options: &Options, error: &Error) -> Refusal {
    match error {
        Error::Setting { .. } => (USAGE, options.in_options(error)),
        _ => (FAILED, error.to_string()),
    }
}

/// What is served: programs, or HELO.
fn service(options: &Options) -> Result<(Builder, Option<Served>, Option<ProgramsHandle>), Refusal> {
    let args = &options.args;
    if let Some(command) = &args.exec {
        let programs = exec::start(command, options).map_err(|error| refusal(options, &error))?;
        let handle = programs.handle();
        return Ok((Server::builder(programs), None, Some(handle)));
    }
    let served = Served::new(args);
    Ok((Server::builder(served.clone()), Some(served), None))
}

/// Descriptors that the server needs for itself, besides those that are in use at the start.
fn own_descriptors(args: &ServeArgs, config: &Config) -> usize {
    let of_agent = args.agent.map_or(0, |_| AGENT_DESCRIPTORS);
    let listeners = config.listen.len() + usize::from(args.admin.is_some()) + of_agent;
    listeners + exec::descriptors(args, config) + POLL_DESCRIPTORS + PASSING_DESCRIPTORS
}

/// Descriptors that are not for clients.
#[derive(Clone, Copy, Debug)]
struct Descriptors {
    /// Were in use at the start.
    in_use: usize,
    /// What [`own_descriptors`] says.
    own: usize,
    /// For connections of the admin address.
    of_admin: usize,
}

impl Descriptors {
    /// Counts them, with `of_admin` or as many as the limit of open files permits.
    ///
    /// # Errors
    /// Not one is left for a client, though the limit is raised for `wanted`.
    fn reserve(wanted: usize, of_admin: usize, own: usize) -> Result<Descriptors, Refusal> {
        let all = Descriptors { in_use: files::in_use_below(usize::MAX), own, of_admin };
        let limit = all.raise_limit(wanted);
        let of_admin = of_admin.min((limit / ADMIN_SHARE).max(1));
        let descriptors = Descriptors { in_use: files::in_use_below(limit), own, of_admin };
        let taken = descriptors.taken(limit);
        if limit <= taken {
            let needed = taken + 1;
            return Err((
                FAILED,
                format!("the limit of open files is {limit}, but at least {needed} are needed"),
            ));
        }
        Ok(descriptors)
    }

    /// Raises the limit of open files for `wanted` connections. Returns how many of them it permits.
    fn connections(self, wanted: usize) -> usize {
        let limit = self.raise_limit(wanted);
        wanted.min(limit.saturating_sub(self.taken(limit)))
    }

    fn raise_limit(self, wanted: usize) -> usize {
        files::raise_limit(
            wanted.saturating_add(self.in_use + self.own + self.of_admin + MAX_TURNED_AWAY_DESCRIPTORS),
        )
    }

    /// Descriptors that are taken where `limit` are allowed, with those for clients who are being told that the server is full.
    fn taken(self, limit: usize) -> usize {
        self.in_use + self.own + self.of_admin + (limit / 8).clamp(1, MAX_TURNED_AWAY_DESCRIPTORS)
    }
}

/// Once clients can connect: one line for each listener. They are the first lines, so there is room for them.
fn announce(handle: &ServerHandle, output: &Output) {
    for address in handle.local_addrs() {
        output.line(format!("listening on {address}\n").into_bytes());
    }
}

/// The final statistics.
#[derive(Serialize)]
struct Last<'a> {
    #[serde(flatten)]
    stats: &'a Stats,
    #[serde(skip_serializing_if = "Option::is_none")]
    programs: Option<ProgramsStats>,
}

/// The last log line, with the final statistics.
fn conclude(outcome: &Outcome, programs: Option<ProgramsStats>) {
    let stats = serde_json::to_string(&Last { stats: &outcome.stats, programs }).unwrap_or_default();
    if outcome.is_clean() {
        tracing::info!(%stats, "stopped; nothing was dropped");
    } else {
        tracing::error!(
            dropped_requests = outcome.dropped_requests,
            dropped_replies = outcome.dropped_replies,
            busy_workers = outcome.busy_workers,
            slow_peers = outcome.slow_peers,
            unread_peers = outcome.unread_peers,
            leased_programs = outcome.parted,
            %stats,
            "stopped with losses: held up by handlers that had not returned and peers that had not read"
        );
    }
}

//! Hot upgrade: another process takes the place of this one, and no client notices.
//!
//! The old process, on SIGUSR2: starts the program that stands on disk now, as it was started itself, with one end of a
//! socket pair as its standard input; sends the open listeners through it; and waits for word that the new server runs. Then it
//! gives the word to take over, and drains. Both accept until then, from the same sockets. Whatever else happens, the new
//! process is ended, and this one goes on.
//!
//! ```text
//! old                                  new
//! header, a record each listener ────▶ binds what it did not get, starts
//!                                ◀──── ready
//! lends, tells the manager, looks
//! for a stop that was asked for, go ──▶ owns, announces
//! stops                                (end of the stream instead of go: stops)
//! ends                           ────▶ may end, if it is to
//! ```
//!
//! The new process does not end before the old one, which it waits for: whoever watches the new one, such as a service manager, would
//! take the service for ended, and kill what is left of it.
//!
//! Invariant: at any moment the listeners are either one's to close, and only the new one's behind `go`. Held by
//! `tests/it/upgrade.rs`.

use std::env;
use std::fs;
use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvFlags, Shutdown, SocketFlags, SocketType, shutdown, socketpair, sockopt,
};
use tidemill::{Listener, ServerHandle};

use super::log::ALWAYS;
use super::records::{far, receive, receive_listeners, send, send_listeners};
use super::signals::stop_was_asked_for;
use super::starter::Successor;
use super::systemd::Notifier;

/// Set for a process that is to take another's place: the number of that. It counts only where standard input is such a
/// socket as that would have, as it is inherited by programs that the process starts.
const VARIABLE: &str = "TIDEMILL_UPGRADE";
/// Variables of the service manager that are the old process's own. The sockets go another way.
const NOT_INHERITED: [&str; 4] = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
/// The new server runs.
const READY: &[u8] = b"ready";
/// It may take over.
const GO: &[u8] = b"go";
/// How long a process that is ended has from SIGTERM to SIGKILL: what a server needs to stop that has just begun.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Upgrades on request. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Upgrader(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The program, for what stands there later; or why that is not known.
    program: Result<PathBuf, String>,
    notifier: Notifier,
    /// Why this server is never replaced.
    refusal: Option<&'static str>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How long the new process may take: of the upgrade that is under way, and of the next one.
    timeout: Duration,
    next_timeout: Duration,
    /// An upgrade is under way, or ends with a line of the log.
    thread: Option<thread::JoinHandle<()>>,
    /// It is under way: from when that line is told on another one may begin.
    is_under_way: bool,
    /// This process's end of the socket pair, while it waits for the new one.
    waits: Option<OwnedFd>,
    /// The listeners are this process's own to hand over.
    is_enabled: bool,
    /// An upgrade was asked for before that.
    is_wanted: bool,
    /// No more upgrades: the server stops, or has handed over.
    over: bool,
}

impl Upgrader {
    /// `refusal`: why this server is never replaced, if it is not.
    pub(super) fn new(timeout: Duration, notifier: Notifier, refusal: Option<&'static str>) -> Upgrader {
        let (program, state) = (program(), Mutex::new(State { next_timeout: timeout, ..State::default() }));
        Upgrader(Arc::new(Shared { program, notifier, refusal, state }))
    }

    /// The next upgrade may take so long.
    pub(super) fn set_timeout(&self, timeout: Duration) {
        self.0.lock().next_timeout = timeout;
    }

    /// From now on the listeners are this process's own.
    pub(super) fn enable(&self, server: &ServerHandle) {
        let is_wanted = {
            let mut state = self.0.lock();
            state.is_enabled = true;
            state.is_wanted
        };
        if is_wanted {
            self.begin(server);
        }
    }

    /// Begins an upgrade of `server`, unless one is under way.
    pub(super) fn begin(&self, server: &ServerHandle) {
        if process::id() == 1 {
            return tell_refused("as process 1 this one cannot be replaced: with its end all others end");
        }
        if let Some(reason) = self.0.refusal {
            return tell_refused(reason);
        }
        let mut state = self.0.lock();
        if !state.is_enabled {
            state.is_wanted = true;
            return;
        }
        if state.over || state.is_under_way {
            tracing::debug!("an upgrade is under way already");
            return;
        }
        let (upgrader, server) = (self.clone(), server.clone());
        let thread = thread::Builder::new()
            .name("tidemill-upgrade".to_owned())
            .spawn(move || upgrader.0.upgrade(&server));
        match thread {
            Ok(thread) => (state.thread, state.is_under_way) = (Some(thread), true),
            Err(error) => tell_refused(&format!("no thread can be started: {error}")),
        }
    }

    /// The server stops: ends an upgrade that is under way. Blocks for a second at the most, while it is handed over.
    pub(super) fn cancel(&self) {
        let mut state = self.0.lock();
        state.over = true;
        if let Some(waits) = &state.waits {
            // It is open.
            let _ = shutdown(waits, Shutdown::Both);
        }
    }

    /// Blocks until no upgrade is under way any more, which is soon after [`cancel`](Self::cancel).
    pub(super) fn end(&self) {
        self.cancel();
        let thread = self.0.lock().thread.take();
        if let Some(thread) = thread {
            // A panic there is in the log.
            drop(thread.join());
        }
    }
}

/// One line, and this process goes on.
fn tell_refused(reason: &str) {
    tracing::warn!(target: ALWAYS, reason, "not upgraded; this process goes on");
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread of an upgrade.
    fn upgrade(&self, server: &ServerHandle) {
        let begun = Instant::now();
        let timeout = {
            let mut state = self.lock();
            state.timeout = state.next_timeout;
            state.timeout
        };
        let upgraded = self.try_upgrade(server, begun + timeout);
        self.lock().is_under_way = false;
        match upgraded {
            Ok(id) => {
                let seconds = begun.elapsed().as_secs_f64();
                tracing::info!(target: ALWAYS, process = id, seconds, "upgraded: another process has taken over");
            }
            Err(reason) => tell_refused(&reason),
        }
    }

    /// Returns the number of the process that has taken over.
    ///
    /// # Errors
    /// Why none has. None is left, then.
    fn try_upgrade(&self, server: &ServerHandle, deadline: Instant) -> Result<u32, String> {
        let program = self.program.as_ref().map_err(Clone::clone)?;
        let listeners = server.listeners().map_err(|error| error.to_string())?;
        if server.is_stopping() {
            return Err("the server stops".to_owned());
        }
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| format!("no socket pair can be had: {error}"))?;
        {
            let mut state = self.lock();
            if state.over {
                return Err("the server stops".to_owned());
            }
            state.waits =
                Some(ours.try_clone().map_err(|error| format!("a socket cannot be duplicated: {error}"))?);
        }
        let dress = |command: &mut Command| {
            command.env(VARIABLE, process::id().to_string()).stdin(Stdio::from(theirs));
            for name in NOT_INHERITED {
                command.env_remove(name);
            }
        };
        let why_not = |error| self.why_not(error);
        let started = Successor::start(program, env::args_os(), dress, &ours, deadline, why_not);
        let mut successor = started.inspect_err(|_| self.lock().waits = None)?;
        let mut was_ready = false;
        let handed_over = self.hand_over(server, &listeners, &ours, &mut successor, deadline, &mut was_ready);
        // A stop has nothing to break off any more, and ended by us or not, the other end is closed.
        self.lock().waits = None;
        let Err(reason) = handed_over else {
            // The system closes it when this process has ended, which is what the new one waits for.
            mem::forget(ours);
            return Ok(successor.id());
        };
        drop(ours);
        // One whose end of the pair is closed is about to end, as a rule. Nobody waits for that beyond the deadline, or in a stop.
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = if self.lock().over { Duration::ZERO } else { left };
        // One that was ready may have accepted clients, whom it serves to the end.
        let timeout = if was_ready { END_TIMEOUT.max(server.config().drain_timeout) } else { END_TIMEOUT };
        let status = successor.end(patience, timeout);
        Err(status.map_or(reason.clone(), |status| format!("{reason} ({status})")))
    }

    /// Why the new process has not said what was waited for.
    fn why_not(&self, error: io::Error) -> String {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                let timeout = self.lock().timeout;
                format!("the new process was not ready within {}", humantime::format_duration(timeout))
            }
            ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                let stops = self.lock().over;
                let which = if stops { "the server stops" } else { "the new process did not become ready" };
                which.to_owned()
            }
            _ => error.to_string(),
        }
    }

    /// Sends the listeners, waits until the new process runs a server, and lets it take over.
    fn hand_over(
        &self,
        server: &ServerHandle,
        listeners: &[Listener],
        pair: &OwnedFd,
        successor: &mut Successor,
        deadline: Instant,
        was_ready: &mut bool,
    ) -> Result<(), String> {
        let in_time = |error| self.why_not(error);
        send_listeners(pair, listeners, deadline).map_err(in_time)?;
        if successor.is_unasked() || receive(pair, deadline).map_err(in_time)?.0 != READY {
            return Err("the new process speaks another upgrade protocol".to_owned());
        }
        *was_ready = true;
        successor.adopt_out();
        // This process is the main one again. It is said before a stop is, which waits for the lock, but not for the manager.
        let return_to_this = |state: MutexGuard<'_, State>| {
            self.notifier.main_process(process::id());
            drop(state);
            self.notifier.wait_until_read();
        };
        let mut state = self.lock();
        if state.over || !server.lend() {
            return Err("the server stops".to_owned());
        }
        // Of one that is gone the manager must not hear: it would listen to this one no more.
        if successor.has_ended(Duration::ZERO) {
            server.own();
            return Err("the new process has gone".to_owned());
        }
        // The manager has to know before the new process says anything, and before this one may seem to stop.
        self.notifier.main_process(successor.id());
        self.notifier.wait_until_read();
        // If it asked this one to stop before, the service is to stop, and it kills whoever is left at this one's end.
        if stop_was_asked_for() || server.is_stopping() {
            state.over = true;
            server.own();
            return_to_this(state);
            return Err("the server stops".to_owned());
        }
        if let Err(error) = send(pair, GO, None, deadline) {
            server.own();
            return_to_this(state);
            return Err(format!("the new process has gone: {error}"));
        }
        state.over = true;
        drop(state);
        self.notifier.fall_silent();
        server.stop();
        Ok(())
    }
}

/// The program of this process by the name that it was started by, where a new one may be put; by its present one where that
/// name is another's.
fn program() -> Result<PathBuf, String> {
    let own = fs::metadata("/proc/self/exe").ok();
    let is_own = |path: &PathBuf| {
        let (file, own) = (fs::metadata(path).ok(), own.as_ref());
        file.zip(own).is_some_and(|(file, own)| (file.dev(), file.ino()) == (own.dev(), own.ino()))
    };
    let name = env::args_os().next().unwrap_or_default();
    let named = if name.as_bytes().contains(&b'/') {
        Some(PathBuf::from(name)).filter(is_own)
    } else {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).map(|directory| directory.join(&name)).find(is_own)
    };
    let present =
        || env::current_exe().map_err(|error| format!("where the program is cannot be known: {error}"));
    named.map_or_else(present, Ok)
}

/// The process whose place this one takes. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Predecessor {
    pair: Arc<OwnedFd>,
    phase: Arc<Mutex<Phase>>,
}

/// Where the process that takes another's place stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    /// The other one knows that it is ready, and may have left the service to it already.
    Ready,
    /// It was asked to stop meanwhile, and does so once it knows whether the service is its own: who is in the listeners' queues is
    /// nobody else's then.
    ReadyToStop,
    Settled,
}

impl Predecessor {
    /// The one that has started this process for that, if any has, and its listeners.
    ///
    /// # Errors
    /// One line that says what is wrong with them.
    pub(super) fn find() -> Result<Option<(Predecessor, Vec<Listener>)>, String> {
        let input = io::stdin();
        let is_pair = sockopt::socket_type(&input).is_ok_and(|kind| kind == SocketType::SEQPACKET);
        if env::var_os(VARIABLE).is_none() || !is_pair {
            return Ok(None);
        }
        let failed = |error: io::Error| format!("cannot take over the listeners: {error}");
        let pair = input.as_fd().try_clone_to_owned().map_err(failed)?;
        let listeners = receive_listeners(&pair).map_err(failed)?;
        let phase = Arc::new(Mutex::new(Phase::Starting));
        Ok(Some((Predecessor { pair: Arc::new(pair), phase }, listeners)))
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks this process to stop as soon as it knows whether the service is its own. `false`: it knows, or is not ready, and may stop.
    pub(super) fn stop_later(&self) -> bool {
        let mut phase = self.phase();
        let waits = *phase == Phase::Ready;
        if waits {
            *phase = Phase::ReadyToStop;
        }
        waits
    }

    /// This process serves clients. Blocks until the other one has said to go on or has given up. Whether this process has
    /// taken over, if only to stop.
    pub(super) fn take_over(&self, server: &ServerHandle) -> bool {
        let is_ready = {
            let mut phase = self.phase();
            // One that was told to stop meanwhile is not ready.
            let is_ready = !server.is_stopping();
            *phase = if is_ready { Phase::Ready } else { Phase::Settled };
            is_ready
        };
        // The other one has a timeout, and where it ends, so does the stream.
        let mut buffer = [0; GO.len()];
        let takes_over = is_ready
            && send(&self.pair, READY, None, far()).is_ok()
            && retry_on_intr(|| rustix::net::recv(&self.pair, &mut buffer[..], RecvFlags::empty())).is_ok()
            && buffer == GO;
        if takes_over {
            server.own();
        } else {
            // Whatever it says from now on does not get through, so that it goes on.
            self.forget();
        }
        if mem::replace(&mut *self.phase(), Phase::Settled) == Phase::ReadyToStop {
            server.stop();
        }
        takes_over
    }

    /// Blocks until it has ended, for `timeout` at most, unless it is to be [forgotten](Self::forget).
    pub(super) fn wait(&self, timeout: Duration) {
        let timeout = Timespec::try_from(timeout).ok();
        // Whatever comes of it, this process ends.
        let _ = retry_on_intr(|| poll(&mut [PollFd::new(&self.pair, PollFlags::IN)], timeout.as_ref()));
    }

    /// This process does not wait for it.
    pub(super) fn forget(&self) {
        // It is open.
        let _ = shutdown(&self.pair, Shutdown::Both);
    }
}

//! What a signal does.
//!
//! A thread waits for signals from before the server is there: what comes meanwhile waits for it.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::{Handle, Signals};
use tidemill::ServerState;

use super::log::ALWAYS;
use super::reload::Reloader;
use super::statistics::{self, Running};
use super::upgrade::{Predecessor, Upgrader};
use crate::cli::unblock;

/// Set by the signal's handler itself, so before the thread that watches has run.
static STOP_ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Watches for signals.
pub(super) struct Watcher {
    subject: mpsc::Sender<Subject>,
    signals: Handle,
}

/// What signals are for.
pub(super) struct Subject {
    pub(super) running: Running,
    pub(super) drain_delay: DrainDelay,
    /// Where a file can be read again.
    pub(super) reloader: Option<Reloader>,
    pub(super) upgrader: Upgrader,
    /// Whom the end waits for.
    pub(super) predecessor: Option<Predecessor>,
}

/// The time between SIGTERM and the stop, which a reload may change.
#[derive(Clone, Debug)]
pub(super) struct DrainDelay(Arc<Mutex<Duration>>);

impl DrainDelay {
    pub(super) fn new(delay: Duration) -> DrainDelay {
        DrainDelay(Arc::new(Mutex::new(delay)))
    }

    pub(super) fn set(&self, delay: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = delay;
    }

    fn get(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// From now on no signal that means something to a server ends the process. Whoever started it with SIGHUP ignored, as
    /// `nohup` does, wants it to go on when the terminal is gone: then it stays so, unless it `reloads` by that signal.
    ///
    /// # Errors
    /// One line that says what the system refused.
    pub(super) fn start(reloads: bool) -> Result<Watcher, String> {
        let refused = |error| format!("cannot handle signals: {error}");
        // SIGXFSZ would end the process where a file of the log has reached the limit of its size; the write fails all
        // the same.
        let signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ]).map_err(refused)?;
        let asked = STOP_ASKED.get_or_init(Arc::default);
        for signal in [SIGINT, SIGTERM] {
            flag::register(signal, Arc::clone(asked)).map_err(refused)?;
        }
        if reloads || !has(SIGHUP, "SigIgn:") {
            signals.add_signal(SIGHUP).map_err(refused)?;
        }
        // For this thread and those that it starts: one that takes them is enough for the process.
        unblock([Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGHUP]);
        let (subject, started) = mpsc::channel();
        let watcher = Watcher { subject, signals: signals.handle() };
        thread::Builder::new()
            .name("tidemill-signal".to_owned())
            .spawn(move || {
                // Without a server there is nobody to tell.
                if let Ok(subject) = started.recv() {
                    watch(signals, &subject);
                }
            })
            .map_err(|error| format!("cannot start the signal thread: {error}"))?;
        Ok(watcher)
    }

    /// Passes on what has come and what comes.
    pub(super) fn begin(&self, subject: Subject) {
        // The thread waits for it, and ends after `end` only.
        drop(self.subject.send(subject));
    }

    /// The server has ended: signals mean nothing any more.
    pub(super) fn end(&self) {
        self.signals.close();
    }
}

/// Whether SIGTERM or SIGINT has been sent to this process, even if no thread has run since.
pub(super) fn stop_was_asked_for() -> bool {
    let asked = STOP_ASKED.get().is_some_and(|asked| asked.load(SeqCst));
    asked || [SIGTERM, SIGINT].iter().any(|signal| has(*signal, "ShdPnd:"))
}

/// Whether a signal is in this mask of the process, as far as the system tells.
fn has(signal: i32, mask: &str) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(mask));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

fn watch(mut signals: Signals, Subject { running, drain_delay, reloader, upgrader, predecessor }: &Subject) {
    let server = &running.server;
    let mut stops = false;
    for signal in signals.forever() {
        let name = match signal {
            SIGHUP => match reloader {
                Some(reloader) => {
                    reloader.ask();
                    continue;
                }
                // The terminal and the shell both tell that it is gone: that is no second request.
                None if stops => continue,
                None => "SIGHUP",
            },
            SIGINT => "SIGINT",
            SIGTERM => "SIGTERM",
            SIGUSR1 => {
                let stats = statistics::log_line(running);
                tracing::info!(target: ALWAYS, %stats, "statistics");
                continue;
            }
            SIGUSR2 => {
                upgrader.begin(server);
                continue;
            }
            _ => continue,
        };
        upgrader.cancel();
        let drain_delay = drain_delay.get();
        let delays = signal == SIGTERM && !drain_delay.is_zero() && server.state() == ServerState::Serving;
        if delays {
            server.stop_after(drain_delay);
            tracing::info!(signal = name, delay = ?drain_delay, "not ready, but serving until the stop begins; once more begins it");
        } else if !stops {
            stops = true;
            tracing::info!(signal = name, "stopping; once more stops at once");
            if !predecessor.as_ref().is_some_and(Predecessor::stop_later) {
                server.stop();
            }
        } else {
            tracing::warn!(signal = name, "stopping at once");
            if let Some(predecessor) = predecessor {
                predecessor.forget();
            }
            server.stop_now();
        }
    }
}

//! What a signal does.
//!
//! A thread waits for signals from before the server is there: what comes meanwhile waits for it.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals};
use tidemill::ServerState;

use super::log::ALWAYS;
use super::statistics::{self, Running};
use crate::cli::unblock;

/// Watches for signals.
pub(super) struct Watcher {
    server: mpsc::Sender<(Running, Duration)>,
    signals: Handle,
}

impl Watcher {
    /// From now on no signal that means something to a server ends the process.
    ///
    /// # Errors
    /// One line that says what the system refused.
    pub(super) fn start() -> Result<Watcher, String> {
        // SIGXFSZ would end the process where a file of the log has reached the limit of its size; the write fails all
        // the same.
        let signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGXFSZ])
            .map_err(|error| format!("cannot handle signals: {error}"))?;
        // For this thread and those that it starts: one that takes them is enough for the process.
        unblock([Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1]);
        let (server, started) = mpsc::channel();
        let watcher = Watcher { server, signals: signals.handle() };
        thread::Builder::new()
            .name("tidemill-signal".to_owned())
            .spawn(move || {
                // Without a server there is nobody to tell.
                if let Ok((server, drain_delay)) = started.recv() {
                    watch(signals, &server, drain_delay);
                }
            })
            .map_err(|error| format!("cannot start the signal thread: {error}"))?;
        Ok(watcher)
    }

    /// Passes on what has come and what comes. `drain_delay`: between SIGTERM and the stop.
    pub(super) fn begin(&self, server: Running, drain_delay: Duration) {
        // The thread waits for it, and ends after `end` only.
        drop(self.server.send((server, drain_delay)));
    }

    /// The server has ended: signals mean nothing any more.
    pub(super) fn end(&self) {
        self.signals.close();
    }
}

fn watch(mut signals: Signals, running: &Running, drain_delay: Duration) {
    let server = &running.server;
    let mut stops = false;
    for signal in signals.forever() {
        let name = match signal {
            SIGINT => "SIGINT",
            SIGTERM => "SIGTERM",
            SIGUSR1 => {
                let stats = statistics::log_line(running);
                tracing::info!(target: ALWAYS, %stats, "statistics");
                continue;
            }
            _ => continue,
        };
        let delays = signal == SIGTERM && !drain_delay.is_zero() && server.state() == ServerState::Serving;
        if delays {
            tracing::info!(signal = name, delay = ?drain_delay, "not ready, but serving until the stop begins; once more begins it");
            server.stop_after(drain_delay);
        } else if !stops {
            stops = true;
            tracing::info!(signal = name, "stopping; once more stops at once");
            server.stop();
        } else {
            tracing::warn!(signal = name, "stopping at once");
            server.stop_now();
        }
    }
}

//! What a signal does.
//!
//! A thread waits for signals from before the server is there: what comes meanwhile waits for it.

use std::sync::mpsc;
use std::thread;

use nix::sys::signal::Signal;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::{Handle, Signals};
use tidemill::ServerHandle;

use super::log::ALWAYS;
use super::statistics;
use crate::cli::unblock;

/// Watches for signals.
pub(super) struct Watcher {
    server: mpsc::Sender<ServerHandle>,
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
                if let Ok(server) = started.recv() {
                    watch(signals, &server);
                }
            })
            .map_err(|error| format!("cannot start the signal thread: {error}"))?;
        Ok(watcher)
    }

    /// Passes on what has come and what comes.
    pub(super) fn begin(&self, server: ServerHandle) {
        // The thread waits for it, and ends after `end` only.
        drop(self.server.send(server));
    }

    /// The server has ended: signals mean nothing any more.
    pub(super) fn end(&self) {
        self.signals.close();
    }
}

fn watch(mut signals: Signals, server: &ServerHandle) {
    let mut stops = 0;
    for signal in signals.forever() {
        let name = match signal {
            SIGINT => "SIGINT",
            SIGTERM => "SIGTERM",
            SIGUSR1 => {
                let stats = statistics::log_line(server);
                tracing::info!(target: ALWAYS, %stats, "statistics");
                continue;
            }
            _ => continue,
        };
        stops += 1;
        if stops == 1 {
            tracing::info!(signal = name, "stopping; once more stops at once");
            server.stop();
        } else {
            tracing::warn!(signal = name, "stopping at once");
            server.stop_now();
        }
    }
}

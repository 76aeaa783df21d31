//! SIGHUP: the file of `--config` is read once more, and the server obeys, or, where anything in it is wrong, nothing changes.
//!
//! On a thread of its own: a file that cannot be read for a while must not hold up a signal that stops. Flags and environment
//! still win, and a key that is gone has its default again, as all layers are read anew.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use tidemill::ServerHandle;

use super::exec::Fixed;
use super::layers::{Layers, Options, Value};
use super::log::Lines;
use super::served::Served;
use super::signals::DrainDelay;
use super::statistics::Reports;
use super::systemd::Notifier;
use super::upgrade::Upgrader;
use super::{Descriptors, ServeArgs, arguments, config_of, own_descriptors};

/// The options that can be changed while the server runs, besides what `ServerHandle::reconfigure` says that it kept. The others
/// need a restart, one that is added is among these until somebody applies it.
const LIVE: [&str; 29] = [
    "advertise-ip",
    "advertise-port",
    // Changes the defaults of others.
    "assignment",
    "drain-delay",
    "drain-timeout",
    "handler-delay",
    "idle-timeout",
    "inline",
    "keep-alive",
    "kill-from",
    "line-timeout",
    "log-format",
    "log-level",
    "max-connections",
    "max-connections-per-peer",
    "max-line",
    "max-memory",
    "max-pending",
    "max-threads",
    "min-threads",
    "queue-timeout",
    "request-timeout",
    "send-buffer",
    "slow-log",
    "stats-every",
    "student-id",
    "tolerance",
    "upgrade-timeout",
    "write-timeout",
];

/// What a reload needs to know.
pub(super) struct Reload {
    pub(super) layers: Layers,
    /// What is in force: of options that need a restart, what they were at the start.
    pub(super) values: Vec<Value>,
    pub(super) live: Live,
    pub(super) descriptors: Descriptors,
    pub(super) notifier: Notifier,
    pub(super) programs: Fixed,
}

/// What obeys besides the server. None of it can refuse, so it comes behind what may.
pub(super) struct Live {
    pub(super) lines: Lines,
    pub(super) drain_delay: DrainDelay,
    pub(super) upgrader: Upgrader,
    pub(super) reports: Option<Reports>,
    pub(super) served: Option<Served>,
}

impl Live {
    fn set(&self, args: &ServeArgs) {
        self.lines.set(args);
        self.drain_delay.set(args.drain_delay);
        self.upgrader.set_timeout(args.upgrade_timeout);
        if let Some(reports) = &self.reports {
            reports.set(args.stats_every.0);
        }
        if let Some(served) = &self.served {
            served.set(args);
        }
    }
}

/// The way to the thread that reloads. It ends once the last of them is dropped.
#[derive(Clone)]
pub(super) struct Reloader(Sender<()>);

impl Reloader {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the system said when it refused it.
    pub(super) fn start(mut reload: Reload, server: ServerHandle) -> io::Result<Reloader> {
        let (asks, asked) = mpsc::channel();
        let each = move || {
            while wait(&asked) {
                reload.run(&server);
            }
        };
        thread::Builder::new().name("tidemill-reload".to_owned()).spawn(each)?;
        Ok(Reloader(asks))
    }

    /// Asks for a reload. Never blocks.
    pub(super) fn ask(&self) {
        // The thread is there while this is.
        self.0.send(()).unwrap_or_default();
    }
}

/// Waits until somebody asks; who asked meanwhile is served by the same reading of the file. `false`: nobody will.
fn wait(asked: &Receiver<()>) -> bool {
    let any = asked.recv().is_ok();
    while asked.try_recv().is_ok() {}
    any
}

impl Reload {
    fn run(&mut self, server: &ServerHandle) {
        self.notifier.reloading();
        match self.read(server) {
            Ok(options) => self.tell(options),
            Err(message) => {
                tracing::error!(error = message, "the configuration was not reloaded: nothing has changed");
            }
        }
        self.notifier.reloaded();
    }

    /// Reads all layers, and has the server obey. Returns what it obeys now, but for what needs a restart.
    fn read(&mut self, server: &ServerHandle) -> Result<(Options, Vec<String>), String> {
        let mut options = self.layers.read()?;
        let of_programs = self.programs.keep(&mut options);
        let mut config = config_of(&options.args);
        let wanted = config.max_connections;
        let mut descriptors = self.descriptors;
        descriptors.own = own_descriptors(&options.args, &config);
        config.max_connections = descriptors.connections(wanted);
        let possible = config.max_connections;
        let kept = server.reconfigure(config).map_err(|error| options.in_options(&error))?;
        self.descriptors = descriptors;
        if possible < wanted {
            tracing::warn!(wanted, possible, "the limit of open files lowers --max-connections");
        }
        self.live.set(&options.args);
        let kept = kept.into_iter().map(arguments::option_of);
        Ok((options, kept.chain(of_programs.into_iter().map(str::to_owned)).collect()))
    }

    /// Tells what has changed, and what would.
    fn tell(&mut self, (options, kept): (Options, Vec<String>)) {
        let (mut changed, mut needs_restart) = (Vec::new(), Vec::new());
        for (old, new) in self.values.iter_mut().zip(options.values) {
            if old.text == new.text {
                continue;
            }
            let Value { key, text, .. } = &new;
            if LIVE.contains(&key.as_str()) && !kept.contains(key) {
                changed.push(format!("{key}: {} -> {text}", old.text));
                *old = new;
            } else {
                needs_restart.push(format!("{key}: {} -> {text}", old.text));
            }
        }
        if changed.is_empty() {
            tracing::info!("configuration reloaded; nothing has changed");
        } else {
            tracing::info!(changed = %changed.join(", "), "configuration reloaded");
        }
        if !needs_restart.is_empty() {
            tracing::warn!(
                kept = %needs_restart.join(", "),
                "a restart is needed for a part of the configuration"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_changed_is_an_option() {
        let options = Layers::new(vec!["tidemill".into(), "serve".into()]).read().unwrap();
        for key in LIVE {
            assert!(options.values.iter().any(|value| value.key == key), "there is no option {key}");
        }
    }
}

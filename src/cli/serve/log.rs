//! The log: which lines it has, their form, and what becomes of a panic.

use std::io;
use std::panic;
use std::thread;

use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::arguments::{LogFormat, LogLevel, ServeArgs};
use crate::cli::output::Output;

/// Target of log lines that come whatever level is wanted, unless there is to be no log: what a signal asks for, and
/// what was dropped.
pub(super) const ALWAYS: &str = "always";

/// The level of the log, which can be changed.
#[derive(Clone)]
pub(super) struct Level(reload::Handle<Targets, Registry>);

impl Level {
    /// From now on only what is as severe is logged.
    pub(super) fn set(&self, level: LogLevel) {
        if let Err(error) = self.0.reload(wanted(level)) {
            tracing::error!(%error, "the level of the log stays as it is");
        }
    }
}

/// Which lines are logged.
fn wanted(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let always = if level == LevelFilter::OFF { level } else { LevelFilter::INFO.max(level) };
    Targets::new().with_default(level).with_target(ALWAYS, always)
}

/// Starts the log, on standard error. From then on panics go there too: written by the thread that panics, they would
/// hold it up for as long as nobody reads.
///
/// # Errors
/// What the system said when it refused the thread that writes.
pub(super) fn start(args: &ServeArgs) -> io::Result<(Output, Level)> {
    let output = Output::start("tidemill-log", io::stderr(), tell_dropped)?;
    let (wanted, level) = reload::Layer::new(wanted(args.log_level));
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_ansi(false).with_writer({
        let output = output.clone();
        move || output.clone()
    });
    let registry = tracing_subscriber::registry();
    match args.log_format {
        LogFormat::Text => registry.with(lines.with_filter(wanted)).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_filter(wanted)).init(),
    }
    panic::set_hook(Box::new(log_panic));
    Ok((output, Level(level)))
}

/// Says that lines are missing: `dropped` since the start.
pub(super) fn tell_dropped(dropped: u64) {
    tracing::warn!(target: ALWAYS, lost = dropped, "log lines were dropped because their reader stood still");
}

fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    // In quotes, so that it stays one line whatever it is.
    tracing::error!(thread = thread::current().name(), place, panic = ?text, "a thread panicked");
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_panic_is_one_line_of_the_log() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::start("output", writer, |_| ()).unwrap();
        let lines = output.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone()).finish();
        let hook = panic::take_hook();
        panic::set_hook(Box::new(log_panic));
        let ended = tracing::subscriber::with_default(lines, || {
            panic::catch_unwind(|| panic!("{} lines\nand a quote: \"", 2)).is_err()
        });
        panic::set_hook(hook);
        assert!(ended);
        output.finish(Duration::from_secs(20));
        let mut log = String::new();
        reader.read_to_string(&mut log).unwrap();
        assert_eq!(log.lines().count(), 1, "{log}");
        for part in ["ERROR", "a thread panicked", file!(), "2 lines\\nand a quote: \\\""] {
            assert!(log.contains(part), "{part} in {log}");
        }
    }
}

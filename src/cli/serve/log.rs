//! The log: which lines it has, their form, and what becomes of a panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{fmt, io, panic, thread};

use tracing::{Event, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer, format};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::arguments::{LogFormat, LogLevel, ServeArgs};
use crate::cli::output::Output;

/// Target of log lines that come whatever level is wanted, unless there is to be no log: what a signal asks for, and
/// what was dropped.
pub(super) const ALWAYS: &str = "always";

/// Which lines the log has and in what form, which can be changed.
#[derive(Clone)]
pub(super) struct Lines {
    wanted: reload::Handle<Targets, Registry>,
    is_json: Arc<AtomicBool>,
}

impl Lines {
    /// From now on what is as severe is logged, in the form that is wanted.
    pub(super) fn set(&self, args: &ServeArgs) {
        self.is_json.store(is_json(args), Relaxed);
        if let Err(error) = self.wanted.reload(wanted(args.log_level)) {
            tracing::error!(%error, "the level of the log stays as it is");
        }
    }
}

fn is_json(args: &ServeArgs) -> bool {
    matches!(args.log_format, LogFormat::Json)
}

/// The form of a line, as is wanted when it is written.
struct Form {
    text: Format<Full>,
    json: Format<Json>,
    is_json: Arc<AtomicBool>,
}

impl<S, N> FormatEvent<S, N> for Form
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self.is_json.load(Relaxed) {
            true => self.json.format_event(context, writer, event),
            false => self.text.format_event(context, writer, event),
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
pub(super) fn start(args: &ServeArgs) -> io::Result<(Output, Lines)> {
    let output = Output::start("tidemill-log", io::stderr(), tell_dropped)?;
    let (wanted, level) = reload::Layer::new(wanted(args.log_level));
    let is_json = Arc::new(AtomicBool::new(is_json(args)));
    let form = Form {
        text: format().with_target(false),
        json: format().with_target(false).json().flatten_event(true),
        is_json: Arc::clone(&is_json),
    };
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).event_format(form).with_writer({
        let output = output.clone();
        move || output.clone()
    });
    tracing_subscriber::registry().with(lines.with_filter(wanted)).init();
    panic::set_hook(Box::new(log_panic));
    Ok((output, Lines { wanted: level, is_json }))
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

//! The log: which lines it has, and their form.

use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::arguments::{LogFormat, LogLevel, ServeArgs};

/// Target of the log lines that SIGUSR1 asks for.
pub(super) const STATISTICS: &str = "statistics";

pub(super) fn start_log(args: &ServeArgs, log: NonBlocking) {
    let level = match args.log_level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // They are asked for by a signal, whatever else is wanted of the log.
    let statistics = if level == LevelFilter::OFF { level } else { LevelFilter::INFO.max(level) };
    let wanted = Targets::new().with_default(level).with_target(STATISTICS, statistics);
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_writer(log).with_ansi(false);
    let registry = tracing_subscriber::registry();
    match args.log_format {
        LogFormat::Text => registry.with(lines.with_filter(wanted)).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_filter(wanted)).init(),
    }
}

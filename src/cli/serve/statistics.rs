//! The statistics as lines of JSON: periodically on standard output, and in the log.
//!
//! Each line is short enough for a pipe to take it as a whole: decisions that find no room come with a later one.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidemill::exec::{ProgramsHandle, ProgramsStats};
use tidemill::{Decision, ServerHandle, Stats};

use crate::cli::output::{ATOMIC_BYTES, Output};

/// The longest statistics in a line of the log, which adds a time and a few words, and in its JSON form a byte for each
/// quote.
const MAX_LOG_BYTES: usize = ATOMIC_BYTES * 3 / 4;
/// At most one warning within this time that lines are dropped, for a reader that reads, but too slowly.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// A server that runs, with the programs that serve its requests.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) server: ServerHandle,
    pub(super) programs: Option<ProgramsHandle>,
}

impl Running {
    fn programs(&self) -> Option<ProgramsStats> {
        self.programs.as_ref().map(ProgramsHandle::stats)
    }
}

/// Prints the statistics periodically until it is dropped, and then once more.
pub(super) struct Reporter {
    /// `None` once it is dropped.
    server: Option<mpsc::Sender<Running>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Reporter {
    /// Starts the thread, which waits for [`begin`](Reporter::begin).
    ///
    /// # Errors
    /// What the system said when it refused the thread.
    pub(super) fn start(every: Duration, output: Output) -> io::Result<Reporter> {
        let (server, started) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("tidemill-stats".to_owned())
            .spawn(move || print_every(every, &started, &output))?;
        Ok(Reporter { server: Some(server), thread: Some(thread) })
    }

    /// Begins to print.
    pub(super) fn begin(&self, server: Running) {
        if let Some(sender) = &self.server {
            // The thread waits for it.
            drop(sender.send(server));
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        drop(self.server.take());
        if let Some(thread) = self.thread.take() {
            // It only formats, and leaves its lines to an output that never blocks. A panic there is in the log.
            drop(thread.join());
        }
    }
}

/// The thread of a [`Reporter`], until the other end of `started` is dropped.
fn print_every(every: Duration, started: &Receiver<Running>, output: &Output) {
    let Ok(server) = started.recv() else { return };
    let mut printer = Printer { server, output, shown: Duration::ZERO, warned: None };
    while matches!(started.recv_timeout(every), Err(RecvTimeoutError::Timeout)) {
        printer.print();
    }
    output.begin_last_lines();
    while printer.print() {}
}

struct Printer<'a> {
    server: Running,
    output: &'a Output,
    /// When the last decision was taken that is in a line.
    shown: Duration,
    /// When it was last said that lines find no room.
    warned: Option<Instant>,
}

impl Printer<'_> {
    /// Prints one line with the decisions since the last, as far as they fit. Whether some are left for another.
    fn print(&mut self) -> bool {
        let mut decisions = self.server.server.decisions();
        decisions.retain(|decision| decision.at > self.shown);
        let (stats, all) = (self.server.server.stats(), decisions.len());
        let programs = self.server.programs();
        let line = loop {
            let line = json(&stats, programs, Some(self.output.dropped()), &decisions) + "\n";
            if line.len() <= ATOMIC_BYTES || decisions.len() <= 1 {
                break line;
            }
            decisions.truncate(decisions.len() / 2);
        };
        let has_room = self.output.line(line.into_bytes());
        if has_room {
            // Those of a line that finds no room come with the next one.
            self.shown = decisions.last().map_or(self.shown, |last| last.at);
        } else if self.warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
            self.warned = Some(Instant::now());
            tracing::warn!("statistics are dropped: the reader of standard output stands still");
        }
        has_room && decisions.len() < all
    }
}

/// The statistics for the log, with the last decisions as far as they fit.
pub(super) fn log_line(running: &Running) -> String {
    let (stats, decisions) = (running.server.stats(), running.server.decisions());
    let programs = running.programs();
    let mut last = &decisions[..];
    loop {
        let line = json(&stats, programs, None, last);
        if line.len() <= MAX_LOG_BYTES || last.is_empty() {
            return line;
        }
        last = &last[last.len().div_ceil(2)..];
    }
}

/// The statistics, with the wall clock and decisions besides, as JSON on one line.
fn json(
    stats: &Stats,
    programs: Option<ProgramsStats>,
    lines_dropped: Option<u64>,
    decisions: &[Decision],
) -> String {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        unix_seconds: f64,
        #[serde(flatten)]
        stats: &'a Stats,
        #[serde(skip_serializing_if = "Option::is_none")]
        programs: Option<ProgramsStats>,
        /// Lines before this one that were dropped because their reader stood still.
        #[serde(skip_serializing_if = "Option::is_none")]
        lines_dropped_total: Option<u64>,
        decisions: &'a [Decision],
    }
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    serde_json::to_string(&Line {
        unix_seconds,
        stats,
        programs,
        lines_dropped_total: lines_dropped,
        decisions,
    })
    .unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

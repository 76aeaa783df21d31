//! The statistics as lines of JSON: periodically on standard output, and in the log.
//!
//! Each line is short enough for a pipe to take it as a whole: decisions that find no room come with a later one.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidemill::exec::{ProgramsHandle, ProgramsStats};
use tidemill::{Decision, MAX_DURATION, ServerHandle, Stats};

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

/// Prints the statistics periodically, if it is to, until it is dropped, and then once more.
pub(super) struct Reporter {
    reports: Reports,
    thread: Option<thread::JoinHandle<()>>,
}

/// How often the statistics are printed, which can be changed.
#[derive(Clone)]
pub(super) struct Reports(mpsc::Sender<Said>);

/// What is said to the thread that prints.
enum Said {
    Begin(Running),
    Every(Option<Duration>),
    End,
}

impl Reports {
    pub(super) fn set(&self, every: Option<Duration>) {
        self.say(Said::Every(every));
    }

    fn say(&self, said: Said) {
        // The thread may have ended before whoever still changes it.
        drop(self.0.send(said));
    }
}

impl Reporter {
    /// Starts the thread, which waits for [`begin`](Reporter::begin).
    ///
    /// # Errors
    /// What the system said when it refused the thread.
    pub(super) fn start(every: Option<Duration>, output: Output) -> io::Result<Reporter> {
        let (reports, said) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("tidemill-stats".to_owned())
            .spawn(move || print_every(every, &said, &output))?;
        Ok(Reporter { reports: Reports(reports), thread: Some(thread) })
    }

    pub(super) fn setter(&self) -> Reports {
        self.reports.clone()
    }

    /// Begins to print.
    pub(super) fn begin(&self, server: Running) {
        self.reports.say(Said::Begin(server));
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.reports.say(Said::End);
        if let Some(thread) = self.thread.take() {
            // It only formats, and leaves its lines to an output that never blocks. A panic there is in the log.
            drop(thread.join());
        }
    }
}

/// The thread of a [`Reporter`], until it is told to end.
fn print_every(mut every: Option<Duration>, said: &Receiver<Said>, output: &Output) {
    let (mut printer, mut due): (Option<Printer<'_>>, Option<Instant>) = (None, None);
    let next = |every: Option<Duration>| every.map(|every| Instant::now() + every.min(MAX_DURATION));
    loop {
        let wait = due.map_or(MAX_DURATION, |due| due.saturating_duration_since(Instant::now()));
        match said.recv_timeout(wait) {
            Ok(Said::Begin(server)) => {
                printer = Some(Printer { server, output, shown: Duration::ZERO, warned: None });
                due = next(every);
            }
            // Also told where something else was changed.
            Ok(Said::Every(same)) if same == every => {}
            Ok(Said::Every(changed)) => {
                every = changed;
                due = next(every).filter(|_| printer.is_some());
            }
            Err(RecvTimeoutError::Timeout) => {
                printer.as_mut().filter(|_| due.is_some()).map(Printer::print);
                due = next(every);
            }
            Ok(Said::End) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let Some(mut printer) = printer.filter(|_| every.is_some()) else { return };
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

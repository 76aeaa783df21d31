//! `--stats-every`: the statistics as lines of JSON on standard output.

use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidemill::{Decision, ServerHandle};
use tracing_appender::non_blocking::WorkerGuard;

/// Prints the statistics periodically until what it returns is dropped.
pub(super) fn report_every(every: Duration, handle: ServerHandle) -> Option<Reporter> {
    let (alive, ended) = mpsc::channel::<()>();
    let (mut out, flush) = super::lossy(io::stdout());
    let thread = thread::Builder::new().name("tidemill-stats".to_owned()).spawn(move || {
        let mut shown = Duration::ZERO;
        let mut print = |handle: &ServerHandle| {
            let mut decisions = handle.decisions();
            decisions.retain(|decision| decision.at > shown);
            shown = decisions.last().map_or(shown, |last| last.at);
            // Whoever does not read loses lines, which is what a lossy writer is for.
            drop(writeln!(out, "{}", json(handle, &decisions)));
        };
        while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            print(&handle);
        }
        print(&handle);
    });
    match thread {
        Ok(thread) => Some(Reporter { alive: Some(alive), thread: Some(thread), _flush: flush }),
        Err(error) => {
            tracing::warn!(%error, "cannot start the statistics thread");
            None
        }
    }
}

/// Ends the statistics thread when dropped, after its last line.
pub(super) struct Reporter {
    alive: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    _flush: WorkerGuard,
}

impl Drop for Reporter {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            // It only formats and writes to a writer that does not block; a panic there is not the server's.
            drop(thread.join());
        }
    }
}

/// The statistics, with the wall clock and decisions besides, as one line of JSON.
pub(super) fn json(handle: &ServerHandle, decisions: &[Decision]) -> String {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        unix_seconds: f64,
        #[serde(flatten)]
        stats: &'a tidemill::Stats,
        decisions: &'a [Decision],
    }
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    serde_json::to_string(&Line { unix_seconds, stats: &handle.stats(), decisions })
        .unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

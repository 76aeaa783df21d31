//! How far a run is, and the bar that shows it; the bar is there only when standard error is a terminal.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Plan;
use super::connections::{ROW, Row};

/// Length of the bar.
const WHOLE: u64 = 1000;

/// How far a run is.
#[derive(Debug)]
pub(crate) struct Progress {
    requests: Option<u64>,
    duration: Option<Duration>,
    warm_up: Duration,
    right: u64,
    errors: u64,
    elapsed: Duration,
    /// The row that is being added up, its replies, and those of the row before.
    row: u64,
    row_right: u64,
    last_right: u64,
}

impl Progress {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            requests: plan.requests,
            duration: plan.duration,
            warm_up: plan.warm_up,
            right: 0,
            errors: 0,
            elapsed: Duration::ZERO,
            row: 0,
            row_right: 0,
            last_right: 0,
        }
    }

    pub(super) fn add(&mut self, row: &Row, elapsed: Duration) {
        self.right += row.point.right;
        self.errors += row.point.errors;
        self.elapsed = elapsed.saturating_sub(self.warm_up);
        if row.index > self.row {
            self.row = row.index;
            self.last_right = std::mem::take(&mut self.row_right);
        }
        self.row_right += row.point.right;
    }

    /// From 0 to 1.
    fn share(&self) -> f64 {
        let by_count = self.requests.map_or(0.0, |all| (self.right + self.errors) as f64 / all.max(1) as f64);
        let by_time =
            self.duration.map_or(0.0, |all| self.elapsed.as_secs_f64() / all.as_secs_f64().max(1e-9));
        by_count.max(by_time).min(1.0)
    }

    fn left(&self) -> Option<Duration> {
        let share = self.share();
        (share > 0.02).then(|| Duration::from_secs_f64(self.elapsed.as_secs_f64() * (1.0 - share) / share))
    }

    /// Requests answered a second, of late.
    fn rate(&self) -> f64 {
        self.last_right as f64 * 1e9 / ROW as f64
    }
}

/// Shows the progress on a terminal.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    pub(crate) fn new() -> Self {
        // Drawn on standard error, and hidden by the library unless that is a terminal.
        let bar = ProgressBar::new(WHOLE);
        let style = ProgressStyle::with_template("{bar:32.cyan/blue.dim} {percent:>3}%  {msg}")
            .expect("the template is a constant that parses");
        bar.set_style(style.progress_chars("━━─"));
        Self { bar }
    }

    pub(crate) fn show(&self, progress: &Progress) {
        let errors = match progress.errors {
            0 => "no errors".to_owned(),
            1 => "1 ERROR".to_owned(),
            many => format!("{many} ERRORS"),
        };
        let left = progress.left().map_or_else(String::new, |left| format!(" · {} s left", left.as_secs()));
        self.bar.set_position(super::whole(progress.share() * WHOLE as f64));
        self.bar.set_message(format!("{}/s · {errors}{left}", crate::report::number(progress.rate())));
    }

    /// Writes a line to standard error, where there is no bar too.
    pub(crate) fn say(&self, line: &str) {
        // Whoever closed it does not want to read it.
        self.bar.suspend(|| drop(writeln!(io::stderr(), "{line}")));
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

//! How far a run is.

use std::time::Duration;

use super::Plan;
use super::worker::{ROW_NANOS, Row};

/// How far a run is.
#[derive(Debug)]
pub(crate) struct Progress {
    requests: Option<u64>,
    duration: Option<Duration>,
    warm_up: Duration,
    right: u64,
    pub(crate) errors: u64,
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
    pub(crate) fn share(&self) -> f64 {
        let by_count = self.requests.map_or(0.0, |all| (self.right + self.errors) as f64 / all.max(1) as f64);
        let by_time =
            self.duration.map_or(0.0, |all| self.elapsed.as_secs_f64() / all.as_secs_f64().max(1e-9));
        by_count.max(by_time).min(1.0)
    }

    /// How long it will take from here, if that can be told.
    pub(crate) fn left(&self) -> Option<Duration> {
        let share = self.share();
        (share > 0.02).then(|| Duration::from_secs_f64(self.elapsed.as_secs_f64() * (1.0 - share) / share))
    }

    /// Requests answered a second, of late.
    pub(crate) fn rate(&self) -> f64 {
        self.last_right as f64 * 1e9 / ROW_NANOS as f64
    }
}

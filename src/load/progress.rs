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

#[cfg(test)]
mod tests {
    use super::super::series::Point;
    use super::*;

    fn row(index: u64, right: u64, errors: u64) -> Row {
        Row { index, point: Point { right, errors, ..Point::default() } }
    }

    fn progress(requests: Option<u64>, duration: Option<Duration>) -> Progress {
        let (right, errors, elapsed, warm_up) = (0, 0, Duration::ZERO, Duration::from_secs(1));
        Progress { requests, duration, warm_up, right, errors, elapsed, row: 0, row_right: 0, last_right: 0 }
    }

    #[test]
    fn share_is_that_of_the_requests_or_of_the_time_whichever_is_more() {
        let seconds = Duration::from_secs;
        for (requests, duration, share, left) in [
            (Some(200), None, 0.25, Some(seconds(6))),
            (None, Some(seconds(8)), 0.25, Some(seconds(6))),
            (Some(100), Some(seconds(8)), 0.5, Some(seconds(2))),
            (Some(100), Some(seconds(2)), 1.0, Some(seconds(0))),
            (Some(10), None, 1.0, Some(seconds(0))),
            (None, Some(seconds(100)), 0.02, None),
            (None, None, 0.0, None),
        ] {
            let mut progress = progress(requests, duration);
            progress.add(&row(0, 40, 10), seconds(3));
            assert_eq!((progress.share(), progress.left()), (share, left), "{requests:?} {duration:?}");
        }
    }

    #[test]
    fn rate_is_that_of_the_last_whole_row_of_all_threads() {
        let mut progress = progress(None, None);
        for (index, right, rate) in [(0, 3, 0.0), (0, 4, 0.0), (1, 5, 70.0), (1, 1, 70.0), (4, 9, 60.0)] {
            progress.add(&row(index, right, 1), Duration::from_secs(1));
            assert_eq!(progress.rate(), rate, "{index}");
        }
        assert_eq!((progress.right, progress.errors), (22, 5));
    }
}

//! What comes of several looks: rates between two, percentiles of the last seconds, and lines to draw. No clock: a look brings the
//! server's own time.

use std::collections::VecDeque;

use super::stats::{Buckets, Stats};

/// Looks that are remembered.
const MAX_LOOKS: usize = 300;
/// Percentiles are those of so many seconds.
pub(super) const WINDOW_SECONDS: f64 = 10.0;

/// The looks at one server, the oldest first. With a restart it begins anew.
#[derive(Debug, Default)]
pub(super) struct History {
    looks: VecDeque<Stats>,
}

/// Times of the last seconds, in seconds; `None`: nothing was timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Recent {
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
}

impl History {
    pub(super) fn add(&mut self, stats: Stats) {
        let restarted = self
            .last()
            .is_some_and(|last| last.pid != stats.pid || last.uptime_seconds > stats.uptime_seconds);
        if restarted {
            self.looks.clear();
        }
        if self.looks.len() >= MAX_LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back(stats);
    }

    pub(super) fn last(&self) -> Option<&Stats> {
        self.looks.back()
    }

    /// Points of a line: seconds, at the last look 0 and before it less, and what `value` is then.
    pub(super) fn line(&self, value: impl Fn(&Stats) -> f64) -> Vec<(f64, f64)> {
        let now = self.last().map_or(0.0, |last| last.uptime_seconds);
        self.looks.iter().map(|look| (look.uptime_seconds - now, value(look))).collect()
    }

    /// How fast `count` grew between the last two looks, a second; since the start if there is one.
    pub(super) fn rate(&self, count: impl Fn(&Stats) -> f64) -> f64 {
        let Some(last) = self.last() else { return 0.0 };
        let before = self.looks.len().checked_sub(2).and_then(|at| self.looks.get(at));
        let (grown, took) = match before {
            Some(before) => (count(last) - count(before), last.uptime_seconds - before.uptime_seconds),
            None => (count(last), last.uptime_seconds),
        };
        grown / took.max(1e-3)
    }

    /// The times of the last seconds; of all where there is no earlier look.
    pub(super) fn recent(&self, counts: impl Fn(&Buckets) -> &[u64]) -> Recent {
        let Some(last) = self.last() else { return Recent { p50: None, p99: None } };
        let since = last.uptime_seconds - WINDOW_SECONDS;
        let old = self.looks.iter().take(self.looks.len() - 1).find(|look| look.uptime_seconds >= since);
        let before = old.map(|old| counts(&old.buckets));
        let recent: Vec<u64> = counts(&last.buckets)
            .iter()
            .enumerate()
            .map(|(at, count)| {
                count.saturating_sub(before.and_then(|before| before.get(at)).copied().unwrap_or(0))
            })
            .collect();
        Recent {
            p50: percentile(&last.buckets.bounds, &recent, 0.5),
            p99: percentile(&last.buckets.bounds, &recent, 0.99),
        }
    }
}

/// Of times of which `up_to` are no longer than each of the `bounds`, and the last all. Within a bucket they are taken to lie evenly
/// on a scale of powers.
fn percentile(bounds: &[f64], up_to: &[u64], share: f64) -> Option<f64> {
    let all = *up_to.last().filter(|all| **all > 0)? as f64;
    let rank = share * all;
    let bucket = up_to.iter().position(|count| *count as f64 >= rank)?;
    let Some(bound) = bounds.get(bucket) else { return bounds.last().copied() };
    let (low, under) = match bucket.checked_sub(1) {
        Some(before) => (bounds[before], up_to[before] as f64),
        None => (bound / 2.0, 0.0),
    };
    Some(low * (bound / low).powf((rank - under) / (up_to[bucket] as f64 - under)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_lies_in_its_bucket() {
        let bounds = [1.0, 10.0, 100.0];
        assert_eq!(percentile(&bounds, &[0, 0, 0, 0], 0.5), None);
        assert_eq!(percentile(&bounds, &[0, 10, 10, 10], 1.0), Some(10.0));
        let half = percentile(&bounds, &[0, 10, 10, 10], 0.5).unwrap();
        assert!((half - 10_f64.sqrt()).abs() < 1e-9, "{half}");
        assert_eq!(percentile(&bounds, &[0, 0, 0, 5], 0.5), Some(100.0), "above all bounds");
        assert!(percentile(&bounds, &[4, 4, 4, 4], 0.5).is_some_and(|first| (0.5..=1.0).contains(&first)));
    }
}

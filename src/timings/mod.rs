//! How long requests wait and take: distributions that workers write and anyone reads.
//!
//! A worker counts the requests of a job as a few [`Lap`]s, into the shard of its number, so that workers rarely meet at a lock, and the
//! event loop those of a turn. Constant memory. Counts and sums are exact (the tests below), values at most 1 % off, but for short
//! requests that are counted together: each takes as long as they do on average.

mod laps;

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock::{Nanos, nanos};
use crate::sync::lock_std;
use laps::SHORT_REQUEST;
pub(crate) use laps::{Lap, Laps, MAX_LAP, MAX_LAP_BYTES};

/// Longest time that the histograms tell apart, in nanoseconds: an hour. Longer ones count as this long.
const MAX_NANOS: u64 = 3600 * 1_000_000_000;
/// Significant digits of the histograms: values are at most 1 % off.
const DIGITS: u8 = 2;
/// Most parts of the timings, so that workers rarely meet at one lock.
const MAX_SHARDS: usize = 8;

/// Distribution of the waiting and the service times, one value a request.
#[derive(Debug)]
pub(crate) struct Timings {
    /// A worker writes to the shard of its number; a reader adds them up. Constant memory for any number of workers.
    shards: Box<[Mutex<Shard>]>,
}

/// Bounds of the buckets that monitors get, in seconds: fixed, so that those of all servers and versions can be added up.
#[cfg(feature = "admin")]
const BUCKET_BOUNDS: [f64; 25] = [
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0,
];

/// A distribution of times in buckets.
#[cfg(feature = "admin")]
#[derive(Debug)]
pub(crate) struct Buckets {
    /// A bound in seconds, and how many times are no longer.
    pub(crate) up_to: Vec<(f64, u64)>,
    pub(crate) count: u64,
    pub(crate) sum_seconds: f64,
}

#[derive(Debug)]
struct Shard {
    wait: Times,
    service: Times,
}

#[derive(Clone, Debug)]
struct Times {
    histogram: Histogram<u64>,
    sum_nanos: u128,
}

impl Times {
    fn new() -> Times {
        let histogram = Histogram::new_with_max(MAX_NANOS, DIGITS)
            .expect("an hour and two digits are within the crate's bounds");
        Times { histogram, sum_nanos: 0 }
    }

    /// Adds `count` times of `nanos` each, about; all together they are `sum`.
    fn record(&mut self, nanos: Nanos, count: usize, sum: Nanos) {
        self.histogram.saturating_record_n(nanos, count as u64);
        self.sum_nanos += u128::from(sum);
    }

    fn add(&mut self, other: &Times) {
        self.histogram.add(&other.histogram).expect("both have the same bounds");
        self.sum_nanos += other.sum_nanos;
    }

    /// The same in buckets. A time counts in the first whose bound is above the least that it may have been: 1 % off at most.
    #[cfg(feature = "admin")]
    fn buckets(&self) -> Buckets {
        let mut counts = [0; BUCKET_BOUNDS.len()];
        for recorded in self.histogram.iter_recorded() {
            let least = self.histogram.lowest_equivalent(recorded.value_iterated_to()) as f64 / 1e9;
            if let Some(bucket) = BUCKET_BOUNDS.iter().position(|bound| least <= *bound) {
                counts[bucket] += recorded.count_at_value();
            }
        }
        let up_to = counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        Buckets {
            up_to: BUCKET_BOUNDS.into_iter().zip(up_to).collect(),
            count: self.histogram.len(),
            sum_seconds: self.sum_nanos as f64 / 1e9,
        }
    }

    fn summary(&self) -> Distribution {
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        let at = |quantile| seconds(self.histogram.value_at_quantile(quantile));
        Distribution {
            count: self.histogram.len(),
            sum: self.sum_nanos as f64 / 1e9,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: seconds(self.histogram.max()),
        }
    }
}

/// How long requests have waited, at some moment.
#[derive(Debug)]
pub(crate) struct WaitTimes(Histogram<u64>);

impl WaitTimes {
    /// How many have waited `at_least` that long since `before`, and the longest that one has, to 1 %.
    pub(crate) fn longer_since(mut self, before: &WaitTimes, at_least: Duration) -> (u64, Duration) {
        // Fails only where there was more before.
        if self.0.subtract(&before.0).is_err() {
            return (0, Duration::ZERO);
        }
        let count = self.0.count_between(nanos(at_least), MAX_NANOS);
        (count, Duration::from_nanos(self.0.max()))
    }
}

impl Timings {
    pub(crate) fn new() -> Timings {
        let shards = thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS);
        let shard = || Mutex::new(Shard { wait: Times::new(), service: Times::new() });
        Timings { shards: (0..shards).map(|_| shard()).collect() }
    }

    /// Records requests of worker `worker`.
    #[inline(always)]
    pub(crate) fn record(&self, worker: u64, laps: impl Iterator<Item = Lap>) {
        let shard = usize::try_from(worker % self.shards.len() as u64).unwrap_or(0);
        let mut shard = lock_std(&self.shards[shard]);
        let (mut short, mut short_took) = (0, 0);
        for Lap { wait, took, requests } in laps {
            shard.wait.record(wait, requests, wait.saturating_mul(requests as u64));
            // Timed together, they are short. Where they were not, one of them is the likely cause.
            if took <= SHORT_REQUEST * requests as u64 {
                (short, short_took) = (short + requests, short_took + took);
            } else {
                let others = SHORT_REQUEST * (requests as u64 - 1);
                let long = took.saturating_sub(others);
                if requests > 1 {
                    shard.service.record(SHORT_REQUEST, requests - 1, others);
                }
                shard.service.record(long, 1, long);
            }
        }
        if short > 0 {
            shard.service.record(short_took / short as u64, short, short_took);
        }
    }

    /// Waiting and service times of all workers so far, in fixed buckets.
    #[cfg(feature = "admin")]
    pub(crate) fn histograms(&self) -> (Buckets, Buckets) {
        let (wait, service) = self.sums();
        (wait.buckets(), service.buckets())
    }

    /// Waiting and service times of all workers so far.
    pub(crate) fn summaries(&self) -> (Distribution, Distribution) {
        let (wait, service) = self.sums();
        (wait.summary(), service.summary())
    }

    /// How long requests have waited so far.
    pub(crate) fn waits(&self) -> WaitTimes {
        WaitTimes(self.sums().0.histogram)
    }

    fn sums(&self) -> (Times, Times) {
        let (mut wait, mut service) = (Times::new(), Times::new());
        for shard in &self.shards {
            let shard = lock_std(shard);
            wait.add(&shard.wait);
            service.add(&shard.service);
        }
        (wait, service)
    }
}

/// A distribution of times in seconds; quantiles are at most 1 % too high, but where what is below 1 µs was timed together. All 0 while
/// `count` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names of the quantiles say it all")]
pub struct Distribution {
    pub count: u64,
    pub sum: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_together_keeps_its_count_and_its_sum() {
        let timings = Timings::new();
        let mut laps = Lap { wait: 1_000_000, took: 300, requests: 4 };
        laps.append(&Lap { wait: 1_000_300, took: 500, requests: 4 });
        timings.record(0, std::iter::once(laps));
        let (wait, service) = timings.summaries();
        assert_eq!((wait.count, service.count), (8, 8));
        assert!((service.sum - 800e-9).abs() < 1e-15 && (service.p50 - 100e-9).abs() <= 1e-9, "{service:?}");
        assert!((wait.sum - 8e-3).abs() < 1e-9 && (wait.p50 - 1e-3).abs() < 1e-5, "{wait:?}");
    }
}

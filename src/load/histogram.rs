//! Latencies in an HdrHistogram, and the rule that no percentile is told from too few samples.
//!
//! Everything is in nanoseconds. Precision: three significant digits from 64 ns on.

use hdrhistogram::Histogram;

/// Two values closer than this are the same.
const LOWEST_NANOS: u64 = 64;
/// Two minutes. A longer latency makes the histogram grow, which takes a moment.
const HIGHEST_NANOS: u64 = 120_000_000_000;
const DIGITS: u8 = 3;
/// A percentile is told when at least so many samples lie beyond it.
const SAMPLES_BEYOND: f64 = 10.0;

/// A histogram as pairs of a latency in nanoseconds and how often it was seen: what is written, read and merged.
pub(crate) type Sparse = Vec<(u64, u64)>;

/// How long replies took.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    histogram: Histogram<u64>,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let mut histogram = Histogram::new_with_bounds(LOWEST_NANOS, HIGHEST_NANOS, DIGITS)
            .expect("the bounds are constants that fit");
        histogram.auto(true);
        Self { histogram }
    }

    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.record_n(nanoseconds, 1);
    }

    #[inline]
    pub(crate) fn record_n(&mut self, nanoseconds: u64, count: u64) {
        self.histogram.record_n(nanoseconds, count).expect("it grows as far as 64 bits go");
    }

    pub(crate) fn add(&mut self, sparse: &[(u64, u64)]) {
        for &(nanoseconds, count) in sparse {
            self.record_n(nanoseconds, count);
        }
    }

    pub(crate) fn sparse(&self) -> Sparse {
        self.histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    pub(crate) fn reset(&mut self) {
        self.histogram.reset();
    }

    pub(crate) fn len(&self) -> u64 {
        self.histogram.len()
    }

    pub(crate) fn mean(&self) -> f64 {
        self.histogram.mean()
    }

    pub(crate) fn max(&self) -> u64 {
        self.histogram.max()
    }

    /// The latency that `percentile` per cent of the samples did not exceed, or `None` when there are too few to tell.
    pub(crate) fn percentile(&self, percentile: f64) -> Option<u64> {
        let beyond = self.len() as f64 * (100.0 - percentile) / 100.0;
        // A rounding error must not cost the thousandth sample its p99.
        (beyond + 1e-6 >= SAMPLES_BEYOND).then(|| self.histogram.value_at_percentile(percentile))
    }
}

/// The sum of two histograms.
pub(crate) fn merge(one: &[(u64, u64)], other: &[(u64, u64)]) -> Sparse {
    let mut sum = std::collections::BTreeMap::new();
    for &(nanoseconds, count) in one.iter().chain(other) {
        *sum.entry(nanoseconds).or_insert(0) += count;
    }
    sum.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(measured: Option<u64>, exact: f64) -> bool {
        measured.is_some_and(|measured| (measured as f64 / exact - 1.0).abs() < 0.002)
    }

    #[test]
    fn percentiles_of_a_uniform_distribution_are_exact_to_three_digits() {
        let mut latencies = Latencies::new();
        for microseconds in 1..=100_000_u64 {
            latencies.record(microseconds * 1000);
        }
        for percentile in [50.0, 90.0, 99.0, 99.9] {
            let exact = percentile / 100.0 * 1e8;
            assert!(close(latencies.percentile(percentile), exact), "p{percentile}");
        }
        assert!(close(Some(latencies.max()), 1e8));
        assert!((latencies.mean() / 5e7 - 1.0).abs() < 0.002);
    }

    #[test]
    fn percentiles_of_an_exponential_distribution_are_exact_to_three_digits() {
        // The quantile function at evenly spaced points: a sample of the distribution without chance in it.
        let (mut latencies, mean, count) = (Latencies::new(), 1e6_f64, 200_000);
        for i in 0..count {
            let quantile = (f64::from(i) + 0.5) / f64::from(count);
            latencies.record(crate::load::whole(-mean * (1.0 - quantile).ln()));
        }
        for percentile in [50.0, 90.0, 99.0, 99.9] {
            let exact = -mean * (1.0 - percentile / 100.0_f64).ln();
            assert!(close(latencies.percentile(percentile), exact), "p{percentile}");
        }
    }

    #[test]
    fn longest_is_told_however_long() {
        let mut latencies = Latencies::new();
        for seconds in [1, 119, 121, 500, 3600, 100_000] {
            latencies.record(seconds * 1_000_000_000);
            assert!(close(Some(latencies.max()), seconds as f64 * 1e9), "{seconds} s: {}", latencies.max());
        }
        let mut read = Latencies::new();
        read.add(&latencies.sparse());
        assert_eq!(read.max(), latencies.max());
    }

    #[test]
    fn no_percentile_from_too_few_samples() {
        let mut latencies = Latencies::new();
        latencies.record_n(5000, 999);
        assert_eq!(latencies.percentile(99.0), None);
        latencies.record(5000);
        assert!(latencies.percentile(99.0).is_some());
        assert_eq!(latencies.percentile(99.9), None);
        assert!(latencies.percentile(50.0).is_some());
    }

    #[test]
    fn row_begins_with_nothing() {
        let mut latencies = Latencies::new();
        latencies.record_n(5000, 999);
        latencies.reset();
        assert_eq!((latencies.len(), latencies.sparse()), (0, vec![]));
    }

    #[test]
    fn merged_halves_are_the_whole() {
        let (mut even, mut odd, mut all) = (Latencies::new(), Latencies::new(), Latencies::new());
        for value in 0..50_000_u64 {
            let half = if value % 2 == 0 { &mut even } else { &mut odd };
            half.record(value * 977);
            all.record(value * 977);
        }
        let sum = merge(&even.sparse(), &odd.sparse());
        assert_eq!(sum, all.sparse());
        let mut read = Latencies::new();
        read.add(&sum);
        assert_eq!(read.percentile(99.0), all.percentile(99.0));
    }
}

//! Several runs at the same time, such as of several machines, as one.

use super::histogram::{Latencies, merge};
use super::result::latency;
use crate::report::load::{Generator, LoadReport};

/// Why these documents cannot be added up, and which of them that is said of, by its place.
pub(crate) fn objection(reports: &[LoadReport]) -> Option<(usize, &'static str)> {
    let samples = |report: &LoadReport| report.histogram_ns.iter().map(|&(_, count)| count).sum::<u64>();
    let adds_up = |report: &LoadReport| {
        let whole = report.requests.adds_up() && report.total.adds_up();
        whole && samples(report) == report.requests.right
    };
    if let Some(place) = reports.iter().position(|report| !adds_up(report)) {
        return Some((place, "its counts do not add up"));
    }
    let begins = |report: &LoadReport| report.started_unix_seconds + report.warm_up_seconds;
    let first_end =
        reports.iter().map(|report| begins(report) + report.seconds).fold(f64::INFINITY, f64::min);
    let late = reports.iter().position(|report| begins(report) > first_end)?;
    Some((late, "it was not measured at the same time as the others"))
}

/// Adds a run that went on at the same time, such as one of another machine. Percentiles come from the sum of the
/// histograms; those of single rows cannot be added and are left out.
pub(crate) fn merge_runs(sum: &mut LoadReport, other: &LoadReport) {
    sum.seconds = sum.seconds.max(other.seconds);
    sum.started_unix_seconds = sum.started_unix_seconds.min(other.started_unix_seconds);
    sum.options.connections += other.options.connections;
    sum.options.threads += other.options.threads;
    sum.options.rate = sum.options.rate.zip(other.options.rate).map(|(one, two)| one + two);
    sum.requests.add(&other.requests);
    sum.total.add(&other.total);
    sum.connections.add(&other.connections);
    sum.requests_per_second = sum.requests.right as f64 / sum.seconds.max(1e-9);
    sum.histogram_ns = merge(&sum.histogram_ns, &other.histogram_ns);
    let mut latencies = Latencies::new();
    latencies.add(&sum.histogram_ns);
    sum.latency_us = latency(&latencies);
    let (generator, theirs) = (&mut sum.generator, &other.generator);
    generator.cpu_seconds += theirs.cpu_seconds;
    generator.cpu_us_per_request =
        (sum.requests.right > 0).then(|| generator.cpu_seconds * 1e6 / sum.requests.right as f64);
    generator.busiest_running = generator.busiest_running.max(theirs.busiest_running);
    generator.busiest_waiting = generator.busiest_waiting.max(theirs.busiest_waiting);
    generator.is_waiting_known &= theirs.is_waiting_known;
    // Of two generators the later one counts.
    let later = |one: Option<f64>, two: Option<f64>| one.zip(two).map(|(one, two)| one.max(two));
    generator.lateness_us.p50 = later(generator.lateness_us.p50, theirs.lateness_us.p50);
    generator.lateness_us.p99 = later(generator.lateness_us.p99, theirs.lateness_us.p99);
    generator.lateness_us.max = generator.lateness_us.max.max(theirs.lateness_us.max);
    let is_fine = |generator: &Generator| generator.valid || generator.only_late;
    generator.only_late = is_fine(generator) && is_fine(theirs) && !(generator.valid && theirs.valid);
    generator.valid &= theirs.valid;
    generator.reasons.extend(theirs.reasons.iter().cloned());
    sum.asserts.extend(other.asserts.iter().cloned());
    sum.problems.extend(other.problems.iter().cloned());
    sum.ended_early = sum.ended_early.take().or_else(|| other.ended_early.clone());
    sum.examples.extend(other.examples.iter().cloned());
    sum.verdict = sum.verdict.worse(other.verdict);
    merge_series(sum, other);
}

fn merge_series(sum: &mut LoadReport, other: &LoadReport) {
    let is_same_step = (sum.series_step_seconds - other.series_step_seconds).abs() <= 1e-9;
    if !is_same_step {
        // Rows of unequal length cannot be added.
        sum.series.clear();
        sum.series_step_seconds = 0.0;
    }
    for (row, theirs) in sum.series.iter_mut().zip(&other.series) {
        row.sent += theirs.sent;
        row.right += theirs.right;
        row.errors += theirs.errors;
        row.offered = row.offered.zip(theirs.offered).map(|(one, two)| one + two);
        row.connections += theirs.connections;
        // Of one that has none the other's is the slowest.
        row.max_us = row.max_us.into_iter().chain(theirs.max_us).reduce(f64::max);
    }
    // Of the longer run its last rows are all there is.
    let rest = other.series.get(sum.series.len()..).unwrap_or_default();
    if is_same_step {
        sum.series.extend_from_slice(rest);
    }
    for row in &mut sum.series {
        (row.p50_us, row.p99_us) = (None, None);
    }
}

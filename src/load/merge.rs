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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::result::tests::report;
    use crate::report::load::{Connections, Example, Lateness, Point, Requests, Verdict};

    /// A run of two thousand requests in 4 s, whose measured part began at 3.5 s.
    fn run() -> LoadReport {
        let mut run = report(|_, _| {});
        run.options.rate = Some(500.0);
        run
    }

    fn row(t: f64, sent: u64, offered: Option<u64>, max_us: Option<f64>) -> Point {
        let (p50_us, p99_us) = (Some(1.0), Some(2.0));
        let (right, errors, connections) = (sent + 1, sent + 2, sent + 3);
        Point { t, sent, right, errors, offered, p50_us, p99_us, max_us, connections }
    }

    fn merged(mut one: LoadReport, other: &LoadReport) -> LoadReport {
        merge_runs(&mut one, other);
        one
    }

    #[test]
    fn counts_and_histograms_are_added_and_rates_and_percentiles_follow_from_them() {
        let mut other = run();
        (other.seconds, other.started_unix_seconds) = (5.0, 0.5);
        (other.options.connections, other.options.threads, other.options.rate) = (30, 20, Some(70.0));
        other.requests = Requests { offered: 1000, sent: 1000, right: 1000, ..Requests::default() };
        other.total = Requests { offered: 1100, sent: 1100, right: 1100, ..Requests::default() };
        other.connections = Connections { opened: 30, reset: 2, ..Connections::default() };
        other.histogram_ns = vec![(8_000_000, 1000)];
        other.generator.cpu_seconds = 1.0;
        for sum in [merged(run(), &other), merged(other.clone(), &run())] {
            assert_eq!((sum.seconds, sum.started_unix_seconds), (5.0, 0.5));
            let options = &sum.options;
            assert_eq!((options.connections, options.threads, options.rate), (33, 23, Some(570.0)));
            assert_eq!((sum.requests.right, sum.total.right, sum.requests_per_second), (3000, 3100, 600.0));
            assert_eq!((sum.connections.opened, sum.connections.reset), (33, 2));
            assert_eq!(sum.histogram_ns.iter().map(|step| step.1).collect::<Vec<_>>(), [1000, 985, 15, 1000]);
            let latency = sum.latency_us;
            assert!(latency.count == 3000 && latency.p50.unwrap() < 2100.0, "{latency:?}");
            assert!(latency.p90.unwrap() > 7900.0 && latency.max > 7900.0, "{latency:?}");
            assert_eq!((sum.generator.cpu_seconds, sum.generator.cpu_us_per_request), (1.5, Some(500.0)));
        }
        other.options.rate = None;
        assert_eq!(merged(run(), &other).options.rate, None);
        let mut nothing = run();
        (nothing.requests, nothing.seconds) = (Requests::default(), 0.0);
        let nothing = merged(nothing.clone(), &nothing);
        assert_eq!((nothing.requests_per_second, nothing.generator.cpu_us_per_request), (0.0, None));
    }

    #[test]
    fn of_two_generators_the_busier_and_the_later_one_counts() {
        let mut other = run();
        let generator = &mut other.generator;
        (generator.busiest_running, generator.busiest_waiting) = (0.7, 0.05);
        generator.lateness_us = Lateness { p50: Some(1.0), p99: Some(900.0), max: 1000.0 };
        for sum in [merged(run(), &other), merged(other.clone(), &run())] {
            let generator = &sum.generator;
            assert_eq!((generator.busiest_running, generator.busiest_waiting), (0.7, 0.1));
            let Lateness { p50, p99, max } = generator.lateness_us;
            assert!(p50.unwrap() > 50.0 && (p99, max) == (Some(900.0), 1000.0), "{p50:?} {p99:?} {max}");
            assert!(generator.is_waiting_known);
        }
        other.generator.lateness_us.p99 = None;
        other.generator.is_waiting_known = false;
        for sum in [merged(run(), &other), merged(other.clone(), &run())] {
            assert_eq!((sum.generator.lateness_us.p99, sum.generator.is_waiting_known), (None, false));
        }
    }

    #[test]
    fn sum_is_valid_where_both_are_and_only_late_where_neither_is_worse() {
        let generator = |(valid, only_late)| {
            let mut run = run();
            (run.generator.valid, run.generator.only_late) = (valid, only_late);
            run
        };
        let (fine, late, bad) = ((true, false), (false, true), (false, false));
        for (one, two, both) in [
            (fine, fine, fine),
            (fine, late, late),
            (late, fine, late),
            (late, late, late),
            (fine, bad, bad),
            (bad, late, bad),
        ] {
            let sum = merged(generator(one), &generator(two)).generator;
            assert_eq!((sum.valid, sum.only_late), both, "{one:?} {two:?}");
        }
    }

    #[test]
    fn what_was_said_of_each_run_is_said_of_the_sum() {
        let of = |name: &str, verdict| {
            let mut run = run();
            run.generator.reasons = vec![format!("{name} was late")];
            run.problems = vec![format!("{name} has a problem")];
            run.verdict = verdict;
            run.ended_early = Some(format!("{name} ended"));
            let (kind, request, expected) = (name.to_owned(), String::new(), String::new());
            run.examples.push(Example { kind, t: 0.0, connection: 0, request, expected, got: String::new() });
            let (text, value) = (name.to_owned(), String::new());
            run.asserts.push(crate::report::load::Assert { text, holds: true, value, too_few: false });
            run
        };
        let (one, two) = (of("one", Verdict::Ok), of("two", Verdict::Invalid));
        let sum = merged(one, &two);
        assert_eq!(sum.generator.reasons, ["one was late", "two was late"]);
        assert_eq!(sum.problems, ["one has a problem", "two has a problem"]);
        assert_eq!(sum.examples.iter().map(|example| &*example.kind).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(sum.asserts.iter().map(|assert| &*assert.text).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!((sum.verdict, sum.ended_early.as_deref()), (Verdict::Invalid, Some("one ended")));
        assert_eq!(merged(run(), &two).ended_early.as_deref(), Some("two ended"));
    }

    #[test]
    fn rows_are_added_where_they_are_as_long_and_the_longer_run_keeps_its_last_ones() {
        let with = |rows: &[Point]| {
            let mut run = run();
            run.series = rows.to_vec();
            run
        };
        let longer =
            with(&[row(0.0, 10, Some(5), Some(4.0)), row(0.1, 20, None, None), row(0.2, 30, Some(7), None)]);
        let shorter = with(&[row(0.0, 100, Some(6), Some(3.0)), row(0.1, 200, Some(8), Some(9.0))]);
        for sum in [merged(longer.clone(), &shorter), merged(shorter.clone(), &longer)] {
            let rows = &sum.series;
            let counts = rows.iter().map(|row| (row.sent, row.right, row.errors, row.connections));
            let expected = [(110, 112, 114, 116), (220, 222, 224, 226), (30, 31, 32, 33)];
            assert_eq!(counts.collect::<Vec<_>>(), expected);
            let times = rows.iter().map(|row| (row.t, row.offered, row.max_us));
            let expected = [(0.0, Some(11), Some(4.0)), (0.1, None, Some(9.0)), (0.2, Some(7), None)];
            assert_eq!(times.collect::<Vec<_>>(), expected);
            assert!(rows.iter().all(|row| (row.p50_us, row.p99_us) == (None, None)), "{rows:?}");
            assert_eq!(sum.series_step_seconds, 0.1);
        }
        for step in [0.2, 0.05] {
            let mut unequal = shorter.clone();
            unequal.series_step_seconds = step;
            let sum = merged(longer.clone(), &unequal);
            assert_eq!((sum.series.len(), sum.series_step_seconds), (0, 0.0));
        }
    }

    #[test]
    fn documents_are_added_up_only_where_they_add_up_and_were_measured_at_the_same_time() {
        assert_eq!(objection(&[run(), run()]), None);
        let faults: [fn(&mut LoadReport); 4] = [
            |run| run.requests.sent += 1,
            |run| run.total.sent += 1,
            |run| run.histogram_ns[1].1 += 1,
            |run| run.histogram_ns.clear(),
        ];
        for fault in faults {
            let mut other = run();
            fault(&mut other);
            assert_eq!(objection(&[run(), other]), Some((1, "its counts do not add up")));
        }
        // The first is measured from 3.5 s to 7.5 s.
        for (started, warm_up, place) in [
            (7.5, 0.0, None),
            (5.5, 2.0, None),
            (7.6, 0.0, Some(1)),
            (5.6, 2.0, Some(1)),
            (-3.0, 2.4, Some(0)),
        ] {
            let mut other = run();
            (other.started_unix_seconds, other.warm_up_seconds) = (started, warm_up);
            let objected = objection(&[run(), other]);
            assert_eq!(objected.map(|(place, _)| place), place, "{started} {warm_up}: {objected:?}");
        }
    }
}

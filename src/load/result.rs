//! From what happened to what is reported: percentiles, asserts and the verdict.

use std::time::UNIX_EPOCH;

use super::asserts::{Assert, Count, Subject};
use super::histogram::Latencies;
use super::{EndedEarly, Outcome, Plan};
use crate::report::load::{self, Example, Generator, Latency, Lateness, LoadReport, Options, Point, Verdict};

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

/// The latencies as they are reported.
pub(crate) fn latency(latencies: &Latencies) -> Latency {
    let at = |percentile| latencies.percentile(percentile).map(microseconds);
    Latency {
        count: latencies.len(),
        mean: latencies.mean() / 1e3,
        p50: at(50.0),
        p90: at(90.0),
        p99: at(99.0),
        p999: at(99.9),
        max: microseconds(latencies.max()),
    }
}

/// The report of a run: `shape` is what was written for `--shape`.
pub(crate) fn summarize(
    plan: &Plan,
    shape: Option<String>,
    outcome: &Outcome,
    asserts: &[Assert],
) -> LoadReport {
    let seconds = outcome.generator.seconds;
    let mut reasons = outcome.generator.reasons();
    if let Some(own_fault @ (EndedEarly::OutOf(_) | EndedEarly::Failed(_))) = &outcome.ended_early {
        reasons.push(own_fault.to_string());
    }
    let late = outcome.generator.lateness_reason();
    let only_late = reasons.is_empty() && late.is_some();
    reasons.extend(late);
    let right = outcome.measured.right;
    let busiest =
        outcome.generator.threads.iter().max_by(|one, other| one.cpu_seconds.total_cmp(&other.cpu_seconds));
    let share = |part: Option<f64>| part.filter(|_| seconds > 0.0).map_or(0.0, |part| part / seconds);
    let lateness = &outcome.generator.lateness;
    let mut report = LoadReport {
        tidemill: env!("CARGO_PKG_VERSION").to_owned(),
        target: plan.target.clone(),
        started_unix_seconds: outcome
            .started
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |since| since.as_secs_f64()),
        warm_up_seconds: plan.warm_up.as_secs_f64(),
        seconds,
        options: Options {
            connections: plan.connections as u64,
            pipeline: plan.pipeline as u64,
            threads: outcome.generator.threads.len() as u64,
            loop_kind: match (&plan.rate, plan.poisson) {
                (None, _) => "closed",
                (Some(_), false) => "constant",
                (Some(_), true) => "poisson",
            }
            .to_owned(),
            rate: plan.rate.as_ref().map(|curve| curve.highest()),
            shape,
            reconnect: plan.reconnect,
            expect_stop: plan.expect_stop,
            timeout_seconds: plan.timeout.as_secs_f64(),
        },
        requests: outcome.measured,
        total: outcome.total,
        connections: outcome.connections,
        requests_per_second: if seconds > 0.0 { right as f64 / seconds } else { 0.0 },
        latency_us: latency(&outcome.latencies),
        generator: Generator {
            cpu_seconds: outcome.cpu_seconds,
            cpu_us_per_request: (right > 0).then(|| outcome.cpu_seconds * 1e6 / right as f64),
            busiest_running: share(busiest.map(|usage| usage.cpu_seconds)),
            busiest_waiting: share(busiest.and_then(|usage| usage.waited_seconds)),
            is_waiting_known: outcome.generator.threads.iter().all(|usage| usage.waited_seconds.is_some()),
            lateness_us: Lateness {
                p50: lateness.percentile(50.0).map(microseconds),
                p99: lateness.percentile(99.0).map(microseconds),
                max: microseconds(lateness.max()),
            },
            valid: reasons.is_empty(),
            only_late,
            reasons,
        },
        asserts: Vec::new(),
        verdict: Verdict::Ok,
        problems: Vec::new(),
        ended_early: outcome.ended_early.as_ref().map(EndedEarly::to_string),
        examples: examples(plan, outcome),
        series_step_seconds: outcome.series.step(),
        series: series(plan, outcome),
        histogram_ns: outcome.latencies.sparse(),
        find: None,
    };
    report.problems = problems(&report, outcome.ended_early.as_ref());
    report.verdict = match (report.problems.is_empty(), report.generator.valid) {
        (false, _) => Verdict::Failed,
        (true, false) => Verdict::Invalid,
        (true, true) => Verdict::Ok,
    };
    judge(&mut report, asserts);
    // A generator that failed is a problem already.
    let is_told = |reason: &String| report.problems.iter().any(|problem| problem.contains(reason));
    let untold: Vec<_> = report.generator.reasons.iter().filter(|reason| !is_told(reason)).cloned().collect();
    report.problems.extend(untold);
    report
}

fn examples(plan: &Plan, outcome: &Outcome) -> Vec<Example> {
    let all = outcome.examples.iter().map(|(kind, first)| Example {
        kind: kind.name().to_owned(),
        t: first.at as f64 / 1e9 - plan.warm_up.as_secs_f64(),
        connection: first.example.connection,
        request: first.example.request.clone(),
        expected: first.example.expected.clone(),
        got: first.example.got.clone(),
    });
    all.collect()
}

/// Where a row has too few samples for a percentile, up to so many rows together, itself the last, are asked.
const WINDOW_ROWS: usize = 10;

fn series(plan: &Plan, outcome: &Outcome) -> Vec<Point> {
    let step = outcome.series.step();
    let open = plan.rate.is_some();
    let points = outcome.series.points();
    let row = |(at, point): (usize, &super::series::Point)| {
        let mut latencies = Latencies::new();
        latencies.add(&point.latencies);
        let (own, max) = (latencies.len(), latencies.max());
        let percentile = |percentile| {
            let mut first = at;
            let mut window = latencies.clone();
            while window.percentile(percentile).is_none() && first > 0 && at - first < WINDOW_ROWS - 1 {
                first -= 1;
                window.add(&points[first].latencies);
            }
            window.percentile(percentile).filter(|_| own > 0).map(microseconds)
        };
        Point {
            t: at as f64 * step,
            sent: point.sent,
            right: point.right,
            errors: point.errors,
            offered: open.then_some(point.offered),
            p50_us: percentile(50.0),
            p99_us: percentile(99.0),
            max_us: (own > 0).then(|| microseconds(max)),
            connections: outcome.series.connections(point),
        }
    };
    points.iter().enumerate().map(row).collect()
}

/// What was wrong with a run, its asserts aside. The whole run counts, also the warm-up: a wrong reply is wrong at any time.
fn problems(report: &LoadReport, ended_early: Option<&EndedEarly>) -> Vec<String> {
    let (total, connections) = (&report.total, &report.connections);
    let expect_stop = report.options.expect_stop;
    let own_fault = matches!(ended_early, Some(EndedEarly::OutOf(_) | EndedEarly::Failed(_)));
    let interrupted = matches!(ended_early, Some(EndedEarly::Interrupted | EndedEarly::InterruptedTwice));
    let mut problems = Vec::new();
    let mut problem = |count: u64, what: &str| {
        if count > 0 {
            problems.push(format!("{count} {what}"));
        }
    };
    problem(total.wrong, "replies wrong");
    problem(total.reordered, "replies reordered");
    problem(total.duplicated, "replies duplicated");
    problem(total.lost, "replies lost");
    problem(total.unasked, "pieces that nobody asked for");
    problem(connections.reset, "connections reset");
    problem(connections.closed_early, "connections closed early");
    if !expect_stop {
        // Somebody who ends a run does not ask for what was due.
        if !own_fault && !interrupted {
            problem(total.unsent, "requests due, but never sent");
        }
        problem(connections.refused, "connections refused");
        problem(connections.not_let_in, "connections never let in");
    } else if connections.stopped == 0 {
        problems.push("the server did not stop".to_owned());
    } else if connections.not_stopped > 0 && !interrupted {
        let count = connections.not_stopped;
        problems.push(format!("the server did not stop: {count} connections were open to the end"));
    }
    if let Some(failed @ EndedEarly::Failed(_)) = ended_early {
        problems.push(format!("ended early: {failed}"));
    }
    if let Some(gone @ EndedEarly::Gone) = ended_early.filter(|_| !expect_stop) {
        problems.push(format!("ended early: {gone}"));
    }
    if problems.is_empty() && !own_fault {
        if total.right == 0 {
            problems.push("no request was answered".to_owned());
        } else if report.requests.right == 0 && !interrupted {
            problems.push("nothing was measured: no request of the measured part was answered".to_owned());
        }
    }
    problems
}

/// Adds what `asserts` make of a run, or of several as one, to its verdict.
pub(crate) fn judge(report: &mut LoadReport, asserts: &[Assert]) {
    let valid = report.generator.valid;
    let mut latencies = Latencies::new();
    latencies.add(&report.histogram_ns);
    let mut judged = Vec::new();
    for assert in asserts {
        let value = value_of(assert.subject, report, &latencies);
        // What the generator spoilt cannot be vouched for, but that a latency is no longer than with its own lateness.
        let known = valid
            || !assert.subject.is_measured()
            || report.generator.only_late && assert.is_upper_bound_of_time();
        let mut shown = assert.show(value);
        if !known {
            shown.push_str(", but the run is invalid");
        }
        judged.push(load::Assert {
            text: assert.text.clone(),
            holds: known && assert.holds(value),
            value: shown,
            too_few: value.is_none(),
        });
    }
    let failed = judged.iter().filter(|assert| !assert.holds).count();
    if failed > 0 {
        report.problems.push(format!("{failed} of {} asserts do not hold", judged.len()));
        report.verdict = Verdict::Failed;
    }
    report.asserts.extend(judged);
}

fn value_of(subject: Subject, report: &LoadReport, latencies: &Latencies) -> Option<f64> {
    let latency = &report.latency_us;
    let some = latency.count > 0;
    match subject {
        Subject::Percentile(hundredths) => {
            latencies.percentile(f64::from(hundredths) / 100.0).map(microseconds)
        }
        Subject::Mean => some.then_some(latency.mean),
        Subject::Max => some.then_some(latency.max),
        Subject::Rate => Some(report.requests_per_second),
        Subject::GeneratorCpu => report.generator.cpu_us_per_request,
        Subject::Count(count) => {
            // What was done is that of the table; what went wrong did at any time, also in the warm-up.
            let (requests, total, connections) = (&report.requests, &report.total, &report.connections);
            let value = match count {
                Count::Offered => requests.offered,
                Count::Unsent => requests.unsent,
                Count::Sent => requests.sent,
                Count::Right => requests.right,
                Count::Wrong => total.wrong,
                Count::Reordered => total.reordered,
                Count::Duplicated => total.duplicated,
                Count::Lost => total.lost,
                Count::Unread => total.unread,
                Count::Unasked => total.unasked,
                Count::Opened => connections.opened,
                Count::Refused => connections.refused,
                Count::NotLetIn => connections.not_let_in,
                Count::Reset => connections.reset,
                Count::ClosedEarly => connections.closed_early,
                Count::Errors => total.errors() + connections.errors(),
            };
            Some(value as f64)
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

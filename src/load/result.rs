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
    report.problems.extend(report.generator.reasons.iter().cloned());
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
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::honesty::{Absence, Generator, Usage, compared};
    use crate::load::protocol::Protocol;
    use crate::load::series::{Point as Row, Series};
    use crate::load::{tally, worker};
    use crate::report::load::{Connections, Requests};
    use tidemill::schedule::Curve;

    const MS: u64 = 1_000_000;

    fn plan() -> Plan {
        Plan {
            target: "there".to_owned(),
            addresses: Vec::new(),
            protocol: Protocol::custom("x", "y", None, None).unwrap(),
            connections: 3,
            pipeline: 5,
            requests: None,
            duration: None,
            warm_up: Duration::from_secs(2),
            rate: None,
            poisson: false,
            connection_curve: None,
            reconnect: false,
            threads: 8,
            timeout: Duration::from_secs(7),
            expect_stop: false,
            seed: 1,
        }
    }

    /// Two threads have flooded for 4 s; 2000 replies took 1, 2 or 4 ms, and each was handled 60 µs late.
    fn outcome() -> Outcome {
        let (mut latencies, mut lateness) = (Latencies::new(), Latencies::new());
        latencies.add(&[(MS, 1000), (2 * MS, 985), (4 * MS, 15)]);
        lateness.record_n(60_000, 2000);
        let total = Requests { offered: 2000, sent: 2000, right: 2000, ..Requests::default() };
        let usage = |cpu_seconds, waited| Usage { cpu_seconds, waited_seconds: Some(waited) };
        Outcome {
            started: UNIX_EPOCH + Duration::from_millis(1500),
            measured: total,
            total,
            connections: Connections { opened: 3, ..Connections::default() },
            examples: Vec::new(),
            generator: Generator {
                threads: vec![usage(0.2, 0.1), usage(0.8, 0.4), usage(0.3, 0.9)],
                right: 2000,
                right_while_busy: 0,
                seconds: 4.0,
                lateness,
                absence: Absence::default(),
                open_loop: false,
                latency: compared(&latencies),
            },
            latencies,
            cpu_seconds: 0.5,
            series: Series::new(),
            ended_early: None,
        }
    }

    fn report(change: impl FnOnce(&mut Plan, &mut Outcome)) -> LoadReport {
        let (mut plan, mut outcome) = (plan(), outcome());
        change(&mut plan, &mut outcome);
        summarize(&plan, None, &outcome, &[])
    }

    /// To the three digits that a histogram keeps.
    fn is_about(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value / expected - 1.0).abs() < 0.002)
    }

    #[test]
    fn every_figure_is_told_in_its_unit() {
        let report = report(|_, _| {});
        assert_eq!((report.verdict, &report.problems), (Verdict::Ok, &Vec::new()));
        assert_eq!((report.started_unix_seconds, report.warm_up_seconds, report.seconds), (1.5, 2.0, 4.0));
        assert_eq!((report.options.connections, report.options.pipeline, report.options.threads), (3, 5, 3));
        assert_eq!((report.options.loop_kind.as_str(), report.options.rate), ("closed", None));
        assert_eq!((report.options.timeout_seconds, report.requests_per_second), (7.0, 500.0));
        let Latency { count, mean, p50, p90, p99, p999, max } = report.latency_us;
        assert!(is_about(Some(mean), 1515.0) && is_about(Some(max), 4000.0), "{mean} {max}");
        assert!(is_about(p50, 1000.0) && is_about(p90, 2000.0) && is_about(p99, 2000.0), "{p50:?} {p99:?}");
        assert_eq!((count, p999), (2000, None));
        let generator = &report.generator;
        assert_eq!((generator.cpu_seconds, generator.cpu_us_per_request), (0.5, Some(250.0)));
        assert_eq!((generator.busiest_running, generator.busiest_waiting), (0.2, 0.1));
        let Lateness { p50, p99, max } = generator.lateness_us;
        assert!(is_about(p50, 60.0) && is_about(p99, 60.0) && is_about(Some(max), 60.0), "{p50:?} {max}");
        assert!(generator.valid && !generator.only_late && report.ended_early.is_none());
        let histogram: Vec<u64> = report.histogram_ns.iter().map(|step| step.1).collect();
        assert_eq!(histogram, [1000, 985, 15]);
    }

    #[test]
    fn wait_for_a_core_is_no_zero_where_the_system_does_not_tell_it() {
        for (waited_seconds, told) in [(Some(0.1), false), (None, true)] {
            let report = report(|_, outcome| outcome.generator.threads[1].waited_seconds = waited_seconds);
            let rows = report.generator_rows();
            let row = rows.iter().find(|row| row[0].contains("waiting for a core")).unwrap();
            assert_eq!(row[1] == "not known", told, "{row:?}");
            assert_eq!(report.text().contains("for a core is not known"), told, "{}", report.text());
        }
    }

    #[test]
    fn kinds_of_loops_are_told_apart_and_nothing_is_divided_by_zero() {
        for (poisson, kind) in [(false, "constant"), (true, "poisson")] {
            let open = report(|plan, _| (plan.rate, plan.poisson) = (Some(Curve::constant(90.0)), poisson));
            assert_eq!((open.options.loop_kind.as_str(), open.options.rate), (kind, Some(90.0)));
        }
        let nothing = report(|_, outcome| {
            outcome.generator.seconds = 0.0;
            (outcome.measured, outcome.total) = (Requests::default(), Requests::default());
            outcome.latencies = Latencies::new();
        });
        assert_eq!((nothing.requests_per_second, nothing.generator.busiest_running), (0.0, 0.0));
        assert_eq!((nothing.generator.cpu_us_per_request, nothing.latency_us.p50), (None, None));
    }

    #[test]
    fn generator_that_was_late_and_nothing_else_is_told_from_one_that_was_more() {
        let late = |outcome: &mut Outcome| outcome.generator.lateness.record_n(MS, 2000);
        let open = |plan: &mut Plan, outcome: &mut Outcome| {
            plan.rate = Some(Curve::constant(500.0));
            outcome.generator.open_loop = true;
        };
        let only = report(|plan, outcome| {
            open(plan, outcome);
            late(outcome);
        });
        assert!(!only.generator.valid && only.generator.only_late, "{:?}", only.generator);
        assert_eq!((only.verdict, &only.problems), (Verdict::Invalid, &only.generator.reasons));
        let more = report(|plan, outcome| {
            open(plan, outcome);
            late(outcome);
            outcome.generator.absence.longest = 1000 * MS;
        });
        assert!(!more.generator.only_late && more.generator.reasons.len() == 2, "{:?}", more.generator);
        let ports = report(|_, outcome| outcome.ended_early = Some(EndedEarly::OutOf("ports")));
        assert_eq!((ports.verdict, ports.generator.only_late), (Verdict::Invalid, false));
        assert_eq!(ports.problems, ["the generator is out of ports"]);
    }

    /// Rows in which so many replies took 1 ms; the percentile of ten rows at most needs 20.
    fn medians(rows: &[u64], open: bool) -> Vec<Point> {
        let report = report(|plan, outcome| {
            plan.rate = open.then(|| Curve::constant(500.0));
            for (index, &count) in rows.iter().enumerate() {
                let latencies = if count > 0 { vec![(MS, count)] } else { Vec::new() };
                let point = Row { sent: 9, right: count, errors: 2, offered: 8, connections: 4, latencies };
                outcome.series.add(worker::Row { index: index as u64, point });
            }
        });
        assert_eq!(report.series_step_seconds, 0.1);
        report.series
    }

    #[test]
    fn rows_of_few_replies_ask_up_to_nine_before_them() {
        let known = |rows: &[u64]| -> Vec<bool> {
            medians(rows, false).iter().map(|row| row.p50_us.is_some()).collect()
        };
        assert_eq!(known(&[20, 19, 0, 1]), [true, true, false, true]);
        assert_eq!(known(&[2; 12]), [[false; 9].as_slice(), &[true; 3]].concat());
        assert_eq!(known(&[2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1]), [[false; 9].as_slice(), &[false; 2]].concat());
        let rows = medians(&[20, 0], true);
        assert!(is_about(rows[0].p50_us, 1000.0) && is_about(rows[0].max_us, 1000.0), "{rows:?}");
        let row = |at: usize| (rows[at].t, rows[at].sent, rows[at].right, rows[at].errors, rows[at].offered);
        assert_eq!((row(0), row(1)), ((0.0, 9, 20, 2, Some(8)), (0.1, 9, 0, 2, Some(8))));
        assert_eq!((rows[1].max_us, rows[1].p99_us, rows[1].connections), (None, None, 4));
        assert_eq!(medians(&[20], false)[0].offered, None);
    }

    #[test]
    fn examples_count_from_where_the_measured_part_begins() {
        let report = report(|_, outcome| {
            let example = crate::load::ledger::Example { connection: 7, ..Default::default() };
            outcome.examples = vec![(tally::Kind::Wrong, tally::First { at: 500 * MS, example })];
        });
        assert_eq!((report.examples[0].t, report.examples[0].connection), (-1.5, 7));
    }

    #[test]
    fn each_thing_that_went_wrong_is_a_problem_unless_it_was_asked_for() {
        let problems = |change: fn(&mut Plan, &mut Outcome)| report(change).problems.join("; ");
        type Change = fn(&mut Plan, &mut Outcome);
        let alone: [(Change, &str); 10] = [
            (|_, it| it.total.wrong = 1, "1 replies wrong"),
            (|_, it| it.total.reordered = 2, "2 replies reordered"),
            (|_, it| it.total.duplicated = 3, "3 replies duplicated"),
            (|_, it| it.total.lost = 4, "4 replies lost"),
            (|_, it| it.total.unasked = 5, "5 pieces that nobody asked for"),
            (|_, it| it.total.unsent = 6, "6 requests due, but never sent"),
            (|_, it| it.connections.reset = 7, "7 connections reset"),
            (|_, it| it.connections.closed_early = 8, "8 connections closed early"),
            (|_, it| it.connections.refused = 9, "9 connections refused"),
            (|_, it| it.connections.not_let_in = 10, "10 connections never let in"),
        ];
        for (change, said) in alone {
            assert_eq!((problems(change), report(change).verdict), (said.to_owned(), Verdict::Failed));
        }
        let unsent = |why: EndedEarly| {
            report(|_, outcome| {
                outcome.total.unsent = 6;
                outcome.ended_early = Some(why);
            })
        };
        assert_eq!(unsent(EndedEarly::Interrupted).problems.len(), 0);
        assert_eq!(unsent(EndedEarly::Interrupted).reasons(), ["ended early: interrupted"]);
        assert_eq!(unsent(EndedEarly::InterruptedTwice).verdict, Verdict::Ok);
        assert_eq!(unsent(EndedEarly::OutOf("ports")).problems, ["the generator is out of ports"]);
        let gone = unsent(EndedEarly::Gone);
        assert_eq!(gone.problems[1], "ended early: the server does not answer any more");
        assert_eq!(gone.reasons(), gone.problems);
        assert_eq!(gone.ended_early.as_deref(), Some("the server does not answer any more"));
        let stopping = |stopped, refused| {
            report(|plan, outcome| {
                plan.expect_stop = true;
                outcome.ended_early = Some(EndedEarly::Gone);
                (outcome.connections.stopped, outcome.connections.refused) = (stopped, refused);
                outcome.total.unsent = 6;
            })
        };
        assert_eq!(stopping(3, 9).reasons().len(), 0);
        assert_eq!(stopping(0, 0).problems, ["the server did not stop"]);
        let partly = |why: EndedEarly| {
            report(|plan, outcome| {
                plan.expect_stop = true;
                outcome.ended_early = Some(why);
                (outcome.connections.stopped, outcome.connections.not_stopped) = (1, 2);
            })
        };
        let open = "the server did not stop: 2 connections were open to the end";
        assert_eq!(partly(EndedEarly::Gone).problems, [open]);
        assert_eq!(partly(EndedEarly::Interrupted).problems.len(), 0);
        let warm_up_only = |why: Option<EndedEarly>| {
            report(|_, outcome| {
                outcome.measured = Requests::default();
                outcome.ended_early = why;
            })
        };
        assert!(warm_up_only(None).problems[0].starts_with("nothing was measured"));
        assert_eq!(warm_up_only(Some(EndedEarly::Interrupted)).verdict, Verdict::Ok);
        let silent = |why: Option<EndedEarly>| {
            report(|_, outcome| {
                outcome.total.right = 0;
                outcome.ended_early = why;
            })
        };
        assert_eq!(silent(None).problems, ["no request was answered"]);
        assert_eq!(silent(Some(EndedEarly::Gone)).problems.len(), 1);
        assert_eq!(silent(Some(EndedEarly::OutOf("ports"))).problems, ["the generator is out of ports"]);
    }

    fn judged(generator: (bool, bool), asserts: &str) -> LoadReport {
        let mut report = report(|_, _| {});
        (report.generator.valid, report.generator.only_late) = generator;
        let asserts: super::super::asserts::Asserts = asserts.parse().unwrap();
        judge(&mut report, &asserts.0);
        report
    }

    #[test]
    fn generator_that_cannot_be_trusted_vouches_for_counts_and_if_only_late_for_bounds_above() {
        let holds = |valid, only_late| {
            let report = judged((valid, only_late), "p99<3ms,p50>0.5ms,rate>400,lost=0");
            report.asserts.iter().map(|assert| assert.holds).collect::<Vec<_>>()
        };
        assert_eq!(holds(true, false), [true; 4]);
        assert_eq!(holds(false, true), [true, false, false, true]);
        assert_eq!(holds(false, false), [false, false, false, true]);
        let report = judged((false, false), "p99<3ms,lost=0");
        assert!(report.asserts[0].value.ends_with(" ms, but the run is invalid"), "{:?}", report.asserts);
        assert_eq!((report.asserts[1].value.as_str(), report.asserts[1].too_few), ("0", false));
        assert_eq!((report.verdict, &*report.problems[0]), (Verdict::Failed, "1 of 2 asserts do not hold"));
        assert_eq!(judged((true, false), "p99<3ms").verdict, Verdict::Ok);
        let few = judged((true, false), "p99.9<1s");
        assert!(few.asserts[0].too_few && !few.asserts[0].holds, "{:?}", few.asserts);
    }

    #[test]
    fn what_is_asserted_is_what_was_counted() {
        let counted = report(|_, outcome| {
            outcome.total = Requests {
                offered: 1,
                sent: 2,
                right: 3,
                wrong: 4,
                reordered: 5,
                duplicated: 6,
                lost: 7,
                unread: 8,
                unasked: 9,
                unsent: 10,
            };
            outcome.measured =
                Requests { offered: 21, sent: 22, right: 500, unsent: 24, ..Requests::default() };
            outcome.connections = Connections {
                opened: 11,
                refused: 12,
                reset: 13,
                closed_early: 14,
                stopped: 15,
                not_stopped: 17,
                not_let_in: 16,
            };
        });
        let mut latencies = Latencies::new();
        latencies.add(&counted.histogram_ns);
        let value = |name: &str| {
            let assert: Assert =
                format!("{name}=1s").parse().or_else(|_| format!("{name}=1").parse()).unwrap();
            value_of(assert.subject, &counted, &latencies)
        };
        let measured = ["offered", "sent", "right", "unsent"].map(value);
        assert_eq!(measured, [21.0, 22.0, 500.0, 24.0].map(Some));
        let errors = ["wrong", "reordered", "duplicated", "lost", "unread", "unasked"].map(value);
        assert_eq!(errors, [4.0, 5.0, 6.0, 7.0, 8.0, 9.0].map(Some));
        let connections = ["opened", "refused", "reset", "closed_early", "not_let_in"].map(value);
        assert_eq!(connections, [11.0, 12.0, 13.0, 14.0, 16.0].map(Some));
        // Of requests 4 + 5 + 6 + 7 + 9, of connections 12 + 13 + 14 + 16.
        assert_eq!(value("errors"), Some(86.0));
        assert_eq!((value("rate"), value("generator_cpu")), (Some(125.0), Some(1000.0)));
        assert!(is_about(value("p50"), 1000.0) && is_about(value("p99"), 2000.0), "{:?}", value("p99"));
        assert!(is_about(value("mean"), 1515.0) && is_about(value("max"), 4000.0), "{:?}", value("max"));
        let none = report(|_, outcome| outcome.latencies = Latencies::new());
        let of_none = |subject| value_of(subject, &none, &Latencies::new());
        assert_eq!([Subject::Mean, Subject::Max, Subject::Percentile(5000)].map(of_none), [None; 3]);
    }
}

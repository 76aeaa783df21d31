//! Runs that are known, and what is reported of them.

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

pub(in crate::load) fn report(change: impl FnOnce(&mut Plan, &mut Outcome)) -> LoadReport {
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
    let known =
        |rows: &[u64]| -> Vec<bool> { medians(rows, false).iter().map(|row| row.p50_us.is_some()).collect() };
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
    let failed = unsent(EndedEarly::Failed("no threads".to_owned()));
    assert_eq!((failed.reasons().len(), failed.verdict), (1, Verdict::Failed), "{:?}", failed.reasons());
    assert!(failed.problems[0].contains("no threads") && !failed.generator.valid);
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
        outcome.measured = Requests { offered: 21, sent: 22, right: 500, unsent: 24, ..Requests::default() };
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
        let assert: Assert = format!("{name}=1s").parse().or_else(|_| format!("{name}=1").parse()).unwrap();
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

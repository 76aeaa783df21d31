//! Searches against servers and generators that are known, and what their runs are taken for.

use super::*;
use crate::load::Outcome;
use crate::load::histogram::Latencies;
use crate::load::honesty::{Absence, Generator, Usage, compared};
use crate::load::protocol::Protocol;
use crate::load::series::Series;
use crate::report::load::{Connections, Requests};

/// Searches against a server that holds below `limit` and a generator that keeps up below `keeps_up`; every `odd`th
/// step fails for no reason. Returns the search and how many steps it took.
fn search(first: f64, limit: f64, keeps_up: f64, odd: usize) -> (Search, usize) {
    let (mut search, mut steps) = (Search::new(first, LOWEST_RATE), 0);
    while let Some(rate) = search.next() {
        steps += 1;
        assert!(steps < 200, "{search:?}");
        search.learn(match rate {
            rate if rate >= keeps_up => Said::Nothing,
            rate if rate >= limit || steps % odd == 0 => Said::Fails,
            _ => Said::Holds,
        });
    }
    (search, steps)
}

#[test]
fn limit_is_found_wherever_the_search_begins() {
    for first in [1.0, 90.0, 3000.0, 6399.0, 6400.0, 50_000.0] {
        for odd in [usize::MAX, 4, 3] {
            let (search, steps) = search(first, 6400.0, f64::MAX, odd);
            let (low, high) = (search.low.unwrap(), search.high.unwrap());
            assert!(low < 6400.0 && 6400.0 <= high && high <= low * RESOLUTION, "{first} {odd}: {search:?}");
            assert!(!search.is_generators_limit && (first < 3000.0 || steps < 30), "{first} {odd}: {steps}");
        }
    }
}

#[test]
fn disturbance_that_passes_does_not_make_the_answer() {
    for (from, to) in [(1, 6), (3, 8), (2, 14), (5, 12)] {
        let (mut search, mut steps) = (Search::new(3000.0, LOWEST_RATE), 0);
        while let Some(rate) = search.next() {
            steps += 1;
            let is_disturbed = (from..to).contains(&steps);
            search.learn(if is_disturbed || rate >= 6400.0 { Said::Fails } else { Said::Holds });
        }
        let (low, high) = (search.low.unwrap(), search.high.unwrap());
        assert!(low < 6400.0 && 6400.0 <= high, "{from}..{to}: {search:?}");
        assert!(steps < MOST_STEPS, "{from}..{to}: {steps}");
    }
}

/// One step that fails twice near the limit: what fails far above is not tried again.
#[test]
fn upper_end_that_was_a_little_too_low_costs_few_steps() {
    let (mut search, mut steps) = (Search::new(3000.0, LOWEST_RATE), 0);
    let mut odd = 2;
    while let Some(rate) = search.next() {
        steps += 1;
        let is_odd = (6200.0..6400.0).contains(&rate) && odd > 0;
        odd -= u32::from(is_odd);
        search.learn(if rate >= 6400.0 || is_odd { Said::Fails } else { Said::Holds });
    }
    let (low, high) = (search.low.unwrap(), search.high.unwrap());
    assert!(low < 6400.0 && 6400.0 <= high && search.reopened == 1, "{search:?}");
    assert!(steps <= 20, "{steps}");
}

#[test]
fn generator_that_does_not_keep_up_gives_no_answer() {
    let (search, _) = search(1000.0, 6400.0, 3000.0, usize::MAX);
    assert!(search.is_generators_limit && search.low.unwrap() < 3000.0, "{search:?}");
    let (search, _) = super::tests::search(5000.0, 6400.0, 9000.0, usize::MAX);
    assert!(!search.is_generators_limit, "what fails below is the server's: {search:?}");
}

#[test]
fn rate_fails_by_the_second_failure_and_is_the_generators_limit_by_the_third_time_nothing_is_said() {
    for (said, times, is_generators_limit) in [(Said::Fails, 2, false), (Said::Nothing, TRIES, true)] {
        let mut search = Search::new(100.0, LOWEST_RATE);
        for time in 1..=times {
            assert_eq!((search.high, search.rate), (None, 100.0));
            search.learn(said);
            assert_eq!(search.high.is_some(), time == times, "{said:?} {time}");
        }
        assert_eq!((search.rate, search.is_generators_limit), (50.0, is_generators_limit));
    }
}

#[test]
fn upper_end_that_holds_after_all_is_gone_beyond_so_often() {
    let narrow = |is_generators_limit, reopened| Search {
        low: Some(100.0),
        high: Some(101.0),
        is_generators_limit,
        reopened,
        ..Search::new(100.0, LOWEST_RATE)
    };
    for (reopened, is_confirmed) in [(0, false), (MOST_REOPENED - 1, false), (MOST_REOPENED, true)] {
        let mut search = narrow(true, reopened);
        search.learn(Said::Holds);
        assert_eq!(search.is_confirmed, is_confirmed, "{reopened}");
        if !is_confirmed {
            assert_eq!((search.low, search.high, search.reopened), (Some(101.0), None, reopened + 1));
            assert_eq!((search.next(), search.is_generators_limit), (Some(101.0 * SMALL_GROWTH), false));
            // Where that holds too, the steps grow.
            let mut before = search.rate;
            for power in [1, 2, 4] {
                search.learn(Said::Holds);
                assert!((search.rate / before / SMALL_GROWTH.powi(power) - 1.0).abs() < 1e-9, "{search:?}");
                before = search.rate;
            }
        }
    }
    for (was, said, is) in
        [(true, Said::Fails, false), (true, Said::Nothing, true), (false, Said::Nothing, false)]
    {
        let mut search = narrow(was, 0);
        // That nothing is said may be somebody else's doing, so it is asked again.
        for _ in 1..if said == Said::Nothing { TRIES } else { 1 } {
            search.learn(said);
            assert_eq!(search.next(), Some(101.0));
        }
        search.learn(said);
        assert_eq!((search.is_generators_limit, search.next()), (is, None), "{was} {said:?}");
    }
}

#[test]
fn search_that_learns_nothing_is_given_up() {
    let step = |said: &str| FindStep {
        rate: 1.0,
        seconds: 1.0,
        values: Vec::new(),
        p99_us: None,
        said: said.to_owned(),
        why: String::new(),
    };
    let mut steps: Vec<FindStep> = (1..MOST_SILENT).map(|_| step(NOTHING)).collect();
    steps.insert(0, step("fails"));
    assert!(is_worth_going_on(&steps, 90.0) && is_worth_going_on(&[], 90.0));
    steps.push(step(NOTHING));
    assert!(!is_worth_going_on(&steps, 90.0));
    steps.push(step("holds"));
    assert!(is_worth_going_on(&steps, 90.0));
    // Eleven seconds so far.
    assert!(is_worth_going_on(&steps, 11.5) && !is_worth_going_on(&steps, 11.0));
    steps.resize_with(MOST_STEPS - 1, || step("fails"));
    assert!(is_worth_going_on(&steps, 90.0));
    steps.push(step("fails"));
    assert!(!is_worth_going_on(&steps, 90.0));
}

#[test]
fn nothing_may_hold() {
    let (search, _) = search(1000.0, 0.5, f64::MAX, usize::MAX);
    assert_eq!((search.low, search.high), (None, Some(LOWEST_RATE)));
}

/// What came of a step whose requests all took `took`, with an own lateness of `late`, and so much of the time busy.
fn outcome(took: Duration, late: Duration, busy: f64, unsent: u64) -> Outcome {
    let nanoseconds = |duration: Duration| crate::load::nanoseconds(duration);
    let (mut latencies, mut lateness) = (Latencies::new(), Latencies::new());
    latencies.record_n(nanoseconds(took), 3000);
    lateness.record_n(nanoseconds(late), 3000);
    let usage = Usage { cpu_seconds: busy * 3.0, waited_seconds: Some(0.0) };
    let measured =
        Requests { offered: 3000 + unsent, sent: 3000, right: 3000, unsent, ..Requests::default() };
    Outcome {
        started: std::time::SystemTime::now(),
        measured,
        total: measured,
        connections: Connections::default(),
        examples: Vec::new(),
        generator: Generator {
            threads: vec![usage],
            right: 3000,
            right_while_busy: 0,
            seconds: 3.0,
            lateness,
            absence: Absence::default(),
            open_loop: true,
            latency: compared(&latencies),
        },
        latencies,
        cpu_seconds: usage.cpu_seconds,
        series: Series::new(),
        ended_early: None,
    }
}

fn plan() -> Plan {
    Plan {
        target: String::new(),
        addresses: Vec::new(),
        protocol: Protocol::custom("x", "y", None, None).unwrap(),
        connections: 1,
        pipeline: 1,
        requests: None,
        duration: None,
        warm_up: WARM_UP,
        rate: Some(Curve::constant(1000.0)),
        poisson: false,
        connection_curve: None,
        reconnect: false,
        threads: 1,
        timeout: STEP,
        expect_stop: false,
        seed: 1,
    }
}

/// The report of such a step.
fn report(took: Duration, late: Duration, busy: f64, unsent: u64, asserts: &[Assert]) -> LoadReport {
    summarize(&plan(), None, &outcome(took, late, busy, unsent), asserts)
}

/// What such a step says.
fn step(took: Duration, late: Duration, busy: f64, unsent: u64) -> Said {
    let asserts = ["p99<20ms".parse().unwrap()];
    judge(&report(took, late, busy, unsent, &asserts), &asserts)
}

#[test]
fn step_says_nothing_where_the_generator_did_not_keep_up() {
    let ms = Duration::from_millis;
    let us = Duration::from_micros;
    for (took, late, busy, unsent, said) in [
        (ms(5), us(50), 0.3, 0, Said::Holds),
        (ms(30), us(50), 0.3, 0, Said::Fails),
        (ms(5), us(50), 0.3, 1, Said::Fails),
        // Never idle, whatever the latencies.
        (ms(5), us(50), 0.99, 0, Said::Nothing),
        (ms(30), us(50), 0.99, 0, Said::Nothing),
        (ms(5), us(50), 0.99, 1, Said::Nothing),
        // Half of the latency is the generator's own: what holds all the same, holds.
        (us(200), us(100), 0.3, 0, Said::Holds),
        (ms(30), ms(15), 0.3, 0, Said::Nothing),
        // Much of what is allowed is the generator's own.
        (ms(19), ms(6), 0.3, 0, Said::Nothing),
    ] {
        assert_eq!(step(took, late, busy, unsent), said, "{took:?} {late:?} {busy} {unsent}");
    }
}

#[test]
fn step_of_too_few_requests_says_nothing_unless_some_went_wrong() {
    // Of 3000 requests three lie beyond this percentile.
    let asserts = ["p99.9<20ms".parse().unwrap()];
    for (unsent, said) in [(0, Said::TooFew), (1, Said::Fails)] {
        let (took, late) = (Duration::from_millis(5), Duration::from_micros(50));
        assert_eq!(judge(&report(took, late, 0.3, unsent, &asserts), &asserts), said, "{unsent}");
    }
    let mut report = report(Duration::from_millis(5), Duration::ZERO, 0.3, 0, &asserts);
    report.total.lost = 2;
    assert_eq!(judge(&report, &asserts), Said::Fails);
    // Nor does it hold where something else is wrong than what is asserted.
    let asserts = ["p99<20ms".parse().unwrap()];
    let mut report = self::report(Duration::from_millis(5), Duration::ZERO, 0.3, 0, &asserts);
    assert_eq!(judge(&report, &asserts), Said::Holds);
    report.verdict = Verdict::Failed;
    assert_eq!(judge(&report, &asserts), Said::Fails);
    // A generator that is never idle vouches for a count, not for the rate at which it holds.
    let asserts = ["lost=0".parse().unwrap()];
    let report = self::report(Duration::from_millis(5), Duration::ZERO, 0.99, 0, &asserts);
    assert_eq!(judge(&report, &asserts), Said::Nothing);
}

#[test]
fn any_reply_that_no_server_may_give_is_wrong() {
    let fine = report(Duration::from_millis(5), Duration::ZERO, 0.3, 0, &[]);
    assert!(!is_wrong(&fine));
    for fault in 0..4 {
        let mut report = fine.clone();
        let total = &mut report.total;
        *[&mut total.wrong, &mut total.reordered, &mut total.duplicated, &mut total.unasked][fault] = 1;
        assert!(is_wrong(&report), "{fault}");
    }
}

#[test]
fn search_is_concluded_by_what_is_known_on_both_sides() {
    let early = Some("interrupted".to_owned());
    // Lower and upper end; whether it is done, or was given up, and why: the verdict, and what is said.
    for (low, high, done, cut, ended_early, verdict, said) in [
        (Some(90.0), Some(91.0), true, Cut::No, None, Verdict::Ok, ""),
        (None, Some(1.0), true, Cut::No, None, Verdict::Failed, "does not hold at any rate"),
        (None, Some(200.0), true, Cut::No, None, Verdict::Failed, "does not hold at 200/s; below that"),
        (None, None, false, Cut::Gone, None, Verdict::Failed, ""),
        (Some(90.0), None, false, Cut::Gone, early.clone(), Verdict::Failed, ""),
        (
            Some(90.0),
            Some(99.0),
            false,
            Cut::Early,
            early.clone(),
            Verdict::Invalid,
            "did not end: interrupted",
        ),
        (Some(90.0), None, true, Cut::No, None, Verdict::Invalid, "no answer above 90/s"),
        (Some(90.0), Some(99.0), false, Cut::No, None, Verdict::Invalid, "no answer above 90/s"),
        (None, None, true, Cut::No, None, Verdict::Invalid, "no answer: the generator"),
        (
            None,
            Some(9.0),
            false,
            Cut::No,
            None,
            Verdict::Invalid,
            "keep up; it does not hold at 9/s; give it cores",
        ),
    ] {
        let mut report = report(Duration::from_millis(5), Duration::ZERO, 0.3, 0, &[]);
        report.ended_early = ended_early;
        let rate = low.filter(|_| done && high.is_some());
        let find = Find { text: "p99<20ms".to_owned(), rate, low, high, steps: Vec::new() };
        conclude(&mut report, find, done, cut);
        let problems = report.problems.join("\n");
        assert_eq!(report.verdict, verdict, "{low:?} {high:?} {done} {cut:?}: {problems}");
        assert!(problems.contains(said) && said.is_empty() == problems.is_empty(), "{said}: {problems}");
        assert!(report.find.is_some());
    }
}

#[test]
fn what_is_known_below_a_rate_that_fails_is_said() {
    for (high, said, told) in [
        (LOWEST_RATE, "fails", "p99<20ms does not hold at any rate"),
        (
            200.0,
            "fails",
            "does not hold at 200/s; below that a step has too few requests to tell, and a longer -d goes further",
        ),
        (200.0, NOTHING, "does not hold at 200/s; below that the generator did not keep up"),
    ] {
        let (values, why) = (Vec::new(), String::new());
        let step = FindStep { rate: 1.0, seconds: 1.0, values, p99_us: None, said: said.to_owned(), why };
        let (text, steps) = ("p99<20ms".to_owned(), vec![step]);
        let find = Find { text, rate: None, low: None, high: Some(high), steps };
        let mut report = report(Duration::from_millis(5), Duration::ZERO, 0.3, 0, &[]);
        conclude(&mut report, find, true, Cut::No);
        assert!(report.problems[0].ends_with(told), "{:?}", report.problems);
    }
}

#[test]
fn search_without_an_answer_says_what_it_was_for_want_of() {
    for (said, why, count, told) in [
        ("holds", "", 9, "the search took too long; it does not hold at 99/s; longer steps"),
        (NOTHING, TOO_FEW, 9, "there were too few requests to tell; it does not hold at 99/s; ask for more"),
        (NOTHING, "never idle", 9, "the generator did not keep up; it does not hold at 99/s; give it cores"),
        ("fails", "", MOST_STEPS, "after 60 steps the search has not ended; it does not hold at 99/s"),
    ] {
        let step = FindStep {
            rate: 1.0,
            seconds: 1.0,
            values: Vec::new(),
            p99_us: None,
            said: said.to_owned(),
            why: why.to_owned(),
        };
        let steps = vec![step; count];
        let find = Find { text: "p99<20ms".to_owned(), rate: None, low: Some(90.0), high: Some(99.0), steps };
        let mut report = report(Duration::from_millis(5), Duration::ZERO, 0.3, 0, &[]);
        conclude(&mut report, find, false, Cut::No);
        assert!(report.problems[0].contains(told), "{said} {why}: {:?}", report.problems);
    }
}

#[test]
fn search_does_not_go_down_to_rates_that_take_long_and_keeps_what_fails() {
    // From the first rate on all fail; below 100/s a step would take too long.
    let (mut search, mut tried) = (Search::new(1000.0, 100.0), Vec::new());
    while let Some(rate) = search.next() {
        tried.push(rate);
        search.learn(Said::Fails);
    }
    tried.dedup();
    let mut far = Search::new(1e6, LOWEST_RATE);
    for rate in [1e6, 5e5, 1.25e5, 7812.5] {
        assert_eq!(far.next(), Some(rate));
        (0..2).for_each(|_| far.learn(Said::Fails));
    }
    assert_eq!((tried, search.low, search.failed), (vec![1000.0, 500.0, 125.0, 100.0], None, Some(100.0)));
    // Where the generator does not keep up with less, what fails above is still known.
    for nothing in [Said::Nothing, Said::TooFew] {
        let mut search = Search::new(1000.0, 100.0);
        while let Some(rate) = search.next() {
            search.learn(if rate > 300.0 { Said::Fails } else { nothing });
        }
        assert_eq!((search.low, search.failed, search.is_generators_limit), (None, Some(500.0), true));
    }
    // It begins where it is told to, however long a step is there.
    assert_eq!(Search::new(40.0, 100.0).next(), Some(40.0));
    let mut search = Search::new(40.0, 100.0);
    (0..3).for_each(|_| search.learn(Said::Fails));
    assert_eq!((search.next(), search.failed), (None, Some(40.0)));
}

#[test]
fn upper_end_that_holds_after_all_fails_no_more() {
    let mut search =
        Search { low: Some(100.0), high: Some(101.0), failed: Some(101.0), ..Search::new(100.0, 1.0) };
    search.learn(Said::Holds);
    assert_eq!((search.low, search.failed), (Some(101.0), None));
    let mut search =
        Search { low: Some(100.0), high: Some(101.0), failed: Some(150.0), ..Search::new(100.0, 1.0) };
    search.learn(Said::Holds);
    assert_eq!((search.low, search.failed), (Some(101.0), Some(150.0)));
}

/// A run that was made: its rate, its warm-up, its length and its timeout.
type Made = (Option<f64>, Duration, Duration, Duration);

/// Searches by `run`, which is told the rate; also returns what was run. Of each run, `opened` tells its rate.
fn find_with(
    plan: Plan,
    assert: &str,
    mut run: impl FnMut(Option<f64>) -> Outcome,
) -> (LoadReport, Vec<Made>, Vec<FindStep>) {
    let (mut made, mut told) = (Vec::new(), Vec::new());
    let mut run = |plan: &Plan| {
        let rate = plan.rate.as_ref().map(|curve| curve.at(0.0));
        made.push((rate, plan.warm_up, plan.duration.unwrap(), plan.timeout));
        let mut outcome = run(rate);
        outcome.connections.opened = crate::load::whole(rate.unwrap_or(0.0));
        Ok(outcome)
    };
    let asserts = [assert.parse().unwrap()];
    let report = find_by(plan, &asserts, &mut run, &mut |step| told.push(step.clone())).unwrap();
    (report, made, told)
}

/// A server that takes 1000/s in a closed loop, and holds below `limit`.
fn holds_below(limit: f64) -> impl FnMut(Option<f64>) -> Outcome {
    let took = move |rate: f64| Duration::from_millis(if rate < limit { 5 } else { 30 });
    move |rate| outcome(took(rate.unwrap_or(0.0)), Duration::ZERO, 0.3, 0)
}

#[test]
fn search_begins_with_a_closed_loop_and_reports_the_best_step() {
    let closed = || Plan { rate: None, warm_up: Duration::ZERO, ..plan() };
    let (report, made, told) = find_with(closed(), "p99<20ms", holds_below(1500.0));
    let find = report.find.as_ref().unwrap();
    let (low, high) = (find.low.unwrap(), find.high.unwrap());
    assert!(low < 1500.0 && 1500.0 <= high && high <= low * RESOLUTION, "{find:?}");
    assert_eq!(
        (find.rate, report.verdict, report.connections.opened),
        (find.low, Verdict::Ok, crate::load::whole(low))
    );
    let second = Duration::from_secs(1);
    assert_eq!(made[0], (None, WARM_UP, LOOK, second));
    assert_eq!((made[1].0, made.len(), find.steps.len()), (Some(500.0), 1 + told.len(), told.len()));
    for (step, &(rate, warm_up, length, timeout)) in find.steps.iter().zip(&made[1..]) {
        assert_eq!((Some(step.rate), warm_up, length, timeout), (rate, WARM_UP, STEP, second));
        let (said, why) =
            if step.rate < 1500.0 { ("holds", "") } else { ("fails", "1 of 1 asserts do not hold") };
        assert_eq!((&*step.said, &*step.why, step.values.len()), (said, why, 1));
    }
}

#[test]
fn rate_that_holds_once_after_a_failure_is_not_what_is_reported() {
    let (mut above, mut slow, mut fast) = (0, holds_below(501.0), holds_below(f64::MAX));
    let run = |rate: Option<f64>| {
        above += u32::from(rate.is_some_and(|rate| rate > 501.0));
        if above == 2 { fast(rate) } else { slow(rate) }
    };
    let closed = Plan { rate: None, warm_up: Duration::ZERO, ..plan() };
    let (report, _, told) = find_with(closed, "p99<20ms", run);
    let find = report.find.as_ref().unwrap();
    assert_eq!((find.low, report.connections.opened), (Some(500.0), 500), "{find:?}");
    let said: Vec<_> = told[..4].iter().map(|step| (step.rate > 500.0, &*step.said)).collect();
    assert_eq!(said, [(false, "holds"), (true, "fails"), (true, "holds"), (true, "fails")]);
}

#[test]
fn steps_are_as_long_as_their_percentile_needs_and_as_patient_as_what_is_asked_for() {
    let (warm_up, timeout) = (Duration::from_secs(2), Duration::from_secs(60));
    let seconds = Duration::from_secs;
    let rate = |rate| Some(Curve::constant(rate));
    for (rate, duration, assert, length, waits) in [
        (rate(90.0), None, "p99<2s", Duration::from_secs_f64(1200.0 / 90.0), seconds(8)),
        (rate(90.0), Some(seconds(20)), "p99<2s", seconds(20), seconds(8)),
        (rate(20.0), None, "p99<20s", LONGEST_STEP, timeout),
        (rate(900.0), None, "p99<20ms", STEP, seconds(1)),
    ] {
        let (first, plan) =
            (rate.as_ref().unwrap().at(0.0), Plan { rate, duration, warm_up, timeout, ..plan() });
        let (_, made, _) = find_with(plan, assert, holds_below(f64::MAX));
        assert_eq!(made[..2], [(None, warm_up, LOOK, waits), (Some(first), warm_up, length, waits)]);
    }
}

#[test]
fn percentile_that_is_too_rare_for_the_rate_is_said_at_once() {
    let seconds = Duration::from_secs;
    let takes = |right: u64| {
        move |_: Option<f64>| {
            let mut outcome = outcome(Duration::from_millis(5), Duration::ZERO, 0.3, 0);
            (outcome.measured.right, outcome.generator.seconds) = (right, LOOK.as_secs_f64());
            outcome
        }
    };
    for (right, rate, duration, told) in [
        (
            100,
            None,
            None,
            Some("at 100/s a step takes 120s until so rare a percentile is known; allow for it with -d 240s"),
        ),
        (100, None, Some(seconds(240)), None),
        // A step is not too long, but ten are.
        (500, None, None, Some("at 500/s a step takes 24s")),
        (500, None, Some(seconds(48)), None),
        (1000, None, None, None),
        // It would have to begin where nothing is known.
        (1000, Some(50.0), None, Some("at 50/s a step takes 240s")),
        (1000, Some(200.0), None, None),
        (100, Some(1000.0), None, None),
        (0, None, None, Some("at 1/s a step takes 12000s")),
    ] {
        let plan = Plan { rate: rate.map(Curve::constant), duration, ..plan() };
        let (report, made, _) = find_with(plan, "p99.9<50ms", takes(right));
        let case = format!("{right} {rate:?} {duration:?}: {:?}", report.problems);
        assert_eq!(made.len() == 1, told.is_some(), "{case}");
        if let Some(told) = told {
            let last = report.problems.last().unwrap();
            assert!(
                last.starts_with("p99.9<50ms cannot be judged in the time: ") && last.contains(told),
                "{case}"
            );
            assert!(
                report.verdict != Verdict::Ok && report.find.is_some_and(|find| find.rate.is_none()),
                "{case}"
            );
        }
    }
}

#[test]
fn rates_below_which_a_step_takes_too_long_are_not_tried() {
    for (duration, lowest) in [(None, 120.0), (Some(Duration::from_secs(20)), 60.0)] {
        let (report, ..) = find_with(Plan { duration, ..plan() }, "p99<20ms", holds_below(0.0));
        let find = report.find.unwrap();
        assert_eq!((find.rate, find.low, find.high.map(f64::round)), (None, None, Some(lowest)));
        assert_eq!(report.verdict, Verdict::Failed);
    }
}

#[test]
fn search_takes_no_longer_than_people_wait_unless_its_steps_are_to_be_longer() {
    for (duration, steps) in [(None, 4), (Some(Duration::from_secs(9)), 12)] {
        let mut holds = holds_below(5000.0);
        let (report, ..) = find_with(Plan { duration, ..plan() }, "p99<20ms", |rate| {
            let mut outcome = holds(rate);
            outcome.generator.seconds = 40.0;
            outcome
        });
        assert_eq!(report.find.unwrap().steps.len(), steps);
        assert!(report.problems[0].contains("took too long"), "{:?}", report.problems);
    }
}

#[test]
fn server_that_answers_nothing_at_a_rate_is_looked_at_once_more() {
    for is_dead in [false, true] {
        let (mut holds, mut has_died) = (holds_below(f64::MAX), false);
        let (report, made, told) = find_with(plan(), "p99<20ms", |rate| {
            let mut outcome = holds(rate);
            let is_too_much = rate.is_some_and(|rate| rate >= 1500.0);
            has_died |= is_too_much && is_dead;
            if is_too_much || has_died {
                (outcome.measured, outcome.total) = (Requests::default(), Requests::default());
                (outcome.total.offered, outcome.total.sent, outcome.total.lost) = (9, 9, 9);
                outcome.latencies = Latencies::new();
            }
            outcome
        });
        let find = report.find.unwrap();
        if is_dead {
            assert_eq!((report.verdict, find.rate, find.high), (Verdict::Failed, None, None));
            let said = format!("{}, after the step at 2000/s", EndedEarly::Gone);
            assert_eq!((report.problems, told.len()), (vec![said], 2));
            assert_eq!(made.iter().filter(|run| run.0.is_none()).count(), 2);
            assert_eq!(made[made.len() - 1], (None, WARM_UP, LOOK, Duration::from_secs(1)));
        } else {
            assert_eq!((report.verdict, find.rate), (Verdict::Ok, find.low));
            assert!(find.low.unwrap() < 1500.0 && find.high.unwrap() >= 1500.0);
        }
    }
}

#[test]
fn wrong_reply_ends_a_search_and_is_what_is_reported() {
    for from in [None, Some(1400.0)] {
        let mut holds = holds_below(f64::MAX);
        let (report, made, told) = find_with(plan(), "p99<20ms", |rate| {
            let mut outcome = holds(rate);
            if rate >= from {
                outcome.total.wrong = 1;
                // Nor does it answer any more.
                outcome.ended_early = Some(EndedEarly::Gone);
            }
            outcome
        });
        let steps = if from.is_some() { 2 } else { 0 };
        assert_eq!((told.len(), made.len()), (steps, steps + 1));
        assert_eq!((report.verdict, &*report.problems[0]), (Verdict::Failed, "1 replies wrong"));
        assert_eq!(report.connections.opened, if from.is_some() { 1414 } else { 0 });
        assert_eq!(report.find.unwrap().rate, None);
    }
}

#[test]
fn search_that_is_interrupted_keeps_the_best_step_and_says_so() {
    let mut holds = holds_below(f64::MAX);
    let (report, made, told) = find_with(plan(), "p99<20ms", |rate| {
        let mut outcome = holds(rate);
        outcome.ended_early = rate.filter(|&rate| rate >= 1400.0).map(|_| EndedEarly::Interrupted);
        outcome
    });
    assert_eq!((told.len(), made.len(), report.connections.opened), (1, 3, 1000));
    assert_eq!((report.verdict, report.ended_early.as_deref()), (Verdict::Invalid, Some("interrupted")));
    assert_eq!(report.problems, ["the search did not end: interrupted"]);
    let find = report.find.unwrap();
    assert_eq!((find.rate, find.low, find.high), (None, Some(1000.0), None));
}

#[test]
fn look_at_a_server_that_is_interrupted_ends_the_search() {
    let (mut holds, mut runs) = (holds_below(f64::MAX), 0);
    let (report, made, told) = find_with(plan(), "p99<20ms", |rate| {
        let mut outcome = holds(rate);
        runs += 1;
        if rate.is_some() {
            (outcome.measured, outcome.total) = (Requests::default(), Requests::default());
        } else if runs > 1 {
            outcome.ended_early = Some(EndedEarly::Interrupted);
        }
        outcome
    });
    assert_eq!((told.len(), made.len(), report.verdict), (0, 3, Verdict::Invalid));
    assert_eq!(report.problems, ["the search did not end: interrupted"]);
}

#[test]
fn step_that_says_nothing_says_why() {
    let ms = Duration::from_millis;
    for (assert, took, late, busy, steps, why) in [
        ("p99<20ms", ms(5), ms(0), 0.99, MOST_SILENT, "generator thread 0 was never idle"),
        ("p99<20ms", ms(30), Duration::from_micros(5500), 0.3, MOST_SILENT, LATE),
        // It does not go down to where a step takes too long.
        ("p99.9<20ms", ms(5), ms(0), 0.3, 2 * TRIES as usize, TOO_FEW),
    ] {
        let (report, _, told) = find_with(plan(), assert, |_| outcome(took, late, busy, 0));
        assert_eq!((told.len(), report.verdict), (steps, Verdict::Invalid), "{assert}");
        assert!(told.iter().all(|step| step.said == NOTHING && step.why.starts_with(why)), "{told:?}");
    }
}

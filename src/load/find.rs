//! The highest rate at which a run fulfils what it must: `--find 'p99<20ms'`.
//!
//! [`Search`] decides which rate is tried next and knows nothing of servers; [`find`] tries it. First a closed loop tells
//! about how much the server takes; then open loops, each at one rate, double towards the limit and halve the distance to it.
//!
//! What a step says is only believed where the generator kept up: a step that it spoilt is repeated, and where that does
//! not help, there is no answer above. A rate that fails is tried again, and the upper end of the answer once more at the
//! end, since a neighbour on the machine can spoil a step, or several.

use std::io;
use std::time::Duration;

use super::asserts::Assert;
use super::progress::Progress;
use super::result::summarize;
use super::{EndedEarly, Interrupts, Plan};
use crate::report::load::{Find, FindStep, LoadReport, Verdict};
use tidemill::schedule::Curve;

/// The closed loop at the beginning.
const LOOK: Duration = Duration::from_secs(1);
/// A step's measured part, unless it needs longer for its percentile: what is over the limit by a hundredth is seen by then.
const STEP: Duration = Duration::from_secs(3);
/// Before it: a pool has to grow, and caches to fill.
const WARM_UP: Duration = Duration::from_millis(500);
/// A step never takes longer, however few requests it has.
const LONGEST_STEP: Duration = Duration::from_secs(60);
/// What is beyond the percentile, with a margin: so many samples make it one that is told.
const SAMPLES_BEYOND: f64 = 12.0;
/// From one rate to the next while none has failed.
const GROWTH: f64 = std::f64::consts::SQRT_2;
/// The same above an upper end that held after all, at first: mostly that was only a little too low.
const SMALL_GROWTH: f64 = RESOLUTION * RESOLUTION;
/// The interval of the answer, as the ratio of its ends.
const RESOLUTION: f64 = 1.02;
/// Below this rate, in requests a second, no server is of use.
const LOWEST_RATE: f64 = 1.0;
/// So often a step that the generator spoilt is tried.
const TRIES: u32 = 3;
/// So often the search goes on above an upper end that holds after all.
const MOST_REOPENED: u32 = 4;
/// After so many steps in a row of which nothing can be said, at three rates, this machine has no answer: lower rates only take
/// longer.
const MOST_SILENT: usize = 3 * TRIES as usize;
/// A search that has not ended by then does not converge.
const MOST_STEPS: usize = 60;

/// What is shown of a step of which nothing can be said.
const NOTHING: &str = "says nothing";

/// What a step says of its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Holds,
    Fails,
    /// Nothing: the generator did not keep up, or there were too few requests.
    Nothing,
}

/// Which rate is tried next.
#[derive(Debug)]
struct Search {
    rate: f64,
    /// The highest rate that holds, and the lowest that does not.
    low: Option<f64>,
    high: Option<f64>,
    /// To the next rate while there is no `high`.
    growth: f64,
    /// From `high` on it is the generator that does not keep up.
    is_generators_limit: bool,
    /// The upper end has been tried once more, after the search had come to it.
    is_confirmed: bool,
    reopened: u32,
    /// What was said of this rate so far.
    holds: u32,
    fails: u32,
    nothing: u32,
}

impl Search {
    fn new(first: f64) -> Self {
        Self {
            rate: first.max(LOWEST_RATE),
            low: None,
            high: None,
            growth: GROWTH,
            is_generators_limit: false,
            is_confirmed: false,
            reopened: 0,
            holds: 0,
            fails: 0,
            nothing: 0,
        }
    }

    /// The rate to try; `None` when the search is over.
    fn next(&self) -> Option<f64> {
        match self.high.filter(|_| self.is_narrow()) {
            None => Some(self.rate),
            Some(high) => (!self.is_confirmed).then_some(high),
        }
    }

    fn is_narrow(&self) -> bool {
        match (self.low, self.high) {
            (Some(low), Some(high)) => high <= low * RESOLUTION,
            (None, Some(high)) => high <= LOWEST_RATE,
            _ => false,
        }
    }

    /// What is said of the upper end after the search has come to it: what failed twice may have been disturbed twice.
    fn confirm(&mut self, said: Said) {
        if said == Said::Holds && self.reopened < MOST_REOPENED {
            self.reopened += 1;
            (self.low, self.high) = (self.high, None);
            self.growth = SMALL_GROWTH;
            self.rate = self.low.map_or(self.rate, |low| low * self.growth);
            (self.is_generators_limit, self.nothing) = (false, 0);
            return;
        }
        if said == Said::Nothing && self.nothing + 1 < TRIES {
            // It may be somebody else's doing, as with any step.
            self.nothing += 1;
            return;
        }
        self.is_generators_limit &= said != Said::Fails;
        self.is_confirmed = true;
    }

    fn learn(&mut self, said: Said) {
        if self.is_narrow() {
            return self.confirm(said);
        }
        match said {
            Said::Holds => self.holds += 1,
            Said::Fails => self.fails += 1,
            Said::Nothing => self.nothing += 1,
        }
        // It holds at once, or after a doubtful failure twice; it fails twice.
        let holds = self.holds > self.fails.min(1);
        if holds {
            self.low = Some(self.rate);
        } else if self.fails >= 2 || self.nothing >= TRIES {
            self.high = Some(self.rate);
            self.is_generators_limit = self.fails < 2;
        } else {
            return;
        }
        (self.holds, self.fails, self.nothing) = (0, 0, 0);
        self.rate = match (self.low, self.high) {
            (Some(low), Some(high)) => (low * high).sqrt(),
            (Some(low), None) => {
                let rate = low * self.growth;
                self.growth = (self.growth * self.growth).min(GROWTH);
                rate
            }
            (None, Some(high)) => (high / 2.0).max(LOWEST_RATE),
            (None, None) => self.rate,
        };
    }
}

/// Looks for the highest rate that keeps `asserts`; `tell` is told of each step, `watch` how it goes.
///
/// The report is that of the run at the rate that was found, with all steps.
pub(crate) fn find(
    plan: Plan,
    asserts: &[Assert],
    interrupts: &Interrupts,
    watch: &mut dyn FnMut(&Progress),
    tell: &mut dyn FnMut(&FindStep),
) -> io::Result<LoadReport> {
    let text = asserts.iter().map(|assert| assert.text.as_str()).collect::<Vec<_>>().join(",");
    let length = plan.duration.unwrap_or(STEP);
    let limit = asserts.iter().filter_map(Assert::most_time).fold(Duration::ZERO, Duration::max);
    // What takes so much longer than it may is given up.
    let timeout = (4 * limit).max(Duration::from_secs(1)).min(plan.timeout);
    let mut plan = Plan { timeout, warm_up: plan.warm_up.max(WARM_UP), duration: Some(LOOK), ..plan };
    let first_rate = plan.rate.take();
    let mut best = summarize(&plan, None, &super::run(&plan, interrupts, watch)?, &[]);
    let mut find = Find { text, rate: None, low: None, high: None, steps: Vec::new() };
    let first = first_rate.map_or(best.requests_per_second / 2.0, |curve| curve.highest());
    let mut search = Search::new(first);
    let mut gone = best.ended_early.is_some() || best.requests.right == 0;
    let mut is_wrong = is_wrong(&best);
    while let Some(rate) = search.next().filter(|_| !gone && !is_wrong && is_worth_going_on(&find.steps)) {
        let samples = asserts.iter().map(Assert::samples_needed).fold(0.0, f64::max) * SAMPLES_BEYOND;
        let length = length.max(Duration::from_secs_f64(samples / rate)).min(LONGEST_STEP);
        plan = Plan { rate: Some(Curve::constant(rate)), duration: Some(length), ..plan };
        let outcome = super::run(&plan, interrupts, watch)?;
        let report = summarize(&plan, None, &outcome, asserts);
        let said = judge(&report, asserts);
        is_wrong = self::is_wrong(&report);
        gone = matches!(
            outcome.ended_early,
            Some(
                EndedEarly::Interrupted
                    | EndedEarly::InterruptedTwice
                    | EndedEarly::OutOf(_)
                    | EndedEarly::Failed(_)
            )
        );
        if gone {
            best.ended_early.clone_from(&report.ended_early);
            break;
        }
        search.learn(said);
        let step = FindStep {
            rate,
            seconds: report.seconds,
            values: report.asserts.iter().map(|assert| assert.value.clone()).collect(),
            p99_us: report.latency_us.p99,
            said: match said {
                Said::Holds => "holds",
                Said::Fails => "fails",
                Said::Nothing => NOTHING,
            }
            .to_owned(),
            why: report.problems.first().cloned().unwrap_or_default(),
        };
        tell(&step);
        find.steps.push(step);
        if said == Said::Holds && search.low == Some(rate) || is_wrong {
            best = report;
        }
    }
    find.low = search.low;
    find.high = search.high.filter(|_| !search.is_generators_limit);
    let done = search.next().is_none() && !gone && !is_wrong;
    find.rate = find.low.filter(|_| done && find.high.is_some());
    conclude(&mut best, find, done, gone);
    Ok(best)
}

/// Whether the search, after these steps, may still come to an end.
fn is_worth_going_on(steps: &[FindStep]) -> bool {
    let silent = steps.iter().rev().take_while(|step| step.said == NOTHING).count();
    steps.len() < MOST_STEPS && silent < MOST_SILENT
}

/// Whether the server gave a reply that it must not give at any rate.
fn is_wrong(report: &LoadReport) -> bool {
    let total = &report.total;
    total.wrong + total.reordered + total.duplicated + total.unasked > 0
}

/// What a run at one rate says.
fn judge(report: &LoadReport, asserts: &[Assert]) -> Said {
    let generator = &report.generator;
    let holds = report.asserts.iter().all(|assert| assert.holds)
        && (report.verdict != Verdict::Failed)
        && report.requests.unsent == 0;
    let is_vouched_for = generator.valid || generator.only_late && holds;
    if !is_vouched_for {
        return Said::Nothing;
    }
    // The generator's own lateness is in every latency: much of the limit must not be its.
    let limit = asserts.iter().filter_map(Assert::most_time).fold(Duration::MAX, Duration::min);
    if generator.lateness_us.p99.is_some_and(|late| late > limit.as_secs_f64() * 1e6 / 4.0) {
        return Said::Nothing;
    }
    if report.asserts.iter().any(|assert| assert.too_few) && report.total.errors() + report.total.unsent == 0
    {
        return Said::Nothing;
    }
    if holds { Said::Holds } else { Said::Fails }
}

/// What the search makes of the run that is reported.
fn conclude(report: &mut LoadReport, find: Find, done: bool, gone: bool) {
    let above =
        find.low.map_or_else(String::new, |low| format!(" above {}/s", crate::report::number(low.round())));
    if find.rate.is_some() || is_wrong(report) {
        // The verdict of that run is that of the search.
        report.find = Some(find);
        return;
    }
    if done && find.low.is_none() && find.high.is_some() {
        report.verdict = Verdict::Failed;
        report.problems = vec![format!("{} does not hold at any rate", find.text)];
    } else if gone && report.ended_early.is_none() {
        report.verdict = Verdict::Failed;
    } else if gone {
        report.verdict = report.verdict.worse(Verdict::Invalid);
        report
            .problems
            .push(format!("the search did not end: {}", report.ended_early.as_deref().unwrap_or("")));
    } else if find.steps.len() >= MOST_STEPS {
        report.verdict = Verdict::Invalid;
        report.problems =
            vec![format!("there is no answer{above}: after {MOST_STEPS} steps the search has not ended")];
    } else {
        report.verdict = Verdict::Invalid;
        report.problems = vec![format!(
            "there is no answer{above}: the generator did not keep up; give it cores or --threads, or ask for more requests a \
             step with -d"
        )];
    }
    report.find = Some(find);
}

#[cfg(test)]
mod tests {
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
        let (mut search, mut steps) = (Search::new(first), 0);
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
                assert!(
                    low < 6400.0 && 6400.0 <= high && high <= low * RESOLUTION,
                    "{first} {odd}: {search:?}"
                );
                assert!(
                    !search.is_generators_limit && (first < 3000.0 || steps < 30),
                    "{first} {odd}: {steps}"
                );
            }
        }
    }

    #[test]
    fn disturbance_that_passes_does_not_make_the_answer() {
        for (from, to) in [(1, 6), (3, 8), (2, 14), (5, 12)] {
            let (mut search, mut steps) = (Search::new(3000.0), 0);
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
        let (mut search, mut steps) = (Search::new(3000.0), 0);
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
            let mut search = Search::new(100.0);
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
            ..Search::new(100.0)
        };
        for (reopened, is_confirmed) in [(0, false), (MOST_REOPENED - 1, false), (MOST_REOPENED, true)] {
            let mut search = narrow(true, reopened);
            search.learn(Said::Holds);
            assert_eq!(search.is_confirmed, is_confirmed, "{reopened}");
            if !is_confirmed {
                assert_eq!((search.low, search.high, search.reopened), (Some(101.0), None, reopened + 1));
                assert_eq!((search.next(), search.is_generators_limit), (Some(101.0 * SMALL_GROWTH), false));
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
        assert!(is_worth_going_on(&steps) && is_worth_going_on(&[]));
        steps.push(step(NOTHING));
        assert!(!is_worth_going_on(&steps));
        steps.push(step("holds"));
        assert!(is_worth_going_on(&steps));
        steps.extend((0..MOST_STEPS).map(|_| step("fails")));
        assert!(!is_worth_going_on(&steps));
    }

    #[test]
    fn nothing_may_hold() {
        let (search, _) = search(1000.0, 0.5, f64::MAX, usize::MAX);
        assert_eq!((search.low, search.high), (None, Some(LOWEST_RATE)));
    }

    /// The report of a step whose requests all took `took`, with an own lateness of `late`, and so much of the time busy.
    fn report(took: Duration, late: Duration, busy: f64, unsent: u64, asserts: &[Assert]) -> LoadReport {
        let nanoseconds = |duration: Duration| crate::load::nanoseconds(duration);
        let (mut latencies, mut lateness) = (Latencies::new(), Latencies::new());
        latencies.record_n(nanoseconds(took), 3000);
        lateness.record_n(nanoseconds(late), 3000);
        let usage = Usage { cpu_seconds: busy * 3.0, waited_seconds: 0.0 };
        let measured =
            Requests { offered: 3000 + unsent, sent: 3000, right: 3000, unsent, ..Requests::default() };
        let outcome = Outcome {
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
        };
        let plan = Plan {
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
        };
        summarize(&plan, None, &outcome, asserts)
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
        for (unsent, said) in [(0, Said::Nothing), (1, Said::Fails)] {
            let (took, late) = (Duration::from_millis(5), Duration::from_micros(50));
            assert_eq!(judge(&report(took, late, 0.3, unsent, &asserts), &asserts), said, "{unsent}");
        }
        let mut report = report(Duration::from_millis(5), Duration::ZERO, 0.3, 0, &asserts);
        report.total.lost = 2;
        assert_eq!(judge(&report, &asserts), Said::Fails);
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
        for (low, high, done, gone, ended_early, verdict, said) in [
            (Some(90.0), Some(91.0), true, false, None, Verdict::Ok, ""),
            (None, Some(1.0), true, false, None, Verdict::Failed, "does not hold at any rate"),
            (None, None, false, true, None, Verdict::Failed, ""),
            (
                Some(90.0),
                Some(99.0),
                false,
                true,
                early.clone(),
                Verdict::Invalid,
                "did not end: interrupted",
            ),
            (Some(90.0), None, true, false, None, Verdict::Invalid, "no answer above 90/s"),
            (Some(90.0), Some(99.0), false, false, None, Verdict::Invalid, "no answer above 90/s"),
            (None, None, true, false, None, Verdict::Invalid, "no answer: the generator"),
            (None, Some(9.0), false, false, None, Verdict::Invalid, "no answer: the generator"),
        ] {
            let mut report = report(Duration::from_millis(5), Duration::ZERO, 0.3, 0, &[]);
            report.ended_early = ended_early;
            let rate = low.filter(|_| done && high.is_some());
            let find = Find { text: "p99<20ms".to_owned(), rate, low, high, steps: Vec::new() };
            conclude(&mut report, find, done, gone);
            let problems = report.problems.join("\n");
            assert_eq!(report.verdict, verdict, "{low:?} {high:?} {done} {gone}: {problems}");
            assert!(problems.contains(said) && said.is_empty() == problems.is_empty(), "{said}: {problems}");
            assert!(report.find.is_some());
        }
    }
}

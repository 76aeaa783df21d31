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
mod tests;

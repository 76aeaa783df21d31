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
use super::{EndedEarly, Interrupts, Outcome, Plan};
use crate::report::load::{Find, FindStep, LoadReport, Verdict};
use tidemill::schedule::Curve;

/// The closed loop at the beginning.
const LOOK: Duration = Duration::from_secs(1);
/// A step's measured part, unless it needs longer for its percentile: what is over the limit by a hundredth is seen by then.
const STEP: Duration = Duration::from_secs(3);
/// Before it: a pool has to grow, and caches to fill.
const WARM_UP: Duration = Duration::from_millis(500);
/// A step never takes longer, unless by `-d`, however few requests it has.
const LONGEST_STEP: Duration = Duration::from_secs(60);
/// Nor does the search go down to rates at which one takes longer than this: where it fails above, that is known by then.
const LONGEST_STEP_DOWN: Duration = Duration::from_secs(10);
/// After so many seconds of steps the search is given up: people wait for it. Longer steps by `-d` get as much more.
const LONGEST_SEARCH_SECONDS: f64 = 150.0;
/// A search that comes to an end near the rate at which it begins takes more steps than this.
const FEWEST_STEPS: f64 = 10.0;
/// What is beyond the percentile, with a margin: so many samples make it one that is told.
const SAMPLES_BEYOND: f64 = 12.0;
/// From one rate to the next while none has failed.
const GROWTH: f64 = std::f64::consts::SQRT_2;
/// The same above an upper end that held after all, at first: mostly that was only a little too low.
const SMALL_GROWTH: f64 = RESOLUTION * RESOLUTION;
/// From one rate down to the next while all fail, at first; its square at the next, and so on.
const FALL: f64 = 2.0;
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

/// What is shown of a step of which nothing can be said, and why, where it is not the generator.
const NOTHING: &str = "says nothing";
const TOO_FEW: &str = "too few requests to tell";
/// Why nothing can be said where the run itself is valid.
const LATE: &str = "the generator's own lateness is much of what is allowed";

/// What a step says of its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Holds,
    Fails,
    /// Nothing: the generator did not keep up.
    Nothing,
    /// Nothing either: there were too few requests.
    TooFew,
}

/// Whether a search was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    No,
    /// By an interrupt, or for want of something of the generator's own.
    Early,
    /// The server does not answer any more.
    Gone,
}

impl Cut {
    fn of(outcome: &Outcome) -> Self {
        match outcome.ended_early {
            Some(EndedEarly::Gone) => Self::Gone,
            Some(_) => Self::Early,
            None if outcome.total.right == 0 => Self::Gone,
            None => Self::No,
        }
    }
}

/// Which rate is tried next.
#[derive(Debug)]
struct Search {
    rate: f64,
    /// The highest rate that holds, and the lowest that does not.
    low: Option<f64>,
    high: Option<f64>,
    /// The lowest rate that fails by the server's fault, also where the generator does not keep up with less.
    failed: Option<f64>,
    /// Below this rate it is not looked for.
    lowest: f64,
    /// To the next rate while there is no `high`, and while there is no `low`.
    growth: f64,
    fall: f64,
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
    /// From `first` on, and not below `lowest` unless it begins there.
    fn new(first: f64, lowest: f64) -> Self {
        let rate = first.max(LOWEST_RATE);
        Self {
            rate,
            low: None,
            high: None,
            failed: None,
            lowest: lowest.clamp(LOWEST_RATE, rate),
            growth: GROWTH,
            fall: FALL,
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
            (None, Some(high)) => high <= self.lowest,
            _ => false,
        }
    }

    /// What is said of the upper end after the search has come to it: what failed twice may have been disturbed twice.
    fn confirm(&mut self, said: Said) {
        if said == Said::Holds && self.reopened < MOST_REOPENED {
            self.reopened += 1;
            (self.low, self.high) = (self.high, None);
            self.failed = self.failed.filter(|&failed| self.low < Some(failed));
            self.growth = SMALL_GROWTH;
            self.rate = self.low.map_or(self.rate, |low| low * self.growth);
            (self.is_generators_limit, self.nothing) = (false, 0);
            return;
        }
        if matches!(said, Said::Nothing | Said::TooFew) && self.nothing + 1 < TRIES {
            // It may be somebody else's doing, as with any step.
            self.nothing += 1;
            return;
        }
        if said == Said::Fails {
            self.is_generators_limit = false;
            self.failed = self.high;
        }
        self.is_confirmed = true;
    }

    fn learn(&mut self, said: Said) {
        if self.is_narrow() {
            return self.confirm(said);
        }
        match said {
            Said::Holds => self.holds += 1,
            Said::Fails => self.fails += 1,
            Said::Nothing | Said::TooFew => self.nothing += 1,
        }
        // It holds at once, or after a doubtful failure twice; it fails twice.
        let holds = self.holds > self.fails.min(1);
        if holds {
            self.low = Some(self.rate);
        } else if self.fails >= 2 || self.nothing >= TRIES {
            self.high = Some(self.rate);
            self.is_generators_limit = self.fails < 2;
            if self.fails >= 2 {
                self.failed = self.high;
            }
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
            (None, Some(high)) => {
                let rate = (high / self.fall).max(self.lowest);
                self.fall *= self.fall;
                rate
            }
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
    find_by(plan, asserts, &mut |plan| super::run(plan, interrupts, watch), tell)
}

/// The same, by whatever makes a run.
fn find_by(
    plan: Plan,
    asserts: &[Assert],
    run: &mut dyn FnMut(&Plan) -> io::Result<Outcome>,
    tell: &mut dyn FnMut(&FindStep),
) -> io::Result<LoadReport> {
    let text = asserts.iter().map(|assert| assert.text.as_str()).collect::<Vec<_>>().join(",");
    let length = plan.duration.unwrap_or(STEP);
    let limit = asserts.iter().filter_map(Assert::most_time).fold(Duration::ZERO, Duration::max);
    // What takes so much longer than it may is given up.
    let timeout = (4 * limit).max(Duration::from_secs(1)).min(plan.timeout);
    let mut plan = Plan { timeout, warm_up: plan.warm_up.max(WARM_UP), duration: Some(LOOK), ..plan };
    let first_rate = plan.rate.take();
    let outcome = run(&plan)?;
    let mut cut = Cut::of(&outcome);
    let mut best = summarize(&plan, None, &outcome, &[]);
    let mut find = Find { text, rate: None, low: None, high: None, steps: Vec::new() };
    let is_given = first_rate.is_some();
    let first = first_rate.map_or(best.requests_per_second / 2.0, |curve| curve.highest());
    let samples = asserts.iter().map(Assert::samples_needed).fold(0.0, f64::max) * SAMPLES_BEYOND;
    let mut search = Search::new(first, samples / LONGEST_STEP_DOWN.max(length).as_secs_f64());
    let most_seconds = LONGEST_SEARCH_SECONDS * length.div_duration_f64(STEP).max(1.0);
    let mut is_wrong = is_wrong(&best);
    // Without the time in which the last replies were waited for.
    let highest = (best.requests.right as f64 / LOOK.as_secs_f64()).max(search.rate);
    let too_low = too_low(is_given.then_some(search.rate), highest, samples, length, most_seconds);
    if let Some(rate) = too_low
        && cut == Cut::No
        && !is_wrong
    {
        best.verdict = best.verdict.worse(Verdict::Invalid);
        best.problems.push(too_rare(&find.text, rate, samples, search.rate));
        best.find = Some(find);
        return Ok(best);
    }
    while let Some(rate) = search.next()
        && cut == Cut::No
        && !is_wrong
        && is_worth_going_on(&find.steps, most_seconds)
    {
        let length = length.max(Duration::from_secs_f64(samples / rate).min(LONGEST_STEP));
        plan = Plan { rate: Some(Curve::constant(rate)), duration: Some(length), ..plan };
        let outcome = run(&plan)?;
        let report = summarize(&plan, None, &outcome, asserts);
        let said = judge(&report, asserts);
        is_wrong = self::is_wrong(&report);
        cut = Cut::of(&outcome);
        let mut ended_early = report.ended_early.clone();
        if cut == Cut::Gone && !is_wrong {
            // At a rate that is too high for it nothing may be answered: is it still there?
            plan = Plan { rate: None, duration: Some(LOOK), ..plan };
            let look = run(&plan)?;
            cut = Cut::of(&look);
            ended_early = look.ended_early.as_ref().map(EndedEarly::to_string);
            if cut == Cut::Gone {
                best.problems = vec![format!("{}, after the step at {rate:.0}/s", EndedEarly::Gone)];
            }
        }
        if cut != Cut::No && !is_wrong {
            best.ended_early = ended_early;
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
                Said::Nothing | Said::TooFew => NOTHING,
            }
            .to_owned(),
            why: match said {
                Said::TooFew => TOO_FEW.to_owned(),
                Said::Nothing => report.generator.reasons.first().map_or(LATE, String::as_str).to_owned(),
                _ => report.problems.first().cloned().unwrap_or_default(),
            },
        };
        tell(&step);
        find.steps.push(step);
        if said == Said::Holds && search.low == Some(rate) || is_wrong {
            best = report;
        }
    }
    find.low = search.low;
    find.high = search.failed;
    let done = search.next().is_none() && cut == Cut::No && !is_wrong;
    find.rate = find.low.filter(|_| done && find.high.is_some() && !search.is_generators_limit);
    conclude(&mut best, find, done, cut);
    Ok(best)
}

/// The rate, of that at which the search is told to begin and the highest there may be, at which a step has too few `samples` in
/// its time, or ten steps have in that of the search.
fn too_low(
    given: Option<f64>,
    highest: f64,
    samples: f64,
    length: Duration,
    most_seconds: f64,
) -> Option<f64> {
    let longest = LONGEST_STEP.max(length).as_secs_f64();
    let is_below = |seconds: f64| move |rate: &f64| samples / rate > seconds;
    let given = given.filter(is_below(longest));
    given.or(Some(highest).filter(is_below(longest.min(most_seconds / FEWEST_STEPS))))
}

/// Why a search is not begun whose steps would have to be too long at `rate`, and how long they must be where it begins.
fn too_rare(text: &str, rate: f64, samples: f64, first: f64) -> String {
    let seconds = |rate: f64| format!("{}s", (samples / rate).ceil());
    let (told, takes, longer) = (crate::report::number(rate.round()), seconds(rate), seconds(first));
    format!(
        "{text} cannot be judged in the time: at {told}/s a step takes {takes} until so rare a percentile is known; allow for \
         it with -d {longer}, or ask for one that is less rare"
    )
}

/// Whether the search, after these steps, may still come to an end within `most_seconds`.
fn is_worth_going_on(steps: &[FindStep], most_seconds: f64) -> bool {
    let silent = steps.iter().rev().take_while(|step| step.said == NOTHING).count();
    let took: f64 = steps.iter().map(|step| step.seconds).sum();
    steps.len() < MOST_STEPS && silent < MOST_SILENT && took < most_seconds
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
        return Said::TooFew;
    }
    if holds { Said::Holds } else { Said::Fails }
}

/// What the search makes of the run that is reported.
fn conclude(report: &mut LoadReport, find: Find, done: bool, cut: Cut) {
    let told = |rate: f64| format!("{}/s", crate::report::number(rate.round()));
    let above = find.low.map_or_else(String::new, |low| format!(" above {}", told(low)));
    let fails = find.high.map_or_else(String::new, |high| format!("; it does not hold at {}", told(high)));
    let last = find.steps.last();
    let no_answer = |why: &str, advice: &str| format!("there is no answer{above}: {why}{fails}{advice}");
    if find.rate.is_some() || is_wrong(report) {
        // The verdict of that run is that of the search.
        report.find = Some(find);
        return;
    }
    if cut == Cut::Gone {
        report.verdict = Verdict::Failed;
    } else if cut == Cut::Early {
        report.verdict = report.verdict.worse(Verdict::Invalid);
        report
            .problems
            .push(format!("the search did not end: {}", report.ended_early.as_deref().unwrap_or("")));
    } else if let (true, None, Some(high)) = (done, find.low, find.high) {
        report.verdict = Verdict::Failed;
        let at = if high > LOWEST_RATE { format!("at {}", told(high)) } else { "at any rate".to_owned() };
        let below = if last.is_some_and(|step| step.said == NOTHING) {
            "; below that the generator did not keep up".to_owned()
        } else if high > LOWEST_RATE {
            "; below that a step has too few requests to tell, and a longer -d goes further".to_owned()
        } else {
            String::new()
        };
        report.problems = vec![format!("{} does not hold {at}{below}", find.text)];
    } else {
        report.verdict = Verdict::Invalid;
        report.problems = vec![if find.steps.len() >= MOST_STEPS {
            no_answer(&format!("after {MOST_STEPS} steps the search has not ended"), "")
        } else if last.is_some_and(|step| step.said != NOTHING) && !done {
            no_answer("the search took too long", "; longer steps by -d give it more time")
        } else if last.is_some_and(|step| step.why == TOO_FEW) {
            no_answer(&format!("there were {TOO_FEW}"), "; ask for more in a step with -d")
        } else {
            no_answer("the generator did not keep up", "; give it cores or --threads")
        }];
    }
    report.find = Some(find);
}

#[cfg(test)]
mod tests;

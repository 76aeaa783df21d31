//! What a row of the scorecard found, and whether that is good enough.

use serde::Serialize;

pub(crate) use crate::goal::{Goal, Verdict};
use crate::stats::Estimate;

/// Seconds since the start, requests under way, workers.
pub(crate) type Moment = (f64, f64, f64);
pub(crate) type Series = Vec<Moment>;

/// One line of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) number: u32,
    pub(crate) workload: &'static str,
    /// `R` real threads in one process, `L` over loopback from another process.
    pub(crate) layer: char,
    pub(crate) checks: Vec<Check>,
    /// What to draw, if it is over time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) series: Series,
}

/// A row without its number, which is that of who measured it.
pub(crate) fn row(workload: &'static str, checks: Vec<Check>) -> Row {
    Row { number: 0, workload, layer: ' ', checks, series: Vec::new() }
}

/// One figure with its goal.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: Unit,
    pub(crate) goal: Goal,
    /// The ends of the 95 % interval of a ratio's median, if there were rounds enough.
    pub(crate) interval: Option<(f64, f64)>,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    /// What is counted must hold exactly.
    Count,
    /// Milliseconds. Beyond its goal it is late; beyond three times that it fails.
    Milliseconds,
    /// Of two things measured in turn. Fails where its interval lies wholly beyond the goal.
    Ratio,
}

impl Check {
    /// What is counted.
    pub(crate) fn count(what: impl Into<String>, value: f64, goal: Goal) -> Check {
        let verdict = if goal.holds(value) { Verdict::Met } else { Verdict::Failed };
        Check { what: what.into(), value, unit: Unit::Count, goal, interval: None, verdict }
    }

    /// What this machine does not let be measured, and why.
    pub(crate) fn skipped(what: String) -> Check {
        let (value, goal) = (f64::NAN, Goal::AtMost(0.0));
        Check { what, value, unit: Unit::Count, goal, interval: None, verdict: Verdict::Skipped }
    }

    /// A time that must be short.
    pub(crate) fn time(what: impl Into<String>, milliseconds: f64, most: f64) -> Check {
        let verdict = match milliseconds {
            value if value <= most => Verdict::Met,
            value if value <= 3.0 * most => Verdict::Missed,
            _ => Verdict::Failed,
        };
        let (goal, unit) = (Goal::AtMost(most), Unit::Milliseconds);
        Check { what: what.into(), value: milliseconds, unit, goal, interval: None, verdict }
    }

    /// The median of the ratios of `ours` to `theirs`, round by round.
    pub(crate) fn ratio(what: impl Into<String>, ours: &[f64], theirs: &[f64], goal: Goal) -> Check {
        let estimate = Estimate::of_ratios(ours, theirs);
        let value = estimate.map_or(f64::NAN, |estimate| estimate.median);
        let (interval, verdict) = (estimate.and_then(|estimate| estimate.interval), goal.judge(estimate));
        Check { what: what.into(), value, unit: Unit::Ratio, goal, interval, verdict }
    }

    /// The value as people read it.
    pub(crate) fn shown(&self) -> String {
        if self.verdict == Verdict::Skipped {
            return "-".to_owned();
        }
        let number = |value: f64| match self.unit {
            Unit::Count if value.fract().abs() < 1e-9 => format!("{value:.0}"),
            Unit::Milliseconds => format!("{value:.2} ms"),
            Unit::Count | Unit::Ratio => format!("{value:.3}"),
        };
        let interval = self.interval.map(|(low, high)| format!(" [{}, {}]", number(low), number(high)));
        number(self.value) + &interval.unwrap_or_default()
    }

    /// The goal as people read it.
    pub(crate) fn goal_shown(&self) -> String {
        let unit = if self.unit == Unit::Milliseconds { " ms" } else { "" };
        format!("{}{unit}", self.goal)
    }
}

/// The q-quantile of `values`, by nearest rank; 0 of none.
pub(crate) fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the slice")]
    let place = ((values.len() as f64 * q).ceil() as usize).saturating_sub(1);
    values.get(place).copied().unwrap_or_default()
}

//! What a figure has to be, and what was measured of it: for the targets of the benchmark and the rows of the scorecard.

use std::fmt;

use serde::Serialize;

use crate::report::page::{self, Tone};
use crate::stats::Estimate;

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    /// No lower than this.
    AtLeast(f64),
    /// No higher than this.
    AtMost(f64),
}

/// What a measurement says of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// It was reached.
    Met,
    /// It was not, but it may be chance, or is within what a time may be late.
    Missed,
    /// It was not reached.
    Failed,
    /// This machine does not let it be measured.
    Skipped,
}

impl Goal {
    /// Whether `value` reaches it.
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Goal::AtLeast(least) => value >= least,
            Goal::AtMost(most) => value <= most,
        }
    }

    /// What the median of several measurements says of it: it fails where the interval lies wholly beyond.
    pub(crate) fn judge(self, measured: Option<Estimate>) -> Verdict {
        let Some(Estimate { median, interval, .. }) = measured else { return Verdict::Failed };
        match interval {
            Some((low, high)) if !self.holds(low) && !self.holds(high) => Verdict::Failed,
            _ if self.holds(median) => Verdict::Met,
            _ => Verdict::Missed,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::AtMost(0.0) => write!(out, "0"),
            Goal::AtLeast(least) => write!(out, "≥ {least}"),
            Goal::AtMost(most) => write!(out, "≤ {most}"),
        }
    }
}

impl Verdict {
    /// The verdict in a word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        }
    }
}

/// What became of all goals, in a line; `broken` is what could not be measured, and why.
pub(crate) fn summary(verdicts: impl Iterator<Item = Verdict> + Clone, broken: Vec<String>) -> page::Verdict {
    let count = |wanted| verdicts.clone().filter(|verdict| *verdict == wanted).count();
    let (met, missed, failed) =
        (count(Verdict::Met), count(Verdict::Missed), count(Verdict::Failed) + broken.len());
    let tone = if failed == 0 { Tone::Good } else { Tone::Bad };
    page::Verdict { text: format!("{met} met, {missed} missed, {failed} failed"), tone, reasons: broken }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goal_fails_only_when_the_interval_lies_wholly_beyond_it() {
        let judge = |goal: Goal, median, interval| goal.judge(Some(Estimate { median, interval, values: 7 }));
        let most = Goal::AtMost(1.0);
        assert_eq!(judge(most, 0.99, Some((0.9, 1.2))), Verdict::Met);
        assert_eq!(judge(most, 1.05, Some((0.9, 1.2))), Verdict::Missed);
        assert_eq!(judge(most, 1.05, Some((1.01, 1.2))), Verdict::Failed);
        assert_eq!(judge(most, 1.05, None), Verdict::Missed);
        let least = Goal::AtLeast(1.0);
        assert_eq!(judge(least, 1.0, Some((1.0, 1.1))), Verdict::Met);
        assert_eq!(judge(least, 0.95, Some((0.9, 1.0))), Verdict::Missed);
        assert_eq!(judge(least, 0.95, Some((0.9, 0.99))), Verdict::Failed);
        assert_eq!(least.judge(None), Verdict::Failed);
    }
}

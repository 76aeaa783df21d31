//! Where to get to: the targets, and whether measurements say that they were met.

use std::fmt;

use serde::Serialize;

use crate::measure::Metric;
use crate::results::{Results, show_ratio};
use crate::server::OURS;
use crate::stats::Estimate;

/// What a ratio has to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// No lower than this.
    AtLeast(f64),
    /// No higher than this.
    AtMost(f64),
}

/// What a server is compared with.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// Another server in the same rounds.
    Server(&'static str),
    /// The rate that the handler allows.
    Ideal,
}

/// A goal for one figure under one workload.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Target {
    /// Name of the workload.
    pub workload: &'static str,
    /// The figure.
    pub metric: Metric,
    /// Whose.
    pub server: &'static str,
    /// What it is compared with.
    pub against: Against,
    /// What the ratio has to be.
    pub goal: Goal,
}

/// What measurements say of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The median reaches the goal.
    Met,
    /// The median does not, but its interval does: the difference may be chance.
    WithinNoise,
    /// The interval lies wholly beyond the goal.
    Missed,
    /// There were too few rounds for an interval, and so for a verdict.
    TooFewRounds,
}

/// A target and what measurements say of it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Judged {
    /// The target.
    pub target: Target,
    /// The ratio that was measured.
    pub ratio: Estimate,
    /// What it says.
    pub verdict: Verdict,
}

const fn target(workload: &'static str, metric: Metric, against: &'static str, goal: Goal) -> Target {
    Target { workload, metric, server: OURS, against: Against::Server(against), goal }
}

/// The targets, in the order of the tables.
pub const TARGETS: &[Target] = {
    use Goal::{AtLeast, AtMost};
    use Metric::{Cpu, P99, Rate};
    &[
        target("1x1", Rate, "tokio", AtLeast(0.85)),
        target("1x1", Cpu, "tokio", AtMost(1.4)),
        target("1x1", P99, "tokio", AtMost(1.3)),
        target("64x1", Rate, "tokio", AtLeast(1.05)),
        target("64x1", Cpu, "tokio", AtMost(1.0)),
        target("64x1", P99, "tokio", AtMost(0.7)),
        target("64x1", Cpu, "floor", AtMost(1.15)),
        target("1000x1", Rate, "tokio", AtLeast(1.0)),
        target("1000x1", Cpu, "tokio", AtMost(1.05)),
        target("1000x1", P99, "tokio", AtMost(0.4)),
        target("1000x1", Cpu, "floor", AtMost(1.15)),
        target("64x16", Rate, "tokio", AtLeast(1.15)),
        target("64x16", Cpu, "tokio", AtMost(0.95)),
        target("64x16", P99, "tokio", AtMost(0.6)),
        target("64x16", Cpu, "floor", AtMost(1.15)),
        target("1000x16", Rate, "tokio", AtLeast(1.0)),
        target("1000x16", Cpu, "tokio", AtMost(0.95)),
        target("1000x16", P99, "tokio", AtMost(0.4)),
        target("1000x16", Cpu, "floor", AtMost(1.15)),
        target("reconnect", Cpu, "tokio", AtMost(1.0)),
        Target {
            workload: "blocking",
            metric: Rate,
            server: OURS,
            against: Against::Ideal,
            goal: AtLeast(0.97),
        },
        target("blocking", P99, "channel", AtMost(1.0)),
        Target {
            workload: "64x1",
            metric: Rate,
            server: "tidemill-max64",
            against: Against::Server("tidemill-max4"),
            goal: AtLeast(0.97),
        },
    ]
};

impl Goal {
    fn reached_by(self, value: f64) -> bool {
        match self {
            Goal::AtLeast(goal) => value >= goal,
            Goal::AtMost(goal) => value <= goal,
        }
    }

    fn verdict(self, ratio: Estimate) -> Verdict {
        match ratio.interval {
            None => Verdict::TooFewRounds,
            Some(_) if self.reached_by(ratio.median) => Verdict::Met,
            Some((low, high)) if self.reached_by(low) || self.reached_by(high) => Verdict::WithinNoise,
            Some(_) => Verdict::Missed,
        }
    }
}

impl Target {
    /// What is compared with what.
    pub fn pair(&self) -> String {
        match self.against {
            Against::Server(other) => format!("{} / {other}", self.server),
            Against::Ideal => format!("{} / ideal", self.server),
        }
    }

    /// What `results` say of it; none if it was not measured.
    pub fn judge(&self, results: &Results) -> Option<Judged> {
        let measured = results.measured(self.workload)?;
        let ratio = match self.against {
            Against::Server(other) => measured.ratio(self.server, other, self.metric),
            Against::Ideal => measured.share_of_ideal(self.server),
        }?;
        Some(Judged { target: *self, ratio, verdict: self.goal.verdict(ratio) })
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::AtLeast(goal) => write!(out, "≥ {goal:.2}"),
            Goal::AtMost(goal) => write!(out, "≤ {goal:.2}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Target { workload, metric, goal, .. } = self;
        write!(out, "{workload:10}{:12}{:32}{goal}", metric.name(), self.pair())
    }
}

impl Verdict {
    /// The verdict in words.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::WithinNoise => "within noise",
            Verdict::Missed => "MISSED",
            Verdict::TooFewRounds => "too few rounds",
        }
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}{:>20}   {}", self.target, show_ratio(Some(self.ratio)), self.verdict.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;

    fn verdict(goal: Goal, median: f64, interval: Option<(f64, f64)>) -> Verdict {
        goal.verdict(Estimate { median, interval, values: 7 })
    }

    #[test]
    fn target_is_missed_only_when_the_interval_lies_wholly_beyond_it() {
        let most = Goal::AtMost(1.0);
        assert_eq!(verdict(most, 0.99, Some((0.9, 1.2))), Verdict::Met);
        assert_eq!(verdict(most, 1.05, Some((0.9, 1.2))), Verdict::WithinNoise);
        assert_eq!(verdict(most, 1.05, Some((1.01, 1.2))), Verdict::Missed);
        assert_eq!(verdict(most, 1.05, None), Verdict::TooFewRounds);
        let least = Goal::AtLeast(1.0);
        assert_eq!(verdict(least, 1.0, Some((1.0, 1.1))), Verdict::Met);
        assert_eq!(verdict(least, 0.95, Some((0.9, 1.0))), Verdict::WithinNoise);
        assert_eq!(verdict(least, 0.95, Some((0.9, 0.99))), Verdict::Missed);
    }

    #[test]
    fn targets_name_workloads_and_servers_that_are_measured() {
        for target in TARGETS {
            let workload = Workload::find(target.workload).unwrap();
            assert!(workload.servers.contains(&target.server), "{target}");
            match target.against {
                Against::Server(other) => assert!(workload.servers.contains(&other), "{target}"),
                Against::Ideal => assert!(workload.ideal_rate().is_some(), "{target}"),
            }
        }
    }
}

//! Where to get to: the targets, and whether measurements say that they were met.

use serde::Serialize;

use crate::goal::Goal::{self, AtLeast, AtMost};
use crate::goal::Verdict;
use crate::measure::Metric::{self, Cpu, P50, P99, Rate};
use crate::results::Results;
use crate::server::{INLINE, OURS};
use crate::stats::Estimate;

/// What a server is compared with whose handler sets the rate: the rate that it allows.
const IDEAL: &str = "ideal";

/// A goal for one figure under one workload.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) workload: &'static str,
    pub(crate) metric: Metric,
    pub(crate) server: &'static str,
    /// The server in the same rounds that it is compared with, or [`IDEAL`].
    pub(crate) against: &'static str,
    /// What the ratio has to be.
    pub(crate) goal: Goal,
}

/// A target and what measurements say of it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Judged {
    pub(crate) target: Target,
    pub(crate) ratio: Estimate,
    pub(crate) verdict: Verdict,
}

const fn ours(workload: &'static str, metric: Metric, against: &'static str, goal: Goal) -> Target {
    Target { workload, metric, server: OURS, against, goal }
}

/// Where requests are handled on the event loop.
const fn inline(workload: &'static str, metric: Metric, goal: Goal) -> Target {
    Target { server: INLINE, ..ours(workload, metric, "floor", goal) }
}

/// The targets, in the order of the tables.
pub(crate) const TARGETS: &[Target] = &[
    ours("1x1", Rate, "tokio", AtLeast(0.85)),
    ours("1x1", Cpu, "tokio", AtMost(1.4)),
    ours("1x1", P99, "tokio", AtMost(1.3)),
    ours("64x1", Rate, "tokio", AtLeast(1.05)),
    ours("64x1", Cpu, "tokio", AtMost(1.0)),
    ours("64x1", P99, "tokio", AtMost(0.7)),
    ours("64x1", Cpu, "floor", AtMost(1.15)),
    ours("1000x1", Rate, "tokio", AtLeast(1.0)),
    ours("1000x1", Cpu, "tokio", AtMost(1.05)),
    ours("1000x1", P99, "tokio", AtMost(0.4)),
    ours("1000x1", Cpu, "floor", AtMost(1.15)),
    ours("64x16", Rate, "tokio", AtLeast(1.15)),
    ours("64x16", Cpu, "tokio", AtMost(0.95)),
    ours("64x16", P99, "tokio", AtMost(0.6)),
    ours("64x16", Cpu, "floor", AtMost(1.15)),
    ours("1000x16", Rate, "tokio", AtLeast(1.0)),
    ours("1000x16", Cpu, "tokio", AtMost(0.95)),
    ours("1000x16", P99, "tokio", AtMost(0.4)),
    ours("1000x16", Cpu, "floor", AtMost(1.15)),
    ours("reconnect", Cpu, "tokio", AtMost(1.0)),
    ours("blocking", Rate, IDEAL, AtLeast(0.97)),
    ours("blocking", P99, "channel", AtMost(1.0)),
    inline("1x1", Cpu, AtMost(1.05)),
    inline("1x1", P50, AtMost(1.05)),
    inline("64x1", Cpu, AtMost(1.05)),
    inline("1000x1", Cpu, AtMost(1.05)),
    inline("64x16", Cpu, AtMost(1.05)),
    inline("1000x16", Cpu, AtMost(1.05)),
    inline("loops-64x1", Rate, AtLeast(1.0)),
    inline("loops-64x16", Rate, AtLeast(1.0)),
    Target { server: "tidemill-max64", ..ours("64x1", Rate, "tidemill-max4", AtLeast(0.97)) },
];

impl Target {
    /// What `results` say of it; none if it was not measured.
    pub(crate) fn judge(&self, results: &Results) -> Option<Judged> {
        let measured = results.measured(self.workload)?;
        let ratio = match self.against {
            IDEAL => measured.share_of_ideal(self.server),
            other => measured.ratio(self.server, other, self.metric),
        }?;
        Some(Judged { target: *self, ratio, verdict: self.goal.judge(Some(ratio)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;

    #[test]
    fn targets_name_workloads_and_servers_that_are_measured() {
        for target in TARGETS {
            let workload = Workload::named(target.workload).unwrap();
            assert!(workload.servers.contains(&target.server), "{target:?}");
            match target.against {
                IDEAL => assert!(workload.ideal_rate().is_some(), "{target:?}"),
                other => assert!(workload.servers.contains(&other), "{target:?}"),
            }
        }
    }
}

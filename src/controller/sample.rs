//! What goes into the rule and what comes out of it: plain data.

use std::fmt;
use std::time::Duration;

use super::DRAIN_TARGET;

/// Checked limits of the pool: `1 <= min <= max`, `keep_alive` not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub(super) min: usize,
    pub(super) max: usize,
    pub(super) tolerance: usize,
    pub(super) keep_alive: Duration,
}

impl Policy {
    /// A policy. What is out of range is moved into it: `min` to at least 1, `max` to at least `min`, `keep_alive` to at
    /// least 1 ms.
    pub fn new(min: usize, max: usize, tolerance: usize, keep_alive: Duration) -> Self {
        let min = min.max(1);
        Policy { min, max: max.max(min), tolerance, keep_alive: keep_alive.max(Duration::from_millis(1)) }
    }

    /// Least workers at any time.
    pub fn min(&self) -> usize {
        self.min
    }

    /// Most workers at any time.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The dead band in workers.
    pub fn tolerance(&self) -> usize {
        self.tolerance
    }

    /// The window whose highest demand the pool shrinks to.
    pub fn keep_alive(&self) -> Duration {
        self.keep_alive
    }
}

/// What the controller looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Time since some fixed start. Never goes back.
    pub now: Duration,
    /// Workers that the pool has or is starting.
    pub workers: usize,
    /// Jobs that no worker has taken yet.
    pub waiting: usize,
    /// How long the oldest of them has waited.
    pub oldest_wait: Duration,
    /// Workers that run a job.
    pub busy: usize,
    /// How many of the busy ones are blocked rather than running or waiting for a CPU. `None`: not looked at, or not known.
    pub blocked: Option<usize>,
    /// CPUs that this process may use.
    pub cores: usize,
    /// How many of the busy ones have had their job for [`DRAIN_TARGET`] or longer.
    pub old: usize,
    /// How many have for [`Policy::lost_after`] or longer.
    pub lost: usize,
    /// How long the one that has had its job for longest has had it.
    pub oldest_age: Duration,
    /// Recent mean wall time of a job. `None` until one has finished.
    pub mean: Option<Duration>,
    /// Most jobs that waited or ran at the same time since the previous sample.
    pub peak: usize,
    /// How long it is since a worker last took a job.
    pub stalled: Duration,
    /// When the pool last had started the workers it was to grow by.
    pub grown_at: Duration,
}

impl Sample {
    /// The workers wanted for the jobs that wait and run, blocked or not.
    pub fn weighed(&self) -> usize {
        let old = self.old.min(self.busy);
        let standstill = if self.starved() { self.stalled } else { Duration::ZERO };
        let others = (self.waiting + self.busy).saturating_sub(old);
        old + weigh(others, self.mean.unwrap_or(self.oldest_age).max(standstill))
    }

    /// Work waits and nobody is free to take it.
    pub(super) fn starved(&self) -> bool {
        self.waiting > 0 && self.busy >= self.workers
    }
}

/// The workers that would finish `jobs` of `time_per_job` each within [`DRAIN_TARGET`]: never more than the jobs.
pub fn weigh(jobs: usize, time_per_job: Duration) -> usize {
    let work = nanos(time_per_job).saturating_mul(jobs as u64);
    let workers = work.div_ceil(nanos(DRAIN_TARGET));
    usize::try_from(workers).unwrap_or(usize::MAX).min(jobs)
}

/// Saturates after 584 years.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Why a verdict is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Reason {
    /// Demand and pool differ by the tolerance or less, or the window still holds a higher demand.
    Steady,
    /// More is wanted, but the workers want a CPU: more of them would not help.
    CpuBound,
    /// Demand is above the pool by more than the tolerance.
    Demand,
    /// Work has waited for too long.
    Valve,
    /// The highest demand within the window is below the pool by more than the tolerance.
    Surplus,
    /// The pool was outside of its limits.
    Limits,
}

impl Reason {
    /// The word for logs and statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Steady => "steady",
            Reason::CpuBound => "cpu_bound",
            Reason::Demand => "demand",
            Reason::Valve => "valve",
            Reason::Surplus => "surplus",
            Reason::Limits => "limits",
        }
    }
}

/// What the controller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Workers that the pool should have: `min <= target <= max`.
    pub target: usize,
    /// Workers wanted for the present work, after blocking was looked at. May be above `max`.
    pub demand: usize,
    /// Why.
    pub reason: Reason,
    /// When to ask again even if nothing happens. `None`: only when work waits.
    pub check_after: Option<Duration>,
}

/// A change of the pool's size, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Decision {
    /// Time since the server started; serialized as `t` in seconds.
    #[cfg_attr(feature = "serde", serde(rename = "t", serialize_with = "seconds"))]
    pub at: Duration,
    /// Workers wanted for the work that was there.
    pub demand: usize,
    /// Jobs that no worker had taken.
    pub waiting: usize,
    /// Workers that ran a job.
    pub busy: usize,
    /// How many of those were blocked, if it was looked at.
    pub blocked: Option<usize>,
    /// Workers before.
    pub from: usize,
    /// Workers after. Fewer than were wanted if the system refused threads.
    pub to: usize,
    /// Why.
    pub reason: Reason,
}

/// The decision and its reason in words.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decision { demand, waiting, busy, from, to, reason, .. } = self;
        let verb = if to > from { "grew" } else { "shrank" };
        write!(f, "{verb} from {from} to {to}: ")?;
        match reason {
            Reason::Demand => {
                write!(f, "the work was worth {demand} ({busy} busy, {waiting} waiting)")
            }
            Reason::Valve => write!(f, "work waited for too long ({busy} busy, {waiting} waiting)"),
            Reason::Surplus => {
                write!(f, "no more than {to} were wanted within the keep-alive time")
            }
            Reason::Limits => write!(f, "it was outside of its limits"),
            // Neither changes the size.
            Reason::CpuBound | Reason::Steady => write!(f, "as it was"),
        }
    }
}

#[cfg(feature = "serde")]
pub(crate) fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

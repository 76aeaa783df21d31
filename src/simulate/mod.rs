//! The pool in simulated time: what would it have done with this load?
//!
//! [`run`] drives the server's own [`controller::decide`](crate::controller::decide), or the rule of another system,
//! with requests that use a CPU and block as a [`Workload`] says. Nothing is measured and nothing sleeps, so a run is
//! exact: the same setup and seed give the same result on every machine, and an hour of load takes about a second.
//!
//! What is modelled: a queue in order of arrival; workers that take one request at a time; cores that runnable workers
//! share evenly; the time it takes to reach the tuner, to look at threads and to start one ([`Machine`]). What is not: the
//! network, the cost of the reactor, and a scheduler's time slices.
//!
//! ```
//! use std::time::Duration;
//! use tidemill::controller::Policy;
//! use tidemill::simulate::{self, Setup, Workload};
//!
//! // 64 clients at once, whose requests block for 50 ms each.
//! let workload: Workload = "clients=hold:64@2s block=50ms".parse()?;
//! let policy = Policy::new(2, 64, 2, Duration::from_secs(5));
//! let run = simulate::run(&Setup::new(policy, workload.duration()), &workload);
//! assert_eq!(run.peak_workers, 64);
//! assert!(run.wait.max < Duration::from_millis(5));
//! # Ok::<(), String>(())
//! ```

mod cpu;
mod engine;
mod rules;
mod tally;
mod workload;

use std::time::Duration;

use crate::controller::{Decision, Policy};

pub use rules::Rule;
pub use workload::{Load, NAMED, Service, Stream, Workload};

/// What a simulated pool runs on.
///
/// The defaults were measured on a virtual machine with two cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// CPUs that the process may use.
    pub cores: usize,
    /// From a poke to the tuner's look at the pool.
    pub hand_over: Duration,
    /// To read whether one thread is blocked.
    pub state_read: Duration,
    /// To start one thread; several are started one after the other.
    pub thread_start: Duration,
    /// Whether it can be read whether a thread is blocked. It cannot without descriptors.
    pub shows_states: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Machine {
            cores: 2,
            hand_over: Duration::from_micros(50),
            state_read: Duration::from_micros(15),
            thread_start: Duration::from_micros(60),
            shows_states: true,
        }
    }
}

/// The pool to simulate.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The limits of the pool.
    pub policy: Policy,
    /// Who decides how many workers there are.
    pub rule: Rule,
    /// What it runs on.
    pub machine: Machine,
    /// Source of everything random in the workload.
    pub seed: u64,
    /// How long to play. A workload that is shorter starts again.
    pub duration: Duration,
    /// Changes of the limits on the way, in order of time. Obeyed by [`Rule::Tidemill`].
    pub changes: Vec<(Duration, Policy)>,
    /// CPUs taken away and given back on the way, in order of time. The rule hears of it as the server's does.
    pub core_changes: Vec<(Duration, usize)>,
}

impl Setup {
    /// The server's own rule on the default machine.
    pub fn new(policy: Policy, duration: Duration) -> Setup {
        Setup {
            policy,
            rule: Rule::Tidemill,
            machine: Machine::default(),
            seed: 1,
            duration,
            changes: Vec::new(),
            core_changes: Vec::new(),
        }
    }
}

/// What happened in a run.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Run {
    /// Who decided.
    pub rule: Rule,
    /// Each change of the pool's size, the first [`MAX_KEPT_DECISIONS`] of them.
    pub decisions: Vec<Decision>,
    /// Changes of the pool's size.
    pub resizes: u64,
    /// How often a change went the other way than the one before it.
    pub turns: u64,
    /// Threads started, those at the start not counted.
    pub threads_started: u64,
    /// Most workers at any time.
    pub peak_workers: usize,
    /// Workers on average.
    pub mean_workers: f64,
    /// Workers at the end.
    pub last_workers: usize,
    /// Demand that no worker was there for, as a share of demand, by area over time.
    pub unmet: f64,
    /// Workers beyond the minimum and the highest demand of the keep-alive window before, as a share of demand, by area.
    pub unneeded: f64,
    /// How long requests waited for a worker, those too that still waited at the end.
    pub wait: Times,
    /// The same and more of each stream of the workload, in its order.
    pub streams: Vec<StreamRun>,
    /// The run over time in at most [`MAX_POINTS`] points.
    pub series: Vec<Point>,
}

/// Changes of a pool's size that a [`Run`] keeps; all are counted.
pub const MAX_KEPT_DECISIONS: usize = 10_000;
/// Points of a [`Run`]'s series.
pub const MAX_POINTS: usize = 1_500;

/// What became of the requests of one stream.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StreamRun {
    /// Requests that came.
    pub arrived: u64,
    /// Requests that were done by the end.
    pub finished: u64,
    /// How long they waited for a worker.
    pub wait: Times,
    /// From their arrival until they were done.
    pub latency: Times,
}

/// Quantiles of a time, to three digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names of the quantiles say it all")]
pub struct Times {
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::controller::seconds"))]
    pub p50: Duration,
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::controller::seconds"))]
    pub p99: Duration,
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::controller::seconds"))]
    pub max: Duration,
}

/// A run at one moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Point {
    /// Seconds after the start.
    pub t: f64,
    /// Workers at that time.
    pub workers: usize,
    /// Highest demand until the next point: jobs weighed by how long they take.
    pub demand: usize,
    /// Most requests that waited for a worker until the next point.
    pub waiting: usize,
}

/// Plays `workload` on the pool of `setup`.
pub fn run(setup: &Setup, workload: &Workload) -> Run {
    engine::Engine::new(setup, workload).run()
}

//! What can be said of a running server: statistics, decisions, state, and whether new clients are to be sent to it.
//!
//! Made of what its threads share, so that a handle and the admin address tell the same.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::controller::{self, Decision};
use crate::metrics::{Counters, PoolGauges, Stats};
use crate::pool::JobPool;
#[cfg(feature = "admin")]
use crate::pool::OldJob;
use crate::reactor::{ReactorHub, StopLevel};
use crate::state::ServerState;
use crate::sync::lock_std;
use crate::tuner::Tuner;

/// A handler that has run for so long is told of as stuck: nobody waits that long for a line without asking why.
#[cfg(feature = "admin")]
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Stuck handlers that are told of.
#[cfg(feature = "admin")]
const MAX_STUCK: usize = 32;

/// Reaches all of it.
#[derive(Debug)]
pub(crate) struct Overview {
    /// Of the services, in their order; those that look on are behind them.
    pub(crate) service_names: Vec<String>,
    pub(crate) hub: Arc<ReactorHub>,
    pub(crate) pool: Arc<JobPool>,
    pub(crate) tuner: Arc<Tuner>,
    pub(crate) stop: Arc<StopLevel>,
    pub(crate) counters: Arc<Mutex<Counters>>,
    /// Why it is not ready although it serves.
    pub(crate) obstacle: Mutex<Option<String>>,
    /// What `/stats.json` tells besides: a name, and who knows it, as JSON.
    #[cfg(feature = "admin")]
    pub(crate) details: Mutex<Option<(String, Details)>>,
}

/// Knows something as JSON.
#[cfg(feature = "admin")]
pub(crate) struct Details(pub(crate) Arc<dyn Fn() -> String + Send + Sync>);

#[cfg(feature = "admin")]
impl std::fmt::Debug for Details {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Details")
    }
}

impl Overview {
    /// The statistics at the end of the reactor's last turn.
    pub(crate) fn stats(&self) -> Stats {
        let Overview { hub, pool, tuner, counters, service_names, .. } = self;
        let counters = lock_std(counters).clone();
        let census = pool.census(Duration::ZERO, Duration::MAX);
        let limits = tuner.limits();
        let (grown, shrunk, refused) = tuner.resizes();
        let gauges = PoolGauges {
            threads: census.live,
            busy: census.busy,
            waiting: pool.waiting(),
            min: limits.min_threads,
            max: limits.max_threads,
            demand: self.demand().0,
            cores: tuner.cores(),
            grown,
            shrunk,
            refused,
        };
        Stats::new(
            hub.clock.epoch().elapsed(),
            service_names.iter().map(String::as_str),
            &counters,
            &gauges,
            &hub.timings,
        )
    }

    /// Workers wanted for the present work, and most workers.
    pub(crate) fn demand(&self) -> (usize, usize) {
        let Overview { pool, tuner, .. } = self;
        (controller::weigh(pool.out(), pool.time_per_job()), tuner.limits().max_threads)
    }

    /// The last decisions about the pool, the oldest first.
    pub(crate) fn decisions(&self) -> Vec<Decision> {
        self.tuner.decisions()
    }

    /// The handlers that have run for longest, if for long, the oldest first.
    #[cfg(feature = "admin")]
    pub(crate) fn stuck(&self) -> Vec<OldJob> {
        let now = Duration::from_nanos(self.hub.clock.now());
        let mut stuck = self.pool.old_jobs(now, STUCK_AFTER);
        stuck.sort_unstable_by_key(|job| std::cmp::Reverse(job.age));
        stuck.truncate(MAX_STUCK);
        stuck
    }

    pub(crate) fn state(&self) -> ServerState {
        self.stop.state(self.hub.clock.now())
    }

    /// Why no new clients are to be sent to it; `None`: they are.
    pub(crate) fn not_ready(&self) -> Option<String> {
        match self.state() {
            ServerState::Serving => lock_std(&self.obstacle).clone(),
            ServerState::Delaying => Some("delaying: the server serves, but it is to stop soon".to_owned()),
            ServerState::Draining => {
                Some("draining: the server stops once what has arrived is answered".to_owned())
            }
            ServerState::Stopping => Some("stopping: what is not answered is dropped".to_owned()),
        }
    }
}

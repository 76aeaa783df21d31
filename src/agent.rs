//! The agent address: what a server tells HAProxy's agent-check, one line for each connection.
//!
//! A service that looks on (`reactor::aside`), greets on the event loop and closes: so it answers while every worker is stuck, and while
//! the server drains. `up ready N%` where it is to get clients, `drain` where it is not; `up` too, as a weight alone does not
//! revive a server that was marked down. N is of the weight in HAProxy's configuration, never 0: with that on all servers it would
//! serve nobody.
//!
//! N follows the pool's headroom: 100 for an idle pool, 50 for one that is just full, ever less where work waits. As steep as
//! that and no steeper, and of the demand of the last seconds: HAProxy acts on it half a second later, and a weight that
//! follows each burst swings. In a simulation of two servers, one of half the size, under 50 to 97 % of what both can do, clients at random
//! moments and 20 ms a request: everything in time (p99 22 to 82 ms). With the demand of the moment p99 was 400 ms; with a weight
//! that goes down to 10 at a full pool 5 % came late at 97 %, with one that follows the free part alone, half.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::clock::{Nanos, nanos};
use crate::overview::Overview;
use crate::reason::CloseReason;
use crate::service::{Connection, Place, Reply, Request, Service};
use crate::sync::lock_std;

/// Demand counts less the longer ago it was: by a factor of e after so long, three or four looks of a balancer.
const MEMORY: Duration = Duration::from_millis(1750);
/// What of the weight is left where the pool is just full.
const LEFT_AT_FULL: f64 = 0.5;

/// The service.
#[derive(Debug)]
pub(crate) struct Agent {
    overview: Arc<Overview>,
    /// Of the last seconds.
    saturation: Mutex<Faded>,
}

impl Agent {
    pub(crate) fn new(overview: Arc<Overview>) -> Agent {
        Agent { overview, saturation: Mutex::default() }
    }

    fn line(&self) -> String {
        if self.overview.not_ready().is_some() {
            return "drain\n".to_owned();
        }
        let (demand, max) = self.overview.demand();
        let now = self.overview.hub.clock.now();
        let saturation = lock_std(&self.saturation).look(now, demand as f64 / max.max(1) as f64);
        format!("up ready {}%\n", percent(saturation))
    }
}

/// A mean in which a value counts less the longer ago it was.
#[derive(Debug, Default)]
struct Faded {
    mean: f64,
    looked_at: Nanos,
}

impl Faded {
    /// Takes in what is seen at `now`.
    fn look(&mut self, now: Nanos, seen: f64) -> f64 {
        let since = now.saturating_sub(self.looked_at) as f64 / nanos(MEMORY) as f64;
        self.mean = seen + (self.mean - seen) * (-since).exp();
        self.looked_at = now;
        self.mean
    }
}

/// The weight of a server with this demand, of which 1 is what its pool may have workers for.
fn percent(saturation: f64) -> u32 {
    let share = match saturation {
        free if free < 1.0 => 1.0 - free * (1.0 - LEFT_AT_FULL),
        full => LEFT_AT_FULL / (full * full),
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within 1 and 100")]
    let percent = (share * 100.0).round().clamp(1.0, 100.0) as u32;
    percent
}

impl Service for Agent {
    type State = ();
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, reply: &mut Reply<'_>) {
        reply.push(self.line().as_bytes());
        reply.close();
    }

    fn handle(&self, _: &mut (), _: &mut (), _: &Request<'_>, _: &mut Reply<'_>) {}

    fn close(&self, _: (), _: &mut (), _: &Connection<'_>, _: CloseReason) {}

    fn place(&self) -> Place {
        Place::Loop
    }

    fn last_line(&self, _: &crate::service::Farewell) -> Option<Vec<u8>> {
        // It would be taken for an answer.
        None
    }

    fn name(&self) -> &str {
        "agent"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_is_100_for_an_idle_pool_50_for_a_full_one_and_never_0() {
        for (saturation, expected) in
            [(0.0, 100), (0.5, 75), (0.999, 50), (1.0, 50), (2.0, 13), (7.0, 1), (1e9, 1)]
        {
            assert_eq!(percent(saturation), expected, "{saturation}");
        }
        assert!((0..100).all(|step| percent(f64::from(step) / 10.0) >= percent(f64::from(step + 1) / 10.0)));
    }

    #[test]
    fn what_was_seen_fades_by_time_however_often_one_looks() {
        let (mut once, mut often) = (Faded::default(), Faded::default());
        let second = nanos(Duration::from_secs(1));
        for step in 1..=100 {
            often.look(step * second / 100, 1.0);
        }
        assert!((once.look(second, 1.0) - often.mean).abs() < 1e-9, "{once:?} {often:?}");
        assert!((0.4..0.5).contains(&once.mean), "{once:?}");
        assert!(once.look(100 * second, 0.0) < 1e-9, "long ago");
    }
}

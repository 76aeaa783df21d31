//! Whether requests wait for longer than the pool's inertia explains: told once when that begins, and once when it is over.
//!
//! No clock: time is an argument. The tuner looks; that it does while nothing can be done about it, twice a second, is for
//! this.

use std::time::Duration;

use crate::timings::WaitTimes;

/// Requests that have waited so long make the server saturated: twice as long as the pool's valve waits at the most before it
/// adds workers.
pub(crate) const SATURATED_AFTER: Duration = Duration::from_millis(200);
/// It has recovered when for so long no request that waits has waited like that: one that begins again sooner is the same.
const RECOVERED_AFTER: Duration = Duration::from_secs(1);
/// How often it is looked, while it is saturated or may become so unseen.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Whether the server is saturated, and since when.
#[derive(Debug, Default)]
pub(crate) struct Saturation(Option<Episode>);

#[derive(Debug)]
struct Episode {
    /// When the request came that waited so long first.
    began: Duration,
    /// The last look at which one had waited so long.
    last: Duration,
    /// How long all requests had waited by then.
    waits: WaitTimes,
}

/// What has changed.
#[derive(Debug, PartialEq)]
pub(crate) enum Change {
    Saturated,
    /// For how long it was, how many requests waited so long meanwhile, and the longest that one did.
    Recovered {
        after: Duration,
        waited: u64,
        worst: Duration,
    },
}

impl Saturation {
    /// Looks at `now`, when the oldest request that waits has waited for `oldest`. `waits`: how long all have waited so far.
    pub(crate) fn look(
        &mut self,
        now: Duration,
        oldest: Duration,
        waits: impl FnOnce() -> WaitTimes,
    ) -> Option<Change> {
        match &mut self.0 {
            None if oldest < SATURATED_AFTER => None,
            None => {
                self.0 = Some(Episode { began: now.saturating_sub(oldest), last: now, waits: waits() });
                Some(Change::Saturated)
            }
            Some(episode) if oldest >= SATURATED_AFTER => {
                episode.last = now;
                None
            }
            Some(episode) if now.saturating_sub(episode.last) < RECOVERED_AFTER => None,
            Some(episode) => {
                let (waited, worst) = waits().longer_since(&episode.waits, SATURATED_AFTER);
                let after = episode.last.saturating_sub(episode.began);
                self.0 = None;
                Some(Change::Recovered { after, waited, worst })
            }
        }
    }

    /// When to look again, if no other reason to comes up.
    pub(crate) fn look_after(&self, waiting: usize, oldest: Duration) -> Option<Duration> {
        match self.0 {
            Some(_) => Some(LOOK_EVERY),
            None => (waiting > 0).then(|| SATURATED_AFTER.saturating_sub(oldest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timings::{Lap, Timings};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_episode_is_told_when_it_begins_and_once_it_has_been_over_for_a_second() {
        let (mut saturation, timings) = (Saturation::default(), Timings::new());
        let took = |wait: Duration, requests: usize| {
            let wait = u64::try_from(wait.as_nanos()).unwrap();
            timings.record(1, [Lap { wait, took: 1_000, requests }].into_iter());
        };
        took(900 * MS, 7);
        let mut look = |at: u32, oldest: u32| saturation.look(at * MS, oldest * MS, || timings.waits());
        assert_eq!(look(1_000, 199), None);
        assert_eq!(look(1_100, 250), Some(Change::Saturated));
        took(50 * MS, 100);
        took(300 * MS, 3);
        assert_eq!(look(1_600, 700), None);
        took(700 * MS, 1);
        // Once more within the second.
        assert_eq!(look(2_100, 0), None);
        assert_eq!(look(2_500, 201), None);
        took(250 * MS, 2);
        assert_eq!(look(3_400, 0), None);
        let Some(Change::Recovered { after, waited, worst }) = look(3_500, 100) else { panic!() };
        assert_eq!((after, waited), (1_650 * MS, 6), "those before and the short ones do not count");
        assert!((695..=710).contains(&worst.as_millis()), "{worst:?}");
        assert_eq!(look(3_600, 100), None);
        assert_eq!(look(9_000, 300), Some(Change::Saturated));
    }

    #[test]
    fn it_is_looked_again_when_it_would_be_saturated_and_while_it_is() {
        let mut saturation = Saturation::default();
        assert_eq!(saturation.look_after(0, Duration::ZERO), None);
        assert_eq!(saturation.look_after(1, 50 * MS), Some(150 * MS));
        saturation.look(1_000 * MS, 300 * MS, || Timings::new().waits());
        assert_eq!(saturation.look_after(0, Duration::ZERO), Some(LOOK_EVERY));
    }
}

//! The log of slow requests, with what there was to do when a worker took them.
//!
//! Bounded in rate: where everything is slow, as at night when a backend is, the log must not fill the disk. What is left out is
//! counted, and told with the next line, or by the reactor a second later when no line comes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::Nanos;
use crate::job::Job;
use crate::sync::lock_std;
use crate::timings::{Lap, MAX_LAP, MAX_LAP_BYTES};

/// Slow requests that are logged within a second, at the most: enough to see what they have in common.
const MAX_LINES_PER_SECOND: u32 = 10;
const SECOND: Nanos = 1_000_000_000;
/// Bytes of a request that are logged.
const MAX_LOGGED_BYTES: usize = 64;

/// How many slow requests were told of within the present second, and how many were not since one was.
#[derive(Debug, Default)]
pub(crate) struct SlowLog {
    window: Mutex<Window>,
    /// When what was left out is to be told; 0: nothing was. Relaxed: written under the lock, and by a worker before it hands its job
    /// back, for which the reactor wakes.
    due: AtomicU64,
}

#[derive(Debug, Default)]
struct Window {
    began: Nanos,
    told: u32,
    left_out: u64,
}

/// What there was to do when a worker took a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PickUp {
    pub(crate) busy: usize,
    pub(crate) max: usize,
    pub(crate) waiting: usize,
}

impl SlowLog {
    /// Whether one more may be told of at `now`; how many were left out before it.
    fn admit(&self, now: Nanos) -> Option<u64> {
        let mut window = lock_std(&self.window);
        if now.saturating_sub(window.began) >= SECOND {
            (window.began, window.told) = (now, 0);
        }
        if window.told < MAX_LINES_PER_SECOND {
            window.told += 1;
            self.due.store(0, Relaxed);
            return Some(std::mem::take(&mut window.left_out));
        }
        window.left_out += 1;
        self.due.store(window.began + SECOND, Relaxed);
        None
    }

    /// When what was left out is to be told, if anything was.
    pub(crate) fn due(&self) -> Option<Nanos> {
        Some(self.due.load(Relaxed)).filter(|at| *at > 0)
    }

    /// Takes out how many were left out.
    fn take_left_out(&self) -> u64 {
        let mut window = lock_std(&self.window);
        self.due.store(0, Relaxed);
        std::mem::take(&mut window.left_out)
    }

    /// Tells of what was left out.
    pub(crate) fn tell_left_out(&self) {
        let left_out = self.take_left_out();
        if left_out > 0 {
            tracing::warn!(left_out, "slow requests were left out of the log");
        }
    }

    /// Tells of those requests of `job` that took `limit` or longer, from when they were read until they were handled. `laps` are
    /// all that were handled now.
    #[cold]
    pub(crate) fn tell(
        &self,
        now: Nanos,
        (service, limit): (&str, Nanos),
        job: &Job,
        laps: &[Lap],
        pick_up: PickUp,
    ) {
        let mut handled = 0;
        for lap in laps {
            let first = handled;
            handled += lap.requests;
            if lap.wait.saturating_add(lap.took) < limit {
                continue;
            }
            // Those that were not run are in no lap: then it is not known which ones are. What is more than a lap was short.
            let known = if job.late == 0 { lap.requests.min(MAX_LAP) } else { 0 };
            let lines = (first..first + known).filter_map(|number| job.batch.handled_line(number));
            let lines: Vec<_> = lines.map(|line| &line[..line.len().min(MAX_LOGGED_BYTES)]).collect();
            self.tell_lap(now, service, job, *lap, &lines.join(&b'\n'), pick_up);
        }
    }

    /// Tells of requests that are slow; `shown` is what is shown of them.
    #[cold]
    pub(crate) fn tell_lap(
        &self,
        now: Nanos,
        service: &str,
        job: &Job,
        lap: Lap,
        shown: &[u8],
        pick_up: PickUp,
    ) {
        let Some(left_out) = self.admit(now) else { return };
        let seconds = |nanos: Nanos| nanos as f64 / 1e9;
        let request = shown.escape_ascii();
        let PickUp { busy, max, waiting } = pick_up;
        tracing::warn!(
            service,
            peer = %job.origin.peer,
            %request,
            requests = lap.requests,
            wait_seconds = seconds(lap.wait),
            service_seconds = seconds(lap.took),
            busy,
            max,
            waiting,
            left_out,
            "slow request"
        );
    }
}

/// What the log shows of `requests` that were timed together, all of which are in `bytes`: enough for the begin of each.
pub(crate) fn shown(bytes: &[u8], requests: usize) -> &[u8] {
    let most = if requests > 1 { MAX_LAP_BYTES + MAX_LOGGED_BYTES } else { MAX_LOGGED_BYTES };
    &bytes[..bytes.len().min(most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_lines_and_the_rest_is_counted_once() {
        let log = SlowLog::default();
        let told = |from: Nanos, count: u64| -> Vec<Option<u64>> {
            (0..count).map(|number| log.admit(from + number)).collect()
        };
        let first = told(5 * SECOND, 15);
        assert_eq!(first.iter().filter(|told| **told == Some(0)).count(), 10);
        assert_eq!(told(5 * SECOND + 500, 2), [None, None]);
        assert_eq!(log.due(), Some(6 * SECOND));
        assert_eq!(told(6 * SECOND, 2), [Some(7), Some(0)], "with the next line");
        assert_eq!((log.due(), log.take_left_out()), (None, 0));
        told(10 * SECOND, 12);
        assert_eq!((log.due(), log.take_left_out()), (Some(11 * SECOND), 2));
        assert_eq!((log.due(), told(12 * SECOND, 1)), (None, vec![Some(0)]), "it was told meanwhile");
    }
}

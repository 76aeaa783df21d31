//! The wait for events between two turns: not at all while something is left to do, and no longer than until something is due.

use std::io::{self, ErrorKind};
use std::time::Duration;

use mio::Events;

use super::{Reactor, Shared};

/// How long a job may be finished without this thread having been woken for it.
const SAFETY_TICK: Duration = Duration::from_millis(1);

impl Reactor {
    /// Blocks until there are events or something is due.
    ///
    /// # Errors
    /// What poll failed with.
    pub(super) fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = self.timeout();
        if timeout != Some(Duration::ZERO) {
            if self.spin(events) {
                return Ok(());
            }
            self.spin.sleeps();
        }
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            polled => polled,
        }
    }

    /// How long poll may block. `None`: until something happens.
    fn timeout(&self) -> Option<Duration> {
        let Shared { hub, pool, lent, .. } = &self.shared;
        let resumes = !self.stalled.is_empty() && self.lines_out < self.settings.max_pending;
        if !self.is_idle() || resumes || self.listeners.is_ready(lent) || !hub.replies.try_sleep() {
            return Some(Duration::ZERO);
        }
        // A worker may have published a job without a wake, because it has another.
        let tick = self.jobs_out > 1 && pool.started() != self.started_before;
        let drain_until = match self.drain {
            Some(drain) => Some(drain.until),
            None => self.shared.stop.begins_at().map(|at| hub.clock.instant(at)),
        };
        let due = sooner(self.deadlines.next(), sooner(self.told.due(), hub.slow.due()));
        let due = sooner(due.map(|at| hub.clock.instant(at)), self.lingering.next());
        let due = sooner(due, self.listeners.retry_at());
        let stop = sooner(self.handshakes_until(), sooner(self.newcomers_until(), drain_until));
        let next = sooner(due, stop);
        // By the one clock that says what is due.
        let until = next.map(|at| at.saturating_duration_since(hub.clock.instant(hub.clock.now())));
        match until {
            Some(until) if tick => Some(until.min(SAFETY_TICK)),
            None if tick => Some(SAFETY_TICK),
            until => until,
        }
    }
}

/// The sooner of two times. (Iterators over all of them cost every turn two hundred instructions.)
fn sooner<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

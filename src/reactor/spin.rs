//! Looking for events for some microseconds before going to sleep, where many requests were handled on this thread.
//!
//! A peer that has many requests under way sends the next ones while this thread handles those before. Where this thread is the
//! faster, it is done with them first and sleeps, and the peer has to wake it a moment later: on virtual machines, where an idle CPU
//! is left to the host, that costs the peer up to ten microseconds. So this thread looks a little longer (kernels know it as busy
//! polling, hypervisors as halt polling), and tries that less often where it is in vain. Measured with the example `kv` and
//! redis-benchmark: `BENCHMARKS.md`. On the reactor's thread only.

use std::time::Duration;

use mio::Events;

use super::Reactor;
use super::backoff::Backoff;
use crate::clock::Nanos;

/// Fewer requests that were handled here since the last sleep came from a peer that waits for the replies before it sends more.
const MIN_HANDLED: usize = 16;
/// How long it is spun, in nanoseconds: what a sleep and a wake-up cost this thread and the peer.
const SPIN: Nanos = 10_000;

/// Whether spinning has paid of late.
#[derive(Debug, Default)]
pub(super) struct Spin {
    /// Requests that were handled here since this thread last slept.
    handled: usize,
    backoff: Backoff,
}

impl Spin {
    /// So many requests were handled here.
    pub(super) fn handled(&mut self, requests: usize) {
        self.handled += requests;
    }

    /// This thread goes to sleep.
    pub(super) fn sleeps(&mut self) {
        self.handled = 0;
    }

    /// Whether to spin before it does.
    fn is_due(&mut self) -> bool {
        self.handled >= MIN_HANDLED && self.backoff.is_due()
    }
}

impl Reactor {
    /// Looks for events for a while before this thread sleeps, where that may pay: not beside workers, one of which may need this CPU.
    /// Whether there are any.
    pub(super) fn spin(&mut self, events: &mut Events) -> bool {
        if self.jobs_out > 0 || !self.spin.is_due() {
            return false;
        }
        let until = self.now() + SPIN;
        loop {
            // What is wrong with it is found where it blocks.
            let found = self.poll.poll(events, Some(Duration::ZERO)).is_ok() && !events.is_empty();
            if found || self.now() >= until {
                self.spin.backoff.tried(found);
                return found;
            }
        }
    }
}

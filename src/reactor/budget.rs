//! How much is done in a turn: for one connection, and altogether, so that nobody needs more than a few turns to be heard.
//!
//! What is left over at the end of a turn goes on in the next, behind a poll that does not block and what that brings:
//! signals, new connections and new events come first.

use crate::clock::{Clock, Nanos};

/// Connections accepted in a turn.
pub(super) const ACCEPTS: usize = 64;
/// The same while there are more connections with news than a turn gets to. With 64, 9000 that came within a second, each with
/// 64 kB and more, kept a polite client waiting for a second; as many as are served, for 20 ms.
pub(super) const LEAST_ACCEPTS: usize = 8;
/// Most bytes read of a connection in a turn.
pub(super) const READ_BYTES: usize = 64 << 10;
/// Most bytes written to a connection in a turn: some 50 µs.
pub(super) const WRITE_BYTES: usize = 256 << 10;
/// Frames of all connections in a round of turns, so to say: it is shared by those that have something to do.
const ROUND_FRAMES: usize = 8192;
/// Bounds of a connection's share: enough to be worth its visit; and no more than a job holds.
const MIN_FRAMES: usize = 8;
const MAX_FRAMES: usize = 256;
/// After that long a turn ends, whatever is left, in nanoseconds: who has just become ready waits about as long. With 0.4 ms the
/// p99 of a polite client beside 500 that never pause is 0.7 of this, but 1000 connections that pipeline cost 1.7 times the CPU.
const TURN_NANOS: Nanos = 1_000_000;
/// Connections with news that are served in each turn, so that jobs that come back, however many, do not stop them. As finished
/// jobs are taken back first, and hand out the next of their connections, a turn may be over before the first of these.
pub(super) const LEAST_READY: usize = 16;
/// Connections left over from turns before that are served in each, so that new events, however many, do not stop them.
pub(super) const LEAST_LEFT_OVER: usize = 8;
/// The clock is looked at after so much work, in visits of a connection; a look costs about a fortieth of that.
const WORK_BETWEEN_LOOKS: usize = 8;
/// Frames, and bytes, that are as much work as a visit.
const FRAMES_PER_VISIT: usize = 16;
const BYTES_PER_VISIT: usize = 16 << 10;

/// Frames that a connection may have handled in a turn while `busy` of them have something to do.
pub(super) fn frames(busy: usize) -> usize {
    (ROUND_FRAMES / busy.max(1)).clamp(MIN_FRAMES, MAX_FRAMES)
}

/// Whether a turn has to end.
#[derive(Debug, Default)]
pub(super) struct Budget {
    began: Nanos,
    /// Work since the clock was looked at.
    work: usize,
    spent: bool,
}

impl Budget {
    /// A turn begins.
    pub(super) fn begin(&mut self, now: Nanos) {
        *self = Budget { began: now, work: 0, spent: false };
    }

    /// A connection was visited.
    pub(super) fn visit(&mut self) {
        self.work += 1;
    }

    /// Frames were cut.
    pub(super) fn frames(&mut self, count: usize) {
        self.work += count / FRAMES_PER_VISIT;
    }

    /// Bytes were read or written.
    pub(super) fn bytes(&mut self, count: usize) {
        self.work += count / BYTES_PER_VISIT;
    }

    /// Whether the turn is over.
    pub(super) fn is_spent(&mut self, clock: &Clock) -> bool {
        if !self.spent && self.work >= WORK_BETWEEN_LOOKS {
            self.work = 0;
            self.spent = clock.now().saturating_sub(self.began) >= TURN_NANOS;
        }
        self.spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_smaller_where_many_are_busy_and_never_nothing() {
        assert_eq!([0, 1, 32, 64, 500, 10_000].map(frames), [256, 256, 256, 128, 16, 8]);
    }

    #[test]
    fn a_turn_ends_by_the_clock_only_after_work() {
        let clock = Clock::start();
        let mut budget = Budget::default();
        budget.begin(clock.now());
        std::thread::sleep(std::time::Duration::from_nanos(TURN_NANOS));
        assert!(!budget.is_spent(&clock), "nothing was done, so it is not looked");
        budget.frames(FRAMES_PER_VISIT * WORK_BETWEEN_LOOKS);
        assert!(budget.is_spent(&clock));
        budget.begin(clock.now());
        budget.bytes(BYTES_PER_VISIT * WORK_BETWEEN_LOOKS);
        assert!(!budget.is_spent(&clock));
    }
}

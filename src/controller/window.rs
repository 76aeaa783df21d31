//! What the pool shrinks to: the highest demand of a while.

use std::time::Duration;

use super::sample::nanos;

/// Parts of the keep-alive window. The pool comes down within two parts after the window: one that is being filled, and
/// one for what was seen between two samples.
const PARTS: usize = 31;

/// The highest demand within the keep-alive window, kept in parts of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Window {
    /// The highest demand of each part, the present one at `current % len`. One more than [`PARTS`], so that what is
    /// remembered is never younger than the window.
    highest: [usize; PARTS + 1],
    /// Number of the present part since the start.
    current: u64,
    /// Length of a part in nanoseconds.
    part: u64,
}

impl Window {
    pub(super) fn record(&mut self, now: Duration, keep_alive: Duration, demand: usize) {
        let part = (nanos(keep_alive) / PARTS as u64).max(1);
        if part != self.part {
            // The window has another length from now on; what it held counts as seen now.
            let mut highest = [0; PARTS + 1];
            let current = nanos(now) / part;
            highest[Self::place(current)] = self.highest();
            *self = Window { highest, current, part };
        }
        let present = (nanos(now) / part).max(self.current);
        for passed in (self.current + 1..=present).take(self.highest.len()) {
            self.highest[Self::place(passed)] = 0;
        }
        self.current = present;
        let present = &mut self.highest[Self::place(present)];
        *present = demand.max(*present);
    }

    pub(super) fn highest(&self) -> usize {
        self.highest.iter().copied().max().unwrap_or(0)
    }

    /// Time until the oldest part leaves the window. Something was recorded before.
    pub(super) fn until_next_part(&self, now: Duration) -> Duration {
        let next = (self.current + 1).saturating_mul(self.part);
        Duration::from_nanos(next.saturating_sub(nanos(now)).max(1))
    }

    #[expect(clippy::cast_possible_truncation, reason = "a remainder of 32")]
    fn place(part: u64) -> usize {
        (part % (PARTS as u64 + 1)) as usize
    }
}

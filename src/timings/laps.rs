//! Requests that one thread handles one after the other, timed together where they are short.

use crate::clock::Nanos;

/// Requests that take less than this on average may be timed together, in nanoseconds: as many as are expected to take so long, as
/// reading the clock costs about as much as the shortest of them.
pub(super) const SHORT_REQUEST: Nanos = 1_000;
/// Most requests that are timed together.
pub(crate) const MAX_LAP: usize = 16;
/// Most of those that one read brought where it is not known yet that they are short.
const MAX_FIRST_LAP: usize = 8;
/// Bytes of requests after which those on the event loop are not timed together with later ones, so that the log can show each of them.
pub(crate) const MAX_LAP_BYTES: usize = 512;

/// Waiting times that differ by this part of them or less are the same to the histograms, which have two digits.
const WAIT_PARTS: Nanos = 128;

/// Requests of one job, timed together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lap {
    /// From their arrival to the call of the handler for the first of them.
    pub(crate) wait: Nanos,
    /// Time that the handler took for all of them.
    pub(crate) took: Nanos,
    /// How many, at least one.
    pub(crate) requests: usize,
}

impl Lap {
    /// Whether the requests of `later` may be counted with these: all are short, and waited for as long as the histograms can
    /// tell. Those of another connection may have waited for less than these.
    pub(crate) fn is_like(&self, later: &Lap) -> bool {
        let is_short = |lap: &Lap| lap.took < SHORT_REQUEST * lap.requests as u64;
        is_short(self) && is_short(later) && later.wait.abs_diff(self.wait) <= self.wait / WAIT_PARTS
    }

    /// Counts the requests of `later` with these.
    pub(crate) fn append(&mut self, later: &Lap) {
        self.took += later.took;
        self.requests += later.requests;
    }
}

/// Times of requests that one thread handles one after the other: short ones are timed together.
#[derive(Debug, Default)]
pub(crate) struct Laps {
    /// Kept for its capacity.
    laps: Vec<Lap>,
    /// When the present lap began.
    begun: Nanos,
    /// Requests in it, and how many there may be.
    requests: usize,
    most: usize,
}

impl Laps {
    /// The first request of a job is handled from `now` on; at most so many are in its lap, as within one nobody looks whether its slice
    /// is over, or who asked is gone. 1, unless what came of the same connection before [says more](Self::expected).
    pub(crate) fn begin(&mut self, now: Nanos, most: u8) {
        (self.begun, self.requests, self.most) = (now, 0, usize::from(most));
    }

    /// How many may be in the first lap of what comes next of the same connection, by what this took.
    pub(crate) fn expected(&self) -> u8 {
        u8::try_from(self.most.min(MAX_FIRST_LAP)).unwrap_or(1)
    }

    /// When the present lap began.
    pub(crate) fn begun(&self) -> Nanos {
        self.begun
    }

    /// Whether requests are in the present lap.
    pub(crate) fn is_open(&self) -> bool {
        self.requests > 0
    }

    /// A request was handled. Whether the clock is to be read for it.
    pub(crate) fn count(&mut self) -> bool {
        self.requests += 1;
        self.requests >= self.most
    }

    /// The present lap ends at `now`, and the next one begins; its requests had come at `accepted_at`. Returns it.
    pub(crate) fn end(&mut self, now: Nanos, accepted_at: Nanos) -> Lap {
        let (took, requests) = (now.saturating_sub(self.begun), self.requests);
        let lap = Lap { wait: self.begun.saturating_sub(accepted_at), took, requests };
        match self.laps.last_mut() {
            Some(last) if last.is_like(&lap) => last.append(&lap),
            _ => self.laps.push(lap),
        }
        let short = usize::try_from(SHORT_REQUEST * requests as u64 / took.max(1)).unwrap_or(MAX_LAP);
        // Those that follow a few short ones need not be like them.
        self.most = short.min(2 * self.most).clamp(1, MAX_LAP);
        (self.begun, self.requests) = (self.begun + took, 0);
        lap
    }

    /// All laps since they were last drained.
    pub(crate) fn all(&self) -> &[Lap] {
        &self.laps
    }

    /// All laps since this was last called.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Lap> {
        self.laps.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_for_less_is_not_counted_with_who_was_there_before() {
        let mut laps = Laps::default();
        // Of two connections, in one turn of the event loop.
        for (begun, accepted_at) in [(50_000_000, 0), (60_000_000, 60_000_000)] {
            laps.begin(begun, 1);
            assert!(laps.count());
            laps.end(begun + 100, accepted_at);
        }
        let waits: Vec<_> = laps.drain().map(|lap| (lap.wait, lap.requests)).collect();
        assert_eq!(waits, [(50_000_000, 1), (0, 1)]);
    }

    #[test]
    fn the_first_request_of_a_job_is_timed_alone_whatever_was_short_before() {
        let mut laps = Laps::default();
        laps.begin(0, 1);
        let mut now = 0;
        for _ in 0..100 {
            now += 1;
            if laps.count() {
                laps.end(now, 0);
            }
        }
        assert!(!laps.count(), "short ones are timed together");
        laps.begin(now, 1);
        assert!(laps.count());
    }

    #[test]
    fn laps_that_the_histograms_cannot_tell_apart_are_alike() {
        let lap = |wait, took| Lap { wait, took, requests: 4 };
        let first = lap(12_800, 400);
        assert!(first.is_like(&lap(12_900, 3_999)));
        assert!(!first.is_like(&lap(12_901, 400)), "it waited for longer");
        assert!(
            !first.is_like(&lap(12_800, 4_000)) && !lap(12_800, 4_000).is_like(&first),
            "they are not short"
        );
        assert!(first.is_like(&lap(12_700, 400)) && !first.is_like(&lap(12_699, 400)), "it waited for less");
    }
}

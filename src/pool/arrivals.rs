//! Since when the jobs wait that no worker has taken.
//!
//! Jobs are taken about in the order in which they were submitted, so it is enough to know how many had been submitted by when.
//! The reactor adds to it, the tuner asks; both drop what workers have taken meanwhile. Bounded: the longer jobs wait, the more
//! of them are remembered as one, under the time of the first.

use std::collections::VecDeque;
use std::sync::Mutex;

use crate::clock::Nanos;
use crate::sync::lock_std;

/// Jobs that came within this time of each other are remembered as one.
const GRAIN: Nanos = 250_000;
/// So are those within this part of how long the oldest has waited: its age is right to 1 %, and the queue has at most some
/// hundred entries for waits of seconds.
const GRAINS: Nanos = 128;

#[derive(Debug, Default)]
pub(super) struct Arrivals(Mutex<VecDeque<Arrival>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arrival {
    /// Jobs ever submitted, with those of this arrival.
    submitted: u64,
    at: Nanos,
}

impl Arrivals {
    /// Jobs came at `at`, which makes `submitted` ever; workers have taken `started` of them.
    pub(super) fn add(&self, submitted: u64, started: u64, at: Nanos) {
        let mut queue = lock_std(&self.0);
        drop_taken(&mut queue, started);
        let oldest = queue.front().map_or(at, |front| front.at);
        let grain = GRAIN.max(at.saturating_sub(oldest) / GRAINS);
        match queue.back_mut() {
            Some(last) if at.saturating_sub(last.at) < grain => last.submitted = submitted,
            _ => queue.push_back(Arrival { submitted, at }),
        }
    }

    /// When the oldest of the jobs came that workers, who have taken `started`, have not taken.
    pub(super) fn oldest(&self, started: u64) -> Option<Nanos> {
        let mut queue = lock_std(&self.0);
        drop_taken(&mut queue, started);
        queue.front().map(|front| front.at)
    }
}

fn drop_taken(queue: &mut VecDeque<Arrival>, started: u64) {
    while queue.front().is_some_and(|front| front.submitted <= started) {
        queue.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_nobody_has_taken_tells_the_time() {
        let arrivals = Arrivals::default();
        assert_eq!(arrivals.oldest(0), None);
        arrivals.add(2, 0, 1_000_000);
        arrivals.add(3, 0, 2_000_000);
        assert_eq!(arrivals.oldest(1), Some(1_000_000));
        assert_eq!(arrivals.oldest(2), Some(2_000_000));
        assert_eq!(arrivals.oldest(3), None);
    }

    #[test]
    fn a_clock_that_steps_back_and_taking_more_than_was_noted_do_no_harm() {
        let arrivals = Arrivals::default();
        arrivals.add(1, 0, 5_000_000);
        arrivals.add(2, 0, 4_000_000);
        assert_eq!(arrivals.oldest(7), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_right_to_a_hundredth() {
        let arrivals = Arrivals::default();
        // A minute in which nobody takes anything, a job each 50 µs.
        for number in 1..=1_200_000 {
            arrivals.add(number, 0, number * 50_000);
        }
        assert!(lock_std(&arrivals.0).len() < 1500, "{}", lock_std(&arrivals.0).len());
        let oldest = arrivals.oldest(600_000).unwrap_or_default();
        assert!(600_001 * 50_000 - oldest < 600_000 * 50_000 / 100, "{oldest}");
    }
}

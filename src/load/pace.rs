//! When the next request may be sent: when there is room for it (closed loop), or when it is due (open loop).
//!
//! No I/O and no clock here: time is an argument, in nanoseconds since the start of the run.

use std::collections::VecDeque;
use std::time::Duration;

use super::histogram::Latencies;
use super::tally::Tally;
use tidemill::schedule::Arrivals;

/// Requests taken in a turn of the loop at most: a millisecond's work, so that replies, the clock and an interrupt have their turn
/// at any rate.
const MAX_DUE_A_TURN: usize = 4096;
/// Requests of all threads that are due and wait for a connection at most, 16 bytes each: seconds of a rate that can be sent. The
/// others wait in the schedule, which costs nothing; those that are still there at the end are not sent.
const MAX_BACKLOG: usize = 1 << 20;

/// The two loops.
#[derive(Debug)]
pub(crate) enum Pace {
    /// A reply makes room for the next request.
    Closed(Closed),
    /// Requests become due by the schedule, and their latency counts from then.
    Open(Box<Open>),
}

/// Requests that may still be sent.
#[derive(Debug)]
pub(crate) struct Closed {
    /// Measured ones.
    left: u64,
    measure_from: u64,
}

impl Closed {
    pub(crate) fn new(requests: u64, measure_from: u64) -> Self {
        Self { left: requests, measure_from }
    }

    /// Takes up to `most` requests for a connection that has room now.
    pub(crate) fn take(&mut self, most: u64, now: u64, tally: &mut Tally) -> u64 {
        let count = if now < self.measure_from { most } else { most.min(self.left) };
        if now >= self.measure_from {
            self.left -= count;
        }
        tally.offered(now, count);
        count
    }

    fn is_used_up(&self, now: u64) -> bool {
        self.left == 0 && now >= self.measure_from
    }
}

/// A request that has become due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) at: u64,
    /// When the generator saw it: at once, unless it did not run.
    pub(crate) seen: u64,
}

impl Due {
    /// How late the generator itself is with it at `now`, on a connection that has had room since `free_since`: it saw it too
    /// late, or did not send it at once where there was room.
    pub(crate) fn late(self, free_since: u64, now: u64) -> u64 {
        now.saturating_sub(self.at.max(free_since)).max(self.seen - self.at)
    }
}

/// Requests that are due, and those to come.
#[derive(Debug)]
pub(crate) struct Open {
    arrivals: Arrivals,
    /// Those that wait for a connection with room.
    pub(crate) backlog: VecDeque<Due>,
    /// Connections that can take one, the first free first.
    pub(crate) ready: VecDeque<usize>,
    /// How late the generator itself was.
    pub(crate) lateness: Latencies,
    left: u64,
    measure_from: u64,
    until: u64,
    /// When there was last no room for more: what was due by then was seen by then.
    full_until: u64,
    /// This thread's part of [`MAX_BACKLOG`].
    max_backlog: usize,
}

impl Open {
    /// One of `threads` that play the arrivals together.
    pub(crate) fn new(
        arrivals: Arrivals,
        threads: u32,
        requests: u64,
        measure_from: u64,
        until: u64,
    ) -> Self {
        Self {
            arrivals,
            backlog: VecDeque::new(),
            ready: VecDeque::new(),
            lateness: Latencies::new(),
            left: requests,
            measure_from,
            until,
            full_until: 0,
            max_backlog: MAX_BACKLOG.div_ceil(threads.max(1) as usize),
        }
    }

    /// When the next request can be taken in: when it is due, if there is room then.
    pub(crate) fn next_look(&self) -> u64 {
        if self.backlog.len() < self.max_backlog { self.next_due().max(self.full_until) } else { u64::MAX }
    }

    fn next_due(&self) -> u64 {
        Duration::try_from_secs_f64(self.arrivals.peek()).map_or(u64::MAX, super::nanoseconds)
    }

    /// Takes in what has become due by `now`, as much as one turn may.
    pub(crate) fn collect(&mut self, now: u64, tally: &mut Tally) {
        self.collect_some(MAX_DUE_A_TURN, now, tally);
    }

    fn collect_some(&mut self, most: usize, now: u64, tally: &mut Tally) {
        for _ in 0..most.min(self.max_backlog.saturating_sub(self.backlog.len())) {
            let due = self.next_due();
            if due > now || due >= self.until || (due >= self.measure_from && self.left == 0) {
                return;
            }
            self.left -= u64::from(due >= self.measure_from);
            // For want of room it is not the generator that is late.
            let late = now.saturating_sub(due.max(self.full_until));
            self.backlog.push_back(Due { at: due, seen: due + late });
            tally.offered(due, 1);
            self.arrivals.advance();
        }
        if self.backlog.len() >= self.max_backlog {
            self.full_until = now;
        }
    }

    /// Nothing becomes due any more after `now`. What is due by then is taken in, which may be long ago, as far as there is room;
    /// the rest is not sent.
    pub(crate) fn end(&mut self, now: u64, tally: &mut Tally) {
        self.until = self.until.min(now.saturating_add(1));
        self.collect_some(usize::MAX, now, tally);
        for (until, due) in [(self.measure_from, 0), (u64::MAX, self.measure_from)] {
            if self.left == 0 {
                return;
            }
            // In nanoseconds, to which moments are rounded.
            let rest = self.arrivals.skip_until((self.until.min(until) as f64 - 0.5) / 1e9);
            let count = if due < self.measure_from { rest } else { rest.min(self.left) };
            self.left -= if due < self.measure_from { 0 } else { count };
            tally.offered(due, count);
            tally.unsent(due, count);
        }
    }

    /// What a connection that is handed requests now gets as its fair part.
    pub(crate) fn fair_part(&self) -> usize {
        self.backlog.len().div_ceil(self.ready.len() + 1)
    }

    /// Takes a request for a connection that has had room since `free_since`.
    pub(crate) fn sent(&mut self, due: Due, free_since: u64, now: u64) {
        if due.at >= self.measure_from {
            self.lateness.record(due.late(free_since, now));
        }
    }
}

impl Pace {
    /// Whether nothing more will be offered, however long the run.
    pub(crate) fn is_used_up(&self, now: u64) -> bool {
        match self {
            Self::Closed(closed) => closed.is_used_up(now),
            Self::Open(open) => open.left == 0,
        }
    }

    /// Whether requests that are due wait for a connection.
    pub(crate) fn has_backlog(&self) -> bool {
        matches!(self, Self::Open(open) if !open.backlog.is_empty())
    }

    /// Gives up what waits for a connection.
    pub(crate) fn give_up(&mut self, tally: &mut Tally) {
        if let Self::Open(open) = self {
            open.backlog.drain(..).for_each(|due| tally.unsent(due.at, 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill::schedule::Curve;

    const MS: u64 = 1_000_000;

    #[test]
    fn closed_loop_counts_only_what_is_measured_against_its_limit() {
        let (mut closed, mut tally) = (Closed::new(5, 100), Tally::new(100));
        assert_eq!((closed.take(9, 99, &mut tally), closed.is_used_up(99)), (9, false));
        assert_eq!((closed.take(3, 100, &mut tally), closed.is_used_up(100)), (3, false));
        assert_eq!((closed.take(3, 101, &mut tally), closed.is_used_up(101)), (2, true));
        assert!(!closed.is_used_up(99), "the warm-up goes on");
        assert_eq!((tally.measured().offered, tally.total().offered), (5, 14));
        assert_eq!(Closed::new(5, 100).take(9, 100, &mut tally), 5);
        let mut pace = Pace::Closed(closed);
        let Pace::Closed(closed) = &mut pace else { panic!("it is closed") };
        assert_eq!((closed.take(1, 101, &mut tally), closed.take(1, 99, &mut tally)), (0, 1));
        assert!(pace.is_used_up(101) && !pace.has_backlog());
    }

    /// A request every 10 ms, the first at 10 ms.
    fn open(requests: u64, measure_from: u64, until: u64) -> Open {
        Open::new(Arrivals::new(Curve::constant(100.0), 0.0, None), 1, requests, measure_from, until)
    }

    #[test]
    fn open_loop_takes_in_what_is_due_within_its_time_and_number() {
        let mut tally = Tally::new(25 * MS);
        let mut all = open(u64::MAX, 25 * MS, u64::MAX);
        assert_eq!(all.next_due(), 10 * MS);
        all.collect(30 * MS, &mut tally);
        assert_eq!((all.backlog.len(), all.next_due()), (3, 40 * MS));
        assert_eq!((tally.measured().offered, tally.total().offered), (1, 3));
        for (requests, until, expected) in [(2, u64::MAX, 4), (9, 50 * MS, 4), (9, 51 * MS, 5)] {
            let mut open = open(requests, 25 * MS, until);
            open.collect(990 * MS, &mut tally);
            assert_eq!(open.backlog.len(), expected, "{requests} until {until}");
            let is_used_up = Pace::Open(Box::new(open)).is_used_up(0);
            assert_eq!(is_used_up, requests == 2);
        }
        all.ready.extend([0, 1]);
        assert_eq!(all.fair_part(), 1);
        all.ready.clear();
        assert_eq!(all.fair_part(), 3);
    }

    #[test]
    fn rate_beyond_reach_is_taken_in_a_little_a_turn_and_counted_in_the_end() {
        const SECOND: u64 = 1_000_000_000;
        let mut tally = Tally::new(SECOND);
        let arrivals = Arrivals::new(Curve::constant(1e7), 0.0, None);
        let mut open = Open::new(arrivals, 1, u64::MAX, SECOND, 3 * SECOND);
        for turn in 1..=MAX_BACKLOG / MAX_DUE_A_TURN {
            assert!(open.next_look() < SECOND, "there is room");
            open.collect(2 * SECOND, &mut tally);
            assert_eq!(open.backlog.len(), turn * MAX_DUE_A_TURN);
        }
        open.collect(2 * SECOND, &mut tally);
        assert_eq!((open.backlog.len(), open.next_look()), (MAX_BACKLOG, u64::MAX), "no more than that");
        // That there was no room is not the generator's doing.
        open.collect(5 * SECOND / 2, &mut tally);
        tally.unsent(open.backlog.pop_front().unwrap().at, 1);
        assert_eq!(open.next_look(), 5 * SECOND / 2);
        let now = 5 * SECOND / 2 + 1000;
        open.collect(now, &mut tally);
        assert_eq!(open.backlog.back().unwrap().late(now, now), 1000);
        // It ends before its time.
        open.end(2 * SECOND, &mut tally);
        let mut pace = Pace::Open(Box::new(open));
        pace.give_up(&mut tally);
        let (measured, total) = (tally.measured(), tally.total());
        assert_eq!((measured.offered, measured.unsent), (10_000_001, 10_000_001));
        assert_eq!((total.offered, total.unsent), (20_000_000, 20_000_000));
        // A number that is asked for is not exceeded.
        let (mut tally, arrivals) = (Tally::new(0), Arrivals::new(Curve::constant(1e7), 0.0, None));
        let mut few = Open::new(arrivals, 1, 2_000_000, 0, SECOND);
        few.end(SECOND, &mut tally);
        assert_eq!((tally.total().offered, few.backlog.len()), (2_000_000, MAX_BACKLOG));
        // The warm-up is not part of it.
        let (mut tally, arrivals) = (Tally::new(SECOND), Arrivals::new(Curve::constant(1e7), 0.0, None));
        Open::new(arrivals, 1, 5, SECOND, 3 * SECOND).end(2 * SECOND, &mut tally);
        let (measured, total) = (tally.measured(), tally.total());
        assert_eq!((measured.offered, measured.unsent, total.offered), (5, 5, 10_000_004));
    }

    #[test]
    fn limit_of_what_waits_is_that_of_all_threads_together() {
        const SECOND: u64 = 1_000_000_000;
        for threads in [1, 3, 4] {
            let waiting = (0..threads).map(|thread| {
                let arrivals = Arrivals::part(Curve::constant(1e7), 0.0, None, thread, threads);
                let mut open = Open::new(arrivals, threads, u64::MAX, 0, SECOND);
                open.end(SECOND, &mut Tally::new(0));
                open.backlog.len()
            });
            let waiting: usize = waiting.sum();
            assert!((MAX_BACKLOG..MAX_BACKLOG + threads as usize).contains(&waiting), "{threads}: {waiting}");
        }
    }

    #[test]
    fn late_is_what_came_after_the_connection_had_room_or_what_was_seen_too_late() {
        let mut open = open(9, 20, u64::MAX);
        let due = |at, seen| Due { at, seen };
        open.sent(due(19, 19), 0, 5_000_000);
        assert_eq!(open.lateness.len(), 0, "the warm-up does not count");
        open.sent(due(20, 20), 0, 1_000_020);
        open.sent(due(20, 20), 7_000_020, 7_500_020);
        open.sent(due(20, 500_020), 7_000_020, 7_100_020);
        assert_eq!(open.lateness.len(), 3);
        assert!((999_000..1_001_000).contains(&open.lateness.max()), "{}", open.lateness.max());
        // It did not run while this one became due, and then that waited for a connection besides.
        open.sent(due(20, 9_000_020), 9_500_020, 9_500_020);
        assert!((8_990_000..9_010_000).contains(&open.lateness.max()), "{}", open.lateness.max());
        let mut tally = Tally::new(0);
        open.collect(15 * MS, &mut tally);
        assert_eq!(open.backlog, [due(10 * MS, 15 * MS)]);
    }

    #[test]
    fn what_waits_is_taken_in_order_or_given_up_and_counted() {
        let mut tally = Tally::new(0);
        let mut offered = open(9, 0, u64::MAX);
        offered.collect(40 * MS, &mut tally);
        assert_eq!(offered.backlog.pop_front().map(|due| due.at), Some(10 * MS));
        let mut pace = Pace::Open(Box::new(offered));
        assert!(pace.has_backlog());
        pace.give_up(&mut tally);
        assert!(!pace.has_backlog());
        assert_eq!((tally.total().offered, tally.total().unsent), (4, 3));
    }
}

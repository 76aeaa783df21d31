//! When the next request may be sent: when there is room for it (closed loop), or when it is due (open loop).
//!
//! No I/O and no clock here: time is an argument, in nanoseconds since the start of the run.

use std::collections::VecDeque;
use std::time::Duration;

use super::histogram::Latencies;
use super::tally::Tally;
use tidemill::schedule::Arrivals;

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

/// Requests that are due, and those to come.
#[derive(Debug)]
pub(crate) struct Open {
    arrivals: Arrivals,
    /// When those were due that wait for a connection with room.
    pub(crate) backlog: VecDeque<u64>,
    /// Connections that can take one, the first free first.
    pub(crate) ready: VecDeque<usize>,
    /// How late the generator itself was.
    pub(crate) lateness: Latencies,
    left: u64,
    measure_from: u64,
    until: u64,
}

impl Open {
    pub(crate) fn new(arrivals: Arrivals, requests: u64, measure_from: u64, until: u64) -> Self {
        Self {
            arrivals,
            backlog: VecDeque::new(),
            ready: VecDeque::new(),
            lateness: Latencies::new(),
            left: requests,
            measure_from,
            until,
        }
    }

    /// When the next request is due.
    pub(crate) fn next_due(&self) -> u64 {
        Duration::try_from_secs_f64(self.arrivals.peek()).map_or(u64::MAX, super::nanoseconds)
    }

    /// Takes in what has become due by `now`.
    pub(crate) fn collect(&mut self, now: u64, tally: &mut Tally) {
        loop {
            let due = self.next_due();
            if due > now || due >= self.until || (due >= self.measure_from && self.left == 0) {
                return;
            }
            self.left -= u64::from(due >= self.measure_from);
            self.backlog.push_back(due);
            tally.offered(due, 1);
            self.arrivals.advance();
        }
    }

    /// What a connection that is handed requests now gets as its fair part.
    pub(crate) fn fair_part(&self) -> usize {
        self.backlog.len().div_ceil(self.ready.len() + 1)
    }

    /// Takes a request that was due at `due` for a connection that has had room since `free_since`.
    pub(crate) fn sent(&mut self, due: u64, free_since: u64, now: u64) {
        if due >= self.measure_from {
            // Late by its own doing is only what came after the connection had room.
            self.lateness.record(now.saturating_sub(due.max(free_since)));
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

    /// One request for a connection that is opened for it, and when it was due.
    pub(crate) fn take_one(&mut self, now: u64, tally: &mut Tally) -> Option<u64> {
        match self {
            Self::Closed(closed) => (closed.take(1, now, tally) > 0).then_some(now),
            Self::Open(open) => open.backlog.pop_front(),
        }
    }

    /// Gives up what waits for a connection.
    pub(crate) fn give_up(&mut self, tally: &mut Tally) {
        if let Self::Open(open) = self {
            open.backlog.drain(..).for_each(|due| tally.unsent(due));
        }
    }
}

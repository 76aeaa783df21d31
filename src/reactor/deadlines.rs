//! Deadlines of connections. No clock: time is an argument.
//!
//! An entry says when to look at a connection; what is due then, the connection knows. So a deadline that moves ahead, with
//! each byte that a peer takes, costs nothing: the entry is looked at when it was due at first, and goes back. A further
//! deadline is a further question in `Reactor::deadline_of`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use crate::job::ConnId;

/// When to look at which connection, in any order; at most one entry for each (`Connection::has_deadline`). One that ends
/// leaves its entry behind; whoever pops it finds the generation old.
#[derive(Debug, Default)]
pub(super) struct Deadlines(BinaryHeap<Reverse<(Instant, ConnId)>>);

impl Deadlines {
    pub(super) fn set(&mut self, at: Instant, connection: ConnId) {
        self.0.push(Reverse((at, connection)));
    }

    /// The earliest.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out one that has passed.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<ConnId> {
        self.next().filter(|at| *at <= now)?;
        self.0.pop().map(|Reverse((_, connection))| connection)
    }
}

/// Connections that end after a fixed time, the oldest first: a queue keeps them sorted.
///
/// A connection that ends earlier leaves its entry behind; whoever pops it finds the generation old. That bounds the
/// queue by the connections that began to wait within one duration.
#[derive(Debug)]
pub(super) struct Expiries {
    after: Duration,
    queue: VecDeque<(Instant, ConnId)>,
}

impl Expiries {
    pub(super) fn new(after: Duration) -> Expiries {
        Expiries { after, queue: VecDeque::new() }
    }

    pub(super) fn begin(&mut self, now: Instant, connection: ConnId) {
        self.queue.push_back((now + self.after, connection));
    }

    /// The earliest.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.front().map(|(at, _)| *at)
    }

    /// Takes out the earliest, whether it has passed or not.
    pub(super) fn pop(&mut self) -> Option<ConnId> {
        self.queue.pop_front().map(|(_, connection)| connection)
    }

    /// Takes out one that has passed.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<ConnId> {
        self.queue.front().filter(|(at, _)| *at <= now)?;
        self.pop()
    }
}

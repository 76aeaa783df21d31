//! Deadlines of connections. No clock: time is an argument.
//!
//! An entry says when to look at a connection; what is due then, the connection knows. So a deadline that moves ahead, with
//! each byte that a peer takes, costs nothing: the entry is looked at when it was due at first, and goes back. A further
//! deadline is a further question in `Connection::deadline`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use crate::clock::Nanos;
use crate::slots::ConnId;

/// When to look at which connection, by the pool's clock, in any order. One entry of each counts (`Connection::look_at`);
/// those that do not, or whose connection has ended, are left behind, and taken out when they are more than the others.
#[derive(Debug, Default)]
pub(super) struct Deadlines(BinaryHeap<Reverse<(Nanos, ConnId)>>);

/// So many entries are not worth looking for those that do not count.
const FEW_ENTRIES: usize = 1024;

impl Deadlines {
    pub(super) fn set(&mut self, at: Nanos, connection: ConnId) {
        self.0.push(Reverse((at, connection)));
    }

    /// The earliest.
    pub(super) fn next(&self) -> Option<Nanos> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out one that has passed.
    pub(super) fn pop_due(&mut self, now: Nanos) -> Option<(Nanos, ConnId)> {
        self.next().filter(|at| *at <= now)?;
        self.0.pop().map(|Reverse(entry)| entry)
    }

    /// Takes out those that do not count, once they may be more than the `connections` that there are.
    pub(super) fn prune(&mut self, connections: usize, mut counts: impl FnMut(Nanos, ConnId) -> bool) {
        if self.0.len() > 2 * connections + FEW_ENTRIES {
            self.0.retain(|Reverse((at, id))| counts(*at, *id));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_do_not_count_are_never_more_than_the_others_and_a_few() {
        let mut deadlines = Deadlines::default();
        let id = |generation| ConnId { slot: 0, generation };
        for at in 1..100_000 {
            deadlines.set(Nanos::from(at), id(at));
            // Only the last ten are there.
            deadlines.prune(10, |_, entry| entry.generation + 10 > at);
            assert!(deadlines.0.len() <= 20 + FEW_ENTRIES);
        }
        assert!(deadlines.pop_due(10).is_none(), "it was taken out");
        assert_eq!(std::iter::from_fn(|| deadlines.pop_due(Nanos::MAX)).last(), Some((99_999, id(99_999))));
    }
}

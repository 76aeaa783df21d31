//! Deadlines of connections. No clock: time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::job::ConnId;

/// Deadlines that all lie the same duration ahead when they are set, so that a queue keeps them sorted.
///
/// A connection that ends earlier leaves its entry behind; whoever pops it finds the generation old. That bounds the
/// queue by the connections that began to wait within one duration.
#[derive(Debug)]
pub(super) struct Deadlines {
    after: Duration,
    queue: VecDeque<(Instant, ConnId)>,
}

impl Deadlines {
    pub(super) fn new(after: Duration) -> Deadlines {
        Deadlines { after, queue: VecDeque::new() }
    }

    pub(super) fn set(&mut self, now: Instant, connection: ConnId) {
        self.queue.push_back((now + self.after, connection));
    }

    /// The earliest deadline.
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

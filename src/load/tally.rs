//! One thread's counts, its latencies since the last row, and the first example of everything that went wrong.
//!
//! The ledger calls this for every request; nothing here allocates while replies are right.

use std::collections::BTreeMap;

use super::histogram::Latencies;
use super::ledger::{Asked, Example};

/// What can go wrong with a request or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A reply that is not what was asked for.
    Wrong,
    /// A reply that came after one to a later request.
    Reordered,
    /// A second reply to one request.
    Duplicated,
    /// No reply.
    Lost,
    /// Bytes that answer no request.
    Unasked,
    /// A connection that was not accepted, or not in time.
    Refused,
    /// A connection ended by a reset.
    Reset,
    /// A connection that the server ended before it was done.
    ClosedEarly,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wrong => "wrong",
            Self::Reordered => "reordered",
            Self::Duplicated => "duplicated",
            Self::Lost => "lost",
            Self::Unasked => "unasked",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::ClosedEarly => "closed_early",
        }
    }
}

/// What became of the requests. `sent = right + wrong + reordered + lost + unread` once nothing is outstanding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) right: u64,
    pub(crate) wrong: u64,
    pub(crate) reordered: u64,
    pub(crate) lost: u64,
    /// Outstanding when the server stopped as expected, after a clean prefix of the replies.
    pub(crate) unread: u64,
    /// Replies beyond the first to one request; not part of the sum.
    pub(crate) duplicated: u64,
    /// Pieces of the stream that answer no request; not part of the sum.
    pub(crate) unasked: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.right += other.right;
        self.wrong += other.wrong;
        self.reordered += other.reordered;
        self.lost += other.lost;
        self.unread += other.unread;
        self.duplicated += other.duplicated;
        self.unasked += other.unasked;
    }

    pub(crate) fn errors(&self) -> u64 {
        self.wrong + self.reordered + self.lost + self.duplicated + self.unasked
    }
}

/// What became of the connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Connections {
    pub(crate) opened: u64,
    pub(crate) refused: u64,
    pub(crate) reset: u64,
    pub(crate) closed_early: u64,
    /// Ended by a server that was expected to stop, with nothing out of order.
    pub(crate) stopped: u64,
}

impl Connections {
    pub(crate) fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.refused += other.refused;
        self.reset += other.reset;
        self.closed_early += other.closed_early;
        self.stopped += other.stopped;
    }

    pub(crate) fn errors(&self) -> u64 {
        self.refused + self.reset + self.closed_early
    }
}

/// The first of its kind.
#[derive(Debug, Clone)]
pub(crate) struct First {
    /// Nanoseconds since the start of the run.
    pub(crate) at: u64,
    pub(crate) example: Example,
}

/// What happened since the last row.
#[derive(Debug)]
pub(crate) struct Recent {
    pub(crate) sent: u64,
    pub(crate) right: u64,
    pub(crate) errors: u64,
    pub(crate) latencies: Latencies,
}

/// One thread's books.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Requests due from here on are measured; those before are the warm-up.
    measure_from: u64,
    warm_up: Counts,
    measured: Counts,
    pub(crate) connections: Connections,
    pub(crate) examples: BTreeMap<Kind, First>,
    pub(crate) recent: Recent,
    /// The last `ERROR` line that the server sent, until a connection's end claims it.
    pub(crate) last_said: Option<String>,
    /// When the last reply came that answered a request.
    pub(crate) last_reply: u64,
    /// The longest that a right reply took since its request was sent.
    pub(crate) slowest: u64,
}

impl Tally {
    pub(crate) fn new(measure_from: u64) -> Self {
        Self {
            measure_from,
            warm_up: Counts::default(),
            measured: Counts::default(),
            connections: Connections::default(),
            examples: BTreeMap::new(),
            recent: Recent { sent: 0, right: 0, errors: 0, latencies: Latencies::new() },
            last_said: None,
            last_reply: 0,
            slowest: 0,
        }
    }

    pub(crate) fn measured(&self) -> Counts {
        self.measured
    }

    pub(crate) fn total(&self) -> Counts {
        let mut total = self.measured;
        total.add(&self.warm_up);
        total
    }

    fn counts(&mut self, asked: Asked) -> &mut Counts {
        if asked.due >= self.measure_from { &mut self.measured } else { &mut self.warm_up }
    }

    pub(crate) fn sent(&mut self, asked: Asked, count: u64) {
        self.counts(asked).sent += count;
        self.recent.sent += count;
    }

    pub(crate) fn right(&mut self, asked: Asked, count: u64, now: u64) {
        self.counts(asked).right += count;
        self.recent.right += count;
        self.last_reply = now;
        self.slowest = self.slowest.max(now.saturating_sub(asked.sent));
        if asked.due >= self.measure_from {
            self.recent.latencies.record_n(now.saturating_sub(asked.due), count);
        }
    }

    pub(crate) fn reordered(&mut self, asked: Asked, now: u64, example: impl FnOnce() -> Example) {
        self.counts(asked).reordered += 1;
        self.last_reply = now;
        self.error(Kind::Reordered, now, example);
    }

    pub(crate) fn wrong(&mut self, asked: Asked, now: u64, example: impl FnOnce() -> Example) {
        self.counts(asked).wrong += 1;
        self.error(Kind::Wrong, now, example);
    }

    pub(crate) fn lost(&mut self, asked: Asked, now: u64, example: impl FnOnce() -> Example) {
        self.counts(asked).lost += 1;
        self.error(Kind::Lost, now, example);
    }

    pub(crate) fn unread(&mut self, asked: Asked) {
        self.counts(asked).unread += 1;
    }

    /// A reply too many, which belongs to no outstanding request.
    pub(crate) fn extra(&mut self, kind: Kind, now: u64, example: impl FnOnce() -> Example) {
        let counts = if now >= self.measure_from { &mut self.measured } else { &mut self.warm_up };
        if kind == Kind::Duplicated {
            counts.duplicated += 1;
        } else {
            counts.unasked += 1;
        }
        self.error(kind, now, example);
    }

    /// An error, of which the first example is kept.
    pub(crate) fn error(&mut self, kind: Kind, now: u64, example: impl FnOnce() -> Example) {
        self.recent.errors += 1;
        self.examples.entry(kind).or_insert_with(|| First { at: now, example: example() });
    }

    /// An `ERROR` line of the server.
    pub(crate) fn said(&mut self, line: &[u8]) {
        self.last_said = Some(line.escape_ascii().to_string());
    }
}

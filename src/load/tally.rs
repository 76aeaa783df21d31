//! One thread's counts, its latencies since the last row, and the first example of everything that went wrong.
//!
//! The ledger calls this for every request; nothing here allocates while replies are right.

use std::collections::BTreeMap;

use super::histogram::Latencies;
use super::ledger::{Asked, Example};
use crate::report::load::{Connections, Requests};

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

/// The first of its kind.
#[derive(Debug, Clone)]
pub(crate) struct First {
    /// Nanoseconds since the start of the run.
    pub(crate) at: u64,
    pub(crate) example: Example,
}

/// What happened since the last row, of what is measured: all rows together are the measured part, to the request; but for errors,
/// which are of the row in which they are found, and for what is due and not taken in yet while a million requests wait, which is
/// of the row in which it is taken in, or given up at the end.
#[derive(Debug)]
pub(crate) struct Recent {
    pub(crate) offered: u64,
    pub(crate) sent: u64,
    pub(crate) right: u64,
    pub(crate) errors: u64,
    pub(crate) latencies: Latencies,
}

impl Recent {
    pub(crate) fn reset(&mut self) {
        (self.offered, self.sent, self.right, self.errors) = (0, 0, 0, 0);
        self.latencies.reset();
    }
}

/// One thread's books.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Requests due from here on are measured; those before are the warm-up.
    measure_from: u64,
    warm_up: Requests,
    measured: Requests,
    pub(crate) connections: Connections,
    pub(crate) examples: BTreeMap<Kind, First>,
    pub(crate) recent: Recent,
    /// Errors of the whole run, for whoever asks whether there was another one.
    pub(crate) errors: u64,
    /// When the last reply came that answered a request.
    pub(crate) last_reply: u64,
    /// The longest that a right reply took since its request was sent.
    pub(crate) slowest: u64,
}

impl Tally {
    pub(crate) fn new(measure_from: u64) -> Self {
        Self {
            measure_from,
            warm_up: Requests::default(),
            measured: Requests::default(),
            connections: Connections::default(),
            examples: BTreeMap::new(),
            recent: Recent { offered: 0, sent: 0, right: 0, errors: 0, latencies: Latencies::new() },
            errors: 0,
            last_reply: 0,
            slowest: 0,
        }
    }

    pub(crate) fn measured(&self) -> Requests {
        self.measured
    }

    pub(crate) fn total(&self) -> Requests {
        let mut total = self.measured;
        total.add(&self.warm_up);
        total
    }

    /// The books in which a request belongs that was due then.
    fn counts(&mut self, due: u64) -> &mut Requests {
        if self.is_measured(due) { &mut self.measured } else { &mut self.warm_up }
    }

    fn is_measured(&self, due: u64) -> bool {
        due >= self.measure_from
    }

    pub(crate) fn offered(&mut self, due: u64, count: u64) {
        if self.is_measured(due) {
            self.measured.offered += count;
            self.recent.offered += count;
        } else {
            self.warm_up.offered += count;
        }
    }

    pub(crate) fn unsent(&mut self, due: u64, count: u64) {
        self.counts(due).unsent += count;
    }

    pub(crate) fn sent(&mut self, asked: Asked, count: u64) {
        if self.is_measured(asked.due) {
            self.measured.sent += count;
            self.recent.sent += count;
        } else {
            self.warm_up.sent += count;
        }
    }

    pub(crate) fn right(&mut self, asked: Asked, count: u64, now: u64) {
        self.last_reply = now;
        self.slowest = self.slowest.max(now.saturating_sub(asked.sent));
        if self.is_measured(asked.due) {
            self.measured.right += count;
            self.recent.right += count;
            self.recent.latencies.record_n(now.saturating_sub(asked.due), count);
        } else {
            self.warm_up.right += count;
        }
    }

    pub(crate) fn reordered(&mut self, asked: Asked, now: u64, example: impl FnOnce() -> Example) {
        self.counts(asked.due).reordered += 1;
        self.last_reply = now;
        self.error(Kind::Reordered, now, example);
    }

    pub(crate) fn wrong(&mut self, asked: Asked, now: u64, example: impl FnOnce() -> Example) {
        self.counts(asked.due).wrong += 1;
        self.error(Kind::Wrong, now, example);
    }

    pub(crate) fn lost(&mut self, asked: Asked, now: u64, example: impl FnOnce() -> Example) {
        self.counts(asked.due).lost += 1;
        self.error(Kind::Lost, now, example);
    }

    pub(crate) fn unread(&mut self, asked: Asked) {
        self.counts(asked.due).unread += 1;
    }

    /// A reply too many, which belongs to no outstanding request.
    pub(crate) fn extra(&mut self, kind: Kind, now: u64, example: impl FnOnce() -> Example) {
        let counts = self.counts(now);
        if kind == Kind::Duplicated {
            counts.duplicated += 1;
        } else {
            counts.unasked += 1;
        }
        self.error(kind, now, example);
    }

    /// An error, of which the first example is kept.
    pub(crate) fn error(&mut self, kind: Kind, now: u64, example: impl FnOnce() -> Example) {
        self.errors += 1;
        if self.is_measured(now) {
            self.recent.errors += 1;
        }
        self.examples.entry(kind).or_insert_with(|| First { at: now, example: example() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(got: &str) -> Example {
        Example { got: got.to_owned(), ..Example::default() }
    }

    #[test]
    fn request_belongs_to_the_part_in_which_it_was_due() {
        let mut tally = Tally::new(100);
        for due in [99, 100] {
            let asked = Asked { due, sent: due + 5 };
            tally.offered(due, 8);
            tally.sent(asked, 7);
            tally.unsent(due, 1);
            tally.right(asked, 2, 300);
            tally.wrong(asked, due, || example("x"));
            tally.lost(asked, due, || example("x"));
            tally.reordered(asked, 303, || example("x"));
            tally.unread(asked);
            tally.extra(Kind::Duplicated, due, || example("x"));
            tally.extra(Kind::Unasked, due, || example("x"));
        }
        let part = Requests {
            offered: 8,
            sent: 7,
            unsent: 1,
            right: 2,
            wrong: 1,
            reordered: 1,
            duplicated: 1,
            lost: 1,
            unread: 1,
            unasked: 1,
        };
        let mut both = part;
        both.add(&part);
        assert_eq!((tally.measured(), tally.total()), (part, both));
        assert_eq!((part.errors(), both.errors()), (5, 10));
        let recent = &tally.recent;
        // An error of the warm-up that is found out later is one of the row in which it is.
        assert_eq!((recent.offered, recent.sent, recent.right, recent.errors), (8, 7, 2, 6));
        assert_eq!((recent.latencies.len(), tally.errors), (2, 10));
        assert_eq!((tally.last_reply, tally.slowest), (303, 300 - 104));
        tally.recent.reset();
        assert_eq!((tally.recent.sent, tally.recent.right, tally.recent.latencies.len()), (0, 0, 0));
        assert_eq!((tally.recent.offered, tally.recent.errors), (0, 0));
    }

    #[test]
    fn first_of_each_kind_is_kept() {
        let mut tally = Tally::new(0);
        let kinds = [Kind::Reset, Kind::Wrong, Kind::Reset];
        for (at, kind) in (1..).zip(kinds) {
            tally.error(kind, at, || example(kind.name()));
        }
        let kept = tally.examples.iter().map(|(kind, first)| (*kind, first.at, first.example.got.as_str()));
        assert_eq!(kept.collect::<Vec<_>>(), [(Kind::Wrong, 2, "wrong"), (Kind::Reset, 1, "reset")]);
    }

    #[test]
    fn requests_add_up_only_where_each_is_accounted_for_once() {
        let fine = Requests {
            offered: 9,
            unsent: 2,
            sent: 7,
            right: 3,
            wrong: 1,
            reordered: 1,
            lost: 1,
            unread: 1,
            duplicated: 5,
            unasked: 5,
        };
        assert!(fine.adds_up());
        let missing: [fn(&mut Requests); 7] = [
            |it| it.offered += 1,
            |it| it.unsent += 1,
            |it| it.right += 1,
            |it| it.wrong += 1,
            |it| it.reordered += 1,
            |it| it.lost += 1,
            |it| it.unread += 1,
        ];
        for change in missing {
            let mut requests = fine;
            change(&mut requests);
            assert!(!requests.adds_up(), "{requests:?}");
        }
    }
}

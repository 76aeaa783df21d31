//! Connections of services that look on, such as the admin address: served as all are, but on accounts of their own.
//!
//! They are no clients: in no statistics, not under `max_connections`, not held back by `max_pending` or for the memory of others,
//! left alone by a graceful stop. All of that is one thing: while the reactor does something for one of them, what it counts in is
//! exchanged. Held by the `admin` tests.

use std::collections::VecDeque;
use std::mem::swap;

use super::Reactor;
use super::table::Entry;
use crate::connection::Role;
use crate::metrics::Totals;
use crate::slots::ConnId;

/// What is counted for connections that look on, while that for clients is in its place; and the other way round.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// The reactor does something for one of them.
    pub(super) entered: bool,
    totals: Totals,
    lines_out: usize,
    stalled: VecDeque<ConnId>,
    deferred: usize,
}

impl Reactor {
    /// Does something for a connection that looks on.
    pub(super) fn aside<T>(&mut self, work: impl FnOnce(&mut Reactor) -> T) -> T {
        self.counters.inline_overruns += self.inline.record();
        self.change_accounts();
        let done = work(self);
        self.change_accounts();
        self.inline.forget();
        done
    }

    fn change_accounts(&mut self) {
        self.aside.entered ^= true;
        swap(&mut self.counters.totals, &mut self.aside.totals);
        swap(&mut self.lines_out, &mut self.aside.lines_out);
        swap(&mut self.stalled, &mut self.aside.stalled);
        swap(&mut self.deferred, &mut self.aside.deferred);
    }

    /// Whether this is a connection that looks on, and the accounts are those of clients.
    pub(super) fn steps_aside(&mut self, id: ConnId) -> bool {
        !self.aside.entered
            && matches!(self.table.get(id), Some(Entry { connection, .. }) if connection.role == Role::Aside)
    }

    /// Connections of clients, those that are turned away among them.
    pub(super) fn clients(&self) -> usize {
        self.table.len() - usize::try_from(self.aside.totals.open).unwrap_or(usize::MAX)
    }
}

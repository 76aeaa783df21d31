//! What becomes of peers, and of handlers, that take too long.
//!
//! A connection has at most one entry among the deadlines that counts (`Connection::look_at`). It says when to look; what is
//! due then, and whether it still is, the connection knows. So a request costs a look at what is there, and no more.

use std::time::Duration;

use super::Reactor;
use super::table::Entry;
use crate::clock::Nanos;
use crate::connection::{CloseReason, Phase};
use crate::job::ConnId;

impl Reactor {
    /// Sees that a connection is looked at when its earliest deadline is due.
    pub(super) fn arm(&mut self, id: ConnId) {
        if let Some((at, _)) = self.deadline_of(id)
            && let Some(Entry { connection, .. }) = self.table.get(id)
            && (connection.look_at == 0 || at < connection.look_at)
        {
            connection.look_at = at.max(1);
            self.deadlines.set(at.max(1), id);
            let table = &mut self.table;
            self.deadlines.prune(table.len(), |at, id| {
                table.get(id).is_some_and(|entry| entry.connection.look_at == at)
            });
        }
    }

    fn deadline_of(&mut self, id: ConnId) -> Option<(Nanos, CloseReason)> {
        let now = self.turn_at;
        let Entry { connection, .. } = self.table.get(id)?;
        let generations = self.free.generations();
        connection.deadline(&self.settings.timeouts, now, || generations.taken_at(id, now))
    }

    /// The entry of a connection that was due at `at` came up.
    pub(super) fn look_at(&mut self, at: Nanos, id: ConnId) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        // An earlier one was put in its place.
        if connection.look_at != at {
            return;
        }
        connection.look_at = 0;
        match self.deadline_of(id) {
            Some((at, reason)) if at <= self.turn_at => self.time_out(id, reason),
            Some(_) => self.arm(id),
            None => {}
        }
    }

    fn time_out(&mut self, id: ConnId, reason: CloseReason) {
        match reason {
            CloseReason::LineTimeout => {
                let Some(Entry { connection, .. }) = self.table.get(id) else { return };
                connection.phase = Phase::Closing(reason);
                let free = connection.discard_input();
                self.litter.drop_later(free);
                self.list(id);
            }
            CloseReason::RequestTimeout => {
                let id = self.orphan(id);
                let Some(Entry { connection, .. }) = self.table.get(id) else { return };
                connection.phase = Phase::Closing(reason);
                let free = connection.discard_input();
                self.litter.drop_later(free);
                self.list(id);
            }
            CloseReason::IdleTimeout => {
                let Some(Entry { connection, .. }) = self.table.get(id) else { return };
                connection.phase = Phase::Closing(reason);
                self.list(id);
            }
            _ => self.close(id, reason),
        }
    }

    /// Lets a connection forget the job that is out: the handler runs on, and what it will say is for nobody, as it comes back
    /// to a name that nobody has. Returns the new name.
    fn orphan(&mut self, id: ConnId) -> ConnId {
        self.orphans.insert(id);
        let Some(Entry { connection, .. }) = self.table.get(id) else { return id };
        connection.set_job_back();
        // Both hold the old name.
        (connection.listed, connection.look_at) = (false, 0);
        self.table.rename(id)
    }
}

/// `timeout` as it is told: `30s`, `500ms`, `1.5s`.
pub(super) fn told(timeout: Option<Nanos>) -> Duration {
    Duration::from_nanos(timeout.unwrap_or_default())
}

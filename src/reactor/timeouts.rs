//! What becomes of peers, and of handlers, that take too long.
//!
//! A connection has at most one entry among the deadlines that counts (`Connection::look_at`). It says when to look; what is
//! due then, and whether it still is, the connection knows. So a request costs a look at what is there, and no more.

use std::time::{Duration, Instant};

use super::Reactor;
use super::table::Entry;
use crate::clock::Nanos;
use crate::connection::Phase;
use crate::mail::Mail;
use crate::metrics::Counters;
use crate::reason::CloseReason;
use crate::slots::ConnId;

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
        let slots = self.free.slots();
        connection.deadline(&self.settings.services[connection.service() as usize].timeouts, now, || {
            slots.taken_at(id, now)
        })
    }

    /// The entry of a connection that was due at `at` came up.
    pub(super) fn look_at(&mut self, at: Nanos, id: ConnId, now: Instant) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        // An earlier one was put in its place.
        if connection.look_at != at {
            return;
        }
        if self.steps_aside(id) {
            return self.aside(|reactor| reactor.look_at(at, id, now));
        }
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        connection.look_at = 0;
        if self.is_due(id).is_some() {
            // Whoever kept its time must not pay for a loop that was held up, or a process that was stopped: the event may
            // not have been taken from poll yet.
            self.catch_up(id, now);
        }
        match self.is_due(id) {
            Some(CloseReason::RequestTimeout) if self.has_mail_of(id) => {
                // It is answered, and its turn comes.
                self.look_again_next_turn(id);
            }
            Some(reason) => self.time_out(id, reason),
            None => self.arm(id),
        }
    }

    /// Why the connection has to end now, if it has to.
    fn is_due(&mut self, id: ConnId) -> Option<CloseReason> {
        let (at, reason) = self.deadline_of(id)?;
        (at <= self.turn_at).then_some(reason)
    }

    /// Reads and writes what can be read and written, whether an event told of it or not.
    fn catch_up(&mut self, id: ConnId, now: Instant) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        connection.set_readable();
        connection.set_writable();
        let active_ms = connection.active_ms;
        let moved = |counters: &Counters| counters.read_bytes + counters.written_bytes;
        let before = moved(&self.counters);
        self.serve(id, now);
        // To have been looked at in vain is not to have been active.
        if let Some(Entry { connection, .. }) = self.table.get(id)
            && moved(&self.counters) == before
        {
            connection.active_ms = active_ms;
        }
    }

    /// Whether something of this connection is here that was not taken in yet.
    fn has_mail_of(&self, id: ConnId) -> bool {
        self.finished.iter().any(|mail| match mail {
            Mail::Job(job) | Mail::Inline(job) => job.origin.id == id,
            Mail::Completion(completion) => completion.connection == id,
            Mail::Piece(_) | Mail::Push(_) | Mail::Join(_) | Mail::Question(_) => false,
            #[cfg(feature = "admin")]
            Mail::Survey(_) => false,
        })
    }

    fn look_again_next_turn(&mut self, id: ConnId) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        connection.look_at = self.turn_at + 1;
        self.deadlines.set(connection.look_at, id);
    }

    fn time_out(&mut self, id: ConnId, reason: CloseReason) {
        match reason {
            CloseReason::LineTimeout | CloseReason::ProxyHeader => {
                self.close_unread(id, reason);
                self.list(id);
            }
            CloseReason::RequestTimeout => {
                let Some(Entry { connection, .. }) = self.table.get(id) else { return };
                let id = if connection.end_await().is_some() {
                    // What will be given is for nobody.
                    self.deferred -= 1;
                    self.drop_requests(1);
                    id
                } else {
                    self.orphan(id)
                };
                self.close_unread(id, reason);
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
        connection.opening = false;
        connection.drop_writer();
        if self.services[connection.service() as usize].has_sessions {
            self.gone.insert(id, CloseReason::RequestTimeout);
        }
        // Both hold the old name.
        (connection.listed, connection.look_at) = (false, 0);
        self.table.rename(id)
    }
}

/// `timeout` as it is told: `30s`, `500ms`, `1.5s`.
pub(super) fn told(timeout: Option<Nanos>) -> Duration {
    Duration::from_nanos(timeout.unwrap_or_default())
}

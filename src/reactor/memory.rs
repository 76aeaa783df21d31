//! The limit of what all connections hold together: from half of it on nothing is read ahead, above it those that hold most
//! are closed until it is met.

use super::Reactor;
use super::table::Entry;
use crate::connection::Role;
use crate::job::ConnId;
use crate::reason::CloseReason;

/// So large a part of the limit may be above it before anybody is closed: bookkeeping and capacity besides the bytes
/// themselves, so that a reply as long as the limit gets through.
const LEEWAY: u64 = 16;

impl Reactor {
    /// Whether connections hold so much that nothing more is read ahead.
    pub(super) fn is_sparing(&self) -> bool {
        self.counters.held_bytes > self.settings.max_memory_bytes as u64 / 2
    }

    /// Closes the connections that hold most until all together hold no more than they may.
    pub(super) fn obey_memory_limit(&mut self) {
        let limit = self.settings.max_memory_bytes as u64;
        if self.counters.held_bytes <= limit + limit / LEEWAY {
            return;
        }
        let mut holders: Vec<(usize, ConnId)> = Vec::new();
        for id in self.table.ids() {
            if let Some(Entry { connection, .. }) = self.table.get(id)
                && connection.role == Role::Requests
                && connection.accounted_bytes > 0
            {
                holders.push((connection.accounted_bytes, id));
            }
        }
        holders.sort_unstable();
        while self.counters.held_bytes > limit
            && let Some((held, id)) = holders.pop()
        {
            tracing::debug!(held, "closing the connection that holds most");
            self.close(id, CloseReason::Memory);
        }
    }
}

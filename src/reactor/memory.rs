//! The limit of what all connections hold together: from half of it on nothing is read ahead, above it those that hold most
//! are closed until it is met, a few in each turn: a hundred at once would take ten milliseconds, in which nobody is served.

use super::Reactor;
use super::table::Entry;
use crate::clock::Nanos;
use crate::connection::Role;
use crate::reason::CloseReason;

/// So large a part of the limit may be above it before anybody is closed: bookkeeping and capacity besides the bytes
/// themselves, so that a reply as long as the limit gets through.
const LEEWAY: u64 = 16;
/// So large a part of the limit may be above it while closing takes several turns; above that it goes before all else.
const MOST_ABOVE: u64 = 8;
/// Connections are closed for so long in a turn, in nanoseconds: some five of them, as what they have sent and nobody has read
/// goes back too.
const CLOSING_NANOS: Nanos = 500_000;

impl Reactor {
    /// Whether connections hold so much that nothing more is read ahead.
    pub(super) fn is_sparing(&self) -> bool {
        self.counters.held_bytes > self.settings.max_memory_bytes as u64 / 2
    }

    /// Closes some of the connections that hold most, until all together hold no more than they may.
    pub(super) fn obey_memory_limit(&mut self) {
        let limit = self.settings.max_memory_bytes as u64;
        if self.holders.is_empty() && self.counters.held_bytes > limit.saturating_add(limit / LEEWAY) {
            self.list_holders();
        }
        if self.holders.is_empty() {
            return;
        }
        let clock = self.shared.hub.clock;
        let began = clock.now();
        while self.counters.held_bytes > limit
            && let Some((held, id)) = self.holders.pop()
        {
            // It may have gone, or have been read, meanwhile.
            if self.table.get(id).is_some_and(|entry| entry.connection.accounted_bytes >= held) {
                tracing::debug!(held, "closing the connection that holds most");
                self.close(id, CloseReason::Memory);
            }
            let spent = clock.now().saturating_sub(began) >= CLOSING_NANOS;
            if spent && self.counters.held_bytes <= limit + limit / MOST_ABOVE {
                return;
            }
        }
        // Whoever is left on it may stay.
        self.holders = Vec::new();
    }

    /// Lists who holds anything, those that hold most last.
    fn list_holders(&mut self) {
        for id in self.table.ids() {
            if let Some(Entry { connection, .. }) = self.table.get(id)
                && !matches!(connection.role, Role::TurnedAway | Role::Aside)
                && connection.accounted_bytes > 0
            {
                self.holders.push((connection.accounted_bytes, id));
            }
        }
        self.holders.sort_unstable();
    }
}

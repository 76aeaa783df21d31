//! What other threads know of the connections in each slot of the reactor's slab: who is there, since when a worker has its job,
//! and how much was pushed to it that the reactor has not taken in.
//!
//! All of it is relaxed: nothing else is read because of it, and what the reactor has just done may be seen late.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::clock::Nanos;
use crate::config::ServiceId;

/// Which connection: its place in the slab, and which of the connections that have had this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnId {
    pub(crate) slot: u32,
    /// Slots are reused. A job whose generation is old belongs to a connection that is gone.
    pub(crate) generation: u32,
}

/// A millisecond in nanoseconds.
pub(crate) const MS: Nanos = 1_000_000;

/// Milliseconds by which a moment may be ahead of the one from which it is seen: an hour, as no turn takes so long.
const MAX_AHEAD_MS: u32 = 3_600_000;

/// `now` in milliseconds; wraps after seven weeks, and is only compared with what is nearby.
#[expect(clippy::cast_possible_truncation, reason = "it wraps")]
pub(crate) fn to_ms(now: Nanos) -> u32 {
    (now / MS) as u32
}

/// The end of the millisecond that [`to_ms`] made `ms` of, seen from `now`: never earlier than the moment itself. That may be
/// ahead of `now`, which is then the reading of another thread, or one from the beginning of a turn.
pub(crate) fn from_ms(ms: u32, now: Nanos) -> Nanos {
    let (ago, ahead) = (to_ms(now).wrapping_sub(ms), ms.wrapping_sub(to_ms(now)));
    let now_ms = now / MS;
    let at_ms = match ahead <= MAX_AHEAD_MS {
        true => now_ms + Nanos::from(ahead),
        false => now_ms.saturating_sub(ago.into()),
    };
    (at_ms + 1) * MS
}

/// Slots in the first part of them; each further part has twice as many as the one before.
pub(crate) const FIRST_SLOTS: usize = 4096;
/// Parts, for more slots than a slab of 2^30 connections and those that are turned away has.
const PARTS: usize = 20;

/// What other threads know of the connections in each slot. Twelve bytes a slot, for the first 4096 of them, and beyond for at most
/// three times as many as ever were in use.
#[derive(Debug)]
pub(crate) struct Slots {
    parts: [OnceLock<Box<[Slot]>>; PARTS],
    /// Bytes on their way to a connection from which on nothing more is taken for it, of each service. Written by the reactor.
    max_posted_bytes: Box<[AtomicU32]>,
}

/// What workers, pushers and the reactor tell each other of a slot. Relaxed: nothing else is read because of it.
#[derive(Debug, Default)]
struct Slot {
    /// Of the connection that is there. Written by the reactor.
    generation: AtomicU32,
    /// When a worker took the present job, in milliseconds since the server's start, which wrap; 0 while none has. Set to 0 by
    /// the reactor when the job goes out, and then by the worker; only where handlers are timed.
    taken_ms: AtomicU32,
    /// Pushed bytes that the reactor has not taken in, added by pushers and subtracted by the reactor; and [`CHOKED`], set by the
    /// reactor.
    posted: AtomicU32,
}

/// The peer does not read what waits for it: more than the high watermark, and not yet less than the low one.
const CHOKED: u32 = 1 << 31;
/// Most bytes that one push counts for, so that the sum of a few does not reach [`CHOKED`].
const MAX_POSTED_BYTES: usize = 1 << 29;

/// Why nothing was taken for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It has ended.
    Gone,
    /// Its peer does not read.
    Full,
    /// The reactor has not taken in what was pushed before.
    Busy,
}

impl Slots {
    /// For a connection of service `n` nothing more is taken once `max_posted_bytes[n]` are on their way to it.
    pub(crate) fn new(max_posted_bytes: impl IntoIterator<Item = usize>) -> Arc<Slots> {
        let max_posted_bytes =
            max_posted_bytes.into_iter().map(|bytes| AtomicU32::new(posted_bytes(bytes))).collect();
        Arc::new(Slots { parts: [const { OnceLock::new() }; PARTS], max_posted_bytes })
    }

    /// From now on it is so many bytes, of each service. For the reactor.
    pub(crate) fn limit_posted(&self, max_posted_bytes: impl IntoIterator<Item = usize>) {
        for (most, bytes) in self.max_posted_bytes.iter().zip(max_posted_bytes) {
            most.store(posted_bytes(bytes), Relaxed);
        }
    }

    fn slot(&self, id: ConnId) -> Option<&Slot> {
        let (part, index) = place(id.slot);
        self.parts.get(part)?.get()?.get(index)
    }

    /// The connection of this name has its slot now. For the reactor.
    pub(crate) fn set(&self, id: ConnId) {
        let (part, index) = place(id.slot);
        if let Some(slots) = self.parts.get(part) {
            let slots = slots.get_or_init(|| (0..FIRST_SLOTS << part).map(|_| Slot::default()).collect());
            slots[index].generation.store(id.generation, Relaxed);
        }
    }

    /// The connection of this name has gone. For the reactor.
    pub(crate) fn clear(&self, id: ConnId) {
        self.set(ConnId { generation: id.generation.wrapping_add(1), ..id });
        self.set_choked(id, false);
    }

    /// Whether the connection of this name is there, as far as is known: what the reactor has just done may be seen late.
    pub(crate) fn has(&self, id: ConnId) -> bool {
        self.slot(id).is_none_or(|slot| slot.generation.load(Relaxed) == id.generation)
    }

    /// A worker has taken the job of this connection at `now`, or, with 0, it is on its way to one.
    pub(crate) fn set_taken(&self, id: ConnId, now: Nanos) {
        if let Some(slot) = self.slot(id) {
            slot.taken_ms.store(if now == 0 { 0 } else { to_ms(now).max(1) }, Relaxed);
        }
    }

    /// When a worker took the job of this connection, up to a millisecond late, seen from `now`; `None`: none has.
    pub(crate) fn taken_at(&self, id: ConnId, now: Nanos) -> Option<Nanos> {
        let taken = self.slot(id)?.taken_ms.load(Relaxed);
        (taken > 0).then(|| from_ms(taken, now))
    }

    /// Whether the peer of this connection leaves too much unread. For the reactor.
    pub(crate) fn set_choked(&self, id: ConnId, choked: bool) {
        let Some(slot) = self.slot(id) else { return };
        match choked {
            true => slot.posted.fetch_or(CHOKED, Relaxed),
            false => slot.posted.fetch_and(!CHOKED, Relaxed),
        };
    }

    /// `bytes` are about to be pushed to this connection of `service`.
    ///
    /// # Errors
    /// They may not be, and do not count.
    pub(crate) fn post(&self, id: ConnId, service: ServiceId, bytes: usize) -> Result<(), Refused> {
        let Some(slot) = self.slot(id).filter(|_| self.has(id)) else { return Err(Refused::Gone) };
        let most = self.max_posted_bytes[service as usize].load(Relaxed);
        let taken = slot
            .posted
            .fetch_update(Relaxed, Relaxed, |posted| (posted < most).then(|| posted + posted_bytes(bytes)));
        taken.map(drop).map_err(|posted| if posted & CHOKED > 0 { Refused::Full } else { Refused::Busy })
    }

    /// Whether pushed bytes are on their way to this connection.
    pub(crate) fn has_posted(&self, id: ConnId) -> bool {
        self.slot(id).is_some_and(|slot| slot.posted.load(Relaxed) & !CHOKED > 0)
    }

    /// The reactor has them.
    pub(crate) fn took_in(&self, id: ConnId, bytes: usize) {
        if let Some(slot) = self.slot(id) {
            slot.posted.fetch_sub(posted_bytes(bytes), Relaxed);
        }
    }
}

/// The part that a slot is in, and where in it.
#[inline]
fn place(slot: u32) -> (usize, usize) {
    let slot = slot as usize;
    let part = (slot / FIRST_SLOTS + 1).ilog2();
    (part as usize, slot - FIRST_SLOTS * ((1 << part) - 1))
}

/// What a push of `bytes` counts for.
fn posted_bytes(bytes: usize) -> u32 {
    u32::try_from(bytes.min(MAX_POSTED_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_place_of_its_own() {
        let mut next = (0, 0);
        for slot in 0..u32::try_from(9 * FIRST_SLOTS).unwrap() {
            assert_eq!(place(slot), next, "{slot}");
            next = if next.1 + 1 < FIRST_SLOTS << next.0 { (next.0, next.1 + 1) } else { (next.0 + 1, 0) };
        }
        assert!(place(1 << 30).0 < PARTS);
    }

    #[test]
    fn a_moment_in_milliseconds_is_no_earlier_than_it_was_wherever_it_is_seen_from() {
        let wrap = MS << 32;
        for at in [0, 1, MS - 1, MS, 999 * MS + 1, wrap - 1, wrap, wrap + 7 * MS - 1, 3 * wrap + 5] {
            let hours = 3_600_000 * MS;
            // Before it, as the beginning of a turn may be; at it; and long after it.
            for now in [at.saturating_sub(2 * MS), at, at + MS, at + hours, at + 1000 * hours] {
                let seen = from_ms(to_ms(at), now);
                assert!((at..=at + MS).contains(&seen), "{at} seen from {now}: {seen}");
            }
        }
    }

    /// The reading of a worker is the later one where the reactor's turn began before it. (issue 16)
    #[test]
    fn a_job_that_was_taken_within_this_turn_was_not_taken_weeks_ago() {
        let slots = Slots::new([]);
        let id = ConnId { slot: 0, generation: 0 };
        slots.set(id);
        slots.set_taken(id, 11 * MS);
        assert_eq!(slots.taken_at(id, 10 * MS), Some(12 * MS));
    }
}

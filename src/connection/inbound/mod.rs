//! What has come in and is not handled yet: raw bytes, a mark how far they were looked at, and frames cut off the front.
//!
//! Frames are cut one at a time, so a connection's share of a turn can end behind any of them, and the framing of the next is
//! not decided before. No I/O, no clock.

use crate::clock::Nanos;
use crate::framing::Found;
use crate::job::Session;
use crate::service::{self, Cut, End, Kind, Served, Taken};

/// Bytes by which a buffer grows at least, up to a doubling: what is held is counted by capacity, so growth is not
/// left to the vector.
const MIN_GROWTH_BYTES: usize = 512;
/// Bytes by which it grows at most beyond what is asked for: what one read may bring, so that a long line does not hold twice
/// its length.
const MAX_GROWTH_BYTES: usize = 16 << 10;

/// Bytes that were read and not consumed.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    bytes: Vec<u8>,
    /// Bytes at the front that were consumed.
    start: usize,
    /// Bytes behind `start` that framing need not look at again.
    scanned: usize,
    /// Bytes behind `start` in which the stop line was looked for.
    searched: usize,
    /// Framing has said that the frame at the front is not complete.
    incomplete: bool,
    /// Since when the frame at the front has begun and is not complete; kept while more of it comes.
    incomplete_since: Option<Nanos>,
    /// When the bytes at the front were read, or a little earlier.
    arrived_at: Nanos,
}

impl Inbound {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// What it held.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// No byte will follow: what is here may be a whole frame now.
    pub(crate) fn set_ended(&mut self) {
        self.incomplete = false;
    }

    /// Whether a whole frame may be there, as far as is known.
    pub(crate) fn may_have_frame(&self) -> bool {
        !self.is_empty() && !self.incomplete
    }

    pub(crate) fn arrived_at(&self) -> Nanos {
        self.arrived_at
    }

    /// Since when the rest of the frame at the front is waited for.
    pub(crate) fn incomplete_since(&self) -> Option<Nanos> {
        self.incomplete_since.filter(|_| self.incomplete)
    }

    /// The rest was not waited for during the last `nanos`.
    pub(crate) fn forgive(&mut self, nanos: Nanos) {
        self.incomplete_since = self.incomplete_since.map(|since| since.saturating_add(nanos));
    }

    /// The bytes that are not consumed.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Consumes `count` bytes that were of no frame. What is behind them was not looked at as what it is.
    pub(crate) fn skip(&mut self, count: usize) {
        self.start += count;
        (self.scanned, self.searched) = (0, 0);
        (self.incomplete, self.incomplete_since) = (false, None);
        self.tidy();
    }

    /// Adds bytes that were read at `now`. `incomplete`: nothing here is a whole frame, and framing has looked at so many bytes of all
    /// that is here then.
    pub(crate) fn append(&mut self, bytes: &[u8], incomplete: Option<usize>, now: Nanos) {
        if self.is_empty() {
            self.arrived_at = now;
        }
        grow(&mut self.bytes, bytes.len());
        self.bytes.extend_from_slice(bytes);
        self.scanned = incomplete.unwrap_or(self.scanned);
        self.set_incomplete(incomplete.is_some(), now);
    }

    fn set_incomplete(&mut self, incomplete: bool, now: Nanos) {
        self.incomplete = incomplete;
        if incomplete {
            self.incomplete_since.get_or_insert(now);
        }
    }

    /// Looks at `now` whether the frame at the front is complete, without consuming it; not while it cannot be told.
    pub(crate) fn examine(&mut self, service: &Served, session: Option<&Session>, now: Nanos) {
        if self.may_have_frame()
            && service.knows_framing(session)
            && let Some(framing) = service.framing(session)
            && let Some(Found::More { scanned }) = framing.next(self.rest(), self.scanned, false)
        {
            self.scanned = scanned;
            self.set_incomplete(true, now);
        }
    }

    /// Whether the service's stop line is there. Looks only at what it has not looked at before, and what may go on in it.
    pub(crate) fn asks_for_stop(&mut self, service: &Served, ended: bool) -> bool {
        let from = if ended { self.searched.saturating_sub(1) } else { self.searched };
        self.searched = self.len();
        service.asks_for_stop(self.rest(), from, ended)
    }

    /// Cuts frames off the front at `now`.
    pub(crate) fn cut(
        &mut self,
        session: &mut Option<Session>,
        ended: bool,
        cut: Cut<'_>,
        now: Nanos,
    ) -> Taken {
        let taken = cut.take(session, self.rest(), self.scanned, ended);
        if taken.consumed > 0 {
            self.incomplete_since = None;
        }
        self.start += taken.consumed;
        self.searched = self.searched.saturating_sub(taken.consumed);
        self.scanned = taken.end.scanned();
        self.set_incomplete(matches!(taken.end, End::More { .. }), now);
        self.tidy();
        taken
    }

    /// How many requests are among the frames that are here.
    pub(crate) fn count_requests(&self, service: &Served, session: Option<&Session>, ended: bool) -> usize {
        let (mut rest, mut scanned, mut requests) = (self.rest(), self.scanned, 0);
        let framing = service.knows_framing(session).then(|| service.framing(session)).flatten();
        let Some(framing) = framing else { return 0 };
        while !rest.is_empty()
            && let Some(Found::Frame { content, consumed }) = framing.next(rest, scanned, ended)
        {
            match service::classify(&*service.service, session, &rest[content]) {
                Some(Kind::Request) => requests += 1,
                // What is behind it may be framed in another way.
                Some(Kind::Switch | Kind::Inline) => return requests + 1,
                _ => {}
            }
            (rest, scanned) = (&rest[consumed..], 0);
        }
        requests
    }

    /// Frees what is not needed: everything, where nothing is left; the front, where it is most of it.
    fn tidy(&mut self) {
        if self.is_empty() {
            *self = Inbound::default();
        } else if self.start > self.bytes.capacity() / 2 {
            // Copied: cut to length, a long buffer would leave a hole in the heap that is too small for the next.
            let mut rest = Vec::with_capacity(self.len() + MIN_GROWTH_BYTES);
            rest.extend_from_slice(self.rest());
            (self.bytes, self.start) = (rest, 0);
        }
    }
}

/// Makes room for `additional` bytes without holding much more than is asked for.
fn grow(bytes: &mut Vec<u8>, additional: usize) {
    if bytes.capacity() - bytes.len() < additional {
        let spare = match bytes.is_empty() {
            true => 0,
            false => bytes.len().clamp(MIN_GROWTH_BYTES, MAX_GROWTH_BYTES),
        };
        bytes.reserve_exact(additional.max(spare));
    }
}

#[cfg(test)]
mod tests;

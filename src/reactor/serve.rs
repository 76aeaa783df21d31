//! What is done for one connection in a turn: write, hand out a job, read, and take a job back. All of it within the budget.
//!
//! What each request passes through, from here to the handler and back to the socket, is inlined where it has one or two callers.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use mio::{Interest, Token};

use super::admit::READ_INTEREST;
use super::joined::Joint;
use super::table::Entry;
use super::{Reactor, budget};
use crate::clock::Nanos;
use crate::connection::{Connection, Inbound, Output, Phase, Role, Turn};
use crate::job::{Job, JobEnd, Task};
use crate::metrics::Counters;
use crate::reason::CloseReason;
use crate::service::{End, Taken};
use crate::slots::ConnId;

/// Jobs of a turn handed to the pool together; beyond, without waiting for the end of the turn.
const MAX_BATCH: usize = 128;

impl Reactor {
    /// Serves a connection that was taken off a list.
    pub(super) fn serve_listed(&mut self, id: ConnId, now: Instant) {
        if let Some(entry) = self.table.get(id) {
            entry.connection.listed = false;
            self.serve(id, now);
        }
    }

    /// Does for a connection whatever can be done now, within its share of the turn. One that is on a list stays there.
    pub(super) fn serve(&mut self, id: ConnId, now: Instant) {
        let Some(entry) = self.table.get(id) else { return };
        let alive = match entry.connection.role {
            Role::Requests => self.serve_requests(id),
            Role::Joined => self.serve_joined(id),
            Role::Announced => self.serve_announced(id),
            Role::Aside if self.aside.entered => self.serve_requests(id),
            Role::Aside => return self.aside(|reactor| reactor.serve(id, now)),
            Role::TurnedAway => self.write_waiting(id),
        };
        self.budget.visit();
        if alive && !self.is_at_rest(id) {
            self.end_if_over(id, now);
            self.settle(id);
        }
    }

    /// Whether a connection only waits for its next event or its job, as most do after a visit, and nothing is to be noted of it.
    pub(super) fn is_at_rest(&mut self, id: ConnId) -> bool {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return true };
        let timeouts = &self.settings.services[connection.service() as usize].timeouts;
        connection.is_at_rest() && !connection.may_have_deadline(timeouts)
    }

    /// Writes, hands out a job, reads. `false`: the connection is gone.
    pub(super) fn serve_requests(&mut self, id: ConnId) -> bool {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        let resumed = connection.turn == Turn::Its;
        if resumed {
            connection.turn = Turn::Any;
        }
        // Of all connections that have something to do in this turn or the next. What was read ahead and what is read now are of one
        // share.
        let mut share = budget::frames(self.ready.len() + self.left_over.len() + self.jobs_out);
        if connection.has_buffers() {
            if !self.write_waiting(id) {
                return false;
            }
            self.hand_out(id, &mut share, resumed);
        }
        self.read(id, &mut share, resumed)
    }

    /// Brings the account up to date, and puts the connection on the list if it can go on without an event.
    pub(super) fn settle(&mut self, id: ConnId) {
        let (sparing, clock) = (self.is_sparing(), self.shared.hub.clock);
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        // The common one only waits for its next event.
        let waits = !connection.wants_service();
        if !waits {
            connection.note_pause(self.turn_at, || clock.now());
            if let Some(writer) = connection.take_writer() {
                // Its handler may have been given up: it has ended then.
                writer.send(()).unwrap_or_default();
            }
        }
        let choked = connection.is_choked();
        if choked != connection.told_choked {
            connection.told_choked = choked;
            self.free.slots().set_choked(id, choked);
        }
        let timeouts = &self.settings.services[connection.service() as usize].timeouts;
        if timeouts.idle.is_some() && connection.is_quiet() {
            connection.set_active(clock.now());
        }
        let has_deadline = connection.may_have_deadline(timeouts);
        let goes_on = match connection.phase {
            _ if waits && connection.role != Role::Joined => false,
            Phase::Open if connection.role == Role::Joined => {
                self.joints.get(&id).is_some_and(|joint| joint.goes_on(connection))
            }
            Phase::Open => {
                let cuts = connection.may_have_frame() && connection.may_hand_out();
                connection.turn != Turn::Waits && (cuts || connection.may_read(1, sparing) > 0)
            }
            Phase::Lingering(_) => connection.is_readable(),
            Phase::Closing(_) | Phase::Leaving(_) => false,
        };
        let writes = connection.is_writable() && connection.outbound().is_some();
        self.account(id);
        if goes_on || writes {
            self.list_left_over(id);
        }
        if has_deadline {
            self.arm(id);
        }
    }

    /// Brings the account of what it holds up to date.
    #[inline(always)]
    fn account(&mut self, id: ConnId) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        let joint = match connection.role {
            Role::Joined => self.joints.get(&id).map_or(0, Joint::held_bytes),
            _ => 0,
        };
        account_for(connection, joint, &mut self.counters);
    }

    /// A job is back that this turn may not get to: its replies count.
    pub(super) fn account_job(&mut self, job: &Job) {
        // One that gives a session back has none, and its connection waits for none.
        if let Task::Close(_) = job.task {
            return;
        }
        if let Some(Entry { connection, .. }) = self.table.get(job.origin.id) {
            connection.set_job_out(job.held_bytes());
            self.account(job.origin.id);
        }
    }

    /// Gives the pool the next job of a connection, if it has one and none is out, and handles what is handled here. `share`:
    /// the frames that may be cut.
    fn hand_out(&mut self, id: ConnId, share: &mut usize, resumed: bool) {
        // Once more where what was handled here has made way for what is not.
        loop {
            let Some(Entry { connection, .. }) = self.table.get(id) else { return };
            if !connection.has_buffers() || !connection.may_hand_out() {
                return;
            }
            if let Some(job) = connection.take_held() {
                return self.resubmit(job);
            }
            if *share == 0 || !connection.may_have_frame() {
                return;
            }
            let room = self.room(resumed);
            if room == 0 {
                return self.stall(id);
            }
            let Some(Entry { connection, .. }) = self.table.get(id) else { return };
            let arrived_at = connection.inbound().map_or(0, Inbound::arrived_at);
            let service = &self.services[connection.service() as usize];
            let mut job = connection.new_job(id, &mut self.free, arrived_at);
            let cut =
                self.inline.cut(service, &mut job, (connection.may_stop, connection.lap), (room, *share));
            let taken = connection.cut(cut, self.shared.hub.clock.now());
            connection.tidy();
            let goes_on = taken.inline > 0 && taken.end == End::Full && job.end == JobEnd::Done;
            self.took(id, job, &taken, share);
            if !goes_on {
                return;
            }
        }
    }

    /// Requests that the next job of a connection may hold. None while others have waited longer for `max_pending`, unless
    /// it is the turn of this one (`resumed`).
    fn room(&self, resumed: bool) -> usize {
        if !self.stalled.is_empty() && !resumed {
            return 0;
        }
        self.settings.max_pending.saturating_sub(self.lines_out)
    }

    /// Frames were cut into `job`: counts them, hands it out, and obeys what they say.
    #[inline(always)]
    fn took(&mut self, id: ConnId, job: Box<Job>, taken: &Taken, share: &mut usize) {
        let Taken { requests, inline, ignored, stops, end, .. } = *taken;
        let frames = requests + inline + ignored + stops;
        *share = share.saturating_sub(frames);
        self.budget.frames(frames);
        let service = &mut self.counters.services[job.origin.local.service as usize];
        service.requests += (requests + inline) as u64;
        service.ignored += ignored as u64;
        service.stops += stops as u64;
        self.counters.pending += (requests + inline) as u64;
        self.counters.silent += (ignored + stops) as u64;
        if stops > 0 && end != End::Close(CloseReason::KillRefused) {
            self.request_stop(id);
        }
        if let End::Close(reason) = end {
            self.counters.panics += u64::from(reason == CloseReason::Panic);
            self.close_unread(id, reason);
        }
        match (requests, inline) {
            (0, 0) => self.free.put(job, &mut self.litter),
            (0, _) => {
                self.spin.handled(inline);
                self.handled_inline(job, inline);
            }
            _ => self.resubmit(job),
        }
    }

    /// A peer that may do so asked for a stop.
    fn request_stop(&mut self, id: ConnId) {
        if !std::mem::replace(&mut self.stop_requested, true) {
            self.shared.stop.drain_at(0);
            let peer = self.table.get(id).map(|entry| entry.connection.peer().to_string());
            tracing::info!(peer, "stop requested by a peer");
        }
    }

    /// A job, new or with lines left, goes to the tail of the queue, with its connection's session.
    pub(super) fn resubmit(&mut self, mut job: Box<Job>) {
        let id = job.origin.id;
        if let Some(Entry { connection, .. }) = self.table.get(id) {
            connection.set_job_out(job.held_bytes());
            job.session = connection.session.take();
            account_for(connection, 0, &mut self.counters);
        }
        if self.services[job.origin.local.service as usize].times_handlers() {
            self.free.slots().set_taken(id, 0);
        }
        self.send_out(job);
    }

    /// A job goes to the tail of the queue.
    pub(super) fn send_out(&mut self, job: Box<Job>) {
        self.jobs_out += 1;
        self.lines_out += job.batch.lines_left();
        self.outgoing.push(job);
        if self.outgoing.len() >= MAX_BATCH {
            self.submit();
        }
    }

    pub(super) fn submit(&mut self) {
        self.shared.pool.submit(&mut self.outgoing, self.turn_at);
    }

    /// The pool's clock: later than the beginning of the turn.
    pub(super) fn now(&self) -> Nanos {
        self.shared.hub.clock.now()
    }

    /// How many bytes may be read of a connection now.
    fn may_read(&mut self, id: ConnId) -> usize {
        let sparing = self.is_sparing();
        self.table.get(id).map_or(0, |entry| entry.connection.may_read(budget::READ_BYTES, sparing))
    }

    /// Reads a connection within its budget. `false`: it is gone.
    fn read(&mut self, id: ConnId, share: &mut usize, resumed: bool) -> bool {
        // Twice only for the end of the stream behind the last bytes.
        for _ in 0..2 {
            if self.room(resumed) == 0 && self.may_read(id) > 0 {
                // Only looks ahead from now on.
                self.stall(id);
            }
            let sparing = self.is_sparing();
            let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return false };
            let limit = connection.may_read(budget::READ_BYTES, sparing);
            if limit == 0 {
                if connection.is_broken() {
                    // Nobody is there for the replies: what waits for a worker is not worth running. Where all was said, it
                    // ended for the reason that was told, however the peer took it.
                    let reason = match connection.phase {
                        Phase::Lingering(reason) => reason,
                        _ => CloseReason::Reset,
                    };
                    self.close(id, reason);
                    return false;
                }
                return true;
            }
            let read = match stream.read(&mut self.buffer[..limit]) {
                Ok(read) => read,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => {
                        connection.set_read_empty();
                        return true;
                    }
                    ErrorKind::Interrupted => continue,
                    _ => {
                        self.close(id, CloseReason::Reset);
                        return false;
                    }
                },
            };
            if read < limit {
                connection.set_read_short();
            }
            let may_end = read < limit && connection.is_readable();
            self.counters.read_bytes += read as u64;
            self.budget.bytes(read);
            self.take_in(id, read, share, resumed);
            if !may_end {
                return true;
            }
        }
        true
    }

    /// Takes in `read` bytes of the buffer; 0 is the end of the stream. What can be cut goes out as a job at once; the rest
    /// is kept.
    pub(super) fn take_in(&mut self, id: ConnId, read: usize, share: &mut usize, resumed: bool) {
        let room = self.room(resumed);
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        connection.count_drained(read);
        if read == 0 {
            connection.set_ended();
        }
        let service = &self.services[connection.service() as usize];
        let (mut kept, mut incomplete) = (0, None);
        // The common connection has nothing kept: it needs no buffers of its own.
        let cut =
            read > 0 && room > 0 && *share > 0 && connection.may_hand_out() && connection.inbound().is_none();
        if cut {
            // A look at the clock, where it decides whether a request has waited too long; else the beginning of the turn will do.
            let read_at = match service.limits_waiting() {
                true => self.shared.hub.clock.now(),
                false => self.turn_at,
            };
            let mut job = connection.new_job(id, &mut self.free, read_at);
            let cut =
                self.inline.cut(service, &mut job, (connection.may_stop, connection.lap), (room, *share));
            let taken = cut.take(&mut connection.session, &self.buffer[..read], 0, false);
            connection.lap = taken.lap;
            kept = taken.consumed;
            if let End::More { scanned } = taken.end {
                incomplete = Some(scanned);
            }
            self.took(id, job, &taken, share);
        }
        if cut && kept == read {
            return;
        }
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        if kept < read {
            let now = self.shared.hub.clock.now();
            connection.inbound_mut().append(&self.buffer[kept..read], incomplete, now);
        }
        if connection.inbound().is_none() {
            return;
        }
        if incomplete.is_none() {
            if read == 0 {
                connection.inbound_mut().set_ended();
            }
            self.hand_out(id, share, resumed);
        }
        self.look_ahead(id);
    }

    /// Looks at what is kept: whether it has a whole frame, and whether it asks for a stop, which does not wait.
    pub(super) fn look_ahead(&mut self, id: ConnId) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        if connection.inbound().is_none() {
            return;
        }
        let (ended, may_stop) = (connection.has_ended(), connection.may_stop);
        let service = &self.services[connection.service() as usize];
        if !ended {
            connection.examine(service, self.shared.hub.clock.now());
        }
        if may_stop && connection.inbound_mut().asks_for_stop(service, ended) {
            self.request_stop(id);
        }
    }

    /// Accepted requests that will have no reply.
    pub(super) fn drop_requests(&mut self, count: usize) {
        self.counters.dropped += count as u64;
        self.counters.pending -= count as u64;
    }

    pub(super) fn count_replied(&mut self, count: usize) {
        self.counters.replied += count as u64;
        self.counters.pending -= count as u64;
    }

    /// Writes what waits, if the socket may take it. `false`: the connection is gone.
    pub(super) fn write_waiting(&mut self, id: ConnId) -> bool {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        !connection.is_writable() || connection.outbound().is_none() || self.flush(id)
    }

    /// Writes what waits, within the budget. `false`: the connection is gone.
    pub(super) fn flush(&mut self, id: ConnId) -> bool {
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return false };
        let watermarks = self.settings.watermarks(connection.service());
        let Some(outbound) = connection.outbound() else { return true };
        let wrote = write(stream, outbound.bytes());
        let now = self.shared.hub.clock.now();
        let (replied, free) =
            connection.with_outbound(watermarks, now, |outbound| outbound.advance(wrote.bytes));
        self.litter.drop_later(free);
        self.counters.written_bytes += wrote.bytes as u64;
        self.budget.bytes(wrote.bytes);
        self.count_replied(replied);
        if wrote.failed {
            self.close(id, CloseReason::Reset);
            return false;
        }
        !wrote.is_full || self.watch_writes(id)
    }

    /// The socket is full: asks for an event when it is not. `false`: the connection is gone.
    pub(super) fn watch_writes(&mut self, id: ConnId) -> bool {
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return false };
        if std::mem::replace(&mut connection.output, Output::Full) != Output::Open {
            return true;
        }
        // Asking anew reports the socket at once if it has become writable meanwhile. It stays asked for: from now on
        // it costs no system call.
        let interest = READ_INTEREST | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().reregister(stream, Token(id.slot as usize), interest) {
            self.warn("cannot watch a connection for writing", &error);
            self.close(id, CloseReason::Reset);
            return false;
        }
        true
    }
}

/// Brings the account of what a connection holds up to date; `joint_bytes` is what is held for one that is joined. At once where a job
/// goes out or comes back, so that most are at rest then.
#[inline(always)]
pub(super) fn account_for(connection: &mut Connection, joint_bytes: usize, counters: &mut Counters) {
    let (held, before) = (connection.held_bytes() + joint_bytes, connection.accounted_bytes);
    connection.accounted_bytes = held;
    counters.held_bytes = counters.held_bytes + held as u64 - before as u64;
}

/// Reads once what is not frames, and has `connection` remember how its receiving side is then. Returns how many bytes came: 0 also
/// where none is there, or the stream has ended.
///
/// # Errors
/// The connection is broken.
pub(super) fn read_raw(
    stream: &mut impl Read,
    connection: &mut Connection,
    buffer: &mut [u8],
) -> io::Result<usize> {
    match stream.read(buffer) {
        Ok(0) => connection.set_ended(),
        Ok(read) => {
            if read < buffer.len() {
                connection.set_read_short();
            }
            connection.count_drained(read);
            return Ok(read);
        }
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock => connection.set_read_empty(),
            // It is readable still.
            ErrorKind::Interrupted => {}
            _ => return Err(error),
        },
    }
    Ok(0)
}

/// What came of [`write`].
#[derive(Debug)]
pub(super) struct Wrote {
    pub(super) bytes: usize,
    /// The socket takes no more for now.
    pub(super) is_full: bool,
    pub(super) failed: bool,
}

/// Writes until everything is written, the socket is full, or the connection has had its share of the turn.
#[inline(always)]
pub(super) fn write(stream: &mut impl Write, bytes: &[u8]) -> Wrote {
    let mut wrote = Wrote { bytes: 0, is_full: false, failed: false };
    let share = &bytes[..bytes.len().min(budget::WRITE_BYTES)];
    while wrote.bytes < share.len() {
        match stream.write(&share[wrote.bytes..]) {
            Ok(0) => wrote.failed = true,
            Ok(count) => wrote.bytes += count,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => wrote.is_full = true,
                ErrorKind::Interrupted => {}
                _ => wrote.failed = true,
            },
        }
        if wrote.is_full || wrote.failed {
            break;
        }
    }
    wrote
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Takes a few bytes at a time, then says what it was told to.
    struct Socket {
        takes: Vec<io::Result<usize>>,
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.takes.remove(0).map(|count| count.min(bytes.len()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_written_before_a_failure_counts() {
        let takes = vec![Ok(3), Err(ErrorKind::Interrupted.into()), Ok(2), Err(ErrorKind::BrokenPipe.into())];
        let wrote = write(&mut Socket { takes }, b"0123456789");
        assert_eq!((wrote.bytes, wrote.is_full, wrote.failed), (5, false, true));
        let takes = vec![Ok(3), Err(ErrorKind::WouldBlock.into())];
        let wrote = write(&mut Socket { takes }, b"0123456789");
        assert_eq!((wrote.bytes, wrote.is_full, wrote.failed), (3, true, false));
    }

    #[test]
    fn nobody_writes_more_than_its_share_of_a_turn() {
        let takes = (0..100).map(|_| Ok(usize::MAX)).collect();
        let wrote = write(&mut Socket { takes }, &vec![0; 100 << 20]);
        assert_eq!((wrote.bytes, wrote.is_full), (budget::WRITE_BYTES, false));
    }
}

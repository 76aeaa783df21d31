//! What is done for one connection in a turn: write, hand out a job, read, and take a job back.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use mio::{Interest, Token};

use super::Reactor;
use super::admit::READ_INTEREST;
use super::table::Entry;
use crate::connection::{CloseReason, Connection, Intake, Output, Phase, Received, Turn};
use crate::handler;
use crate::job::{ConnId, Job, JobEnd, MAX_JOB_LINES};

/// Most bytes read from a connection in a turn.
pub(super) const READ_BUDGET: usize = 64 << 10;
/// Jobs of a turn handed to the pool together; beyond, without waiting for the end of the turn.
const MAX_BATCH: usize = 128;

impl Reactor {
    /// Does for a connection whatever can be done now: write, hand out, read, end.
    pub(super) fn serve(&mut self, id: ConnId, now: Instant) {
        let Some(entry) = self.table.get(id) else { return };
        entry.connection.listed = false;
        let resumed = entry.connection.turn == Turn::Its;
        if resumed {
            entry.connection.turn = Turn::Any;
        }
        if entry.connection.is_writable() && !entry.connection.outbound().is_empty() && !self.flush(id) {
            return;
        }
        let room = self.room(resumed);
        self.hand_out(id, room);
        let room = self.room(resumed);
        if self.table.get(id).is_some_and(|entry| entry.connection.may_read()) && !self.read(id, room) {
            return;
        }
        let reads_on = |connection: &Connection| connection.may_read() && connection.turn != Turn::Waits;
        if self
            .table
            .get(id)
            .is_some_and(|Entry { connection, .. }| connection.is_broken() && !reads_on(connection))
        {
            // Nobody is there for the replies: what waits for a worker is not worth running.
            return self.close(id, CloseReason::Reset);
        }
        self.end_if_over(id, now);
        let Some(entry) = self.table.get(id) else { return };
        let lingering = matches!(entry.connection.phase, Phase::Lingering(_));
        if entry.connection.turn != Turn::Waits
            && (entry.connection.may_read() || lingering && entry.connection.is_readable())
        {
            self.list(id);
        }
    }

    /// Gives the pool the next job of a connection, if it has one and none is out.
    fn hand_out(&mut self, id: ConnId, room: usize) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        if !connection.may_hand_out() {
            return;
        }
        if let Some(job) = connection.take_held() {
            self.resubmit(job);
        } else if connection.has_ready() {
            if room == 0 {
                return self.stall(id);
            }
            let mut job = self.free.take(id, &connection.local, connection.peer(), connection.kept_at());
            let accepted = connection.fill(&mut job, room);
            self.send_out(job, accepted);
        }
    }

    /// Requests that the next job of a connection may hold. None while others have waited longer for `max_pending`, unless
    /// it is the turn of this one (`resumed`).
    fn room(&self, resumed: bool) -> usize {
        if !self.stalled.is_empty() && !resumed {
            return 0;
        }
        self.settings.max_pending.saturating_sub(self.lines_out).min(MAX_JOB_LINES)
    }

    /// A new job, with requests that are accepted by this.
    fn send_out(&mut self, job: Box<Job>, accepted: usize) {
        self.counters.requests += accepted as u64;
        self.counters.pending += accepted as u64;
        self.resubmit(job);
    }

    /// A job, new or with lines left, goes to the tail of the queue.
    fn resubmit(&mut self, job: Box<Job>) {
        if let Some(entry) = self.table.get(job.connection) {
            entry.connection.job_out = true;
        }
        self.jobs_out += 1;
        self.lines_out += job.lines_left();
        self.outgoing.push(job);
        if self.outgoing.len() >= MAX_BATCH {
            self.submit();
        }
    }

    pub(super) fn submit(&mut self) {
        self.shared.pool.submit(&mut self.outgoing);
    }

    /// Reads a connection within its budget. `false`: it is gone.
    fn read(&mut self, id: ConnId, room: usize) -> bool {
        if room == 0 {
            self.stall(id);
            return true;
        }
        // Twice only for the end of the stream behind the last bytes.
        for _ in 0..2 {
            let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return false };
            if !connection.may_read() {
                return true;
            }
            let limit = connection.drain_left().unwrap_or(READ_BUDGET).min(READ_BUDGET);
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
            let filled = read == limit;
            if !filled {
                connection.set_read_short();
            }
            self.counters.read_bytes += read as u64;
            self.take_in(id, read, room);
            if filled {
                return true;
            }
        }
        true
    }

    /// Frames `read` bytes of the buffer; 0 is the end of the stream.
    pub(super) fn take_in(&mut self, id: ConnId, read: usize, room: usize) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        let free = !connection.job_out && !connection.has_ready() && connection.may_hand_out();
        let peer = connection.peer();
        let mut job = free.then(|| self.free.take(id, &connection.local, peer, self.turn_at));
        let intake = Intake {
            max_line_bytes: self.settings.max_line_bytes,
            job: job.as_deref_mut(),
            room,
            now: self.turn_at,
            classify: |line: &[u8]| handler::classify(&*self.handler, line),
            stop_allowed: || self.settings.stop_from.allows(peer.ip()),
        };
        let received = match read {
            0 => connection.receive_end(intake),
            read => connection.receive(&self.buffer[..read], intake),
        };
        let Received { accepted, others, stops, close } = received;
        self.counters.others += others as u64;
        self.counters.kills += stops as u64;
        self.counters.silent += (others + stops) as u64;
        if stops > 0 && close != Some(CloseReason::KillRefused) {
            tracing::info!(%peer, "stop requested by a peer");
            self.stop_requested = true;
        }
        if let Some(reason) = close {
            connection.phase = Phase::Closing(reason);
            self.counters.panics += u64::from(reason == CloseReason::Panic);
        }
        match job {
            Some(job) if accepted > 0 => self.send_out(job, accepted),
            Some(job) => self.free.put(job),
            None => {}
        }
    }

    /// A job came back: its replies go to the socket, the connection goes on.
    pub(super) fn finish(&mut self, mut job: Box<Job>, now: Instant) {
        let id = job.connection;
        let replies = job.reply_ends.len();
        let panicked = job.end == JobEnd::Panicked;
        self.jobs_out -= 1;
        self.lines_out -= job.handled + job.lines_left();
        if job.handled > 0 {
            self.shared.pool.learn_time_per_job(job.took);
        }

        let silent = (job.handled - replies - usize::from(panicked)) as u64;
        self.counters.silent += silent;
        self.counters.pending -= silent;
        if panicked {
            self.counters.panics += 1;
            self.drop_requests(1);
        }
        let Some(entry) = self.table.get(id) else {
            self.counters.stale_replies += 1;
            self.drop_requests(replies + job.lines_left());
            self.free.put(job);
            return;
        };
        entry.connection.job_out = false;
        if replies > 0 && !self.reply(id, &job) {
            // Gone in the attempt, with all that was left of this job.
            self.drop_requests(job.lines_left());
            self.free.put(job);
            return;
        }
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        match job.end {
            JobEnd::Done => self.free.put(job),
            JobEnd::Unfinished if connection.may_hand_out() => {
                job.begin_slice();
                self.resubmit(job);
            }
            JobEnd::Unfinished => {
                job.begin_slice();
                connection.hold(job);
            }
            JobEnd::Close | JobEnd::Panicked => {
                connection.discard_input();
                let reason = if panicked { CloseReason::Panic } else { CloseReason::Handler };
                connection.phase = Phase::Closing(reason);
                self.drop_requests(job.lines_left());
                self.free.put(job);
            }
        }
        // One in the list is served later in this turn; twice would be beyond its budget.
        let serve = |entry: &mut Entry| entry.connection.wants_service() && !entry.connection.listed;
        if self.table.get(id).is_some_and(serve) {
            self.serve(id, now);
        }
    }

    /// Accepted requests that will have no reply.
    pub(super) fn drop_requests(&mut self, count: usize) {
        self.counters.dropped += count as u64;
        self.counters.pending -= count as u64;
    }

    fn count_replied(&mut self, count: usize) {
        self.counters.replied += count as u64;
        self.counters.pending -= count as u64;
    }

    /// Writes the replies of a job, or queues them behind what waits. `false`: the connection is gone; its replies are
    /// accounted for.
    fn reply(&mut self, id: ConnId, job: &Job) -> bool {
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return false };
        let mut sent = 0;
        let behind_others = !connection.outbound().is_empty();
        if connection.is_writable() && !behind_others {
            match write_all(stream, &job.replies) {
                Ok(written) => sent = written,
                Err(_) => {
                    self.drop_requests(job.reply_ends.len());
                    self.close(id, CloseReason::Reset);
                    return false;
                }
            }
            self.counters.written_bytes += sent as u64;
            if sent == job.replies.len() {
                self.count_replied(job.reply_ends.len());
                return true;
            }
        }
        let done = job.reply_ends.partition_point(|end| *end <= sent);
        let ends = job.reply_ends[done..].iter().map(|end| end - sent);
        connection.queue(&job.replies[sent..], ends, self.settings.high_watermark_bytes);
        let writable = connection.is_writable();
        self.count_replied(done);
        match (writable, behind_others) {
            // The event that says so came in this turn and is not announced again: nobody else would write.
            (true, true) => self.flush(id),
            (true, false) => self.watch_writes(id),
            (false, _) => true,
        }
    }

    /// Writes what waits. `false`: the connection is gone.
    pub(super) fn flush(&mut self, id: ConnId) -> bool {
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return false };
        let len = connection.outbound().len();
        let Ok(sent) = write_all(stream, connection.outbound()) else {
            self.close(id, CloseReason::Reset);
            return false;
        };
        let replied = connection.sent(sent, self.settings.low_watermark_bytes);
        self.counters.written_bytes += sent as u64;
        self.count_replied(replied);
        if sent < len { self.watch_writes(id) } else { true }
    }

    /// The socket is full: asks for an event when it is not. `false`: the connection is gone.
    fn watch_writes(&mut self, id: ConnId) -> bool {
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

/// Writes until everything is written or the socket is full. Returns how much.
fn write_all(stream: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => break,
                ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
    Ok(written)
}

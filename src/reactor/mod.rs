//! The event loop: one thread that owns every socket.
//!
//! A turn: wait for readiness; collect finished jobs and write their replies; read what is readable and frame it into
//! jobs; accept; look at the deadlines; hand the jobs of this turn to the pool together; publish the counters. It blocks
//! nowhere but in poll, and there without a timeout unless a deadline is near or a worker may hold something back.
//!
//! Readiness is edge-triggered: a read that does not fill the buffer, or would block, ends it, but a hang-up that was
//! announced is remembered until the end of the stream was read. A connection whose turn ends before its edge is used
//! up goes on the ready list, and the next poll does not block.

mod listener;
mod table;
mod timers;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU8, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::config::Settings;
use crate::connection::{CloseReason, Connection, Intake, Phase, Received};
use crate::error::Error;
use crate::handler::{self, Handler};
use crate::job::{ConnId, FreeJobs, Job, JobEnd, MAX_JOB_LINES};
use crate::metrics::Counters;
use crate::pool::Pool;
use crate::replies::Wake;
use crate::tuner::Tuner;
pub(crate) use listener::bind;
use listener::{Accepted, Listeners};
use table::{Entry, Table};
use timers::Deadlines;

const WAKER: Token = Token(usize::MAX);
/// The listener of number `n` has the token `LISTENERS - n`.
const LISTENERS: usize = usize::MAX - 1;

/// Most events taken from one poll. Those left come first at the next.
const MAX_EVENTS: usize = 1024;
/// Most bytes read from a connection in a turn.
const READ_BUDGET: usize = 64 << 10;
/// Connections accepted in a turn.
const ACCEPT_BUDGET: usize = 64;
/// Connections accepted when a stop begins: what was in the accept queue by then. The longest queue that Linux grants
/// by default is 4096.
const FINAL_ACCEPT_BUDGET: usize = 64 << 10;
/// Jobs of a turn handed to the pool together; beyond, without waiting for the end of the turn.
const MAX_BATCH: usize = 128;
/// Reads of a connection that is only discarded, in a turn.
const DISCARD_BUDGET: usize = 4;
/// How long what still comes is discarded, after our side was shut down, until the connection is closed.
const LINGER: Duration = Duration::from_secs(1);
/// Connections that may be told at a time that the server is full. One more is closed at once, and the line may not arrive.
const MAX_REJECTED: usize = 256;
/// How long a job may wait, or be finished, without anyone having been woken for it.
const SAFETY_TICK: Duration = Duration::from_millis(1);
/// At most one warning of a kind within this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait at the end for workers that have nothing left to do.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Wakes the reactor through an eventfd in its poll.
#[derive(Debug)]
pub(crate) struct ReactorWaker(Waker);

impl Wake for ReactorWaker {
    fn wake(&self) {
        if let Err(error) = self.0.wake() {
            // Only without memory. The safety tick finds what this wake was for.
            tracing::error!(%error, "cannot wake the reactor");
        }
    }
}

pub(crate) type ReactorPool = Pool<ReactorWaker>;

/// How far a stop was asked for. Only ever rises.
#[derive(Debug, Default)]
pub(crate) struct StopLevel(AtomicU8);

const DRAIN: u8 = 1;
const ABORT: u8 = 2;

impl StopLevel {
    /// Asks for a graceful stop.
    pub(crate) fn drain(&self) {
        self.0.fetch_max(DRAIN, Relaxed);
    }

    /// Asks for a stop at once.
    pub(crate) fn abort(&self) {
        self.0.fetch_max(ABORT, Relaxed);
    }

    /// Whether any stop was asked for.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Relaxed) >= DRAIN
    }
}

/// What a stop had to drop, and what held it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) requests: u64,
    pub(crate) replies: u64,
    /// Handlers that had not returned.
    pub(crate) busy_workers: usize,
    /// Peers that had not read their replies.
    pub(crate) slow_peers: usize,
}

/// What the reactor shares with the rest of the server.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) pool: Arc<ReactorPool>,
    pub(crate) tuner: Arc<Tuner>,
    pub(crate) stop: Arc<StopLevel>,
    /// Published whole at the end of each turn.
    pub(crate) counters: Arc<Mutex<Counters>>,
}

/// The sockets before the reactor owns them.
#[derive(Debug)]
pub(crate) struct Sockets {
    poll: Poll,
    listeners: Listeners,
}

impl Sockets {
    /// A poll instance with the listeners registered, and the waker to reach it.
    ///
    /// # Errors
    /// [`Error::Poll`] with what the system said.
    pub(crate) fn new(sockets: Vec<TcpListener>) -> Result<(Sockets, ReactorWaker), Error> {
        let new = || {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), WAKER)?;
            let mut listeners = Listeners::new(sockets);
            for (number, socket) in listeners.sockets().enumerate() {
                poll.registry().register(socket, Token(LISTENERS - number), Interest::READABLE)?;
            }
            Ok((Sockets { poll, listeners }, ReactorWaker(waker)))
        };
        new().map_err(|source| Error::Poll { source })
    }
}

/// The event loop's state. Lives on the reactor thread only.
pub(crate) struct Reactor {
    poll: Poll,
    listeners: Listeners,
    table: Table,
    settings: Settings,
    handler: Arc<dyn Handler>,
    shared: Shared,
    counters: Counters,
    /// Connections in the table that were turned away and are being told so.
    rejected: usize,
    /// Connections to look at in this turn.
    ready: VecDeque<ConnId>,
    /// Connections that could go on but for `max_pending`.
    stalled: VecDeque<ConnId>,
    lingering: Deadlines,
    free: FreeJobs,
    /// Jobs of this turn.
    #[expect(clippy::vec_box, reason = "the boxes are what is recycled")]
    outgoing: Vec<Box<Job>>,
    /// Jobs handed out and not back yet.
    jobs_out: usize,
    /// Lines in jobs that are out: what `max_pending` limits. Replies that a peer does not read are limited by the
    /// watermark of its connection instead, so that a few slow readers cannot stop the service for all.
    lines_out: usize,
    buffer: Box<[u8]>,
    /// Set when a graceful stop has begun: when it ends at the latest.
    drain_until: Option<Instant>,
    /// A peer that may do so asked for a stop.
    stop_requested: bool,
    /// `pool.started()` when the replies were last collected: a job begun since may be finished without a wake.
    started_before: u64,
    /// When waiting work was last looked at, and `pool.started()` then.
    stall_check: (Instant, u64),
    warned: Option<Instant>,
    learned: bool,
}

impl Reactor {
    pub(crate) fn new(
        sockets: Sockets,
        settings: Settings,
        handler: Arc<dyn Handler>,
        shared: Shared,
    ) -> Reactor {
        Reactor {
            poll: sockets.poll,
            listeners: sockets.listeners,
            table: Table::default(),
            settings,
            handler,
            shared,
            counters: Counters::default(),
            rejected: 0,
            ready: VecDeque::new(),
            stalled: VecDeque::new(),
            lingering: Deadlines::new(LINGER),
            free: FreeJobs::default(),
            outgoing: Vec::new(),
            jobs_out: 0,
            lines_out: 0,
            buffer: vec![0; READ_BUDGET].into_boxed_slice(),
            drain_until: None,
            stop_requested: false,
            started_before: 0,
            stall_check: (Instant::now(), 0),
            warned: None,
            learned: false,
        }
    }

    /// Runs until a stop was asked for and is complete.
    pub(crate) fn run(mut self) -> Dropped {
        let mut events = Events::with_capacity(MAX_EVENTS);
        let mut finished = Vec::new();
        loop {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // Only by a bug of ours: a closed or foreign descriptor.
                    tracing::error!(%error, "poll failed");
                    return self.abort();
                }
            }
            let now = Instant::now();
            for event in &events {
                self.note(event);
            }
            self.started_before = self.shared.pool.started();
            self.shared.pool.replies.drain(&mut finished);
            for job in finished.drain(..) {
                self.finish(job, now);
            }
            self.resume_stalled();
            for _ in 0..self.ready.len() {
                let Some(id) = self.ready.pop_front() else { break };
                self.serve(id, now);
            }
            self.accept(ACCEPT_BUDGET, now);
            while let Some(id) = self.lingering.pop_due(now) {
                if let Some(Phase::Lingering(reason)) = self.table.get(id).map(|entry| entry.connection.phase)
                {
                    self.close(id, reason);
                }
            }
            if self.stop_requested {
                self.shared.stop.drain();
            }
            let level = self.shared.stop.0.load(Relaxed);
            if level >= DRAIN && self.drain_until.is_none() {
                self.begin_drain(now);
            }
            self.submit();
            self.watch_progress(now);
            let done = self.drain_until.is_some() && self.table.len() == 0 && self.jobs_out == 0;
            if !done && (level >= ABORT || self.drain_until.is_some_and(|until| until <= now)) {
                return self.abort();
            }
            self.publish();
            if done {
                self.shared.pool.stop();
                self.shared.pool.wait_until_left(Instant::now() + LEAVE_TIMEOUT);
                return Dropped::default();
            }
        }
    }

    /// How long poll may block. `None`: until something happens.
    fn timeout(&self) -> Option<Duration> {
        let pool = &self.shared.pool;
        let resumes = !self.stalled.is_empty() && self.lines_out < self.settings.max_pending;
        if !self.ready.is_empty() || resumes || self.listeners.is_ready() || !pool.replies.try_sleep() {
            return Some(Duration::ZERO);
        }
        // A worker may have published a job without a wake, or left a waiting one for later: see that it happens.
        let tick = pool.waiting() > 0 || pool.started() != self.started_before;
        let deadlines = [self.lingering.next(), self.listeners.retry_at(), self.drain_until];
        let next = deadlines.into_iter().flatten().min();
        let until = next.map(|at| at.saturating_duration_since(Instant::now()));
        match until {
            Some(until) if tick => Some(until.min(SAFETY_TICK)),
            None if tick => Some(SAFETY_TICK),
            until => until,
        }
    }

    /// Remembers what an event says, and that its connection is to be looked at in this turn.
    fn note(&mut self, event: &Event) {
        match event.token() {
            WAKER => self.counters.wakeups += 1,
            Token(token) if token > LISTENERS - self.settings.listen.len() => {
                self.listeners.set_ready(LISTENERS - token)
            }
            Token(slot) => {
                let Some(id) = self.table.id_of(slot) else { return };
                let Some(entry) = self.table.get(id) else { return };
                let connection = &mut entry.connection;
                // An error is found by reading.
                connection.hung_up |= event.is_read_closed() || event.is_error();
                connection.readable |= event.is_readable() || connection.hung_up;
                connection.writable |= event.is_writable();
                self.list(id);
            }
        }
    }

    /// Puts a connection on the ready list, once.
    fn list(&mut self, id: ConnId) {
        if let Some(entry) = self.table.get(id)
            && !entry.connection.listed
        {
            entry.connection.listed = true;
            self.ready.push_back(id);
        }
    }

    /// Lists connections that waited for `max_pending`, as many as may now go on.
    fn resume_stalled(&mut self) {
        for _ in 0..self.settings.max_pending.saturating_sub(self.lines_out) {
            let Some(id) = self.stalled.pop_front() else { break };
            if let Some(entry) = self.table.get(id) {
                entry.connection.stalled = false;
                entry.connection.resumed = true;
                self.list(id);
            }
        }
    }

    fn stall(&mut self, id: ConnId) {
        if let Some(entry) = self.table.get(id)
            && !entry.connection.stalled
        {
            entry.connection.stalled = true;
            self.stalled.push_back(id);
        }
    }

    /// Does for a connection whatever can be done now: write, hand out, read, end.
    fn serve(&mut self, id: ConnId, now: Instant) {
        let Some(entry) = self.table.get(id) else { return };
        entry.connection.listed = false;
        let resumed = std::mem::take(&mut entry.connection.resumed);
        if entry.connection.writable && !entry.connection.outbound().is_empty() && !self.flush(id) {
            return;
        }
        let room = self.room(resumed);
        self.hand_out(id, room, now);
        let room = self.room(resumed);
        if self.table.get(id).is_some_and(|entry| entry.connection.may_read()) && !self.read(id, room, now) {
            return;
        }
        self.end_if_over(id, now);
        let Some(entry) = self.table.get(id) else { return };
        let lingering = matches!(entry.connection.phase, Phase::Lingering(_));
        if !entry.connection.stalled
            && (entry.connection.may_read() || lingering && entry.connection.readable)
        {
            self.list(id);
        }
    }

    /// Gives the pool the next job of a connection, if it has one and none is out.
    fn hand_out(&mut self, id: ConnId, room: usize, now: Instant) {
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
            let mut job = self.free.take(id, &connection.local, connection.peer(), now);
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
        self.lines_out += job.lines_left;
        self.outgoing.push(job);
        if self.outgoing.len() >= MAX_BATCH {
            self.submit();
        }
    }

    fn submit(&mut self) {
        self.shared.pool.submit(&mut self.outgoing);
    }

    /// Reads a connection within its budget. `false`: it is gone.
    fn read(&mut self, id: ConnId, room: usize, now: Instant) -> bool {
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
                        connection.readable = false;
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
            connection.readable = filled || connection.hung_up;
            self.counters.read_bytes += read as u64;
            self.take_in(id, read, room, now);
            if filled {
                return true;
            }
        }
        true
    }

    /// Frames `read` bytes of the buffer; 0 is the end of the stream.
    fn take_in(&mut self, id: ConnId, read: usize, room: usize, now: Instant) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        let free = !connection.job_out && !connection.has_ready() && connection.may_hand_out();
        let peer = connection.peer();
        let mut job = free.then(|| self.free.take(id, &connection.local, peer, now));
        let intake = Intake {
            max_line_bytes: self.settings.max_line_bytes,
            job: job.as_deref_mut(),
            room,
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
    fn finish(&mut self, mut job: Box<Job>, now: Instant) {
        let id = job.connection;
        let replies = job.reply_ends.len();
        let panicked = job.end == JobEnd::Panicked;
        self.jobs_out -= 1;
        self.lines_out -= job.handled + job.lines_left;
        self.shared.pool.learn_time_per_job(job.took, !std::mem::replace(&mut self.learned, true));

        let silent = (job.handled - replies - usize::from(panicked)) as u64;
        self.counters.silent += silent;
        self.counters.pending -= silent;
        if panicked {
            self.counters.panics += 1;
            self.drop_requests(1);
        }
        let Some(entry) = self.table.get(id) else {
            self.counters.stale_replies += 1;
            self.drop_requests(replies + job.lines_left);
            self.free.put(job);
            return;
        };
        entry.connection.job_out = false;
        if replies > 0 && !self.reply(id, &job) {
            // Gone in the attempt, with all that was left of this job.
            self.drop_requests(job.lines_left);
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
                self.drop_requests(job.lines_left);
                self.free.put(job);
            }
        }
        if self.table.get(id).is_some_and(|entry| entry.connection.wants_service()) {
            self.serve(id, now);
        }
    }

    /// Accepted requests that will have no reply.
    fn drop_requests(&mut self, count: usize) {
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
        if connection.writable && connection.outbound().is_empty() {
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
        let blocked = connection.writable;
        self.count_replied(done);
        if blocked { self.watch_writes(id) } else { true }
    }

    /// Writes what waits. `false`: the connection is gone.
    fn flush(&mut self, id: ConnId) -> bool {
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
        connection.writable = false;
        if std::mem::replace(&mut connection.watches_writes, true) {
            return true;
        }
        // Asking anew reports the socket at once if it has become writable meanwhile. It stays asked for: from now on
        // it costs no system call.
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().reregister(stream, Token(id.slot as usize), interest) {
            self.warn("cannot watch a connection for writing", &error);
            self.close(id, CloseReason::Reset);
            return false;
        }
        true
    }

    /// Takes a connection to the next phase of its life if it has come to the end of the present one.
    fn end_if_over(&mut self, id: ConnId, now: Instant) {
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return };
        if connection.phase == Phase::Open {
            if connection.read_closed && connection.is_quiet() {
                return self.close(id, CloseReason::Eof);
            }
            if connection.drain_left() != Some(0) {
                return;
            }
            // All that had come when the stop began is read. A line without terminator counts only if the end of the
            // stream had come with it.
            if connection.has_partial()
                && !connection.read_closed
                && stream.peek(&mut [0]).is_ok_and(|read| read == 0)
            {
                self.take_in(id, 0, 0, now);
            }
            let Some(Entry { connection, .. }) = self.table.get(id) else { return };
            if connection.phase == Phase::Open {
                connection.phase = Phase::Closing(CloseReason::Stopping);
            }
        }
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        match connection.phase {
            Phase::Closing(reason) if connection.has_answered() => self.say_farewell(id, reason, now),
            Phase::Lingering(reason) if connection.readable => self.discard(id, reason),
            _ => {}
        }
    }

    /// Everything is answered: sends the last line, if the reason has one, and once it is out, the end of the stream.
    fn say_farewell(&mut self, id: ConnId, reason: CloseReason, now: Instant) {
        let line = self.last_line(reason);
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        if let Some(line) = line.filter(|_| !std::mem::replace(&mut connection.said_farewell, true)) {
            connection.queue(line.as_bytes(), std::iter::empty(), usize::MAX);
            if connection.writable && !self.flush(id) {
                return;
            }
        }
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return };
        if !connection.outbound().is_empty() {
            return;
        }
        if connection.read_closed || stream.shutdown(Shutdown::Write).is_err() {
            return self.close(id, reason);
        }
        connection.discard_input();
        connection.phase = Phase::Lingering(reason);
        connection.readable = true;
        self.lingering.set(now, id);
        self.discard(id, reason);
    }

    /// What a peer is told when its connection is closed for this reason.
    fn last_line(&self, reason: CloseReason) -> Option<String> {
        match reason {
            CloseReason::LineTooLong => {
                Some(format!("ERROR line too long (limit {} bytes)\n", self.settings.max_line_bytes))
            }
            CloseReason::Full => {
                Some(format!("ERROR server full (limit {} connections)\n", self.settings.max_connections))
            }
            CloseReason::KillRefused => Some("ERROR KILL_SERVICE refused\n".to_owned()),
            CloseReason::Panic => Some("ERROR internal error\n".to_owned()),
            CloseReason::Eof
            | CloseReason::Reset
            | CloseReason::Handler
            | CloseReason::Stopping
            | CloseReason::Aborted => None,
        }
    }

    /// Reads and throws away, within a budget, until the peer closes.
    fn discard(&mut self, id: ConnId, reason: CloseReason) {
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return };
        for _ in 0..DISCARD_BUDGET {
            match stream.read(&mut self.buffer) {
                Ok(0) => return self.close(id, reason),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    connection.readable = false;
                    return;
                }
                Err(_) => return self.close(id, reason),
            }
        }
        self.list(id);
    }

    /// Ends a connection now, and accounts for what is lost with it. A job that is out is accounted for when it
    /// comes back.
    fn close(&mut self, id: ConnId, reason: CloseReason) {
        let Some(mut entry) = self.table.remove(id) else { return };
        let connection = &mut entry.connection;
        let mut lost = connection.unsent_replies();
        if let Some(job) = connection.take_held() {
            lost += job.lines_left;
            self.free.put(job);
        }
        self.drop_requests(lost);
        // A peer that was turned away may leave for any reason; it never was open.
        if connection.rejected {
            self.rejected -= 1;
        } else {
            self.counters.open -= 1;
            self.counters.closed[reason as usize] += 1;
        }
        tracing::debug!(peer = %connection.peer(), reason = reason.as_str(), lost, "connection closed");
        // A descriptor is free again.
        self.listeners.retry();
    }

    /// Accepts up to `budget` connections.
    fn accept(&mut self, budget: usize, now: Instant) {
        if self.listeners.retry_at().is_some_and(|at| at <= now) {
            self.listeners.retry();
        }
        for _ in 0..budget {
            if !self.listeners.is_ready() {
                return;
            }
            let (mut stream, peer, local) = match self.listeners.accept(now) {
                Accepted::Connection(stream, peer, local) => (stream, peer, local),
                Accepted::None => return,
                Accepted::Refused(error) => {
                    self.counters.accept_errors += 1;
                    return self.warn("cannot accept connections for now", &error);
                }
            };
            self.counters.accepted += 1;
            let mut connection = Connection::new(local, peer);
            if self.counters.open >= self.settings.max_connections as u64 {
                self.counters.rejected_full += 1;
                tracing::debug!(%peer, "connection rejected: full");
                if self.rejected >= MAX_REJECTED {
                    // Told, but not waited for: a reset may overtake the line.
                    if let Some(line) = self.last_line(CloseReason::Full) {
                        drop(stream.write(line.as_bytes()));
                    }
                    continue;
                }
                connection.rejected = true;
                connection.phase = Phase::Closing(CloseReason::Full);
                self.rejected += 1;
            } else {
                self.counters.open += 1;
            }
            let id = self.table.insert(stream, connection);
            let Some(entry) = self.table.get(id) else { continue };
            let token = Token(id.slot as usize);
            let registered = self.poll.registry().register(&mut entry.stream, token, Interest::READABLE);
            let closing = entry.connection.rejected;
            if let Err(error) = registered {
                self.warn("cannot watch a connection", &error);
                self.close(id, CloseReason::Reset);
            } else if closing {
                self.list(id);
            }
        }
    }

    /// Step one of a graceful stop: takes what is in the accept queue, closes the listeners, and limits each connection
    /// to what its receive queue holds now.
    fn begin_drain(&mut self, now: Instant) {
        self.drain_until = Some(now + self.settings.drain_timeout);
        self.listeners.set_all_ready();
        self.accept(FINAL_ACCEPT_BUDGET, now);
        self.listeners.close();
        let ids = self.table.ids();
        tracing::info!(connections = ids.len(), pending = self.counters.pending, "draining");
        for id in ids {
            let Some(Entry { stream, connection, .. }) = self.table.get(id) else { continue };
            if connection.phase == Phase::Open {
                let queued = rustix::io::ioctl_fionread(&*stream).unwrap_or(0);
                connection.begin_drain(usize::try_from(queued).unwrap_or(usize::MAX));
            }
            self.list(id);
        }
    }

    /// Stops at once: counts what is dropped and what held it up, and closes everything.
    fn abort(mut self) -> Dropped {
        self.submit();
        let pending = self.counters.pending;
        let (mut unread, mut kept, mut slow_peers) = (0, 0, 0);
        for id in self.table.ids() {
            let Some(Entry { connection, .. }) = self.table.get(id) else { continue };
            unread += connection.unsent_replies() as u64;
            slow_peers += usize::from(connection.unsent_replies() > 0);
            // Read, but in no job yet: accepted only to be dropped.
            kept += connection.ready_lines() as u64;
            self.close(id, CloseReason::Aborted);
        }
        let dropped = Dropped {
            requests: pending - unread + kept,
            replies: unread,
            busy_workers: self.shared.pool.census(Duration::ZERO).busy,
            slow_peers,
        };
        // Those in jobs that are out, and those in no job; closing accounted for the rest.
        self.counters.requests += kept;
        self.counters.dropped += self.counters.pending + kept;
        self.counters.pending = 0;
        self.shared.pool.stop();
        self.publish();
        dropped
    }

    /// Sees that work which waits makes progress, and shows the tuner how much there is.
    fn watch_progress(&mut self, now: Instant) {
        let Shared { pool, tuner, .. } = &self.shared;
        tuner.observe(self.jobs_out, pool.time_per_job());
        let (checked, started_then) = self.stall_check;
        if now.saturating_duration_since(checked) < SAFETY_TICK {
            return;
        }
        let started = pool.started();
        if pool.waiting() > 0 && started == started_then {
            if pool.parked() > 0 {
                pool.nudge();
            } else {
                tuner.poke();
            }
        }
        self.stall_check = (now, started);
    }

    fn publish(&self) {
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.counters;
    }

    /// Warns, but not more often than once in a while.
    fn warn(&mut self, what: &str, error: &io::Error) {
        let now = Instant::now();
        if self.warned.is_none_or(|at| now.saturating_duration_since(at) >= WARNING_INTERVAL) {
            self.warned = Some(now);
            tracing::warn!(%error, connections = self.table.len(), "{what}");
        }
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

//! The state of one connection: what it is for, what has come in, what is out, what goes back, and how it ends. No I/O, no
//! clock.
//!
//! The reactor reads and writes the socket and tells the connection; the connection tells what may be done next. An
//! idle connection owns no buffers: they are boxed, and there only while bytes are pending.
//!
//! Replies leave in the order of requests because at most one job is out (the `pipelining` tests hold it).

mod deadline;
mod ending;
mod inbound;
mod later;
#[cfg(any(test, fuzzing))]
mod model;
mod outbound;
mod peer;
#[cfg(test)]
mod rules;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use crate::address::Address;
use crate::clock::Nanos;
use crate::job::{Endpoint, FreeJobs, Job, Session};
use crate::mail::Completion;
use crate::service::{Cut, Served, ServiceId, Taken};
use crate::slots::ConnId;
pub(crate) use ending::Phase;
pub(crate) use inbound::Inbound;
#[cfg(any(test, fuzzing))]
pub use model::play;
pub(crate) use outbound::Outbound;
use peer::Peer;

/// Bytes that are read of a connection while a job of it is out, so that the next job is there when that comes back.
const READ_AHEAD_BYTES: usize = 16 << 10;
/// Bytes that are read of a connection that waits for `max_pending`: to look for a stop in them.
const LOOK_AHEAD_BYTES: usize = 4 << 10;

/// What a connection is for. Matched where it is served, and where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Requests of its service are read and answered.
    Requests,
    /// Its bytes go to something else, and come from there.
    Joined,
    /// It comes from a proxy, which has yet to say for whom: only that is waited for. No service knows of it.
    Announced,
    /// The same, for a service that looks on: it is no client, and has accounts of its own.
    Aside,
    /// There was no place for it: it is told so, and is no client.
    TurnedAway,
}

/// What is known of the socket's receiving side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// It was read empty, and no edge was seen since.
    Empty,
    /// An edge was seen, and it was not read empty since.
    Readable,
    /// The peer's hang-up was announced: only the end of the stream or an error empties it.
    HungUp,
    /// The peer has reset the connection. What it had sent may still be read; nothing reaches it any more.
    Broken,
    /// The end of the stream was read.
    Ended,
}

/// What is known of the socket's sending side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// It never was full. Events for writing are not asked for.
    Open,
    /// It was full once, and takes bytes again as far as we know. Events for writing are asked for.
    Watched,
    /// It is full.
    Full,
}

/// Whether the connection waits for `max_pending`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It does not.
    Any,
    /// It is in the reactor's list of those that do.
    Waits,
    /// Its turn has come.
    Its,
}

/// What one connection is doing. Small: most connections of a busy server are idle.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) local: Arc<Endpoint>,
    peer: Peer,
    buffers: Option<Box<Buffers>>,
    /// What its service keeps for it. With its job, while one is out.
    pub(crate) session: Option<Session>,
    /// When it was accepted, by the pool's clock.
    pub(crate) opened_at: Nanos,
    /// Bytes that the account has it down for.
    pub(crate) accounted_bytes: usize,
    /// Of these, what the job holds that is out; 0 while none is.
    job_bytes: u32,
    pub(crate) role: Role,
    pub(crate) phase: Phase,
    input: Input,
    pub(crate) output: Output,
    pub(crate) turn: Turn,
    /// Whether this peer may stop the server.
    pub(crate) may_stop: bool,
    /// How many of its requests may be timed together on the event loop: see [`Taken::lap`].
    pub(crate) lap: u8,
    /// Is in one of the reactor's lists of connections to look at.
    pub(crate) listed: bool,
    /// A reply has begun and has not ended: nothing else may come between.
    pub(crate) mid_reply: bool,
    /// Its session is being made, and the greeting is to come: nothing else may come before.
    pub(crate) opening: bool,
    /// What those who push to it were told last: that its peer does not read.
    pub(crate) told_choked: bool,
    /// When it was last seen to do anything, in milliseconds since the server's start, which wrap after seven weeks; kept up
    /// to date only where there is a timeout for it.
    pub(crate) active_ms: u32,
    /// When the reactor looks at its deadlines, by the pool's clock; 0: it has no entry there.
    pub(crate) look_at: Nanos,
}

/// There only while something is pending.
#[derive(Debug, Default)]
struct Buffers {
    inbound: Inbound,
    outbound: Outbound,
    /// `outbound` came above the high watermark, and is not yet below the low one.
    choked: bool,
    /// When the socket last took bytes of `outbound`, or when the first of them came to wait.
    progress_at: Nanos,
    /// Since when it is not read, for a reason of the server's own.
    paused_since: Option<Nanos>,
    /// A job with lines left, held back while the peer does not read its replies, or one of them is given later.
    held: Option<Box<Job>>,
    /// A reply is given later: since when it is waited for, and whether the connection is to be closed behind it.
    awaits: Option<(Nanos, bool)>,
    /// What came of it, where that was sooner here than the job that it is of.
    completion: Option<Box<Completion>>,
    /// A handler that waits until the peer has read.
    writer: Option<SyncSender<()>>,
    /// What was pushed while a reply had begun and not ended, and how many bytes that are.
    parked: VecDeque<Arc<[u8]>>,
    parked_bytes: usize,
    /// While draining: bytes still to be read, those that were in the receive queue when the stop began.
    drain_left: Option<usize>,
}

impl Buffers {
    fn is_unused(&self) -> bool {
        self.inbound.is_empty()
            && self.outbound.is_empty()
            && self.held.is_none()
            && self.awaits.is_none()
            && self.completion.is_none()
            && self.writer.is_none()
            && self.parked.is_empty()
            && self.drain_left.is_none()
    }
}

impl Connection {
    /// A connection of the service that listens at `local`, accepted at `now`.
    pub(crate) fn new(
        local: Arc<Endpoint>,
        peer: &Address,
        may_stop: bool,
        role: Role,
        now: Nanos,
    ) -> Connection {
        Connection {
            local,
            peer: Peer::new(peer),
            buffers: None,
            session: None,
            opened_at: now,
            accounted_bytes: 0,
            job_bytes: 0,
            role,
            phase: Phase::Open,
            input: Input::Empty,
            output: Output::Open,
            turn: Turn::Any,
            may_stop,
            lap: 1,
            listed: false,
            mid_reply: false,
            opening: false,
            told_choked: false,
            active_ms: 0,
            look_at: 0,
        }
    }

    /// Its proxy has said whose it is, with a header of `bytes` at the front of what has come in.
    pub(crate) fn become_client(
        &mut self,
        peer: &Address,
        local: Option<Arc<Endpoint>>,
        may_stop: bool,
        bytes: usize,
    ) {
        (self.role, self.may_stop, self.peer) = (Role::Requests, may_stop, Peer::new(peer));
        if let Some(local) = local {
            self.local = local;
        }
        self.inbound_mut().skip(bytes);
        self.tidy();
    }

    pub(crate) fn peer(&self) -> Address {
        self.peer.address()
    }

    pub(crate) fn service(&self) -> ServiceId {
        self.local.service
    }

    /// An empty job of it, whose name is `id`, for what came at `now`.
    #[inline(always)]
    pub(crate) fn new_job(&self, id: ConnId, free: &mut FreeJobs, now: Nanos) -> Box<Job> {
        free.take(id, &self.local, self.peer(), self.opened_at, now)
    }

    /// What it holds in bytes, by capacity: what has come in, what goes back, what its job carries, and the bookkeeping.
    /// Replies that a worker is writing count when they come back.
    pub(crate) fn held_bytes(&self) -> usize {
        let buffers = self.buffers.as_deref().map_or(0, |buffers| {
            let Buffers { inbound, outbound, held, completion, parked_bytes, .. } = buffers;
            let held = held.as_deref().map_or(0, Job::held_bytes);
            let given = completion.as_deref().and_then(|completion| completion.reply.as_ref());
            let later = given.map_or(0, Vec::capacity) + parked_bytes;
            size_of::<Buffers>() + inbound.capacity() + outbound.held_bytes() + held + later
        });
        buffers + self.job_bytes as usize
    }

    // The receiving side.

    /// An edge was seen, or may have been missed on purpose.
    pub(crate) fn set_readable(&mut self) {
        if self.input == Input::Empty {
            self.input = Input::Readable;
        }
    }

    /// The peer's hang-up or urgent data was announced: a short read does not mean that all was read.
    pub(crate) fn set_hung_up(&mut self) {
        if !matches!(self.input, Input::Ended | Input::Broken) {
            self.input = Input::HungUp;
        }
    }

    /// An error was announced: the peer has reset the connection.
    pub(crate) fn set_broken(&mut self) {
        self.input = Input::Broken;
    }

    /// Whether the peer has reset the connection.
    pub(crate) fn is_broken(&self) -> bool {
        self.input == Input::Broken
    }

    /// A read did not fill its buffer.
    pub(crate) fn set_read_short(&mut self) {
        if self.input == Input::Readable {
            self.input = Input::Empty;
        }
    }

    /// A read would have blocked.
    pub(crate) fn set_read_empty(&mut self) {
        if !matches!(self.input, Input::Ended | Input::Broken) {
            self.input = Input::Empty;
        }
        // All that was in the receive queue when the stop began has been read, whatever was counted then.
        if let Some(left) = self.buffers.as_mut().and_then(|buffers| buffers.drain_left.as_mut()) {
            *left = 0;
        }
    }

    /// The end of the stream was read.
    pub(crate) fn set_ended(&mut self) {
        self.input = Input::Ended;
    }

    /// Whether the end of the stream was read.
    pub(crate) fn has_ended(&self) -> bool {
        self.input == Input::Ended
    }

    /// Whether the socket may have something to read.
    pub(crate) fn is_readable(&self) -> bool {
        matches!(self.input, Input::Readable | Input::HungUp | Input::Broken)
    }

    /// How many bytes may be read for the service of this connection now, `most` at the most. While no job can be cut of
    /// them only so many as are read ahead, and where memory is short (`sparing`) hardly any. 0: none.
    pub(crate) fn may_read(&self, most: usize, sparing: bool) -> usize {
        if self.phase != Phase::Open || !self.is_readable() || self.is_choked() {
            return 0;
        }
        let here = self.inbound().map_or(0, Inbound::len);
        let limit = if self.turn == Turn::Waits || sparing && self.may_have_frame() {
            LOOK_AHEAD_BYTES.saturating_sub(here)
        } else if self.may_have_frame() {
            READ_AHEAD_BYTES.saturating_sub(here)
        } else if self.may_hand_out() {
            most
        } else if sparing {
            LOOK_AHEAD_BYTES
        } else {
            // The rest of a frame, which has a limit of its own: it may be a stop.
            READ_AHEAD_BYTES
        };
        limit.min(most).min(self.drain_left().unwrap_or(usize::MAX))
    }

    /// Bytes that `read` brought were taken in.
    pub(crate) fn count_drained(&mut self, read: usize) {
        if let Some(left) = self.buffers.as_mut().and_then(|buffers| buffers.drain_left.as_mut()) {
            *left = left.saturating_sub(read);
        }
    }

    /// What has come in and is not consumed, if anything is.
    pub(crate) fn inbound(&self) -> Option<&Inbound> {
        self.buffers.as_deref().map(|buffers| &buffers.inbound).filter(|inbound| !inbound.is_empty())
    }

    /// The same, to be changed; followed by [`tidy`](Self::tidy).
    pub(crate) fn inbound_mut(&mut self) -> &mut Inbound {
        &mut self.buffers.get_or_insert_default().inbound
    }

    /// Whether whole frames may be here that no job has taken.
    pub(crate) fn may_have_frame(&self) -> bool {
        self.inbound().is_some_and(Inbound::may_have_frame)
    }

    /// Forgets what has come in: nothing behind what was accepted is answered. Returns what is free now.
    pub(crate) fn discard_input(&mut self) -> Option<Vec<u8>> {
        let bytes = self.buffers.as_mut().map(|buffers| std::mem::take(&mut buffers.inbound).into_bytes());
        self.tidy();
        bytes
    }

    /// Forgets what waits for the socket: nothing of it will be sent. Returns what is free now.
    pub(crate) fn discard_output(&mut self) -> Option<Vec<u8>> {
        let bytes = self.buffers.as_mut().map(|buffers| std::mem::take(&mut buffers.outbound).into_bytes());
        self.tidy();
        bytes
    }

    /// Limits what is read from now on to the `bytes` that the receive queue holds.
    pub(crate) fn begin_drain(&mut self, bytes: usize) {
        self.buffers.get_or_insert_default().drain_left = Some(bytes);
        // A read stops short at an urgent byte, and no event tells of what is behind it.
        self.set_hung_up();
    }

    /// Bytes that may still be read, if the connection is draining.
    pub(crate) fn drain_left(&self) -> Option<usize> {
        self.buffers.as_ref()?.drain_left
    }

    // Jobs.

    /// Whether a job is out.
    pub(crate) fn is_job_out(&self) -> bool {
        self.job_bytes > 0
    }

    /// A job that holds `bytes` goes out.
    pub(crate) fn set_job_out(&mut self, bytes: usize) {
        self.job_bytes = u32::try_from(bytes).unwrap_or(u32::MAX).max(1);
    }

    /// The job that was out has come back.
    pub(crate) fn set_job_back(&mut self) {
        self.job_bytes = 0;
    }

    /// Whether a job may be handed out: no other is, and the peer reads its replies.
    pub(crate) fn may_hand_out(&self) -> bool {
        !self.is_job_out()
            && !self.is_choked()
            && !self.awaits_reply()
            && !matches!(self.phase, Phase::Lingering(_))
    }

    /// Cuts frames off what has come in, at `now`; followed by [`tidy`](Self::tidy).
    pub(crate) fn cut(&mut self, cut: Cut<'_>, now: Nanos) -> Taken {
        let ended = self.has_ended();
        let buffers = self.buffers.get_or_insert_default();
        let taken = buffers.inbound.cut(&mut self.session, ended, cut, now);
        self.lap = taken.lap;
        taken
    }

    /// Looks at `now` whether what has come in is a whole frame, as far as that can be told.
    pub(crate) fn examine(&mut self, service: &Served, now: Nanos) {
        if let Some(buffers) = &mut self.buffers {
            buffers.inbound.examine(service, self.session.as_ref(), now);
        }
    }

    /// Keeps a job with lines left until the peer has read.
    pub(crate) fn hold(&mut self, job: Box<Job>) {
        self.buffers.get_or_insert_default().held = Some(job);
    }

    /// Takes out the job that was held.
    pub(crate) fn take_held(&mut self) -> Option<Box<Job>> {
        let held = self.buffers.as_mut()?.held.take();
        self.tidy();
        held
    }

    /// Whether nothing is left to do for what was read: no job out or held, nothing unread by a job, no byte to write.
    pub(crate) fn is_quiet(&self) -> bool {
        self.has_answered()
            && self
                .buffers
                .as_deref()
                .is_none_or(|Buffers { inbound, outbound, .. }| inbound.is_empty() && outbound.is_empty())
    }

    /// Whether only bytes to write are left of the requests that were accepted.
    pub(crate) fn has_answered(&self) -> bool {
        !self.is_job_out()
            && self
                .buffers
                .as_deref()
                .is_none_or(|buffers| buffers.held.is_none() && buffers.awaits.is_none())
    }

    /// What it is doing, in a word.
    #[cfg(feature = "admin")]
    pub(crate) fn doing(&self) -> &'static str {
        match self.phase {
            Phase::Closing(_) | Phase::Leaving(_) => "closing",
            Phase::Lingering(_) => "closed",
            Phase::Open if self.is_choked() => "not_reading",
            Phase::Open if self.is_job_out() => "handling",
            Phase::Open if self.awaits_reply() => "deferred",
            Phase::Open if self.turn == Turn::Waits => "held_back",
            Phase::Open if self.outbound().is_some() => "sending",
            Phase::Open if self.inbound().is_some() => "receiving",
            Phase::Open => "idle",
        }
    }

    /// Whether anything is kept of it.
    pub(crate) fn has_buffers(&self) -> bool {
        self.buffers.is_some()
    }

    /// Whether there is anything to do for it besides waiting for its next event. Cheap: asked after each job.
    pub(crate) fn wants_service(&self) -> bool {
        self.input != Input::Empty || self.buffers.is_some() || self.phase != Phase::Open
    }

    /// Whether it only waits for its next event or its job, and what others know of it is up to date: that it holds nothing else.
    pub(crate) fn is_at_rest(&self) -> bool {
        !self.wants_service()
            && self.role == Role::Requests
            && !self.told_choked
            && self.accounted_bytes == self.job_bytes as usize
    }

    // The sending side.

    /// Whether the socket may take bytes.
    pub(crate) fn is_writable(&self) -> bool {
        self.output != Output::Full
    }

    /// The socket takes bytes again.
    pub(crate) fn set_writable(&mut self) {
        if self.output == Output::Full {
            self.output = Output::Watched;
        }
    }

    /// Above the high watermark, and not yet below the low one.
    pub(crate) fn is_choked(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| buffers.choked)
    }

    /// Reply bytes that wait for the socket, if any do.
    pub(crate) fn outbound(&self) -> Option<&Outbound> {
        self.buffers.as_deref().map(|buffers| &buffers.outbound).filter(|outbound| !outbound.is_empty())
    }

    /// Replies that are not written to their end.
    pub(crate) fn unsent_replies(&self) -> usize {
        self.outbound().map_or(0, Outbound::replies)
    }

    /// Changes what waits for the socket, at `now`, and keeps the watermarks.
    pub(crate) fn with_outbound<T>(
        &mut self,
        (high, low): (usize, usize),
        now: Nanos,
        change: impl FnOnce(&mut Outbound) -> T,
    ) -> T {
        let buffers = self.buffers.get_or_insert_default();
        let before = buffers.outbound.bytes().len();
        let result = change(&mut buffers.outbound);
        if before == 0 || buffers.outbound.bytes().len() < before {
            buffers.progress_at = now;
        }
        self.keep_watermarks((high, low));
        self.tidy();
        result
    }

    /// Looks whether the peer has left too much unread, or has read enough of it.
    pub(crate) fn keep_watermarks(&mut self, (high, low): (usize, usize)) {
        if let Some(buffers) = &mut self.buffers {
            let weight = buffers.outbound.weight() + buffers.parked_bytes;
            buffers.choked = weight > high || buffers.choked && weight > low;
        }
    }

    /// Frees the buffers if they are empty.
    pub(crate) fn tidy(&mut self) {
        if self.buffers.as_deref().is_some_and(Buffers::is_unused) {
            self.buffers = None;
        }
    }
}

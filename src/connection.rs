//! The state of one connection: what has come in, what is out, what goes back, and how it ends. No I/O, no clock.
//!
//! The reactor reads and writes the socket and tells the connection; the connection tells what may be done next. An
//! idle connection owns no buffers: they are boxed, and there only while bytes are pending.
//!
//! Replies leave in the order of requests because at most one job is out (`connection_props` and the end-to-end tests
//! hold it).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::clock::Nanos;
use crate::framing::{LineFramer, LineTooLong};
use crate::handler::Kind;
use crate::job::{Endpoint, Job};

/// Why a connection ended. The order is that of [`Counters::closed`](crate::metrics::Counters).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    Eof,
    Reset,
    LineTooLong,
    KillRefused,
    Panic,
    Handler,
    Stopping,
    Aborted,
    /// Never was open: counted as rejected.
    Full,
}

impl CloseReason {
    /// How many reasons there are.
    pub(crate) const COUNT: usize = 9;

    /// The label in logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            CloseReason::Eof => "eof",
            CloseReason::Reset => "reset",
            CloseReason::LineTooLong => "line_too_long",
            CloseReason::KillRefused => "kill_refused",
            CloseReason::Panic => "panic",
            CloseReason::Handler => "handler",
            CloseReason::Stopping => "stopping",
            CloseReason::Aborted => "aborted",
            CloseReason::Full => "full",
        }
    }
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Requests are read and answered.
    Open,
    /// Nothing more is read. What was accepted is answered.
    Closing(CloseReason),
    /// The last line is queued, if the reason has one. What is queued is written.
    Leaving(CloseReason),
    /// Our side is shut down; what still comes is discarded, so that no reset destroys what the peer has not read yet.
    Lingering(CloseReason),
}

impl Phase {
    fn reason(self) -> Option<CloseReason> {
        match self {
            Phase::Open => None,
            Phase::Closing(reason) | Phase::Leaving(reason) | Phase::Lingering(reason) => Some(reason),
        }
    }
}

/// What is known of the socket's receiving side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
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
    pub(crate) phase: Phase,
    input: Input,
    pub(crate) output: Output,
    pub(crate) turn: Turn,
    pub(crate) job_out: bool,
    /// Is in the reactor's list of connections to look at.
    pub(crate) listed: bool,
}

/// There only while something is pending.
#[derive(Debug, Default)]
struct Buffers {
    framer: LineFramer,
    /// Complete requests that no job has taken, each ended by `\n`.
    ready: Vec<u8>,
    /// Bytes of `ready` that jobs have taken.
    taken: usize,
    /// When what is in `ready` was read: all of it by one read, as no other follows before it is gone.
    kept_at: Nanos,
    outbound: Outbound,
    /// `outbound` came above the high watermark, and is not yet below the low one.
    choked: bool,
    /// A job with lines left, held back while the peer does not read its replies.
    held: Option<Box<Job>>,
    /// While draining: bytes still to be read, those that were in the receive queue when the stop began.
    drain_left: Option<usize>,
}

/// Reply bytes that the socket did not take yet.
#[derive(Debug, Default)]
struct Outbound {
    bytes: Vec<u8>,
    sent: usize,
    /// Where in `bytes` each unsent reply ends, the first unsent one first.
    ends: std::collections::VecDeque<usize>,
}

/// What [`Connection::receive`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// Requests put into the job.
    pub(crate) accepted: usize,
    /// Lines that are no request.
    pub(crate) others: usize,
    /// Stop requests.
    pub(crate) stops: usize,
    /// A reason to close the connection after what was accepted.
    pub(crate) close: Option<CloseReason>,
}

impl Received {
    /// Accounts for one line. `stop_allowed`: this peer may stop the service.
    fn line(
        &mut self,
        kind: Option<Kind>,
        stop_allowed: impl FnOnce() -> bool,
        request: impl FnOnce() -> usize,
    ) -> ControlFlow<CloseReason> {
        match kind {
            None => return ControlFlow::Break(CloseReason::Panic),
            Some(Kind::Request) => self.accepted += request(),
            Some(Kind::Other) => self.others += 1,
            Some(Kind::Stop) => {
                self.stops += 1;
                if !stop_allowed() {
                    return ControlFlow::Break(CloseReason::KillRefused);
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// What a connection needs to know to take lines in.
pub(crate) struct Intake<'a, C, S> {
    /// Longest line in bytes.
    pub(crate) max_line_bytes: usize,
    /// Takes up to `room` requests; those beyond are kept until the next [`Connection::fill`].
    pub(crate) job: Option<&'a mut Job>,
    pub(crate) room: usize,
    /// The time of this read.
    pub(crate) now: Nanos,
    /// What a line is; `None` if that cannot be told because the handler panicked.
    pub(crate) classify: C,
    /// Whether this peer may stop the service.
    pub(crate) stop_allowed: S,
}

impl Connection {
    pub(crate) fn new(local: Arc<Endpoint>, peer: SocketAddr) -> Connection {
        Connection {
            local,
            peer: Peer::new(peer),
            buffers: None,
            phase: Phase::Open,
            input: Input::Empty,
            output: Output::Open,
            turn: Turn::Any,
            job_out: false,
            listed: false,
        }
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer.address()
    }

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

    /// Whether the socket may have something to read.
    pub(crate) fn is_readable(&self) -> bool {
        matches!(self.input, Input::Readable | Input::HungUp | Input::Broken)
    }

    /// Whether the end of the stream was read.
    pub(crate) fn has_ended(&self) -> bool {
        self.input == Input::Ended
    }

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
    fn is_choked(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| buffers.choked)
    }

    /// Whether it was turned away at once: it is not open, and never was.
    pub(crate) fn is_rejected(&self) -> bool {
        self.phase.reason() == Some(CloseReason::Full)
    }

    /// Takes in bytes that were read. Requests go into the job while it has room, later ones are kept in order.
    ///
    /// Every line is classified here, as it is read, whether it fits into the job or not: a stop request must not wait.
    pub(crate) fn receive<C, S>(&mut self, chunk: &[u8], intake: Intake<'_, C, S>) -> Received
    where
        C: Fn(&[u8]) -> Option<Kind>,
        S: Fn() -> bool,
    {
        let Intake { max_line_bytes, mut job, room, now, classify, stop_allowed } = intake;
        // The common connection has no line begun and nothing kept: it needs no buffers of its own.
        let mut framer =
            self.buffers.as_mut().map(|buffers| std::mem::take(&mut buffers.framer)).unwrap_or_default();
        let mut received = Received::default();
        let mut kept_before = self.has_ready();
        let flow = framer.feed(chunk, max_line_bytes, |line| {
            received.line(classify(line), &stop_allowed, || match &mut job {
                Some(job) if !kept_before && job.lines_left() < room => {
                    job.push_line(line);
                    1
                }
                _ => {
                    kept_before = true;
                    self.keep(line, now);
                    0
                }
            })
        });
        received.close = match flow {
            Ok(ControlFlow::Continue(())) => None,
            Ok(ControlFlow::Break(reason)) => Some(reason),
            Err(LineTooLong) => Some(CloseReason::LineTooLong),
        };
        if received.close.is_none() && !framer.is_empty() {
            self.buffers.get_or_insert_default().framer = framer;
        }
        if let Some(left) = self.buffers.as_mut().and_then(|buffers| buffers.drain_left.as_mut()) {
            *left = left.saturating_sub(chunk.len());
        }
        self.free_buffers();
        received
    }

    /// Takes in the end of the stream: a last line without terminator counts.
    pub(crate) fn receive_end<C, S>(&mut self, intake: Intake<'_, C, S>) -> Received
    where
        C: Fn(&[u8]) -> Option<Kind>,
        S: Fn() -> bool,
    {
        self.input = Input::Ended;
        let Some(buffers) = &mut self.buffers else { return Received::default() };
        match buffers.framer.finish(intake.max_line_bytes) {
            Ok(Some(mut last)) => {
                // A carriage return at its end would be taken for part of the terminator added here.
                let cr = last.last() == Some(&b'\r');
                last.extend_from_slice(if cr { b"\r\n" } else { b"\n" });
                self.receive(&last, Intake { max_line_bytes: intake.max_line_bytes, ..intake })
            }
            Ok(None) => {
                self.free_buffers();
                Received::default()
            }
            Err(LineTooLong) => Received { close: Some(CloseReason::LineTooLong), ..Received::default() },
        }
    }

    fn keep(&mut self, line: &[u8], now: Nanos) {
        let buffers = self.buffers.get_or_insert_default();
        buffers.kept_at = now;
        buffers.ready.extend_from_slice(line);
        buffers.ready.push(b'\n');
    }

    /// Moves kept requests into `job`, up to `room`. Returns how many.
    pub(crate) fn fill(&mut self, job: &mut Job, room: usize) -> usize {
        let Some(buffers) = &mut self.buffers else { return 0 };
        let mut moved = 0;
        while moved < room {
            let rest = &buffers.ready[buffers.taken..];
            let Some(len) = memchr::memchr(b'\n', rest) else { break };
            job.push_line(&rest[..len]);
            buffers.taken += len + 1;
            moved += 1;
        }
        if buffers.taken == buffers.ready.len() {
            (buffers.ready, buffers.taken) = (Vec::new(), 0);
        }
        self.free_buffers();
        moved
    }

    /// Whether complete requests are kept that no job has taken.
    pub(crate) fn has_ready(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| !buffers.ready.is_empty())
    }

    /// When the requests that are kept were read.
    pub(crate) fn kept_at(&self) -> Nanos {
        self.buffers.as_ref().map_or(0, |buffers| buffers.kept_at)
    }

    /// How many complete requests are kept that no job has taken.
    pub(crate) fn ready_lines(&self) -> usize {
        self.buffers
            .as_ref()
            .map_or(0, |buffers| memchr::memchr_iter(b'\n', &buffers.ready[buffers.taken..]).count())
    }

    /// Forgets kept requests and a line that has begun: nothing behind what was accepted is answered.
    pub(crate) fn discard_input(&mut self) {
        if let Some(buffers) = &mut self.buffers {
            buffers.framer = LineFramer::default();
            (buffers.ready, buffers.taken) = (Vec::new(), 0);
        }
        self.free_buffers();
    }

    /// Whether the reactor may read more for the service of this connection now.
    pub(crate) fn may_read(&self) -> bool {
        self.phase == Phase::Open
            && self.is_readable()
            && !self.has_ready()
            && !self.is_choked()
            && self.drain_left() != Some(0)
    }

    /// Whether a line has begun whose terminator has not come.
    pub(crate) fn has_partial(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| !buffers.framer.is_empty())
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

    /// Whether a job may be handed out: no other is, and the peer reads its replies.
    pub(crate) fn may_hand_out(&self) -> bool {
        !self.job_out && !self.is_choked() && !matches!(self.phase, Phase::Lingering(_))
    }

    /// Keeps a job with lines left until the peer has read.
    pub(crate) fn hold(&mut self, job: Box<Job>) {
        self.buffers.get_or_insert_default().held = Some(job);
    }

    /// Takes out the job that was held.
    pub(crate) fn take_held(&mut self) -> Option<Box<Job>> {
        let held = self.buffers.as_mut()?.held.take();
        self.free_buffers();
        held
    }

    /// Whether nothing is left to do for what was read: no job out or held, no request kept, no byte to write.
    pub(crate) fn is_quiet(&self) -> bool {
        let empty = |buffers: &Buffers| {
            buffers.ready.is_empty() && buffers.held.is_none() && buffers.outbound.is_empty()
        };
        !self.job_out && self.buffers.as_deref().is_none_or(empty)
    }

    /// Whether there is anything to do for it besides waiting for its next event. Cheap: asked after each job.
    pub(crate) fn wants_service(&self) -> bool {
        self.input != Input::Empty || self.buffers.is_some() || self.phase != Phase::Open
    }

    /// Whether only bytes to write are left.
    pub(crate) fn has_answered(&self) -> bool {
        let empty = |buffers: &Buffers| buffers.ready.is_empty() && buffers.held.is_none();
        !self.job_out && self.buffers.as_deref().is_none_or(empty)
    }

    /// Reply bytes that wait for the socket.
    pub(crate) fn outbound(&self) -> &[u8] {
        self.buffers.as_ref().map_or(&[], |buffers| &buffers.outbound.bytes[buffers.outbound.sent..])
    }

    /// Unsent replies among them.
    pub(crate) fn unsent_replies(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.outbound.ends.len())
    }

    /// Queues `bytes`, with replies that end at `ends`, behind what waits already.
    pub(crate) fn queue(&mut self, bytes: &[u8], ends: impl Iterator<Item = usize>, high_watermark: usize) {
        let Buffers { outbound, choked, .. } = &mut **self.buffers.get_or_insert_default();
        outbound.compact();
        let base = outbound.bytes.len();
        outbound.bytes.extend_from_slice(bytes);
        outbound.ends.extend(ends.map(|end| base + end));
        *choked |= outbound.bytes.len() > high_watermark;
    }

    /// The socket took `count` bytes of [`outbound`](Self::outbound). Returns how many replies that completed.
    pub(crate) fn sent(&mut self, count: usize, low_watermark: usize) -> usize {
        let Some(buffers) = &mut self.buffers else { return 0 };
        let Buffers { outbound, choked, .. } = &mut **buffers;
        outbound.sent += count;
        let before = outbound.ends.len();
        while outbound.ends.front().is_some_and(|end| *end <= outbound.sent) {
            outbound.ends.pop_front();
        }
        let completed = before - outbound.ends.len();
        *choked &= outbound.bytes.len() - outbound.sent > low_watermark;
        if outbound.is_empty() {
            *outbound = Outbound::default();
        }
        self.free_buffers();
        completed
    }

    fn free_buffers(&mut self) {
        let unused = |buffers: &Buffers| {
            buffers.framer.is_empty()
                && buffers.ready.is_empty()
                && buffers.outbound.is_empty()
                && buffers.held.is_none()
                && buffers.drain_left.is_none()
        };
        if self.buffers.as_deref().is_some_and(unused) {
            self.buffers = None;
        }
    }
}

impl Outbound {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Moves what is unsent to the front.
    fn compact(&mut self) {
        if self.sent > 0 {
            self.bytes.drain(..self.sent);
            for end in &mut self.ends {
                *end -= self.sent;
            }
            self.sent = 0;
        }
    }
}

/// A peer's address in 16 bytes; most are IPv4, and there are many connections.
#[derive(Debug)]
enum Peer {
    V4(Ipv4Addr, u16),
    V6(Box<SocketAddrV6>),
}

impl Peer {
    fn new(address: SocketAddr) -> Peer {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Peer::V4(ip, address.port()),
            IpAddr::V6(_) => match address {
                SocketAddr::V6(address) => Peer::V6(Box::new(address)),
                SocketAddr::V4(address) => Peer::V4(*address.ip(), address.port()),
            },
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Peer::V4(ip, port) => SocketAddr::from((*ip, *port)),
            Peer::V6(address) => SocketAddr::V6(**address),
        }
    }
}

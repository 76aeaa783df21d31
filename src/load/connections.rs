//! One thread of the generator: an event loop that opens connections, sends what is due and reads what comes.
//!
//! In the closed loop a reply makes room for the next request. In the open loop requests become due by the schedule; they
//! wait in `backlog` for a connection with room, and their latency counts that wait. A ready connection costs one `recv`,
//! one clock read and one `send`; nothing is allocated for a request.
//!
//! Every connection is bounded in time: by the timeout while something is outstanding, by [`LINGER`] while it closes.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::histogram::Latencies;
use super::honesty::Usage;
use super::ledger::{Asked, End, Example, Ledger, Read, Template};
use super::series::Point;
use super::tally::{Kind, Tally};
use super::timer::Timer;
use super::{EndedEarly, Fatal, Interrupts, Plan};
use tidemill::schedule::{Arrivals, Curve};

/// One row of the series covers so much at first, in nanoseconds.
pub(crate) const ROW: u64 = 100_000_000;
/// How long the peer gets to close its side after we closed ours, in nanoseconds: extra replies are seen until then.
const LINGER: u64 = 1_000_000_000;
/// After an interrupt, replies are waited for at least so long, in nanoseconds: longer than a round trip anywhere, and
/// not longer than a person waits.
const PATIENCE_NANOS: u64 = 1_000_000_000;
/// Before a connection that failed is opened again, in nanoseconds.
const RETRY: u64 = 20_000_000;
/// Deadlines, the row and the shape are looked at so often.
const HOUSEKEEPING: Duration = Duration::from_millis(10);
/// At most so many connections of a thread are being opened at once: more only overrun the listen backlog.
const MOST_CONNECTING: usize = 512;
/// A request that is due sooner than this is waited for without sleeping, in nanoseconds: a sleep takes longer.
const SPIN: u64 = 2_000;
const READ_BYTES: usize = 64 * 1024;
const TIMER: Token = Token(usize::MAX);

/// What one thread has to do.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) thread: u32,
    pub(crate) threads: u32,
    pub(crate) connections: usize,
    /// Measured requests to send.
    pub(crate) requests: u64,
    pub(crate) rate: Option<Curve>,
    pub(crate) connection_curve: Option<Curve>,
    pub(crate) template: Template,
}

/// What happened on one thread within [`ROW`].
#[derive(Debug)]
pub(crate) struct Row {
    /// Number of the row since the measured part began.
    pub(crate) index: u64,
    pub(crate) point: Point,
}

/// What one thread has to say when it is done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) tally: Tally,
    pub(crate) lateness: Latencies,
    /// In the measured part.
    pub(crate) usage: Usage,
    /// When the measured part ended, in nanoseconds since the start.
    pub(crate) ended: u64,
    /// Requests that were due and could not be sent before the run ended.
    pub(crate) unsent: u64,
    /// The longest time between two turns of the loop, less what it may sleep, in nanoseconds.
    pub(crate) absent: u64,
    pub(crate) ended_early: Option<EndedEarly>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Connecting,
    Open,
    /// Our side is closed; the peer's end is awaited.
    Closing,
}

#[derive(Debug)]
struct Slot {
    phase: Phase,
    stream: Option<TcpStream>,
    /// Which of the plan's addresses it is connected to, or was tried last.
    address: usize,
    /// When the phase began, or a byte came last, whichever is later.
    heard: u64,
    ledger: Ledger,
    /// The start of a reply whose end has not come yet.
    held: Vec<u8>,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
    /// It is in the list of those that can take a request (open loop).
    queued: bool,
    /// When the request that waits for this connection to open was due (`--reconnect`).
    assigned: Option<u64>,
    /// Since when it could have taken a request (open loop).
    free_since: u64,
    /// A write was told of a reset. The system tells it only once: the next read sees an ordinary end.
    reset: bool,
}

/// How a connection came to its end.
#[derive(Debug)]
enum Ending {
    Eof,
    Failed(io::Error),
    TimedOut,
    Rubbish,
    /// We have waited long enough, or are done.
    Dropped,
}

/// The event loop.
pub(crate) struct Worker<'a> {
    plan: &'a Plan,
    share: Share,
    start: Instant,
    interrupts: &'a Interrupts,
    rows: &'a mut dyn FnMut(Row),
    poll: Poll,
    timer: Timer,
    slots: Vec<Slot>,
    /// Slots to open now, and those to open when `RETRY` has passed, each with that time.
    to_open: VecDeque<usize>,
    to_retry: VecDeque<(u64, usize)>,
    connecting: usize,
    /// Which of the plan's addresses is tried now; once a connection was let in, it stays.
    address: usize,
    /// Sockets that exist.
    live: usize,
    /// Connections there should be now: slots from here on are surplus.
    wanted: usize,
    ready: VecDeque<usize>,
    backlog: VecDeque<u64>,
    arrivals: Option<Arrivals>,
    template: Template,
    tally: Tally,
    lateness: Latencies,
    buffer: Box<[u8]>,
    scratch: Vec<u8>,
    next_connection: u32,
    /// Measured requests still to be sent.
    left: u64,
    sending: bool,
    measure_from: u64,
    deadline: u64,
    timeout: u64,
    /// Connections that ended badly since a reply came.
    failures: usize,
    next_expiry: u64,
    offered: u64,
    row: u64,
    absent: u64,
    ended_early: Option<EndedEarly>,
    /// After an interrupt: when everything that is still outstanding is given up.
    give_up_at: u64,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        share: Share,
        start: Instant,
        interrupts: &'a Interrupts,
        rows: &'a mut dyn FnMut(Row),
    ) -> Result<Self, Fatal> {
        let poll = Poll::new().map_err(Fatal::Poll)?;
        let timer = Timer::new(poll.registry(), TIMER).map_err(Fatal::Poll)?;
        let measure_from = nanoseconds(plan.warm_up);
        let deadline =
            plan.duration.map_or(u64::MAX, |length| measure_from.saturating_add(nanoseconds(length)));
        let random =
            plan.poisson.then(|| fastrand::Rng::with_seed(plan.seed ^ u64::from(share.thread) << 32));
        // The warm-up plays the beginning of the shape; the shape itself starts with the measured part.
        let arrivals =
            share.rate.clone().map(|curve| Arrivals::new(curve, plan.warm_up.as_secs_f64(), random));
        let pipeline = plan.pipeline;
        let empty = |_| Slot {
            phase: Phase::Waiting,
            stream: None,
            address: 0,
            heard: 0,
            ledger: Ledger::new(0),
            held: Vec::new(),
            unsent: Vec::new(),
            queued: false,
            assigned: None,
            free_since: 0,
            reset: false,
        };
        Ok(Self {
            slots: (0..share.connections).map(empty).collect(),
            poll,
            timer,
            to_open: VecDeque::new(),
            to_retry: VecDeque::new(),
            connecting: 0,
            address: 0,
            live: 0,
            wanted: 0,
            ready: VecDeque::new(),
            backlog: VecDeque::new(),
            arrivals,
            template: share.template.clone(),
            tally: Tally::new(measure_from),
            lateness: Latencies::new(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            scratch: Vec::with_capacity(pipeline.min(1024) * super::ledger::REQUEST_LEN),
            next_connection: share.thread,
            left: share.requests,
            sending: true,
            measure_from,
            deadline,
            timeout: nanoseconds(plan.timeout),
            failures: 0,
            next_expiry: 0,
            offered: 0,
            row: 0,
            absent: 0,
            ended_early: None,
            give_up_at: u64::MAX,
            plan,
            share,
            start,
            interrupts,
            rows,
        })
    }

    fn now(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }

    /// Runs until everything is sent and answered, or given up.
    pub(crate) fn run(mut self) -> Result<Done, Fatal> {
        let mut events = Events::with_capacity(1024);
        let mut measured_from = (self.measure_from == 0).then(Usage::of_thread);
        let mut next_housekeeping = 0;
        let mut ended = None;
        let mut now = self.now();
        let mut last_woke = now;
        loop {
            if now >= next_housekeeping {
                next_housekeeping = now + nanoseconds(HOUSEKEEPING);
                self.housekeeping(now)?;
                if measured_from.is_none() && now >= self.measure_from {
                    measured_from = Some(Usage::of_thread());
                    self.clear_row();
                }
            }
            if self.arrivals.is_some() {
                self.collect_due(now);
                self.dispatch()?;
            }
            self.open_connections(now)?;
            if !self.sending && self.live == 0 {
                break;
            }
            if !self.sending && ended.is_none() && !self.slots.iter().any(|slot| slot.phase == Phase::Open) {
                // What follows is only the wait for the peers to close: it is not part of the run.
                ended = Some((self.now(), Usage::of_thread()));
            }
            let timeout = self.sleep()?;
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(Fatal::Poll(error)),
                _ => {}
            }
            let woke = self.now();
            self.absent = self.absent.max((woke - last_woke).saturating_sub(nanoseconds(HOUSEKEEPING)));
            last_woke = woke;
            let mut handled = 0;
            for event in &events {
                if event.token() != TIMER {
                    self.on_event(event);
                    handled += 1;
                }
            }
            now = self.now();
            if self.arrivals.is_none() && handled > 0 && now >= self.measure_from {
                // Each of these replies may have waited here for as long as this turn took.
                self.lateness.record_n(now.saturating_sub(woke), handled);
            }
        }
        let (ended, usage) = ended.unwrap_or_else(|| (self.now(), Usage::of_thread()));
        self.flush_row(u64::MAX);
        Ok(Done {
            lateness: self.lateness,
            usage: measured_from.map(|from| usage.since(from)).unwrap_or_default(),
            ended: self.tally.last_reply.max(ended.min(self.deadline)),
            unsent: u64::try_from(self.backlog.len()).unwrap_or(u64::MAX),
            absent: self.absent,
            ended_early: self.ended_early,
            tally: self.tally,
        })
    }

    /// How long the poll may sleep; a finer timer is set where that counts in milliseconds.
    fn sleep(&mut self) -> Result<Option<Duration>, Fatal> {
        if let (true, Some(arrivals)) = (self.sending, &self.arrivals) {
            let due = due_at(arrivals);
            let now = self.now();
            if due <= now.saturating_add(SPIN) {
                return Ok(Some(Duration::ZERO));
            }
            let delay = Duration::from_nanos(due.saturating_sub(now));
            if delay < HOUSEKEEPING {
                let timeout = self.timer.wake_in(delay).map_err(Fatal::Poll)?;
                return Ok(Some(timeout.unwrap_or(HOUSEKEEPING)));
            }
        }
        Ok(Some(HOUSEKEEPING))
    }

    // Connections -----------------------------------------------------------------------------------------------------

    fn open_connections(&mut self, now: u64) -> Result<(), Fatal> {
        while let Some(&(at, slot)) = self.to_retry.front() {
            if at > now {
                break;
            }
            self.to_retry.pop_front();
            self.to_open.push_back(slot);
        }
        while self.connecting < MOST_CONNECTING && !self.to_open.is_empty() {
            let Some(slot) = self.to_open.pop_front() else { break };
            if self.slots[slot].phase != Phase::Waiting || !self.may_open(slot) {
                continue;
            }
            if self.plan.reconnect {
                if self.arrivals.is_some() {
                    // It is opened when a request is due.
                    self.offer(slot, now);
                    continue;
                }
                self.slots[slot].assigned = Some(now);
            }
            self.connect(slot)?;
        }
        Ok(())
    }

    fn may_open(&self, slot: usize) -> bool {
        // With a connection for each request, those being opened have one each.
        let taken = if self.plan.reconnect { self.connecting as u64 } else { 0 };
        self.sending && slot < self.wanted && (self.arrivals.is_some() || self.left > taken)
    }

    fn connect(&mut self, slot: usize) -> Result<(), Fatal> {
        let now = self.now();
        self.slots[slot].address = self.address;
        match TcpStream::connect(self.plan.addresses[self.address]) {
            Ok(mut stream) => {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut stream, Token(slot), interest).map_err(Fatal::Poll)?;
                let place = &mut self.slots[slot];
                place.stream = Some(stream);
                place.phase = Phase::Connecting;
                place.heard = now;
                place.held.clear();
                place.unsent.clear();
                place.reset = false;
                place.ledger = Ledger::new(self.next_connection);
                self.next_connection = self.next_connection.wrapping_add(self.share.threads);
                self.connecting += 1;
                self.live += 1;
                Ok(())
            }
            Err(error) => {
                self.not_connected(slot, error, now);
                Ok(())
            }
        }
    }

    fn not_connected(&mut self, slot: usize, error: io::Error, now: u64) {
        if self.try_next_address(slot) {
            return;
        }
        let address = self.plan.addresses[self.slots[slot].address];
        if let Some(own_fault) = EndedEarly::of_connect(&error, address) {
            let assigned = self.slots[slot].assigned.take();
            self.backlog.extend(assigned);
            return self.give_up(own_fault);
        }
        self.tally.connections.refused += 1;
        let got = error.to_string();
        self.tally.error(Kind::Refused, now, || Example {
            connection: self.next_connection,
            got,
            ..Example::default()
        });
        let assigned = self.slots[slot].assigned.take();
        if self.arrivals.is_some() {
            assigned.into_iter().for_each(|due| self.backlog.push_front(due));
        }
        self.failed(slot, now);
    }

    /// Whether a slot that was not let in tries another address: while nobody was let in at all, or where others were.
    fn try_next_address(&mut self, slot: usize) -> bool {
        let place = &mut self.slots[slot];
        if self.tally.connections.opened == 0 && place.address == self.address {
            if self.address + 1 == self.plan.addresses.len() {
                return false;
            }
            self.address += 1;
        }
        if place.address == self.address {
            return false;
        }
        if self.arrivals.is_some() {
            place.assigned.take().into_iter().for_each(|due| self.backlog.push_front(due));
        }
        self.to_open.push_back(slot);
        true
    }

    /// A connection ended badly: its slot tries again, unless the server seems to be gone.
    fn failed(&mut self, slot: usize, now: u64) {
        self.failures += 1;
        if !self.plan.expect_stop {
            self.to_retry.push_back((now + RETRY, slot));
        }
        let all = self.slots.len().min(self.wanted.max(1));
        let gone = if self.tally.connections.opened == 0 {
            // Nobody ever got in: everybody has tried.
            self.failures >= all
        } else {
            // Everybody has tried again, and no reply came for as long as one may take.
            self.failures >= 2 * all && now > self.tally.last_reply.saturating_add(self.timeout)
        };
        if gone {
            self.give_up(EndedEarly::Gone);
        }
    }

    fn give_up(&mut self, why: EndedEarly) {
        self.sending = false;
        self.ended_early.get_or_insert(why);
    }

    fn on_event(&mut self, event: &Event) {
        let slot = event.token().0;
        match self.slots[slot].phase {
            Phase::Waiting => return,
            Phase::Connecting => self.look_whether_connected(slot),
            Phase::Open | Phase::Closing => {
                if event.is_writable() && !self.slots[slot].unsent.is_empty() {
                    self.flush(slot);
                }
            }
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(slot, event.is_read_closed() || event.is_error());
        }
    }

    fn look_whether_connected(&mut self, slot: usize) {
        let Some(stream) = &self.slots[slot].stream else { return };
        let outcome = match stream.take_error() {
            Ok(None) => match stream.peer_addr() {
                Ok(_) => stream.set_nodelay(true),
                Err(error) if error.kind() == ErrorKind::NotConnected => return,
                Err(error) => Err(error),
            },
            Ok(Some(error)) | Err(error) => Err(error),
        };
        let now = self.now();
        self.connecting -= 1;
        match outcome {
            Ok(()) => self.opened(slot, now),
            Err(error) => {
                self.drop_socket(slot);
                self.not_connected(slot, error, now);
            }
        }
    }

    /// Takes in what lies in the socket, for whoever is about to judge its silence: this process may not have run for long.
    fn catch_up(&mut self, slot: usize) {
        match self.slots[slot].phase {
            Phase::Waiting => {}
            Phase::Connecting => self.look_whether_connected(slot),
            Phase::Open | Phase::Closing => {
                if !self.slots[slot].unsent.is_empty() {
                    self.flush(slot);
                }
                self.read(slot, false);
            }
        }
    }

    fn opened(&mut self, slot: usize, now: u64) {
        let place = &mut self.slots[slot];
        if self.tally.connections.opened == 0 {
            // This address it is. A wildcard address is never the one that was reached.
            self.address = place.address;
            if let Some(Ok(peer)) = place.stream.as_ref().map(TcpStream::peer_addr) {
                self.template.set_tail(&self.plan.tail.of(peer));
            }
        } else if place.address != self.address {
            self.drop_socket(slot);
            self.try_next_address(slot);
            return;
        }
        self.tally.connections.opened += 1;
        let place = &mut self.slots[slot];
        place.phase = Phase::Open;
        place.heard = now;
        match place.assigned.take() {
            Some(due) if self.arrivals.is_some() || self.budget(now) > 0 => {
                self.send(slot, 1, now, Some(due))
            }
            Some(_) => self.close_if_done(slot, now),
            None => self.go_on(slot, now),
        }
    }

    /// Reads what is there; `to_the_end` when the peer has closed, and nothing else will tell.
    fn read(&mut self, slot: usize, to_the_end: bool) {
        loop {
            let place = &mut self.slots[slot];
            let Some(stream) = &mut place.stream else { return };
            let (got, short) = match stream.read(&mut self.buffer) {
                Ok(0) => return self.end(slot, Ending::Eof),
                Ok(got) => (got, got < self.buffer.len()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return self.end(slot, Ending::Failed(error)),
            };
            let now = self.now();
            let place = &mut self.slots[slot];
            place.heard = now;
            let outcome = if place.held.is_empty() {
                let bytes = &self.buffer[..got];
                let outcome = place.ledger.read(bytes, &mut self.template, now, &mut self.tally);
                if let Read::Consumed(used) = outcome {
                    place.held.extend_from_slice(&bytes[used..]);
                }
                outcome
            } else {
                place.held.extend_from_slice(&self.buffer[..got]);
                let outcome = place.ledger.read(&place.held, &mut self.template, now, &mut self.tally);
                if let Read::Consumed(used) = outcome {
                    place.held.drain(..used);
                }
                outcome
            };
            if outcome == Read::Rubbish {
                return self.end(slot, Ending::Rubbish);
            }
            if self.tally.last_reply == now {
                self.failures = 0;
            }
            self.go_on(slot, now);
            if short && !to_the_end {
                break;
            }
        }
    }

    /// After replies, or when a connection has opened: the next requests, or its end.
    fn go_on(&mut self, slot: usize, now: u64) {
        let place = &self.slots[slot];
        if place.phase != Phase::Open {
            return;
        }
        let room = self.plan.pipeline.saturating_sub(place.ledger.outstanding());
        let used_up = self.plan.reconnect && place.ledger.asked() > 0;
        if !used_up && self.sending && slot < self.wanted {
            if self.arrivals.is_some() {
                if room > 0 {
                    self.offer(slot, now);
                }
                return;
            }
            let count = room.min(usize::try_from(self.budget(now)).unwrap_or(usize::MAX));
            if count > 0 && place.unsent.is_empty() {
                self.send(slot, count, now, None);
                return;
            }
            if self.budget(now) > 0 {
                return;
            }
        }
        self.close_if_done(slot, now);
    }

    fn close_if_done(&mut self, slot: usize, now: u64) {
        let place = &mut self.slots[slot];
        if place.phase != Phase::Open || place.ledger.outstanding() > 0 || !place.unsent.is_empty() {
            return;
        }
        place.phase = Phase::Closing;
        place.heard = now;
        // Its failure means that the connection is gone, which the next read tells.
        drop(place.stream.as_ref().map(|stream| stream.shutdown(Shutdown::Write)));
    }

    /// Requests that may still be sent by a connection that asks at `now`.
    fn budget(&self, now: u64) -> u64 {
        if now < self.measure_from { u64::MAX } else { self.left }
    }

    fn send(&mut self, slot: usize, count: usize, now: u64, due: Option<u64>) {
        let place = &mut self.slots[slot];
        self.scratch.clear();
        if self.arrivals.is_some() {
            for _ in 0..count {
                let due = due.or_else(|| self.backlog.pop_front()).unwrap_or(now);
                if due >= self.measure_from {
                    // Late by its own doing is only what came after the connection had room.
                    self.lateness.record(now.saturating_sub(due.max(place.free_since)));
                }
                let asked = Asked { due, sent: now };
                place.ledger.ask(asked, 1, &self.template, &mut self.scratch, &mut self.tally);
            }
        } else {
            let asked = Asked { due: due.unwrap_or(now), sent: now };
            if asked.due >= self.measure_from {
                self.left = self.left.saturating_sub(count as u64);
            }
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            place.ledger.ask(asked, count, &self.template, &mut self.scratch, &mut self.tally);
        }
        place.heard = now;
        let Some(stream) = &mut place.stream else { return };
        let sent = loop {
            match stream.write(&self.scratch) {
                Ok(sent) => break sent,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break 0,
                // The read side still has what came before.
                Err(error) => {
                    place.reset = error.kind() == ErrorKind::ConnectionReset;
                    break self.scratch.len();
                }
            }
        };
        place.unsent.extend_from_slice(&self.scratch[sent..]);
        if self.arrivals.is_none() && self.left == 0 && now >= self.measure_from {
            self.sending = false;
        }
    }

    fn flush(&mut self, slot: usize) {
        let now = self.now();
        let place = &mut self.slots[slot];
        let Some(stream) = &mut place.stream else { return };
        match stream.write(&place.unsent) {
            Ok(sent) => {
                place.unsent.drain(..sent);
                // The peer could not answer before it got this.
                place.heard = now;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => {
                place.reset = error.kind() == ErrorKind::ConnectionReset;
                place.unsent.clear();
            }
        }
        if place.unsent.is_empty() {
            self.go_on(slot, now);
        }
    }

    fn drop_socket(&mut self, slot: usize) {
        if let Some(mut stream) = self.slots[slot].stream.take() {
            // Closing deregisters it in any case.
            drop(self.poll.registry().deregister(&mut stream));
            self.live -= 1;
        }
        self.slots[slot].phase = Phase::Waiting;
    }

    /// The connection is over: settles its books and decides what its slot does next.
    fn end(&mut self, slot: usize, ending: Ending) {
        let now = self.now();
        let phase = self.slots[slot].phase;
        self.drop_socket(slot);
        let said = self.tally.last_said.take();
        let place = &mut self.slots[slot];
        let connection = place.ledger.connection();
        let ending = match ending {
            Ending::Eof if place.reset => Ending::Failed(ErrorKind::ConnectionReset.into()),
            ending => ending,
        };
        let stopped = self.plan.expect_stop && matches!(ending, Ending::Eof) && said.is_none();
        let how = if stopped { End::Stopped } else { End::Broken };
        let before = self.tally.recent.errors;
        let held = std::mem::take(&mut place.held);
        place.ledger.close(how, &held, &mut self.template, now, &mut self.tally);
        let clean = self.tally.recent.errors == before;
        let problem = match ending {
            Ending::Eof if phase == Phase::Closing => None,
            Ending::Eof if stopped && clean => {
                self.tally.connections.stopped += 1;
                return;
            }
            Ending::Eof => Some((Kind::ClosedEarly, said.unwrap_or_else(|| "end of stream".to_owned()))),
            // Whether these are wrong or lost has been counted with the requests.
            Ending::TimedOut | Ending::Rubbish => {
                self.failed(slot, now);
                return;
            }
            Ending::Dropped => None,
            Ending::Failed(error) => Some((Kind::Reset, error.to_string())),
        };
        match problem {
            Some((kind, got)) => {
                if kind == Kind::Reset {
                    self.tally.connections.reset += 1;
                } else {
                    self.tally.connections.closed_early += 1;
                }
                self.tally.error(kind, now, || Example { connection, got, ..Example::default() });
                self.failed(slot, now);
            }
            None => self.to_open.push_back(slot),
        }
    }

    // The open loop ---------------------------------------------------------------------------------------------------

    /// This connection can take a request.
    fn offer(&mut self, slot: usize, now: u64) {
        let place = &mut self.slots[slot];
        if !place.queued {
            place.queued = true;
            place.free_since = now;
            self.ready.push_back(slot);
        }
    }

    fn collect_due(&mut self, now: u64) {
        let Some(arrivals) = &mut self.arrivals else { return };
        while self.sending {
            let due = due_at(arrivals);
            if due > now || due >= self.deadline {
                break;
            }
            if due >= self.measure_from {
                if self.left == 0 {
                    break;
                }
                self.left -= 1;
            }
            self.backlog.push_back(due);
            self.offered += 1;
            arrivals.advance();
        }
        let over = now >= self.deadline || self.left == 0;
        if over && self.backlog.is_empty() {
            self.sending = false;
        }
    }

    /// Hands what is due to the connections that have room.
    fn dispatch(&mut self) -> Result<(), Fatal> {
        while !self.backlog.is_empty() {
            let Some(slot) = self.ready.pop_front() else { break };
            self.slots[slot].queued = false;
            let now = self.now();
            let place = &self.slots[slot];
            match place.phase {
                Phase::Waiting if self.plan.reconnect && self.sending => {
                    self.slots[slot].assigned = self.backlog.pop_front();
                    self.connect(slot)?;
                }
                Phase::Open if slot >= self.wanted => self.close_if_done(slot, now),
                Phase::Open => {
                    let room = self.plan.pipeline.saturating_sub(place.ledger.outstanding());
                    let fair = self.backlog.len().div_ceil(self.ready.len() + 1);
                    let count = room.min(fair).min(self.backlog.len());
                    if count > 0 && place.unsent.is_empty() {
                        self.send(slot, count, now, None);
                        if room > count {
                            self.offer(slot, now);
                        }
                    }
                }
                _ => {}
            }
        }
        if !self.sending {
            self.close_idle();
        }
        Ok(())
    }

    // Now and then ----------------------------------------------------------------------------------------------------

    fn housekeeping(&mut self, now: u64) -> Result<(), Fatal> {
        self.flush_row(now);
        match self.interrupts.count() {
            0 => {}
            1 if self.give_up_at == u64::MAX => {
                self.give_up(EndedEarly::Interrupted);
                // The replies that are on their way are still waited for, as long as such replies take.
                let patience = (2 * self.tally.slowest).max(PATIENCE_NANOS).min(self.timeout);
                self.give_up_at = now + patience;
            }
            1 => {}
            _ => {
                self.sending = false;
                self.ended_early = Some(EndedEarly::InterruptedTwice);
                self.give_up_at = now;
            }
        }
        if now >= self.give_up_at {
            self.abandon(now);
        }
        let over = now >= self.deadline && self.backlog.is_empty();
        // In the open loop what was due before the end is still sent, for as long as a reply may take.
        if over || now >= self.deadline.saturating_add(self.timeout) {
            self.sending = false;
        }
        self.follow_shape(now);
        if now >= self.next_expiry {
            self.next_expiry = now + (self.timeout / 20).clamp(nanoseconds(HOUSEKEEPING), ROW);
            self.expire(now);
        }
        if !self.sending {
            self.close_idle();
        }
        let nothing_to_open = self.to_open.is_empty() && self.ready.is_empty();
        if self.plan.expect_stop && self.live == 0 && nothing_to_open && self.tally.connections.opened > 0 {
            // Everybody has been told goodbye.
            self.sending = false;
            self.to_retry.clear();
        }
        Ok(())
    }

    fn follow_shape(&mut self, now: u64) {
        let all = self.slots.len();
        let wanted = match &self.share.connection_curve {
            None => all,
            Some(curve) => {
                let at = now.saturating_sub(self.measure_from) as f64 / 1e9;
                usize::try_from(super::whole(curve.at(at) + 0.5)).unwrap_or(all).min(all)
            }
        };
        if wanted > self.wanted {
            self.to_open.extend(self.wanted..wanted);
        }
        let before = std::mem::replace(&mut self.wanted, wanted);
        for slot in wanted..before {
            self.close_if_done(slot, now);
        }
    }

    /// Ends everything that is still there, after a last look at what came.
    fn abandon(&mut self, now: u64) {
        for slot in 0..self.slots.len() {
            self.catch_up(slot);
            match self.slots[slot].phase {
                Phase::Waiting => {}
                Phase::Connecting => {
                    self.connecting -= 1;
                    self.drop_socket(slot);
                }
                Phase::Open | Phase::Closing => self.end(slot, Ending::Dropped),
            }
            self.backlog.extend(self.slots[slot].assigned.take().filter(|&due| due <= now));
        }
    }

    fn expire(&mut self, now: u64) {
        let before = now.saturating_sub(self.timeout);
        for slot in 0..self.slots.len() {
            let place = &self.slots[slot];
            let is_overdue = match place.phase {
                Phase::Waiting => false,
                Phase::Connecting => place.heard < before,
                Phase::Open => {
                    place.ledger.outstanding() > 0
                        && place.heard.min(place.ledger.oldest().unwrap_or(0)) < before
                }
                Phase::Closing => place.heard < now.saturating_sub(LINGER),
            };
            if is_overdue {
                self.catch_up(slot);
            }
            let place = &mut self.slots[slot];
            match place.phase {
                Phase::Waiting => {}
                Phase::Connecting if place.heard < before => {
                    self.connecting -= 1;
                    self.drop_socket(slot);
                    let error = io::Error::new(ErrorKind::TimedOut, "not accepted within the timeout");
                    self.not_connected(slot, error, now);
                }
                Phase::Open if place.ledger.outstanding() > 0 => {
                    let expired =
                        place.ledger.expire_missing(before, &mut self.template, now, &mut self.tally);
                    if place.ledger.oldest().is_some_and(|oldest| oldest.max(place.heard) < before) {
                        self.end(slot, Ending::TimedOut);
                    } else if expired {
                        self.go_on(slot, now);
                    }
                }
                Phase::Closing if place.heard < now.saturating_sub(LINGER) => self.end(slot, Ending::Dropped),
                Phase::Connecting | Phase::Open | Phase::Closing => {}
            }
        }
    }

    /// When nothing is sent any more: closes what has been answered, and does not wait for what never opened.
    fn close_idle(&mut self) {
        let now = self.now();
        for slot in 0..self.slots.len() {
            match self.slots[slot].phase {
                Phase::Open => self.close_if_done(slot, now),
                Phase::Connecting => {
                    self.connecting -= 1;
                    self.drop_socket(slot);
                }
                Phase::Waiting | Phase::Closing => {}
            }
        }
    }

    /// Sends the row that has ended before `now`, and all of it at the end.
    fn flush_row(&mut self, now: u64) {
        let row_now = now.saturating_sub(self.measure_from) / ROW;
        if row_now <= self.row {
            return;
        }
        let measured = self.now() >= self.measure_from;
        let recent = &mut self.tally.recent;
        if measured && (now != u64::MAX || recent.sent + recent.right + recent.errors > 0) {
            let point = Point {
                sent: recent.sent,
                right: recent.right,
                errors: recent.errors,
                offered: self.offered,
                connections: u64::try_from(self.live).unwrap_or(u64::MAX),
                latencies: recent.latencies.sparse(),
            };
            (self.rows)(Row { index: self.row, point });
        }
        self.clear_row();
        self.row = row_now;
    }

    fn clear_row(&mut self) {
        let recent = &mut self.tally.recent;
        (recent.sent, recent.right, recent.errors) = (0, 0, 0);
        recent.latencies.reset();
        self.offered = 0;
    }
}

/// When the next request is due, in nanoseconds since the start of the run.
fn due_at(arrivals: &Arrivals) -> u64 {
    Duration::try_from_secs_f64(arrivals.peek()).map_or(u64::MAX, nanoseconds)
}

/// A duration as nanoseconds; 585 years fit.
fn nanoseconds(duration: Duration) -> u64 {
    // Not by way of the 128 bits of `as_nanos`: this is done for every reply.
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

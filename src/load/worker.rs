//! One thread of the generator: an event loop that opens connections, sends what is due and reads what comes.
//!
//! A ready connection costs one `recv`, one clock read and one `send`; nothing is allocated for a request.
//!
//! A run is bounded in time, whatever the server does: a connection by the timeout while something is outstanding and by a
//! second while it closes, what waits for a connection by half the timeout after the run's end, and everything by
//! [`Worker::settle_by`]. Held by `load_tool::whatever_the_server_does_a_run_ends_in_time`.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::connection::{Connected, Connection, Ending, Outcome, Phase};
use super::histogram::Latencies;
use super::honesty::Usage;
use super::ledger::{Asked, End, Example, Ledger, shown};
use super::pace::{Closed, Open, Pace};
use super::protocol::Protocol;
use super::series::Point;
use super::tally::{Kind, Tally};
use super::timer::Timer;
use super::{EndedEarly, Interrupts, Plan, nanoseconds};
use tidemill::schedule::{Arrivals, Curve};

/// One row of the series covers so much at first: short enough to show a burst, long enough to count in.
pub(crate) const ROW_NANOS: u64 = 100_000_000;
/// Before a connection that failed is opened again: a server that restarts is not flooded with connects.
const RETRY_NANOS: u64 = 20_000_000;
/// After an interrupt, replies are waited for at least so long: longer than a round trip anywhere, and not longer than a
/// person waits.
const PATIENCE_NANOS: u64 = 1_000_000_000;
/// Deadlines, the row and the shape are looked at so often: finer than a person sees, and a hundredth of a core at most.
const HOUSEKEEPING: Duration = Duration::from_millis(10);
/// At most so many connections of a thread are being opened at once: more only overrun the listen backlog.
const MOST_CONNECTING: usize = 512;
/// A request that is due sooner than this is waited for without sleeping: a sleep takes longer.
const SPIN_NANOS: u64 = 2_000;
/// For one `recv`: as much as the replies to a long pipeline, and still in the cache.
const READ_BYTES: usize = 64 * 1024;
/// At most so often a connection is read before others, and the clock, have their turn.
const READS_A_TURN: usize = 16;
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
    pub(crate) protocol: Protocol,
}

/// What happened on one thread within [`ROW_NANOS`].
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
    /// Replies that came in rows in which the thread was never idle.
    pub(crate) right_while_busy: u64,
    /// When the measured part ended, in nanoseconds since the start.
    pub(crate) ended: u64,
    /// The longest time between two turns of the loop, less what it may sleep, in nanoseconds.
    pub(crate) absent: u64,
    pub(crate) ended_early: Option<EndedEarly>,
}

/// The event loop.
pub(crate) struct Worker<'a> {
    plan: &'a Plan,
    start: Instant,
    interrupts: &'a Interrupts,
    rows: &'a mut dyn FnMut(Row),
    poll: Poll,
    timer: Timer,
    pace: Pace,
    protocol: Protocol,
    tally: Tally,
    connections: Vec<Connection>,
    connection_curve: Option<Curve>,
    /// Connections there should be now: those from here on are surplus.
    wanted: usize,
    /// Which of the plan's addresses is tried now; once a connection was let in, it stays.
    address: usize,
    /// Places to open a connection in now, and those for when `RETRY_NANOS` have passed, each with that time.
    to_open: VecDeque<usize>,
    to_retry: VecDeque<(u64, usize)>,
    /// Sockets that exist, those that are being connected, and those that are open on both sides.
    live: usize,
    connecting: usize,
    open: usize,
    /// Requests that wait for a connection that is opened for them.
    assigned: usize,
    /// When the first connection was read in this turn.
    first_read: Option<u64>,
    /// Connections that were left with bytes to read.
    unread: Vec<usize>,
    buffer: Box<[u8]>,
    scratch: Vec<u8>,
    due: Vec<u64>,
    /// The next connection's number and the next request's, and the distance to the one after.
    next_connection: u32,
    next_number: u64,
    threads: u32,
    /// Whether requests are still offered. What was offered before is sent in any case.
    offering: bool,
    measure_from: u64,
    /// When no more requests are offered, when what waits for a connection is given up, and when everything is.
    deadline: u64,
    send_by: u64,
    settle_by: u64,
    timeout: u64,
    /// Connections that ended badly since a reply came.
    failures: usize,
    next_expiry: u64,
    lateness: Latencies,
    /// The row that is being filled, when it began, and what had been used by then.
    row: u64,
    row_began: u64,
    row_usage: Usage,
    right_while_busy: u64,
    absent: u64,
    ended_early: Option<EndedEarly>,
    interrupts_heeded: u8,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        share: Share,
        start: Instant,
        interrupts: &'a Interrupts,
        rows: &'a mut dyn FnMut(Row),
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = Timer::new(poll.registry(), TIMER)?;
        let measure_from = nanoseconds(plan.warm_up);
        let deadline =
            plan.duration.map_or(u64::MAX, |length| measure_from.saturating_add(nanoseconds(length)));
        let timeout = nanoseconds(plan.timeout);
        let pace = match share.rate {
            None => Pace::Closed(Closed::new(share.requests, measure_from)),
            Some(rate) => {
                let random =
                    plan.poisson.then(|| fastrand::Rng::with_seed(plan.seed ^ u64::from(share.thread) << 32));
                // The warm-up plays the beginning of the shape; the shape itself starts with the measured part.
                let warm_up = plan.warm_up.as_secs_f64();
                let arrivals = Arrivals::part(rate, warm_up, random, share.thread, share.threads);
                Pace::Open(Box::new(Open::new(arrivals, share.requests, measure_from, deadline)))
            }
        };
        Ok(Self {
            plan,
            start,
            interrupts,
            rows,
            poll,
            timer,
            pace,
            protocol: share.protocol,
            tally: Tally::new(measure_from),
            connections: (0..share.connections).map(|_| Connection::idle()).collect(),
            connection_curve: share.connection_curve,
            wanted: 0,
            address: 0,
            to_open: VecDeque::new(),
            to_retry: VecDeque::new(),
            live: 0,
            connecting: 0,
            open: 0,
            assigned: 0,
            first_read: None,
            unread: Vec::new(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            scratch: Vec::new(),
            due: Vec::new(),
            next_connection: share.thread,
            next_number: u64::from(share.thread),
            threads: share.threads,
            offering: true,
            measure_from,
            deadline,
            // What is sent last still has half the timeout to be answered.
            send_by: deadline.saturating_add(timeout / 2),
            settle_by: deadline.saturating_add(timeout),
            timeout,
            failures: 0,
            next_expiry: 0,
            lateness: Latencies::new(),
            row: 0,
            row_began: 0,
            row_usage: Usage::of_thread(),
            right_while_busy: 0,
            absent: 0,
            ended_early: None,
            interrupts_heeded: 0,
        })
    }

    fn now(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }

    /// Runs until everything is sent and answered, or given up.
    pub(crate) fn run(mut self) -> io::Result<Done> {
        let mut events = Events::with_capacity(1024);
        let mut measured_from = (self.measure_from == 0).then(Usage::of_thread);
        let (mut next_housekeeping, mut ended) = (0, None);
        let mut now = self.now();
        let mut last_woke = now;
        loop {
            if now >= next_housekeeping {
                next_housekeeping = now + nanoseconds(HOUSEKEEPING);
                self.housekeeping(now);
                if measured_from.is_none() && now >= self.measure_from {
                    let usage = Usage::of_thread();
                    measured_from = Some(usage);
                    self.start_row(now, usage);
                }
            }
            if self.offering && (now >= self.deadline || self.pace.is_used_up(now)) {
                self.offering = false;
                self.wind_up(now);
            }
            self.dispatch(now)?;
            self.open_connections(now)?;
            if !self.offering && self.open == 0 && !self.has_requests_to_send() {
                // What follows is only the wait for the peers to close: it is not part of the run.
                ended.get_or_insert_with(|| (self.now(), Usage::of_thread()));
                if self.live == 0 {
                    break;
                }
            }
            let timeout = self.sleep()?;
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let mut handled = 0;
            for slot in std::mem::take(&mut self.unread) {
                self.read(slot);
                handled += 1;
            }
            for event in &events {
                if event.token() != TIMER {
                    self.on_event(event);
                    handled += 1;
                }
            }
            // A connection that was read has told the time already.
            let woke = self.first_read.take().unwrap_or_else(|| self.now());
            now = if handled > 1 { self.now() } else { woke };
            self.absent = self.absent.max((woke - last_woke).saturating_sub(nanoseconds(HOUSEKEEPING)));
            last_woke = woke;
            if handled > 0 && now >= self.measure_from && matches!(self.pace, Pace::Closed(_)) {
                // Each of these replies may have waited here for as long as this turn took.
                self.lateness.record_n(now - woke, handled);
            }
        }
        self.send_by = 0;
        self.wind_up(now);
        let (ended, usage) = ended.unwrap_or_else(|| (self.now(), Usage::of_thread()));
        self.flush_row(u64::MAX);
        if let Pace::Open(open) = self.pace {
            self.lateness = open.lateness;
        }
        Ok(Done {
            lateness: self.lateness,
            usage: measured_from.map(|from| usage.since(from)).unwrap_or_default(),
            right_while_busy: self.right_while_busy,
            ended: self.tally.last_reply.max(ended.min(self.deadline)),
            absent: self.absent,
            ended_early: self.ended_early,
            tally: self.tally,
        })
    }

    /// How long the poll may sleep; a finer timer is set where that counts in milliseconds.
    fn sleep(&mut self) -> io::Result<Option<Duration>> {
        if !self.unread.is_empty() {
            return Ok(Some(Duration::ZERO));
        }
        if let (true, Pace::Open(open)) = (self.offering, &self.pace) {
            let (due, now) = (open.next_due(), self.now());
            if due <= now.saturating_add(SPIN_NANOS) {
                return Ok(Some(Duration::ZERO));
            }
            let delay = Duration::from_nanos(due - now);
            if delay < HOUSEKEEPING {
                return Ok(Some(self.timer.wake_in(delay)?.unwrap_or(HOUSEKEEPING)));
            }
        }
        Ok(Some(HOUSEKEEPING))
    }

    // Connections -----------------------------------------------------------------------------------------------------

    /// Whether requests that were offered are not sent yet.
    fn has_requests_to_send(&self) -> bool {
        self.assigned > 0 || self.pace.has_backlog()
    }

    fn open_connections(&mut self, now: u64) -> io::Result<()> {
        while let Some(&(at, slot)) = self.to_retry.front()
            && at <= now
        {
            self.to_retry.pop_front();
            self.to_open.push_back(slot);
        }
        while self.connecting < MOST_CONNECTING {
            let Some(slot) = self.to_open.pop_front() else { break };
            let connection = &mut self.connections[slot];
            if connection.phase != Phase::Idle {
                continue;
            }
            let is_useful = self.offering && slot < self.wanted;
            match (&mut self.pace, self.plan.reconnect) {
                (_, true) if connection.assigned.is_some() => {}
                (Pace::Closed(_), true) if is_useful => {
                    connection.assigned = self.pace.take_one(now, &mut self.tally);
                    if connection.assigned.is_none() {
                        continue;
                    }
                    self.assigned += 1;
                }
                (Pace::Open(_), true) => {
                    // It is opened when a request is due.
                    if slot < self.wanted {
                        self.offer(slot, now);
                    }
                    continue;
                }
                (pace, false) if is_useful || slot < self.wanted && pace.has_backlog() => {}
                _ => continue,
            }
            self.connect(slot)?;
        }
        Ok(())
    }

    fn connect(&mut self, slot: usize) -> io::Result<()> {
        let now = self.now();
        let connection = &mut self.connections[slot];
        connection.address = self.address;
        match TcpStream::connect(self.plan.addresses[self.address]) {
            Ok(mut stream) => {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut stream, Token(slot), interest)?;
                let ledger = Ledger::new(self.next_connection, u64::from(self.threads));
                connection.start(stream, ledger, &self.protocol, now);
                self.next_connection = self.next_connection.wrapping_add(self.threads);
                self.connecting += 1;
                self.live += 1;
            }
            Err(error) => self.not_connected(slot, &error, now),
        }
        Ok(())
    }

    fn not_connected(&mut self, slot: usize, error: &io::Error, now: u64) {
        if self.try_next_address(slot) {
            return;
        }
        let address = self.plan.addresses[self.connections[slot].address];
        if let Some(own_fault) = EndedEarly::of_connect(error, address) {
            self.end_early(own_fault);
            return;
        }
        self.tally.connections.refused += 1;
        let connection = self.connections[slot].ledger.connection();
        let got = error.to_string();
        self.tally.error(Kind::Refused, now, || Example { connection, got, ..Example::default() });
        self.failed(slot, now);
    }

    /// Whether a connection that was not let in tries another address: while nobody was let in at all, or where others were.
    fn try_next_address(&mut self, slot: usize) -> bool {
        let tried = self.connections[slot].address;
        if self.tally.connections.opened == 0
            && tried == self.address
            && tried + 1 < self.plan.addresses.len()
        {
            self.address += 1;
        }
        if tried == self.address {
            return false;
        }
        self.to_open.push_back(slot);
        true
    }

    /// A connection ended badly: its place tries again, unless the server seems to be gone.
    fn failed(&mut self, slot: usize, now: u64) {
        self.failures += 1;
        if !self.plan.expect_stop {
            self.to_retry.push_back((now + RETRY_NANOS, slot));
        }
        let all = self.connections.len().min(self.wanted.max(1));
        let gone = if self.tally.connections.opened == 0 {
            // Nobody ever got in: everybody has tried.
            self.failures >= all
        } else {
            // Everybody has tried again, and no reply came for as long as one may take.
            self.failures >= 2 * all && now > self.tally.last_reply.saturating_add(self.timeout)
        };
        if gone {
            self.end_early(EndedEarly::Gone);
        }
    }

    /// Nothing more is sent. What is outstanding is still waited for.
    fn end_early(&mut self, why: EndedEarly) {
        self.ended_early.get_or_insert(why);
        self.offering = false;
        self.send_by = 0;
    }

    fn on_event(&mut self, event: &Event) {
        let slot = event.token().0;
        let connection = &mut self.connections[slot];
        if event.is_read_closed() || event.is_error() {
            connection.hung_up();
        }
        match connection.phase {
            Phase::Idle => return,
            Phase::Connecting => self.look_whether_connected(slot),
            Phase::Open | Phase::Closing => {
                if event.is_writable() && connection.has_unsent() {
                    self.flush(slot);
                }
            }
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(slot);
        }
    }

    fn look_whether_connected(&mut self, slot: usize) {
        let now = self.now();
        match self.connections[slot].is_connected() {
            Connected::NotYet => {}
            // What it says first comes with a read.
            Connected::Yes if self.connections[slot].awaits_greeting() => {}
            Connected::Yes => self.opened(slot, now),
            Connected::Failed(error) => {
                self.drop_socket(slot);
                self.not_connected(slot, &error, now);
            }
        }
    }

    fn opened(&mut self, slot: usize, now: u64) {
        let connection = &self.connections[slot];
        if self.tally.connections.opened == 0 {
            // This address it is. A wildcard address is never the one that was reached.
            self.address = connection.address;
            if let Some(Ok(peer)) = connection.stream().map(TcpStream::peer_addr) {
                self.protocol.reached(peer);
            }
        } else if connection.address != self.address {
            self.drop_socket(slot);
            self.try_next_address(slot);
            return;
        }
        self.tally.connections.opened += 1;
        self.connecting -= 1;
        self.open += 1;
        let connection = &mut self.connections[slot];
        connection.opened(now);
        connection.free_since = now;
        match connection.assigned.take() {
            Some(due) => {
                self.assigned -= 1;
                self.due.push(due);
                self.send_due(slot, now);
            }
            None => self.go_on(slot, now),
        }
    }

    /// Reads what is there, within bounds, and sends what there is room for then.
    fn read(&mut self, slot: usize) {
        for _ in 0..READS_A_TURN {
            let connection = &mut self.connections[slot];
            let was = connection.phase;
            if was == Phase::Idle || was == Phase::Connecting && !connection.awaits_greeting() {
                return;
            }
            let start = self.start;
            let clock = || nanoseconds(start.elapsed());
            let (now, outcome) =
                connection.read(&mut self.buffer, &mut self.protocol, &clock, &mut self.tally);
            self.first_read.get_or_insert(now);
            if self.tally.last_reply == now {
                self.failures = 0;
            }
            if let Outcome::Ended(ending) = outcome {
                return self.end(slot, ending);
            }
            match was {
                Phase::Connecting if !connection.awaits_greeting() => self.opened(slot, now),
                Phase::Open => self.go_on(slot, now),
                _ => {}
            }
            if matches!(outcome, Outcome::Drained) {
                return;
            }
        }
        self.unread.push(slot);
    }

    /// After replies, or when a connection has opened: the next requests, or its end.
    fn go_on(&mut self, slot: usize, now: u64) {
        let connection = &self.connections[slot];
        if connection.phase != Phase::Open {
            return;
        }
        let used_up = self.plan.reconnect && connection.ledger.asked() > 0;
        if !used_up && slot < self.wanted {
            let room = connection.room(self.plan.pipeline);
            let may_get_more = self.offering || self.pace.has_backlog();
            match &mut self.pace {
                Pace::Closed(closed) => {
                    let most = if self.offering { room as u64 } else { 0 };
                    let count = closed.take(most, now, &mut self.tally);
                    if count > 0 {
                        return self.send_now(slot, count, now);
                    }
                }
                Pace::Open(_) if may_get_more => {
                    if room > 0 {
                        self.offer(slot, now);
                    }
                    return;
                }
                Pace::Open(_) => {}
            }
        }
        self.close_if_settled(slot, now);
    }

    /// Ends a connection that has nothing to wait for, unless it may get something to do.
    fn close_if_settled(&mut self, slot: usize, now: u64) {
        let connection = &mut self.connections[slot];
        if connection.phase != Phase::Open || !connection.is_settled() {
            return;
        }
        let used_up = self.plan.reconnect && connection.ledger.asked() > 0;
        let may_go_on = self.offering && !self.pace.is_used_up(now) || self.pace.has_backlog();
        if slot < self.wanted && !used_up && may_go_on {
            return;
        }
        connection.finish(now);
        self.open -= 1;
    }

    /// Closed loop: sends requests that are due because there is room for them.
    fn send_now(&mut self, slot: usize, count: u64, now: u64) {
        self.scratch.clear();
        self.ask(slot, Asked { due: now, sent: now }, count);
        self.connections[slot].send(&self.scratch);
        if self.pace.is_used_up(now) {
            self.offering = false;
        }
    }

    /// Sends the requests that were due at the times in `due`, and clears it.
    fn send_due(&mut self, slot: usize, now: u64) {
        self.scratch.clear();
        for at in 0..self.due.len() {
            let due = self.due[at];
            let free_since = self.connections[slot].free_since;
            if let Pace::Open(open) = &mut self.pace {
                open.sent(due, free_since, now);
            }
            self.ask(slot, Asked { due, sent: now }, 1);
        }
        self.due.clear();
        self.connections[slot].send(&self.scratch);
    }

    fn ask(&mut self, slot: usize, asked: Asked, count: u64) {
        let first = self.next_number;
        self.next_number += count * u64::from(self.threads);
        let ledger = &mut self.connections[slot].ledger;
        ledger.ask(asked, first, count, &mut self.protocol, &mut self.scratch, &mut self.tally);
    }

    fn flush(&mut self, slot: usize) {
        let now = self.now();
        self.connections[slot].flush(now);
        if !self.connections[slot].has_unsent() {
            self.go_on(slot, now);
        }
    }

    fn drop_socket(&mut self, slot: usize) {
        let was = self.connections[slot].phase;
        if let Some(mut stream) = self.connections[slot].take_stream() {
            // Closing deregisters it in any case.
            drop(self.poll.registry().deregister(&mut stream));
            self.live -= 1;
            self.connecting -= usize::from(was == Phase::Connecting);
            self.open -= usize::from(was == Phase::Open);
        }
    }

    /// The connection is over: settles its books and decides what its place does next.
    fn end(&mut self, slot: usize, ending: Ending) {
        let now = self.now();
        let phase = self.connections[slot].phase;
        self.drop_socket(slot);
        let connection = &mut self.connections[slot];
        let said = connection.ledger.take_last_words();
        let stopped = self.plan.expect_stop && matches!(ending, Ending::Eof) && said.is_none();
        let how = if stopped { End::Stopped } else { End::Broken };
        let before = self.tally.recent.errors;
        let held = connection.take_held();
        connection.ledger.close(how, &held, &mut self.protocol, now, &mut self.tally);
        let clean = self.tally.recent.errors == before;
        let (kind, got) = match (ending, said) {
            (Ending::Failed(error), _) => (Kind::Reset, error.to_string()),
            (Ending::Eof, Some(said)) => (Kind::ClosedEarly, shown(&said)),
            // It has said why it ends the connection, and did not end it.
            (_, Some(said)) => {
                let ledger = &self.connections[slot].ledger;
                let protocol = &mut self.protocol;
                self.tally.extra(Kind::Unasked, now, || ledger.example(None, &said, protocol));
                return self.failed(slot, now);
            }
            (Ending::Eof, None) if phase == Phase::Closing => return self.to_open.push_back(slot),
            (Ending::Eof, None) if stopped && clean => {
                self.tally.connections.stopped += 1;
                return;
            }
            (Ending::Eof, None) => (Kind::ClosedEarly, "end of stream".to_owned()),
            // Whether these are wrong or lost has been counted with the requests.
            (Ending::TimedOut | Ending::Rubbish, None) => return self.failed(slot, now),
            (Ending::Dropped, None) => return self.to_open.push_back(slot),
        };
        if kind == Kind::Reset {
            self.tally.connections.reset += 1;
        } else {
            self.tally.connections.closed_early += 1;
        }
        let connection = self.connections[slot].ledger.connection();
        self.tally.error(kind, now, || Example { connection, got, ..Example::default() });
        self.failed(slot, now);
    }

    // The open loop ---------------------------------------------------------------------------------------------------

    /// This connection can take a request.
    fn offer(&mut self, slot: usize, now: u64) {
        let connection = &mut self.connections[slot];
        if let (Pace::Open(open), false) = (&mut self.pace, connection.queued) {
            connection.queued = true;
            connection.free_since = now;
            open.ready.push_back(slot);
        }
    }

    /// Takes in what is due, and hands it to the connections that have room.
    fn dispatch(&mut self, now: u64) -> io::Result<()> {
        let Pace::Open(open) = &mut self.pace else { return Ok(()) };
        if self.offering {
            open.collect(now, &mut self.tally);
        }
        let had_backlog = !open.backlog.is_empty();
        while let Pace::Open(open) = &mut self.pace
            && !open.backlog.is_empty()
            && let Some(slot) = open.ready.pop_front()
        {
            let (now, connection) = (nanoseconds(self.start.elapsed()), &mut self.connections[slot]);
            connection.queued = false;
            match connection.phase {
                Phase::Idle if self.plan.reconnect && slot < self.wanted => {
                    connection.assigned = open.backlog.pop_front();
                    self.assigned += 1;
                    self.connect(slot)?;
                }
                Phase::Open if slot < self.wanted => {
                    let room = connection.room(self.plan.pipeline);
                    let count = room.min(open.fair_part()).min(open.backlog.len());
                    if count > 0 {
                        self.due.extend(open.backlog.drain(..count));
                        self.send_due(slot, now);
                        if room > count {
                            self.offer(slot, now);
                        }
                    }
                }
                _ => self.close_if_settled(slot, now),
            }
        }
        if !self.offering && had_backlog && !self.pace.has_backlog() {
            self.wind_up(now);
        }
        Ok(())
    }

    // Now and then ----------------------------------------------------------------------------------------------------

    fn housekeeping(&mut self, now: u64) {
        self.flush_row(now);
        match (self.interrupts.count(), self.interrupts_heeded) {
            (1, 0) => {
                self.interrupts_heeded = 1;
                self.end_early(EndedEarly::Interrupted);
                // The replies that are on their way are still waited for, as long as such replies take.
                let patience = (2 * self.tally.slowest).max(PATIENCE_NANOS).min(self.timeout);
                self.settle_by = self.settle_by.min(now + patience);
            }
            (2.., 0 | 1) => {
                self.interrupts_heeded = 2;
                self.end_early(EndedEarly::InterruptedTwice);
                self.ended_early = Some(EndedEarly::InterruptedTwice);
                self.settle_by = now;
            }
            _ => {}
        }
        self.follow_shape(now);
        if now >= self.next_expiry {
            self.next_expiry = now + (self.timeout / 20).clamp(nanoseconds(HOUSEKEEPING), ROW_NANOS);
            self.expire(now);
        }
        if !self.offering {
            self.wind_up(now);
        }
        // Places in `ready` wait for a request, with --reconnect without a socket.
        let idle =
            self.to_open.is_empty() && !matches!(&self.pace, Pace::Open(open) if !open.ready.is_empty());
        if self.plan.expect_stop && self.live == 0 && idle && self.tally.connections.opened > 0 {
            // Every connection ended after the expected stop.
            self.offering = false;
            self.send_by = 0;
            self.wind_up(now);
        }
    }

    fn follow_shape(&mut self, now: u64) {
        let all = self.connections.len();
        let wanted = match &self.connection_curve {
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
            self.close_if_settled(slot, now);
        }
    }

    /// Takes in what lies in the socket, for whoever is about to judge its silence: this process may not have run for long.
    fn catch_up(&mut self, slot: usize) {
        match self.connections[slot].phase {
            Phase::Idle => {}
            Phase::Connecting => {
                self.look_whether_connected(slot);
                self.read(slot);
            }
            Phase::Open | Phase::Closing => {
                if self.connections[slot].has_unsent() {
                    self.flush(slot);
                }
                self.read(slot);
            }
        }
    }

    fn expire(&mut self, now: u64) {
        for slot in 0..self.connections.len() {
            if !self.connections[slot].is_overdue(now, self.timeout) {
                continue;
            }
            self.catch_up(slot);
            let connection = &mut self.connections[slot];
            if !connection.is_overdue(now, self.timeout) {
                continue;
            }
            match connection.phase {
                Phase::Idle => {}
                Phase::Connecting => {
                    self.drop_socket(slot);
                    let error = io::Error::new(ErrorKind::TimedOut, "not accepted within the timeout");
                    self.not_connected(slot, &error, now);
                }
                Phase::Open => {
                    let before = now.saturating_sub(self.timeout);
                    connection.ledger.expire_missing(before, &mut self.protocol, now, &mut self.tally);
                    if connection.is_silent(now, self.timeout) {
                        self.end(slot, Ending::TimedOut);
                    } else {
                        self.go_on(slot, now);
                    }
                }
                Phase::Closing => self.end(slot, Ending::Dropped),
            }
        }
    }

    /// Nothing more is offered: closes what is settled, and gives up what has had its time.
    fn wind_up(&mut self, now: u64) {
        if now >= self.send_by {
            self.pace.give_up(&mut self.tally);
        }
        for slot in 0..self.connections.len() {
            if now >= self.settle_by {
                self.catch_up(slot);
            }
            let connection = &mut self.connections[slot];
            if let Some(due) = connection.assigned.take_if(|_| now >= self.send_by) {
                self.assigned -= 1;
                self.tally.unsent(due);
            }
            let connection = &self.connections[slot];
            match connection.phase {
                Phase::Open | Phase::Closing if now >= self.settle_by => self.end(slot, Ending::Dropped),
                Phase::Open => self.close_if_settled(slot, now),
                // It has no request to wait for.
                Phase::Connecting if connection.assigned.is_none() && !self.pace.has_backlog() => {
                    self.drop_socket(slot);
                }
                Phase::Idle | Phase::Connecting | Phase::Closing => {}
            }
        }
        if now >= self.send_by {
            self.to_open.clear();
            self.to_retry.clear();
        }
    }

    /// Sends the row that has ended before `now`, and all of it at the end.
    fn flush_row(&mut self, now: u64) {
        let row_now = now.saturating_sub(self.measure_from) / ROW_NANOS;
        if row_now <= self.row {
            return;
        }
        let (clock, usage) = (self.now(), Usage::of_thread());
        let recent = &mut self.tally.recent;
        let any = recent.sent + recent.right + recent.errors > 0;
        if clock >= self.measure_from && (now != u64::MAX || any) {
            if usage.since(self.row_usage).is_never_idle(clock - self.row_began) {
                self.right_while_busy += recent.right;
            }
            let point = Point {
                sent: recent.sent,
                right: recent.right,
                errors: recent.errors,
                offered: recent.offered,
                connections: self.live as u64,
                latencies: recent.latencies.sparse(),
            };
            (self.rows)(Row { index: self.row, point });
        }
        self.start_row(clock, usage);
        self.row = row_now;
    }

    fn start_row(&mut self, now: u64, usage: Usage) {
        self.tally.recent.reset();
        (self.row_began, self.row_usage) = (now, usage);
    }
}

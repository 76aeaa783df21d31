//! One thread of the generator: an event loop that opens connections (`opening`), sends what is due, reads what comes, and
//! looks now and then whether all is well (`upkeep`).
//!
//! A ready connection costs one `recv` and one `send`, and a look at the clock for every few; nothing is allocated for a request.
//!
//! A run is bounded in time, whatever the server does: a connection by the timeout while something is outstanding and by a
//! second while it closes, what waits for a connection by half the timeout after the run's end, and everything by
//! [`Worker::settle_by`]. Held by `load_tool::ends::whatever_the_server_does_a_run_ends_in_time`.

mod opening;
mod upkeep;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::Duration;

use mio::event::Event;
use mio::{Events, Poll, Token};

use super::connection::{Connection, Outcome, Phase};
use super::histogram::Latencies;
use super::honesty::{Absence, Usage};
use super::ledger::Asked;
use super::pace::{Closed, Due, Open, Pace};
use super::protocol::Protocol;
use super::series::Point;
use super::tally::Tally;
use super::timer::Timer;
use super::{Clock, EndedEarly, Interrupts, Plan, Stamp, nanoseconds};
use tidemill::schedule::{Arrivals, Curve};

/// One row of the series covers so much at first: short enough to show a burst, long enough to count in.
pub(crate) const ROW_NANOS: u64 = 100_000_000;
/// Deadlines, the row and the shape are looked at so often: finer than a person sees, and a hundredth of a core at most.
const HOUSEKEEPING: Duration = Duration::from_millis(10);
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
    pub(crate) absence: Absence,
    pub(crate) ended_early: Option<EndedEarly>,
}

/// What a worker waits with. It costs two descriptors, so those of all workers are there before the first one sends.
pub(crate) struct Polling {
    poll: Poll,
    timer: Timer,
}

impl Polling {
    /// Descriptors of one.
    pub(crate) const DESCRIPTORS: usize = 2;

    pub(crate) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = Timer::new(poll.registry(), TIMER)?;
        Ok(Self { poll, timer })
    }
}

/// The event loop.
pub(crate) struct Worker<'a> {
    plan: &'a Plan,
    stamp: Stamp,
    interrupts: &'a Interrupts,
    rows: &'a mut dyn FnMut(Row),
    poll: Poll,
    timer: Timer,
    pace: Pace,
    request_lines: usize,
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
    /// When this turn began, or should have: what came before that lay here by the generator's doing.
    turn_began: u64,
    /// Connections that were left with bytes to read.
    unread: Vec<usize>,
    buffer: Box<[u8]>,
    scratch: Vec<u8>,
    due: Vec<Due>,
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
    next_housekeeping: u64,
    next_expiry: u64,
    lateness: Latencies,
    /// What was not late at all, to be recorded in the end.
    punctual: u64,
    /// The row that is being filled, when it began, and what had been used by then.
    row: u64,
    row_began: u64,
    row_usage: Usage,
    right_while_busy: u64,
    absence: Absence,
    /// What this thread had used of a core at the last housekeeping, in nanoseconds.
    core_nanos: u64,
    ended_early: Option<EndedEarly>,
    interrupts_heeded: u8,
    /// What had been used when the measured part began; when it ended, and what had been used by then.
    measured_from: Option<Usage>,
    ended: Option<(u64, Usage)>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        share: Share,
        Polling { poll, timer }: Polling,
        clock: Clock,
        interrupts: &'a Interrupts,
        rows: &'a mut dyn FnMut(Row),
    ) -> Self {
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
                Pace::Open(Box::new(Open::new(
                    arrivals,
                    share.threads,
                    share.requests,
                    measure_from,
                    deadline,
                )))
            }
        };
        Self {
            plan,
            stamp: Stamp::new(clock),
            interrupts,
            rows,
            poll,
            timer,
            pace,
            request_lines: share.protocol.request_lines(),
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
            turn_began: 0,
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
            next_housekeeping: 0,
            next_expiry: 0,
            lateness: Latencies::new(),
            punctual: 0,
            row: 0,
            row_began: 0,
            row_usage: Usage::of_thread(),
            right_while_busy: 0,
            absence: Absence::default(),
            core_nanos: Usage::nanoseconds_on_a_core(),
            ended_early: None,
            interrupts_heeded: 0,
            measured_from: None,
            ended: None,
        }
    }

    fn now(&mut self) -> u64 {
        self.stamp.now()
    }

    /// Runs until everything is sent and answered, or given up.
    pub(crate) fn run(mut self) -> Done {
        if let Err(error) = self.flood() {
            self.end_early(EndedEarly::Failed(error.to_string()));
            // What is outstanding cannot be waited for any more.
            self.settle_by = 0;
        }
        self.send_by = 0;
        let now = self.now();
        self.wind_up(now);
        let (ended, usage) = self.ended.unwrap_or_else(|| (now, Usage::of_thread()));
        self.flush_row(u64::MAX);
        self.lateness.record_n(0, self.punctual);
        if let Pace::Open(open) = self.pace {
            self.lateness = open.lateness;
        }
        Done {
            lateness: self.lateness,
            usage: self.measured_from.map(|from| usage.since(from)).unwrap_or_default(),
            right_while_busy: self.right_while_busy,
            ended: self.tally.last_reply.max(ended.min(self.deadline)),
            absence: self.absence,
            ended_early: self.ended_early,
            tally: self.tally,
        }
    }

    fn flood(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        self.measured_from = (self.measure_from == 0).then(Usage::of_thread);
        let mut now = self.now();
        let mut last_woke = now;
        loop {
            if now >= self.next_housekeeping {
                if self.ended.is_none() {
                    self.look_for_absence(now);
                }
                self.next_housekeeping = now + nanoseconds(HOUSEKEEPING);
                self.housekeeping(now);
                if self.measured_from.is_none() && now >= self.measure_from {
                    let usage = Usage::of_thread();
                    self.measured_from = Some(usage);
                    (self.row_began, self.row_usage) = (now, usage);
                }
            }
            if self.offering && (now >= self.deadline || self.pace.is_used_up(now)) {
                self.stop_offering(now);
                if now >= self.deadline {
                    self.count_not_let_in(now);
                }
                self.wind_up(now);
            }
            self.dispatch(now)?;
            self.open_connections(now)?;
            if !self.offering && self.open == 0 && !self.has_requests_to_send() {
                // What follows is only the wait for the peers to close: it is not part of the run.
                let now = self.now();
                self.ended.get_or_insert_with(|| (now, Usage::of_thread()));
                if self.live == 0 {
                    return Ok(());
                }
            }
            let timeout = self.sleep(now)?;
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            self.first_read = None;
            self.stamp.expire();
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
            self.turn_began = self.turn_began.min(woke);
            now = if handled > 1 { self.now() } else { woke };
            self.allow_for_absence(last_woke, now);
            last_woke = woke;
            if handled > 0 && now >= self.measure_from && matches!(self.pace, Pace::Closed(_)) {
                // Each of these replies may have waited here for as long as this turn took.
                match now.saturating_sub(woke) {
                    0 => self.punctual += handled,
                    late => self.lateness.record_n(late, handled),
                }
            }
        }
    }

    /// Where this process did not run for long, perhaps between a look at the clock and a send that goes by it, what was sent
    /// since then has had no time to be answered: silence is looked for later.
    fn allow_for_absence(&mut self, last_woke: u64, now: u64) {
        if now.saturating_sub(last_woke) > self.timeout / 4 {
            self.next_expiry = self.next_expiry.max(now + self.timeout / 2);
        }
    }

    /// How long the poll may sleep, apart from the timer.
    fn sleep(&mut self, now: u64) -> io::Result<Option<Duration>> {
        if !self.unread.is_empty() {
            self.turn_began = now;
            return Ok(Some(Duration::ZERO));
        }
        let (mut until, mut now) = (self.next_housekeeping, now);
        if let (true, Pace::Open(open)) = (self.offering, &self.pace) {
            now = self.stamp.now();
            until = until.min(open.next_look());
        }
        // The turn begins earlier if something comes.
        self.turn_began = until;
        if until <= now.saturating_add(SPIN_NANOS) {
            return Ok(Some(Duration::ZERO));
        }
        self.timer.wake_at(until, now)
    }

    /// Whether requests that were offered are not sent yet.
    fn has_requests_to_send(&self) -> bool {
        self.assigned > 0 || self.pace.has_backlog()
    }

    /// Nothing more is sent. What is outstanding is still waited for.
    fn end_early(&mut self, why: EndedEarly) {
        self.ended_early.get_or_insert(why);
        let now = self.now();
        self.stop_offering(now);
        self.send_by = 0;
    }

    fn stop_offering(&mut self, now: u64) {
        if std::mem::take(&mut self.offering)
            && let Pace::Open(open) = &mut self.pace
        {
            open.end(now, &mut self.tally);
        }
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

    /// Reads what is there, within bounds, and sends what there is room for then.
    fn read(&mut self, slot: usize) {
        for _ in 0..READS_A_TURN {
            let connection = &mut self.connections[slot];
            let was = connection.phase;
            if was == Phase::Idle || was == Phase::Connecting && !connection.awaits_greeting() {
                return;
            }
            let (now, outcome) =
                connection.read(&mut self.buffer, &mut self.protocol, &mut self.stamp, &mut self.tally);
            if self.first_read.is_none() {
                self.first_read = Some(now);
                self.turn_began = self.turn_began.min(now);
            }
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
    #[inline(always)] // Every reply passes here, coming from `read`; the other callers are rare.
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
        if self.plan.expect_stop && connection.has_hung_up() {
            // The server has stopped with it, which is counted when that is read.
            return;
        }
        let used_up = self.plan.reconnect && connection.ledger.asked() > 0;
        let may_go_on = self.offering && !self.pace.is_used_up(now) || self.pace.has_backlog();
        if slot < self.wanted && !used_up && may_go_on {
            return;
        }
        let is_at_the_end = slot < self.wanted && !used_up;
        self.tally.connections.not_stopped += u64::from(self.plan.expect_stop && is_at_the_end);
        connection.finish(now);
        self.open -= 1;
    }

    /// Closed loop: sends requests that are due because there is room for them.
    #[inline(always)] // Its one caller is `go_on`.
    fn send_now(&mut self, slot: usize, count: u64, now: u64) {
        let first = self.take_numbers(count);
        let connection = &mut self.connections[slot];
        let asked = Asked { due: now, sent: now };
        let bytes = connection.ledger.ask(asked, first, count, &mut self.protocol, &mut self.tally);
        connection.send(bytes, self.request_lines, now);
        if self.pace.is_used_up(now) {
            self.offering = false;
        }
    }

    /// Sends the requests in `due`, and clears it.
    fn send_due(&mut self, slot: usize, now: u64) {
        self.scratch.clear();
        for at in 0..self.due.len() {
            let (due, first) = (self.due[at], self.take_numbers(1));
            let connection = &mut self.connections[slot];
            if let Pace::Open(open) = &mut self.pace {
                open.sent(due, connection.free_since, now);
            }
            let asked = Asked { due: due.at, sent: now };
            let bytes = connection.ledger.ask(asked, first, 1, &mut self.protocol, &mut self.tally);
            self.scratch.extend_from_slice(bytes);
        }
        self.due.clear();
        self.connections[slot].send(&self.scratch, self.request_lines, now);
    }

    /// Numbers for so many requests, of which the first is returned.
    fn take_numbers(&mut self, count: u64) -> u64 {
        let first = self.next_number;
        self.next_number += count * u64::from(self.threads);
        first
    }

    fn flush(&mut self, slot: usize) {
        let now = self.now();
        self.connections[slot].flush(self.request_lines, now);
        if !self.connections[slot].has_unsent() {
            self.go_on(slot, now);
        }
    }

    /// This connection can take a request.
    fn offer(&mut self, slot: usize, now: u64) {
        let connection = &mut self.connections[slot];
        if let (Pace::Open(open), false) = (&mut self.pace, connection.queued) {
            connection.queued = true;
            connection.free_since = now.min(self.turn_began);
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
            let (now, connection) = (self.stamp.now(), &mut self.connections[slot]);
            connection.queued = false;
            match connection.phase {
                Phase::Idle if self.plan.reconnect && slot < self.wanted => {
                    let due = open.backlog.pop_front();
                    connection.assigned = due.map(|due| due.at);
                    // What it is late for the connect by, it is late for the request by.
                    connection.late_to_connect = due.map_or(0, |due| due.late(connection.free_since, now));
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
}

#[cfg(test)]
mod steps;
#[cfg(test)]
mod tests;

//! The event loop: one thread that owns every socket.
//!
//! A turn: wait for readiness; accept; collect finished jobs and write their replies; read what is readable and frame it
//! into jobs; write the replies that were given here meanwhile; look at the deadlines; hand the jobs of this turn to the pool together;
//! publish the counters. It blocks nowhere but in poll, and there without a timeout unless a deadline is near or a worker may hold
//! something back. Before that it may look for events for some microseconds (`spin`). What a turn does is bounded, by connection and
//! altogether (`budget`).
//!
//! Readiness is edge-triggered: a read that does not fill the buffer, or would block, ends it, but a hang-up that was
//! announced is remembered until the end of the stream was read. A connection whose share of a turn ends before its edge is
//! used up is left over for the next, and the next poll does not block.

mod admit;
mod aside;
mod backoff;
mod bind;
mod budget;
mod deadlines;
mod farewell;
mod inline;
mod joined;
mod listener;
mod lone;
mod mail;
mod memory;
mod peers;
mod proxy;
mod reconfigure;
mod serve;
mod socket;
mod spin;
mod stop;
#[cfg(feature = "admin")]
mod survey;
mod table;
mod timeouts;
mod told;
mod wait;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::clock::Nanos;
use crate::config::Settings;
use crate::connection::{Phase, Turn};
use crate::error::Error;
use crate::handover::Lent;
use crate::hub::Hub;
use crate::job::{FreeJobs, Job};
use crate::litter::Litter;
use crate::mail::Mail;
use crate::metrics::Counters;
use crate::pool::{JobPool, LEAVE_TIMEOUT};
use crate::reason::CloseReason;
use crate::replies::Wake;
use crate::service::Served;
use crate::slots::{ConnId, Slots};
use crate::sync::lock_std;
use crate::tuner::Tuner;
use aside::Aside;
pub(crate) use bind::bind;
use budget::Budget;
use deadlines::{Deadlines, Expiries};
use inline::Inline;
use joined::Joint;
pub(crate) use listener::Bound;
use listener::Listeners;
use lone::LoneJob;
use peers::Peers;
pub(crate) use reconfigure::NewSettings;
pub(crate) use socket::ListenSocket;
use spin::Spin;
use stop::Drain;
pub(crate) use stop::{Dropped, StopLevel};
use table::{Entry, Table};
use told::{Rate, Told};

const WAKER: Token = Token(usize::MAX);
/// The listener of number `n` has the token `LISTENERS - n`.
const LISTENERS: usize = usize::MAX - 1;

/// Most events taken from one poll. Those left come first at the next. With many more, the sockets that a turn reads are out of
/// the cache again when their replies are written.
const MAX_EVENTS: usize = 64;
/// How long what still comes is discarded, after our side was shut down, until the connection is closed.
const LINGER: Duration = Duration::from_secs(1);
/// Wakes the reactor through an eventfd in its poll.
#[derive(Debug)]
pub(crate) struct ReactorWaker(Waker);

impl Wake for ReactorWaker {
    fn wake(&self) {
        if let Err(error) = self.0.wake() {
            // An eventfd that is open takes any wake. The next event, or the safety tick, finds what this one was for.
            tracing::error!(%error, "cannot wake the reactor");
        }
    }
}

/// What the threads of a server share.
pub(crate) type ReactorHub = Hub<ReactorWaker>;

/// What the reactor shares with the rest of the server.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) hub: Arc<ReactorHub>,
    pub(crate) pool: Arc<JobPool>,
    pub(crate) tuner: Arc<Tuner>,
    pub(crate) stop: Arc<StopLevel>,
    pub(crate) lent: Lent,
    pub(crate) new_settings: Arc<NewSettings>,
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
    pub(crate) fn new(sockets: Vec<Bound>, settings: &Settings) -> Result<(Sockets, ReactorWaker), Error> {
        let new = || {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), WAKER)?;
            let mut listeners = Listeners::new(sockets, settings);
            for (number, socket) in listeners.sources().enumerate() {
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
    services: Arc<[Served]>,
    shared: Shared,
    counters: Counters,
    /// Connections in the table that were turned away and are being told so.
    rejected: usize,
    /// Listeners there were at the start.
    listener_count: usize,
    /// Connections of which this turn's events tell, and those that are to be looked at in it for another reason.
    ready: VecDeque<ConnId>,
    /// Connections that had their share in an earlier turn and can go on without an event.
    left_over: VecDeque<ConnId>,
    /// Mail that was not taken in within its turn.
    finished: VecDeque<Mail>,
    /// All of that is jobs.
    only_jobs: bool,
    /// Mail was left over in the turn before. While memory is short, nothing is handed out then for whom a job is taken back.
    collects_late: bool,
    /// What was in the mailbox; kept for its capacity.
    mailbox: Vec<Mail>,
    /// Connections that could go on but for `max_pending`.
    stalled: VecDeque<ConnId>,
    lingering: Expiries,
    deadlines: Deadlines,
    /// By service.
    peers: Vec<Peers>,
    /// Jobs out whose clients have been told that they took too long, by the names that their connections had.
    orphans: HashSet<ConnId>,
    /// Connections that ended while their session was with a job, and why.
    gone: HashMap<ConnId, CloseReason>,
    /// Jobs out that give a session back.
    closing_out: usize,
    /// Replies that are given later and are not here yet.
    deferred: usize,
    inline: Inline,
    /// Of the connections that are joined to something: what that is.
    joints: HashMap<ConnId, Joint>,
    /// What counts for connections that look on.
    aside: Aside,
    /// Questions about the connections.
    #[cfg(feature = "admin")]
    searches: VecDeque<survey::Search>,
    /// While connections are closed because all hold too much: who held anything when that began, and how much, those that
    /// held most last.
    holders: Vec<(usize, ConnId)>,
    free: FreeJobs,
    litter: Litter,
    budget: Budget,
    /// Jobs of this turn.
    #[expect(clippy::vec_box, reason = "the boxes are what is recycled")]
    outgoing: Vec<Box<Job>>,
    /// Replies that were given on this thread and are sent behind the visits of this turn; since when, and whether they are kept for
    /// that.
    #[expect(clippy::vec_box, reason = "the boxes are what is recycled")]
    due: Vec<Box<Job>>,
    due_since: Nanos,
    holds_replies: bool,
    /// Jobs handed out and not back yet.
    jobs_out: usize,
    /// Lines in jobs that are out: what `max_pending` limits. Replies that a peer does not read are limited by the
    /// watermark of its connection instead, so that a few slow readers cannot stop the service for all.
    lines_out: usize,
    buffer: Box<[u8]>,
    /// When this turn began, by the pool's clock.
    turn_at: Nanos,
    lone_job: LoneJob,
    spin: Spin,
    /// Set when a graceful stop has begun.
    drain: Option<Drain>,
    /// Connections of a server that stops, while others have its listeners, that are given time for their first line.
    newcomers: Vec<ConnId>,
    /// A peer that may do so asked for a stop.
    stop_requested: bool,
    /// `pool.started()` when the replies were last collected: a job begun since may be finished without a wake.
    started_before: u64,
    /// Of warnings that say what the system refused.
    warned: Rate,
    /// When a connection that ended for each reason was last warned of, and how many were not since.
    told: Told,
}

impl Reactor {
    pub(crate) fn new(
        sockets: Sockets,
        settings: Settings,
        services: Arc<[Served]>,
        shared: Shared,
    ) -> Reactor {
        let slots = Slots::new(settings.posted_bytes());
        let listener_count = sockets.listeners.len();
        let peers =
            settings.services.iter().map(|service| Peers::new(service.max_connections_per_peer)).collect();
        let inline = Inline::new(Arc::clone(&services), Arc::clone(&shared.hub), Arc::clone(&shared.pool));
        Reactor {
            poll: sockets.poll,
            listeners: sockets.listeners,
            table: Table::new(Arc::clone(&slots)),
            settings,
            counters: Counters::new(services.len()),
            services,
            shared,
            rejected: 0,
            listener_count,
            ready: VecDeque::new(),
            left_over: VecDeque::new(),
            finished: VecDeque::new(),
            only_jobs: true,
            collects_late: false,
            mailbox: Vec::new(),
            stalled: VecDeque::new(),
            lingering: Expiries::new(LINGER),
            deadlines: Deadlines::default(),
            peers,
            orphans: HashSet::new(),
            gone: HashMap::new(),
            closing_out: 0,
            deferred: 0,
            inline,
            joints: HashMap::new(),
            aside: Aside::default(),
            #[cfg(feature = "admin")]
            searches: VecDeque::new(),
            free: FreeJobs::new(slots),
            holders: Vec::new(),
            litter: Litter::default(),
            budget: Budget::default(),
            outgoing: Vec::new(),
            due: Vec::new(),
            due_since: 0,
            holds_replies: false,
            jobs_out: 0,
            lines_out: 0,
            buffer: vec![0; budget::READ_BYTES].into_boxed_slice(),
            turn_at: 0,
            lone_job: LoneJob::default(),
            spin: Spin::default(),
            drain: None,
            newcomers: Vec::new(),
            stop_requested: false,
            started_before: 0,
            warned: Rate::default(),
            told: Told::default(),
        }
    }

    /// Runs until a stop was asked for and is complete.
    ///
    /// # Errors
    /// What poll failed with; everything that was pending is dropped and accounted for then.
    pub(crate) fn run(mut self) -> io::Result<Dropped> {
        self.shared.hub.adopt_loop();
        let mut events = Events::with_capacity(MAX_EVENTS);
        let mut sent_lone_job = false;
        loop {
            let is_idle = self.is_idle();
            let Shared { hub, pool, .. } = &self.shared;
            let polls = !sent_lone_job || !is_idle || !self.lone_job.is_back(hub, pool);
            if polls {
                if let Err(error) = self.wait(&mut events) {
                    // Only by a bug of ours: a closed or foreign descriptor.
                    self.abort();
                    return Err(error);
                }
            } else {
                events.clear();
            }
            let clock = &self.shared.hub.clock;
            self.turn_at = clock.now();
            let now = clock.instant(self.turn_at);
            if let Some(settings) = self.shared.new_settings.take() {
                self.obey(settings);
            }
            self.turn(&events, now);
            if self.shared.stop.is_due(self.turn_at) && self.drain.is_none() {
                self.begin_drain(now);
            }
            // Not twice in a row: others must be heard.
            sent_lone_job = polls && self.outgoing.len() == 1 && self.jobs_out == 1;
            self.submit();
            self.shared.tuner.look_at(&self.shared.pool);
            if self.told.due().is_some_and(|at| at <= self.turn_at) {
                self.told.tell(self.turn_at);
            }
            if self.shared.hub.slow.due().is_some_and(|at| at <= self.turn_at) {
                self.shared.hub.slow.tell_left_out();
            }
            self.publish();
            self.let_go_when_handled();
            let Some(drain) = self.drain else { continue };
            self.close_listeners(now);
            self.drain_newcomers(now);
            if self.clients() == 0 && self.jobs_out == 0 && self.listeners.is_closed() {
                self.shared.pool.leave_by(drain.until.max(now + LEAVE_TIMEOUT));
                self.told.tell(self.turn_at);
                return Ok(Dropped::default());
            }
            if self.shared.stop.is_abort() || drain.until <= now {
                return Ok(self.abort());
            }
        }
    }

    /// What can be done without waiting, within the budget: new events first, then what is left over.
    fn turn(&mut self, events: &Events, now: Instant) {
        self.budget.begin(self.turn_at);
        // Whoever is put there from now on has had its share of this turn.
        let left_over = self.left_over.len();
        let mut is_late = !self.ready.is_empty();
        for (noted, event) in (1..).zip(events) {
            self.note(event);
            is_late |= noted == MAX_EVENTS;
        }
        // Behind the events, so that no event of this turn can be taken for one of a connection in a reused slot. Whoever is let
        // in while others wait makes all of them wait longer.
        self.accept(if is_late { budget::LEAST_ACCEPTS } else { budget::ACCEPTS }, now);
        self.collect(now);
        self.resume_stalled(now);
        self.holds_replies = true;
        // Whoever is not reached is first in the next turn, not behind those left over: it has had nothing of this one.
        for served in 0..self.ready.len() {
            if served >= budget::LEAST_READY && self.is_spent() {
                break;
            }
            let Some(id) = self.ready.pop_front() else { break };
            self.serve_listed(id, now);
            self.send_overdue(now);
        }
        for served in 0..left_over {
            if served >= budget::LEAST_LEFT_OVER && self.is_spent() {
                break;
            }
            let Some(id) = self.left_over.pop_front() else { break };
            self.serve_listed(id, now);
            self.send_overdue(now);
        }
        self.holds_replies = false;
        self.send_due(now);
        while let Some(id) = self.lingering.pop_due(now) {
            let phase = self.table.get(id).map(|entry| entry.connection.phase);
            if let Some(Phase::Lingering(reason)) = phase {
                self.close(id, reason);
            }
        }
        while let Some((at, id)) = self.deadlines.pop_due(self.turn_at) {
            self.look_at(at, id, now);
        }
        self.obey_memory_limit();
        self.litter.drop_piece();
        #[cfg(feature = "admin")]
        self.search_on();
    }

    /// Takes finished jobs back, within the budget.
    fn collect(&mut self, now: Instant) {
        self.started_before = self.shared.pool.started();
        self.only_jobs |= self.finished.is_empty();
        self.collects_late = !self.finished.is_empty();
        self.shared.hub.replies.drain(&mut self.mailbox);
        if self.mailbox.is_empty() && self.finished.is_empty() {
            return;
        }
        let mut mailbox = std::mem::take(&mut self.mailbox);
        for mail in mailbox.drain(..) {
            if self.collects_late
                && let Mail::Job(job) = &mail
            {
                self.account_job(job);
            }
            self.only_jobs &= matches!(mail, Mail::Job(_));
            // Where some were left over, who has nothing else to do goes first: the others have had their share. Not past
            // what may be for the same connection.
            let first = self.only_jobs
                && !self.finished.is_empty()
                && matches!(&mail, Mail::Job(job) if self.table.get(job.origin.id)
                    .is_some_and(|entry| !entry.connection.wants_service()));
            match first {
                true => self.finished.push_front(mail),
                false => self.finished.push_back(mail),
            }
        }
        self.mailbox = mailbox;
        while let Some(mail) = self.finished.pop_front() {
            if let Some(rest) = self.take_mail(mail, now) {
                self.finished.push_front(rest);
            }
            if self.is_spent() {
                break;
            }
        }
    }

    fn is_spent(&mut self) -> bool {
        self.budget.is_spent(&self.shared.hub.clock)
    }

    /// Remembers what an event says, and that its connection is to be looked at in this turn.
    fn note(&mut self, event: &Event) {
        match event.token() {
            WAKER => self.counters.wakeups += 1,
            Token(token) if token > LISTENERS - self.listener_count => {
                self.listeners.set_ready(LISTENERS - token)
            }
            Token(token) if token >= joined::TOKENS => self.note_joint(token, event),
            Token(slot) => {
                let Some((id, Entry { connection, .. })) = self.table.at(slot) else { return };
                if event.is_error() {
                    connection.set_broken();
                } else if event.is_read_closed() || event.is_priority() {
                    connection.set_hung_up();
                } else if event.is_readable() {
                    connection.set_readable();
                }
                if event.is_writable() {
                    connection.set_writable();
                }
                if !std::mem::replace(&mut connection.listed, true) {
                    self.ready.push_back(id);
                }
            }
        }
    }

    /// Whether nothing is left to be done without an event.
    fn is_idle(&self) -> bool {
        #[cfg(feature = "admin")]
        let is_searching = !self.searches.is_empty();
        #[cfg(not(feature = "admin"))]
        let is_searching = false;
        self.ready.is_empty()
            && self.left_over.is_empty()
            && self.finished.is_empty()
            && self.holders.is_empty()
            && self.litter.is_empty()
            && !is_searching
    }

    /// Puts a connection on the list of those to look at in this turn, unless it is on a list.
    fn list(&mut self, id: ConnId) {
        if self.set_listed(id) {
            self.ready.push_back(id);
        }
    }

    /// Puts a connection on the list of those to look at again in the next turn, unless it is on a list.
    fn list_left_over(&mut self, id: ConnId) {
        if self.set_listed(id) {
            self.left_over.push_back(id);
        }
    }

    /// `false`: the connection is on a list already, or gone.
    fn set_listed(&mut self, id: ConnId) -> bool {
        self.table.get(id).is_some_and(|entry| !std::mem::replace(&mut entry.connection.listed, true))
    }

    /// Serves connections that waited for `max_pending`, in the order in which they began to, while there is room and
    /// within the budget. At once, so that none that came later takes it; who finds none left keeps its place.
    fn resume_stalled(&mut self, now: Instant) {
        for resumed in 0..self.stalled.len() {
            let spent = resumed >= budget::LEAST_LEFT_OVER && self.is_spent();
            if spent || self.lines_out >= self.settings.max_pending {
                break;
            }
            let Some(id) = self.stalled.pop_front() else { break };
            if let Some(entry) = self.table.get(id) {
                entry.connection.turn = Turn::Its;
                self.serve(id, now);
            }
        }
    }

    fn stall(&mut self, id: ConnId) {
        if let Some(entry) = self.table.get(id)
            && entry.connection.turn != Turn::Waits
        {
            entry.connection.turn = Turn::Waits;
            self.stalled.push_back(id);
        }
    }

    fn publish(&mut self) {
        self.counters.inline_overruns += self.inline.record();
        self.counters.stuck = self.orphans.len() as u64;
        lock_std(&self.shared.counters).copy_from(&self.counters);
    }

    /// Whether it is to be a warning that a connection was closed or rejected for this reason: of each reason one within a while, as
    /// a busy server has thousands. With it, how many were not since the last.
    fn warns_of(&mut self, reason: CloseReason) -> Option<u64> {
        if !reason.is_ours() || self.aside.entered {
            return None;
        }
        self.told.warns_of(reason, self.turn_at)
    }

    /// Warns, but not more often than once in a while.
    fn warn(&mut self, what: &str, error: &io::Error) {
        if let Some(left_out) = self.warned.admit(self.turn_at) {
            tracing::warn!(%error, connections = self.table.len(), left_out, "{what}");
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

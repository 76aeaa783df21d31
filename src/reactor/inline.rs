//! Requests that are handled on this thread, and its part in sessions.
//!
//! A handler that keeps the loop for long holds up every connection, so it is measured, as all requests are: longer than
//! [`MAX_HELD`] is counted, and named in the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::serve::account_for;
use super::table::Entry;
use super::told::Rate;
use super::{Reactor, ReactorHub};
use crate::clock::{Nanos, nanos};
use crate::connection::Phase;
use crate::job::{Job, JobEnd, Task};
use crate::mail::{Mail, Post};
use crate::pool::{JobPool, open_or_close};
use crate::reason::CloseReason;
use crate::service::{Cut, LoopWorker, Place, Served, ServiceId, Told};
use crate::slots::ConnId;

/// Nothing on this thread should take longer.
const MAX_HELD: Duration = Duration::from_millis(1);
/// How long replies are kept, in nanoseconds, for those that are given in the same turn to be sent with them: as long as it takes to visit
/// some hundred connections. Looked at behind each visit, by when the last request was handled, so its request comes on top; where none
/// is handled any more, they are kept to the end of the turn.
const MAX_KEPT: Nanos = 200_000;
/// Where the times of this thread are recorded: workers count from 1.
const OWN_NUMBER: u64 = 0;

/// What this thread has of its own for the services, and what is to be told of what it has handled.
#[derive(Debug)]
pub(super) struct Inline {
    hub: Arc<ReactorHub>,
    worker: LoopWorker,
    /// How often the loop was held up, since that was last counted.
    overruns: u64,
    warned: Rate,
    pool: Arc<JobPool>,
}

impl Inline {
    pub(super) fn new(services: Arc<[Served]>, hub: Arc<ReactorHub>, pool: Arc<JobPool>) -> Inline {
        Inline {
            worker: LoopWorker::new(services, hub.clone(), hub.clock, nanos(MAX_HELD)),
            pool,
            hub,
            overruns: 0,
            warned: Rate::default(),
        }
    }

    /// The way to the reactor from anywhere.
    pub(super) fn post(&self) -> &Arc<dyn Post> {
        &self.worker.post
    }

    /// What is to be cut into `job`: at most `room` requests, and `frames` of all kinds.
    pub(super) fn cut<'a>(
        &'a mut self,
        service: &'a Served,
        job: &'a mut Job,
        (stop_allowed, lap): (bool, u8),
        (room, frames): (usize, usize),
    ) -> Cut<'a> {
        let room = room.min(service.max_job_lines());
        Cut { service, stop_allowed, job, room, frames, lap, worker: &mut self.worker }
    }

    /// Records the times of what was handled here since the last time, for all connections together: once a turn. Returns how often the
    /// loop was held up.
    pub(super) fn record(&mut self) -> u64 {
        if !self.worker.laps.all().is_empty() {
            self.hub.timings.record(OWN_NUMBER, self.worker.laps.drain());
        }
        std::mem::take(&mut self.overruns)
    }

    /// Forgets those times, and that the loop was held up.
    pub(super) fn forget(&mut self) {
        drop(self.worker.laps.drain());
        self.overruns = 0;
    }

    /// Tells of requests of `job` that held up the loop, or were slow.
    #[cold]
    fn tell(&mut self, service: &Served, job: &Job) {
        for Told { lap, at, is_slow, held, requests } in std::mem::take(&mut self.worker.told) {
            if is_slow {
                self.hub.slow.tell_lap(at, &service.name, job, lap, &requests, self.pool.pick_up());
            }
            if held {
                self.has_held_up(at, lap.took, job, Some((lap.requests, &requests)));
            }
        }
    }

    /// Makes the session of the job's connection, or gives it back. Tells if that held up the loop.
    fn open_or_close(&mut self, job: &mut Job) {
        let begun = self.hub.clock.now();
        let LoopWorker { services, states, post, .. } = &mut self.worker;
        open_or_close(job, services, states, post);
        let now = self.hub.clock.now();
        let took = now.saturating_sub(begun);
        if took > nanos(MAX_HELD) {
            self.has_held_up(now, took, job, None);
        }
    }

    /// `requests`: how many were timed together, and all of them, where it was not the opening or the close of a connection.
    #[cold]
    fn has_held_up(&mut self, now: Nanos, took: Nanos, job: &Job, requests: Option<(usize, &[u8])>) {
        self.overruns += 1;
        let Some(left_out) = self.warned.admit(now) else { return };
        let (origin, took) = (&job.origin, Duration::from_nanos(took));
        let service = &self.worker.services[origin.local.service as usize].name;
        match requests {
            Some((requests, frames)) => tracing::warn!(
                service,
                peer = %origin.peer,
                frame = %frames.escape_ascii(),
                ?took,
                requests,
                left_out,
                "a request held up the event loop"
            ),
            None => tracing::warn!(
                service,
                peer = %origin.peer,
                ?took,
                left_out,
                "the {} of a connection held up the event loop",
                if job.task == Task::Open { "opening" } else { "close" }
            ),
        }
    }
}

impl Reactor {
    /// So many requests of a connection were handled here: their replies go to the socket.
    #[inline(always)]
    pub(super) fn handled_inline(&mut self, mut job: Box<Job>, requests: usize) {
        job.batch.handled = requests;
        if !self.inline.worker.told.is_empty() {
            let service = &self.services[job.origin.local.service as usize];
            self.inline.tell(service, &job);
        }
        if job.end == JobEnd::Unfinished {
            // No line of it is left: the rest was not cut.
            job.end = JobEnd::Done;
        }
        let origin = &job.origin;
        // Behind what was pushed before and is not taken in.
        let waits = origin.local.has_pushers() && self.free.slots().has_posted(origin.id);
        // What has come behind the last one is dropped, and not looked at for a stop before.
        let is_last = matches!(job.end, JobEnd::Close | JobEnd::Panicked);
        if waits || self.holds_replies && !is_last && !self.aside.entered {
            return self.queue_inline(job, waits);
        }
        self.count_unreplied(&job);
        self.deliver(job);
    }

    /// Keeps replies that were given here until their turn comes, behind what is in the mailbox or at the end of the visits of this turn.
    fn queue_inline(&mut self, mut job: Box<Job>, behind_mail: bool) {
        let id = job.origin.id;
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        connection.set_job_out(job.held_bytes());
        job.session = connection.session.take();
        account_for(connection, 0, &mut self.counters);
        if self.services[job.origin.local.service as usize].times_handlers() {
            self.free.slots().set_taken(id, 0);
        }
        match behind_mail {
            true => {
                self.jobs_out += 1;
                self.lines_out += job.batch.handled;
                self.shared.hub.replies.push(Mail::Inline(job));
            }
            false => {
                if self.due.is_empty() {
                    self.due_since = self.inline.worker.laps.begun();
                }
                self.due.push(job);
            }
        }
    }

    /// Sends the replies that are kept, where requests handled since have taken so long that they would wait for them.
    #[inline]
    pub(super) fn send_overdue(&mut self, now: Instant) {
        let handled_at = self.inline.worker.laps.begun();
        if !self.due.is_empty() && handled_at.saturating_sub(self.due_since) >= MAX_KEPT {
            self.send_due(now);
        }
    }

    /// A connection has come: its session is made.
    pub(super) fn open_session(&mut self, id: ConnId) {
        let Some(entry) = self.table.get(id) else { return };
        let place = self.services[entry.connection.service() as usize].place;
        let mut job = entry.connection.new_job(id, &mut self.free, self.turn_at);
        job.task = Task::Open;
        match place {
            Place::Worker => {
                entry.connection.opening = true;
                self.resubmit(job);
            }
            Place::Loop => {
                self.inline.open_or_close(&mut job);
                entry.connection.session = job.session.take();
                self.count_unreplied(&job);
                self.deliver(job);
                // Its greeting may be its last word, and no event tells of that.
                if self.table.get(id).is_some_and(|entry| entry.connection.phase != Phase::Open) {
                    self.list(id);
                }
            }
        }
    }

    /// A connection has ended, or nothing more will be handled for it: its session is given back, once.
    pub(super) fn end_session(&mut self, id: ConnId, reason: CloseReason) {
        let Some(entry) = self.table.get(id) else { return };
        let Some(session) = entry.connection.session.take() else { return };
        let mut job = entry.connection.new_job(id, &mut self.free, self.turn_at);
        job.session = Some(session);
        self.give_back(job, reason);
    }

    /// The peer has ended its side and had its replies: its session is given back first, and then the connection is closed, as it
    /// may still read what is pushed to it meanwhile.
    pub(super) fn close_behind_session(&mut self, id: ConnId) {
        let Some(entry) = self.table.get(id) else { return };
        entry.connection.phase = Phase::Closing(CloseReason::Eof);
        let Some(session) = entry.connection.session.take() else { return };
        let mut job = entry.connection.new_job(id, &mut self.free, self.turn_at);
        job.session = Some(session);
        // As if it were a request, so that nothing goes on before it is back.
        entry.connection.set_job_out(size_of::<Job>());
        match self.services[entry.connection.service() as usize].place {
            Place::Worker => self.give_back(job, CloseReason::Eof),
            Place::Loop => {
                job.become_closing(CloseReason::Eof);
                self.inline.open_or_close(&mut job);
                self.jobs_out += 1;
                self.closing_out += 1;
                // Behind what was pushed meanwhile.
                self.shared.hub.replies.push(Mail::Inline(job));
            }
        }
    }

    /// Gives back the session that a job holds.
    pub(super) fn give_back(&mut self, mut job: Box<Job>, reason: CloseReason) {
        job.become_closing(reason);
        match self.services[job.origin.local.service as usize].place {
            Place::Worker => {
                self.closing_out += 1;
                self.send_out(job);
            }
            Place::Loop => {
                self.inline.open_or_close(&mut job);
                self.counters.panics += u64::from(job.end == JobEnd::Panicked);
                self.free.put(job, &mut self.litter);
            }
        }
    }

    /// Whether connections of a service have a session.
    pub(super) fn has_sessions(&self, service: ServiceId) -> bool {
        self.services[service as usize].has_sessions
    }
}

//! Requests that are handled on this thread, and its part in sessions.
//!
//! A handler that keeps the loop for long holds up every connection, so it is measured, as all requests are: longer than
//! [`MAX_HELD`] is counted, and named in the log.

use std::sync::Arc;
use std::time::Duration;

use super::table::Entry;
use super::told::Rate;
use super::{Reactor, ReactorHub};
use crate::clock::{Nanos, nanos};
use crate::connection::{Cut, HandleInline, Phase};
use crate::job::{Handled, Job, JobEnd, Session, Task};
use crate::mail::{Mail, Post};
use crate::pool::{JobPool, Laps, MAX_SLICE, MAX_SLICE_BYTES, open_or_close};
use crate::reason::CloseReason;
use crate::service::{self, Connection, Mode, Place, Request, Served, ServiceId, Waits, WorkerStates};
use crate::slots::ConnId;
use crate::slow::MAX_LOGGED_BYTES;

/// Nothing on this thread should take longer.
const MAX_HELD: Duration = Duration::from_millis(1);
/// Where the times of this thread are recorded: workers count from 1.
const OWN_NUMBER: u64 = 0;

/// What this thread has of its own for the services, and the requests of the present cut.
#[derive(Debug)]
pub(super) struct Inline {
    services: Arc<[Served]>,
    hub: Arc<ReactorHub>,
    /// The same.
    post: Arc<dyn Post>,
    states: WorkerStates,
    laps: Laps,
    /// When the present cut handled its first request, and how many it has.
    begun: Nanos,
    handled: usize,
    /// For [`Request::blocking`] and its kin, which tell nobody here.
    waits: Waits,
    /// How often the loop was held up, since that was last counted.
    overruns: u64,
    warned: Rate,
    pool: Arc<JobPool>,
    /// What the first request of the present lap began with, where others are in it.
    first: Vec<u8>,
}

impl Inline {
    pub(super) fn new(services: Arc<[Served]>, hub: Arc<ReactorHub>, pool: Arc<JobPool>) -> Inline {
        Inline {
            services,
            pool,
            first: Vec::new(),
            post: hub.clone(),
            hub,
            states: WorkerStates::none(),
            laps: Laps::default(),
            begun: 0,
            handled: 0,
            waits: Waits::default(),
            overruns: 0,
            warned: Rate::default(),
        }
    }

    /// The way to the reactor from anywhere.
    pub(super) fn post(&self) -> &Arc<dyn Post> {
        &self.post
    }

    /// What is to be cut into `job`: at most `room` requests, and `frames` of all kinds.
    pub(super) fn cut<'a>(
        &'a mut self,
        service: &'a Served,
        job: &'a mut Job,
        stop_allowed: bool,
        (room, frames): (usize, usize),
    ) -> Cut<'a, Inline> {
        self.handled = 0;
        Cut { service, stop_allowed, job, room: room.min(service.max_job_lines()), frames, inline: self }
    }

    /// They were, for `job`. Returns how many of them were handled here.
    fn end(&mut self, service: &Served, job: &Job) -> usize {
        if self.laps.is_open() {
            let first = std::mem::take(&mut self.first);
            self.end_lap(service, job, &first);
            self.first = first;
        }
        self.handled
    }

    /// Records the times of what was handled here since the last time, for all connections together: once a turn. Returns how often the
    /// loop was held up.
    pub(super) fn record(&mut self) -> u64 {
        if !self.laps.all().is_empty() {
            self.hub.timings.record(OWN_NUMBER, self.laps.drain());
        }
        std::mem::take(&mut self.overruns)
    }

    /// Forgets those times, and that the loop was held up.
    pub(super) fn forget(&mut self) {
        drop(self.laps.drain());
        self.overruns = 0;
    }

    /// The present lap ends, whose first request is `first`. Tells of it if it held up the loop, or was slow.
    #[inline(always)]
    fn end_lap(&mut self, service: &Served, job: &Job, first: &[u8]) {
        let now = self.hub.clock.now();
        let lap = self.laps.end(now, job.accepted_at);
        if service.slow().is_some_and(|limit| lap.wait.saturating_add(lap.took) >= limit) {
            self.hub.slow.tell_lap(now, &service.name, job, lap, first, self.pool.pick_up());
        }
        if lap.took > nanos(MAX_HELD) {
            self.has_held_up(now, lap.took, job, Some((lap.requests, first)));
        }
    }

    /// Makes the session of the job's connection, or gives it back. Tells if that held up the loop.
    fn open_or_close(&mut self, job: &mut Job) {
        let begun = self.hub.clock.now();
        open_or_close(job, &self.services, &mut self.states, &self.post);
        let now = self.hub.clock.now();
        if now - begun > nanos(MAX_HELD) {
            self.has_held_up(now, now - begun, job, None);
        }
    }

    /// `requests`: how many were timed together, and the first of them, where it was not the opening or the close of a connection.
    #[cold]
    fn has_held_up(&mut self, now: Nanos, took: Nanos, job: &Job, requests: Option<(usize, &[u8])>) {
        self.overruns += 1;
        let Some(left_out) = self.warned.admit(now) else { return };
        let (origin, took) = (&job.origin, Duration::from_nanos(took));
        let service = &self.services[origin.local.service as usize].name;
        match requests {
            Some((requests, first)) => tracing::warn!(
                service,
                peer = %origin.peer,
                frame = %first[..first.len().min(MAX_LOGGED_BYTES)].escape_ascii(),
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

impl HandleInline for Inline {
    fn handle(
        &mut self,
        service: &Served,
        session: &mut Option<Session>,
        frame: &[u8],
        job: &mut Job,
    ) -> JobEnd {
        if self.handled == 0 {
            self.begun = self.hub.clock.now();
            self.laps.begin(self.begun);
        }
        self.handled += 1;
        let is_first = !self.laps.is_open();
        let connection = Connection::new(&job.origin, &self.post);
        let request = Request::new(frame, &connection, &self.waits);
        let handled = match self.states.get(&self.services, job.origin.local.service) {
            Some(state) => {
                let to = job.batch.replies();
                service::handle(&*service.service, session, state, &request, to, Mode::Loop)
            }
            None => Handled::Panicked,
        };
        let end = job.batch.end_line(handled);
        let full = job.batch.replies.len() >= MAX_SLICE_BYTES;
        // What others push may come between this reply and the next.
        let alone = job.origin.local.has_pushers() && !job.batch.reply_ends.is_empty();
        if self.laps.count() || full || alone || end != JobEnd::Done {
            let first = std::mem::take(&mut self.first);
            self.end_lap(service, job, if is_first { frame } else { &first });
            self.first = first;
            if end == JobEnd::Done
                && (full || alone || self.laps.begun().saturating_sub(self.begun) >= MAX_SLICE)
            {
                return JobEnd::Unfinished;
            }
        } else if is_first {
            self.first.clear();
            self.first.extend_from_slice(&frame[..frame.len().min(MAX_LOGGED_BYTES)]);
        }
        end
    }
}

impl Reactor {
    /// Requests of a connection were handled here: their replies go to the socket.
    #[inline(always)]
    pub(super) fn handled_inline(&mut self, mut job: Box<Job>) {
        let service = &self.services[job.origin.local.service as usize];
        job.batch.handled = self.inline.end(service, &job);
        if job.end == JobEnd::Unfinished {
            // No line of it is left: the rest was not cut.
            job.end = JobEnd::Done;
        }
        let origin = &job.origin;
        if origin.local.has_pushers() && self.free.slots().has_posted(origin.id) {
            return self.queue_inline(job);
        }
        self.count_unreplied(&job);
        self.deliver(job);
    }

    /// Puts replies that were given here behind what was pushed before and is not taken in.
    fn queue_inline(&mut self, mut job: Box<Job>) {
        let id = job.origin.id;
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        connection.set_job_out(job.held_bytes());
        job.session = connection.session.take();
        if self.services[job.origin.local.service as usize].times_handlers() {
            self.free.slots().set_taken(id, 0);
        }
        self.jobs_out += 1;
        self.lines_out += job.batch.handled;
        self.shared.hub.replies.push(Mail::Inline(job));
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

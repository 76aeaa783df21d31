//! What a worker does with a job: runs a slice of its lines through the service, and hands it to the reactor.

use std::mem;
use std::sync::Arc;

use super::JobPool;
use super::census::WorkerState;
use super::worker::Run;
use crate::clock::Nanos;
use crate::hub::Hub;
use crate::job::{Batch, Handled, Job, JobEnd, MAX_SLICE, MAX_SLICE_BYTES, Task};
use crate::mail::{Mail, Post};
use crate::replies::Wake;
use crate::service::{self, Connection, Mode, Request, Served, WorkerStates};
use crate::timings::Laps;

/// Finished jobs after which the reactor is woken even if the worker has more to do.
const MAX_OWED: usize = 64;
/// A job that took longer than this is worth a wake-up of its own.
const LONG_JOB: Nanos = 20_000;

pub(super) struct Slices<W: Wake> {
    hub: Arc<Hub<W>>,
    /// The same.
    post: Arc<dyn Post>,
    services: Arc<[Served]>,
    pool: Arc<JobPool>,
    /// What this worker has of its own for them.
    states: WorkerStates,
    /// The worker's number: where its times are recorded.
    id: u64,
    /// Finished jobs handed over since the reactor was last woken for them.
    owed: usize,
    laps: Laps,
}

/// A job that a worker has. Handed over when dropped, also by a bug of ours that unwinds: its connection must not wait for it.
struct Held<'a, W: Wake> {
    hub: &'a Hub<W>,
    job: Option<Box<Job>>,
}

impl<W: Wake> Slices<W> {
    /// For the worker of this number, on its thread.
    pub(super) fn new(hub: Arc<Hub<W>>, services: Arc<[Served]>, pool: Arc<JobPool>, id: u64) -> Self {
        let post: Arc<dyn Post> = hub.clone();
        let states = WorkerStates::of(&services);
        Slices { hub, post, services, pool, states, id, owed: 0, laps: Laps::default() }
    }
}

impl<W: Wake> Run<Box<Job>> for Slices<W> {
    /// Runs lines of `job` until it is done or the slice is over, and hands it to the reactor.
    fn run(&mut self, job: Box<Job>, me: &WorkerState) {
        let Slices { hub, post, services, pool, states, laps, .. } = self;
        // From here on somebody waits for it.
        self.owed += 1;
        let mut held = Held { hub, job: Some(job) };
        let Some(job) = held.job.as_deref_mut() else { return };
        job.begin_slice();
        let begun = hub.clock.now();
        me.begins(job.origin.id, begun);

        let service = &services[job.origin.local.service as usize];
        if service.times_handlers() {
            job.set_taken(begun);
        }
        let end = match job.task {
            Task::Requests => {
                let slow = service.slow().map(|limit| (limit, pool.pick_up()));
                laps.begin(begun, 1);
                let end = run_lines(
                    job,
                    service,
                    states.get(services, job.origin.local.service),
                    laps,
                    (hub, post, me),
                );
                if let Some((limit, pick_up)) = slow
                    && end.saturating_sub(job.accepted_at) >= limit
                {
                    hub.slow.tell(end, (&service.name, limit), job, laps.all(), pick_up);
                }
                hub.timings.record(self.id, laps.drain());
                end
            }
            Task::Open | Task::Close(_) => {
                open_or_close(job, services, states, post);
                hub.clock.now()
            }
        };
        job.took = end.saturating_sub(begun);
        let long = job.took > LONG_JOB;
        me.is_done(begun);
        held.hand_over();
        if long || self.owed >= MAX_OWED {
            self.signal();
        }
    }

    /// Wakes the reactor for the finished jobs that were handed over without.
    fn signal(&mut self) {
        if mem::take(&mut self.owed) > 0 {
            self.hub.replies.signal();
        }
    }
}

/// Runs lines of `job` through `service` until it is done or the slice is over. Returns when that was.
fn run_lines<W: Wake>(
    job: &mut Job,
    service: &Served,
    mut state: Option<&mut service::WorkerState>,
    laps: &mut Laps,
    (hub, post, me): (&Hub<W>, &Arc<dyn Post>, &WorkerState),
) -> Nanos {
    let Job { origin, session, accepted_at, batch, late, end: job_end, .. } = job;
    let (begun, accepted_at) = (laps.begun(), *accepted_at);
    let connection = Connection::new(origin, post);
    // What is pushed may come between this reply and the next.
    let is_alone =
        |batch: &Batch| origin.local.has_pushers() && !batch.reply_ends.is_empty() && batch.lines_left() > 0;
    // Looked at before each lap: nobody may be there any more to read the replies.
    while (laps.is_open() || origin.is_there())
        && let Some((line, replies)) = batch.next_line()
    {
        // Only before a lap: the time is not read within one.
        let waited = laps.begun().saturating_sub(accepted_at);
        if service.is_late(waited) {
            service.answer_late(waited, replies.bytes);
            batch.end_reply();
            *late += 1;
            if is_alone(batch) {
                *job_end = JobEnd::Unfinished;
                break;
            }
            continue;
        }
        let request = Request::new(line, &connection, &me.waits);
        let handled = match &mut state {
            Some(state) => {
                service::handle(&*service.service, session, state, &request, replies, Mode::Worker)
            }
            None => Handled::Panicked,
        };
        *job_end = batch.end_line(handled);
        let full = batch.replies.len() >= MAX_SLICE_BYTES || is_alone(batch);
        if laps.count() || full || batch.lines_left() == 0 || *job_end != JobEnd::Done {
            laps.end(hub.clock.now(), accepted_at);
            if *job_end != JobEnd::Done {
                break;
            }
            if batch.lines_left() > 0 && (full || laps.begun().saturating_sub(begun) >= MAX_SLICE) {
                *job_end = JobEnd::Unfinished;
                break;
            }
        }
    }
    laps.begun()
}

/// Makes the session of the job's connection, or gives it back.
pub(crate) fn open_or_close(
    job: &mut Job,
    services: &[Served],
    states: &mut WorkerStates,
    post: &Arc<dyn Post>,
) {
    let Job { origin, task, session, batch, end, .. } = job;
    let connection = Connection::new(origin, post);
    let service = &*services[origin.local.service as usize].service;
    let state = states.get(services, origin.local.service);
    match (task, state) {
        (Task::Requests, _) => {}
        // It has gone before its turn came.
        (Task::Open, _) if !origin.is_there() => {}
        (Task::Open, Some(state)) => match service::open(service, state, &connection, batch.replies()) {
            Some((made, closes)) => {
                *session = Some(made);
                if closes {
                    *end = JobEnd::Close;
                }
            }
            None => *end = JobEnd::Panicked,
        },
        (Task::Close(reason), Some(state)) => {
            if let Some(session) = session.take()
                && !service::close(service, session, state, &connection, *reason)
            {
                tracing::error!(peer = %origin.peer, "a service panicked while it closed a connection");
                *end = JobEnd::Panicked;
            }
        }
        (Task::Open | Task::Close(_), None) => {
            // It cannot be given back, so it is dropped, which may panic too.
            if let Some(session) = session.take() {
                service::drop_value(session);
            }
            *end = JobEnd::Panicked;
        }
    }
}

impl<W: Wake> Held<'_, W> {
    fn hand_over(mut self) {
        if let Some(job) = self.job.take() {
            self.hub.replies.push(Mail::Job(job));
        }
    }
}

impl<W: Wake> Drop for Held<'_, W> {
    fn drop(&mut self) {
        if let Some(mut job) = self.job.take() {
            job.fail();
            self.hub.replies.push(Mail::Job(job));
        }
    }
}

//! What a worker does with a job: runs a slice of its lines through the handler, and hands it to the reactor.

use std::mem;
use std::sync::Arc;

use super::census::WorkerState;
use super::worker::Run;
use crate::clock::Nanos;
use crate::hub::Hub;
use crate::job::{Job, JobEnd};
use crate::metrics::{Lap, SHORT_REQUEST};
use crate::replies::Wake;
use crate::service::{self, Handled, Request, Service};

/// Wall time after which a worker hands a job back with lines left, so that nobody waits behind a long one.
const MAX_SLICE: Nanos = 1_000_000;
/// Reply bytes after which it does, so that what the reactor has to write stays small.
const MAX_SLICE_BYTES: usize = 32 << 10;
/// Finished jobs after which the reactor is woken even if the worker has more to do.
const MAX_OWED: usize = 64;
/// A job that took longer than this is worth a wake-up of its own.
const LONG_JOB: Nanos = 20_000;
/// Most requests of a job that are timed together, which they are while they take less than [`SHORT_REQUEST`] each:
/// reading the clock costs about as much as the shortest of them.
const MAX_LAP: usize = 4;

pub(super) struct Slices<'a, W: Wake> {
    hub: &'a Hub<W>,
    services: &'a [Service],
    /// The worker's number: where its times are recorded.
    id: u64,
    /// Finished jobs handed over since the reactor was last woken for them.
    owed: usize,
    /// Times of the present slice. Kept for its capacity.
    laps: Vec<Lap>,
}

/// A job that a worker has. Handed over when dropped, also by a bug of ours that unwinds: its connection must not wait for it.
struct Held<'a, W: Wake> {
    hub: &'a Hub<W>,
    job: Option<Box<Job>>,
}

impl<'a, W: Wake> Slices<'a, W> {
    pub(super) fn new(hub: &'a Arc<Hub<W>>, services: &'a [Service], id: u64) -> Self {
        Slices { hub, services, id, owed: 0, laps: Vec::new() }
    }
}

impl<W: Wake> Run<Box<Job>> for Slices<'_, W> {
    /// Runs lines of `job` until it is done or the slice is over, and hands it to the reactor.
    fn run(&mut self, job: Box<Job>, me: &WorkerState) {
        let Hub { clock, timings, .. } = self.hub;
        // From here on somebody waits for it.
        self.owed += 1;
        let mut held = Held { hub: self.hub, job: Some(job) };
        let Some(job) = held.job.as_deref_mut() else { return };
        job.begin_slice();
        let begun = clock.now();
        me.begins(begun);

        let accepted_at = job.accepted_at;
        let service = &self.services[job.local.service as usize];
        if service.times_handlers {
            job.set_taken(begun);
        }
        let (mut now, mut lap, mut most) = (begun, 0, 1);
        // Looked at before each lap: nobody may be there any more to read the replies.
        while (lap > 0 || job.is_wanted())
            && let Some((line, local, peer, replies)) = job.next_line()
        {
            // Only before a lap: `now` does not change within one.
            if service.is_late(now.saturating_sub(accepted_at)) {
                if service.answer_late(now.saturating_sub(accepted_at), replies) {
                    job.reply_ends.push(job.replies.len());
                }
                job.late += 1;
                continue;
            }
            let request = Request::new(line, local, peer, &me.blocks);
            let handled = service::call(&*service.handler, &request, replies);
            lap += 1;
            let replied = job.replies.len();
            match handled {
                Handled::Replied => job.reply_ends.push(replied),
                Handled::Silent => {}
                Handled::Close => {
                    if replied > job.reply_ends.last().copied().unwrap_or(0) {
                        job.reply_ends.push(replied);
                    }
                    job.end = JobEnd::Close;
                }
                Handled::Panicked => job.end = JobEnd::Panicked,
            }
            let full = replied >= MAX_SLICE_BYTES;
            if lap == most || full || job.lines_left() == 0 || job.end != JobEnd::Done {
                let took = clock.now().saturating_sub(now);
                self.laps.push(Lap { wait: now.saturating_sub(accepted_at), took, requests: lap });
                most = if took < SHORT_REQUEST * lap as u64 { (most * 2).min(MAX_LAP) } else { 1 };
                (now, lap) = (now + took, 0);
                if job.lines_left() > 0
                    && job.end == JobEnd::Done
                    && (full || now.saturating_sub(begun) >= MAX_SLICE)
                {
                    job.end = JobEnd::Unfinished;
                }
                if job.end != JobEnd::Done {
                    break;
                }
            }
        }
        job.took = now.saturating_sub(begun);
        let long = job.took > LONG_JOB;
        timings.record(self.id, self.laps.drain(..));
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

impl<W: Wake> Held<'_, W> {
    fn hand_over(mut self) {
        if let Some(job) = self.job.take() {
            self.hub.replies.push(job);
        }
    }
}

impl<W: Wake> Drop for Held<'_, W> {
    fn drop(&mut self) {
        if let Some(mut job) = self.job.take() {
            job.fail();
            self.hub.replies.push(job);
        }
    }
}

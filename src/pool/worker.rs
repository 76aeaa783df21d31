//! The loop of a worker thread: find a job, run a slice of it, hand it back, park when there is none.

use std::sync::Arc;
use std::sync::atomic::Ordering::*;

use crossbeam_deque::{Steal, Worker as Deque};

use super::sleep::{Bed, Unparked};
use super::{Pool, WorkerState, join};
use crate::clock::Nanos;
use crate::job::{Job, JobEnd};
use crate::metrics::{Lap, SHORT_REQUEST};
use crate::replies::Wake;
use crate::service::{self, Handled, Request, Service};

/// Wall time after which a worker hands a job back with lines left, so that nobody waits behind a long one.
const MAX_SLICE: Nanos = 1_000_000;
/// Reply bytes after which it does, so that what the reactor has to write stays small.
const MAX_SLICE_BYTES: usize = 32 << 10;
/// Most jobs taken at once. They are taken together only while all of them are done within [`MAX_BATCH_TIME`]: a worker
/// that hoards jobs and then blocks costs them the time until another steals them.
const MAX_BATCH: u64 = 16;
const MAX_BATCH_TIME: Nanos = 20_000;
/// Finished jobs after which the reactor is woken even if the worker has more to do.
const MAX_OWED: usize = 64;
/// A job that took longer than this is worth a wake-up of its own.
const LONG_JOB: Nanos = 20_000;

/// Most requests of a job that are timed together, which they are while they take less than [`SHORT_REQUEST`] each:
/// reading the clock costs about as much as the shortest of them.
const MAX_LAP: usize = 4;
/// So often a worker looks into the others' deques first: what a blocked one took along must not wait until the
/// injector is empty, which under steady load it never is.
const STEAL_FIRST_EVERY: u32 = 32;

/// Runs a worker until it is surplus. It counts as live and searching already.
pub(super) fn run<W: Wake>(pool: &Pool<W>, id: u64, state: Arc<WorkerState>, services: &[Service]) {
    pool.adopt_thread();
    state.tid.store(thread_id(), Relaxed);
    let deque = Deque::new_fifo();
    let stealer = deque.stealer();
    pool.stealers.write().unwrap_or_else(std::sync::PoisonError::into_inner).push((id, stealer));
    let mut worker =
        Worker { pool, services, id, state, deque, bed: Bed::new(), owed: 0, laps: Vec::new(), searches: 0 };
    worker.work();
}

/// The system's number of the calling thread.
fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

struct Worker<'a, W: Wake> {
    pool: &'a Pool<W>,
    services: &'a [Service],
    id: u64,
    state: Arc<WorkerState>,
    deque: Deque<Box<Job>>,
    bed: crate::sync::Arc<Bed>,
    /// Finished jobs handed over since the reactor was last woken for them.
    owed: usize,
    /// Times of the present slice. Kept for its capacity.
    laps: Vec<Lap>,
    /// Searches so far.
    searches: u32,
}

impl<W: Wake> Worker<'_, W> {
    fn work(&mut self) {
        let mut searching = true;
        loop {
            if let Some(job) = self.find_job() {
                if searching {
                    searching = false;
                    self.stop_searching();
                }
                self.run_slice(job);
                if self.pool.retire() {
                    return;
                }
                continue;
            }
            self.signal();
            if self.pool.retire() {
                if searching {
                    self.stop_searching();
                }
                return;
            }
            let pool = self.pool;
            let news = || pool.has_work() || pool.excess.load(Relaxed) > 0;
            match pool.sleep.park(&self.bed, searching, news) {
                Unparked::Search => searching = true,
                Unparked::Exit => return,
            }
        }
    }

    /// The last one that searches hands the search on, if the work is worth another worker.
    fn stop_searching(&self) {
        let pool = self.pool;
        if pool.sleep.stops_searching() {
            pool.sleep.unpark_one(|_| pool.is_worth_unparking() && pool.has_work());
        }
    }

    fn find_job(&mut self) -> Option<Box<Job>> {
        self.searches = self.searches.wrapping_add(1);
        if self.searches.is_multiple_of(STEAL_FIRST_EVERY)
            && let Some(job) = self.steal()
        {
            return Some(job);
        }
        self.deque.pop().or_else(|| self.take_injected()).or_else(|| self.steal())
    }

    fn take_injected(&self) -> Option<Box<Job>> {
        let mean = self.pool.mean_or_assumed();
        let limit = usize::try_from((MAX_BATCH_TIME / mean).clamp(1, MAX_BATCH)).unwrap_or(1);
        first(|| match limit {
            1 => self.pool.injector.steal(),
            limit => self.pool.injector.steal_batch_with_limit_and_pop(&self.deque, limit),
        })
    }

    fn steal(&self) -> Option<Box<Job>> {
        let stealers = self.pool.stealers.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Those who started after this one first, so that not all thieves begin with the same victim.
        let own = stealers.iter().position(|(id, _)| *id == self.id).unwrap_or(0);
        let (before, after) = stealers.split_at(own);
        after.iter().chain(before).find_map(|(_, stealer)| first(|| stealer.steal()))
    }

    /// Runs lines of `job` until it is done or the slice is over, and hands it to the reactor.
    fn run_slice(&mut self, mut job: Box<Job>) {
        let pool = self.pool;
        pool.started.fetch_add(1, Relaxed);
        job.begin_slice();
        let begun = pool.clock.now();
        self.state.last.store(begun * 2 + 1, Relaxed);

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
            let request = Request::new(line, local, peer, &self.state.blocks);
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
                let took = pool.clock.now().saturating_sub(now);
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
        pool.timings.record(self.id, self.laps.drain(..));
        self.state.last.store(begun * 2, Relaxed);
        pool.replies.push(job);
        self.owed += 1;
        if long || self.owed >= MAX_OWED {
            self.signal();
        }
    }

    /// Wakes the reactor for the finished jobs that were handed over without.
    fn signal(&mut self) {
        if std::mem::take(&mut self.owed) > 0 {
            self.pool.replies.signal();
        }
    }
}

impl<W: Wake> Drop for Worker<'_, W> {
    /// Leaves nothing behind: not a job in the deque, not an owed signal, not a place in the crew.
    fn drop(&mut self) {
        self.signal();
        while let Some(job) = self.deque.pop() {
            self.pool.injector.push(job);
        }
        let pool = self.pool;
        pool.stealers
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .retain(|(id, _)| *id != self.id);
        let before = pool.leave(self.id, std::thread::panicking());
        pool.unpark_for_work();
        pool.left.notify_all();
        join(before);
    }
}

/// Tries again while others interfere.
fn first<T>(mut attempt: impl FnMut() -> Steal<T>) -> Option<T> {
    loop {
        match attempt() {
            Steal::Success(found) => return Some(found),
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}

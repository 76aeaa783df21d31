//! The loop of a worker: find a job, stop searching, run it and hand it over, retire if surplus, park when there is none.
//!
//! Generic over the queues and over what is done with a job, so that loom runs this very function (`loom_tests`), with jobs that
//! block and workers that retire. What leaves it, however it does, leaves every count right: a bug of ours that unwinds it
//! costs the pool this one worker, until the tuner starts another.

use std::mem;
use std::sync::Arc;

use super::Pool;
use super::census::WorkerState;
use super::crew::join;
use super::queue::Queue;
use super::sleep::{Bed, Unparked};

/// What a worker does with jobs.
pub(super) trait Run<J> {
    /// Runs `job` as far as it goes at once, on the worker that shows `me` of itself, and hands it over.
    fn run(&mut self, job: J, me: &WorkerState);

    /// Tells of what was handed over without a word. Called whenever the worker has nothing to do.
    fn signal(&mut self);
}

/// Works until the worker is surplus. It counts as live and searching already.
pub(super) fn work<Q: Queue, R: Run<Q::Job>>(pool: &Pool<Q>, id: u64, me: &Arc<WorkerState>, run: R) {
    me.runs_here();
    let own = pool.queue.join(id);
    let mut worker = Worker { pool, id, me, own, bed: Bed::new(), searching: true, run };
    worker.work();
}

struct Worker<'a, Q: Queue, R: Run<Q::Job>> {
    pool: &'a Pool<Q>,
    id: u64,
    me: &'a WorkerState,
    own: Q::Own,
    bed: crate::sync::Arc<Bed>,
    /// It counts as searching.
    searching: bool,
    run: R,
}

impl<Q: Queue, R: Run<Q::Job>> Worker<'_, Q, R> {
    fn work(&mut self) {
        let pool = self.pool;
        loop {
            if let Some(job) = pool.queue.take(&mut self.own, pool.at_once()) {
                self.stop_searching();
                pool.begins_job();
                self.run.run(job, self.me);
                if pool.crew.retire() {
                    return;
                }
                continue;
            }
            self.run.signal();
            if pool.crew.retire() {
                return;
            }
            let news = || !pool.queue.is_empty() || pool.crew.has_excess();
            let unparked = pool.sleep.park(&self.bed, mem::take(&mut self.searching), news);
            match unparked {
                Unparked::Search => self.searching = true,
                Unparked::Exit => return,
            }
        }
    }

    /// The last one that searches hands the search on, if the work is worth another worker.
    fn stop_searching(&mut self) {
        if mem::take(&mut self.searching) && self.pool.sleep.stops_searching() {
            self.pool.hand_on_search();
        }
    }
}

impl<Q: Queue, R: Run<Q::Job>> Drop for Worker<'_, Q, R> {
    /// Leaves nothing behind: not a job of its own, not an owed signal, not a search, not a place in the crew.
    fn drop(&mut self) {
        let pool = self.pool;
        self.run.signal();
        pool.queue.leave(&mut self.own);
        if mem::take(&mut self.searching) {
            pool.sleep.stops_searching();
        }
        let before = pool.crew.leave(self.id, std::thread::panicking());
        // Somebody may have counted on this one.
        pool.unpark_for_work();
        join(before);
    }
}

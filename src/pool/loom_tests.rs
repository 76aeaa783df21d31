//! The pool in every interleaving: the worker's loop, the gate, the crew and the mailbox as they are. Stand-ins are the queue,
//! which is two counts with no more ordering than a deque gives, and what is done with a job. A job that is stranded, or a reply
//! that nobody is woken for, is a deadlock, which loom reports.

use super::census::WorkerState;
use super::queue::Queue;
use super::worker::{self, Run};
use super::*;
use crate::replies::{Replies, Wake};
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use crate::sync::{Parker, thread};

/// Jobs are numbers, taken in their order.
struct Counts {
    pushed: AtomicUsize,
    taken: AtomicUsize,
}

impl Queue for Counts {
    type Job = usize;
    type Own = ();

    fn push(&self, job: usize) {
        // By the reactor only.
        self.pushed.store(job + 1, Release);
    }

    fn is_empty(&self) -> bool {
        self.taken.load(Acquire) >= self.pushed.load(Acquire)
    }

    fn join(&self, _: u64) {}

    fn take(&self, (): &mut (), _: usize) -> Option<usize> {
        let mut taken = self.taken.load(Acquire);
        while taken < self.pushed.load(Acquire) {
            match self.taken.compare_exchange(taken, taken + 1, AcqRel, Acquire) {
                Ok(_) => return Some(taken),
                Err(other) => taken = other,
            }
        }
        None
    }

    fn leave(&self, (): &mut ()) {}
}

/// What an eventfd in a poll does: a wake before the sleep ends it at once.
struct Sleeper(crate::sync::Arc<Parker>);

impl Wake for Sleeper {
    fn wake(&self) {
        self.0.unpark();
    }
}

/// A pool and its reactor, which is the model's first thread.
struct Model {
    pool: Pool<Counts>,
    replies: Replies<usize, Sleeper>,
    reactor: crate::sync::Arc<Parker>,
    jobs: Jobs,
    second_has_run: Parker,
    /// Jobs that have run. Not part of the model.
    run: std::sync::atomic::AtomicUsize,
    /// Workers that have told of nothing that they handed over last. Not part of the model.
    owing: std::sync::atomic::AtomicUsize,
}

/// What jobs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jobs {
    /// Each has a reply that the reactor waits for.
    Reply,
    /// There are two without, and the pool is stopped when both have run.
    Silent,
    /// The same, and the first blocks until the second has run.
    FirstBlocks,
}

/// As `slice::Slices` does with short jobs: hands them over, and tells of it when asked to.
struct Hands<'a> {
    model: &'a Model,
    owes: bool,
}

impl Run<usize> for Hands<'_> {
    fn run(&mut self, job: usize, _: &WorkerState) {
        let Model { jobs, pool, second_has_run, run, .. } = self.model;
        match (jobs, job) {
            (Jobs::Reply, _) => {}
            (Jobs::FirstBlocks, 0) => second_has_run.park(),
            (Jobs::FirstBlocks, _) => second_has_run.unpark(),
            (Jobs::Silent, _) => {}
        }
        if *jobs != Jobs::Reply {
            // Nobody is told of them: the fewer steps, the more of their orders are tried.
            if run.fetch_add(1, Relaxed) == 1 {
                pool.stop();
            }
            return;
        }
        self.model.replies.push(job);
        if !std::mem::replace(&mut self.owes, true) {
            self.model.owing.fetch_add(1, Relaxed);
        }
    }

    fn signal(&mut self) {
        if std::mem::take(&mut self.owes) {
            self.model.replies.signal();
            self.model.owing.fetch_sub(1, Relaxed);
        }
    }
}

type Handle = thread::JoinHandle<()>;

impl Model {
    /// A pool whose jobs take `mean` on average.
    fn new(mean: Duration, jobs: Jobs) -> Arc<Model> {
        let pool = Pool::with(Counts { pushed: AtomicUsize::new(0), taken: AtomicUsize::new(0) });
        pool.mean_nanos.store(nanos(mean), Relaxed);
        let reactor = crate::sync::Arc::new(Parker::new());
        Arc::new(Model {
            pool,
            replies: Replies::new(Sleeper(crate::sync::Arc::clone(&reactor))),
            reactor,
            jobs,
            second_has_run: Parker::new(),
            run: Default::default(),
            owing: Default::default(),
        })
    }

    fn start(self: &Arc<Self>) -> Handle {
        let model = Arc::clone(self);
        let (id, state) = self.pool.crew.enlist(0);
        thread::spawn(move || worker::work(&model.pool, id, &state, Hands { model: &model, owes: false }))
    }

    fn start_all(self: &Arc<Self>, count: usize) -> Vec<Handle> {
        (0..self.pool.set_target(count)).map(|_| self.start()).collect()
    }

    fn submit(&self, jobs: impl IntoIterator<Item = usize>) {
        self.pool.submit(&mut jobs.into_iter().collect(), 0);
    }

    /// The reactor's turns until `count` replies are here.
    fn collect(&self, count: usize) {
        let mut seen = Vec::new();
        while seen.len() < count {
            if self.replies.try_sleep() {
                self.reactor.park();
            }
            self.replies.drain(&mut seen);
        }
    }

    /// Waits for all who were started; stops the pool, unless the last job does.
    fn end(&self, workers: Vec<Handle>) {
        if self.jobs == Jobs::Reply {
            self.pool.stop();
        }
        for worker in workers {
            worker.join().unwrap();
        }
        let sleep = &self.pool.sleep;
        assert_eq!((sleep.parked(), sleep.searching(), self.pool.crew.live()), (0, 0, 0));
        assert_eq!(self.owing.load(Relaxed), 0);
    }
}

fn model(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    // Enough on a quiet machine for all of them; a busy one tries fewer.
    builder.max_duration = Some(Duration::from_secs(60));
    builder.check(check);
}

/// Worth a worker each, but not so long that the reactor unparks one for each: they wake one another.
const WORTH_ONE: Duration = Duration::from_micros(100);
/// Left to whoever is awake.
const SHORT: Duration = Duration::from_micros(1);

/// Whoever takes the first one blocks, and only another worker can take the second.
#[test]
fn a_job_that_blocks_keeps_no_other_from_being_taken() {
    model(1, || {
        let model = Model::new(WORTH_ONE, Jobs::FirstBlocks);
        let workers = model.start_all(2);
        model.submit([0]);
        model.submit([1]);
        model.end(workers);
    });
}

/// The same where both come in one turn.
#[test]
fn a_turn_of_jobs_that_block_is_taken_by_as_many_workers() {
    for mean in [WORTH_ONE, WORTH_A_WORKER] {
        model(1, move || {
            let model = Model::new(mean, Jobs::FirstBlocks);
            let workers = model.start_all(2);
            model.submit([0, 1]);
            model.end(workers);
        });
    }
}

/// One of two workers retires, perhaps the one that was counted on.
#[test]
fn a_worker_that_retires_takes_no_job_with_it() {
    model(2, || {
        let model = Model::new(SHORT, Jobs::Silent);
        let workers = model.start_all(2);
        model.submit([0]);
        assert_eq!(model.pool.set_target(1), 0);
        model.submit([1]);
        model.end(workers);
    });
}

/// It is surplus once it has run its job, and nobody else is there who would wake the reactor.
#[test]
fn a_worker_that_retires_takes_no_reply_with_it() {
    model(2, || {
        let model = Model::new(SHORT, Jobs::Reply);
        let workers = model.start_all(1);
        let tuner = {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                while model.pool.started() == 0 {
                    thread::yield_now();
                }
                model.pool.stop();
            })
        };
        model.submit([0]);
        model.collect(1);
        tuner.join().unwrap();
        model.end(workers);
    });
}

/// A worker that nobody is able to start was counted as one that looks for work.
#[test]
fn a_worker_that_cannot_be_started_is_not_counted_on() {
    model(2, || {
        let model = Model::new(SHORT, Jobs::Reply);
        assert_eq!(model.pool.set_target(2), 2);
        let worker = model.start();
        let tuner = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.pool.give_up(1))
        };
        model.submit([0]);
        model.collect(1);
        tuner.join().unwrap();
        assert_eq!(model.pool.target(), 1);
        model.end(vec![worker]);
    });
}

/// When the last worker has left, none owes anything.
#[test]
fn who_has_left_owes_nothing() {
    model(2, || {
        let model = Model::new(SHORT, Jobs::Reply);
        let workers = model.start_all(1);
        model.submit([0]);
        model.pool.stop();
        model.pool.join_workers();
        assert_eq!(model.owing.load(Relaxed), 0);
        model.end(workers);
    });
}

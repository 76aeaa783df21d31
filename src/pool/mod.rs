//! The work-stealing pool: submit jobs, resize, look at the workers.
//!
//! The reactor submits; workers (`worker.rs`) take jobs from the injector, from their own deque and from each other's,
//! and hand them back through `replies`. Who parks and who is unparked is `sleep.rs`. How many workers there should be
//! is not decided here: `tuner` calls [`Pool::set_target`].

mod sleep;
mod worker;

use std::cell::Cell;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_deque::{Injector, Stealer};

use crate::clock::{Clock, Nanos, nanos};
use crate::controller::DRAIN_TARGET;
use crate::job::Job;
use crate::metrics::Timings;
use crate::replies::{Replies, Wake};
use crate::service::Service;
use crate::sync::lock_std;
use crate::threads;
use sleep::{Sleep, Which};

/// Another worker is unparked only for work that is worth it: queued jobs times mean time per job above this, about what
/// the wake-up itself costs. Less is done sooner by the worker that is awake.
const WORTH_UNPARKING: Duration = Duration::from_micros(20);
/// Less work than this, all of it together, is given to a worker that was last on the reactor's CPU.
const WORTH_ANOTHER_CPU: Duration = Duration::from_micros(100);
/// Jobs that take this long on average get a worker each at once, not one after the other: a wake-up costs a hundredth.
const WORTH_A_WORKER: Duration = Duration::from_millis(1);
/// Until a job has finished, jobs are taken to need this long, in nanoseconds: enough to unpark workers for them, and to
/// have the tuner look at what they do.
const UNKNOWN_TIME_PER_JOB: Nanos = 1_000_000;
/// A new job's share in the moving average of the time per job, as a power of two: 1/16.
const MEAN_SHIFT: u32 = 4;

/// How long the threads of a server may take to end once the last of them has been told to.
pub(crate) const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

thread_local! {
    /// [`Pool::number`] of the server that the thread belongs to; 0 for a thread that is no server's. Without a destructor, so
    /// that it can be read in those of others.
    static OWN: Cell<u64> = const { Cell::new(0) };
}

/// The workers and their queues. Shared by the reactor, the tuner and the workers themselves.
pub(crate) struct Pool<W> {
    /// Of all pools of this process, from 1.
    number: u64,
    /// Stack of a worker.
    stack_bytes: usize,
    injector: Injector<Box<Job>>,
    /// One for each live worker. Read on the way to parking, written when a worker starts or ends.
    stealers: RwLock<Vec<(u64, Stealer<Box<Job>>)>>,
    sleep: Sleep,
    crew: Mutex<Crew>,
    /// The crew became smaller, or all its threads have ended, or they are waited for no longer.
    left: Condvar,
    /// Copy of `crew.live` that is read without the lock. A worker that retires lowers it, then looks for work (see
    /// [`Pool::submit`] for the other side).
    live: AtomicUsize,
    /// Live workers above the target. Each busy one looks here after its job.
    excess: AtomicUsize,
    /// Workers that kept their jobs while others waited, when it was last looked at: until they park they are not counted
    /// on. By the reactor only. Relaxed.
    stuck: AtomicUsize,
    /// Jobs ever submitted, by the reactor only. Relaxed: with `started` an estimate of what waits.
    submitted: AtomicU64,
    /// Job slices ever begun by the workers. Relaxed.
    started: AtomicU64,
    /// Moving average of the wall time of a job in nanoseconds, 0 until one has finished. By the reactor only. Relaxed.
    mean_nanos: AtomicU64,
    pub(crate) clock: Clock,
    pub(crate) replies: Replies<Box<Job>, W>,
    pub(crate) timings: Timings,
}

/// Who is there.
#[derive(Debug, Default)]
struct Crew {
    /// Workers that run or are being started. Surplus workers that are busy count until they end.
    live: usize,
    target: usize,
    /// Once set, the target stays 0.
    stopping: bool,
    next_id: u64,
    /// When one of those who have left took its last job.
    last_taken: Duration,
    workers: Vec<(u64, Arc<WorkerState>)>,
    /// The thread that left last: it ends, or has ended. It has joined the one that left before it, so whoever joins this one
    /// has joined them all, and never more than one that has ended keeps its stack.
    leaver: Option<JoinHandle<()>>,
    /// Workers are waited for until then. Set when the pool is stopped, and only ever brought forward.
    deadline: Option<Instant>,
    /// Every thread of a worker has ended and was joined.
    joined: bool,
}

/// The thread of a worker, between who starts it and itself, which may leave before the other has its handle.
#[derive(Debug, Default)]
enum Thread {
    #[default]
    Starting,
    Runs(JoinHandle<()>),
    Left,
}

/// What a worker shows of itself.
#[derive(Debug)]
struct WorkerState {
    thread: Mutex<Thread>,
    /// The system's number of the thread; 0 before it runs.
    tid: AtomicU32,
    /// When it took its last job, by the pool's clock, times two, plus one while it runs it. Written by the
    /// worker only. Relaxed: a statistic.
    last: AtomicU64,
    /// Above 0 while its handler says that it is blocked: see [`Request::blocking`](crate::Request::blocking).
    blocks: AtomicUsize,
}

impl WorkerState {
    /// Of a worker that is started at `now`.
    fn new(now: Nanos) -> WorkerState {
        WorkerState {
            thread: Mutex::default(),
            tid: AtomicU32::new(0),
            last: AtomicU64::new(now * 2),
            blocks: AtomicUsize::new(0),
        }
    }

    fn last_taken(&self) -> Duration {
        Duration::from_nanos(self.last.load(Relaxed) / 2)
    }

    fn is_busy(&self) -> bool {
        self.last.load(Relaxed) % 2 == 1
    }
}

/// How the workers are doing: what the controller needs to know of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) live: usize,
    pub(crate) busy: usize,
    /// When a worker last took a job.
    pub(crate) last_taken: Duration,
    /// Busy workers that have had their jobs for `controller::DRAIN_TARGET` or longer.
    pub(crate) old: usize,
    /// How long half of the busy workers have had their jobs, at least.
    pub(crate) median_age: Duration,
    /// Busy workers whose handlers say that they are blocked.
    pub(crate) declared: usize,
    /// The threads of the other busy workers.
    pub(crate) busy_tids: Vec<u32>,
}

impl<W: Wake> Pool<W> {
    /// A pool without workers, whose figures are in the time of `clock`.
    pub(crate) fn new(waker: W, clock: Clock, stack_bytes: usize) -> Arc<Self> {
        static POOLS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Pool {
            number: POOLS.fetch_add(1, Relaxed) + 1,
            stack_bytes,
            injector: Injector::new(),
            stealers: RwLock::new(Vec::new()),
            sleep: Sleep::new(),
            crew: Mutex::new(Crew::default()),
            left: Condvar::new(),
            live: AtomicUsize::new(0),
            excess: AtomicUsize::new(0),
            stuck: AtomicUsize::new(0),
            submitted: AtomicU64::new(0),
            started: AtomicU64::new(0),
            mean_nanos: AtomicU64::new(0),
            clock,
            replies: Replies::new(waker),
            timings: Timings::new(),
        })
    }

    /// Queues the jobs of a turn, and unparks a worker if they are worth it or nobody is awake. Empties `jobs`.
    ///
    /// For the reactor. A worker that is awake and skipped here takes them after its present job; if that takes long,
    /// [`Pool::nudge`] unparks another, and from then on does not count on that worker until it has parked.
    #[expect(clippy::vec_box, reason = "the reactor keeps the vector, and the boxes are what is recycled")]
    pub(crate) fn submit(&self, jobs: &mut Vec<Box<Job>>) {
        if jobs.is_empty() {
            return;
        }
        self.submitted.store(self.submitted.load(Relaxed) + jobs.len() as u64, Relaxed);
        for job in jobs.drain(..) {
            self.injector.push(job);
        }
        let mean = self.mean_or_assumed();
        let wanted = if mean >= nanos(WORTH_A_WORKER) { self.waiting() } else { 1 };
        let which = if self.waiting_work() < nanos(WORTH_ANOTHER_CPU) { Which::Near } else { Which::Latest };
        self.sleep.unpark(wanted, which, |parked| self.nobody_takes_it(parked) || self.is_worth_unparking());
    }

    /// Whether every worker that is not parked is stuck.
    fn nobody_takes_it(&self, parked: usize) -> bool {
        let awake = self.live.load(Relaxed).saturating_sub(parked);
        let stuck = self.stuck.load(Relaxed);
        if stuck > awake {
            self.stuck.store(awake, Relaxed);
        }
        stuck >= awake
    }

    /// Unparks a worker whether it is worth it or not: what waits has made no progress. For the reactor.
    pub(crate) fn nudge(&self) {
        self.stuck.store(self.live.load(Relaxed).saturating_sub(self.parked()), Relaxed);
        self.sleep.unpark_another();
    }

    /// The calling thread belongs to this pool's server from now on: a worker, or the reactor.
    pub(crate) fn adopt_thread(&self) {
        OWN.set(self.number);
    }

    /// Jobs that wait for a worker.
    pub(crate) fn waiting(&self) -> usize {
        let started = self.started.load(Relaxed);
        usize::try_from(self.submitted.load(Relaxed).saturating_sub(started)).unwrap_or(usize::MAX)
    }

    /// Job slices that workers have begun, ever.
    pub(crate) fn started(&self) -> u64 {
        self.started.load(Relaxed)
    }

    /// Workers that are parked.
    pub(crate) fn parked(&self) -> usize {
        self.sleep.parked()
    }

    /// Takes a finished slice's wall time into the mean. For the reactor.
    pub(crate) fn learn_time_per_job(&self, took: Nanos) {
        let mean = match self.mean_nanos.load(Relaxed) {
            0 => took,
            old => old - (old >> MEAN_SHIFT) + (took >> MEAN_SHIFT),
        };
        self.mean_nanos.store(mean.max(1), Relaxed);
    }

    /// Moving average of the wall time of a job. `None` until one has finished.
    pub(crate) fn known_time_per_job(&self) -> Option<Duration> {
        Some(self.mean_nanos.load(Relaxed)).filter(|mean| *mean > 0).map(Duration::from_nanos)
    }

    /// The same, or what is assumed until one has finished.
    pub(crate) fn time_per_job(&self) -> Duration {
        Duration::from_nanos(self.mean_or_assumed())
    }

    fn mean_or_assumed(&self) -> Nanos {
        match self.mean_nanos.load(Relaxed) {
            0 => UNKNOWN_TIME_PER_JOB,
            mean => mean,
        }
    }

    /// Sets how many workers there should be, and lets parked ones go at once, busy ones as they finish. Returns
    /// how many are missing: the caller starts each with [`Pool::start_worker`], as they count as live from here on.
    pub(crate) fn set_target(&self, target: usize) -> usize {
        let mut crew = lock_std(&self.crew);
        crew.target = if crew.stopping { 0 } else { target };
        let missing = crew.target.saturating_sub(crew.live);
        crew.live += missing;
        for _ in 0..missing {
            self.sleep.starts();
        }
        // In this order: a worker that parks too late to be released here sees the excess before it sleeps.
        self.show(&crew);
        let surplus = crew.live - crew.target;
        if surplus > 0 {
            crew.live -= self.sleep.release(surplus);
            self.show(&crew);
        }
        missing
    }

    /// Workers there should be.
    pub(crate) fn target(&self) -> usize {
        lock_std(&self.crew).target
    }

    /// Starts the thread of a worker that [`Pool::set_target`] found missing.
    ///
    /// # Errors
    /// The system refuses the thread, or the last of the address space would go with it. The worker is given up as by [`Pool::give_up`].
    pub(crate) fn start_worker(self: &Arc<Self>, services: &Arc<[Service]>) -> io::Result<()> {
        let state = Arc::new(WorkerState::new(self.clock.now()));
        let id = {
            let mut crew = lock_std(&self.crew);
            crew.next_id += 1;
            let id = crew.next_id;
            crew.workers.push((id, Arc::clone(&state)));
            id
        };
        let run = {
            let (pool, state, services) = (Arc::clone(self), Arc::clone(&state), Arc::clone(services));
            move || worker::run(&pool, id, state, &services)
        };
        match threads::spawn(thread_name(id), self.stack_bytes, run) {
            Ok(thread) => {
                let mut place = lock_std(&state.thread);
                if let Thread::Starting = *place {
                    *place = Thread::Runs(thread);
                    return Ok(());
                }
                drop(place);
                // It has left already, and could not put itself there.
                let before = lock_std(&self.crew).leaver.replace(thread);
                join(before);
                Ok(())
            }
            Err(error) => {
                lock_std(&self.crew).workers.retain(|(other, _)| *other != id);
                self.give_up(1);
                Err(error)
            }
        }
    }

    /// `count` missing workers are not going to be started after all, and the target is lowered to match. No job is lost:
    /// what they might have been counted on for is given to others.
    pub(crate) fn give_up(&self, count: usize) {
        {
            let mut crew = lock_std(&self.crew);
            crew.live -= count;
            crew.target = crew.target.min(crew.live);
            self.show(&crew);
        }
        for _ in 0..count {
            self.sleep.stops_searching();
        }
        self.unpark_for_work();
        self.left.notify_all();
    }

    /// A worker ends: it is not in the crew any more. `unwinds`: by a bug of ours, and it still counts as live.
    ///
    /// Returns the one that left before, which this one has to join when it has nothing else left to do.
    fn leave(&self, id: u64, unwinds: bool) -> Option<JoinHandle<()>> {
        let mut crew = lock_std(&self.crew);
        let mut before = None;
        if let Some(place) = crew.workers.iter().position(|(other, _)| *other == id) {
            let (_, state) = crew.workers.remove(place);
            crew.last_taken = crew.last_taken.max(state.last_taken());
            if let Thread::Runs(thread) = mem::replace(&mut *lock_std(&state.thread), Thread::Left) {
                before = crew.leaver.replace(thread);
            }
        }
        if unwinds {
            crew.live -= 1;
            // So that the tuner misses it.
            crew.target = crew.target.min(crew.live);
            self.show(&crew);
        }
        before
    }

    /// Whether the calling thread is one of the workers, or the reactor's: the server cannot end while it waits.
    pub(crate) fn is_on_own_thread(&self) -> bool {
        OWN.get() == self.number
    }

    /// Looks at every worker. `now` is in the time of its clock.
    pub(crate) fn census(&self, now: Duration) -> Census {
        let crew = lock_std(&self.crew);
        let mut census = Census { live: crew.live, last_taken: crew.last_taken, ..Census::default() };
        let mut ages = Vec::new();
        for (_, state) in &crew.workers {
            let taken = state.last_taken();
            census.last_taken = census.last_taken.max(taken);
            if state.is_busy() {
                census.busy += 1;
                if state.blocks.load(Relaxed) > 0 {
                    census.declared += 1;
                } else {
                    census.busy_tids.push(state.tid.load(Relaxed));
                }
                ages.push(now.saturating_sub(taken));
            }
        }
        ages.sort_unstable();
        census.old = ages.len() - ages.partition_point(|age| *age < DRAIN_TARGET);
        census.median_age = ages.get(ages.len().saturating_sub(1) / 2).copied().unwrap_or_default();
        census
    }

    /// Lets every worker go: parked ones now, busy ones after their job. Jobs that nobody has taken stay.
    pub(crate) fn stop(&self) {
        lock_std(&self.crew).stopping = true;
        self.set_target(0);
    }

    /// The pool has been stopped or is going to be: its workers are waited for until `deadline`, if not less long already.
    pub(crate) fn leave_by(&self, deadline: Instant) {
        let mut crew = lock_std(&self.crew);
        crew.deadline = Some(crew.deadline.map_or(deadline, |before| before.min(deadline)));
        drop(crew);
        self.left.notify_all();
    }

    /// Joins the workers of a stopped pool: blocks until all have left and ended, or [`Pool::wait_until_joined`] gave up.
    ///
    /// For the thread that starts workers, so that none is started meanwhile. Whoever joins cannot tell how long a thread takes
    /// to end that has left already, so that another thread looks at the time.
    pub(crate) fn join_workers(&self) {
        let mut crew = lock_std(&self.crew);
        while !crew.workers.is_empty() || crew.live > 0 {
            if crew.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return;
            }
            crew = self.left.wait(crew).unwrap_or_else(PoisonError::into_inner);
        }
        let last = crew.leaver.take();
        drop(crew);
        join(last);
        lock_std(&self.crew).joined = true;
        self.left.notify_all();
    }

    /// Blocks until [`Pool::join_workers`] is done, on another thread, or until the deadline. Returns who has not left, and
    /// whether all who have left have ended.
    pub(crate) fn wait_until_joined(&self) -> (Vec<String>, bool) {
        let mut crew = lock_std(&self.crew);
        while !crew.joined {
            let deadline = *crew.deadline.get_or_insert_with(|| Instant::now() + LEAVE_TIMEOUT);
            let Some(rest) = deadline.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
            else {
                break;
            };
            crew = self.left.wait_timeout(crew, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        let left_behind: Vec<_> = crew.workers.iter().map(|(id, _)| thread_name(*id)).collect();
        let joined = crew.joined;
        drop(crew);
        // Whoever joins them sees that the deadline has passed.
        self.left.notify_all();
        (left_behind, joined)
    }

    /// Whether a job is in any queue.
    fn has_work(&self) -> bool {
        let stealers = self.stealers.read().unwrap_or_else(PoisonError::into_inner);
        !self.injector.is_empty() || stealers.iter().any(|(_, stealer)| !stealer.is_empty())
    }

    fn is_worth_unparking(&self) -> bool {
        self.waiting_work() > nanos(WORTH_UNPARKING)
    }

    /// How long one worker would take for the jobs that wait.
    fn waiting_work(&self) -> Nanos {
        self.mean_or_assumed().saturating_mul(self.waiting() as u64)
    }

    /// A worker that others may have counted on is not available: unparks another if there is work.
    fn unpark_for_work(&self) {
        self.sleep.unpark_one(|_| self.has_work());
    }

    /// A worker asks whether it is surplus. If so it does not count as live any more, and has to end.
    fn retire(&self) -> bool {
        if self.excess.load(Relaxed) == 0 {
            return false;
        }
        let mut crew = lock_std(&self.crew);
        let surplus = crew.live > crew.target;
        if surplus {
            crew.live -= 1;
            self.show(&crew);
        }
        surplus
    }

    /// Copies what is read without the lock.
    fn show(&self, crew: &Crew) {
        self.live.store(crew.live, Relaxed);
        self.excess.store(crew.live.saturating_sub(crew.target), Relaxed);
    }
}

fn thread_name(id: u64) -> String {
    format!("tidemill-w{id}")
}

/// Waits until a worker's thread has ended, which it is about to.
fn join(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        tracing::error!("a worker's thread panicked");
    }
}

impl<W> std::fmt::Debug for Pool<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("sleep", &self.sleep).field("crew", &self.crew).finish_non_exhaustive()
    }
}

// Under loom the primitives work in a model only.
#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::config::StopFrom;
    use crate::job::{ConnId, Endpoint, FreeJobs, Generations};
    use crate::metrics::{Counters, PoolGauges, Stats};
    use crate::service::{Handler, Reply, Request};

    const STACK_BYTES: usize = 256 << 10;

    struct NoReactor;

    impl Wake for NoReactor {
        fn wake(&self) {}
    }

    fn job(line: &[u8]) -> Box<Job> {
        let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
        let id = ConnId { slot: 0, generation: 0 };
        let mut job = FreeJobs::new(Generations::new(1)).take(id, &endpoint, endpoint.address.clone(), 0);
        job.push_line(line);
        job
    }

    fn services(handler: impl Handler) -> Arc<[Service]> {
        Arc::new([Service::of_lines(Arc::new(handler), 1024, StopFrom::None)])
    }

    fn start(pool: &Arc<Pool<NoReactor>>, services: &Arc<[Service]>, workers: usize) {
        for _ in 0..pool.set_target(workers) {
            pool.start_worker(services).expect("the system grants a thread");
        }
    }

    /// Stops the pool and waits until every thread has ended.
    fn end(pool: &Arc<Pool<NoReactor>>) {
        pool.leave_by(Instant::now() + Duration::from_secs(30));
        pool.stop();
        pool.join_workers();
        assert_eq!(pool.wait_until_joined(), (vec![], true));
    }

    /// A pool without workers whose handler blocks on the line `block` and passes every other on.
    struct Blocking {
        pool: Arc<Pool<NoReactor>>,
        services: Arc<[Service]>,
        is_blocked: mpsc::Receiver<()>,
        unblock: mpsc::Sender<()>,
        done: mpsc::Receiver<Vec<u8>>,
    }

    impl Blocking {
        fn new() -> Blocking {
            let (blocked, is_blocked) = mpsc::channel();
            let (unblock, may_go) = mpsc::channel::<()>();
            let (passed, done) = mpsc::channel();
            let may_go = Mutex::new(may_go);
            let handler = move |request: &Request<'_>, _: &mut Reply<'_>| match request.line() {
                b"block" => {
                    blocked.send(()).unwrap();
                    may_go.lock().unwrap().recv().unwrap();
                }
                line => passed.send(line.to_vec()).unwrap(),
            };
            let pool = Pool::new(NoReactor, Clock::start(), STACK_BYTES);
            // Short enough that a worker takes several at once.
            pool.learn_time_per_job(1_000);
            Blocking { pool, services: services(handler), is_blocked, unblock, done }
        }

        fn next_done(&self) -> Vec<u8> {
            self.done.recv_timeout(Duration::from_secs(30)).unwrap()
        }

        /// One worker takes a batch of `jobs` and blocks on the first. Returns how many more it took.
        fn hoard(&self, jobs: usize) -> usize {
            let line = |number| if number == 0 { &b"block"[..] } else { b"hoarded" };
            self.pool.submit(&mut (0..jobs).map(|number| job(line(number))).collect());
            start(&self.pool, &self.services, 1);
            self.is_blocked.recv().unwrap();
            let taken = jobs - 1 - self.pool.injector.len();
            assert!(taken > 0, "this test is about a batch");
            taken
        }

        fn end(self) {
            self.unblock.send(()).unwrap();
            end(&self.pool);
        }
    }

    #[test]
    fn what_a_worker_took_and_then_blocks_on_is_stolen_by_others() {
        let blocking = Blocking::new();
        blocking.hoard(16);
        start(&blocking.pool, &blocking.services, 2);
        for _ in 0..15 {
            blocking.next_done();
        }
        blocking.end();
    }

    #[test]
    fn what_a_blocked_worker_took_does_not_wait_until_the_injector_is_empty() {
        let blocking = Blocking::new();
        let hoarded = blocking.hoard(16);
        blocking.pool.submit(&mut (0..5_000).map(|_| job(b"new")).collect());
        start(&blocking.pool, &blocking.services, 2);
        let order: Vec<_> = (0..5_015).map(|_| blocking.next_done()).collect();
        let last = order.iter().rposition(|line| line == b"hoarded").unwrap();
        assert!(last < 2_000, "the last of {hoarded} came after {last} others");
        blocking.end();
    }

    #[test]
    fn a_stuck_worker_is_not_counted_on_again() {
        let blocking = Blocking::new();
        let pool = &blocking.pool;
        let one_parks = || {
            let deadline = Instant::now() + Duration::from_secs(30);
            while pool.parked() < 1 {
                assert!(Instant::now() < deadline, "it does not park");
                thread::yield_now();
            }
        };
        pool.submit(&mut vec![job(b"block")]);
        start(pool, &blocking.services, 1);
        blocking.is_blocked.recv().unwrap();
        start(pool, &blocking.services, 2);
        one_parks();
        pool.submit(&mut vec![job(b"pass")]);
        // Too little work to unpark for beside one that is awake, until that one turns out to be stuck.
        pool.nudge();
        blocking.next_done();
        for _ in 0..3 {
            one_parks();
            pool.submit(&mut vec![job(b"pass")]);
            blocking.next_done();
        }
        blocking.end();
    }

    /// A clock on which every second reading lies 5 µs before the one before it.
    fn steps_back() -> Nanos {
        static READINGS: AtomicU64 = AtomicU64::new(0);
        let reading = READINGS.fetch_add(1, Relaxed);
        // Far from zero, as the system's clock is.
        1_000_000_000 + 1_000 * reading - 6_000 * (reading % 2)
    }

    #[test]
    fn a_clock_that_steps_back_makes_no_request_seem_long() {
        let services = services(|_: &Request<'_>, _: &mut Reply<'_>| ());
        let pool = Pool::new(NoReactor, Clock::reading(steps_back), STACK_BYTES);
        start(&pool, &services, 2);
        let mut back = Vec::new();
        for count in 1..=100 {
            // Several requests each, some of which are timed together.
            let mut several = job(b"1");
            several.accepted_at = pool.clock.now();
            (2..=7).for_each(|_| several.push_line(b"n"));
            pool.submit(&mut vec![several]);
            let deadline = Instant::now() + Duration::from_secs(30);
            while back.len() < count {
                assert!(Instant::now() < deadline, "the {count}th job does not come back");
                pool.replies.drain(&mut back);
                thread::yield_now();
            }
        }
        for job in &back {
            // A reading for each step of a slice; all of them together are some microseconds.
            assert!(job.took < 1_000_000, "{}", job.took);
            pool.learn_time_per_job(job.took);
        }
        assert!(pool.time_per_job() < Duration::from_millis(1), "{:?}", pool.time_per_job());
        let stats = Stats::new(
            Duration::ZERO,
            [].into_iter(),
            &Counters::default(),
            &PoolGauges::default(),
            &pool.timings,
        );
        let (wait, service) = (stats.queue_wait_seconds, stats.service_seconds);
        assert_eq!((wait.count, service.count), (700, 700));
        assert!(service.sum < 0.1 && service.max < 0.001, "{service:?}");
        assert!(wait.sum < 0.1 && wait.max < 0.001, "{wait:?}");
        end(&pool);
    }

    #[test]
    fn a_lowered_target_lets_parked_workers_go_at_once_and_busy_ones_as_they_finish() {
        let (begun, has_begun) = mpsc::channel();
        let (unblock, may_go) = mpsc::channel::<()>();
        let may_go = Mutex::new(may_go);
        let handler = move |_: &Request<'_>, _: &mut Reply<'_>| {
            begun.send(()).unwrap();
            may_go.lock().unwrap().recv().unwrap();
        };
        let services = services(handler);
        let pool = Pool::new(NoReactor, Clock::start(), STACK_BYTES);
        start(&pool, &services, 4);
        pool.submit(&mut vec![job(b"1"), job(b"2")]);
        pool.nudge();
        has_begun.recv().unwrap();
        has_begun.recv().unwrap();
        pool.set_target(1);
        assert!(pool.census(Duration::ZERO).live >= 2, "the busy ones still count");
        unblock.send(()).unwrap();
        unblock.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while pool.census(Duration::ZERO).live != 1 {
            assert!(Instant::now() < deadline, "{:?}", pool.census(Duration::ZERO));
            thread::yield_now();
        }
        end(&pool);
    }
}

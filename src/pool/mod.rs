//! The work-stealing pool: submit jobs, resize, look at the workers.
//!
//! The reactor submits; workers (`worker`) take jobs from the queues (`queue`) and hand them back (`slice`). Who parks and who
//! is unparked is `sleep`, who is there is `crew`, how they are doing `census`, since when work waits `arrivals`. How many workers
//! there should be is not decided here: `tuner` calls [`Pool::set_target`].

mod arrivals;
mod census;
mod crew;
#[cfg(all(test, loom))]
mod loom_tests;
mod queue;
mod sleep;
mod slice;
mod worker;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::{Nanos, nanos};
use crate::hub::Hub;
use crate::job::Job;
use crate::replies::Wake;
use crate::service::Served;
use crate::slow::PickUp;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use crate::threads;
use arrivals::Arrivals;
pub(crate) use census::{Census, Doer};
use crew::Crew;
pub(crate) use crew::LEAVE_TIMEOUT;
use queue::{Deques, Queue};
use sleep::{Sleep, Which};
pub(crate) use slice::{Laps, MAX_SLICE, MAX_SLICE_BYTES, open_or_close};

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
/// Most jobs taken at once. They are taken together only while all of them are done within [`MAX_BATCH_TIME`]: a worker
/// that hoards jobs and then blocks costs them the time until another steals them.
const MAX_BATCH: u64 = 16;
const MAX_BATCH_TIME: Nanos = 20_000;

/// The workers and their queues. Shared by the reactor, the tuner and the workers themselves.
pub(crate) struct Pool<Q> {
    queue: Q,
    sleep: Sleep,
    crew: Crew,
    arrivals: Arrivals,
    /// Workers that kept their jobs while others waited, when it was last looked at: until they park they are not counted
    /// on. By the reactor and the tuner. Relaxed: an old value costs a nudge.
    stuck: AtomicUsize,
    /// Jobs ever submitted, by the reactor only. Relaxed: with `started` an estimate of what waits.
    submitted: AtomicU64,
    /// Job slices ever begun by the workers. Relaxed.
    started: AtomicU64,
    /// Job slices that have come back, by the reactor only. Relaxed: a statistic.
    finished: std::sync::atomic::AtomicU64,
    /// Most jobs that were out since the tuner looked last. By the reactor, and reset by the tuner. Relaxed: a statistic.
    peak: std::sync::atomic::AtomicUsize,
    /// Moving average of the wall time of a job in nanoseconds, 0 until one has finished. By the reactor only. Relaxed.
    mean_nanos: std::sync::atomic::AtomicU64,
    /// Most workers that there may be, as it is told in the log. By the tuner. Relaxed: a statistic.
    max: std::sync::atomic::AtomicUsize,
}

/// A job that its worker has had for long.
#[cfg(feature = "admin")]
#[derive(Debug)]
pub(crate) struct OldJob {
    /// The worker's name.
    pub(crate) worker: String,
    /// Whose it is.
    pub(crate) connection: crate::slots::ConnId,
    pub(crate) age: Duration,
}

/// The pool of a server.
pub(crate) type JobPool = Pool<Deques<Box<Job>>>;

impl<Q: Queue> Pool<Q> {
    /// A pool without workers.
    fn with(queue: Q) -> Pool<Q> {
        Pool {
            queue,
            sleep: Sleep::new(),
            crew: Crew::new(),
            arrivals: Arrivals::default(),
            stuck: AtomicUsize::new(0),
            submitted: AtomicU64::new(0),
            started: AtomicU64::new(0),
            finished: Default::default(),
            peak: Default::default(),
            mean_nanos: Default::default(),
            max: Default::default(),
        }
    }

    /// Queues the jobs of a turn, at `now`, and unparks a worker if they are worth it or nobody is awake. Empties `jobs`.
    ///
    /// For the reactor. A worker that is awake and skipped here takes them after its present job; if that takes long,
    /// [`Pool::nudge`] unparks another, and from then on does not count on that worker until it has parked.
    pub(crate) fn submit(&self, jobs: &mut Vec<Q::Job>, now: Nanos) {
        if jobs.is_empty() {
            return;
        }
        let submitted = self.submitted.load(Relaxed) + jobs.len() as u64;
        self.submitted.store(submitted, Relaxed);
        self.arrivals.add(submitted, self.started(), now);
        let out = self.out();
        if out > self.peak.load(Relaxed) {
            self.peak.store(out, Relaxed);
        }
        for job in jobs.drain(..) {
            self.queue.push(job);
        }
        let mean = self.mean_or_assumed();
        let wanted = if mean >= nanos(WORTH_A_WORKER) { self.waiting() } else { 1 };
        let which = if self.waiting_work() < nanos(WORTH_ANOTHER_CPU) { Which::Near } else { Which::Latest };
        self.sleep.unpark(wanted, which, |parked| self.nobody_takes_it(parked) || self.is_worth_unparking());
    }

    /// Whether every worker that is not parked is stuck.
    fn nobody_takes_it(&self, parked: usize) -> bool {
        let awake = self.crew.live().saturating_sub(parked);
        let stuck = self.stuck.load(Relaxed);
        if stuck > awake {
            self.stuck.store(awake, Relaxed);
        }
        stuck >= awake
    }

    /// Unparks a worker whether it is worth it or not: what waits has made no progress. For the tuner.
    pub(crate) fn nudge(&self) {
        self.stuck.store(self.crew.live().saturating_sub(self.parked()), Relaxed);
        self.sleep.unpark_another();
    }

    /// Whether more jobs wait than workers look for one, so that somebody should watch them. `full`: only if there is somebody
    /// to unpark for them.
    ///
    /// Behind a fence after a submission: every job that is left to a worker with another job is seen by this.
    pub(crate) fn work_waits(&self, full: bool) -> bool {
        self.waiting() > self.sleep.searching() && (!full || self.parked() > 0)
    }

    /// Jobs that wait for a worker.
    pub(crate) fn waiting(&self) -> usize {
        whole(self.submitted.load(Relaxed).saturating_sub(self.started()))
    }

    /// When the oldest of them came.
    pub(crate) fn waiting_since(&self) -> Option<Nanos> {
        self.arrivals.oldest(self.started())
    }

    /// Jobs that wait, run, or are on their way back.
    pub(crate) fn out(&self) -> usize {
        whole(self.submitted.load(Relaxed).saturating_sub(self.finished.load(Relaxed)))
    }

    /// The most of them at any time since this was last asked.
    pub(crate) fn take_peak(&self) -> usize {
        self.peak.swap(self.out(), Relaxed)
    }

    /// Job slices that workers have begun, ever.
    pub(crate) fn started(&self) -> u64 {
        self.started.load(Relaxed)
    }

    /// What there is to do, for a worker that has just taken a job.
    pub(crate) fn pick_up(&self) -> PickUp {
        let idle = self.parked() + self.sleep.searching();
        let busy = self.crew.live().saturating_sub(idle);
        PickUp { busy, max: self.max.load(Relaxed), waiting: self.waiting() }
    }

    /// There may be so many workers at the most.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(max, Relaxed);
    }

    /// Workers that are parked.
    pub(crate) fn parked(&self) -> usize {
        self.sleep.parked()
    }

    /// A slice has come back that took so long; `None`: nothing of it was run. For the reactor.
    pub(crate) fn came_back(&self, took: Option<Nanos>) {
        self.finished.store(self.finished.load(Relaxed) + 1, Relaxed);
        let Some(took) = took else { return };
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
        self.crew.set_target(target, &self.sleep)
    }

    /// Workers there should be.
    pub(crate) fn target(&self) -> usize {
        self.crew.target()
    }

    /// `count` missing workers are not going to be started after all, and the target is lowered to match. No job is lost:
    /// what they might have been counted on for is given to others.
    pub(crate) fn give_up(&self, count: usize) {
        self.crew.give_up(count);
        for _ in 0..count {
            self.sleep.stops_searching();
        }
        self.unpark_for_work();
    }

    /// Looks at every worker. `now` is in the time of their clock; who has had its job for `long` counts as lost.
    pub(crate) fn census(&self, now: Duration, long: Duration) -> Census {
        self.crew.census(now, long)
    }

    /// The jobs that workers have had for `long` or longer at `now`, in the time of their clock.
    #[cfg(feature = "admin")]
    pub(crate) fn old_jobs(&self, now: Duration, long: Duration) -> Vec<OldJob> {
        self.crew.old_jobs(now, long)
    }

    /// Lets every worker go: parked ones now, busy ones after their job. Jobs that nobody has taken stay.
    pub(crate) fn stop(&self) {
        self.crew.stop(&self.sleep);
    }

    /// The pool has been stopped or is going to be: its workers are waited for until `deadline`, if not less long already.
    pub(crate) fn leave_by(&self, deadline: Instant) {
        self.crew.leave_by(deadline);
    }

    /// Joins the workers of a stopped pool: blocks until all have left and ended, or [`Pool::wait_until_joined`] gave up.
    ///
    /// For the thread that starts workers, so that none is started meanwhile. Whoever joins cannot tell how long a thread takes
    /// to end that has left already, so that another thread looks at the time.
    pub(crate) fn join_workers(&self) {
        self.crew.join_all();
    }

    /// Blocks until [`Pool::join_workers`] is done, on another thread, or until the deadline. Returns who has not left, and
    /// whether all who have left have ended.
    pub(crate) fn wait_until_joined(&self) -> (Vec<String>, bool) {
        self.crew.wait_until_joined()
    }

    fn is_worth_unparking(&self) -> bool {
        self.waiting_work() > nanos(WORTH_UNPARKING)
    }

    /// How long one worker would take for the jobs that wait.
    fn waiting_work(&self) -> Nanos {
        self.mean_or_assumed().saturating_mul(self.waiting() as u64)
    }

    // For the workers.

    /// Jobs that a worker may take at once.
    fn at_once(&self) -> usize {
        whole((MAX_BATCH_TIME / self.mean_or_assumed()).clamp(1, MAX_BATCH))
    }

    fn begins_job(&self) {
        self.started.fetch_add(1, Relaxed);
    }

    /// The last worker that searched has found a job: unparks another if there is more that is worth it.
    fn hand_on_search(&self) {
        self.sleep.unpark_one(|_| self.is_worth_unparking() && !self.queue.is_empty());
    }

    /// A worker that others may have counted on is not available: unparks another if there is work.
    fn unpark_for_work(&self) {
        self.sleep.unpark_one(|_| !self.queue.is_empty());
    }
}

impl JobPool {
    /// A pool without workers.
    pub(crate) fn new() -> Arc<JobPool> {
        Arc::new(Pool::with(Deques::new()))
    }

    /// Takes out the jobs that nobody has taken, of a pool whose workers have left.
    pub(crate) fn take_left(&self) -> impl Iterator<Item = Box<Job>> {
        self.queue.take_injected()
    }

    /// Starts the thread of a worker that [`Pool::set_target`] found missing, with a stack of `stack_bytes`.
    ///
    /// # Errors
    /// The system refuses the thread, or the last of the address space would go with it. The worker is given up as by
    /// [`Pool::give_up`].
    pub(crate) fn start_worker<W: Wake>(
        self: &Arc<Self>,
        hub: &Arc<Hub<W>>,
        services: &Arc<[Served]>,
        stack_bytes: usize,
    ) -> io::Result<()> {
        let (id, state) = self.crew.enlist(hub.clock.now());
        let run = {
            let (pool, state) = (Arc::clone(self), Arc::clone(&state));
            let (hub, services) = (Arc::clone(hub), Arc::clone(services));
            move || {
                hub.adopt_thread();
                let slices = slice::Slices::new(hub, services, Arc::clone(&pool), id);
                worker::work(&*pool, id, &state, slices);
            }
        };
        match threads::spawn(crew::thread_name(id), stack_bytes, run) {
            Ok(thread) => {
                self.crew.has_started(&state, thread);
                Ok(())
            }
            Err(error) => {
                self.crew.strike(id);
                self.give_up(1);
                Err(error)
            }
        }
    }
}

fn whole(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl<Q> std::fmt::Debug for Pool<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("sleep", &self.sleep).field("crew", &self.crew).finish_non_exhaustive()
    }
}

// Under loom the primitives work in a model only.
#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
mod tests {
    use std::sync::{Mutex, mpsc};
    use std::thread;

    use super::*;
    use crate::clock::Clock;
    use crate::config::{ServiceSettings, StopFrom};
    use crate::job::{Endpoint, FreeJobs, JobEnd};
    use crate::mail::Mail;
    use crate::metrics::{Counters, PoolGauges, Stats};
    use crate::service::{Handler, Reply, Request};
    use crate::slots::{ConnId, Slots};

    const STACK_BYTES: usize = 256 << 10;

    struct NoReactor;

    impl Wake for NoReactor {
        fn wake(&self) {}
    }

    fn job(line: &[u8]) -> Box<Job> {
        let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
        let id = ConnId { slot: 0, generation: 0 };
        let mut job = FreeJobs::new(Slots::new(0)).take(id, &endpoint, endpoint.address.clone(), 0, 0);
        job.batch.push_line(line);
        job
    }

    /// A pool with what its workers need.
    struct Workshop {
        pool: Arc<JobPool>,
        hub: Arc<Hub<NoReactor>>,
        services: Arc<[Served]>,
    }

    impl Workshop {
        fn new(handler: impl Handler, clock: Clock) -> Workshop {
            let services =
                Arc::new([Served::new(Arc::new(handler), &ServiceSettings::of_lines(1024, StopFrom::None))]);
            Workshop { pool: JobPool::new(), hub: Hub::new(NoReactor, clock), services }
        }

        fn start(&self, workers: usize) {
            for _ in 0..self.pool.set_target(workers) {
                let started = self.pool.start_worker(&self.hub, &self.services, STACK_BYTES);
                started.expect("the system grants a thread");
            }
        }

        fn submit(&self, jobs: impl IntoIterator<Item = Box<Job>>) {
            self.pool.submit(&mut jobs.into_iter().collect(), self.hub.clock.now());
        }

        /// What has come back.
        #[expect(clippy::vec_box, reason = "it is how they come")]
        fn collect(&self, into: &mut Vec<Box<Job>>) {
            let mut mail = Vec::new();
            self.hub.replies.drain(&mut mail);
            into.extend(mail.into_iter().map(|mail| match mail {
                Mail::Job(job) => job,
                other => panic!("workers hand back jobs only: {other:?}"),
            }));
        }

        fn census(&self) -> Census {
            self.pool.census(Duration::ZERO, Duration::MAX)
        }

        /// Stops the pool and waits until every thread has ended.
        fn end(&self) {
            self.pool.leave_by(Instant::now() + Duration::from_secs(30));
            self.pool.stop();
            self.pool.join_workers();
            assert_eq!(self.pool.wait_until_joined(), (vec![], true));
        }
    }

    /// Waits until `condition` holds.
    fn eventually(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            thread::yield_now();
        }
    }

    /// A pool without workers whose handler blocks on the line `block` and passes every other on.
    struct Blocking {
        shop: Workshop,
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
            let shop = Workshop::new(handler, Clock::start());
            // Short enough that a worker takes several at once.
            shop.pool.came_back(Some(1_000));
            Blocking { shop, is_blocked, unblock, done }
        }

        fn next_done(&self) -> Vec<u8> {
            self.done.recv_timeout(Duration::from_secs(30)).unwrap()
        }

        /// One worker takes a batch of `jobs` and blocks on the first. Returns how many more it took.
        fn hoard(&self, jobs: usize) -> usize {
            let line = |number| if number == 0 { &b"block"[..] } else { b"hoarded" };
            self.shop.submit((0..jobs).map(|number| job(line(number))));
            self.shop.start(1);
            self.is_blocked.recv().unwrap();
            let taken = jobs - 1 - self.shop.pool.queue.injected();
            assert!(taken > 0, "this test is about a batch");
            taken
        }

        fn end(self) {
            self.unblock.send(()).unwrap();
            self.shop.end();
        }
    }

    #[test]
    fn what_a_worker_took_and_then_blocks_on_is_stolen_by_others() {
        let blocking = Blocking::new();
        blocking.hoard(16);
        blocking.shop.start(2);
        for _ in 0..15 {
            blocking.next_done();
        }
        blocking.end();
    }

    #[test]
    fn what_a_blocked_worker_took_does_not_wait_until_the_injector_is_empty() {
        let blocking = Blocking::new();
        let hoarded = blocking.hoard(16);
        blocking.shop.submit((0..5_000).map(|_| job(b"new")));
        blocking.shop.start(2);
        let order: Vec<_> = (0..5_015).map(|_| blocking.next_done()).collect();
        let last = order.iter().rposition(|line| line == b"hoarded").unwrap();
        assert!(last < 2_000, "the last of {hoarded} came after {last} others");
        blocking.end();
    }

    #[test]
    fn a_stuck_worker_is_not_counted_on_again() {
        let blocking = Blocking::new();
        let shop = &blocking.shop;
        let one_parks = || eventually("one parks", || shop.pool.parked() == 1);
        shop.submit([job(b"block")]);
        shop.start(1);
        blocking.is_blocked.recv().unwrap();
        shop.start(2);
        one_parks();
        shop.submit([job(b"pass")]);
        // Too little work to unpark for beside one that is awake, until that one turns out to be stuck.
        assert!(shop.pool.work_waits(false) && shop.pool.work_waits(true), "the tuner has to look");
        shop.pool.nudge();
        blocking.next_done();
        for _ in 0..3 {
            one_parks();
            shop.submit([job(b"pass")]);
            blocking.next_done();
        }
        blocking.end();
    }

    /// A clock on which every second reading lies 5 µs before the one before it.
    fn steps_back() -> Nanos {
        static READINGS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let reading = READINGS.fetch_add(1, Relaxed);
        // Far from zero, as the system's clock is.
        1_000_000_000 + 1_000 * reading - 6_000 * (reading % 2)
    }

    #[test]
    fn a_clock_that_steps_back_makes_no_request_seem_long() {
        let shop = Workshop::new(|_: &Request<'_>, _: &mut Reply<'_>| (), Clock::reading(steps_back));
        shop.start(2);
        let mut back = Vec::new();
        for count in 1..=100 {
            // Several requests each, some of which are timed together.
            let mut several = job(b"1");
            several.accepted_at = shop.hub.clock.now();
            (2..=7).for_each(|_| several.batch.push_line(b"n"));
            shop.submit([several]);
            let deadline = Instant::now() + Duration::from_secs(30);
            while back.len() < count {
                assert!(Instant::now() < deadline, "the {count}th job does not come back");
                shop.collect(&mut back);
                thread::yield_now();
            }
        }
        for job in &back {
            // A reading for each step of a slice; all of them together are some microseconds.
            assert!(job.took < 1_000_000, "{}", job.took);
            shop.pool.came_back(Some(job.took));
        }
        assert!(shop.pool.time_per_job() < Duration::from_millis(1), "{:?}", shop.pool.time_per_job());
        assert_eq!((shop.pool.out(), shop.pool.waiting()), (0, 0));
        let stats = Stats::new(
            Duration::ZERO,
            [].into_iter(),
            &Counters::default(),
            &PoolGauges::default(),
            &shop.hub.timings,
        );
        let (wait, service) = (stats.queue_wait_seconds, stats.service_seconds);
        assert_eq!((wait.count, service.count), (700, 700));
        assert!(service.sum < 0.1 && service.max < 0.001, "{service:?}");
        assert!(wait.sum < 0.1 && wait.max < 0.001, "{wait:?}");
        shop.end();
    }

    /// A clock that fails at its fifth reading: a bug of ours in the middle of a job.
    fn fails_once() -> Nanos {
        static READINGS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        assert_ne!(READINGS.fetch_add(1, Relaxed), 5, "a bug, on purpose");
        1_000_000_000
    }

    #[test]
    fn a_worker_that_unwinds_by_a_bug_of_ours_leaves_every_count_right() {
        let shop = Workshop::new(|_: &Request<'_>, _: &mut Reply<'_>| (), Clock::reading(fails_once));
        // The start reads it once, each worker and each submission once more.
        shop.start(2);
        eventually("both park", || shop.pool.parked() == 2);
        shop.submit([job(b"broken off")]);
        let mut back = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(30);
        while back.is_empty() {
            assert!(Instant::now() < deadline, "the job does not come back");
            shop.collect(&mut back);
        }
        let batch = &back[0].batch;
        assert_eq!((back[0].end, batch.handled, batch.reply_ends.len()), (JobEnd::Panicked, 1, 0));
        eventually("it is gone", || {
            shop.census() == Census { live: 1, last_taken: shop.census().last_taken, ..Census::default() }
        });
        assert_eq!(shop.pool.target(), 1, "the tuner misses it");
        eventually("nobody counts as searching", || {
            shop.pool.parked() == 1 && !shop.pool.work_waits(false) && shop.pool.sleep.searching() == 0
        });
        // The other one goes on.
        shop.submit([job(b"next")]);
        eventually("the next job is taken", || shop.pool.waiting() == 0);
        shop.end();
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
        let shop = Workshop::new(handler, Clock::start());
        shop.start(4);
        shop.submit([job(b"1"), job(b"2")]);
        shop.pool.nudge();
        has_begun.recv().unwrap();
        has_begun.recv().unwrap();
        shop.pool.set_target(1);
        assert!(shop.census().live >= 2, "the busy ones still count");
        unblock.send(()).unwrap();
        unblock.send(()).unwrap();
        eventually("one is left", || shop.census().live == 1);
        shop.end();
    }
}

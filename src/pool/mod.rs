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
pub(crate) use slice::open_or_close;

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

    /// Workers that run or are being started.
    pub(crate) fn live(&self) -> usize {
        self.crew.live()
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
mod tests;

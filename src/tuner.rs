//! The watcher of the pool: looks at clock and counters, asks the controller, applies its verdict, and nudges workers.
//!
//! A thread of its own, so that neither starting threads nor looking at them holds up the reactor. The reactor says only that
//! work waits (`watch`). Then the tuner looks, again while work waits, and as often as the controller asks for. It sleeps without
//! a timeout while the pool is at its minimum and nothing waits, and hears nothing of work that nothing can be done about.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::getpid;
use rustix::thread::sched_getaffinity;

use crate::config::PoolLimits;
use crate::controller::{self, Decision, Memory, Policy, Sample};
use crate::error::Error;
use crate::hub::Hub;
use crate::pool::{Census, Doer, JobPool};
use crate::replies::Wake;
use crate::saturation::{Change, LOOK_EVERY, Saturation};
use crate::service::Served;
use crate::sync::lock_std;
use crate::watch::Watch;

/// Decisions that are remembered; the oldest is forgotten for a new one.
pub const MAX_DECISIONS: usize = 256;
/// Busy threads whose state is read for one sample. A read costs about 15 µs; the share of so many is good enough.
const MAX_STATES_READ: usize = 16;
/// So long after a look at which work waited the tuner does not listen to the reactor: under load work waits at every moment, and
/// somebody takes it. What came meanwhile is seen at its end.
const DEAF: Duration = Duration::from_millis(2);
/// Work that has waited so long beside parked workers was left to one that is stuck: another is unparked.
const NUDGE_AFTER: Duration = Duration::from_millis(1);
/// How often the CPUs that this process may use are counted anew, if a decision is due: it takes some 50 µs.
const COUNT_CORES_EVERY: Duration = Duration::from_secs(1);
/// First pause after the system refused a thread; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_millis(800);

/// The seam between the planes: what the reactor tells the tuner, and what the tuner decided.
#[derive(Debug)]
pub(crate) struct Tuner {
    watch: Watch,
    orders: Mutex<Orders>,
    news: Condvar,
    log: Mutex<Log>,
    refused: AtomicU64,
    /// CPUs that the pool reckons with. Written by the tuner. Relaxed: a statistic.
    cores: AtomicUsize,
}

#[derive(Debug)]
struct Orders {
    limits: PoolLimits,
    policy: Policy,
    poked: bool,
    stop: bool,
}

#[derive(Debug, Default)]
struct Log {
    ring: VecDeque<Decision>,
    grown: u64,
    shrunk: u64,
}

/// When the tuner looks next.
#[derive(Clone, Copy, Debug, Default)]
struct Next {
    /// By itself. `None`: only if there are news.
    check_at: Option<Instant>,
    /// It does not listen to the reactor before.
    deaf_until: Option<Instant>,
    /// The pool is as large as it may be.
    full: bool,
}

/// The reactor found the tuner asleep, and work that waits.
impl Wake for Tuner {
    fn wake(&self) {
        lock_std(&self.orders).poked = true;
        self.news.notify_one();
    }
}

impl Tuner {
    pub(crate) fn new(limits: PoolLimits, policy: Policy) -> Tuner {
        Tuner {
            watch: Watch::new(),
            orders: Mutex::new(Orders { limits, policy, poked: false, stop: false }),
            news: Condvar::new(),
            log: Mutex::default(),
            refused: AtomicU64::new(0),
            cores: AtomicUsize::new(count_cores()),
        }
    }

    /// For the reactor, after it has submitted: work may wait.
    pub(crate) fn look_at(&self, pool: &JobPool) {
        self.watch.tell(|full| pool.work_waits(full), self);
    }

    /// Changes the limits, to be obeyed at once.
    pub(crate) fn set_limits(&self, limits: PoolLimits) -> Result<(), Error> {
        let policy = limits.check()?;
        let mut orders = lock_std(&self.orders);
        (orders.limits, orders.policy, orders.poked) = (limits, policy, true);
        self.news.notify_one();
        Ok(())
    }

    pub(crate) fn limits(&self) -> PoolLimits {
        lock_std(&self.orders).limits
    }

    /// Ends the tuner's thread.
    pub(crate) fn stop(&self) {
        lock_std(&self.orders).stop = true;
        self.news.notify_one();
    }

    /// CPUs that the pool reckons with.
    pub(crate) fn cores(&self) -> usize {
        self.cores.load(Relaxed)
    }

    /// How often the pool grew and shrank, and how many threads were refused.
    pub(crate) fn resizes(&self) -> (u64, u64, u64) {
        let log = lock_std(&self.log);
        (log.grown, log.shrunk, self.refused.load(Relaxed))
    }

    /// The last decisions, the oldest first.
    pub(crate) fn decisions(&self) -> Vec<Decision> {
        lock_std(&self.log).ring.iter().copied().collect()
    }

    /// The tuner's thread: runs until [`Tuner::stop`], and then until the workers of the stopped pool, which it has started with
    /// stacks of `stack_bytes`, have ended or are waited for no longer.
    pub(crate) fn run<W: Wake>(
        &self,
        pool: &Arc<JobPool>,
        hub: &Arc<Hub<W>>,
        services: &Arc<[Served]>,
        stack_bytes: usize,
    ) {
        let now = || Duration::from_nanos(hub.clock.now());
        let start_worker = || pool.start_worker(hub, services, stack_bytes);
        let mut memory = Memory::default();
        let (mut grown_at, mut cores_counted_at) = (Duration::ZERO, now());
        let mut refusals = Refusals::default();
        let mut next = Next::default();
        let mut saturation = Saturation::default();
        while let Some((policy, by_news)) = self.wait(next, |full| pool.work_waits(full)) {
            let at = now();
            pool.set_max(policy.max());
            if at.saturating_sub(cores_counted_at) >= COUNT_CORES_EVERY {
                cores_counted_at = at;
                self.cores.store(count_cores(), Relaxed);
            }
            let sample = self.sample(&policy, &memory, pool, at, grown_at);
            if let Some(change) = saturation.look(at, sample.oldest_wait, || hub.timings.waits()) {
                tell(&change, &sample, &policy);
            }
            let (remembered, verdict) = controller::decide(&policy, memory, &sample);
            memory = remembered;
            let (from, mut to) = (sample.workers, verdict.target);
            if to > from && refusals.pause_left(at).is_some() {
                to = from;
            }
            if to != from {
                let missing = pool.set_target(to);
                to = self.start(pool, missing, at, &mut refusals, start_worker);
                if to > from {
                    grown_at = now();
                }
            }
            // A pool that stops has no size of its own any more.
            if to != from && to > 0 {
                self.record(Decision {
                    at,
                    demand: verdict.demand,
                    waiting: sample.waiting,
                    busy: sample.busy,
                    blocked: sample.blocked,
                    from,
                    to,
                    reason: verdict.reason,
                });
            }
            let nudge = nudge(pool, &sample);
            let pause = refusals.pause_left(at);
            let check_after = match pause {
                // While the system refuses threads there is nothing to do for work that waits; at the end of the pause there is.
                Some(pause) if verdict.target > to => Some(pause),
                pause => [verdict.check_after, pause, nudge].into_iter().flatten().min(),
            };
            let instant = |after: Duration| hub.clock.epoch() + at + after;
            let full = to >= policy.max();
            // Nothing can be done about work that waits where the pool is full. It is only looked whether it waits for long, as long as
            // there is any; then the first that comes is news.
            let watch = saturation.look_after(sample.waiting, sample.oldest_wait);
            let watch = watch.or((full && (by_news || pool.out() > 0)).then_some(LOOK_EVERY));
            let check_after = [check_after, watch].into_iter().flatten().min();
            let full = full && check_after.is_some();
            // Where nothing waits the next word is news, and where nothing can be done there is none.
            let deaf = (sample.waiting > 0 && (!full || pool.parked() > 0)).then_some(DEAF);
            next =
                Next { check_at: check_after.map(instant), deaf_until: pause.max(deaf).map(instant), full };
        }
        pool.join_workers();
    }

    /// Blocks until there is a reason to look: new limits, the reactor's word, or `next.check_at`. `None`: stop.
    fn wait(&self, next: Next, waits: impl Fn(bool) -> bool) -> Option<(Policy, bool)> {
        let mut orders = lock_std(&self.orders);
        loop {
            self.watch.wakes();
            if orders.stop {
                return None;
            }
            if std::mem::take(&mut orders.poked) {
                return Some((orders.policy, true));
            }
            let rest = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(Instant::now()));
            let due = rest(next.check_at);
            let deaf = rest(next.deaf_until).filter(|rest| !rest.is_zero());
            let is_due = due.is_some_and(|due| due.is_zero());
            if is_due || deaf.is_none() && !self.watch.try_sleep(next.full, &waits) {
                return Some((orders.policy, !is_due));
            }
            orders = match due.into_iter().chain(deaf).min() {
                None => self.news.wait(orders).unwrap_or_else(PoisonError::into_inner),
                Some(rest) => self.news.wait_timeout(orders, rest).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn sample(
        &self,
        policy: &Policy,
        memory: &Memory,
        pool: &JobPool,
        now: Duration,
        grown_at: Duration,
    ) -> Sample {
        let mean = pool.known_time_per_job();
        let Census { busy, last_taken, old, lost, oldest_age, declared, doers, .. } =
            pool.census(now, Policy::lost_after(mean));
        let mut sample = Sample {
            now,
            workers: pool.target(),
            waiting: pool.waiting(),
            oldest_wait: pool
                .waiting_since()
                .map_or(Duration::ZERO, |since| now.saturating_sub(Duration::from_nanos(since))),
            busy,
            blocked: None,
            cores: self.cores(),
            old,
            lost,
            oldest_age,
            mean,
            peak: pool.take_peak(),
            stalled: now.saturating_sub(last_taken),
            grown_at,
        };
        if policy.wants_blocked(memory, &sample) {
            let others = blocked_among(&doers);
            // Where the system does not say, a handler that declares some has declared all: the others compute.
            let known = others.is_some() || declared > 0;
            sample.blocked = known.then(|| declared + others.unwrap_or(0));
        }
        sample
    }

    /// Starts `missing` workers. Returns how many the pool has then.
    fn start(
        &self,
        pool: &JobPool,
        missing: usize,
        now: Duration,
        refusals: &mut Refusals,
        start_worker: impl Fn() -> std::io::Result<()>,
    ) -> usize {
        for started in 0..missing {
            if let Err(error) = start_worker() {
                let rest = missing - started - 1;
                pool.give_up(rest);
                self.refused.fetch_add(1, Relaxed);
                refusals.refused(now);
                tracing::warn!(%error, missing = rest + 1, "the system refuses threads; the pool stays smaller for now");
                return pool.target();
            }
        }
        if missing > 0 {
            refusals.clear();
        }
        pool.target()
    }

    fn record(&self, decision: Decision) {
        let Decision { at, demand, waiting, busy, blocked, from, to, reason } = decision;
        {
            let mut log = lock_std(&self.log);
            *(if to > from { &mut log.grown } else { &mut log.shrunk }) += 1;
            if log.ring.len() == MAX_DECISIONS {
                log.ring.pop_front();
            }
            log.ring.push_back(decision);
        }
        tracing::debug!(
            ?at,
            demand,
            waiting,
            busy,
            blocked,
            from,
            to,
            reason = reason.as_str(),
            "pool resized"
        );
    }
}

/// Tells that requests wait for long, or do not any more.
fn tell(change: &Change, sample: &Sample, policy: &Policy) {
    match change {
        Change::Saturated => tracing::warn!(
            state = "saturated",
            oldest_wait_seconds = sample.oldest_wait.as_secs_f64(),
            waiting = sample.waiting,
            busy = sample.busy,
            workers = sample.workers,
            max = policy.max(),
            "saturated: requests wait for a worker"
        ),
        Change::Recovered { after, waited, worst } => {
            let (seconds, worst_seconds) = (after.as_secs_f64(), worst.as_secs_f64());
            tracing::info!(
                state = "recovered",
                seconds,
                waited,
                worst_seconds,
                "recovered after {seconds:.1} s, {waited} requests waited, worst {worst_seconds:.1} s"
            );
        }
    }
}

/// Growing pauses between attempts while the system refuses threads.
#[derive(Debug, Default)]
struct Refusals {
    until: Option<Duration>,
    pause: Duration,
}

impl Refusals {
    fn refused(&mut self, now: Duration) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
        self.until = Some(now + self.pause);
    }

    fn clear(&mut self) {
        *self = Refusals::default();
    }

    fn pause_left(&self, now: Duration) -> Option<Duration> {
        self.until?.checked_sub(now).filter(|left| !left.is_zero())
    }
}

/// Unparks a worker for work that was left to one that is stuck. Returns when to look whether there is such work.
fn nudge(pool: &JobPool, sample: &Sample) -> Option<Duration> {
    if sample.waiting == 0 || pool.parked() == 0 {
        return None;
    }
    if sample.oldest_wait < NUDGE_AFTER {
        return Some(NUDGE_AFTER - sample.oldest_wait);
    }
    pool.nudge();
    Some(NUDGE_AFTER)
}

/// CPUs that this process may use now: by the affinity of its first thread, and of this one, which those that it starts inherit;
/// and by the quota of its control group.
fn count_cores() -> usize {
    let own = thread::available_parallelism().map_or(1, usize::from);
    let first = sched_getaffinity(Some(getpid())).map_or(own, |cpus| cpus.count() as usize);
    own.min(first).max(1)
}

/// How many of those that do the jobs are blocked, by the state letter in their `stat`: not `R` means not running and not
/// waiting for a CPU. `None` where the system does not tell. With many threads a part of them stands for all.
fn blocked_among(doers: &[Doer]) -> Option<usize> {
    let step = doers.len().div_ceil(MAX_STATES_READ).max(1);
    let (mut read, mut blocked) = (0, 0);
    for doer in doers.iter().step_by(step) {
        // A thread that ended meanwhile has no state; it is left out.
        let path = match doer {
            Doer::Thread(id) => format!("/proc/self/task/{id}/stat"),
            Doer::Process(id) => format!("/proc/{id}/stat"),
        };
        let Ok(stat) = std::fs::read(path) else { continue };
        // The name of the thread, in parentheses, may hold anything.
        let Some(name_end) = stat.iter().rposition(|byte| *byte == b')') else { continue };
        read += 1;
        blocked += usize::from(stat.get(name_end + 2) != Some(&b'R'));
    }
    (read > 0).then(|| blocked * doers.len() / read)
}

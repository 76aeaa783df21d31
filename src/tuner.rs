//! Reads clock and counters, asks the controller, applies its verdict to the pool.
//!
//! A thread of its own, so that neither starting threads nor looking at them holds up the reactor. It sleeps without a
//! timeout while the pool is at its minimum and nothing waits; the reactor pokes it when demand rises above what the
//! controller wants to hear of, or when work makes no progress.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::PoolLimits;
use crate::controller::{self, Decision, Memory, Policy, Sample};
use crate::error::Error;
use crate::pool::{Census, Pool};
use crate::replies::Wake;
use crate::service::Service;
use crate::sync::lock_std;

/// Decisions that are remembered; the oldest is forgotten for a new one.
pub const MAX_DECISIONS: usize = 256;
/// Busy threads whose state is read for one sample. A read costs about 15 µs; the share of so many is good enough.
const MAX_STATES_READ: usize = 16;
/// First pause after the system refused a thread; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_millis(800);

/// The seam between the planes: what the reactor shows the tuner, and what the tuner decided.
#[derive(Debug)]
pub(crate) struct Tuner {
    /// Present weighed demand, by the reactor. Relaxed: a statistic.
    demand: AtomicUsize,
    /// Highest since the last sample. Raised by the reactor, reset by the tuner.
    peak: AtomicUsize,
    /// Demand above which the reactor pokes. Written by the tuner; reading an old one costs a poke or delays it by a turn.
    attention: AtomicUsize,
    orders: Mutex<Orders>,
    news: Condvar,
    log: Mutex<Log>,
    refused: AtomicU64,
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

impl Tuner {
    pub(crate) fn new(limits: PoolLimits, policy: Policy) -> Tuner {
        Tuner {
            demand: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            attention: AtomicUsize::new(policy.attention(policy.min())),
            orders: Mutex::new(Orders { limits, policy, poked: false, stop: false }),
            news: Condvar::new(),
            log: Mutex::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// The reactor shows the jobs that wait or run. Cheap while demand stays where it was.
    pub(crate) fn observe(&self, jobs: usize, time_per_job: Duration) {
        let demand = controller::weigh(jobs, time_per_job);
        self.demand.store(demand, Relaxed);
        if demand > self.peak.load(Relaxed) {
            self.peak.store(demand, Relaxed);
        }
        if demand > self.attention.load(Relaxed) {
            // Until it has looked, one poke is enough.
            self.attention.store(usize::MAX, Relaxed);
            self.poke();
        }
    }

    /// Asks for a look at the pool now.
    pub(crate) fn poke(&self) {
        lock_std(&self.orders).poked = true;
        self.news.notify_one();
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

    pub(crate) fn demand(&self) -> usize {
        self.demand.load(Relaxed)
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

    /// The tuner's thread: runs until [`Tuner::stop`], and then until the workers of the stopped pool, which it has started,
    /// have ended or are waited for no longer.
    pub(crate) fn run<W: Wake>(&self, pool: &Arc<Pool<W>>, services: &Arc<[Service]>, epoch: Instant) {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut memory = Memory::default();
        let mut check_at = None;
        let mut refusals = Refusals::default();
        while let Some(policy) = self.wait(check_at) {
            let now = epoch.elapsed();
            let sample = self.sample(&policy, pool, now, cores);
            let (remembered, verdict) = controller::decide(&policy, memory, &sample);
            memory = remembered;
            let (from, mut to) = (sample.workers, verdict.target);
            if to > from && refusals.pause_left(now).is_some() {
                to = from;
            }
            if to != from {
                let missing = pool.set_target(to);
                to = self.start(pool, services, missing, now, &mut refusals);
            }
            // A pool that stops has no size of its own any more.
            if to != from && to > 0 {
                self.record(Decision {
                    at: now,
                    demand: verdict.demand,
                    waiting: sample.waiting,
                    busy: sample.busy,
                    blocked: sample.blocked,
                    from,
                    to,
                    reason: verdict.reason,
                });
            }
            let pause = refusals.pause_left(now);
            // While the system refuses threads there is nothing to do for work that waits; at the end of the pause there is.
            let check_after = match pause {
                Some(pause) if verdict.target > to => Some(pause),
                pause => [verdict.check_after, pause].into_iter().flatten().min(),
            };
            let held = verdict.reason.holds() || pause.is_some();
            self.attention.store(if held { usize::MAX } else { policy.attention(to) }, Relaxed);
            check_at = check_after.map(|after| epoch + now + after);
        }
        pool.join_workers();
    }

    /// Blocks until there is a reason to look: a poke, or `check_at`. `None`: stop.
    fn wait(&self, check_at: Option<Instant>) -> Option<Policy> {
        let mut orders = lock_std(&self.orders);
        loop {
            if orders.stop {
                return None;
            }
            if std::mem::take(&mut orders.poked) {
                return Some(orders.policy);
            }
            orders = match check_at {
                None => self.news.wait(orders).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let Some(rest) = at.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
                    else {
                        return Some(orders.policy);
                    };
                    self.news.wait_timeout(orders, rest).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn sample<W: Wake>(&self, policy: &Policy, pool: &Pool<W>, now: Duration, cores: usize) -> Sample {
        let Census { busy, last_taken, old, median_age, declared, busy_tids, .. } = pool.census(now);
        let mut sample = Sample {
            now,
            workers: pool.target(),
            waiting: pool.waiting(),
            busy,
            blocked: None,
            cores,
            old,
            // Of a first burst nothing is known but how long it has been running.
            time_per_job: pool.known_time_per_job().unwrap_or(median_age),
            peak: self.peak.swap(self.demand(), Relaxed),
            stalled: now.saturating_sub(last_taken),
        };
        if policy.considers_growth(&sample) {
            let others = blocked_among(&busy_tids);
            // Where the system does not say, a handler that declares some has declared all: the others compute.
            let known = others.is_some() || declared > 0;
            sample.blocked = known.then(|| declared + others.unwrap_or(0));
        }
        sample
    }

    /// Starts `missing` workers. Returns how many the pool has then.
    fn start<W: Wake>(
        &self,
        pool: &Arc<Pool<W>>,
        services: &Arc<[Service]>,
        missing: usize,
        now: Duration,
        refusals: &mut Refusals,
    ) -> usize {
        for started in 0..missing {
            if let Err(error) = pool.start_worker(services) {
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

/// How many of the busy threads are blocked, by the state letter in their `stat`: not `R` means not running and not
/// waiting for a CPU. `None` where the system does not tell. With many threads a part of them stands for all.
fn blocked_among(tids: &[u32]) -> Option<usize> {
    let step = tids.len().div_ceil(MAX_STATES_READ).max(1);
    let (mut read, mut blocked) = (0, 0);
    for tid in tids.iter().step_by(step) {
        // A thread that ended meanwhile has no state; it is left out.
        let Ok(stat) = std::fs::read(format!("/proc/self/task/{tid}/stat")) else { continue };
        // The name of the thread, in parentheses, may hold anything.
        let Some(name_end) = stat.iter().rposition(|byte| *byte == b')') else { continue };
        read += 1;
        blocked += usize::from(stat.get(name_end + 2) != Some(&b'R'));
    }
    (read > 0).then(|| blocked * tids.len() / read)
}

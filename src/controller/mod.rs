//! How many workers the pool should have: a pure rule, [`decide`], from plain data to plain data.
//!
//! ```text
//! t      = mean time of a finished job; until there is one, the age of the oldest that runs; where every worker is busy
//!          and none has taken a job for longer than that: for how long
//! weigh  = jobs that have run for 1 ms + ceil((the other jobs, waiting or running) · t / 1 ms), never more than jobs
//! useful = cores / (1 − β), at least blocked + cores      β: share of the busy workers that is blocked, looked at when
//!          growth is considered and known for a second; for growth, not known means that all compute
//! demand = min(weigh, useful)
//! grow     demand > workers + tolerance                          to demand, and what comes of the same burst within 10 ms
//! valve    every worker is busy and the oldest waiting job, since it came and since the pool last grew, is older than P
//!                                                                to max(demand, workers + tolerance + 1), at most useful
//!          P = 4 × mean of finished jobs, within 2 ms to 100 ms; 2 ms until one has finished
//!          where more are of no use: P = 100 ms, doubling to 6.4 s with each grant, none taken for as long: one worker
//! shrink   highest demand within keep-alive < workers − tolerance  to that
//! ```
//!
//! **Tolerance is inertia**: whatever grows the pool, but one worker for fairness among computations, grows it by more than
//! the tolerance. **Blocked workers are replaced, runnable ones are not** (B. Goetz, *Java Concurrency in Practice*, 8.2:
//! `N = cores × (1 + wait/compute)`). Rows of the elasticity scorecard that need more than the first version of this rule had:
//! none taken for as long (12); the highest number of jobs between two looks (2); a worker that has had its job for twice
//! what jobs take is a reason to look at β at once (14, 26).
//!
//! No clock, no thread, no I/O: `tuner` takes samples and applies verdicts, and `simulate` runs the same function in
//! simulated time. Held by `controller_props` and `controller_sim` in `tests/it`.

mod sample;
#[cfg(test)]
mod tests;
mod window;

use std::time::Duration;

#[cfg(all(feature = "serde", feature = "simulate"))]
pub(crate) use sample::seconds;
pub use sample::{Decision, Policy, Reason, Sample, Verdict, weigh};
use window::Window;

/// Demand is the number of workers that would finish the present work within this time.
pub const DRAIN_TARGET: Duration = Duration::from_millis(1);
/// The least that waiting work waits for, and what it waits for until a job has finished, before the valve opens.
pub const MIN_PATIENCE: Duration = Duration::from_millis(2);
/// The most, however long jobs take. Also the first time for which computations wait.
pub const MAX_PATIENCE: Duration = Duration::from_millis(100);
/// Work that comes so soon after the pool has grown belongs to the burst that it has grown for: 64 clients need half a millisecond
/// to send where the machine is idle, some where it is not.
const BURST: Duration = Duration::from_millis(10);
/// How many times the mean time of a job work waits for: a queue of several turns is what inertia means.
const PATIENCE_JOBS: u32 = 4;
/// The longest that computations wait. It begins anew once none has waited so long that the pool grew, for a window and this.
pub const MAX_CPU_PATIENCE: Duration = Duration::from_millis(6400);
/// How soon it is looked again where something is not known yet, or growth was held back as more workers would be of no use. The
/// latter doubles up to 256 times this, as a look at the workers' states costs some 15 µs for each.
const HOLD: Duration = Duration::from_micros(250);
/// How soon it is looked again while work waits and every worker is busy: whether one was lost (scorecard, rows 14 and 26).
const LOOK: Duration = Duration::from_millis(2);
/// How soon while nothing could be done: only demand that falls is of interest then.
const LOOK_AT_MAX: Duration = Duration::from_millis(150);
/// What was learned about blocking is forgotten when it is older than this: another kind of load may have come.
const FORGET_BLOCKING: Duration = Duration::from_secs(1);

impl Policy {
    /// How long work may wait while some worker is blocked: see the head of this module.
    pub fn patience(mean: Option<Duration>) -> Duration {
        mean.map_or(MIN_PATIENCE, |mean| mean.saturating_mul(PATIENCE_JOBS).clamp(MIN_PATIENCE, MAX_PATIENCE))
    }

    /// A worker that has had its job for so long is worth a look whether it is blocked.
    pub fn lost_after(mean: Option<Duration>) -> Duration {
        mean.map_or(DRAIN_TARGET, |mean| mean.saturating_mul(2).clamp(DRAIN_TARGET, MAX_PATIENCE))
    }

    /// Whether the sample is worth a look at how many of the busy workers are blocked: more may be wanted than there are. At
    /// the maximum too: whether the pool has to stay there depends on it.
    pub fn wants_blocked(&self, memory: &Memory, sample: &Sample) -> bool {
        let band = memory.band(self, sample).min(self.max.saturating_sub(1));
        let overdue = sample.starved() && memory.waited(sample) >= Policy::patience(sample.mean);
        let news = sample.now >= memory.hold_until || sample.lost > memory.lost;
        (overdue || sample.weighed() > band) && news
    }
}

/// What the controller remembers from one sample to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    window: Window,
    /// Share of the busy workers that is blocked, smoothed, and when it was last looked at.
    blocking: Option<(f64, Duration)>,
    /// Times in a row that growth was held back, and until when it is not considered again.
    holds: u32,
    hold_until: Duration,
    /// [`Sample::lost`] of the sample before.
    lost: usize,
    /// What the pool had before it last grew, and when that was. The growth goes on for work of the same burst, which some looks may
    /// be needed to see all of (row 1).
    grew: Option<(usize, Duration)>,
    /// How often in this time of need the pool grew although more workers were of no use, and when last.
    cpu_grants: u32,
    cpu_granted_at: Duration,
}

impl Memory {
    /// Takes in what the sample says about blocking.
    fn learn(&mut self, sample: &Sample) {
        let Some(blocked) = sample.blocked.filter(|_| sample.busy > 0) else { return };
        let share = blocked.min(sample.busy) as f64 / sample.busy as f64;
        let smoothed = match self.blocking {
            Some((old, at)) if sample.now.saturating_sub(at) < FORGET_BLOCKING => f64::midpoint(old, share),
            _ => share,
        };
        self.blocking = Some((smoothed, sample.now));
    }

    /// How long work waits that the workers granted last have not taken.
    fn waited(&self, sample: &Sample) -> Duration {
        sample.oldest_wait.min(sample.now.saturating_sub(sample.grown_at))
    }

    /// Whether the growth of last time is still going on: from how many workers.
    fn grows_from(&self, sample: &Sample) -> Option<usize> {
        let (from, at) = self.grew?;
        let came = sample.now.saturating_sub(sample.oldest_wait);
        (sample.waiting > 0 && came < at + BURST).then_some(from)
    }

    /// The pool grows for a demand above this.
    fn band(&self, policy: &Policy, sample: &Sample) -> usize {
        let from = self.grows_from(sample).unwrap_or(sample.workers);
        from.saturating_add(policy.tolerance).max(sample.workers)
    }

    /// The most workers that are of use: `cores / (1 - β)`, and as many as are blocked with the cores besides. `None`: not known.
    fn useful(&self, sample: &Sample) -> Option<usize> {
        let known = self.blocking.filter(|(_, at)| sample.now.saturating_sub(*at) < FORGET_BLOCKING);
        let (share, _) = known?;
        // A float above the range of the integer becomes its maximum: all blocked, no bound.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and saturates"
        )]
        let useful = (sample.cores as f64 / (1.0 - share)).ceil() as usize;
        Some(useful.max(sample.blocked.unwrap_or(0) + sample.cores))
    }

    /// How long computations wait for one worker more.
    fn cpu_patience(&mut self, policy: &Policy, now: Duration) -> Duration {
        if now.saturating_sub(self.cpu_granted_at) >= policy.keep_alive + MAX_CPU_PATIENCE * 2 {
            self.cpu_grants = 0;
        }
        MAX_PATIENCE.saturating_mul(1 << self.cpu_grants.min(16)).min(MAX_CPU_PATIENCE)
    }
}

/// The controller: how many workers, why, and when to ask again.
pub fn decide(policy: &Policy, mut memory: Memory, sample: &Sample) -> (Memory, Verdict) {
    let Sample { now, workers, .. } = *sample;
    let within = |workers: usize| workers.clamp(policy.min, policy.max);
    let band = memory.band(policy, sample);
    memory.learn(sample);
    let useful = memory.useful(sample);
    let weighed = sample.weighed();
    let demand = weighed.min(useful.unwrap_or(usize::MAX));
    let peak = weigh(sample.peak, sample.mean.unwrap_or(sample.oldest_age));
    memory.window.record(now, policy.keep_alive, demand.max(peak.min(useful.unwrap_or(usize::MAX))));
    let highest = memory.window.highest();

    // What is not known is taken for computing where it would grow the pool.
    let useful = useful.unwrap_or(sample.cores);
    let wanted = weighed.min(useful);
    // Busy workers above the target are not going to take anything more.
    let there = workers.max(sample.busy);
    let helps = useful > there;
    let (patience, waited) = if helps {
        (Policy::patience(sample.mean), memory.waited(sample))
    } else {
        (memory.cpu_patience(policy, now), memory.waited(sample).min(sample.stalled))
    };
    let overdue = sample.starved() && waited >= patience;

    let (target, reason) = if workers != within(workers) {
        (within(workers), Reason::Limits)
    } else if wanted > band && workers < policy.max {
        (within(wanted), Reason::Demand)
    } else if overdue && workers < policy.max {
        let more = if helps {
            wanted.max(there.saturating_add(policy.tolerance).saturating_add(1)).min(useful)
        } else {
            there + 1
        };
        (within(more), Reason::Valve)
    } else if workers > within(highest) && workers > highest.saturating_add(policy.tolerance) {
        (within(highest), Reason::Surplus)
    } else if workers < policy.max && weighed > band {
        (workers, Reason::CpuBound)
    } else {
        (workers, Reason::Steady)
    };
    if target > workers {
        // The new workers are not surplus before a window has passed without need of them.
        memory.window.record(now, policy.keep_alive, target);
        if memory.grows_from(sample).is_none() {
            memory.grew = Some((workers, now));
        }
        if !helps {
            (memory.cpu_grants, memory.cpu_granted_at) = (memory.cpu_grants.saturating_add(1), now);
        }
    }
    let held = target == workers && !helps && (weighed > band || sample.blocked.is_some());
    if !held {
        (memory.holds, memory.hold_until) = (0, now);
    } else if now >= memory.hold_until {
        memory.hold_until = now + HOLD * (1 << memory.holds.min(8));
        memory.holds = memory.holds.saturating_add(1);
    }
    memory.lost = sample.lost;

    // A pool above its minimum may have to shrink without any traffic, until nothing is left to be forgotten. The earliest
    // counts.
    let shrinks = target > policy.min && memory.window.highest() > 0;
    let shrink = shrinks.then(|| memory.window.until_next_part(now));
    let check_after = if target == policy.max {
        shrink.map(|shrink| if sample.starved() { shrink.max(LOOK_AT_MAX) } else { shrink })
    } else {
        let hold = held.then(|| memory.hold_until.saturating_sub(now));
        // A burst is still coming in: the first of it, or what it has just grown for, says nothing of the rest.
        let age = memory.waited(sample);
        let worth_one_each = sample.mean.is_none_or(|mean| mean >= DRAIN_TARGET);
        let comes_in = sample.waiting > 0 && (target > workers || worth_one_each && age < MIN_PATIENCE);
        let next = match comes_in {
            true => Some(age.min(LOOK)),
            false => sample.starved().then(|| patience.saturating_sub(waited).min(LOOK)),
        };
        let soon = [hold, next].into_iter().flatten().min().map(|after| after.max(HOLD));
        [shrink, soon].into_iter().flatten().min()
    };
    (memory, Verdict { target, demand, reason, check_after })
}

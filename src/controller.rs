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

use std::time::Duration;

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
/// Parts of the keep-alive window. The pool comes down within two parts after the window: one that is being filled, and
/// one for what was seen between two samples.
const PARTS: usize = 31;

/// Checked limits of the pool: `1 <= min <= max`, `keep_alive` not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    min: usize,
    max: usize,
    tolerance: usize,
    keep_alive: Duration,
}

impl Policy {
    /// A policy. What is out of range is moved into it: `min` to at least 1, `max` to at least `min`, `keep_alive` to at
    /// least 1 ms.
    pub fn new(min: usize, max: usize, tolerance: usize, keep_alive: Duration) -> Self {
        let min = min.max(1);
        Policy { min, max: max.max(min), tolerance, keep_alive: keep_alive.max(Duration::from_millis(1)) }
    }

    /// Least workers at any time.
    pub fn min(&self) -> usize {
        self.min
    }

    /// Most workers at any time.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The dead band in workers.
    pub fn tolerance(&self) -> usize {
        self.tolerance
    }

    /// The window whose highest demand the pool shrinks to.
    pub fn keep_alive(&self) -> Duration {
        self.keep_alive
    }

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

/// What the controller looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Time since some fixed start. Never goes back.
    pub now: Duration,
    /// Workers that the pool has or is starting.
    pub workers: usize,
    /// Jobs that no worker has taken yet.
    pub waiting: usize,
    /// How long the oldest of them has waited.
    pub oldest_wait: Duration,
    /// Workers that run a job.
    pub busy: usize,
    /// How many of the busy ones are blocked rather than running or waiting for a CPU. `None`: not looked at, or not known.
    pub blocked: Option<usize>,
    /// CPUs that this process may use.
    pub cores: usize,
    /// How many of the busy ones have had their job for [`DRAIN_TARGET`] or longer.
    pub old: usize,
    /// How many have for [`Policy::lost_after`] or longer.
    pub lost: usize,
    /// How long the one that has had its job for longest has had it.
    pub oldest_age: Duration,
    /// Recent mean wall time of a job. `None` until one has finished.
    pub mean: Option<Duration>,
    /// Most jobs that waited or ran at the same time since the previous sample.
    pub peak: usize,
    /// How long it is since a worker last took a job.
    pub stalled: Duration,
    /// When the pool last had started the workers it was to grow by.
    pub grown_at: Duration,
}

impl Sample {
    /// The workers wanted for the jobs that wait and run, blocked or not.
    pub fn weighed(&self) -> usize {
        let old = self.old.min(self.busy);
        let standstill = if self.starved() { self.stalled } else { Duration::ZERO };
        let others = (self.waiting + self.busy).saturating_sub(old);
        old + weigh(others, self.mean.unwrap_or(self.oldest_age).max(standstill))
    }

    /// Work waits and nobody is free to take it.
    fn starved(&self) -> bool {
        self.waiting > 0 && self.busy >= self.workers
    }
}

/// The workers that would finish `jobs` of `time_per_job` each within [`DRAIN_TARGET`]: never more than the jobs.
pub fn weigh(jobs: usize, time_per_job: Duration) -> usize {
    let work = nanos(time_per_job).saturating_mul(jobs as u64);
    let workers = work.div_ceil(nanos(DRAIN_TARGET));
    usize::try_from(workers).unwrap_or(usize::MAX).min(jobs)
}

/// Saturates after 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Why a verdict is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Reason {
    /// Demand and pool differ by the tolerance or less, or the window still holds a higher demand.
    Steady,
    /// More is wanted, but the workers want a CPU: more of them would not help.
    CpuBound,
    /// Demand is above the pool by more than the tolerance.
    Demand,
    /// Work has waited for too long.
    Valve,
    /// The highest demand within the window is below the pool by more than the tolerance.
    Surplus,
    /// The pool was outside of its limits.
    Limits,
}

impl Reason {
    /// The word for logs and statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Steady => "steady",
            Reason::CpuBound => "cpu_bound",
            Reason::Demand => "demand",
            Reason::Valve => "valve",
            Reason::Surplus => "surplus",
            Reason::Limits => "limits",
        }
    }
}

/// What the controller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Workers that the pool should have: `min <= target <= max`.
    pub target: usize,
    /// Workers wanted for the present work, after blocking was looked at. May be above `max`.
    pub demand: usize,
    /// Why.
    pub reason: Reason,
    /// When to ask again even if nothing happens. `None`: only when work waits.
    pub check_after: Option<Duration>,
}

/// A change of the pool's size, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Decision {
    /// Time since the server started; serialized as `t` in seconds.
    #[cfg_attr(feature = "serde", serde(rename = "t", serialize_with = "seconds"))]
    pub at: Duration,
    /// Workers wanted for the work that was there.
    pub demand: usize,
    /// Jobs that no worker had taken.
    pub waiting: usize,
    /// Workers that ran a job.
    pub busy: usize,
    /// How many of those were blocked, if it was looked at.
    pub blocked: Option<usize>,
    /// Workers before.
    pub from: usize,
    /// Workers after. Fewer than were wanted if the system refused threads.
    pub to: usize,
    /// Why.
    pub reason: Reason,
}

#[cfg(feature = "serde")]
pub(crate) fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
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
        let more = if helps { wanted.max(there + policy.tolerance + 1).min(useful) } else { there + 1 };
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

/// The highest demand within the keep-alive window, kept in parts of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Window {
    /// The highest demand of each part, the present one at `current % len`. One more than [`PARTS`], so that what is
    /// remembered is never younger than the window.
    highest: [usize; PARTS + 1],
    /// Number of the present part since the start.
    current: u64,
    /// Length of a part in nanoseconds.
    part: u64,
}

impl Window {
    fn record(&mut self, now: Duration, keep_alive: Duration, demand: usize) {
        let part = (nanos(keep_alive) / PARTS as u64).max(1);
        if part != self.part {
            // The window has another length from now on; what it held counts as seen now.
            let mut highest = [0; PARTS + 1];
            let current = nanos(now) / part;
            highest[Self::place(current)] = self.highest();
            *self = Window { highest, current, part };
        }
        let present = (nanos(now) / part).max(self.current);
        for passed in (self.current + 1..=present).take(self.highest.len()) {
            self.highest[Self::place(passed)] = 0;
        }
        self.current = present;
        let present = &mut self.highest[Self::place(present)];
        *present = demand.max(*present);
    }

    fn highest(&self) -> usize {
        self.highest.iter().copied().max().unwrap_or(0)
    }

    /// Time until the oldest part leaves the window. Something was recorded before.
    fn until_next_part(&self, now: Duration) -> Duration {
        let next = (self.current + 1).saturating_mul(self.part);
        Duration::from_nanos(next.saturating_sub(nanos(now)).max(1))
    }

    #[expect(clippy::cast_possible_truncation, reason = "a remainder of 32")]
    fn place(part: u64) -> usize {
        (part % (PARTS as u64 + 1)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn policy() -> Policy {
        Policy::new(2, 64, 2, 5000 * MS)
    }

    fn sample(now: u32, workers: usize, waiting: usize, busy: usize) -> Sample {
        let mean = Some(50 * MS);
        Sample { now: MS * now, workers, waiting, busy, cores: 2, mean, ..Sample::default() }
    }

    fn verdict(sample: Sample) -> Verdict {
        decide(&policy(), Memory::default(), &sample).1
    }

    #[test]
    fn a_burst_that_blocks_is_met_in_one_jump() {
        let burst = Sample { blocked: Some(2), ..sample(0, 2, 62, 2) };
        assert_eq!((verdict(burst).target, verdict(burst).reason), (64, Reason::Demand));
    }

    #[test]
    fn a_burst_is_one_growth_though_some_of_it_is_seen_later() {
        let policy = policy();
        let jobs = |now, workers, jobs, oldest_wait| Sample {
            busy: workers,
            waiting: jobs - workers,
            blocked: Some(workers),
            oldest_wait,
            ..sample(now, workers, 0, 0)
        };
        let (memory, first) = decide(&policy, Memory::default(), &jobs(1000, 2, 2 + 17, MS / 4));
        assert_eq!((first.target, first.check_after), (19, Some(HOLD)), "there may be more");
        let late = |now, oldest_wait| decide(&policy, memory, &jobs(now, 19, 20, oldest_wait)).1.target;
        assert_eq!(late(1001, MS / 2), 20);
        assert_eq!(late(1040, 31 * MS), 20, "it took long to start the others");
        assert_eq!(late(1040, 29 * MS), 19, "it came later, and is inside the tolerance");
    }

    #[test]
    fn while_a_burst_comes_in_it_looks_again_soon_though_somebody_is_free_yet() {
        let check_after = |mean, oldest_wait| {
            let free = Sample { mean, oldest_wait, ..sample(1000, 2, 2, 0) };
            verdict(free).check_after
        };
        assert_eq!(check_after(Some(50 * MS), MS / 10), Some(HOLD));
        assert_eq!(check_after(None, MS / 10), Some(HOLD));
        assert_ne!(check_after(Some(MS / 10), MS / 10), Some(HOLD), "short ones are no reason");
        assert_ne!(check_after(Some(50 * MS), 2 * MS), Some(HOLD), "what has not come by now is another one");
    }

    #[test]
    fn work_is_weighed_and_not_counted() {
        let trivial = Sample { mean: Some(Duration::from_micros(2)), ..sample(0, 2, 998, 2) };
        assert_eq!((verdict(trivial).target, verdict(trivial).demand), (2, 2));
    }

    #[test]
    fn workers_that_want_a_cpu_are_not_replaced_nor_those_of_which_nothing_is_known() {
        for blocked in [Some(0), None] {
            let burning = Sample { blocked, ..sample(0, 2, 62, 2) };
            let verdict = verdict(burning);
            assert_eq!((verdict.target, verdict.reason), (2, Reason::CpuBound));
            assert!(verdict.check_after.is_some(), "it looks again");
        }
    }

    #[test]
    fn a_worker_lost_to_blocking_is_replaced_for_the_cpu() {
        let one_lost = Sample { blocked: Some(1), ..sample(0, 3, 60, 3) };
        assert_eq!(verdict(one_lost).demand, 3);
    }

    #[test]
    fn inside_the_tolerance_nothing_happens() {
        let waiting = |jobs| Sample { blocked: Some(2), ..sample(0, 2, jobs, 2) };
        assert_eq!(verdict(waiting(2)).target, 2, "demand is 4, which is not more than 2 + 2");
        assert_eq!(verdict(waiting(3)).target, 5);
    }

    #[test]
    fn work_that_waits_for_a_few_jobs_time_opens_the_valve_by_more_than_the_tolerance() {
        let waiting = |oldest_wait, mean, blocked| {
            verdict(Sample { oldest_wait, mean: Some(mean), blocked, ..sample(1000, 2, 1, 2) })
        };
        assert_eq!(waiting(19 * MS, 5 * MS, Some(2)).target, 2);
        assert_eq!(waiting(19 * MS, 5 * MS, Some(2)).check_after, Some(MS), "asks again when it is due");
        assert_eq!(waiting(20 * MS, 5 * MS, Some(2)).target, 5);
        assert_eq!(waiting(20 * MS, 5 * MS, Some(1)).target, 4, "not above what is of use");
        assert_eq!(waiting(20 * MS, 5 * MS, Some(0)).target, 2);
        assert_eq!(waiting(99 * MS, 50 * MS, Some(2)).target, 2);
        assert_eq!(waiting(100 * MS, 50 * MS, Some(2)).target, 5, "at most so long");
        assert_eq!(waiting(2 * MS, MS / 10, Some(2)).target, 5, "and at least so long");
        let granted = Sample {
            oldest_wait: 50 * MS,
            mean: Some(5 * MS),
            grown_at: 990 * MS,
            blocked: Some(2),
            ..sample(1000, 2, 1, 2)
        };
        assert_eq!(verdict(granted).target, 2, "those that were granted have not had their time");
    }

    #[test]
    fn computations_get_another_worker_after_twice_the_time_each() {
        let policy = policy();
        for blocked in [Some(0), None] {
            let (mut memory, mut workers, mut grew, mut taken_at) = (Memory::default(), 2, Vec::new(), 0);
            for now in (1000..4000).step_by(10) {
                let burning = Sample {
                    stalled: MS * (now - taken_at),
                    oldest_wait: MS * (now - 1000),
                    grown_at: MS * taken_at,
                    blocked,
                    old: workers,
                    ..sample(now, workers, 20, workers)
                };
                let (next, verdict) = decide(&policy, memory, &burning);
                if verdict.target > workers {
                    assert_eq!((verdict.target, verdict.reason), (workers + 1, Reason::Valve));
                    grew.push(now);
                    taken_at = now;
                }
                (memory, workers) = (next, verdict.target);
            }
            let waits: Vec<_> = grew.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(
                grew[0] == 1100
                    && waits.iter().zip([200, 400, 800]).all(|(is, least)| (least..least + 50).contains(is)),
                "{grew:?}"
            );
        }
    }

    #[test]
    fn a_flood_that_nobody_has_begun_grows_nothing_yet() {
        let flood = Sample { mean: Some(Duration::from_micros(10)), ..sample(0, 2, 512, 0) };
        assert_eq!(verdict(flood).target, 2);
        assert!(verdict(flood).check_after.is_some(), "it looks again");
    }

    #[test]
    fn a_stuck_job_counts_as_one_and_says_nothing_of_the_others() {
        let mostly_stuck =
            Sample { old: 20, mean: Some(Duration::from_micros(100)), ..sample(0, 22, 198, 22) };
        assert_eq!(mostly_stuck.weighed(), 40);
    }

    #[test]
    fn where_all_stand_still_the_standstill_says_how_long_jobs_take() {
        let still =
            Sample { mean: Some(Duration::from_micros(2)), stalled: MS, old: 2, ..sample(0, 2, 62, 2) };
        assert_eq!(still.weighed(), 64);
        let unknown = Sample { mean: None, oldest_age: MS / 4, stalled: MS / 4, ..sample(0, 2, 62, 2) };
        assert_eq!(unknown.weighed(), 16);
    }

    #[test]
    fn a_worker_that_is_lost_is_looked_at_though_growth_was_just_held_back() {
        let policy = policy();
        let mut memory = Memory::default();
        let burning = |now, lost| Sample { blocked: Some(0), lost, ..sample(now, 2, 62, 2) };
        for now in 0..50 {
            memory = decide(&policy, memory, &burning(now, 0)).0;
        }
        assert!(!policy.wants_blocked(&memory, &burning(51, 0)));
        assert!(policy.wants_blocked(&memory, &burning(51, 1)));
        memory = decide(&policy, memory, &burning(51, 1)).0;
        assert!(!policy.wants_blocked(&memory, &burning(52, 1)), "once is enough");
    }

    #[test]
    fn at_its_maximum_with_work_that_waits_it_looks_seldom_and_a_fixed_pool_never() {
        let full = Sample { blocked: Some(64), oldest_wait: 1000 * MS, ..sample(2000, 64, 9, 64) };
        let short = Policy::new(2, 64, 2, 100 * MS);
        assert!(decide(&short, Memory::default(), &full).1.check_after >= Some(LOOK_AT_MAX));
        let fixed = Policy::new(64, 64, 2, 100 * MS);
        assert_eq!(decide(&fixed, Memory::default(), &full).1.check_after, None);
    }

    #[test]
    fn it_comes_down_to_the_highest_demand_of_the_window_without_traffic() {
        let policy = policy();
        let (mut memory, grown) =
            decide(&policy, Memory::default(), &Sample { blocked: Some(2), ..sample(0, 2, 62, 2) });
        let (mut workers, mut now) = (grown.target, Duration::ZERO);
        let mut wait = grown.check_after;
        let mut asked = 0;
        while let Some(after) = wait {
            now += after;
            asked += 1;
            let (next, verdict) =
                decide(&policy, memory, &Sample { now, workers, cores: 2, ..Sample::default() });
            assert!(verdict.target == workers || now >= policy.keep_alive(), "shrank at {now:?}");
            (memory, workers, wait) = (next, verdict.target, verdict.check_after);
        }
        assert_eq!(workers, 2);
        assert!(now <= policy.keep_alive() + 500 * MS, "{now:?}");
        assert!(asked <= 36, "{asked} wake-ups");
    }

    #[test]
    fn an_idle_pool_inside_the_tolerance_sleeps() {
        let policy = Policy::new(1, 64, 8, 1000 * MS);
        let mut memory = Memory::default();
        let mut last = None;
        for step in 0..40 {
            let (next, verdict) =
                decide(&policy, memory, &Sample { now: MS * step * 40, workers: 6, ..Sample::default() });
            (memory, last) = (next, Some(verdict));
        }
        assert_eq!(last.map(|verdict| (verdict.target, verdict.check_after)), Some((6, None)));
    }

    #[test]
    fn limits_are_obeyed_at_once() {
        assert_eq!(verdict(sample(0, 100, 0, 0)).target, 64);
        assert_eq!(verdict(sample(0, 1, 0, 0)).target, 2);
    }

    #[test]
    fn another_window_length_keeps_what_was_seen() {
        let mut window = Window::default();
        window.record(100 * MS, 5000 * MS, 9);
        window.record(101 * MS, 60_000 * MS, 1);
        assert_eq!(window.highest(), 9);
        window.record(102 * MS, 10 * MS, 1);
        assert_eq!(window.highest(), 9);
        window.record(202 * MS, 10 * MS, 1);
        assert_eq!(window.highest(), 1);
    }
}

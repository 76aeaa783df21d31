//! How many workers the pool should have: a pure rule, [`decide`], from plain data to plain data.
//!
//! No clock, no thread, no I/O: `tuner` takes samples and applies verdicts, and `simulate` runs the same function in
//! simulated time. The derivation:
//!
//! - **Work is weighed, not counted.** A thousand pipelined requests of 2 µs are 2 ms of work for one worker; 64 requests
//!   that block 5 ms each are worth 64 workers. [`weigh`]: the workers that would finish what is there within
//!   [`DRAIN_TARGET`]. A job that has run for longer than that holds one worker, whatever the others take.
//! - **Work on its way is no demand yet.** Short jobs that wait while most workers are free are about to be taken.
//! - **Blocked workers are replaced, runnable ones are not.** Where a share β of the busy workers is blocked and the rest
//!   wants a CPU, `cores / (1 - β)` workers keep every core busy, and more only stand in line (B. Goetz, *Java
//!   Concurrency in Practice*, 8.2: `N = cores × (1 + wait/compute)`). Demand never exceeds that.
//! - **Tolerance is a dead band** of "more than": a difference of exactly `tolerance` is no reason to resize.
//! - **The valve** keeps the dead band from stranding work: when work waits, every worker is busy and nothing has been
//!   taken for [`PATIENCE`], the pool grows all the same. Where every worker wants a CPU one more gives fairness, not
//!   speed: then it takes [`CPU_PATIENCE`], and twice as long each further time ([`MAX_CPU_PATIENCE`] at most), or long
//!   computations would grow the pool to its maximum. It also grows when work has waited at every look for
//!   [`CPU_PATIENCE`] and more workers would be of use: one worker lost to a blocking call must not cost a core for as long
//!   as the others make progress.
//! - **What is not known is looked at again.** Until a job has finished, the age of those that run is the evidence of how long
//!   jobs take; where all stand still, the time since one was taken is, whatever the mean says. Where the reactor, which
//!   assumes more, saw a demand that this does not show yet, the controller asks again within a fraction of a millisecond.
//! - **Growth is one jump, shrinking follows a window.** The pool comes down to the highest demand seen within the
//!   keep-alive window, so that a burst that recurs finds its workers, and a trickle does not keep them.

use std::time::Duration;

/// Demand is the number of workers that would finish the present work within this time.
pub const DRAIN_TARGET: Duration = Duration::from_millis(1);
/// How long waiting work may make no progress, where a worker is blocked, until the pool grows inside the tolerance.
pub const PATIENCE: Duration = Duration::from_millis(2);
/// The same where every worker wants a CPU, the first time. Also how long work that makes progress may wait without a break
/// while more workers would be of use.
pub const CPU_PATIENCE: Duration = Duration::from_millis(100);
/// The longest it becomes where every worker wants a CPU. It begins anew once no work has waited for as long, and for a window.
pub const MAX_CPU_PATIENCE: Duration = Duration::from_millis(6400);
/// First pause before growth is considered again that was held back because the workers want a CPU; it doubles up to
/// 256 times this.
const HOLD: Duration = Duration::from_micros(250);
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

    /// Demand above which the controller wants to be asked at once.
    pub fn attention(&self, workers: usize) -> usize {
        if workers >= self.max { usize::MAX } else { workers.saturating_add(self.tolerance) }
    }

    /// Whether more workers may be wanted than there are, so that measuring `blocked` is worth the price. At the maximum
    /// too: whether the pool has to stay there depends on it.
    pub fn considers_growth(&self, sample: &Sample) -> bool {
        let overdue = sample.starved() && sample.stalled >= PATIENCE;
        overdue || sample.weighed() > sample.workers.min(self.max.saturating_sub(1))
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
    /// Workers that run a job.
    pub busy: usize,
    /// How many of the busy ones are blocked rather than running or waiting for a CPU. `None`: not known.
    pub blocked: Option<usize>,
    /// CPUs that this process may use.
    pub cores: usize,
    /// How many of the busy ones have had their job for [`DRAIN_TARGET`] or longer.
    pub old: usize,
    /// Recent mean wall time of a job. Until one has finished, the median age of those that run.
    pub time_per_job: Duration,
    /// Highest weighed demand since the previous sample.
    pub peak: usize,
    /// How long it is since a worker last took a job.
    pub stalled: Duration,
}

impl Sample {
    /// The workers wanted for the jobs that wait and run, blocked or not.
    pub fn weighed(&self) -> usize {
        let old = self.old.min(self.busy);
        let standstill = if self.starved() { self.stalled } else { Duration::ZERO };
        old + weigh(self.waiting + self.busy - old, self.time_per_job.max(standstill))
    }

    /// Work waits and nobody is free to take it.
    fn starved(&self) -> bool {
        self.waiting > 0 && self.busy >= self.workers
    }

    /// Short jobs wait while most workers are free, so they are about to be taken.
    fn is_on_its_way(&self) -> bool {
        self.busy * 2 < self.workers && self.time_per_job < DRAIN_TARGET
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
    /// More is wanted, but most workers are free and about to take it.
    OnItsWay,
    /// Demand is above the pool by more than the tolerance.
    Demand,
    /// Work waited and nothing was taken for too long.
    Stalled,
    /// Work has waited at every look for too long, and more workers are of use.
    Backlog,
    /// The highest demand within the window is below the pool by more than the tolerance.
    Surplus,
    /// The pool was outside of its limits.
    Limits,
}

impl Reason {
    /// Whether growth was held back, so that it is considered again soon without a poke.
    pub fn holds(self) -> bool {
        matches!(self, Reason::CpuBound | Reason::OnItsWay)
    }

    /// The word for logs and statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Steady => "steady",
            Reason::CpuBound => "cpu_bound",
            Reason::OnItsWay => "on_its_way",
            Reason::Demand => "demand",
            Reason::Stalled => "stalled",
            Reason::Backlog => "backlog",
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
    /// When to ask again even if nothing happens. `None`: only when demand exceeds [`Policy::attention`] or work stalls.
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
    /// Share of the busy workers that is blocked, smoothed, and when it was last measured.
    blocking: Option<(f64, Duration)>,
    /// Times in a row that growth was held back.
    holds: u32,
    /// Since when work waited at every look while more workers would have been of use.
    short_since: Option<Duration>,
    /// Since when work waited at every look and every worker was busy.
    starved_since: Option<Duration>,
    /// When that was seen last.
    last_starved: Duration,
    /// How often in this time of need the pool grew although every worker wanted a CPU.
    cpu_grants: u32,
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

    /// Takes in whether work waits, and returns how long it may make no progress, and how long it made none.
    fn wait(&mut self, policy: &Policy, sample: &Sample) -> (Duration, Duration) {
        if sample.now.saturating_sub(self.last_starved) >= policy.keep_alive.max(MAX_CPU_PATIENCE) {
            self.cpu_grants = 0;
        }
        if sample.starved() {
            self.last_starved = sample.now;
        }
        self.starved_since = sample.starved().then(|| self.starved_since.unwrap_or(sample.now));
        if sample.blocked != Some(0) {
            return (PATIENCE, sample.stalled);
        }
        // Computations take their time: what has just come has not waited for as long as nothing was taken.
        let waited = self.starved_since.map_or(Duration::ZERO, |since| sample.now.saturating_sub(since));
        let patience = CPU_PATIENCE.saturating_mul(1 << self.cpu_grants.min(16)).min(MAX_CPU_PATIENCE);
        (patience, sample.stalled.min(waited))
    }

    /// The most workers that are of use: `cores / (1 - β)`, and as many as are blocked with the cores besides.
    fn useful(&self, sample: &Sample) -> usize {
        let known = self.blocking.filter(|(_, at)| sample.now.saturating_sub(*at) < FORGET_BLOCKING);
        let Some((share, _)) = known else { return usize::MAX };
        // A float above the range of the integer becomes its maximum: all blocked, no bound.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and saturates"
        )]
        let useful = (sample.cores as f64 / (1.0 - share)).ceil() as usize;
        useful.max(sample.blocked.unwrap_or(0) + sample.cores)
    }
}

/// The controller: how many workers, why, and when to ask again.
pub fn decide(policy: &Policy, mut memory: Memory, sample: &Sample) -> (Memory, Verdict) {
    let workers = sample.workers;
    memory.learn(sample);
    let useful = memory.useful(sample);
    let weighed = sample.weighed();
    let demand = weighed.min(useful);
    memory.window.record(sample.now, policy.keep_alive, demand.max(sample.peak.min(useful)));

    let within = |workers: usize| workers.clamp(policy.min, policy.max);
    let wanted = within(demand);
    let highest = memory.window.highest();
    let (patience, standstill) = memory.wait(policy, sample);
    let stalled = sample.starved() && standstill >= patience;
    let short = sample.starved() && wanted > workers;
    memory.short_since = short.then(|| memory.short_since.unwrap_or(sample.now));
    let short_for = memory.short_since.map(|since| sample.now.saturating_sub(since));

    let (target, reason) = if workers != within(workers) {
        (within(workers), Reason::Limits)
    } else if wanted > workers && demand > workers.saturating_add(policy.tolerance) {
        if sample.is_on_its_way() { (workers, Reason::OnItsWay) } else { (wanted, Reason::Demand) }
    } else if stalled && workers < policy.max {
        // Workers above the target that are busy are not going to take anything.
        (within(wanted.max(workers.max(sample.busy) + 1)), Reason::Stalled)
    } else if short_for.is_some_and(|time| time >= CPU_PATIENCE) {
        (wanted, Reason::Backlog)
    } else if workers > within(highest) && workers > highest.saturating_add(policy.tolerance) {
        (within(highest), Reason::Surplus)
    } else if workers < policy.max && weighed > workers.saturating_add(policy.tolerance) {
        (workers, Reason::CpuBound)
    } else {
        (workers, Reason::Steady)
    };
    memory.holds = if reason.holds() { memory.holds.saturating_add(1) } else { 0 };
    memory.cpu_grants += u32::from(reason == Reason::Stalled && sample.blocked == Some(0));
    if target > workers {
        // The new workers are not surplus before a window has passed without need of them. What a valve has added has to be
        // there until it may open again, however short the window is: so the window begins later by that.
        let later = if reason == Reason::Stalled { patience.max(CPU_PATIENCE) * 2 } else { Duration::ZERO };
        memory.window.record(sample.now + later, policy.keep_alive, target);
        (memory.short_since, memory.starved_since) = (None, None);
    }

    // A pool above its minimum may have to shrink without any traffic, until nothing is left to be forgotten; one that holds
    // growth back looks again; so does one whose work waits, and one that does not know yet how long its work takes. The
    // earliest counts.
    let shrinks = target > policy.min && memory.window.highest() > 0;
    let shrink = shrinks.then(|| memory.window.until_next_part(sample.now));
    let hold = reason.holds().then(|| HOLD * (1 << (memory.holds - 1).min(8)));
    let valve =
        (sample.starved() && workers < policy.max).then(|| patience.saturating_sub(standstill).max(HOLD));
    let backlog = short_for.map(|time| CPU_PATIENCE.saturating_sub(time).max(HOLD));
    let attention = policy.attention(workers);
    let unknown = (sample.peak > attention && weighed <= attention && sample.starved()).then_some(HOLD);
    let check_after = [shrink, hold, valve, backlog, unknown].into_iter().flatten().min();
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
        Sample { now: MS * now, workers, waiting, busy, cores: 2, time_per_job: 50 * MS, ..Sample::default() }
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
    fn work_is_weighed_and_not_counted() {
        let trivial = Sample { time_per_job: Duration::from_micros(2), ..sample(0, 2, 998, 2) };
        assert_eq!((verdict(trivial).target, verdict(trivial).demand), (2, 2));
    }

    #[test]
    fn workers_that_want_a_cpu_are_not_replaced() {
        let burning = Sample { blocked: Some(0), ..sample(0, 2, 62, 2) };
        let verdict = verdict(burning);
        assert_eq!((verdict.target, verdict.reason), (2, Reason::CpuBound));
        assert!(verdict.check_after.is_some(), "it looks again");
    }

    #[test]
    fn a_worker_lost_to_blocking_is_replaced_for_the_cpu() {
        let one_lost = Sample { blocked: Some(1), ..sample(0, 3, 60, 3) };
        assert_eq!(verdict(one_lost).demand, 3);
    }

    #[test]
    fn inside_the_tolerance_nothing_happens() {
        assert_eq!(verdict(sample(0, 2, 2, 2)).target, 2, "demand is 4, which is not more than 2 + 2");
        assert_eq!(verdict(sample(0, 2, 3, 2)).target, 5);
    }

    #[test]
    fn waiting_work_without_progress_opens_the_valve() {
        let waiting = |stalled, blocked| Sample { stalled, blocked, ..sample(1000, 2, 1, 2) };
        assert_eq!(verdict(waiting(MS, Some(2))).target, 2);
        assert_eq!(verdict(waiting(MS, Some(2))).check_after, Some(MS), "asks again when it is due");
        assert_eq!(verdict(waiting(PATIENCE, Some(2))).target, 3);
        assert_eq!(verdict(waiting(PATIENCE, None)).target, 3);
        assert_eq!(verdict(waiting(PATIENCE, Some(0))).target, 2);
        assert_eq!(verdict(waiting(CPU_PATIENCE, Some(0))).target, 2, "it was not seen to wait");
    }

    #[test]
    fn computations_get_another_worker_after_twice_the_time_each() {
        let policy = policy();
        let (mut memory, mut workers, mut grew, mut taken_at) = (Memory::default(), 2, Vec::new(), 0);
        for now in (1000..4000).step_by(10) {
            let burning = Sample {
                stalled: MS * (now - taken_at),
                blocked: Some(0),
                old: workers,
                ..sample(now, workers, 20, workers)
            };
            let (next, verdict) = decide(&policy, memory, &burning);
            if verdict.target > workers {
                assert_eq!((verdict.target, verdict.reason), (workers + 1, Reason::Stalled));
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

    #[test]
    fn short_jobs_that_free_workers_are_about_to_take_grow_nothing() {
        let flood = Sample { time_per_job: Duration::from_micros(10), ..sample(0, 2, 512, 0) };
        let verdict = verdict(flood);
        assert_eq!((verdict.target, verdict.reason), (2, Reason::OnItsWay));
        assert!(verdict.check_after.is_some(), "it looks again");
    }

    #[test]
    fn a_stuck_job_counts_as_one_and_says_nothing_of_the_others() {
        let mostly_stuck =
            Sample { old: 20, time_per_job: Duration::from_micros(100), ..sample(0, 22, 198, 22) };
        assert_eq!(mostly_stuck.weighed(), 40);
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

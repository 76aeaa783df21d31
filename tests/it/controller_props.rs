//! Properties of the controller for any sequence of samples.

use std::time::Duration;

use proptest::prelude::*;
use tidemill::controller::{
    MAX_CPU_PATIENCE, MAX_PATIENCE, MIN_PATIENCE, Memory, Policy, Reason, Sample, Verdict, decide,
};

use crate::support::seeded;

fn policies() -> impl Strategy<Value = Policy> {
    // Windows shorter than the valves' patience too.
    let keep_alive = prop_oneof![0_u64..60_000, 0_u64..250];
    (0_usize..100, 0_usize..10_000, 0_usize..50, keep_alive).prop_map(|(min, more, tolerance, keep_alive)| {
        Policy::new(min, min + more, tolerance, Duration::from_millis(keep_alive))
    })
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    // Short ones too: most of what the valve does is decided below a tenth of a second.
    let time = || prop_oneof![0_u64..10_000_000_000, 0_u64..150_000_000];
    let jobs = || 0_usize..12_000;
    let counts =
        (0_usize..100_000, jobs(), prop::option::of(jobs()), 1_usize..128, 0_usize..100_000, jobs(), jobs());
    let times = (time(), time(), time(), time(), prop::option::of(0_u64..u64::MAX));
    let sample = (0_u64..3_000_000_000, counts, times);
    let sample = sample.prop_map(|(step, counts, times)| {
        let (waiting, busy, blocked, cores, peak, old, lost) = counts;
        let (stalled, oldest_wait, oldest_age, grown_before, mean) = times;
        Sample {
            // The step to the previous one; turned into a time below.
            now: Duration::from_nanos(step),
            workers: 0,
            waiting,
            oldest_wait: Duration::from_nanos(oldest_wait),
            busy,
            blocked,
            cores,
            old,
            lost,
            oldest_age: Duration::from_nanos(oldest_age),
            mean: mean.map(|mean| Duration::from_nanos(mean >> (mean % 64))),
            peak,
            stalled: Duration::from_nanos(stalled),
            // How long before; turned into a time below.
            grown_at: Duration::from_nanos(grown_before),
        }
    });
    prop::collection::vec(sample, 1..60)
}

proptest! {
    #![proptest_config(seeded(500))]

    /// `min <= target <= max`, whatever comes, and no panic.
    #[test]
    fn the_target_is_always_within_its_bounds(policy in policies(), samples in samples(), start in 0_usize..12_000) {
        let (mut memory, mut workers, mut now) = (Memory::default(), start, Duration::ZERO);
        for mut sample in samples {
            now += sample.now;
            (sample.now, sample.workers) = (now, workers);
            sample.grown_at = now.saturating_sub(sample.grown_at);
            let (next, verdict) = decide(&policy, memory, &sample);
            prop_assert!((policy.min()..=policy.max()).contains(&verdict.target), "{:?} {:?}", policy, verdict);
            (memory, workers) = (next, verdict.target);
        }
    }

    /// Inside the tolerance, with the valve not due, nothing is resized.
    #[test]
    fn inside_the_tolerance_nothing_happens(policy in policies(), samples in samples(), start in 0_usize..12_000) {
        let workers = start.clamp(policy.min(), policy.max());
        let (mut memory, mut now) = (Memory::default(), Duration::ZERO);
        for mut sample in samples {
            now += sample.now;
            let most = workers.saturating_add(policy.tolerance());
            let least = workers.saturating_sub(policy.tolerance());
            let jobs = (sample.waiting + sample.busy).clamp(least, most);
            sample = Sample {
                now,
                workers,
                busy: jobs.min(workers),
                waiting: jobs - jobs.min(workers),
                blocked: Some(jobs.min(workers)),
                mean: Some(Duration::from_secs(1)),
                peak: jobs,
                oldest_wait: Duration::ZERO,
                stalled: Duration::ZERO,
                ..sample
            };
            let (next, verdict) = decide(&policy, memory, &sample);
            prop_assert_eq!(verdict.target, workers);
            memory = next;
        }
    }

    /// What has grown does not shrink before a window has passed. The other way round it may be at once: a burst that
    /// comes just after the pool has shrunk must not wait.
    #[test]
    fn after_growing_it_does_not_shrink_within_a_window(policy in policies(), samples in samples(), start in 0_usize..12_000) {
        let mut pool = Pool::new(policy, start.clamp(policy.min(), policy.max()));
        let mut grew: Option<Duration> = None;
        for sample in samples {
            let before = pool.workers;
            let verdict = pool.step(sample.now, sample);
            if verdict.target > before {
                grew = Some(pool.now);
            } else if verdict.target < before {
                let since = grew.map(|at| pool.now - at);
                prop_assert!(since.is_none_or(|since| since >= policy.keep_alive()), "{:?} after {:?}", verdict, since);
            }
        }
    }

    /// It grows only for demand above the tolerance, or for work that waited.
    #[test]
    fn it_grows_for_a_reason(policy in policies(), samples in samples(), start in 0_usize..12_000) {
        let mut pool = Pool::new(policy, start.clamp(policy.min(), policy.max()));
        // What it had before a growth, and when that was: work that came within 10 ms of it belongs to it.
        let mut grew: Option<(usize, Duration)> = None;
        for sample in samples {
            let before = pool.workers;
            let verdict = pool.step(sample.now, sample);
            if verdict.target > before {
                let came = pool.now.saturating_sub(sample.oldest_wait);
                let goes_on = grew.filter(|(_, at)| sample.waiting > 0 && came < *at + Duration::from_millis(10));
                let from = goes_on.map_or(before, |(from, _)| from);
                let starved = sample.waiting > 0 && sample.busy >= before;
                let overdue = starved && sample.oldest_wait >= MIN_PATIENCE;
                prop_assert!(overdue || verdict.demand > from + policy.tolerance(), "{:?} {:?}", verdict, sample);
                grew = goes_on.or(Some((before, pool.now)));
            }
        }
    }

    /// Tolerance is inertia: where all are blocked, it grows by more than the tolerance, as far as the maximum allows.
    #[test]
    fn it_grows_by_more_than_the_tolerance(policy in policies(), samples in samples(), start in 0_usize..12_000) {
        let mut pool = Pool::new(policy, start.clamp(policy.min(), policy.max()));
        for sample in samples {
            let before = pool.workers;
            // Longer than what was learned of blocking is remembered.
            let after = sample.now + Duration::from_secs(1);
            // What came with the growth before would belong to that.
            let oldest_wait = sample.oldest_wait.min(Duration::from_millis(900));
            let busy = sample.busy.max(1);
            let verdict = pool.step(after, Sample { busy, blocked: Some(busy), oldest_wait, ..sample });
            if verdict.target > before {
                prop_assert!(
                    verdict.target > before + policy.tolerance() || verdict.target == policy.max(), "{:?} {:?}", verdict, sample
                );
            }
        }
    }

    /// Whatever was before: a demand that lasts is met within the tolerance once a window has passed, and from then on it
    /// takes one action at most.
    #[test]
    fn a_demand_that_lasts_is_met_with_one_action(
        policy in policies(), samples in samples(), start in 0_usize..12_000, jobs in 0_usize..12_000,
    ) {
        let mut pool = Pool::new(policy, start.clamp(policy.min(), policy.max()));
        for sample in samples {
            pool.step(sample.now, sample);
        }
        let window = policy.keep_alive();
        let part = window / 16 + Duration::from_nanos(1);
        let mut late = 0;
        for step in 0..60 {
            let before = pool.workers;
            pool.blocked_on(jobs, part, Duration::ZERO);
            // The window, and the part of it that is being filled.
            late += u32::from(step >= 17 && pool.workers != before);
        }
        let wanted = jobs.clamp(policy.min(), policy.max());
        prop_assert!(pool.workers.abs_diff(wanted) <= policy.tolerance(), "{} for {}", pool.workers, wanted);
        prop_assert!(late <= 1, "{} resizes", late);
    }

    /// From the start, a constant demand takes one action.
    #[test]
    fn a_constant_demand_takes_one_action(policy in policies(), jobs in 0_usize..12_000, step in 1_u64..10_000_000) {
        let mut pool = Pool::new(policy, policy.min());
        let mut resizes = 0;
        for _ in 0..100 {
            let before = pool.workers;
            pool.blocked_on(jobs, Duration::from_micros(step), Duration::ZERO);
            resizes += u32::from(pool.workers != before);
        }
        prop_assert!(resizes <= 1, "{} resizes", resizes);
    }

    /// Nothing arrives any more and no worker gets free: by its own timers alone the pool grows until every job is taken
    /// or it is at its maximum, one step a patience at most; for computations that may be longer.
    #[test]
    fn no_job_waits_for_the_next_arrival(
        policy in policies(), samples in samples(), jobs in 1_usize..200, burning in any::<bool>(),
    ) {
        let mut pool = Pool::new(policy, policy.min());
        for sample in samples {
            pool.step(sample.now, sample);
        }
        // Computations wait so long in the end that a few of them tell.
        let jobs = if burning { jobs.min(policy.min() + 12) } else { jobs };
        // What came before may have made it patient.
        let patience = if burning { MAX_CPU_PATIENCE } else { MAX_PATIENCE };
        let mut last_taken = pool.now;
        // Who has a job keeps it, also above a target that was lowered.
        let mut busy = pool.workers.min(jobs);
        let mut after = Duration::ZERO;
        while busy < jobs.min(policy.max()) {
            let waits = pool.now + after - last_taken;
            let sample = Sample {
                waiting: jobs - busy,
                oldest_wait: waits,
                busy,
                blocked: Some(if burning { 0 } else { busy }),
                cores: 2,
                mean: Some(Duration::from_secs(1)),
                stalled: waits,
                grown_at: waits,
                ..Sample::default()
            };
            let verdict = pool.step(after, sample);
            prop_assert!(waits <= patience * 2, "{:?} for {:?}", waits, verdict);
            if pool.workers > busy {
                busy = pool.workers.min(jobs);
                last_taken = pool.now;
            }
            let asked = verdict.check_after;
            prop_assert!(asked.is_some() || busy >= jobs.min(policy.max()), "it does not ask again: {:?}", verdict);
            // It looks more often than it decides.
            after = asked.unwrap_or_default().max(patience / 20);
        }
    }

    /// Limits that change are obeyed by the next verdict.
    #[test]
    fn changed_limits_are_obeyed_at_once(
        policy in policies(), other in policies(), samples in samples(), start in 0_usize..12_000,
    ) {
        let mut pool = Pool::new(policy, start.clamp(policy.min(), policy.max()));
        for (number, sample) in samples.iter().enumerate() {
            pool.policy = if number % 2 == 0 { policy } else { other };
            let outside = !(pool.policy.min()..=pool.policy.max()).contains(&pool.workers);
            let verdict = pool.step(sample.now, *sample);
            prop_assert!((pool.policy.min()..=pool.policy.max()).contains(&verdict.target));
            prop_assert!(!outside || verdict.reason == Reason::Limits);
        }
    }
}

/// A pool that does what the controller says.
struct Pool {
    policy: Policy,
    memory: Memory,
    workers: usize,
    now: Duration,
}

impl Pool {
    fn new(policy: Policy, workers: usize) -> Pool {
        Pool { policy, memory: Memory::default(), workers, now: Duration::ZERO }
    }

    /// `after` the step before, the pool is as `sample` says, whose `grown_at` is how long ago that was.
    fn step(&mut self, after: Duration, sample: Sample) -> Verdict {
        self.now += after;
        let sample = Sample { now: self.now, workers: self.workers, ..sample };
        let grown_at = self.now.saturating_sub(sample.grown_at);
        let (memory, verdict) = decide(&self.policy, self.memory, &Sample { grown_at, ..sample });
        (self.memory, self.workers) = (memory, verdict.target);
        verdict
    }

    /// There are `jobs`, each of which blocks for long.
    fn blocked_on(&mut self, jobs: usize, after: Duration, stalled: Duration) -> Verdict {
        let busy = jobs.min(self.workers);
        let sample = Sample {
            waiting: jobs - busy,
            busy,
            blocked: Some(busy),
            cores: 2,
            mean: Some(Duration::from_secs(1)),
            peak: jobs,
            stalled,
            ..Sample::default()
        };
        self.step(after, sample)
    }
}

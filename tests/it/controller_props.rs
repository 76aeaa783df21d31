//! Properties of the controller for any sequence of samples.

use std::time::Duration;

use proptest::prelude::*;
use tidemill::controller::{
    CPU_PATIENCE, MAX_CPU_PATIENCE, Memory, PATIENCE, Policy, Reason, Sample, Verdict, decide,
};

fn policies() -> impl Strategy<Value = Policy> {
    // Windows shorter than the valves' patience too.
    let keep_alive = prop_oneof![0_u64..60_000, 0_u64..250];
    (0_usize..100, 0_usize..10_000, 0_usize..50, keep_alive).prop_map(|(min, more, tolerance, keep_alive)| {
        Policy::new(min, min + more, tolerance, Duration::from_millis(keep_alive))
    })
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let sample = (
        0_u64..3_000_000_000,
        0_usize..100_000,
        0_usize..12_000,
        prop::option::of(0_usize..12_000),
        1_usize..128,
        0_u64..u64::MAX,
        0_usize..100_000,
        // Short ones too: most of what the valves do is decided below a tenth of a second.
        prop_oneof![0_u64..10_000_000_000, 0_u64..150_000_000],
        0_usize..12_000,
    );
    let sample = sample.prop_map(|(step, waiting, busy, blocked, cores, time, peak, stalled, old)| Sample {
        // The step to the previous one; turned into a time below.
        now: Duration::from_nanos(step),
        workers: 0,
        waiting,
        busy,
        blocked,
        cores,
        old,
        time_per_job: Duration::from_nanos(time >> (time % 64)),
        peak,
        stalled: Duration::from_nanos(stalled),
    });
    prop::collection::vec(sample, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// `min <= target <= max`, whatever comes, and no panic.
    #[test]
    fn the_target_is_always_within_its_bounds(policy in policies(), samples in samples(), start in 0_usize..12_000) {
        let (mut memory, mut workers, mut now) = (Memory::default(), start, Duration::ZERO);
        for mut sample in samples {
            now += sample.now;
            (sample.now, sample.workers) = (now, workers);
            let (next, verdict) = decide(&policy, memory, &sample);
            prop_assert!((policy.min()..=policy.max()).contains(&verdict.target), "{:?} {:?}", policy, verdict);
            (memory, workers) = (next, verdict.target);
        }
    }

    /// Inside the tolerance, with the valves not due, nothing is resized.
    #[test]
    fn inside_the_tolerance_nothing_happens(policy in policies(), samples in samples(), start in 0_usize..12_000) {
        let workers = start.clamp(policy.min(), policy.max());
        let (mut memory, mut now) = (Memory::default(), Duration::ZERO);
        for (number, mut sample) in samples.into_iter().enumerate() {
            now += sample.now;
            // Demand within the tolerance of the pool. Work that waits at every look opens a valve in the end; here it
            // never does twice in a row.
            let most = workers.saturating_add(if number % 2 == 0 { 0 } else { policy.tolerance() });
            let least = workers.saturating_sub(policy.tolerance());
            let jobs = (sample.waiting + sample.busy).clamp(least, most);
            sample = Sample {
                now,
                workers,
                busy: jobs.min(workers),
                waiting: jobs - jobs.min(workers),
                blocked: Some(jobs.min(workers)),
                time_per_job: Duration::from_secs(1),
                peak: jobs,
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

    /// It grows only for demand above the tolerance, for work that makes no progress, or for work that waited at every look.
    #[test]
    fn it_grows_for_a_reason(policy in policies(), samples in samples(), start in 0_usize..12_000) {
        let mut pool = Pool::new(policy, start.clamp(policy.min(), policy.max()));
        let mut short_since = None;
        for sample in samples {
            let before = pool.workers;
            let verdict = pool.step(sample.now, sample);
            let starved = sample.waiting > 0 && sample.busy >= before;
            let short = starved && verdict.demand.min(policy.max()) > before;
            short_since = short.then(|| short_since.unwrap_or(pool.now));
            if verdict.target > before {
                let stalled = starved && sample.stalled >= PATIENCE;
                let backlog = short_since.is_some_and(|since| pool.now - since >= CPU_PATIENCE);
                prop_assert!(
                    stalled || backlog || verdict.demand > before + policy.tolerance(), "{:?} {:?}", verdict, sample
                );
                short_since = None;
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
        // What a valve has added stays a little longer.
        let window = policy.keep_alive() + CPU_PATIENCE * 2;
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
    /// or it is at its maximum, one step a patience at most; for computations that becomes longer each time.
    #[test]
    fn no_job_waits_for_the_next_arrival(
        policy in policies(), samples in samples(), jobs in 1_usize..200, burning in any::<bool>(),
    ) {
        let mut pool = Pool::new(policy, policy.min());
        for sample in samples {
            pool.step(sample.now, sample);
        }
        let mut patience = if burning { CPU_PATIENCE } else { PATIENCE };
        let mut last_taken = pool.now;
        let (mut after, mut has_grown) = (Duration::ZERO, false);
        while pool.workers < jobs.min(policy.max()) {
            let busy = pool.workers.min(jobs);
            let before = pool.workers;
            let sample = Sample {
                waiting: jobs - busy,
                busy,
                blocked: Some(if burning { 0 } else { busy }),
                cores: 2,
                time_per_job: Duration::from_secs(1),
                stalled: pool.now + after - last_taken,
                ..Sample::default()
            };
            let verdict = pool.step(after, sample);
            // What was there before may be surplus; what was added for these jobs is not.
            prop_assert!(pool.workers >= before || !has_grown, "{:?}", verdict);
            has_grown |= pool.workers > before;
            let waits = pool.now - last_taken;
            prop_assert!(waits <= patience * 2, "{:?} for {:?}", waits, verdict);
            if pool.workers > before {
                last_taken = pool.now;
                patience = if burning { (patience * 2).min(MAX_CPU_PATIENCE) } else { patience };
            }
            let asked = verdict.check_after;
            prop_assert!(asked.is_some() || pool.workers >= jobs.min(policy.max()), "it does not ask again: {:?}", verdict);
            after = asked.unwrap_or_default();
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

    /// `after` the step before, the pool is as `sample` says.
    fn step(&mut self, after: Duration, sample: Sample) -> Verdict {
        self.now += after;
        let (memory, verdict) =
            decide(&self.policy, self.memory, &Sample { now: self.now, workers: self.workers, ..sample });
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
            time_per_job: Duration::from_secs(1),
            peak: jobs,
            stalled,
            ..Sample::default()
        };
        self.step(after, sample)
    }
}

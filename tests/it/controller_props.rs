//! Properties of the controller for any sequence of samples.

use std::time::Duration;

use proptest::prelude::*;
use tidemill::controller::{Memory, Policy, Sample, decide};

fn policies() -> impl Strategy<Value = Policy> {
    (0_usize..100, 0_usize..10_000, 0_usize..50, 0_u64..60_000).prop_map(
        |(min, more, tolerance, keep_alive)| {
            Policy::new(min, min + more, tolerance, Duration::from_millis(keep_alive))
        },
    )
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
        0_u64..10_000_000_000,
    );
    let sample = sample.prop_map(|(step, waiting, busy, blocked, cores, time, peak, stalled)| Sample {
        // The step to the previous one; turned into a time below.
        now: Duration::from_nanos(step),
        workers: 0,
        waiting,
        busy,
        blocked,
        cores,
        time_per_job: Duration::from_nanos(time >> (time % 64)),
        peak,
        stalled: Duration::from_nanos(stalled),
    });
    prop::collection::vec(sample, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

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

    /// Inside the tolerance, with work that makes progress, nothing is resized.
    #[test]
    fn inside_the_tolerance_nothing_happens(policy in policies(), samples in samples(), start in 0_usize..12_000) {
        let workers = start.clamp(policy.min(), policy.max());
        let (mut memory, mut now) = (Memory::default(), Duration::ZERO);
        for mut sample in samples {
            now += sample.now;
            // Demand within the tolerance of the pool, seen as often as the window is long.
            let most = workers.saturating_add(policy.tolerance());
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
}

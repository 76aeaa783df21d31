//! Samples made by hand, each with the verdict that the rule must give.

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
    assert_eq!(late(1040, 30 * MS), 19, "it came later, and is inside the tolerance");
    let running = Sample { blocked: Some(21), ..sample(1001, 19, 0, 21) };
    assert_eq!(decide(&policy, memory, &running).1.target, 19, "none of it waits");
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
    assert_eq!(check_after(Some(50 * MS), 2 * MS), None, "what has not come by now is another one");
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
    let unknown = verdict(Sample { oldest_wait: 10 * MS, ..sample(1000, 2, 2, 2) });
    assert_eq!((unknown.target, unknown.reason, unknown.check_after), (2, Reason::Steady, Some(LOOK)));
    let surplus = |workers| verdict(Sample { blocked: Some(3), ..sample(1000, workers, 0, 3) });
    assert_eq!((surplus(5).target, surplus(5).reason), (5, Reason::Steady));
    assert_eq!((surplus(6).target, surplus(6).reason), (3, Reason::Surplus));
}

#[test]
fn a_pool_at_one_of_its_limits_is_steady() {
    let reason = |sample| verdict(sample).reason;
    assert_eq!(reason(Sample { blocked: Some(64), ..sample(2000, 64, 9, 64) }), Reason::Steady);
    let overdue = Sample { blocked: Some(64), oldest_wait: 1000 * MS, ..sample(2000, 64, 1, 64) };
    assert_eq!(reason(overdue), Reason::Steady);
    let idle = sample(2000, 10, 0, 0);
    let least = Policy::new(10, 64, 2, 5000 * MS);
    assert_eq!(decide(&least, Memory::default(), &idle).1.reason, Reason::Steady);
}

#[test]
fn what_was_seen_of_blocking_is_smoothed_and_forgotten_after_a_second() {
    let policy = policy();
    let look = |now, blocked| Sample { blocked, ..sample(now, 10, 52, 10) };
    let (computing, _) = decide(&policy, Memory::default(), &look(5000, Some(0)));
    let demand = |after: u32, blocked| decide(&policy, computing, &look(5000 + after, blocked)).1.demand;
    assert_eq!(demand(999, Some(10)), 12, "half of them block as far as is known, and there are two cores");
    assert_eq!(demand(1000, Some(10)), 62);
    assert_eq!((demand(999, None), demand(1000, None)), (2, 62));
    let nobody = Sample { blocked: Some(0), ..sample(5000, 10, 52, 0) };
    let (memory, _) = decide(&policy, Memory::default(), &nobody);
    assert_eq!(
        decide(&policy, memory, &look(5001, Some(10))).1.demand,
        62,
        "nobody ran, so nothing was seen"
    );
}

#[test]
fn a_worker_is_worth_a_look_after_twice_the_time_of_a_job() {
    let means = [None, Some(MS / 4), Some(2 * MS), Some(60 * MS)];
    assert_eq!(means.map(Policy::lost_after), [MS, MS, 4 * MS, 100 * MS]);
}

#[test]
fn work_that_waits_for_a_few_jobs_time_opens_the_valve_by_more_than_the_tolerance() {
    let waiting = |oldest_wait, mean, blocked| {
        verdict(Sample { oldest_wait, mean: Some(mean), blocked, ..sample(1000, 2, 1, 2) })
    };
    assert_eq!(waiting(19 * MS, 5 * MS, Some(2)).target, 2);
    assert_eq!(waiting(19 * MS, 5 * MS, Some(2)).check_after, Some(MS), "asks again when it is due");
    assert_eq!(waiting(20 * MS, 5 * MS, Some(2)).target, 5);
    assert_eq!(waiting(20 * MS, 5 * MS, Some(2)).check_after, Some(LOOK), "there may be more");
    let three = sample(1000, 3, 1, 3);
    let three = Sample { oldest_wait: 20 * MS, mean: Some(5 * MS), blocked: Some(3), ..three };
    assert_eq!(verdict(three).target, 6);
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
fn computations_wait_as_short_as_at_first_once_none_has_for_long() {
    let policy = policy();
    let burning = |now, workers| {
        let burning = sample(now, workers, 20, workers);
        Sample { stalled: MAX_PATIENCE, oldest_wait: MAX_PATIENCE, blocked: Some(0), ..burning }
    };
    let (memory, first) = decide(&policy, Memory::default(), &burning(1000, 2));
    assert_eq!(first.target, 3);
    let target = |after: u32| decide(&policy, memory, &burning(1000 + after, 3)).1.target;
    // The keep-alive time, and twice the longest that they wait.
    assert_eq!((target(5000 + 12_799), target(5000 + 12_800)), (3, 4));
}

#[test]
fn a_flood_that_nobody_has_begun_grows_nothing_yet() {
    let flood = Sample { mean: Some(Duration::from_micros(10)), ..sample(0, 2, 512, 0) };
    assert_eq!(verdict(flood).target, 2);
    assert!(verdict(flood).check_after.is_some(), "it looks again");
}

#[test]
fn a_stuck_job_counts_as_one_and_says_nothing_of_the_others() {
    let mostly_stuck = Sample { old: 20, mean: Some(Duration::from_micros(100)), ..sample(0, 22, 198, 22) };
    assert_eq!(mostly_stuck.weighed(), 40);
}

#[test]
fn where_all_stand_still_the_standstill_says_how_long_jobs_take() {
    let still = Sample { mean: Some(Duration::from_micros(2)), stalled: MS, old: 2, ..sample(0, 2, 62, 2) };
    assert_eq!(still.weighed(), 64);
    let unknown = Sample { mean: None, oldest_age: MS / 4, stalled: MS / 4, ..sample(0, 2, 62, 2) };
    assert_eq!(unknown.weighed(), 16);
    let mean = Some(Duration::from_micros(2));
    let one_free = Sample { mean, stalled: MS, ..sample(0, 3, 62, 2) };
    assert_eq!(one_free.weighed(), 1, "it takes the next at once");
    let none_waits = Sample { mean, stalled: MS, ..sample(0, 2, 0, 2) };
    assert_eq!(none_waits.weighed(), 1, "there is none to be taken");
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
fn at_its_maximum_it_is_looked_whether_the_work_blocks_as_it_may_have_to_come_down() {
    let wants =
        |workers, jobs| policy().wants_blocked(&Memory::default(), &sample(2000, workers, jobs, workers));
    assert!(wants(64, 2), "inside the tolerance, but there is no growth to be considered above the maximum");
    assert!(!wants(60, 2) && wants(60, 3), "below it only where growth is considered");
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

#[test]
fn a_policy_is_moved_into_its_range() {
    let told = |policy: Policy| (policy.min(), policy.max(), policy.tolerance(), policy.keep_alive());
    assert_eq!(told(policy()), (2, 64, 2, 5000 * MS));
    assert_eq!(told(Policy::new(0, 0, 0, Duration::ZERO)), (1, 1, 0, MS));
    assert_eq!(told(Policy::new(5, 4, 9, MS)), (5, 5, 9, MS));
}

#[test]
fn a_decision_says_what_and_why() {
    let decision = |from, to, reason| Decision {
        at: MS,
        demand: 9,
        waiting: 7,
        busy: 2,
        blocked: None,
        from,
        to,
        reason,
    };
    for (from, to, reason, word, expected) in [
        (2, 9, Reason::Demand, "demand", "grew from 2 to 9: the work was worth 9 (2 busy, 7 waiting)"),
        (2, 5, Reason::Valve, "valve", "grew from 2 to 5: work waited for too long (2 busy, 7 waiting)"),
        (
            9,
            2,
            Reason::Surplus,
            "surplus",
            "shrank from 9 to 2: no more than 2 were wanted within the keep-alive time",
        ),
        (9, 4, Reason::Limits, "limits", "shrank from 9 to 4: it was outside of its limits"),
    ] {
        assert_eq!((reason.as_str(), decision(from, to, reason).to_string().as_str()), (word, expected));
    }
    assert_eq!((Reason::Steady.as_str(), Reason::CpuBound.as_str()), ("steady", "cpu_bound"));
}

//! The rows of the elasticity scorecard that need no clock: the server's own rule in simulated time, exact and seeded.
//!
//! The limits are those of the scorecard: 2 to 64 workers, tolerance 2, a keep-alive of 5 s, two cores.

use std::time::Duration;

use proptest::prelude::*;
use tidemill::Decision;
use tidemill::controller::{Policy, Reason};
use tidemill::simulate::{self, Machine, Rule, Run, Setup, Workload};

use crate::support::seeded;

const MS: Duration = Duration::from_millis(1);
const KEEP_ALIVE: Duration = Duration::from_secs(5);

fn limits(min: usize, max: usize, tolerance: usize) -> Policy {
    Policy::new(min, max, tolerance, KEEP_ALIVE)
}

/// As long as one pass of the workload.
fn setup(workload: &str) -> (Setup, Workload) {
    let workload: Workload = workload.parse().unwrap();
    (Setup::new(limits(2, 64, 2), workload.duration()), workload)
}

fn play(workload: &str) -> Run {
    play_by(Rule::Tidemill, workload)
}

fn play_by(rule: Rule, workload: &str) -> Run {
    let (setup, workload) = setup(workload);
    simulate::run(&Setup { rule, ..setup }, &workload)
}

/// A pool that has `workers` from the start and never changes.
fn play_fixed(workers: usize, workload: &str) -> Run {
    let (setup, workload) = setup(workload);
    simulate::run(&Setup { policy: limits(workers, workers, 2), ..setup }, &workload)
}

fn grown(run: &Run) -> impl Iterator<Item = &Decision> {
    run.decisions.iter().filter(|decision| decision.to > decision.from)
}

/// Row 1.
#[test]
fn a_burst_gets_all_its_workers_within_milliseconds_and_none_too_many() {
    let run = play("burst=64@1s block=50ms");
    assert!(run.peak_workers == 64 && run.resizes <= 3, "{:?}", run.decisions);
    assert!(run.decisions[0].at - 1000 * MS <= MS, "{:?}", run.decisions[0]);
    assert!(run.wait.max <= 5 * MS, "{:?}", run.wait);
    let smaller = play("burst=20@1s block=50ms");
    assert_eq!(smaller.peak_workers, 20);
}

/// Row 1: as sockets bring it, some at a time, whether it is known how long requests take or not. None is left to the valve.
#[test]
fn a_burst_that_comes_in_pieces_is_met_as_one() {
    for before in ["", "burst=1@500ms block=50ms + "] {
        for pieces in [&[2; 10][..], &[3; 7], &[2; 25], &[18, 1, 0, 0, 0, 1]] {
            let count: usize = pieces.iter().sum();
            let burst = pieces.iter().zip((1_000_000..).step_by(60)).filter(|(size, _)| **size > 0);
            let burst: Vec<_> = burst.map(|(size, at)| format!("{size}@{at}us")).collect();
            let run = play(&format!("{before}burst={} block=50ms", burst.join(",")));
            assert_eq!(run.peak_workers, count, "{:?}", run.decisions);
            assert!(run.wait.max <= 3 * MS, "{:?} {:?}", run.wait, run.decisions);
        }
    }
}

/// Row 2.
#[test]
fn the_same_burst_within_the_window_starts_no_thread() {
    let run = play("burst=64@1s,64@4s block=50ms");
    assert_eq!(run.threads_started, 62);
    let again = play("burst=64@1s block=50ms + burst=64@4s block=50ms");
    assert_eq!(again.streams[1].wait.max, Duration::ZERO);
}

/// Row 3.
#[test]
fn without_any_traffic_it_is_back_at_its_minimum_after_the_keep_alive() {
    let run = play("clients=hold:64@2s,hold:0@10s block=50ms");
    let last = run.decisions.last().unwrap();
    assert_eq!((last.to, last.reason), (2, Reason::Surplus));
    // The last request ends 50 ms after the last client has left.
    assert!(last.at <= 2050 * MS + KEEP_ALIVE + 500 * MS, "{last:?}");
    assert!(last.at >= 2000 * MS + KEEP_ALIVE, "{last:?}");
}

/// Row 4.
#[test]
fn a_trickle_after_a_burst_does_not_keep_the_workers() {
    let run = play("trickle");
    let after = 1.0 + KEEP_ALIVE.as_secs_f64() + 1.0;
    for point in run.series.iter().filter(|point| point.t >= after) {
        assert!(point.workers <= 4, "{point:?}");
    }
    // So this row can fail: the pool that the literature knows to stay.
    assert_eq!(play_by(Rule::Tokio, "trickle").last_workers, 64);
}

/// Row 5.
#[test]
fn a_ramp_is_followed_up_and_down_with_one_turn() {
    let run = play("clients=ramp:0..64@30s,ramp:64..0@30s,hold:0@10s block=50ms");
    assert!(run.unmet <= 0.02, "{}", run.unmet);
    assert!(run.unneeded <= 0.15, "{}", run.unneeded);
    assert_eq!((run.turns, run.last_workers), (1, 2));
}

/// Row 6.
#[test]
fn a_sawtooth_faster_than_the_window_does_not_make_it_swing() {
    let run = play("sawtooth");
    assert!(run.turns <= 2, "{}", run.turns);
    // The first tooth grows the pool, with its inertia; from then on hardly anybody waits. For a fixed one nobody does.
    let late = || run.series.iter().filter(|point| point.t > 2.0);
    let (waiting, demand): (usize, usize) =
        (late().map(|point| point.waiting).sum(), late().map(|point| point.demand).sum());
    assert!(waiting * 200 <= demand, "{waiting} of {demand}");
    assert!(play_by(Rule::Assignment, "sawtooth").turns > 50, "so this row can fail");
}

/// Row 7.
#[test]
fn on_and_off_starts_no_thread_after_the_first_cycle() {
    let run = play("onoff");
    assert!(grown(&run).all(|decision| decision.at < 2000 * MS), "{:?}", run.decisions);
}

/// Row 8.
#[test]
fn demand_that_varies_within_the_tolerance_resizes_nothing() {
    for seed in 0..20 {
        let (setup, workload) = setup("noise");
        let run = simulate::run(&Setup { seed, ..setup }, &workload);
        let late: Vec<_> = run.decisions.iter().filter(|decision| decision.at > 1000 * MS).collect();
        // All the demand there can be comes in the first second of these but for 1 in 100.
        assert!(
            late.len() <= usize::from(run.decisions.iter().all(|decision| decision.to < 18)),
            "{seed}: {late:?}"
        );
    }
    assert!(play_by(Rule::Assignment, "noise").resizes > 100, "so this row can fail");
}

/// Row 9.
#[test]
fn demand_that_varies_by_more_resizes_a_few_times_a_minute() {
    for spread in 3..=6 {
        for seed in 0..5 {
            let text = format!("clients=random:{}..{}x1200@60s block=50ms", 16 - spread, 16 + spread);
            let (setup, workload) = setup(&text);
            let run = simulate::run(&Setup { seed, ..setup }, &workload);
            assert!(run.resizes <= 6, "{spread}, {seed}: {:?}", run.decisions);
        }
    }
}

/// Row 10.
#[test]
fn what_the_tolerance_would_strand_is_served_within_milliseconds() {
    for more in 1..=8 {
        let text = format!("burst=1@1s block=1h + burst={more}@2s block=1ms");
        let (setup, workload) = setup(&text);
        let run = simulate::run(&Setup { policy: limits(1, 64, 8), ..setup.clone() }, &workload);
        assert_eq!(run.streams[1].finished, more);
        assert!(run.streams[1].latency.max <= 10 * MS, "{more}: {:?}", run.streams[1]);
        // The assignment's own rule strands them: this row can fail.
        let run =
            simulate::run(&Setup { policy: limits(1, 64, 8), rule: Rule::Assignment, ..setup }, &workload);
        assert_eq!(run.streams[1].finished, 0);
    }
}

/// Row 12.
#[test]
fn work_for_the_cpu_gets_no_more_workers_than_are_of_use() {
    let run = play("cpu");
    assert!(run.mean_workers <= 2.0 + 2.0 + 1.0, "{}", run.mean_workers);
    let best = (2..=8).map(|workers| play_fixed(workers, "cpu").streams[0].finished).max().unwrap();
    assert!(run.streams[0].finished * 100 >= best * 97, "{} of {best}", run.streams[0].finished);
    assert!(play_by(Rule::Tokio, "cpu").mean_workers > 50.0, "so this row can fail");
}

/// Row 13.
#[test]
fn short_requests_do_not_wait_behind_long_ones_that_block() {
    let run = play("mixed");
    assert!(run.streams[1].latency.max <= 10 * MS, "{:?}", run.streams[1]);
    assert!(play_by(Rule::Jdk, "mixed").streams[1].wait.p99 > 100 * MS, "so this row can fail");
}

/// Row 14.
#[test]
fn a_worker_lost_to_sleep_is_replaced_for_the_cpu() {
    let without = play("rate=hold:1900@20s poisson cpu=1ms");
    let with = play("rate=hold:1900@20s poisson cpu=1ms + burst=1@1s block=1h");
    assert!(with.streams[0].finished * 100 >= without.streams[0].finished * 98, "{:?}", with.streams[0]);
    assert!(with.peak_workers <= 5, "{}", with.peak_workers);
    let lost = play_by(Rule::Jdk, "rate=hold:1900@20s poisson cpu=1ms + burst=1@1s block=1h");
    assert!(lost.streams[0].finished * 100 < without.streams[0].finished * 60, "so this row can fail");
}

/// Those that never return count as one each, and say nothing of how long the others take.
#[test]
fn a_few_stuck_jobs_beside_short_ones_do_not_make_it_swing() {
    let run = play("burst=20@1s block=1h + clients=hold:200@60s block=100us");
    assert!(run.turns <= 1, "{:?}", run.decisions);
}

/// Too little to be told of by demand alone: only work that waits at every look shows it.
#[test]
fn workers_lost_to_sleep_are_replaced_while_the_last_one_makes_progress() {
    // The few requests before tell how short they are, so that the tuner sleeps when the stuck ones come.
    let load =
        "rate=hold:100@10s cpu=2us + burst=3@10s block=1h + clients=hold:0@10s,hold:60@10s block=100us";
    let (setup, workload) = setup(load);
    let run = simulate::run(&Setup { policy: limits(4, 64, 4), ..setup }, &workload);
    let then = run.decisions.iter().find(|decision| decision.at >= 10_000 * MS);
    assert!(then.is_some_and(|decision| decision.at <= 10_200 * MS), "{:?}", run.decisions);
    assert!(run.last_workers >= 9, "three stuck, and six for the others: {:?}", run.decisions);
}

/// Another worker is no help for computations, however long they take.
#[test]
fn long_computations_do_not_grow_it_to_its_maximum() {
    for load in ["rate=hold:3@60s cpu=1s", "rate=hold:1.9@120s poisson cpu=1s"] {
        let run = play(load);
        assert!(run.peak_workers <= 10, "{load}: {:?}", run.decisions);
    }
}

/// Row 16.
#[test]
fn changed_limits_are_obeyed_within_milliseconds() {
    let (setup, workload) = setup("clients=hold:40@10s block=50ms");
    let at = |seconds: u64, min, max, tolerance| (Duration::from_secs(seconds), limits(min, max, tolerance));
    let changes = vec![at(2, 2, 10, 2), at(4, 2, 64, 2), at(6, 50, 64, 2), at(8, 2, 3, 30)];
    let run = simulate::run(&Setup { changes, ..setup }, &workload);
    let after: Vec<_> = run.decisions.iter().filter(|decision| decision.at >= 2000 * MS).collect();
    assert_eq!(after.iter().map(|decision| decision.to).collect::<Vec<_>>(), [10, 40, 50, 3]);
    for (decision, seconds) in after.iter().zip([2, 4, 6, 8]) {
        assert!(decision.at - Duration::from_secs(seconds) <= 50 * MS, "{decision:?}");
    }
    assert_eq!(
        run.streams[0].arrived - run.streams[0].finished,
        40,
        "nothing is lost: one each is under way"
    );
}

/// Row 19.
#[test]
fn steady_load_at_half_capacity_is_served_as_by_a_fixed_pool() {
    let text = "rate=hold:640@30s poisson block=50ms exponential";
    let (run, fixed) = (play(text), play_fixed(64, text));
    assert!(run.streams[0].finished * 100 >= fixed.streams[0].finished * 98);
    assert!(run.streams[0].latency.p99 <= fixed.streams[0].latency.p99.mul_f64(1.1), "{:?}", run.streams[0]);
}

/// Row 20.
#[test]
fn a_trivial_flood_grows_nothing() {
    let run = play("clients=hold:1000@5s cpu=4us");
    assert_eq!((run.resizes, run.peak_workers), (0, 2));
    let slower = play("flood");
    assert_eq!(slower.peak_workers, 2);
}

/// Row 21.
#[test]
fn a_slow_ramp_is_followed_in_steps_of_more_than_the_tolerance() {
    for (block, tolerance) in [(50, 2), (50, 6), (5, 2), (300, 3)] {
        let text = format!("clients=ramp:1..64@30s,ramp:64..1@30s block={block}ms");
        let (setup, workload) = setup(&text);
        let run = simulate::run(&Setup { policy: limits(2, 64, tolerance), ..setup }, &workload);
        let most = 63 / (tolerance + 1) + 2;
        let up = grown(&run).count();
        let down = run.decisions.len() - up;
        assert!(up <= most && down <= most, "{block}, {tolerance}: {up} up, {down} down, at most {most}");
        assert!(
            grown(&run).all(|step| step.to - step.from > tolerance || step.to == 64),
            "{:?}",
            run.decisions
        );
        if tolerance == 2 {
            assert!(run.unneeded <= 0.15 && run.unmet <= 0.05, "{block}: {} {}", run.unneeded, run.unmet);
        }
    }
}

/// Row 22.
#[test]
fn inside_the_band_requests_wait_their_turn_and_nothing_is_resized() {
    // The first of them tells how long they take.
    let (setup, workload) = setup("clients=hold:1@500ms,hold:10@5s block=20ms");
    let run = simulate::run(&Setup { policy: limits(4, 64, 8), ..setup }, &workload);
    assert_eq!(run.resizes, 0, "{:?}", run.decisions);
    assert!(run.streams[0].latency.max <= 100 * MS, "{:?}", run.streams[0].latency);
}

/// Row 23.
#[test]
fn a_tolerance_above_all_costs_no_more_than_a_few_times_what_requests_take() {
    let (setup, workload) = setup("clients=hold:40@3s block=5ms");
    let run = simulate::run(&Setup { policy: limits(2, 64, 1000), ..setup }, &workload);
    assert!(run.resizes <= 3, "{:?}", run.decisions);
    assert!(run.series.iter().filter(|point| point.t > 0.2).all(|point| point.waiting == 0));
}

/// Row 24.
#[test]
fn work_for_the_cpu_that_cannot_be_known_as_such_is_taken_for_it() {
    let (setup, workload) = setup("cpu");
    let machine = Machine { shows_states: false, ..Machine::default() };
    let run = simulate::run(&Setup { machine, ..setup }, &workload);
    assert!(run.mean_workers <= 2.0 + 2.0 + 1.0 + 2.0, "{}", run.mean_workers);
    assert!(run.peak_workers <= 7, "{:?}", run.decisions);
}

/// Row 25.
#[test]
fn cores_that_come_and_go_are_followed_within_a_second() {
    let (setup, workload) = setup("clients=hold:48@20s cpu=1ms");
    let core_changes = vec![(Duration::from_secs(4), 6), (Duration::from_secs(10), 2)];
    let run = simulate::run(&Setup { core_changes, ..setup }, &workload);
    let more = grown(&run).find(|decision| decision.at >= 4000 * MS).unwrap();
    assert!(more.to == 6 && more.at <= 5100 * MS, "{:?}", run.decisions);
    let before = run.decisions.iter().find(|decision| decision.at < 4000 * MS);
    assert_eq!(before, None, "two are enough for two");
    // What is of no use any more is let go like any surplus.
    assert!(run.last_workers <= 4, "{:?}", run.decisions);
}

/// Row 26.
#[test]
fn a_worker_lost_inside_the_band_is_replaced_within_milliseconds() {
    for request in ["cpu=1ms", "cpu=200us"] {
        let mut replaced = Vec::new();
        for number in 0..40 {
            // At another moment each time, for the tuner's clock.
            let at = Duration::from_micros(500_000 + 370 * number);
            let text = format!("clients=hold:48@600ms {request} + burst=1@{}us block=1h", at.as_micros());
            let run = play(&text);
            let then = grown(&run).find(|decision| decision.at >= at);
            let then = then.unwrap_or_else(|| panic!("{text}: {:?} {:?}", run.decisions, run.streams));
            // It is lost when it is taken, behind those that waited before it.
            replaced.push(then.at - at - run.streams[1].wait.max);
        }
        replaced.sort();
        assert!(replaced[20] <= 3 * MS && replaced[39] <= 10 * MS, "{request}: {replaced:?}");
    }
}

/// What the other rules are known for.
#[test]
fn other_rules_do_what_their_sources_say() {
    let burst = "burst=64@1100ms block=50ms";
    assert_eq!(play_by(Rule::Jdk, burst).peak_workers, 2, "the core size: its queue never refuses");
    assert_eq!(play_by(Rule::Tokio, burst).peak_workers, 64);
    assert_eq!(play_by(Rule::DotNet, burst).peak_workers, 2, "something is taken every 50 ms");
    let stuck = play_by(Rule::DotNet, "burst=64@1s block=10s + burst=1@10s block=1ms");
    assert!(
        (10..=20).contains(&stuck.peak_workers),
        "one every half second or second: {}",
        stuck.peak_workers
    );
    let gone = "burst=64@1s block=50ms + burst=1@9s block=1ms";
    let last = |rule| play_by(rule, gone).last_workers;
    assert!(last(Rule::Tokio) <= 1, "{}", last(Rule::Tokio));
    assert_eq!(last(Rule::Squid), 64, "a helper that was started stays");

    let steps = |rule, workload| -> Vec<(u64, usize)> {
        play_by(rule, workload)
            .decisions
            .iter()
            .map(|decision| (decision.at.as_secs(), decision.to))
            .collect()
    };
    let long = "burst=20@1500ms block=1h + burst=1@9s block=1h";
    let (once_a_second, doubled) = ((2..=9).collect::<Vec<u64>>(), [4, 6, 8, 10, 12, 14, 16, 18]);
    let php_fpm = steps(Rule::PhpFpm, long);
    assert_eq!(
        php_fpm[..8],
        once_a_second.into_iter().zip(doubled).collect::<Vec<_>>(),
        "what is missing of 2 spare ones"
    );
    let longer = "burst=20@1s block=1h + burst=1@200s block=1h";
    assert_eq!(steps(Rule::RoadRunner, longer), [(61, 7)], "one batch a second, for those that waited 60 s");
    let one_in_vain = "burst=3@1s block=90s + burst=1@200s block=1ms";
    assert_eq!(
        steps(Rule::RoadRunner, one_in_vain)[..2],
        [(61, 7), (61 + KEEP_ALIVE.as_secs(), 3)],
        "those of the batch that are idle leave at the end of the idle timeout that began with it"
    );
    assert_eq!(steps(Rule::Squid, long).len(), 19, "one for each that found none free");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let text = "rate=hold:500@5s poisson block=20ms cpu=100us exponential";
    let (setup, workload) = setup(text);
    let run = |seed| format!("{:?}", simulate::run(&Setup { seed, ..setup.clone() }, &workload));
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn ten_thousand_workers_are_started_and_let_go() {
    let workload: Workload = "burst=10000@1s block=2s + burst=1@12s cpu=1us".parse().unwrap();
    let run = simulate::run(&Setup::new(limits(1, 10_000, 2), workload.duration()), &workload);
    assert_eq!((run.peak_workers, run.last_workers), (10_000, 1));
}

proptest! {
    #![proptest_config(seeded(200))]

    /// Whatever blocks, with room to grow: every request is taken, in the order of some milliseconds, and the decisions
    /// played again from the minimum give the sizes that the pool had.
    #[test]
    fn no_request_is_stranded_and_the_decisions_tell_all(
        min in 1_usize..8, tolerance in 0_usize..16, seed in 0_u64..1000, cores in 1_usize..4,
        (low, high) in (0_u32..40, 0_u32..40), block in 1_u64..200, stuck in 1_u32..8,
    ) {
        let (low, high) = (low.min(high), low.max(high).max(1));
        let text = format!(
            "clients=random:{low}..{high}x40@4s,hold:0@8s block={block}ms + burst={stuck}@1s block=1h"
        );
        let workload: Workload = text.parse().unwrap();
        let policy = limits(min, 1000, tolerance);
        let machine = Machine { cores, ..Machine::default() };
        let run = simulate::run(&Setup { seed, machine, ..Setup::new(policy, workload.duration()) }, &workload);
        // Inertia: a few times what a request takes.
        let patience = (4 * MS * u32::try_from(block).unwrap()).clamp(2 * MS, 100 * MS);
        prop_assert!(run.wait.max <= patience + 15 * MS, "{:?} {:?}", run.wait, run.decisions);
        prop_assert_eq!(run.streams[0].arrived, run.streams[0].finished);
        let mut workers = min;
        for decision in &run.decisions {
            prop_assert_eq!(decision.from, workers);
            workers = decision.to;
        }
        prop_assert_eq!(workers, run.last_workers);
        prop_assert!(workers.abs_diff((stuck as usize).max(min)) <= tolerance, "{} for {}", workers, stuck);
    }
}

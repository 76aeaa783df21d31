//! One server for a long time: chaos, flood, churn and resizes in turns; then memory, descriptors and threads are what they
//! were, and the counters are exact.
//!
//! `TIDEMILL_SOAK_SECONDS=N` (`scripts/soak.sh`) goes on for so long; else it is only shown that it works.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::clients::{self, LINE_TIMEOUT, MAX_LINE, Place};
use super::session::{Account, Session};
use super::{CLIENTS, assert_balances};
use crate::support::{DEADLINE, Serving, allow_files, assert_json_adds_up, in_parallel, serve, tell};

/// Growth of the resident memory that is still noise between the middle and the end of a run: what the allocator keeps differs
/// with what the last turn was.
const NOISE_KIB: u64 = 4 << 10;

/// What the process occupies while nothing is to do.
#[derive(Clone, Copy, Debug)]
struct AtRest {
    after: Duration,
    resident_kib: u64,
    files: usize,
    threads: u64,
}

#[test]
fn nothing_grows_and_every_counter_is_exact() {
    allow_files(10_000);
    let seconds = std::env::var("TIDEMILL_SOAK_SECONDS").ok().map(|text| text.parse::<u64>().unwrap());
    let until = Duration::from_secs(seconds.unwrap_or(0));
    // A short turn tells as much, but of a long run only so many are to be kept in mind.
    let turn = (until / 200).clamp(Duration::from_millis(300), Duration::from_secs(10));
    let serving = serve(&format!(
        "--min-threads 2 --max-threads 16 --tolerance 1 --keep-alive 100ms --handler-delay 300us \
         --max-line {MAX_LINE} --line-timeout {LINE_TIMEOUT} --kill-from 127.0.0.2"
    ));
    let stopping = AtomicBool::new(false);
    let place = Place { server: serving.address, stopping: &stopping };
    let (begun, mut account, mut rests) = (Instant::now(), Account::default(), Vec::new());
    for round in 0.. {
        if round >= 3 && begun.elapsed() >= until {
            break;
        }
        for turn_of in [chaos, flood, churn, resizes] {
            account += turn_of(round, turn, &serving, place);
        }
        rests.push(at_rest(&serving, begun, rests.first().map_or(u64::MAX, |rest: &AtRest| rest.threads)));
    }
    stopping.store(true, SeqCst);
    let ended = serving.stop();
    ended.assert_clean();
    let stats = ended.stats();
    report(&rests, &account);
    assert_balances(&account, &stats, 0);
    for direction in ["grow", "shrink"] {
        assert!(stats["pool_resizes_total"][direction].as_u64() > Some(0), "{stats}");
    }
    assert_flat(&rests);
}

/// All kinds at once, and a stall now and then.
fn chaos(round: u64, turn: Duration, serving: &Serving, place: Place<'_>) -> Account {
    let mut random = Rng::with_seed(round);
    let sessions = 1 + usize::try_from(turn.as_secs()).unwrap();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || clients::play(number, round, sessions, place)))
            .collect();
        while clients.iter().any(|client| !client.is_finished()) {
            if random.u8(0..8) == 0 {
                serving.freeze();
                thread::sleep(Duration::from_millis(random.u64(1..100)));
                serving.resume();
            }
            thread::sleep(Duration::from_millis(random.u64(10..100)));
        }
        sum(clients.into_iter().map(|client| client.join().unwrap()))
    })
}

/// As many requests as go, on few connections.
fn flood(round: u64, turn: Duration, _: &Serving, place: Place<'_>) -> Account {
    sum(in_parallel(8, |number| {
        let mut account = Account::default();
        let mut session = Session::connect(place.server, None, &mut account, place.stopping).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < turn {
            for request in 0..50 {
                session.request(&format!("flood {round}.{number}.{request}")).unwrap();
            }
            session.read_replies().unwrap();
        }
        session.finish().unwrap();
        account
    }))
}

/// As many connections as go, one request each.
fn churn(_: u64, turn: Duration, _: &Serving, place: Place<'_>) -> Account {
    sum(in_parallel(8, |number| {
        let mut account = Account::default();
        let begun = Instant::now();
        while begun.elapsed() < turn {
            let mut session = Session::connect(place.server, None, &mut account, place.stopping).unwrap();
            session.request("churn").unwrap();
            session.read_replies().unwrap();
            // By a reset, and so without a port that stays in `TIME_WAIT`: there are not so many. Else as all do.
            match number {
                0 => session.finish().unwrap(),
                _ => session.leave(true),
            }
        }
        account
    }))
}

/// Bursts that the pool grows for, and pauses for which it shrinks.
fn resizes(round: u64, turn: Duration, _: &Serving, place: Place<'_>) -> Account {
    let begun = Instant::now();
    let mut all = Account::default();
    while begun.elapsed() < turn {
        all += sum(in_parallel(16, |number| {
            let mut account = Account::default();
            let mut session = Session::connect(place.server, None, &mut account, place.stopping).unwrap();
            for request in 0..100 {
                session.request(&format!("burst {round}.{number}.{request}")).unwrap();
            }
            session.finish().unwrap();
            account
        }));
        thread::sleep(Duration::from_millis(250));
    }
    all
}

fn sum(accounts: impl IntoIterator<Item = Account>) -> Account {
    let mut sum = Account::default();
    accounts.into_iter().for_each(|account| sum += account);
    sum
}

/// Waits until nobody is connected, nothing is held, the pool is as small as it gets, and there are no more than `threads`: one
/// that has left the pool takes a moment to end.
fn at_rest(serving: &Serving, begun: Instant, threads: u64) -> AtRest {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let stats = serving.stats();
        assert_json_adds_up(&stats);
        let idle = ["connections", "requests_pending", "held_bytes", "pool_busy"];
        let small = stats["pool_threads"] == 2 && serving.threads() <= threads;
        if small && idle.iter().all(|name| stats[*name] == 0) {
            break;
        }
        assert!(Instant::now() < deadline, "it does not come to rest: {stats}");
        thread::sleep(Duration::from_millis(20));
    }
    AtRest {
        after: begun.elapsed(),
        resident_kib: serving.resident_kib(),
        files: serving.open_files(),
        threads: serving.threads(),
    }
}

fn median_kib(rests: &[AtRest]) -> u64 {
    let mut resident: Vec<u64> = rests.iter().map(|rest| rest.resident_kib).collect();
    resident.sort_unstable();
    resident[resident.len() / 2]
}

/// The first third warms up: buffers and stacks come to the size that the work needs.
fn assert_flat(rests: &[AtRest]) {
    let (middle, end) = (&rests[rests.len() / 3..rests.len() * 2 / 3], &rests[rests.len() * 2 / 3..]);
    let (before, after) = (median_kib(middle), median_kib(end));
    assert!(after <= before + NOISE_KIB + before / 50, "{before} KiB became {after}: {rests:?}");
    for rest in rests {
        assert_eq!((rest.files, rest.threads), (rests[0].files, rests[0].threads), "{rests:?}");
    }
}

/// What a note on a long run wants to know.
fn report(rests: &[AtRest], account: &Account) {
    let by_third: BTreeMap<&str, &[AtRest]> = [
        ("1st", &rests[..rests.len() / 3]),
        ("2nd", &rests[rests.len() / 3..rests.len() * 2 / 3]),
        ("3rd", &rests[rests.len() * 2 / 3..]),
    ]
    .into();
    for (third, rests) in by_third {
        tell(&format!(
            "{third} third: {} KiB resident (median of {} rounds)",
            median_kib(rests),
            rests.len()
        ));
    }
    if let Some(last) = rests.last() {
        let AtRest { after, files, threads, .. } = last;
        tell(&format!("after {after:?}: {files} descriptors, {threads} threads; {account:?}"));
    }
}

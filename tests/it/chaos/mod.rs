//! A hundred clients of twelve kinds chosen at random, a server that is resized and stalled at random, and a stop at the end:
//! every client's account must balance with the server's.
//!
//! A seed decides what every client does and when the server is resized, stalled and stopped; how the threads run, it cannot.
//! A seed that fails is named, and `TIDEMILL_SEED=N cargo test chaos` plays the same actions again. `TIDEMILL_SEEDS=N` plays so
//! many instead of a few (`scripts/soak.sh`).

mod clients;
mod session;
mod soak;

use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::Value;
use tidemill::{Delay, Helo, PoolLimits, Server};

use crate::support::{
    Peer, Serving, allow_files, assert_json_adds_up, configure, resolved, serve, tell, total,
};
use clients::{LINE_TIMEOUT, MAX_LINE, Place};
use session::Account;

const CLIENTS: usize = 100;
/// Seeds that are played where nobody asks for more.
const FEW_SEEDS: u64 = 4;
/// An address of this machine that may stop the servers here, while the clients' may not.
const MAY_STOP: [u8; 4] = [127, 0, 0, 2];

/// Plays the seeds that were asked for, or a few.
fn for_seeds(name: &str, play: impl Fn(u64)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    allow_files(10_000);
    let seeds = match (number("TIDEMILL_SEED"), number("TIDEMILL_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(FEW_SEEDS),
    };
    for seed in seeds {
        if let Err(failed) = catch_unwind(AssertUnwindSafe(|| play(seed))) {
            tell(&format!("to play it again: TIDEMILL_SEED={seed} cargo test --test it {name}"));
            std::panic::resume_unwind(failed);
        }
    }
}

/// Settings that decide which ways requests go.
struct Settings {
    min_threads: usize,
    max_threads: usize,
    tolerance: usize,
    delay: Duration,
    max_pending: usize,
    send_buffer_bytes: usize,
}

impl Settings {
    fn random(random: &mut Rng) -> Settings {
        let min_threads = random.usize(1..5);
        Settings {
            min_threads,
            max_threads: min_threads + random.usize(0..16),
            tolerance: random.usize(0..4),
            delay: [Duration::ZERO, Duration::from_micros(200), Duration::from_millis(1)][random.usize(0..3)],
            max_pending: [4, 100, 65_536][random.usize(0..3)],
            send_buffer_bytes: [4096, 128 << 10][random.usize(0..2)],
        }
    }
}

/// All clients play, while `direct` does to the server what it does and stops it in the end; it is given what is to be set
/// before it stops. Returns the sum of the clients' accounts, and what `direct` returned.
fn play<T>(seed: u64, server: std::net::SocketAddr, direct: impl FnOnce(&AtomicBool) -> T) -> (Account, T) {
    let stopping = AtomicBool::new(false);
    let place = Place { server, stopping: &stopping };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || clients::play(number, seed, usize::MAX, place)))
            .collect();
        let result = catch_unwind(AssertUnwindSafe(|| direct(&stopping)));
        // For the clients' sake, if it failed.
        stopping.store(true, SeqCst);
        let mut sum = Account::default();
        let accounts: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        for account in accounts {
            sum += account.unwrap_or_else(|failed| std::panic::resume_unwind(failed));
        }
        (sum, result.unwrap_or_else(|failed| std::panic::resume_unwind(failed)))
    })
}

/// Now and then waits for so long that lines are given up that are not completed.
fn linger(random: &mut Rng) {
    if random.u8(0..4) == 0 {
        thread::sleep(Duration::from_secs(4));
    }
}

/// The clients' books and the server's say the same.
#[track_caller]
fn assert_balances(account: &Account, stats: &Value, other_connects: u64) {
    assert_json_adds_up(stats);
    let number = |value: &Value| value.as_u64().unwrap();
    let told = format!("{account:?}; {stats}");
    assert_eq!(number(&stats["connections_accepted_total"]), account.connects + other_connects, "{told}");
    let requests = &stats["requests_total"]["helo"];
    for counted in [number(&stats["replies_total"]), number(&requests["request"])] {
        // None was executed whose client was there and got no reply.
        assert!((account.answered..=account.answered + account.open).contains(&counted), "{counted}: {told}");
    }
    assert!(number(&stats["requests_dropped_total"]) <= account.open, "{told}");
    let silent = number(&requests["ignored"]) + number(&requests["stop"]);
    // One `KILL_SERVICE` may be the director's.
    let most = account.ignored + account.open_ignored + 1;
    assert!((account.ignored..=most).contains(&silent), "{silent}: {told}");
    let closed = &stats["connections_closed_total"];
    assert_eq!(number(&closed["line_too_long"]), account.too_long, "{told}");
    assert_eq!(number(&closed["kill_refused"]), account.refused, "{told}");
    assert_eq!(number(&closed["line_timeout"]), account.incomplete, "{told}");
    for reason in
        ["panic", "handler", "idle_timeout", "write_timeout", "request_timeout", "memory", "aborted"]
    {
        assert_eq!(closed[reason], 0, "{reason}: {told}");
    }
    assert_eq!(total(&stats["connections_rejected_total"]), 0, "{told}");
    assert_eq!((&stats["connections"], &stats["requests_pending"]), (&0.into(), &0.into()), "{told}");
}

/// `KILL_SERVICE` from an address that may.
fn kill(server: std::net::SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from((MAY_STOP, 0)).into()).unwrap();
    socket.connect(&server.into()).unwrap();
    let mut peer = Peer::over(TcpStream::from(socket));
    peer.send(b"KILL_SERVICE\n");
    peer.expect_end();
}

#[test]
fn chaos_beside_stalls_of_the_process() {
    for_seeds("chaos_beside_stalls_of_the_process", |seed| {
        let mut random = Rng::with_seed(seed);
        let settings = Settings::random(&mut random);
        let (ended, account, connects) = in_a_process(seed, &settings, &mut random);
        ended.assert_clean();
        assert_balances(&account, &ended.stats(), connects);
    });
}

fn in_a_process(seed: u64, settings: &Settings, random: &mut Rng) -> (crate::support::Ended, Account, u64) {
    let Settings { min_threads, max_threads, tolerance, delay, max_pending, send_buffer_bytes } = settings;
    let serving: Serving = serve(&format!(
        "--min-threads {min_threads} --max-threads {max_threads} --tolerance {tolerance} --keep-alive 50ms \
         --handler-delay {}us --max-pending {max_pending} --send-buffer {send_buffer_bytes} --max-line {MAX_LINE} \
         --line-timeout {LINE_TIMEOUT} --kill-from 127.0.0.2 --drain-timeout 1m",
        delay.as_micros(),
    ));
    let (account, (ended, connects)) = play(seed, serving.address, |stopping| {
        for _ in 0..random.usize(2..8) {
            thread::sleep(Duration::from_millis(random.u64(10..200)));
            if random.bool() {
                serving.freeze();
                thread::sleep(Duration::from_millis(random.u64(1..150)));
                serving.resume();
            } else {
                assert_json_adds_up(&serving.stats());
            }
        }
        linger(random);
        stopping.store(true, SeqCst);
        let connects = match random.u8(0..3) {
            0 => {
                serving.signal(Signal::TERM);
                0
            }
            1 => {
                serving.signal(Signal::INT);
                0
            }
            _ => {
                kill(serving.address);
                1
            }
        };
        (serving.wait(), connects)
    });
    (ended, account, connects)
}

#[test]
fn chaos_beside_resizes() {
    for_seeds("chaos_beside_resizes", |seed| {
        let mut random = Rng::with_seed(!seed);
        let settings = Settings::random(&mut random);
        let handler = Delay::new(Helo::new(), settings.delay);
        let server: Server = configure(handler, |config| {
            (config.min_threads, config.max_threads) = (settings.min_threads, settings.max_threads);
            config.tolerance = settings.tolerance;
            config.keep_alive = Duration::from_millis(50);
            config.max_pending = settings.max_pending;
            config.send_buffer_bytes = Some(settings.send_buffer_bytes);
            config.max_line_bytes = MAX_LINE;
            config.line_timeout = Some(humantime::parse_duration(LINE_TIMEOUT).unwrap());
            config.stop_from = tidemill::StopFrom::None;
            config.drain_timeout = Duration::from_secs(60);
        });
        let handle = server.handle();
        let (account, outcome) = play(seed, resolved(server.local_addr()), |stopping| {
            for _ in 0..random.usize(20..60) {
                thread::sleep(Duration::from_millis(random.u64(1..30)));
                let min = random.usize(1..12);
                let limits = PoolLimits::new(min, min + random.usize(0..24)).tolerance(random.usize(0..6));
                handle.set_pool_limits(limits.keep_alive(Duration::from_millis(random.u64(1..100)))).unwrap();
                assert_json_adds_up(&serde_json::to_value(handle.stats()).unwrap());
            }
            linger(&mut random);
            stopping.store(true, SeqCst);
            handle.stop();
            server.wait().unwrap()
        });
        assert!(outcome.is_clean(), "{outcome:?}");
        assert_eq!(outcome.left_behind.len(), 0);
        assert_balances(&account, &serde_json::to_value(&outcome.stats).unwrap(), 0);
    });
}

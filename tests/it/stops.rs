//! Stops at random moments under load, by each of the three ways: nothing that was executed, or read, goes unanswered.
//!
//! `TIDEMILL_STOPS=N` does so many instead of a hundred. One that fails is named, and `TIDEMILL_SEED=N` does it again.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;

use crate::support::{Peer, helo_reply, in_parallel, serve, tell};

const STOPS: usize = 100;
/// Clients that keep a connection, and send several requests at a time.
const KEEPING: usize = 6;
/// Clients that open a connection for each request.
const CONNECTING: usize = 3;

#[test]
fn a_hundred_stops_at_random_moments_leave_nothing_unanswered() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<usize>().unwrap());
    if let Some(seed) = number("TIDEMILL_SEED") {
        return stop_at_a_random_moment(seed);
    }
    in_parallel(number("TIDEMILL_STOPS").unwrap_or(STOPS), |seed| {
        if let Err(failed) = catch_unwind(AssertUnwindSafe(|| stop_at_a_random_moment(seed))) {
            tell(&format!("to do it again: TIDEMILL_SEED={seed} cargo test --test it stops::"));
            resume_unwind(failed);
        }
    });
}

fn stop_at_a_random_moment(seed: usize) {
    let mut random = Rng::with_seed(seed as u64);
    let delay = [0, 0, 200, 2000][random.usize(0..4)];
    let options = [
        format!("--handler-delay {delay}us"),
        format!("--min-threads {}", random.usize(1..8)),
        format!("--max-pending {}", [3, 65_536][random.usize(0..2)]),
        "--drain-timeout 1m".to_owned(),
    ];
    let serving = serve(&options.join(" "));
    let (address, moment) = (serving.address, Duration::from_micros(random.u64(0..60_000)));
    let (connects, stopping) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let keeping: Vec<_> = (0..KEEPING)
            .map(|number| {
                let (peer, depth) = (serving.connect(), random.usize(1..40));
                connects.fetch_add(1, Relaxed);
                let stopping = &stopping;
                scope.spawn(move || keep_asking(peer, &format!("stop {seed} {number}"), depth, stopping))
            })
            .collect();
        let connecting: Vec<_> =
            (0..CONNECTING).map(|_| scope.spawn(|| keep_connecting(address, &connects, &stopping))).collect();
        thread::sleep(moment);
        stopping.store(true, SeqCst);
        match seed % 3 {
            0 => serving.signal(Signal::TERM),
            1 => serving.signal(Signal::INT),
            _ => {
                // It may be late for a stop that has begun, but nothing else stops this one.
                let mut killer = serving.connect();
                connects.fetch_add(1, Relaxed);
                killer.send(b"KILL_SERVICE\n");
                killer.expect_end();
            }
        }
        let ended = serving.wait();
        ended.assert_clean();
        let received: usize = keeping.into_iter().chain(connecting).map(|it| it.join().unwrap()).sum();
        let stats = ended.stats();
        let told = format!("{received} replies came: {stats}");
        assert_eq!(stats["replies_total"], received, "{told}");
        assert_eq!(stats["service_seconds"]["count"], received, "executed, and not answered: {told}");
        assert_eq!(stats["requests_total"]["helo"]["request"], received, "read, and not answered: {told}");
        assert_eq!(
            (&stats["requests_dropped_total"], &stats["requests_pending"]),
            (&0.into(), &0.into()),
            "{told}"
        );
        assert_eq!(stats["connections_closed_total"]["reset"], 0, "{told}");
        assert_eq!(stats["connections_accepted_total"], connects.load(Relaxed), "{told}");
    });
}

/// Sends `depth` requests, reads as many replies, and again, until the server ends the connection. Returns how many replies
/// came; all were right, and all came to what was sent before the server was told to stop.
fn keep_asking(mut peer: Peer, text: &str, depth: usize, stopping: &AtomicBool) -> usize {
    let lines = format!("HELO {text}\n").repeat(depth);
    let reply = helo_reply(text.as_bytes(), peer.server());
    let mut came = 0;
    loop {
        let sent = peer.try_send(lines.as_bytes());
        // On this machine what was sent lies in the server's receive queue.
        let in_time = sent && !stopping.load(SeqCst);
        let replies = peer.replies(&reply, depth);
        came += replies;
        assert!(
            replies == depth || !in_time,
            "{replies} of {depth} replies to what was sent before the stop"
        );
        if replies < depth {
            return came;
        }
    }
}

/// A connection for each request, until the server is gone. Returns how many replies came; all were right. A connection that
/// was established ends without a reset, whether its request still came in time or not.
fn keep_connecting(address: SocketAddr, connects: &AtomicU64, stopping: &AtomicBool) -> usize {
    let reply = helo_reply(b"a connection of its own", address);
    let mut came = 0;
    loop {
        let stream = match TcpStream::connect(address) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return came,
            Err(error) => panic!("cannot connect: {error}"),
        };
        connects.fetch_add(1, Relaxed);
        let mut peer = Peer::over(stream);
        peer.send(b"HELO a connection of its own\n");
        let in_time = !stopping.load(SeqCst);
        peer.finish();
        let rest = peer.rest();
        assert!(rest == reply || rest.is_empty() && !in_time, "'{}'", rest.escape_ascii());
        came += usize::from(!rest.is_empty());
    }
}

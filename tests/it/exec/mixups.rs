//! Nothing is mixed up: a reply goes to its request or nowhere, whatever programs do.

use std::env;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{OBEDIENT, children, number, serve_exec, serve_script};
use crate::support::{SetAtEnd, assert_json_adds_up, eventually, in_parallel, seed};

const ONE: &str = "--min-threads 1 --max-threads 1";
const FAILED: &[u8] = b"ERROR program failed\n";

#[test]
fn a_program_that_ends_with_a_request_inside_fails_that_one() {
    let server = serve_script(OBEDIENT, ONE);
    let replies = server.connect().exchange(b"one\nexit\nafter\nexit\nexit\nlast\n");
    let failed = "ERROR program failed\n";
    assert_eq!(String::from_utf8(replies).unwrap(), format!("one\n{failed}after\n{failed}{failed}last\n"));
    server.stop().assert_clean();
}

#[test]
fn a_program_that_ends_between_requests_is_not_noticed() {
    let server = serve_script(OBEDIENT, ONE);
    let mut peer = server.connect();
    for _ in 0..5 {
        peer.send(b"pid\n");
        let program = number(&peer.line());
        kill_process(Pid::from_raw(program.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
        super::is_gone(program);
        peer.send(b"next\n");
        peer.expect(b"next\n");
    }
}

#[test]
fn a_late_reply_reaches_nobody() {
    let server = serve_script(OBEDIENT, &format!("{ONE} --exec-timeout 1s"));
    let replies = server.connect().exchange(b"sleep 3\none\nhalf\ntwo 2\nsleep 2\nlast\n");
    let failed = "ERROR program failed\n";
    assert_eq!(String::from_utf8(replies).unwrap(), format!("{failed}one\n{failed}2\n{failed}last\n"));
    server.expect_log("did not reply in time");
    server.stop().assert_clean();
}

#[test]
fn a_second_reply_is_never_anothers() {
    let server = serve_script(OBEDIENT, ONE);
    for _ in 0..5 {
        let replies = server.connect().exchange(b"two a\nb\ntwo c\ntwo d\ne\n");
        assert_eq!(String::from_utf8(replies).unwrap(), "a\nb\nc\nd\ne\n");
    }
    // Nor is one that comes later, though the next request waits for its turn.
    let replies = server.connect().exchange(b"later a\nb\nlater c\nlater d\ne\n");
    assert_eq!(String::from_utf8(replies).unwrap(), "a\nb\nc\nd\ne\n");
    server.stop().assert_clean();
}

#[test]
fn what_is_written_before_any_request_is_no_reply() {
    let greeting = "echo welcome; while read -r line; do echo \"$line\"; done";
    let server = serve_script(greeting, &format!("{ONE} --exec-spare 0"));
    let replies = server.connect().exchange(b"one\n");
    assert_eq!(String::from_utf8(replies).unwrap(), "ERROR program unavailable\n");
    server.expect_log("before it was asked");
    server.stop().assert_clean();
}

#[test]
fn a_program_that_is_stopped_costs_its_request_only() {
    let server =
        serve_script(OBEDIENT, "--min-threads 2 --max-threads 2 --exec-timeout 2s --exec-stop 200ms");
    let mut peer = server.connect();
    peer.send(b"pid\n");
    let program = number(&peer.line());
    kill_process(Pid::from_raw(program.try_into().unwrap()).unwrap(), Signal::STOP).unwrap();
    // The worker that has it comes round sooner or later.
    let mut failed = 0;
    let deadline = Instant::now() + crate::support::DEADLINE;
    while failed == 0 {
        assert!(Instant::now() < deadline);
        for reply in in_parallel(2, |_| server.connect().exchange(b"x\n")) {
            failed += usize::from(reply == FAILED);
            assert!(reply == FAILED || reply == b"x\n");
        }
    }
    assert_eq!(failed, 1);
    super::is_gone(program);
    server.stop().assert_clean();
}

/// Every request is answered once, in order, by its own reply or by one line, while programs are killed at random moments.
#[test]
fn kills_at_random_moments_mix_nothing_up() {
    if !super::is_installed("perl") {
        return;
    }
    let kills: usize = env::var("TIDEMILL_KILLS").map_or(60, |kills| kills.parse().unwrap());
    let server =
        serve_exec("perl -ne 'BEGIN { $| = 1 } print'", "--min-threads 4 --max-threads 8 --exec-spare 4");
    let (seed, is_over) = (seed(), AtomicBool::new(false));
    let (mut right, mut failed, mut refused) = (0_u64, 0_u64, 0_u64);
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let _over = SetAtEnd(&is_over);
            let random = &mut fastrand::Rng::with_seed(seed);
            let mut killed = 0;
            let deadline = Instant::now()
                + crate::support::DEADLINE
                + Duration::from_millis(50) * u32::try_from(kills).unwrap();
            while killed < kills && Instant::now() < deadline {
                let programs = children(server.pid().as_raw_nonzero().get().unsigned_abs());
                if let Some(program) = random.choice(programs) {
                    let id = Pid::from_raw(program.try_into().unwrap()).unwrap();
                    killed += usize::from(kill_process(id, Signal::KILL).is_ok());
                }
                thread::sleep(Duration::from_micros(random.u64(0..20_000)));
            }
            killed
        });
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let (server, is_over) = (&server, &is_over);
                scope.spawn(move || {
                    let mut peer = server.connect();
                    let (mut right, mut failed, mut refused) = (0, 0, 0);
                    while !is_over.load(Relaxed) {
                        let lines: Vec<String> =
                            (0..20).map(|line| format!("{client}-{right}-{line}\n")).collect();
                        peer.send(lines.concat().as_bytes());
                        for line in &lines {
                            let reply = String::from_utf8(peer.line()).unwrap();
                            match reply.as_str() {
                                "ERROR program failed\n" => failed += 1,
                                // All of them were killed as soon as they were started.
                                "ERROR program unavailable\n" => refused += 1,
                                reply => {
                                    assert_eq!(reply, line);
                                    right += 1;
                                }
                            }
                        }
                    }
                    peer.finish();
                    peer.expect_end();
                    (right, failed, refused)
                })
            })
            .collect();
        for client in clients {
            let (its_right, its_failed, its_refused) = client.join().unwrap();
            right += its_right;
            failed += its_failed;
            refused += its_refused;
        }
        // Who kills so many so soon has to wait for others to be started, the more so where all is slow.
        let killed = killer.join().unwrap();
        assert!(killed >= kills / 10, "{killed} were killed");
        assert!(right > 0 && failed <= killed as u64, "{right} right, {failed} failed, {killed} killed");
    });
    let stats = server.stats();
    assert_json_adds_up(&stats);
    assert_eq!(stats["replies_total"], right + failed + refused);
    // It goes on as if nothing had been.
    eventually("a request is served", || server.connect().exchange(b"x\n") == b"x\n");
    server.stop().assert_clean();
}

#[test]
fn a_reply_without_end_is_cut_off() {
    for terminal in ["", "--exec-pty"] {
        let options = format!("--exec-timeout 1h --min-threads 1 --max-threads 1 {terminal}");
        let server = serve_script("read -r line; yes | tr -d '\\n'", &options);
        let mut peer = server.connect();
        // As often as it takes until something is said of all programs.
        for _ in 0..3 {
            peer.send(b"x\n");
            peer.expect(b"ERROR program failed\n");
        }
        server.expect_log("replies without end");
        assert!(!server.log().contains("before it was asked"), "{}", server.log());
    }
}

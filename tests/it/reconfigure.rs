//! Settings changed while the server runs: connections that are there obey too, and nothing is lost by it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tidemill::{Config, Helo, Reply, Request, Server, StopFrom};

use crate::support::{
    Gate, Peer, SetAtEnd, assert_adds_up, configure, echo, eventually, helo_reply, in_parallel,
};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Changes some settings of a running server.
#[track_caller]
fn change(server: &Server, change: impl FnOnce(&mut Config)) {
    let mut config = server.handle().config();
    change(&mut config);
    let kept = server.handle().reconfigure(config).unwrap();
    assert!(kept.is_empty(), "{kept:?} need a restart");
}

fn connect(server: &Server) -> Peer {
    Peer::connect(server.local_addr())
}

#[track_caller]
fn echoes(peer: &mut Peer) {
    peer.send(b"x\n");
    peer.expect(b"x\n");
}

#[test]
fn a_connection_that_is_there_has_the_new_length_of_lines() {
    let server = configure(echo, |_| {});
    let mut peer = connect(&server);
    echoes(&mut peer);
    change(&server, |config| config.max_line_bytes = 1 << 20);
    let long = [&vec![b'l'; 1 << 20][..], b"\n"].concat();
    peer.send(&long);
    peer.expect(&long);
    // What has come of a line counts, too.
    peer.send(b"12345678");
    eventually("it is read", || server.handle().stats().read_bytes_total == 2 + (1 << 20) + 1 + 8);
    change(&server, |config| config.max_line_bytes = 5);
    peer.send(b"9");
    peer.expect_rest(b"ERROR line too long (limit 5 bytes)\n");
}

#[test]
fn who_may_stop_the_server_changes_for_connections_that_are_there() {
    let server = Server::builder(Helo::new()).listen(([127, 0, 0, 1], 0).into()).start().unwrap();
    let (mut refused, mut obeyed) = (connect(&server), connect(&server));
    let reply = helo_reply(b"x", server.local_addr().tcp().unwrap());
    for peer in [&mut refused, &mut obeyed] {
        peer.send(b"HELO x\n");
        peer.expect(&reply);
    }
    change(&server, |config| config.stop_from = StopFrom::None);
    refused.send(b"KILL_SERVICE\n");
    refused.expect_rest(b"ERROR KILL_SERVICE refused\n");
    change(&server, |config| config.stop_from = StopFrom::Any);
    obeyed.send(b"KILL_SERVICE\n");
    obeyed.expect_end();
    assert!(server.wait().unwrap().is_clean());
}

#[test]
fn an_idle_timeout_that_was_off_or_long_ends_connections_that_are_there() {
    for before in [None, Some(HOUR)] {
        let server = configure(echo, |config| config.idle_timeout = before);
        let mut peer = connect(&server);
        echoes(&mut peer);
        change(&server, |config| config.idle_timeout = Some(100 * MS));
        peer.expect_end();
        eventually("it is counted", || server.handle().stats().connections_closed_total.idle_timeout == 1);
    }
}

#[test]
fn an_idle_timeout_that_is_switched_on_begins_to_count_then() {
    let server = configure(echo, |_| {});
    let mut peer = connect(&server);
    echoes(&mut peer);
    // Idle for longer than is allowed later.
    std::thread::sleep(300 * MS);
    let changed = Instant::now();
    change(&server, |config| config.idle_timeout = Some(250 * MS));
    peer.expect_end();
    assert!(changed.elapsed() >= 250 * MS, "{:?}", changed.elapsed());
}

#[test]
fn a_change_of_something_else_does_not_make_anybody_active() {
    let server = configure(echo, |config| config.idle_timeout = Some(200 * MS));
    let mut peer = connect(&server);
    echoes(&mut peer);
    let mut number = 0;
    eventually("it is closed, though something changes all the time", || {
        number += 1;
        change(&server, |config| config.max_line_bytes = 1000 + number);
        server.handle().stats().connections_closed_total.idle_timeout == 1
    });
    peer.expect_end();
}

#[test]
fn a_timeout_that_is_switched_off_ends_nobody() {
    let server = configure(echo, |config| config.idle_timeout = Some(2000 * MS));
    let mut peer = connect(&server);
    echoes(&mut peer);
    change(&server, |config| config.idle_timeout = None);
    assert!(peer.is_silent_for(3000 * MS));
    echoes(&mut peer);
}

#[test]
fn a_line_that_has_begun_has_the_new_time() {
    for before in [None, Some(HOUR)] {
        let server = configure(echo, |config| config.line_timeout = before);
        let mut peer = connect(&server);
        peer.send(b"begun");
        eventually("it is read", || server.handle().stats().read_bytes_total == 5);
        change(&server, |config| config.line_timeout = Some(50 * MS));
        peer.expect_rest(b"ERROR line not completed within 50ms\n");
    }
}

#[test]
fn a_reader_that_stands_still_has_the_new_time() {
    for before in [None, Some(HOUR)] {
        let server = configure(
            |_: &Request<'_>, reply: &mut Reply<'_>| reply.push(&[b'x'; 8 << 20]),
            |config| {
                config.write_timeout = before;
            },
        );
        let mut peer = Peer::with_small_buffer(server.local_addr(), 4096);
        peer.send(b"x\n");
        eventually("its socket is full", || server.handle().stats().held_bytes > 1 << 20);
        change(&server, |config| config.write_timeout = Some(50 * MS));
        eventually("it is closed", || server.handle().stats().connections_closed_total.write_timeout == 1);
    }
}

#[test]
fn a_handler_that_runs_has_the_new_time() {
    let gate = Gate::closed();
    let server = configure(gate.holds_stuck(), |config| config.request_timeout = Some(HOUR));
    let mut peer = connect(&server);
    peer.send(b"stuck\n");
    eventually("it is taken", || server.handle().stats().pool_busy == 1);
    change(&server, |config| config.request_timeout = Some(100 * MS));
    peer.expect_rest(b"ERROR request not completed within 100ms\n");
}

#[test]
fn handlers_are_timed_from_the_next_request_on_once_that_is_switched_on() {
    let gate = Gate::closed();
    let server = configure(gate.holds_stuck(), |config| config.request_timeout = Some(HOUR));
    let handle = server.handle();
    let (mut early, mut late) = (connect(&server), connect(&server));
    // When a worker took this one is known, and long ago when the next is timed.
    echoes(&mut early);
    change(&server, |config| config.request_timeout = None);
    echoes(&mut late);
    early.send(b"stuck\n");
    eventually("it is taken", || handle.stats().pool_busy == 1);
    change(&server, |config| config.request_timeout = Some(300 * MS));
    late.send(b"stuck\n");
    late.expect_rest(b"ERROR request not completed within 300ms\n");
    eventually("it is counted", || handle.stats().connections_closed_total.request_timeout == 1);
    gate.open();
    early.expect(b"stuck\n");
    early.send(b"x\n");
    early.expect(b"x\n");
}

#[test]
fn what_waits_for_a_worker_has_the_new_time() {
    let gate = Gate::closed();
    let server = configure(gate.holds_stuck(), |config| (config.min_threads, config.max_threads) = (1, 1));
    let handle = server.handle();
    let (mut stuck, mut waits) = (connect(&server), connect(&server));
    stuck.send(b"stuck\n");
    eventually("the worker is stuck", || handle.stats().pool_busy == 1);
    waits.send(b"waits\n");
    eventually("it waits", || handle.stats().requests_pending == 2);
    std::thread::sleep(20 * MS);
    change(&server, |config| config.queue_timeout = Some(10 * MS));
    // Obeyed before anything that comes later.
    let mut after = connect(&server);
    after.send(b"after\n");
    eventually("it waits, too", || handle.stats().requests_pending == 3);
    gate.open();
    stuck.expect(b"stuck\n");
    let told = [waits.byte(), waits.byte(), waits.byte(), waits.byte(), waits.byte()];
    assert_eq!(&told, b"ERROR");
    eventually("it is counted", || handle.stats().requests_late_total >= 1);
}

#[test]
fn more_connections_are_let_in_and_fewer_are_a_limit_for_those_that_come() {
    let server = configure(echo, |config| config.max_connections = 1);
    let mut first = connect(&server);
    echoes(&mut first);
    connect(&server).expect_rest(b"ERROR server full (limit 1 connections)\n");
    change(&server, |config| config.max_connections = 3);
    let mut more = [connect(&server), connect(&server)];
    more.iter_mut().for_each(echoes);
    connect(&server).expect_rest(b"ERROR server full (limit 3 connections)\n");
    change(&server, |config| config.max_connections = 2);
    connect(&server).expect_rest(b"ERROR server full (limit 2 connections)\n");
    echoes(&mut first);
    more.iter_mut().for_each(echoes);
}

#[test]
fn connections_that_are_there_count_for_a_limit_for_each_address() {
    const FULL: &[u8] = b"ERROR too many connections from your address (limit 2)\n";
    let server = configure(echo, |_| {});
    let (mut first, mut second) = (connect(&server), connect(&server));
    echoes(&mut first);
    echoes(&mut second);
    change(&server, |config| config.max_connections_per_peer = Some(2));
    connect(&server).expect_rest(FULL);
    first.finish();
    first.expect_end();
    let mut third = connect(&server);
    echoes(&mut third);
    connect(&server).expect_rest(FULL);
    change(&server, |config| config.max_connections_per_peer = None);
    let mut more = connect(&server);
    echoes(&mut more);
    // All of them are known again, those that came without a limit too.
    change(&server, |config| config.max_connections_per_peer = Some(4));
    echoes(&mut connect(&server));
    drop((second, third, more));
    eventually("they have left", || server.handle().stats().connections == 0);
    let mut four = [connect(&server), connect(&server), connect(&server), connect(&server)];
    four.iter_mut().for_each(echoes);
    connect(&server).expect_rest(b"ERROR too many connections from your address (limit 4)\n");
}

#[test]
fn those_that_wait_for_max_pending_go_on_when_it_is_raised() {
    let gate = Gate::closed();
    let server = configure(gate.holds_stuck(), |config| config.max_pending = 1);
    let (mut stuck, mut waits) = (connect(&server), connect(&server));
    stuck.send(b"stuck\n");
    eventually("the only place is taken", || server.handle().stats().requests_pending == 1);
    waits.send(b"waits\n");
    eventually("it is read ahead", || server.handle().stats().read_bytes_total == 12);
    change(&server, |config| config.max_pending = 2);
    waits.expect(b"waits\n");
    gate.open();
    stuck.expect(b"stuck\n");
}

#[test]
fn a_peer_above_the_watermark_is_read_again_when_that_is_raised() {
    let server = configure(
        |_: &Request<'_>, reply: &mut Reply<'_>| reply.push(&[b'x'; 64 << 10]),
        |config| {
            config.high_watermark_bytes = 1024;
            config.send_buffer_bytes = Some(4096);
        },
    );
    let handle = server.handle();
    let mut peer = Peer::with_small_buffer(server.local_addr(), 4096);
    for _ in 0..64 {
        peer.send(b"x\n");
    }
    eventually("its first reply waits, and no job is out", || handle.stats().held_bytes > 48 << 10);
    let taken = handle.stats().service_seconds.count;
    assert!(taken < 64);
    change(&server, |config| config.high_watermark_bytes = 64 << 20);
    eventually("all are handled", || handle.stats().service_seconds.count == 64);
    assert_eq!(peer.bytes(64 * (64 << 10)).len(), 64 * (64 << 10));
}

#[test]
fn those_that_hold_most_are_closed_when_memory_is_lowered() {
    let server = configure(|_: &Request<'_>, reply: &mut Reply<'_>| reply.push(&[b'x'; 8 << 20]), |_| {});
    let handle = server.handle();
    let mut peer = Peer::with_small_buffer(server.local_addr(), 4096);
    peer.send(b"x\n");
    eventually("it holds much", || handle.stats().held_bytes > 4 << 20);
    change(&server, |config| config.max_memory_bytes = 1 << 20);
    eventually("it is closed", || handle.stats().connections_closed_total.memory == 1);
    drop(peer);
}

#[test]
fn the_size_of_the_pool_is_one_of_the_settings() {
    let server = configure(echo, |_| {});
    let handle = server.handle();
    handle.set_pool_limits(tidemill::PoolLimits::new(2, 9)).unwrap();
    assert_eq!((handle.config().min_threads, handle.config().max_threads), (2, 9));
    change(&server, |config| (config.min_threads, config.max_threads, config.tolerance) = (7, 11, 1));
    let limits = handle.pool_limits();
    assert_eq!((limits.min_threads, limits.max_threads, limits.tolerance), (7, 11, 1));
    eventually("it has so many workers", || handle.stats().pool_threads == 7);
}

#[test]
fn one_setting_out_of_range_and_none_is_changed() {
    let server = configure(echo, |_| {});
    let mut peer = connect(&server);
    let mut config = server.handle().config();
    config.max_line_bytes = 5;
    config.min_threads = 9;
    config.drain_timeout = Duration::MAX;
    let error = server.handle().reconfigure(config).unwrap_err();
    assert!(error.to_string().starts_with("drain_timeout is "), "{error}");
    peer.send(b"longer than five\n");
    peer.expect(b"longer than five\n");
    assert_eq!(server.handle().pool_limits().min_threads, 4);
    assert_eq!(server.handle().config().max_line_bytes, 65_536);
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_changed() {
    let server = configure(echo, |_| {});
    let handle = server.handle();
    let mut config = handle.config();
    config.listen.clear();
    config.unix_mode = 0o666;
    config.reuse_port = true;
    config.thread_stack_bytes = 1 << 20;
    config.send_buffer_bytes = None;
    config.max_line_bytes = 5;
    let kept = handle.reconfigure(config).unwrap();
    assert_eq!(kept, ["listen", "unix_mode", "reuse_port", "thread_stack_bytes", "send_buffer_bytes"]);
    assert_eq!(handle.config().unix_mode, 0o600);
    let mut peer = connect(&server);
    peer.send(b"longer than five\n");
    peer.expect_rest(b"ERROR line too long (limit 5 bytes)\n");
}

/// Whatever is changed in mid-flight: each peer has all its replies, in order, and all accounts balance.
#[test]
fn no_reply_is_lost_by_a_hundred_changes_under_load() {
    let server = configure(echo, |_| {});
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _over = SetAtEnd(&over);
            for number in 0..100_u64 {
                change(&server, |config| {
                    let odd = number % 2 == 1;
                    (config.min_threads, config.max_threads) = if odd { (1, 3) } else { (4, 8) };
                    config.max_pending = if odd { 8 } else { 65_536 };
                    config.max_line_bytes = if odd { 64 } else { 65_536 };
                    config.high_watermark_bytes = if odd { 64 } else { 32 << 10 };
                    config.send_buffer_bytes = Some(if odd { 8 << 10 } else { 128 << 10 });
                    config.request_timeout = odd.then_some(HOUR);
                    config.queue_timeout = (!odd).then_some(HOUR);
                    config.idle_timeout = odd.then_some(HOUR);
                    config.max_connections_per_peer = odd.then_some(100);
                    config.max_connections = if odd { 20 } else { 20_000 };
                });
                std::thread::sleep(5 * MS);
            }
        });
        scope.spawn(|| {
            let lines: Vec<u8> = (0..100).flat_map(|line| format!("line {line}\n").into_bytes()).collect();
            in_parallel(8, |_| {
                let mut peer = connect(&server);
                while !over.load(Relaxed) {
                    peer.send(&lines);
                    peer.expect(&lines);
                }
                peer.finish();
                peer.expect_end();
            });
        });
    });
    let stats = server.handle().stats();
    assert_adds_up(&stats);
    assert_eq!((stats.requests_dropped_total, stats.requests_pending), (0, 0));
    server.handle().stop();
    assert!(server.wait().unwrap().is_clean());
}

//! Limits that keep the server standing, and what a client sees of them.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tidemill::{Reply, Request};

use crate::support::{
    Gate, Peer, SetAtEnd, allow_files, assert_adds_up, configure, eventually, helo_reply, serve,
};

#[test]
fn one_connection_more_than_the_limit_is_told_so_and_closed() {
    let serving = serve("--max-connections 3");
    let mut peers: Vec<Peer> = (0..3).map(|_| serving.connect()).collect();
    for peer in &mut peers {
        peer.ask("in");
    }
    for _ in 0..5 {
        serving.connect().expect_rest(b"ERROR server full (limit 3 connections)\n");
    }
    for peer in &mut peers {
        peer.ask("still in");
    }
    // One leaves: there is room for another.
    let mut leaver = peers.pop().unwrap();
    leaver.finish();
    leaver.expect_end();
    let mut next = serving.connect();
    next.ask("in at last");
    drop((peers, leaver, next));
    let ended = serving.stop();
    ended.assert_clean();
    let stats = ended.stats();
    assert_eq!(stats["connections_accepted_total"], 9);
    assert_eq!(stats["connections_rejected_total"]["full"], 5);
    assert_eq!(
        stats["connections_closed_total"]
            .as_object()
            .unwrap()
            .values()
            .map(|n| n.as_u64().unwrap())
            .sum::<u64>(),
        4
    );
}

#[test]
fn who_is_turned_away_is_told_even_if_it_has_sent_something() {
    let serving = serve("--max-connections 1");
    let mut peer = serving.connect();
    peer.ask("in");
    serving.freeze();
    let mut refused: Vec<Peer> = (0..20).map(|_| serving.connect()).collect();
    for peer in &mut refused {
        // Unread bytes must not turn the close into a reset, which would destroy the line.
        peer.send(&b"HELO let me in\n".repeat(1000));
    }
    serving.resume();
    for peer in &mut refused {
        peer.expect_rest(b"ERROR server full (limit 1 connections)\n");
    }
    peer.ask("still in");
    drop((peer, refused));
    assert_eq!(serving.stop().stats()["requests_total"]["helo"]["request"], 2);
}

#[test]
fn requests_pending_never_exceed_their_limit_and_none_is_lost() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| {
        config.max_pending = 10;
        (config.min_threads, config.max_threads) = (2, 8);
    });
    let handle = server.handle();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let is_over = SetAtEnd(&over);
        let sampler = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Relaxed) {
                let stats = handle.stats();
                assert_adds_up(&stats);
                most = most.max(stats.requests_pending);
                thread::yield_now();
            }
            most
        });
        let clients: Vec<_> = (0..6)
            .map(|number| {
                let lines: Vec<u8> =
                    (0..300).flat_map(|line| format!("{number}/{line}\n").into_bytes()).collect();
                let address = server.local_addr();
                scope.spawn(move || assert_eq!(Peer::connect(address).exchange(&lines), lines))
            })
            .collect();
        eventually("the limit is reached", || handle.stats().requests_pending == 10);
        gate.open();
        for client in clients {
            client.join().unwrap();
        }
        drop(is_over);
        assert_eq!(sampler.join().unwrap(), 10);
    });
    eventually("all are counted", || handle.stats().replies_total == 1800);
    assert_eq!(handle.stats().requests_pending, 0);
}

#[test]
fn at_the_limit_of_pending_requests_the_server_reads_4_kib_ahead_and_tcp_holds_the_client_back() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| config.max_pending = 1);
    let mut first = Peer::connect(server.local_addr());
    first.send(b"first\n");
    eventually("it is pending", || server.handle().stats().requests_pending == 1);
    let read_before = server.handle().stats().read_bytes_total;
    let mut second = Peer::connect(server.local_addr());
    let lines = b"waits\n".repeat(16 << 20);
    let sent = second.send_until_blocked(&lines, Duration::from_millis(300));
    assert!(sent < lines.len(), "nothing held the client back");
    let read = server.handle().stats().read_bytes_total - read_before;
    assert_eq!(read, 4096, "all that is read where nothing more may be pending");
    gate.open();
    first.expect(b"first\n");
    second.expect(b"waits\nwaits\nwaits\n");
    second.reset();
}

/// The server has lines of many clients to take turns with when a place is free, and some of them need none.
#[test]
fn a_client_that_waited_for_a_place_and_needs_none_does_not_keep_it() {
    let gate = Gate::closed();
    let pass = gate.entrance();
    let handler = move |request: &Request<'_>, reply: &mut Reply<'_>| {
        if request.line() == b"HELO first" {
            pass();
        }
        tidemill::Handler::handle(&tidemill::Helo::new(), request, reply);
    };
    let server = configure(Classified(handler), |config| config.max_pending = 1);
    let address = server.local_addr();
    let mut first = Peer::connect(address);
    first.send(b"HELO first\n");
    eventually("it is pending", || server.handle().stats().requests_pending == 1);
    let mut peers: Vec<Peer> = (0..30).map(|_| Peer::connect(address)).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        match number % 3 {
            0 => peer.send(b"no request\n"),
            1 => peer.send(b"HELO be"),
            _ => peer.send(b"HELO me\n"),
        }
    }
    eventually("all are there", || server.handle().stats().connections == 31);
    gate.open();
    first.expect(&helo_reply(b"first", address));
    for (number, peer) in peers.iter_mut().enumerate() {
        if number % 3 == 2 {
            peer.expect(&helo_reply(b"me", address));
        }
    }
}

#[test]
fn places_go_to_the_clients_in_turn() {
    let gate = Gate::closed();
    let order = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let (order, hold) = (Arc::clone(&order), gate.holds_all());
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            order.lock().unwrap().push(request.line().to_vec());
            hold(request, reply);
        }
    };
    let server = configure(handler, |config| config.max_pending = 1);
    let handle = server.handle();
    let mut greedy = Peer::connect(server.local_addr());
    greedy.send(&b"greedy\n".repeat(100));
    eventually("the only place is taken", || handle.stats().requests_pending == 1);
    let mut other = Peer::connect(server.local_addr());
    other.send(b"other\n");
    eventually("both are there", || handle.stats().connections == 2);
    gate.open();
    other.expect(b"other\n");
    greedy.expect(&b"greedy\n".repeat(100));
    let order = order.lock().unwrap();
    let place = order.iter().position(|line| line == b"other").unwrap();
    assert!(place < 50, "{place} requests of the greedy client went first");
}

struct Classified<F>(F);

impl<F: Fn(&Request<'_>, &mut Reply<'_>) + Send + Sync + 'static> tidemill::Handler for Classified<F> {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        (self.0)(request, reply);
    }

    fn classify(&self, line: &[u8]) -> tidemill::Kind {
        tidemill::protocol::classify(line)
    }
}

#[test]
fn without_descriptors_it_keeps_serving_and_accepts_again_when_some_are_back() {
    allow_files(4000);
    let serving = serve("");
    serving.limit_files(serving.open_files() + 20);
    let mut peers: Vec<Peer> = (0..50).map(|_| serving.connect()).collect();
    for peer in &mut peers {
        peer.send(b"HELO me\n");
    }
    serving.expect_log("cannot accept connections for now");
    eventually("that is counted", || serving.stats()["accept_errors_total"].as_u64() > Some(0));
    // About twenty: a file that it had open for a moment when they were counted makes one more.
    let room = usize::try_from(serving.stats()["connections"].as_u64().unwrap()).unwrap();
    assert!((18..=25).contains(&room), "{room}");
    for peer in &mut peers[..room] {
        peer.expect_reply("me");
    }
    // It does not spin: less than a half of a CPU while it is refused.
    let (before, since) = (serving.cpu_ticks(), Instant::now());
    thread::sleep(Duration::from_millis(500));
    let (used, window) = (serving.cpu_ticks() - before, since.elapsed());
    assert!(u128::from(used) * 10 < window.as_millis() / 2, "{used} ticks of 10 ms in {window:?}");
    peers[0].ask("those inside are served");
    let refusals = serving.stats()["accept_errors_total"].as_u64().unwrap();
    assert!(refusals < 200, "{refusals} attempts to accept");

    let leave: Vec<Peer> = peers.drain(..15).collect();
    drop(leave);
    for peer in &mut peers[room - 15..room] {
        peer.expect_reply("me");
    }
    peers[room - 15].ask("and on");
    drop(peers.drain(..room));
    for peer in &mut peers {
        peer.expect_reply("me");
    }
    serving.stop().assert_clean();
}

#[test]
fn a_limit_of_files_below_the_connections_lowers_them_with_a_warning() {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 100 && exec \"$0\" serve 0 --max-connections 500000000"]);
    command.arg(env!("CARGO_BIN_EXE_tidemill"));
    let serving = crate::support::Serving::start(command);
    serving.connect().ask("served all the same");
    serving.expect_log("the limit of open files lowers --max-connections");
    serving.stop().assert_clean();
}

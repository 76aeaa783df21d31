//! Peers, and handlers, that take too long: each clock, when it runs and when it stands still.
//!
//! Clocks are set to a fraction of a second; that they are exact is for the benchmarks.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tidemill::{Handler, Reply, Request};

use crate::support::{
    DEADLINE, Gate, Peer, SetAtEnd, allow_files, assert_adds_up, configure, echo, eventually, in_parallel,
    resolved, serve,
};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_line_whose_rest_does_not_come_is_told_so_however_often_a_byte_comes() {
    let server = configure(echo, |config| config.line_timeout = Some(300 * MS));
    let (handle, began) = (server.handle(), Instant::now());
    let mut slow = Peer::connect(server.local_addr());
    slow.send(b"whole\n");
    slow.expect(b"whole\n");
    // A byte now and then does not begin the time anew.
    let mut dripping = slow.twin();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while handle.stats().connections > 0 && began.elapsed() < DEADLINE {
                dripping.send(b"x");
                std::thread::sleep(20 * MS);
            }
        });
        slow.expect_rest(b"ERROR line not completed within 300ms\n");
    });
    assert!(began.elapsed() >= 300 * MS);
    let stats = server.handle().stats();
    assert_eq!((stats.connections_closed_total.line_timeout, stats.requests()), (1, 1));
    assert_adds_up(&stats);
}

#[test]
fn requests_before_a_line_that_is_not_completed_are_answered_first() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| config.line_timeout = Some(100 * MS));
    let handle = server.handle();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"one\ntwo\nthr");
    // It is given up while its requests are still with the handler, and has nothing read any more.
    eventually("both are with the handler", || handle.stats().requests_pending == 2);
    std::thread::sleep(200 * MS);
    gate.open();
    peer.expect_rest(b"one\ntwo\nERROR line not completed within 100ms\n");
}

#[test]
fn the_clock_of_a_line_stands_still_while_the_server_does_not_read() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| {
        config.max_pending = 1;
        config.line_timeout = Some(1000 * MS);
    });
    let handle = server.handle();
    let mut first = Peer::connect(server.local_addr());
    first.send(b"first\n");
    eventually("the only place is taken", || handle.stats().requests_pending == 1);
    let mut waits = Peer::connect(server.local_addr());
    waits.send(b"begun");
    eventually("it is read ahead", || handle.stats().read_bytes_total == 11);
    std::thread::sleep(1100 * MS);
    // There when it is read again, however long this test is kept from running.
    waits.send(b" and ended\n");
    gate.open();
    first.expect(b"first\n");
    waits.expect(b"begun and ended\n");
}

#[test]
fn an_idle_connection_is_closed_without_a_word_and_a_busy_one_is_not() {
    /// The busy one is served within this also on a machine that does other work as well.
    const TIMEOUT: Duration = Duration::from_secs(3);
    let gate = Gate::closed();
    let server = configure(gate.holds_stuck(), |config| config.idle_timeout = Some(TIMEOUT));
    let handle = server.handle();
    let began = Instant::now();
    let mut idle = Peer::connect(server.local_addr());
    let mut waits = Peer::connect(server.local_addr());
    waits.send(b"stuck\n");
    idle.expect_end();
    assert!(began.elapsed() >= TIMEOUT);
    eventually("it is counted", || handle.stats().connections_closed_total.idle_timeout == 1);
    // The other waits for its reply, which is not idling.
    let mut asks = Peer::connect(server.local_addr());
    let active = Instant::now();
    while active.elapsed() < TIMEOUT * 3 / 2 {
        asks.send(b"x\n");
        asks.expect(b"x\n");
        std::thread::sleep(10 * MS);
    }
    gate.open();
    waits.expect(b"stuck\n");
    waits.send(b"x\n");
    waits.expect(b"x\n");
    waits.expect_end();
    asks.expect_end();
    eventually("they are counted", || handle.stats().connections_closed_total.idle_timeout == 3);
}

/// By the clock of who waits: each time is counted from before the server can know of it.
#[test]
fn nobody_is_timed_out_early_beside_those_who_keep_the_loop_busy() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let server = configure(echo, |config| {
        (config.line_timeout, config.idle_timeout) = (Some(TIMEOUT), Some(TIMEOUT));
    });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = SetAtEnd(&over);
        for _ in 0..4 {
            scope.spawn(|| {
                let lines = b"busy\n".repeat(1000);
                let mut busy = Peer::connect(server.local_addr());
                while !over.load(Relaxed) {
                    busy.send(&lines);
                    busy.expect(&lines);
                }
            });
        }
        in_parallel(48, |number| {
            let mut peer = Peer::connect(server.local_addr());
            let (line, rest) = match number % 2 {
                0 => ("x\nhalf", "x\nERROR line not completed within 2s\n"),
                _ => ("x\n", "x\n"),
            };
            let begun = Instant::now();
            peer.send(line.as_bytes());
            peer.expect_rest(rest.as_bytes());
            assert!(begun.elapsed() >= TIMEOUT, "after {:?}", begun.elapsed());
        });
    });
}

#[test]
fn a_slow_reader_lives_as_long_as_it_reads() {
    const REPLY: usize = 8 << 20;
    let handler = |_: &Request<'_>, reply: &mut Reply<'_>| reply.push(&vec![b'x'; REPLY]);
    let server = configure(handler, |config| {
        config.write_timeout = Some(2000 * MS);
        config.send_buffer_bytes = Some(16 << 10);
    });
    let mut peer = Peer::with_small_buffer(server.local_addr(), 4096);
    peer.send(b"x\n");
    let began = Instant::now();
    // For longer than the timeout it takes only a little now and then.
    let mut read = 0;
    while began.elapsed() < 3000 * MS {
        peer.expect(&[b'x'; 32 << 10]);
        read += 32 << 10;
        std::thread::sleep(50 * MS);
    }
    assert!(read < REPLY, "the reply was over too soon");
    peer.expect(&vec![b'x'; REPLY - read]);
    assert_eq!(server.handle().stats().connections_closed_total.write_timeout, 0);
}

#[test]
fn a_busy_line_that_panics_is_replaced_so_that_no_reply_is_missing() {
    struct Panics<H>(H);
    impl<H: Fn(&Request<'_>, &mut Reply<'_>) + Send + Sync + 'static> Handler for Panics<H> {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            (self.0)(request, reply);
        }
        fn busy_line(&self, _: Duration) -> Vec<u8> {
            panic!("on purpose");
        }
    }
    let gate = Gate::closed();
    let server = configure(Panics(gate.holds_stuck()), |config| {
        (config.min_threads, config.max_threads) = (1, 1);
        config.queue_timeout = Some(10 * MS);
    });
    let handle = server.handle();
    let mut stuck = Peer::connect(server.local_addr());
    stuck.send(b"stuck\n");
    eventually("it is with the worker", || handle.stats().pool_busy == 1);
    let mut waits = Peer::connect(server.local_addr());
    waits.send(b"a\nb\n");
    eventually("it waits", || handle.stats().requests_pending == 3);
    std::thread::sleep(50 * MS);
    gate.open();
    for _ in 0..2 {
        let line = String::from_utf8(waits.line()).unwrap();
        assert!(line.starts_with("ERROR busy (waited "), "{line}");
    }
    eventually("they are counted", || handle.stats().requests_late_total == 2);
    assert_adds_up(&handle.stats());
}

#[test]
fn a_request_that_waited_too_long_is_answered_busy_in_its_place_and_not_run() {
    let gate = Gate::closed();
    let (called, calls) = std::sync::mpsc::channel();
    let hold = gate.holds_stuck();
    let handler = move |request: &Request<'_>, reply: &mut Reply<'_>| {
        called.send(request.line().to_vec()).unwrap();
        hold(request, reply);
    };
    let server = configure(handler, |config| {
        (config.min_threads, config.max_threads) = (1, 1);
        config.queue_timeout = Some(1000 * MS);
    });
    let handle = server.handle();
    let mut stuck = Peer::connect(server.local_addr());
    stuck.send(b"stuck\n");
    assert_eq!(calls.recv_timeout(DEADLINE).unwrap(), b"stuck");
    let mut waits = Peer::connect(server.local_addr());
    waits.send(b"a\nb\n");
    eventually("it waits", || handle.stats().requests_pending == 3);
    std::thread::sleep(1100 * MS);
    gate.open();
    stuck.expect(b"stuck\n");
    for _ in 0..2 {
        let line = String::from_utf8(waits.line()).unwrap();
        let waited = line.strip_prefix("ERROR busy (waited ").and_then(|rest| rest.strip_suffix("s)\n"));
        let waited: f64 = waited.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        assert!((1.1..DEADLINE.as_secs_f64()).contains(&waited), "{line}");
    }
    // The connection stays open.
    waits.send(b"in time\n");
    waits.expect(b"in time\n");
    assert_eq!(calls.try_iter().collect::<Vec<_>>(), [b"in time"]);
    eventually("they are counted", || {
        let stats = handle.stats();
        (stats.requests_late_total, stats.service_seconds.count) == (2, 2)
    });
    assert_adds_up(&handle.stats());
}

#[test]
fn a_request_that_takes_too_long_is_told_so_behind_earlier_replies() {
    let gate = Gate::closed();
    let server = configure(gate.holds_stuck(), |config| config.request_timeout = Some(1000 * MS));
    let handle = server.handle();
    let began = Instant::now();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"quick\nstuck\nbehind\n");
    peer.expect_rest(b"quick\nERROR request not completed within 1s\n");
    assert!(began.elapsed() >= 1000 * MS);
    eventually("its handler runs on", || handle.stats().requests_stuck == 1);
    let mut other = Peer::connect(server.local_addr());
    other.send(b"other\n");
    other.expect(b"other\n");
    gate.open();
    eventually("it has returned", || handle.stats().requests_stuck == 0);
    eventually("it is counted", || handle.stats().connections_closed_total.request_timeout == 1);
    let stats = handle.stats();
    assert_eq!((stats.replies_total, stats.requests_dropped_total, stats.requests_pending), (2, 1, 0));
    assert_adds_up(&stats);
}

/// What ends a connection waits for the replies before it, and must not wait for ever.
#[test]
fn a_request_that_takes_too_long_is_told_so_also_on_a_connection_that_is_ending() {
    for (behind, stops) in [(&b"a line that is too long"[..], false), (b"half a line", false), (b"", true)] {
        let gate = Gate::closed();
        let server = configure(gate.holds_stuck(), |config| {
            config.max_line_bytes = 12;
            config.line_timeout = Some(100 * MS);
            config.request_timeout = Some(400 * MS);
        });
        let handle = server.handle();
        let mut peer = Peer::connect(server.local_addr());
        peer.send(b"stuck\n");
        eventually("it is with the handler", || handle.stats().pool_busy == 1);
        peer.send(behind);
        if stops {
            handle.stop();
        }
        peer.expect_rest(b"ERROR request not completed within 400ms\n");
        eventually("its handler runs on", || handle.stats().requests_stuck == 1);
        gate.open();
        handle.stop();
        server.wait().unwrap();
    }
}

/// Not from when it was read, but from when a worker took it.
#[test]
fn the_time_of_a_request_begins_when_a_worker_takes_it() {
    let gate = Gate::closed();
    let hold = gate.holds_stuck();
    let server = configure(hold, |config| {
        (config.min_threads, config.max_threads) = (1, 1);
        config.request_timeout = Some(300 * MS);
    });
    let handle = server.handle();
    let mut stuck = Peer::connect(server.local_addr());
    stuck.send(b"stuck\n");
    let mut waits = Peer::connect(server.local_addr());
    waits.send(b"waits\n");
    stuck.expect_rest(b"ERROR request not completed within 300ms\n");
    std::thread::sleep(400 * MS);
    assert_eq!(handle.stats().requests_pending, 2);
    gate.open();
    waits.expect(b"waits\n");
}

#[test]
fn idle_connections_wake_nobody_while_all_clocks_are_on() {
    allow_files(4000);
    let clocks = ["line", "idle", "write", "queue", "request"].map(|clock| format!("--{clock}-timeout 1h"));
    let serving = serve(&clocks.join(" "));
    let mut peers: Vec<Peer> = (0..1000).map(|_| serving.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.ask("x"));
    // What it still does on the way there is over at some time.
    eventually("it comes to rest", || {
        let before = serving.context_switches();
        std::thread::sleep(500 * MS);
        serving.context_switches() - before < 10
    });
    // And stays there.
    let (before, since) = (serving.context_switches(), Instant::now());
    std::thread::sleep(500 * MS);
    let (more, silence) = (serving.context_switches() - before, since.elapsed());
    assert!(u128::from(more) < silence.as_millis() / 25, "{more} context switches in {silence:?}");
    peers.iter_mut().for_each(|peer| peer.ask("y"));
}

#[test]
fn so_many_connections_from_one_address_and_no_more() {
    let serving = serve("--max-connections-per-peer 2");
    let address = serving.address;
    let mut first = Peer::connect(address);
    let mut second = Peer::connect(address);
    first.ask("one");
    second.ask("two");
    serving.connect().expect_rest(b"ERROR too many connections from your address (limit 2)\n");
    let from = |ip: [u8; 4]| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from((ip, 0)).into()).unwrap();
        socket.connect(&resolved(address).into()).unwrap();
        std::net::TcpStream::from(socket)
    };
    let mut other = Peer::over(from([127, 0, 0, 2]));
    other.ask("from elsewhere");
    first.finish();
    first.expect_end();
    let mut third = serving.connect();
    third.ask("three");
    drop((second, third, other));
    let ended = serving.stop();
    ended.assert_clean();
    assert_eq!(ended.stats()["connections_rejected_total"]["peer_full"], 1);
}

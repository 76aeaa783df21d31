//! Stopping: nothing that had arrived is lost, every connection ends without a reset, and the exit status tells.

use std::cell::RefCell;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tidemill::{Handler, Helo, Kind, Reply, Request, Server, ServerHandle};

use crate::support::{
    Gate, Peer, Serving, allow_files, assert_adds_up, configure, echo, embed, eventually, fake_toolchain,
    helo_reply, serve,
};

/// Clients of a frozen server: fifty that it knows, and fifty that are in its accept queue. Each has sent `bytes`, which
/// are in its receive queue.
fn clients_of_frozen(serving: &Serving, bytes: &[u8]) -> Vec<Peer> {
    allow_files(4000);
    let mut peers: Vec<Peer> = (0..50).map(|_| serving.connect()).collect();
    for peer in &mut peers {
        peer.ask("before");
    }
    serving.freeze();
    peers.extend((0..50).map(|_| serving.connect()));
    for peer in &mut peers {
        peer.send(bytes);
    }
    peers
}

fn expect_replies_and_end(peers: Vec<Peer>, texts: &[&str]) {
    for mut peer in peers {
        let server = peer.server();
        let replies: Vec<u8> = texts.iter().flat_map(|text| helo_reply(text.as_bytes(), server)).collect();
        peer.expect_rest(&replies);
    }
}

#[test]
fn a_signal_loses_nothing_that_was_in_the_accept_and_receive_queues() {
    for signal in [Signal::INT, Signal::TERM] {
        let serving = serve("");
        let peers = clients_of_frozen(&serving, b"HELO one\nnothing\nHELO two\r\n\nHELO three\nHELO cut o");
        serving.signal(signal);
        serving.resume();
        expect_replies_and_end(peers, &["one", "two", "three"]);
        let ended = serving.wait();
        ended.assert_clean();
        let stats = ended.stats();
        assert_eq!(stats["connections_accepted_total"], 100);
        assert_eq!(stats["requests_total"]["helo"]["request"], 50 + 300);
        assert_eq!(stats["replies_total"], 50 + 300);
    }
}

#[test]
fn kill_service_loses_nothing_before_or_behind_it() {
    let serving = serve("");
    let peers =
        clients_of_frozen(&serving, b"HELO one\nKILL_SERVICE\nHELO two\nKILL_SERVICE\r\nHELO three\n");
    serving.resume();
    expect_replies_and_end(peers, &["one", "two", "three"]);
    let ended = serving.wait();
    ended.assert_clean();
    assert_eq!(ended.stats()["requests_total"]["helo"]["stop"], 200);
    assert_eq!(ended.stats()["replies_total"], 50 + 300);
}

#[test]
fn a_last_line_without_terminator_counts_if_the_end_of_the_stream_had_come() {
    let serving = serve("");
    let peers = clients_of_frozen(&serving, b"HELO one\nHELO last");
    peers.iter().for_each(Peer::finish);
    serving.signal(Signal::TERM);
    serving.resume();
    expect_replies_and_end(peers, &["one", "last"]);
    serving.wait().assert_clean();
}

#[test]
fn long_pipelines_in_the_receive_queue_are_answered_to_the_last() {
    let serving = serve("");
    let mut peers: Vec<Peer> = (0..4).map(|_| serving.connect()).collect();
    serving.freeze();
    // More than one read takes, and many jobs.
    let lines = b"HELO pipelined request\n".repeat(10_000);
    let sent: Vec<usize> = thread::scope(|scope| {
        let senders: Vec<_> = peers
            .iter_mut()
            .map(|peer| scope.spawn(|| peer.send_until_blocked(&lines, Duration::from_millis(200))))
            .collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    assert!(sent.iter().all(|sent| *sent > 100_000), "{sent:?}");
    serving.signal(Signal::TERM);
    serving.resume();
    let reply = helo_reply(b"pipelined request", serving.address);
    let mut replies = 0;
    for (peer, sent) in peers.iter_mut().zip(sent) {
        let came = peer.rest();
        assert!(came.len().is_multiple_of(reply.len()) && came.chunks(reply.len()).all(|one| one == reply));
        let count = came.len() / reply.len();
        assert!(count > 1000 && count <= sent / b"HELO pipelined request\n".len(), "{count} of {sent} bytes");
        replies += count;
    }
    drop(peers);
    let ended = serving.wait();
    ended.assert_clean();
    assert_eq!(ended.stats()["replies_total"], replies);
}

#[test]
fn a_stop_in_mid_flood_loses_no_reply() {
    for (options, kill) in [("", false), ("--handler-delay 1ms", false), ("", true)] {
        let serving = serve(options);
        let address = serving.address;
        thread::scope(|scope| {
            let clients: Vec<_> = (0..12)
                .map(|number| {
                    scope.spawn(move || {
                        let text = format!("flood {number}");
                        let line = format!("HELO {text}\n");
                        let reply = helo_reply(text.as_bytes(), address);
                        Peer::connect(address).keep_asking(line.as_bytes(), &reply)
                    })
                })
                .collect();
            eventually("all clients are served", || {
                let stats = serving.stats();
                stats["connections"] == 12 && stats["replies_total"].as_u64() > Some(500)
            });
            if kill {
                serving.connect().send(b"KILL_SERVICE\n");
            } else {
                serving.signal(Signal::TERM);
            }
            let ended = serving.wait();
            ended.assert_clean();
            let stats = ended.stats();
            let received: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
            assert_eq!(stats["replies_total"], received, "every reply that was written has been read");
            assert_eq!(stats["requests_dropped_total"], 0);
            assert_eq!(stats["requests_pending"], 0);
        });
    }
}

#[test]
fn an_idle_client_sees_the_end_of_the_stream_and_no_reset() {
    let serving = serve("");
    let mut idle: Vec<Peer> = (0..20).map(|_| serving.connect()).collect();
    idle[0].ask("I was here");
    serving.signal(Signal::TERM);
    idle.iter_mut().for_each(Peer::expect_end);
    // They keep their side open, and the server ends all the same, after a second at most.
    let begun = Instant::now();
    serving.wait().assert_clean();
    // Well before the drain timeout of 8 s, and with some time for a machine that does other work as well.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_client_that_goes_on_sending_while_the_server_stops_sees_no_reset_before_the_end() {
    let gate = Gate::closed();
    let server = embed(gate.holds_all());
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"before the stop\n");
    eventually("it is pending", || server.handle().stats().requests_pending == 1);
    server.handle().stop();
    eventually("no more connections", || TcpStream::connect(server.local_addr()).is_err());
    // Too late to count, and no reason for a reset.
    for _ in 0..100 {
        peer.send(b"after the stop\n");
    }
    gate.open();
    peer.expect_rest(b"before the stop\n");
    drop(peer);
    let outcome = server.wait().unwrap();
    assert!(outcome.is_clean());
    assert_eq!(outcome.stats.requests(), 1);
}

#[test]
fn nobody_can_connect_once_the_server_stops() {
    let serving = serve("--handler-delay 300ms");
    let mut peer = serving.connect();
    peer.send(b"HELO wait for me\n");
    eventually("it is pending", || serving.stats()["requests_pending"] == 1);
    serving.signal(Signal::TERM);
    serving.expect_log("draining");
    eventually("connections are refused", || TcpStream::connect(serving.address).is_err());
    peer.expect_reply("wait for me");
    peer.expect_end();
    drop(peer);
    serving.wait().assert_clean();
}

#[test]
fn it_ends_at_the_first_moment_at_which_nothing_is_outstanding() {
    let serving = serve("--drain-timeout 1h");
    let mut peer = serving.connect();
    peer.ask("x");
    serving.signal(Signal::TERM);
    peer.expect_end();
    drop(peer);
    serving.wait().assert_clean();
}

#[test]
fn a_second_signal_stops_at_once_and_tells_what_was_dropped() {
    for (first, second) in
        [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM), (Signal::TERM, Signal::INT)]
    {
        let serving = serve("--handler-delay 1h --min-threads 1 --max-threads 1 --drain-timeout 1h");
        let mut peer = serving.connect();
        peer.send(b"HELO a\nHELO b\nHELO c\n");
        eventually("they are with a worker", || {
            let stats = serving.stats();
            stats["requests_pending"] == 3 && stats["pool_busy"] == 1
        });
        serving.signal(first);
        serving.expect_log("draining");
        serving.signal(second);
        let ended = serving.wait();
        assert_eq!(ended.status.code(), Some(1));
        for said in ["dropped_requests=3", "dropped_replies=0", "busy_workers=1", "slow_peers=0"] {
            assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
        }
        let stats = ended.stats();
        assert_eq!(stats["requests_dropped_total"], 3);
        assert_eq!(stats["requests_pending"], 0);
        assert_eq!(stats["connections_closed_total"]["aborted"], 1);
        assert_eq!(stats["connections"], 0);
    }
}

#[test]
fn the_drain_timeout_stops_at_once_with_the_same_account() {
    let serving = serve("--handler-delay 1h --drain-timeout 100ms --tolerance 0");
    let mut peers: Vec<Peer> = (0..3).map(|_| serving.connect()).collect();
    for peer in &mut peers {
        peer.send(b"HELO a\n");
    }
    eventually("all run", || serving.stats()["pool_busy"] == 3);
    let ended = serving.stop();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("dropped_requests=3"), "{}", ended.stderr);
    assert!(ended.stderr.contains("busy_workers=3"), "{}", ended.stderr);
}

#[test]
fn a_client_that_does_not_read_is_waited_for_until_the_drain_timeout_and_counted() {
    let serving = serve("--drain-timeout 300ms --max-line 1000000");
    let mut slow = Peer::with_small_buffer(serving.address, 4096);
    let text = "x".repeat(900_000);
    slow.send_until_blocked(format!("HELO {text}\n").repeat(20).as_bytes(), Duration::from_millis(300));
    eventually("replies wait for it", || serving.stats()["requests_pending"].as_u64() > Some(0));
    let ended = serving.stop();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("slow_peers=1"), "{}", ended.stderr);
    let logged = |name: &str| -> u64 {
        let rest = ended.stderr.rsplit_once(&format!("{name}=")).unwrap().1;
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    assert!(logged("dropped_replies") > 0);
    let stats = ended.stats();
    assert_eq!(stats["requests_dropped_total"], logged("dropped_replies") + logged("dropped_requests"));
}

#[test]
fn kill_service_is_acted_on_at_once_even_when_every_worker_is_stuck() {
    let serving = serve("--handler-delay 1h --max-threads 1 --min-threads 1 --drain-timeout 1h");
    let mut stuck = serving.connect();
    stuck.send(b"HELO stuck\n");
    eventually("the only worker is stuck", || serving.stats()["pool_busy"] == 1);
    let mut queued = serving.connect();
    queued.send(b"HELO queued\nKILL_SERVICE\n");
    serving.expect_log("stop requested by a peer");
    serving.expect_log("draining");
    // They never come back: a first signal changes nothing any more, a second stops at once.
    serving.signal(Signal::TERM);
    serving.expect_log("once more stops at once");
    serving.signal(Signal::TERM);
    let ended = serving.wait();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("dropped_requests=2"), "{}", ended.stderr);
}

#[test]
fn kill_service_behind_requests_of_its_own_connection_does_not_wait_for_them() {
    let serving = serve("--handler-delay 1h --max-threads 1 --min-threads 1 --drain-timeout 50ms");
    let mut peer = serving.connect();
    let mut lines = b"HELO a\n".repeat(2000);
    lines.extend(b"KILL_SERVICE\n");
    peer.send(&lines);
    let ended = serving.wait();
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(ended.stats()["requests_dropped_total"], 2000);
}

#[test]
fn kill_service_stops_with_exit_status_0_and_closes() {
    for last in ["KILL_SERVICE\n", "KILL_SERVICE\r\n"] {
        let serving = serve("");
        let mut other = serving.connect();
        other.ask("other");
        let mut peer = serving.connect();
        peer.send(last.as_bytes());
        peer.expect_end();
        other.expect_end();
        drop((peer, other));
        serving.wait().assert_clean();
    }
    // As a last line without terminator, too.
    let serving = serve("");
    let mut peer = serving.connect();
    peer.send(b"HELO x\nKILL_SERVICE");
    peer.finish();
    peer.expect_rest(&helo_reply(b"x", serving.address));
    serving.wait().assert_clean();
}

#[test]
fn who_may_stop_the_service_is_a_list() {
    for (list, allowed) in [
        ("any", true),
        ("none", false),
        ("loopback", true),
        ("127.0.0.0/8", true),
        ("127.0.0.1/32", true),
        ("127.0.0.1", true),
        ("10.0.0.0/8,127.0.0.0/30", true),
        ("10.0.0.0/8,192.168.0.0/16", false),
        ("127.0.0.2/32", false),
        ("::1/128", false),
        ("::/0", false),
        ("0.0.0.0/0", true),
        ("::ffff:127.0.0.1", true),
        ("::ffff:127.0.0.0/104", true),
        ("::ffff:10.0.0.0/104", false),
    ] {
        let serving = serve(&format!("--kill-from {list}"));
        let mut peer = serving.connect();
        peer.send(b"HELO first\nKILL_SERVICE\nHELO behind\n");
        let mut expected = helo_reply(b"first", serving.address);
        if allowed {
            expected.extend(helo_reply(b"behind", serving.address));
            peer.expect_rest(&expected);
            drop(peer);
            serving.wait().assert_clean();
        } else {
            expected.extend(b"ERROR KILL_SERVICE refused\n");
            assert_eq!(String::from_utf8_lossy(&peer.rest()), String::from_utf8_lossy(&expected), "{list}");
            serving.connect().ask("it goes on");
        }
    }
}

#[test]
fn assignment_lets_anyone_stop_the_service_but_an_option_wins() {
    let serving = serve("--assignment");
    assert!(serving.address.ip().is_unspecified());
    let address: std::net::SocketAddr = ([127, 0, 0, 1], serving.address.port()).into();
    Peer::connect(address).send(b"KILL_SERVICE\n");
    serving.wait().assert_clean();

    let serving = serve("--assignment --kill-from none --bind 127.0.0.1");
    let mut peer = serving.connect();
    peer.send(b"KILL_SERVICE\n");
    peer.expect_rest(b"ERROR KILL_SERVICE refused\n");
}

#[test]
fn signals_reach_the_server_through_start_sh() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut command = fake_toolchain("start.sh");
        command.args(["0", "--bind", "127.0.0.1"]);
        let serving = Serving::start(command);
        serving.connect().ask("through the script");
        serving.signal(signal);
        serving.wait().assert_clean();
    }
}

#[test]
fn a_request_whose_client_has_gone_is_waited_for_and_accounted_for() {
    let gate = Gate::closed();
    let server = embed(gate.holds_all());
    let handle = server.handle();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nb\nc\n");
    eventually("they are pending", || handle.stats().requests_pending == 3);
    peer.reset();
    handle.stop();
    gate.open();
    let outcome = server.wait().unwrap();
    assert!(outcome.is_clean(), "a client that leaves is not the server's loss: {outcome:?}");
    assert_adds_up(&outcome.stats);
    assert_eq!(outcome.stats.requests_dropped_total, 3);
}

#[test]
fn stopping_again_and_from_several_sides_does_nothing_more() {
    let serving = serve("");
    let mut peers: Vec<Peer> = (0..10).map(|_| serving.connect()).collect();
    for peer in &mut peers {
        peer.send(b"HELO x\nKILL_SERVICE\nKILL_SERVICE\nHELO y\n");
    }
    expect_ends_with_some_replies(peers);
    serving.wait().assert_clean();
}

/// The ones that were read before the stop have both replies; those after it what had arrived.
fn expect_ends_with_some_replies(peers: Vec<Peer>) {
    for mut peer in peers {
        let server = peer.server();
        let (x, y) = (helo_reply(b"x", server), helo_reply(b"y", server));
        assert!([x.clone(), [&x[..], &y].concat(), vec![]].contains(&peer.rest()));
    }
}

#[test]
fn a_stop_of_the_library_is_the_same() {
    let server = configure(Helo::new(), |_| {});
    let mut peer = Peer::connect(server.local_addr());
    peer.ask("x");
    assert!(!server.handle().is_stopping());
    server.handle().stop();
    server.handle().stop();
    assert!(server.handle().is_stopping());
    peer.expect_end();
    drop(peer);
    let outcome = server.wait().unwrap();
    assert!(outcome.is_clean());
    assert_eq!((outcome.stats.connections, outcome.stats.replies_total), (0, 1));
}

/// Counts those of its kind that are there. Ends slowly, as what a thread keeps for itself may.
struct Kept(Arc<AtomicUsize>);

impl Kept {
    fn new(there: &Arc<AtomicUsize>) -> Kept {
        there.fetch_add(1, SeqCst);
        Kept(Arc::clone(there))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        thread::sleep(Duration::from_millis(50));
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A handler that keeps something for itself and for each thread that it is called on, the reactor among them.
struct Keeper {
    there: Arc<AtomicUsize>,
    _own: Kept,
}

impl Keeper {
    fn new(there: &Arc<AtomicUsize>) -> Keeper {
        Keeper { there: Arc::clone(there), _own: Kept::new(there) }
    }

    fn keep_for_this_thread(&self) {
        thread_local! {
            static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
        }
        KEPT.with_borrow_mut(|kept| {
            kept.get_or_insert_with(|| Kept::new(&self.there));
        });
    }
}

impl Handler for Keeper {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        self.keep_for_this_thread();
        // So that every worker gets some.
        thread::sleep(Duration::from_millis(1));
        echo(request, reply);
    }

    fn classify(&self, _: &[u8]) -> Kind {
        self.keep_for_this_thread();
        Kind::Request
    }
}

#[test]
fn when_the_end_is_told_the_handler_and_all_that_belongs_to_its_threads_are_gone() {
    type End = fn(Server);
    let ends: [(&str, End); 4] = [
        ("wait", |server| {
            server.handle().stop();
            assert_eq!(server.wait().unwrap().left_behind, [""; 0]);
        }),
        ("stop at once", |server| {
            server.handle().stop_now();
            server.wait().unwrap();
        }),
        ("drop", drop),
        ("several who wait", |server| {
            let handle = server.handle();
            handle.stop();
            thread::scope(|scope| {
                (0..3).for_each(|_| drop(scope.spawn(|| handle.wait().unwrap())));
            });
        }),
    ];
    for (name, end) in ends {
        let there = Arc::new(AtomicUsize::new(0));
        let server = configure(Keeper::new(&there), |config| config.keep_alive = Duration::from_millis(1));
        let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(server.local_addr())).collect();
        peers.iter_mut().for_each(|peer| peer.send(b"x\n"));
        peers.iter_mut().for_each(|peer| peer.expect(b"x\n"));
        assert!(there.load(SeqCst) >= 3, "its own, the reactor's, and a worker's");
        drop(peers);
        end(server);
        assert_eq!(there.load(SeqCst), 0, "{name}");
    }
}

#[test]
fn a_handler_that_runs_while_the_server_is_stopped_at_once_returns_before_the_end_is_told() {
    let gate = Gate::closed();
    let (there, pass) = (Arc::new(AtomicUsize::new(0)), gate.entrance());
    let handler = {
        let kept = Kept::new(&there);
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            let _kept = Kept::new(&kept.0);
            pass();
            echo(request, reply);
        }
    };
    let server = embed(handler);
    Peer::connect(server.local_addr()).send(b"x\n");
    eventually("it runs", || there.load(SeqCst) == 2);
    server.handle().stop_now();
    gate.open();
    let outcome = server.wait().unwrap();
    assert_eq!((there.load(SeqCst), outcome.left_behind.len()), (0, 0), "{outcome:?}");
}

#[test]
fn a_handler_may_keep_a_handle_to_its_server_and_leaks_nothing() {
    let there = Arc::new(AtomicUsize::new(0));
    let own = Arc::new(OnceLock::<ServerHandle>::new());
    let handler = {
        let (own, kept) = (Arc::clone(&own), Kept::new(&there));
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            assert!(own.get().is_some_and(|own| !own.is_stopping()) && kept.0.load(SeqCst) == 1);
            echo(request, reply);
        }
    };
    let server = embed(handler);
    own.set(server.handle()).unwrap();
    let weak = Arc::downgrade(&own);
    drop(own);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect(b"x\n");
    drop((peer, server));
    assert_eq!((there.load(SeqCst), weak.strong_count()), (0, 0));
}

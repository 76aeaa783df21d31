//! The library from inside a handler: closures, panics, closing, stopping, waiting.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tidemill::{Address, Config, Error, Handler, Helo, Kind, Reply, Request, Server, ServerHandle};

use crate::support::{
    DEADLINE, Gate, Peer, assert_adds_up, configure, echo, embed, eventually, resolved, scratch,
};

#[test]
fn a_closure_is_a_handler_and_captures_what_it_likes() {
    let greeting = String::from("good day, ");
    let served = Arc::new(AtomicUsize::new(0));
    let server = embed({
        let served = Arc::clone(&served);
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            served.fetch_add(1, Relaxed);
            writeln!(reply, "{greeting}{}", String::from_utf8_lossy(request.line())).unwrap();
        }
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"Ada\nGrace\n");
    peer.expect(b"good day, Ada\ngood day, Grace\n");
    assert_eq!(served.load(Relaxed), 2);
}

#[test]
fn a_handler_knows_both_addresses() {
    let server = embed(|request: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(format!("{} {}\n", request.local_addr(), request.peer_addr()).as_bytes());
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"who\n");
    let expected = format!("{} {}\n", server.local_addr(), peer.local());
    peer.expect(expected.as_bytes());
}

#[test]
fn a_handler_that_writes_nothing_gives_no_reply_and_later_ones_keep_their_order() {
    let server = embed(|request: &Request<'_>, reply: &mut Reply<'_>| {
        if !request.line().is_empty() {
            echo(request, reply);
        }
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\n\n\nb\n\nc\n");
    peer.finish();
    peer.expect_rest(b"a\nb\nc\n");
    let handle = server.handle();
    eventually("all are counted", || handle.stats().connections == 0);
    let stats = handle.stats();
    assert_eq!((stats.requests_silent_total, stats.replies_total), (3, 3));
    assert_adds_up(&stats);
}

#[test]
fn a_panic_costs_one_connection_and_neither_a_worker_nor_the_service() {
    let handler = |request: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(b"half of ");
        assert_ne!(request.line(), b"panic", "on purpose");
        echo(request, reply);
    };
    let server = configure(handler, |config| (config.min_threads, config.max_threads) = (1, 1));
    let handle = server.handle();
    let mut other = Peer::connect(server.local_addr());
    for _ in 0..50 {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(b"before\npanic\nbehind\n");
        peer.expect_rest(b"half of before\nERROR internal error\n");
        other.send(b"alive\n");
        other.expect(b"half of alive\n");
    }
    eventually("all are closed", || handle.stats().connections_closed_total.panic == 50);
    let stats = handle.stats();
    assert_eq!((stats.handler_panics_total, stats.pool_threads), (50, 1));
    assert_adds_up(&stats);
}

/// A panic value whose drop panics again.
struct Explosive;

impl Drop for Explosive {
    fn drop(&mut self) {
        assert!(thread::panicking(), "in the drop of a panic's value");
    }
}

#[test]
fn a_panic_whose_value_panics_when_dropped_costs_no_more() {
    let handler = |request: &Request<'_>, reply: &mut Reply<'_>| {
        if request.line() == b"value" {
            std::panic::panic_any(Explosive);
        }
        echo(request, reply);
    };
    let server = configure(handler, |config| (config.min_threads, config.max_threads) = (1, 1));
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"before\nvalue\nbehind\n");
    peer.expect_rest(b"before\nERROR internal error\n");
    let mut other = Peer::connect(server.local_addr());
    other.send(b"alive\n");
    other.expect(b"alive\n");
}

#[test]
fn a_panic_while_telling_what_a_line_is_costs_one_connection() {
    struct Picky;
    impl Handler for Picky {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            echo(request, reply);
        }
        fn classify(&self, line: &[u8]) -> Kind {
            assert_ne!(line, b"bad", "on purpose");
            Kind::Request
        }
    }
    let server = embed(Picky);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"good\nbad\nnever\n");
    peer.expect_rest(b"good\nERROR internal error\n");
    let mut other = Peer::connect(server.local_addr());
    other.send(b"alive\n");
    other.expect(b"alive\n");
    assert_adds_up(&server.handle().stats());
}

#[test]
fn a_handler_may_close_the_connection_behind_its_reply() {
    let server = embed(|request: &Request<'_>, reply: &mut Reply<'_>| match request.line() {
        b"bye" => {
            reply.push(b"see you\n");
            reply.close();
        }
        b"hang up" => reply.close(),
        _ => echo(request, reply),
    });
    for (sent, expected) in [
        (&b"a\nbye\nb\nc\n"[..], &b"a\nsee you\n"[..]),
        (b"a\nhang up\nb\n", b"a\n"),
        (b"bye\n", b"see you\n"),
        (b"hang up", b""),
    ] {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(sent);
        if !sent.ends_with(b"\n") {
            peer.finish();
        }
        peer.expect_rest(expected);
    }
    let handle = server.handle();
    eventually("all are closed", || handle.stats().connections_closed_total.handler == 4);
    assert_adds_up(&handle.stats());
}

#[test]
fn replies_may_be_long_or_short() {
    let server = embed(|request: &Request<'_>, reply: &mut Reply<'_>| {
        let len: usize = std::str::from_utf8(request.line()).unwrap().parse().unwrap();
        reply.push(&vec![b'r'; len]);
    });
    let lens = [1, 0, 100_000, 3, 5_000_000, 65_536, 0, 65_537, 2];
    let mut peer = Peer::connect(server.local_addr());
    let lines: Vec<u8> = lens.iter().flat_map(|len| format!("{len}\n").into_bytes()).collect();
    assert_eq!(peer.exchange(&lines).len(), lens.iter().sum::<usize>());
}

/// Gives a handler the handle of its own server.
fn with_handle(
    act: impl Fn(&ServerHandle, &Request<'_>, &mut Reply<'_>) + Send + Sync + 'static,
) -> (Server, ServerHandle) {
    let own = Arc::new(OnceLock::<ServerHandle>::new());
    let server = embed({
        let own = Arc::clone(&own);
        move |request: &Request<'_>, reply: &mut Reply<'_>| act(own.wait(), request, reply)
    });
    own.set(server.handle()).unwrap();
    let handle = server.handle();
    (server, handle)
}

#[test]
fn a_handler_may_stop_its_server_without_a_deadlock() {
    let (server, _) = with_handle(|handle, request, reply| {
        handle.stop();
        assert!(handle.is_stopping());
        echo(request, reply);
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"stop\nand answer\n");
    peer.expect_rest(b"stop\nand answer\n");
    drop(peer);
    assert!(server.wait().unwrap().is_clean());
}

#[test]
fn a_handler_may_stop_its_server_at_once() {
    let (server, _) = with_handle(|handle, _, _| handle.stop_now());
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"stop\n");
    assert_eq!(server.wait().unwrap().stats.connections, 0);
    drop(peer);
}

#[test]
fn a_handler_that_waits_for_the_end_of_its_server_is_told_that_it_cannot() {
    let (server, handle) = with_handle(|handle, _, reply| {
        let error = handle.wait().unwrap_err();
        assert!(matches!(error, Error::WaitInHandler));
        reply.push(format!("{error}\n").as_bytes());
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"wait\n");
    peer.expect(b"a handler cannot wait for the end of its own server\n");
    // Stopping does not change that.
    handle.stop();
    peer.expect_end();
}

#[test]
fn a_handler_may_ask_for_statistics_and_change_limits() {
    let (server, handle) = with_handle(|handle, request, reply| {
        assert!(handle.stats().pool_busy >= 1);
        let mut limits = handle.pool_limits();
        limits.max_threads = 77;
        handle.set_pool_limits(limits).unwrap();
        echo(request, reply);
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect(b"x\n");
    assert_eq!(handle.stats().pool_max, 77);
}

#[test]
fn a_handler_of_one_server_may_use_and_wait_for_another() {
    let inner = embed(echo);
    let address = resolved(inner.local_addr());
    let inner = Mutex::new(Some(inner));
    let outer = embed(move |request: &Request<'_>, reply: &mut Reply<'_>| {
        let mut peer = Peer::connect(address);
        peer.send(&[request.line(), b"\n"].concat());
        peer.expect(&[request.line(), b"\n"].concat());
        drop(peer);
        if let Some(server) = inner.lock().unwrap().take() {
            server.handle().stop();
            assert!(server.wait().unwrap().is_clean());
        }
        reply.push(b"relayed\n");
    });
    let mut peer = Peer::connect(outer.local_addr());
    peer.send(b"x\n");
    peer.expect(b"relayed\n");
}

#[test]
fn dropping_a_server_stops_it_and_loses_nothing() {
    let server = embed(echo);
    let address = resolved(server.local_addr());
    let handle = server.handle();
    let mut peer = Peer::connect(address);
    peer.send(b"x\ny\nz\n");
    peer.expect(b"x\n");
    let dropper = thread::spawn(move || drop(server));
    peer.expect_rest(b"y\nz\n");
    drop(peer);
    dropper.join().unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
    assert!(handle.wait().unwrap().is_clean());
}

#[test]
fn a_server_may_be_dropped_by_its_own_handler() {
    let own = Arc::new(Mutex::new(None::<Server>));
    let server = embed({
        let own = Arc::clone(&own);
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            drop(own.lock().unwrap().take());
            echo(request, reply);
        }
    });
    let handle = server.handle();
    let mut peer = Peer::connect(server.local_addr());
    *own.lock().unwrap() = Some(server);
    peer.send(b"drop it\n");
    peer.expect_rest(b"drop it\n");
    drop(peer);
    assert!(handle.wait().unwrap().is_clean());
}

#[test]
fn a_worker_that_never_returns_is_left_behind_at_the_deadline() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| config.drain_timeout = Duration::from_millis(50));
    let handle = server.handle();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nb\n");
    eventually("one is with a worker", || handle.stats().pool_busy == 1);
    handle.stop();
    let outcome = handle.wait().unwrap();
    assert!(!outcome.is_clean());
    assert_eq!((outcome.dropped_requests, outcome.busy_workers), (2, 1));
    let [name] = &outcome.left_behind[..] else { panic!("{outcome:?}") };
    assert!(name.starts_with("tidemill-w"), "{name}");
    assert_adds_up(&outcome.stats);
    // The handler comes back to a server that is no more, and nothing happens.
    gate.open();
    drop(peer);
    drop(server);
}

#[test]
fn a_stop_never_blocks() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| config.drain_timeout = DEADLINE * 10);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"stuck\n");
    let handle = server.handle();
    eventually("it is stuck", || handle.stats().pool_busy == 1);
    let begun = Instant::now();
    handle.stop();
    handle.stop();
    assert!(begun.elapsed() < DEADLINE);
    handle.stop_now();
    assert_eq!(handle.wait().unwrap().dropped_requests, 1);
}

#[test]
fn any_number_of_threads_may_wait() {
    let server = embed(echo);
    let handle = server.handle();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..8).map(|_| scope.spawn(|| handle.wait().unwrap().is_clean())).collect();
        handle.stop();
        assert!(waiting.into_iter().all(|one| one.join().unwrap()));
    });
    assert!(handle.wait().unwrap().is_clean(), "also after the end");
}

#[test]
fn several_servers_in_one_process_know_nothing_of_each_other() {
    let servers: Vec<Server> =
        (0..5).map(|number| embed(Helo::new().student_id(&format!("s{number}")))).collect();
    let mut peers: Vec<Peer> = servers.iter().map(|server| Peer::connect(server.local_addr())).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.send(b"HELO x\n");
        let server = peer.server();
        let expected = format!("HELO x\nIP:{}\nPort:{}\nStudentID:s{number}\n", server.ip(), server.port());
        peer.expect(expected.as_bytes());
    }
    servers[0].handle().stop();
    peers[0].expect_end();
    for (server, peer) in servers.iter().zip(&mut peers).skip(1) {
        peer.send(b"HELO x\n");
        eventually("it is answered", || server.handle().stats().replies_total == 2);
    }
}

#[test]
fn a_server_may_listen_on_several_addresses() {
    let server = Server::builder(Helo::new())
        .listen(([127, 0, 0, 1], 0).into())
        .listen(([127, 0, 0, 2], 0).into())
        .listen(([0, 0, 0, 0], 0).into())
        .start()
        .unwrap();
    let handle = server.handle();
    let addresses = handle.local_addrs();
    assert_eq!(addresses.len(), 3);
    assert_eq!(*handle.local_addr(), addresses[0]);
    for _ in 0..3 {
        Peer::connect(&addresses[0]).ask("one");
        Peer::connect(&addresses[1]).ask("two");
        Peer::connect(("127.0.0.3", addresses[2].port())).ask("three");
    }
    handle.stop();
    assert!(server.wait().unwrap().is_clean());
}

#[test]
fn a_port_in_use_or_a_bad_setting_is_an_error_and_leaves_nothing_running() {
    let server = embed(echo);
    let path = scratch("unix").join("socket");
    // The first of them can be had, and is given back.
    let both = Server::builder(echo).listen(Address::Unix(path.clone())).listen(server.local_addr().clone());
    let error = both.start().unwrap_err();
    assert!(!path.exists(), "it listens still");
    assert!(matches!(&error, Error::Bind { address, .. } if address == server.local_addr()), "{error}");
    assert!(std::error::Error::source(&error).is_some());

    let mut config = Config::default();
    config.tolerance = usize::MAX;
    let error = Server::builder(echo).config(config).start().unwrap_err();
    assert!(matches!(error, Error::Setting { name: "tolerance", .. }), "{error}");
}

#[test]
fn an_echo_of_lines_sees_them_without_their_terminator() {
    let (lines, seen) = mpsc::channel();
    let lines = Mutex::new(lines);
    let server = embed(move |request: &Request<'_>, _: &mut Reply<'_>| {
        lines.lock().unwrap().send(request.line().to_vec()).unwrap();
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\r\n\n\r\nb\r\r\n\rc\nlast\r");
    peer.finish();
    peer.expect_end();
    let seen: Vec<Vec<u8>> = seen.try_iter().collect();
    assert_eq!(seen, [&b"a"[..], b"", b"", b"b\r", b"\rc", b"last\r"]);
}

/// A server at a Unix socket.
fn at_path(path: &Path, handler: impl Handler) -> Server {
    configure(handler, |config| config.listen = vec![Address::Unix(path.to_owned())])
}

#[test]
fn a_unix_socket_is_served_and_its_peers_count_as_loopback_and_its_file_goes_with_it() {
    struct Stoppable;
    impl Handler for Stoppable {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            assert_eq!(request.peer_addr(), &Address::Unix(PathBuf::new()));
            writeln!(reply, "{}", request.local_addr()).unwrap();
        }

        fn classify(&self, line: &[u8]) -> Kind {
            if line == b"stop" { Kind::Stop } else { Kind::Request }
        }
    }
    let path = scratch("unix").join("socket");
    let server = at_path(&path, Stoppable);
    let mut peer = UnixStream::connect(&path).unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    peer.write_all(b"where\nstop\nwhere").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    let mut came = String::new();
    peer.read_to_string(&mut came).unwrap();
    assert_eq!(came, format!("{}\n", Address::Unix(path.clone())).repeat(2));
    assert!(server.wait().unwrap().is_clean());
    assert!(!path.exists());
}

/// The file was removed when a stop began and once more when it had ended.
#[test]
fn a_server_that_stops_leaves_the_unix_socket_of_its_successor_alone() {
    let path = scratch("unix").join("socket");
    let gate = Gate::closed();
    let before = at_path(&path, gate.holds_all());
    let mut peer = UnixStream::connect(&path).unwrap();
    peer.write_all(b"held\n").unwrap();
    eventually("its request is being handled", || before.handle().stats().pool_busy == 1);
    before.handle().stop();
    eventually("its door is shut", || !path.exists());
    let _after = at_path(&path, echo);
    gate.open();
    assert!(before.wait().unwrap().is_clean());
    let mut peer = UnixStream::connect(&path).unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    peer.write_all(b"x\n").unwrap();
    peer.read_exact(&mut [0; 2]).unwrap();
}

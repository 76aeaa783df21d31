//! Bugs that were, in words. Each of these fails without its fix.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tidemill::{Handler, Kind, Reply, Request};

use crate::support::{
    DEADLINE, Gate, Peer, allow_files, assert_adds_up, assert_same, configure, echo, embed, eventually,
    helo_reply, resolved, serve, tcp_sockets,
};

/// The last read of a drain brought nothing but a line without terminator, while no job was out: the line was kept, and
/// nobody handed it out before the drain timeout. (issue 2)
#[test]
fn a_last_line_alone_in_the_last_read_of_a_drain_is_answered() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| {
        config.max_pending = 1;
        config.drain_timeout = DEADLINE * 2;
    });
    let handle = server.handle();
    let mut first = Peer::connect(server.local_addr());
    first.send(b"first\n");
    eventually("the only place is taken", || handle.stats().requests_pending == 1);
    // What is behind 4096 bytes stays in the receive queue until there is a place for it.
    let mut last = Peer::connect(server.local_addr());
    last.send(&b"ahead..\n".repeat(512));
    last.send(b"last");
    last.finish();
    eventually("it is read ahead", || handle.stats().read_bytes_total == 6 + 4096);
    handle.stop();
    eventually("the stop has begun", || TcpStream::connect(server.local_addr()).is_err());
    assert_eq!(handle.stats().read_bytes_total, 6 + 4096);
    gate.open();
    first.expect_rest(b"first\n");
    last.expect_rest(&[&b"ahead..\n".repeat(512)[..], b"last\n"].concat());
    drop((first, last));
    assert!(server.wait().unwrap().is_clean());
}

/// Who was in the accept queue of a server without descriptors was reset when it stopped, and nobody was told. (issue 2)
#[test]
fn a_stop_without_descriptors_still_answers_who_is_in_the_accept_queue() {
    let serving = serve("");
    serving.limit_files(serving.open_files() + 5);
    let mut peers: Vec<Peer> = (0..30).map(|_| serving.connect()).collect();
    for peer in &mut peers {
        peer.send(b"HELO x\n");
    }
    serving.expect_log("cannot accept connections for now");
    serving.signal(Signal::TERM);
    serving.expect_log("draining");
    for mut peer in peers {
        peer.expect_rest(&helo_reply(b"x", serving.address));
    }
    let ended = serving.wait();
    ended.assert_clean();
    assert_eq!(ended.stats()["replies_total"], 30);
}

/// The socket took bytes again in the same turn in which a reply came back for a connection with bytes waiting: the reply
/// was queued behind them, the socket was taken for full without a try, and no event told otherwise ever again. (issue 2)
#[test]
fn a_reply_that_comes_with_the_event_for_writing_does_not_lose_it() {
    const BIG: usize = 8 << 20;
    struct Held {
        reactor: Box<dyn Fn() + Send + Sync>,
        worker: Box<dyn Fn() + Send + Sync>,
        told: mpsc::Sender<&'static str>,
    }
    impl Handler for Held {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            match request.line() {
                b"big" => reply.push(&[b'x'; BIG]),
                b"wait" => {
                    (self.worker)();
                    reply.push(b"last\n");
                }
                _ => self.told.send("the worker is done with what was before").unwrap(),
            }
        }
        fn classify(&self, line: &[u8]) -> Kind {
            if line == b"hold" {
                self.told.send("the reactor is held").unwrap();
                (self.reactor)();
            }
            Kind::Request
        }
    }
    let (reactor, worker) = (Gate::closed(), Gate::closed());
    let (told, news) = mpsc::channel();
    let handler = Held { reactor: Box::new(reactor.entrance()), worker: Box::new(worker.entrance()), told };
    let server = configure(handler, |config| {
        (config.min_threads, config.max_threads) = (1, 1);
        config.high_watermark_bytes = 64 << 20;
    });
    let handle = server.handle();
    let mut slow = Peer::with_small_buffer(server.local_addr(), 4096);
    slow.send(b"big\n");
    eventually("the socket is full", || handle.stats().written_bytes_total > 0);
    let written = usize::try_from(handle.stats().written_bytes_total).unwrap();
    assert!(written < BIG);
    slow.send(b"wait\n");
    eventually("the worker waits", || handle.stats().pool_busy == 1);
    let mut next = Peer::connect(server.local_addr());
    next.send(b"next\n");
    eventually("it is queued", || handle.stats().requests() == 3);
    let mut other = Peer::connect(server.local_addr());
    other.send(b"hold\n");
    assert_eq!(news.recv_timeout(DEADLINE).unwrap(), "the reactor is held");
    // Both the event and the reply are there when the reactor goes on.
    slow.expect(&vec![b'x'; written]);
    worker.open();
    assert_eq!(news.recv_timeout(DEADLINE).unwrap(), "the worker is done with what was before");
    reactor.open();
    slow.expect(&vec![b'x'; BIG - written]);
    slow.expect(b"last\n");
}

/// Of three clients that always had more to do than `max_pending` let through, one was passed over for ever. (issue 2)
#[test]
fn at_max_pending_everybody_has_a_turn() {
    const LINES: usize = 3_000;
    let gate = Gate::closed();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let (entrance, calls) = (gate.entrance(), Arc::clone(&calls));
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            entrance();
            calls.lock().unwrap().push(request.line()[0]);
            reply.push(b"ok\n");
        }
    };
    let server = configure(handler, |config| config.max_pending = 2);
    let mut peers: Vec<_> = (0..3).map(|_| Peer::connect(server.local_addr())).collect();
    for (peer, line) in peers.iter_mut().zip([b"a\n", b"b\n", b"c\n"]) {
        peer.send(&line.repeat(LINES));
    }
    eventually("all are there", || server.handle().stats().connections == 3);
    gate.open();
    for peer in &mut peers {
        peer.expect(&b"ok\n".repeat(LINES));
    }
    let calls = calls.lock().unwrap();
    for line in [b'a', b'b', b'c'] {
        let early = calls[..LINES].iter().filter(|call| **call == line).count();
        assert!(early > LINES / 10, "{early} of the first {LINES} were {}", char::from(line));
    }
}

/// A stop at once said that nothing was dropped while complete requests lay unread in receive queues. (issue 2)
#[test]
fn a_stop_at_once_tells_of_requests_that_were_not_read() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| config.max_pending = 1);
    let handle = server.handle();
    let mut first = Peer::connect(server.local_addr());
    first.send(b"first\n");
    eventually("the only place is taken", || handle.stats().requests_pending == 1);
    // The first 4096 bytes are read ahead, which are requests that count; the rest is not.
    let mut unread = Peer::connect(server.local_addr());
    unread.send(&b"unread.\n".repeat(1000));
    eventually("a part of it is read", || handle.stats().read_bytes_total == 6 + 4096);
    handle.stop_now();
    eventually("all are gone", || handle.stats().connections == 0);
    gate.open();
    let outcome = server.wait().unwrap();
    assert_eq!((outcome.unread_peers, outcome.is_clean()), (1, false));
    assert_eq!(outcome.stats.requests(), 1 + 512);
    assert_adds_up(&outcome.stats);
}

/// A read stops short at urgent data, and what was behind it waited for the next packet. (issue 2)
#[test]
fn urgent_data_does_not_hold_back_what_is_behind_it() {
    let serving = serve("");
    let mut stream = TcpStream::connect(serving.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    serving.freeze();
    stream.write_all(b"HELO a\n").unwrap();
    socket2::SockRef::from(&stream).send_out_of_band(b"!").unwrap();
    stream.write_all(b"HELO b\n").unwrap();
    serving.resume();
    let expected = [helo_reply(b"a", serving.address), helo_reply(b"b", serving.address)].concat();
    let mut replies = vec![0; expected.len()];
    stream.read_exact(&mut replies).unwrap();
    assert_eq!(replies, expected);
}

/// Requests that were read ahead counted as waiting only from when they were handed out. (issue 2)
#[test]
fn waiting_counts_from_when_a_request_was_read() {
    const LINES: u64 = 512;
    let serving = serve("--handler-delay 1ms");
    let mut peer = serving.connect();
    peer.send(&b"HELO x\n".repeat(512));
    peer.expect(&helo_reply(b"x", serving.address).repeat(512));
    let stats = serving.stop().stats();
    let waited = stats["queue_wait_seconds"]["sum"].as_f64().unwrap();
    // The last waits for 511 others of 1 ms at least, the one before for 510, and so on.
    assert!(waited > (LINES * (LINES - 1) / 2) as f64 * 0.001 * 0.99, "{waited}");
}

/// The handshake of a client that connected in the moment of a stop was completed between the last accept and the close of
/// the listener, which reset it. (issue 12)
#[test]
fn who_connects_in_the_moment_of_the_stop_is_served_or_refused() {
    const ROUNDS: usize = 40;
    // Its first packet is dropped once the door is shut, and sent again after a second.
    const PATIENCE: Duration = Duration::from_millis(100);
    let reset = AtomicUsize::new(0);
    for _ in 0..ROUNDS {
        let server = embed(echo);
        let (address, served) = (resolved(server.local_addr()), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let Ok(mut stream) = TcpStream::connect_timeout(&address, PATIENCE) {
                        let mut reply = [0; 2];
                        match stream.write_all(b"x\n").and_then(|()| stream.read_exact(&mut reply)) {
                            Ok(()) => served.fetch_add(1, Relaxed),
                            // Accepted, and ended before its request had come.
                            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                            Err(_) => reset.fetch_add(1, Relaxed),
                        };
                    }
                });
            }
            eventually("they come and go", || served.load(Relaxed) > 50);
            server.handle().stop();
        });
        assert!(server.wait().unwrap().is_clean());
    }
    assert_eq!(reset.into_inner(), 0, "resets in {ROUNDS} stops");
}

/// What a stop has to read was counted up to an urgent byte only, and what lay behind it was lost. (issue 12)
#[test]
fn a_stop_answers_what_lies_behind_an_urgent_byte() {
    let gate = Gate::closed();
    let server = embed(gate.holds_stuck());
    let mut stream = TcpStream::connect(server.local_addr()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (handle, before) = (server.handle(), server.handle().stats().read_bytes_total);
    stream.write_all(b"stuck\n").unwrap();
    eventually("it is with the handler", || handle.stats().pool_busy == 1);
    // So much is read ahead; what follows stays in the receive queue.
    let ahead = b"ahead..\n".repeat(2048);
    stream.write_all(&ahead).unwrap();
    eventually("it is read", || handle.stats().read_bytes_total - before == 6 + 16384);
    stream.write_all(b"a\n").unwrap();
    socket2::SockRef::from(&stream).send_out_of_band(b"!").unwrap();
    stream.write_all(b"b\n").unwrap();
    socket2::SockRef::from(&stream).send_out_of_band(b"!").unwrap();
    stream.write_all(b"c\n").unwrap();
    handle.stop();
    eventually("the stop has begun", || TcpStream::connect(server.local_addr()).is_err());
    gate.open();
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).unwrap();
    // Only the last urgent byte is out of band; the one before has become part of the stream.
    assert_same(&replies, &[b"stuck\n", &ahead[..], b"a\n!b\nc\n"].concat());
    drop(stream);
    assert!(server.wait().unwrap().is_clean());
}

/// Without descriptors a stop could not empty its accept queue, and let newcomers in meanwhile. (issue 12)
#[test]
fn a_stop_shuts_the_door_first_even_without_descriptors() {
    let serving = serve("--handler-delay 2s --drain-timeout 10s");
    serving.limit_files(serving.open_files() + 5);
    let mut peers: Vec<Peer> = (0..10).map(|_| serving.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"HELO x\n"));
    serving.expect_log("cannot accept connections for now");
    serving.signal(Signal::TERM);
    serving.expect_log("draining");
    let newcomer = TcpStream::connect_timeout(&serving.address, Duration::from_millis(300));
    assert!(newcomer.is_err(), "connected after the stop had begun");
    for mut peer in peers {
        peer.expect_rest(&helo_reply(b"x", serving.address));
    }
    serving.wait().assert_clean();
}

/// A peer that vanished without a word held its place for ever. (issue 12)
#[test]
fn the_system_asks_after_silent_peers() {
    let serving = serve("");
    let mut peer = serving.connect();
    peer.ask("x");
    let (server, client) =
        (format!(":{:04X}", serving.address.port()), format!(":{:04X}", peer.local().port()));
    let columns = tcp_sockets("01")
        .find(|columns| columns[1].ends_with(&server) && columns[2].ends_with(&client))
        .unwrap();
    // Which timer runs, and in how many hundredths of a second it is due.
    let (timer, due) = columns[5].split_once(':').unwrap();
    assert_eq!(timer, "02", "the keepalive timer");
    assert!(u32::from_str_radix(due, 16).unwrap() <= 6000, "{due}");
}

/// Both wildcards of one port could not be listened on together. (issue 12)
#[test]
fn both_wildcards_of_a_port_stand_beside_each_other_and_the_ipv6_one_alone_serves_both() {
    let free = || std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
    let ask = |address: (&str, u16)| {
        let address = std::net::ToSocketAddrs::to_socket_addrs(&address).unwrap().next().unwrap();
        let mut peer = Peer::connect(address);
        peer.send(b"x\n");
        peer.expect(b"x\n");
    };
    let port = free();
    let wildcards =
        [format!("0.0.0.0:{port}"), format!("[::]:{port}")].map(|address| address.parse().unwrap());
    let server = configure(echo, |config| config.listen = wildcards.to_vec());
    assert_eq!(server.handle().local_addrs(), wildcards);
    ask(("127.0.0.1", port));
    ask(("::1", port));
    drop(server);
    let server = configure(echo, |config| config.listen = vec!["[::]:0".parse().unwrap()]);
    ask(("127.0.0.1", server.local_addr().port()));
    ask(("::1", server.local_addr().port()));
}

/// Who was turned away kept its descriptor for a second, and those behind it waited for it. (issue 12)
#[test]
fn many_that_are_turned_away_at_once_do_not_wait_for_each_other() {
    allow_files(4000);
    let serving = serve("--max-connections 1");
    let mut inside = serving.connect();
    inside.ask("in");
    // About three places, as some files are open only for a moment: at a second for each, 400 would take two minutes.
    serving.limit_files(serving.open_files() + 3);
    let began = Instant::now();
    let mut turned_away: Vec<Peer> = (0..400).map(|_| serving.connect()).collect();
    for peer in &mut turned_away {
        peer.expect(b"ERROR server full (limit 1 connections)\n");
        assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    }
    inside.ask("still in");
    drop((inside, turned_away));
    serving.stop().assert_clean();
}

/// Requests of clients that had reset their connections were run all the same, and others waited for them. (issue 12)
#[test]
fn requests_of_a_client_that_has_reset_are_not_run() {
    let gate = Gate::closed();
    let calls = Arc::new(AtomicUsize::new(0));
    let handler = {
        let (calls, hold) = (Arc::clone(&calls), gate.holds_stuck());
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            calls.fetch_add(1, Relaxed);
            hold(request, reply);
        }
    };
    let server = configure(handler, |config| (config.min_threads, config.max_threads) = (1, 1));
    let handle = server.handle();
    let mut first = Peer::connect(server.local_addr());
    first.send(b"stuck\n");
    eventually("the only worker is held up", || calls.load(Relaxed) == 1);
    let mut gone: Vec<Peer> = (0..30).map(|_| Peer::connect(server.local_addr())).collect();
    // One job and more behind it; some have one line out and others kept.
    for (number, peer) in gone.iter_mut().enumerate() {
        peer.send(b"a\nb\n");
        eventually("it is pending", || handle.stats().requests() == 1 + 2 * (number as u64 + 1));
        peer.send(b"ahead\n");
    }
    gone.into_iter().for_each(Peer::reset);
    eventually("all are gone", || handle.stats().connections_closed_total.reset == 30);
    let mut newcomer = Peer::connect(server.local_addr());
    newcomer.send(b"new\n");
    eventually("it is pending", || handle.stats().connections == 2 && handle.stats().requests_pending > 60);
    gate.open();
    first.expect(b"stuck\n");
    newcomer.expect(b"new\n");
    assert_eq!(calls.load(Relaxed), 2, "calls of the handler");
    eventually("none is pending", || handle.stats().requests_pending == 0);
    assert_adds_up(&handle.stats());
    assert_eq!(handle.stats().requests_dropped_total, 60);
}

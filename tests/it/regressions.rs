//! Bugs that were, in words. Each of these fails without its fix.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, mpsc};

use rustix::process::Signal;
use tidemill::{Handler, Kind, Reply, Request};

use crate::support::{DEADLINE, Gate, Peer, configure, eventually, helo_reply, serve};

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
    // This stays in the receive queue until there is a place for it.
    let mut last = Peer::connect(server.local_addr());
    last.send(b"last");
    last.finish();
    eventually("it is accepted", || handle.stats().connections == 2);
    handle.stop();
    eventually("the stop has begun", || std::net::TcpStream::connect(server.local_addr()).is_err());
    assert_eq!(handle.stats().read_bytes_total, 6);
    gate.open();
    first.expect_rest(b"first\n");
    last.expect_rest(b"last\n");
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
    eventually("it is queued", || handle.stats().requests_total.helo == 3);
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
    let mut unread = Peer::connect(server.local_addr());
    unread.send(b"unread\n");
    eventually("it is accepted", || handle.stats().connections == 2);
    handle.stop_now();
    let outcome = server.wait().unwrap();
    gate.open();
    assert_eq!((outcome.unread_peers, outcome.is_clean()), (1, false));
}

/// A read stops short at urgent data, and what was behind it waited for the next packet. (issue 2)
#[test]
fn urgent_data_does_not_hold_back_what_is_behind_it() {
    let serving = serve("");
    let mut stream = std::net::TcpStream::connect(serving.address).unwrap();
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

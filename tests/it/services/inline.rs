//! Requests that are handled on the event loop.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tidemill::{CloseReason, Connection, Handler, Kind, Place, Reply, Request, Service};
use tracing::Level;
use tracing_subscriber::fmt;

use crate::support::{Gate, Peer, assert_adds_up, configure, embed, eventually, in_parallel, serve};

/// What begins with `i` is handled on the event loop, the rest by workers. Both are answered with the thread's name and the line.
struct Both;

impl Handler for Both {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        let thread = thread::current().name().unwrap_or_default().to_owned();
        let place = if thread == "tidemill-loop" { "loop" } else { "worker" };
        match request.line() {
            b"i slow" => {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_millis(2) {}
            }
            b"i panic" => panic!("on purpose"),
            b"i close" => reply.close(),
            b"i silent" => return,
            _ => {}
        }
        reply.push(place.as_bytes());
        reply.push(b" ");
        reply.push(request.line());
        reply.push(b"\n");
    }

    fn classify(&self, line: &[u8]) -> Kind {
        match line {
            b"" => Kind::Ignored,
            line if line.starts_with(b"i") => Kind::Inline,
            _ => Kind::Request,
        }
    }
}

#[test]
fn a_service_may_mix_both_and_the_order_is_kept() {
    let server = embed(Both);
    let lines = ["i1", "i2", "w1", "i3", "w2", "w3", "", "i4", "i5", "w4"];
    let (mut round, mut expected) = (String::new(), String::new());
    for line in lines {
        round += &format!("{line}\n");
        expected += &match line.chars().next() {
            Some('i') => format!("loop {line}\n"),
            Some(_) => format!("worker {line}\n"),
            None => String::new(),
        };
    }
    in_parallel(8, |peer| {
        let rounds = 1 + 50 * peer;
        let reply = Peer::connect(server.local_addr()).exchange(round.repeat(rounds).as_bytes());
        assert_eq!(String::from_utf8(reply).unwrap(), expected.repeat(rounds));
    });
    let handle = server.handle();
    eventually("all are gone", || handle.stats().connections == 0);
    let stats = handle.stats();
    assert_adds_up(&stats);
    assert_eq!(stats.service_seconds.count, stats.replies_total, "one observation for each, wherever it ran");
    assert_eq!(stats.queue_wait_seconds.count, stats.replies_total);
}

#[test]
fn it_needs_no_worker() {
    let gate = Gate::closed();
    let pass = gate.entrance();
    struct Held<P>(P);
    impl<P: Fn() + Send + Sync + 'static> Handler for Held<P> {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            if request.line() == b"w" {
                (self.0)();
            }
            reply.push(request.line());
            reply.push(b"\n");
        }
        fn classify(&self, line: &[u8]) -> Kind {
            if line == b"w" { Kind::Request } else { Kind::Inline }
        }
    }
    let server = configure(Held(pass), |config| (config.min_threads, config.max_threads) = (1, 1));
    let mut stuck = Peer::connect(server.local_addr());
    stuck.send(b"w\ni behind it\n");
    eventually("the only worker is stuck", || server.handle().stats().pool_busy == 1);
    let mut other = Peer::connect(server.local_addr());
    other.send(b"i\n");
    other.expect(b"i\n");
    gate.open();
    stuck.expect(b"w\ni behind it\n");
}

#[test]
fn its_ends_are_those_of_any_request() {
    let server = embed(Both);
    for (lines, expected) in [
        ("i1\ni panic\ni2\n", "loop i1\nERROR internal error\n"),
        ("i1\ni close\ni2\n", "loop i1\nloop i close\n"),
        ("i1\ni silent\n", "loop i1\n"),
    ] {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(lines.as_bytes());
        if lines.contains("silent") {
            peer.finish();
        }
        peer.expect_rest(expected.as_bytes());
    }
    let handle = server.handle();
    eventually("all are gone", || handle.stats().connections == 0);
    let stats = handle.stats();
    assert_eq!((stats.handler_panics_total, stats.requests_silent_total), (1, 1));
    assert_adds_up(&stats);
}

/// What servers of this process have warned of since this was first asked.
pub(super) fn warnings() -> String {
    static WARNINGS: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    struct Warnings;
    impl io::Write for Warnings {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            WARNINGS.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = fmt().with_max_level(Level::WARN).with_ansi(false).with_writer(|| Warnings);
    // Once for all; from then on it is there.
    log.try_init().unwrap_or_default();
    String::from_utf8_lossy(&WARNINGS.lock().unwrap()).into_owned()
}

#[test]
fn one_that_holds_up_the_loop_is_counted_and_named() {
    warnings();
    let server = embed(Both);
    let mut peer = Peer::connect(server.local_addr());
    let from = format!("peer={} frame=i slow ", peer.local());
    let before = server.handle().stats().inline_overruns_total;
    for _ in 0..5 {
        // What was short before changes nothing for who comes by itself.
        for _ in 0..10 {
            peer.send(b"i\n");
            peer.expect(b"loop i\n");
        }
        peer.send(b"i slow\n");
        peer.expect(b"loop i slow\n");
    }
    eventually("they are counted", || server.handle().stats().inline_overruns_total >= before + 5);
    let warned = warnings();
    let named = |line: &&str| line.contains("a request held up the event loop") && line.contains(&from);
    let mut named = warned.lines().filter(named).peekable();
    assert!(named.peek().is_some() && named.all(|line| line.contains(" requests=1 ")), "{warned}");
}

#[test]
fn an_opening_and_a_close_that_hold_up_the_loop_are_told_too() {
    struct Slow;
    impl Service for Slow {
        type State = ();
        type Worker = ();
        fn start_worker(&self) {}
        fn open(&self, _: &mut (), _: &Connection<'_>, reply: &mut Reply<'_>) {
            thread::sleep(Duration::from_millis(2));
            reply.push(b"in\n");
        }
        fn handle(&self, _: &mut (), _: &mut (), _: &Request<'_>, _: &mut Reply<'_>) {}
        fn close(&self, _: (), _: &mut (), _: &Connection<'_>, _: CloseReason) {
            thread::sleep(Duration::from_millis(2));
        }
        fn place(&self) -> Place {
            Place::Loop
        }
    }
    warnings();
    let server = embed(Slow);
    let mut peer = Peer::connect(server.local_addr());
    peer.expect(b"in\n");
    let from = format!("peer={} ", peer.local());
    eventually("its opening is counted", || server.handle().stats().inline_overruns_total == 1);
    drop(peer);
    eventually("its close is counted", || server.handle().stats().inline_overruns_total == 2);
    let warned = warnings();
    let opening = |line: &str| line.contains("the opening of a connection held up the event loop");
    assert!(warned.lines().any(|line| opening(line) && line.contains(&from)), "{warned}");
}

#[test]
fn replies_that_nobody_reads_hold_it_back_as_any() {
    let served = Arc::new(Mutex::new(0_usize));
    struct Long(Arc<Mutex<usize>>);
    impl Handler for Long {
        fn handle(&self, _: &Request<'_>, reply: &mut Reply<'_>) {
            *self.0.lock().unwrap() += 1;
            reply.push(&[b'x'; 1000]);
        }
        fn classify(&self, _: &[u8]) -> Kind {
            Kind::Inline
        }
    }
    let server = embed(Long(Arc::clone(&served)));
    let mut peer = Peer::with_small_buffer(server.local_addr(), 4 << 10);
    peer.send(&b"\n".repeat(8000));
    let handle = server.handle();
    eventually("it waits", || handle.stats().held_bytes > 32 << 10);
    let count = *served.lock().unwrap();
    assert!(count < 2000, "{count} replies for a peer that does not read");
    peer.finish();
    assert_eq!(peer.rest().len(), 8_000_000);
    assert_eq!(*served.lock().unwrap(), 8000);
}

#[test]
fn serve_inline_answers_the_same_on_one_thread() {
    let serving = serve("--inline");
    let mut peer = serving.connect();
    for _ in 0..100 {
        peer.ask("x");
    }
    let ended = serving.stop();
    ended.assert_clean();
    assert_eq!(ended.stats()["service_seconds"]["count"], 100);
    assert!(ended.stats()["wakeups_total"].as_u64().unwrap() <= 1, "only the signal woke it, no worker");
}

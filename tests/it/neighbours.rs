//! Nobody takes more than its share of a turn: what a polite client waits for beside those that never pause.
//!
//! Judged by how much work was done before the polite one was answered, not by a clock.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use tidemill::{Handler, Kind, Reply, Request, Server};

use crate::support::{Gate, Peer, SetAtEnd, allow_files, configure, echo, embed, eventually, resolved};

/// Lines that begin with `#` are ignored, `gate` holds up the event loop until a gate is opened, `stuck` a worker; all others
/// are answered with themselves, and `stop` stops the server.
struct Gated<L, W> {
    loop_gate: L,
    worker_gate: W,
}

impl<L: Fn() + Send + Sync + 'static, W: Fn() + Send + Sync + 'static> Handler for Gated<L, W> {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        if request.line() == b"stuck" {
            (self.worker_gate)();
        }
        echo(request, reply);
    }

    fn classify(&self, line: &[u8]) -> Kind {
        match line {
            b"gate" => {
                (self.loop_gate)();
                Kind::Ignored
            }
            b"stop" => Kind::Stop,
            [b'#', ..] => Kind::Ignored,
            _ => Kind::Request,
        }
    }

    fn stop_line(&self) -> Option<&[u8]> {
        Some(b"stop")
    }
}

const FLOODERS: usize = 200;

/// Everybody's requests lie in their receive queues, those of the flooders first, when the event loop goes on: tells how
/// many of theirs were handled before the last one was answered, and how many there are.
fn handled_before_the_last_one(line: &[u8]) -> (usize, usize) {
    allow_files(4000);
    let (loop_gate, worker_gate) = (Gate::closed(), Gate::closed());
    let handler = Gated { loop_gate: loop_gate.entrance(), worker_gate: worker_gate.entrance() };
    let server = embed(handler);
    let handle = server.handle();
    let address = resolved(server.local_addr());
    let mut polite = Peer::connect(address);
    let flooders: Vec<TcpStream> = (0..FLOODERS).map(|_| TcpStream::connect(address).unwrap()).collect();
    eventually("all are accepted", || handle.stats().connections == FLOODERS as u64 + 1);
    let mut holder = Peer::connect(address);
    holder.send(b"gate\n");
    // The event loop reads it last of all that it knows of: until then nothing is in the queues.
    eventually("it is accepted", || handle.stats().connections == FLOODERS as u64 + 2);
    let burst = line.repeat((256 << 10) / line.len());
    let mut lines = 0;
    for mut flooder in &flooders {
        flooder.set_nonblocking(true).unwrap();
        lines += flooder.write(&burst).unwrap() / line.len();
    }
    polite.send(b"polite\n");
    loop_gate.open();
    polite.expect(b"polite\n");
    (usize::try_from(handle.stats().requests()).unwrap(), lines)
}

#[test]
fn lines_that_are_no_requests_keep_nobody_waiting_for_all_of_them() {
    let (handled, all) = handled_before_the_last_one(b"#\n");
    assert!(all > FLOODERS * 10_000, "{all}");
    assert!(handled < all / 8, "{handled} of {all} lines came first");
}

#[test]
fn pipelined_requests_keep_nobody_waiting_for_all_of_them() {
    let (handled, all) = handled_before_the_last_one(b"xx\n");
    assert!(all > FLOODERS * 10_000, "{all}");
    assert!(handled < all / 8, "{handled} of {all} requests came first");
}

#[test]
fn a_long_reply_to_a_fast_reader_keeps_nobody_waiting_for_all_of_it() {
    const LONG: usize = 256 << 20;
    let handler = |request: &Request<'_>, reply: &mut Reply<'_>| match request.line() {
        b"long" => reply.push(&vec![b'x'; LONG]),
        _ => echo(request, reply),
    };
    let server = embed(handler);
    let address = resolved(server.local_addr());
    let over = AtomicBool::new(false);
    let (asked, before) = thread::scope(|scope| {
        let is_over = SetAtEnd(&over);
        let mut long = TcpStream::connect(address).unwrap();
        long.write_all(b"long\n").unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut read = long.read(&mut buffer).unwrap();
        let polite = scope.spawn(|| {
            let mut peer = Peer::connect(address);
            let mut asked = 0;
            while !over.load(Relaxed) {
                peer.send(b"x\n");
                peer.expect(b"x\n");
                asked += 1;
            }
            asked
        });
        let before = server.handle().stats().written_bytes_total;
        while read < LONG {
            let more = long.read(&mut buffer).unwrap();
            assert!(more > 0, "the stream ended after {read} bytes");
            read += more;
        }
        drop(is_over);
        (polite.join().unwrap(), before)
    });
    // In each turn a part of it, and one for the polite one, of whom a busy machine makes less. Written at once, it would let
    // one pass.
    let parts = (LONG as u64 - before) / (256 << 10);
    assert!(asked > 3 && parts > 100, "{asked} requests were answered meanwhile");
}

/// Sends lines without a pause until it is told to stop, and reads what comes.
fn flood(address: SocketAddr, line: &[u8], over: &AtomicBool) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    let (burst, mut buffer) = (line.repeat(10_000), vec![0; 64 << 10]);
    while !over.load(Relaxed) {
        let mut moved = false;
        for result in [stream.write(&burst), stream.read(&mut buffer)] {
            match result {
                Ok(count) => moved |= count > 0,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The server has stopped.
                Err(_) => return,
            }
        }
        if !moved {
            thread::yield_now();
        }
    }
}

#[test]
fn newcomers_and_a_stop_are_heard_in_a_flood_that_never_pauses() {
    let server = embed(Gated { loop_gate: || {}, worker_gate: || {} });
    let (handle, address) = (server.handle(), resolved(server.local_addr()));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = SetAtEnd(&over);
        for line in [&b"#\n"[..], b"xx\n", b"#\n", b"xx\n"] {
            let over = &over;
            scope.spawn(move || flood(address, line, over));
        }
        eventually("they flood", || handle.stats().requests() > 100_000);
        for _ in 0..20 {
            let mut newcomer = Peer::connect(address);
            newcomer.send(b"x\n");
            newcomer.expect(b"x\n");
        }
        Peer::connect(address).send(b"stop\n");
        eventually("it stops", || handle.is_stopping());
    });
    server.wait().unwrap();
}

/// Who waits for a place among the pending requests is read 4 KiB ahead: a stop must not wait.
#[test]
fn a_stop_is_heard_at_max_pending_with_every_worker_stuck() {
    for (before, behind) in [(&b""[..], &b"stop\n"[..]), (b"x\nst", b"op\r\nx\n"), (b"x\nx\n", b"stop\n")] {
        let worker_gate = Gate::closed();
        let handler = Gated { loop_gate: || {}, worker_gate: worker_gate.entrance() };
        let server = configure(handler, |config| {
            config.max_pending = 1;
            (config.min_threads, config.max_threads) = (1, 1);
        });
        let handle = server.handle();
        let mut stuck = Peer::connect(server.local_addr());
        stuck.send(b"stuck\n");
        eventually("the only place is taken", || handle.stats().requests_pending == 1);
        let mut stopper = Peer::connect(server.local_addr());
        let read = handle.stats().read_bytes_total;
        stopper.send(before);
        eventually("it is read", || handle.stats().read_bytes_total == read + before.len() as u64);
        stopper.send(behind);
        eventually("it stops", || handle.is_stopping());
        worker_gate.open();
        stuck.expect_rest(b"stuck\n");
        let lines = [before, behind].concat();
        let requests = lines.split(|byte| *byte == b'\n').filter(|line| *line == b"x").count();
        stopper.expect_rest(&b"x\n".repeat(requests));
        assert!(server.wait().unwrap().is_clean());
    }
}

/// Behind a request of its own that is stuck, too, and cut anywhere.
#[test]
fn a_stop_is_heard_behind_a_stuck_request_of_the_same_connection() {
    let worker_gate = Gate::closed();
    let server: Server = embed(Gated { loop_gate: || {}, worker_gate: worker_gate.entrance() });
    let handle = server.handle();
    let mut peer = Peer::connect(server.local_addr());
    for (part, read) in [(&b"stuck\n"[..], 6), (b"sto", 9), (b"p\n", 11)] {
        assert!(!handle.is_stopping());
        peer.send(part);
        eventually("it is read", || handle.stats().read_bytes_total == read);
    }
    eventually("it stops", || handle.is_stopping());
    worker_gate.open();
    peer.expect_rest(b"stuck\n");
    assert!(server.wait().unwrap().is_clean());
}

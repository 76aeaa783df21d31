//! Long replies in pieces: memory is bounded by the watermark, whatever their length.

use std::io::{self, Read, Write};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use tidemill::{Pusher, Reply, Request, Server};

use crate::support::{
    DEADLINE, Gate, Peer, assert_adds_up, assert_same, configure, embed, eventually, in_parallel,
};

/// Bytes of a piece.
const PIECE: usize = 16 << 10;

/// Answers `N` with so many pieces and a line feed.
fn pieces(request: &Request<'_>, reply: &mut Reply<'_>) {
    let count: usize = std::str::from_utf8(request.line()).unwrap().parse().unwrap();
    for _ in 0..count {
        reply.push(&[b'x'; PIECE]);
        if reply.flush().is_err() {
            return;
        }
    }
    reply.push(b"\n");
}

#[test]
fn they_arrive_whole_and_in_order_between_other_replies() {
    let server = embed(pieces);
    in_parallel(4, |_| {
        let reply = Peer::connect(server.local_addr()).exchange(b"0\n3\n0\n1\n400\n0\n");
        let lengths: Vec<usize> = reply.split(|byte| *byte == b'\n').map(<[u8]>::len).collect();
        assert_eq!(lengths, [0, 3 * PIECE, 0, PIECE, 400 * PIECE, 0, 0]);
    });
    let handle = server.handle();
    eventually("all are gone", || handle.stats().connections == 0);
    let stats = handle.stats();
    assert_eq!(stats.replies_total, 24);
    assert_adds_up(&stats);
}

/// The same, `N` pieces of something that is read.
fn copied(request: &Request<'_>, reply: &mut Reply<'_>) {
    let count: u64 = std::str::from_utf8(request.line()).unwrap().parse().unwrap();
    match reply.copy_from(io::repeat(b'x').take(count * PIECE as u64)) {
        Ok(copied) => assert_eq!(copied, count * PIECE as u64),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            return;
        }
    }
    reply.push(b"\n");
}

#[test]
fn who_does_not_read_holds_no_more_than_the_watermark_and_a_piece() {
    holds_little(configure(pieces, |config| config.write_timeout = None));
    // Of its pieces, two of ours each.
    holds_little(configure(copied, |config| config.write_timeout = None));
}

fn holds_little(server: Server) {
    let mut peer = Peer::with_small_buffer(server.local_addr(), 4 << 10);
    // A gigabyte.
    peer.send(b"65536\n");
    let handle = server.handle();
    eventually("its writer waits", || handle.stats().held_bytes > 32 << 10);
    for _ in 0..1000 {
        let held = handle.stats().held_bytes;
        assert!(held < (64 << 10) + 4 * PIECE as u64, "{held}");
    }
    assert_eq!(handle.stats().pool_busy, 1);
    peer.reset();
    eventually("its writer is told and gives up", || handle.stats().requests_pending == 0);
    let stats = handle.stats();
    assert_eq!(stats.requests_silent_total + stats.requests_dropped_total, 1);
    assert_eq!(stats.handler_panics_total, 0);
    assert_adds_up(&stats);
}

#[test]
fn what_is_copied_comes_whole_behind_what_was_written_before() {
    let copy = |request: &Request<'_>, reply: &mut Reply<'_>| {
        let count: u64 = std::str::from_utf8(request.line()).unwrap().parse().unwrap();
        reply.push(b"<");
        assert_eq!(reply.copy_from(io::repeat(b'y').take(count)).unwrap(), count);
        reply.push(b">");
    };
    let server = embed(copy);
    let counts = [0, 1, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 1, 10 << 20, 0];
    let (mut sent, mut expected) = (Vec::new(), Vec::new());
    for count in counts {
        writeln!(sent, "{count}").unwrap();
        expected.extend([b"<", &vec![b'y'; count][..], b">"].concat());
    }
    assert_same(&Peer::connect(server.local_addr()).exchange(&sent), &expected);
    // What was read before an error is sent, and it is told.
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
    let server = embed(|_: &Request<'_>, reply: &mut Reply<'_>| {
        let error = reply.copy_from(io::repeat(b'z').take(40_000).chain(Broken)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        reply.close();
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"\n");
    peer.expect_rest(&[b'z'; 40_000]);
}

#[test]
fn what_was_flushed_stays_and_nothing_stands_inside_a_reply_that_was_broken_off() {
    let server = embed(|_: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(b"first ");
        reply.flush().unwrap();
        reply.push(b"never");
        panic!("on purpose");
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect_rest(b"first ");
    assert_adds_up(&server.handle().stats());
}

/// A peer that has the begin of a reply, `<`, who can push to it, and what lets the rest come.
fn in_mid_reply() -> (Server, Peer, Pusher, Gate) {
    let gate = Gate::closed();
    let (pass, (sender, pushers)) = (gate.entrance(), channel::<Pusher>());
    let sender: Mutex<Sender<Pusher>> = Mutex::new(sender);
    let server = embed(move |request: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(b"<");
        reply.flush().unwrap();
        sender.lock().unwrap().send(request.connection().pusher()).unwrap();
        pass();
        reply.push(b">\n");
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect(b"<");
    let pusher = pushers.recv_timeout(DEADLINE).unwrap();
    (server, peer, pusher, gate)
}

#[test]
fn nothing_that_is_pushed_stands_inside_a_reply() {
    let (server, mut peer, pusher, gate) = in_mid_reply();
    pusher.push(&b"one\n"[..]).unwrap();
    pusher.push(&b"two\n"[..]).unwrap();
    eventually("they are taken in", || server.handle().stats().pushed_total == 2);
    gate.open();
    peer.expect(b">\none\ntwo\n");
    pusher.push(&b"three\n"[..]).unwrap();
    peer.expect(b"three\n");
    // Counted at the end of the turn in which it was written.
    eventually("all are counted", || server.handle().stats().pushed_total == 3);
    let stats = server.handle().stats();
    assert_eq!(stats.replies_total, 1);
    assert_adds_up(&stats);
}

#[test]
fn pushes_that_wait_for_a_reply_to_end_are_bounded_too() {
    let (_server, mut peer, pusher, gate) = in_mid_reply();
    let mut taken = 0;
    eventually("it is refused", || {
        let result = pusher.push(&[b'p'; 1000][..]);
        taken += usize::from(result.is_ok());
        result.is_err()
    });
    assert!((16..200).contains(&taken), "{taken} kilobytes were taken");
    gate.open();
    let expected = [b">\n".to_vec(), vec![b'p'; taken * 1000]].concat();
    peer.expect(&expected);
    eventually("it is taken again", || pusher.push(&b"!"[..]).is_ok());
    peer.expect(b"!");
}

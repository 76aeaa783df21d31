//! Other frames than lines, and a change of framing in the middle of a connection.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tidemill::framing::{Endian, Fixed, Found, Framing, LengthPrefixed, Terminated};
use tidemill::{Connection, Handler, Kind, Place, Reply, Request, Service};

use super::inline::warnings;
use crate::support::{Peer, assert_adds_up, embed, eventually};

/// Answers each frame with its length and a line feed.
struct Lengths<F>(F);

impl<F: Framing> Handler for Lengths<F> {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        reply.push(format!("{}\n", request.frame().len()).as_bytes());
    }

    fn framing(&self) -> Option<&dyn Framing> {
        Some(&self.0)
    }
}

/// Sends `bytes` in pieces of each length, and expects `expected` each time, and the end.
fn expect_however_cut<F: Framing>(framing: F, bytes: &[u8], expected: &[u8]) {
    let server = embed(Lengths(framing));
    for step in [1, 2, 3, 7, bytes.len()] {
        let mut peer = Peer::connect(server.local_addr());
        bytes.chunks(step).for_each(|piece| peer.send(piece));
        peer.finish();
        peer.expect_rest(expected);
    }
    let handle = server.handle();
    eventually("all are gone", || handle.stats().connections == 0);
    assert_adds_up(&handle.stats());
}

#[test]
fn frames_of_a_length_that_is_written_before_them() {
    let framing = LengthPrefixed::new(2, Endian::Big, 300);
    let long = [&[1, 44][..], &[b'\n'; 300]].concat();
    let bytes = [b"\0\x03abc\0\0\0\x01\n".as_slice(), &long, b"\0\x09rest"].concat();
    expect_however_cut(framing, &bytes, b"3\n0\n1\n300\n");
    expect_however_cut(framing, b"\0\x01a\x01\x2d", b"1\nERROR line too long (limit 300 bytes)\n");
}

#[test]
fn frames_of_a_fixed_count() {
    expect_however_cut(Fixed::new(4), b"abcd\n\n\n\nefg", b"4\n4\n");
}

#[test]
fn frames_that_end_in_several_bytes() {
    let framing = Terminated::new(b"\r\n.\r\n", 10);
    expect_however_cut(framing.clone(), b"a\r\nb\r\n.\r\n\r\n.\r\n..\r\n.\r\nrest", b"4\n0\n2\n");
    expect_however_cut(framing, b"12345678901", b"");
    let framing = Terminated::new(b"--", 3);
    expect_however_cut(framing, b"abc--abcd--abc--", b"3\nERROR line too long (limit 3 bytes)\n");
}

#[test]
fn a_framing_that_cannot_say_its_limit_when_it_is_told_costs_only_its_connection() {
    /// Says its limit once more when a frame was too long, and not again.
    struct Unwell(AtomicUsize);
    impl Framing for Unwell {
        fn next(&self, _: &[u8], _: usize, _: bool) -> Found {
            self.0.store(1, SeqCst);
            Found::TooLong
        }

        fn max_bytes(&self) -> usize {
            let asked = self.0.load(SeqCst);
            assert!(asked < 2, "on purpose");
            self.0.store(2 * asked, SeqCst);
            3
        }
    }
    let server = embed(Lengths(Unwell(AtomicUsize::new(0))));
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"too long");
    peer.expect_rest(b"ERROR line too long (limit 65536 bytes)\n");
    drop(peer);
    let handle = server.handle();
    eventually("it is gone", || handle.stats().connections_closed_total.line_too_long == 1);
}

#[test]
fn a_framing_that_breaks_its_word_costs_only_its_connection() {
    /// Tells what cannot be of what begins with a digit.
    struct Wrong;
    impl Framing for Wrong {
        fn next(&self, bytes: &[u8], _: usize, _: bool) -> Found {
            match bytes[0] {
                b'0' => panic!("on purpose"),
                b'1' => Found::Frame { content: 0..bytes.len() + 1, consumed: 1 },
                b'2' => Found::Frame { content: 0..0, consumed: 0 },
                b'3' => Found::Frame { content: 0..1, consumed: bytes.len() + 1 },
                b'4' => Found::More { scanned: 0 },
                b'5' if bytes.len() < 2 => Found::More { scanned: 0 },
                b'5' => Found::Frame { content: 0..2, consumed: 1 },
                _ => Found::Frame { content: 0..1, consumed: 1 },
            }
        }
        fn max_bytes(&self) -> usize {
            1
        }
    }
    warnings();
    let server = embed(Lengths(Wrong));
    let mut good = Peer::connect(server.local_addr());
    for wrong in ["x0", "x1", "x2", "x3", "x5y"] {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(wrong.as_bytes());
        peer.expect_rest(b"1\nERROR internal error\n");
        good.send(b"y");
        good.expect(b"1\n");
    }
    // A panic is told by its hook.
    let log = warnings();
    for found in [
        "content=0..2 consumed=1 shown=1",
        "content=0..0 consumed=0 shown=1",
        "content=0..1 consumed=2 shown=1",
        "content=0..2 consumed=1 shown=2",
    ] {
        let said =
            format!("a framing found a frame of no bytes, or beyond what it takes up or was shown {found}");
        assert_eq!(log.matches(&said).count(), 1, "{said}: {log}");
    }
    // It asks for more for ever.
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"4");
    peer.send_what_goes(&vec![b'x'; 1 << 20]);
    peer.expect_rest(b"ERROR line too long (limit 1 bytes)\n");
    drop(peer);
    let handle = server.handle();
    eventually("it is gone", || handle.stats().connections == 1);
    let stats = handle.stats();
    assert_eq!((stats.handler_panics_total, stats.connections_closed_total.line_too_long), (5, 1));
    assert_adds_up(&stats);
}

/// Lines; `take N` is followed by a block of N bytes, whatever they are, which is answered with its sum.
struct Blocks {
    kind: Kind,
}

impl Service for Blocks {
    type State = Option<Fixed>;
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) -> Option<Fixed> {
        None
    }

    fn handle(&self, block: &mut Option<Fixed>, _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        if block.take().is_some() {
            let sum: u64 = request.frame().iter().map(|byte| u64::from(*byte)).sum();
            return reply.push(format!("block {sum}\n").as_bytes());
        }
        let line = std::str::from_utf8(request.frame()).unwrap();
        *block = line.strip_prefix("take ").map(|count| Fixed::new(count.parse().unwrap()));
        reply.push(format!("line {line}\n").as_bytes());
    }

    fn framing<'a>(&'a self, block: &'a Option<Fixed>) -> Option<&'a dyn Framing> {
        block.as_ref().map(|block| block as &dyn Framing)
    }

    fn classify(&self, block: &Option<Fixed>, frame: &[u8]) -> Kind {
        match block {
            None if frame == b"stop" => Kind::Stop,
            None if frame.is_empty() => Kind::Ignored,
            None if frame.starts_with(b"take") => self.kind,
            None => {
                if self.kind == Kind::Inline {
                    Kind::Inline
                } else {
                    Kind::Request
                }
            }
            Some(_) => self.kind,
        }
    }

    fn place(&self) -> Place {
        if self.kind == Kind::Inline { Place::Loop } else { Place::Worker }
    }
}

#[test]
fn a_request_changes_the_framing_of_the_very_next_byte() {
    for kind in [Kind::Switch, Kind::Inline] {
        let server = embed(Blocks { kind });
        let round = b"a\ntake 4\n\nb\n\ntake 6\nstop\n\nc\ntake 5\nstop\n\n";
        let sums = [10 + 98 + 10 + 10, 115 + 116 + 111 + 112 + 10 + 10, 115 + 116 + 111 + 112 + 10];
        let replies = format!(
            "line a\nline take 4\nblock {}\nline take 6\nblock {}\nline c\nline take 5\nblock {}\n",
            sums[0], sums[1], sums[2]
        );
        for (step, rounds) in [(1, 1), (2, 3), (3, 3), (11, 40), (100_000, 400)] {
            let mut peer = Peer::connect(server.local_addr());
            let bytes = round.repeat(rounds);
            let expected = replies.repeat(rounds);
            bytes.chunks(step).for_each(|piece| peer.send(piece));
            peer.finish();
            peer.expect_rest(expected.as_bytes());
        }
        let handle = server.handle();
        eventually("all are gone", || handle.stats().connections == 0);
        let stats = handle.stats();
        let requests = stats.requests_total["service"];
        assert_eq!(
            (requests.stop, requests.ignored),
            (0, 447),
            "{kind:?}: what stands in a block is no line"
        );
        assert!(!handle.is_stopping());
    }
}

#[test]
fn a_block_longer_than_is_read_ahead_comes_whole() {
    for kind in [Kind::Switch, Kind::Inline] {
        let server = embed(Blocks { kind });
        let mut peer = Peer::connect(server.local_addr());
        let block = vec![1; 1 << 20];
        peer.send(format!("take {}\n", block.len()).as_bytes());
        peer.send(&block);
        peer.send(b"after\n");
        peer.finish();
        let expected = format!("line take {0}\nblock {0}\nline after\n", block.len());
        peer.expect_rest(expected.as_bytes());
    }
}

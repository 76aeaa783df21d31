//! Properties of framing, against a reference that sees the whole stream at once.

use proptest::prelude::*;
use tidemill::framing::{Found, Framing, Lines};
use tidemill::protocol;
use tidemill::{Helo, Kind};

use crate::support::{Peer, assert_same, echo, embed, helo_reply, seeded};

/// The lines of a stream that has ended, and whether a line was too long, which ends everything.
fn reference(stream: &[u8], max: usize) -> (Vec<Vec<u8>>, bool) {
    let mut lines = Vec::new();
    let mut parts: Vec<&[u8]> = stream.split(|byte| *byte == b'\n').collect();
    let last = parts.pop().unwrap();
    for part in parts {
        let line = if part.ends_with(b"\r") { &part[..part.len() - 1] } else { part };
        if line.len() > max {
            return (lines, true);
        }
        lines.push(line.to_vec());
    }
    if last.len() > max {
        return (lines, true);
    }
    if !last.is_empty() {
        lines.push(last.to_vec());
    }
    (lines, false)
}

/// The same, cut frame by frame out of what has come so far, and looked at after each chunk.
fn framed(chunks: &[Vec<u8>], max: usize) -> (Vec<Vec<u8>>, bool) {
    let framing = Lines::new(max);
    let (mut lines, mut bytes, mut scanned) = (Vec::new(), Vec::new(), 0);
    for number in 0..=chunks.len() {
        let ended = number == chunks.len();
        bytes.extend(chunks.get(number).into_iter().flatten());
        while !bytes.is_empty() {
            match framing.next(&bytes, scanned, ended) {
                Found::Frame { content, consumed } => {
                    lines.push(bytes[content].to_vec());
                    bytes.drain(..consumed);
                    scanned = 0;
                }
                Found::More { scanned: looked_at } => {
                    assert!(!ended && looked_at <= bytes.len() && bytes.len() <= max + 1);
                    scanned = looked_at;
                    break;
                }
                Found::TooLong => return (lines, true),
                found => panic!("{found:?}"),
            }
        }
    }
    (lines, false)
}

/// A stream in chunks, made mostly of what matters to framing.
fn chunks() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let byte = prop_oneof![
        4 => Just(b'\n'), 4 => Just(b'\r'), 4 => Just(b'x'), 2 => Just(b' '), 1 => any::<u8>(),
    ];
    prop::collection::vec(prop::collection::vec(byte, 0..12), 0..12)
}

/// Lines of the HELO protocol and near misses, each with its terminator.
fn helo_lines() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
    let byte = any::<u8>().prop_filter("no terminator", |byte| *byte != b'\n');
    let text = prop::collection::vec(
        prop_oneof![3 => byte, 2 => prop::sample::select(&b" \t\r\x0b\x0cHELO"[..])],
        0..40,
    );
    let line = (prop::sample::select(vec![&b"HELO "[..], b"HELO", b"", b" HELO ", b"helo "]), text)
        .prop_map(|(start, text)| [start, &text[..]].concat());
    prop::collection::vec((line, any::<bool>()), 0..40)
}

/// What a HELO server answers, by the letter of the protocol.
fn helo_reference(line: &[u8]) -> Option<Vec<u8>> {
    let text = line.strip_prefix(b"HELO ")?;
    let white = |byte: &u8| [b' ', b'\t', b'\r', 0x0b, 0x0c].contains(byte);
    let len = text.iter().rposition(|byte| !white(byte)).map_or(0, |last| last + 1);
    Some(text[..len].to_vec())
}

proptest! {
    #![proptest_config(seeded(600))]

    #[test]
    fn lines_are_independent_of_chunking(chunks in chunks(), max in 0_usize..9) {
        prop_assert_eq!(framed(&chunks, max), reference(&chunks.concat(), max));
    }

    #[test]
    fn one_byte_at_a_time_or_all_at_once_makes_no_difference(chunks in chunks(), max in 0_usize..9) {
        let stream = chunks.concat();
        let single: Vec<Vec<u8>> = stream.iter().map(|byte| vec![*byte]).collect();
        prop_assert_eq!(framed(&single, max), framed(&[stream], max));
    }

    #[test]
    fn no_line_is_longer_than_the_limit_or_holds_a_newline(chunks in chunks(), max in 0_usize..9) {
        for line in framed(&chunks, max).0 {
            prop_assert!(line.len() <= max && !line.contains(&b'\n'));
        }
    }

    #[test]
    fn lines_are_told_apart_by_the_letter(lines in helo_lines()) {
        for (line, _) in lines {
            let text = protocol::helo_text(&line).map(<[u8]>::to_vec);
            prop_assert_eq!(&text, &helo_reference(&line));
            let kind = if text.is_some() { Kind::Request } else { Kind::Ignored };
            prop_assert_eq!(protocol::classify(&line), kind);
        }
    }
}

#[test]
fn replies_over_a_socket_are_independent_of_chunking() {
    let server = embed(echo);
    proptest!(seeded(150), |(chunks in chunks(), pause in any::<u8>())| {
        let mut expected = reference(&chunks.concat(), 65_536).0.join(&b'\n');
        if !expected.is_empty() || !chunks.concat().is_empty() {
            expected.push(b'\n');
        }
        let mut peer = Peer::connect(server.local_addr());
        for (number, chunk) in chunks.iter().enumerate() {
            peer.send(chunk);
            if (pause >> (number % 8)) & 1 == 1 {
                std::thread::yield_now();
            }
        }
        peer.finish();
        peer.expect_rest(&expected);
    });
}

#[test]
fn a_helo_server_answers_by_the_letter_however_lines_are_cut() {
    let server = embed(Helo::new());
    let address = server.local_addr();
    proptest!(seeded(150), |(lines in helo_lines(), size in 1_usize..200)| {
        let (mut sent, mut expected) = (Vec::new(), Vec::new());
        for (line, crlf) in &lines {
            sent.extend_from_slice(line);
            // A line that ends in CR has it as content before LF, too: there it is the terminator's.
            sent.extend_from_slice(if *crlf { b"\r\n" } else { b"\n" });
            if let Some(text) = helo_reference(line) {
                expected.extend(helo_reply(&text, address));
            }
        }
        let mut peer = Peer::connect(address);
        for chunk in sent.chunks(size) {
            peer.send(chunk);
        }
        peer.finish();
        assert_same(&peer.rest(), &expected);
    });
}

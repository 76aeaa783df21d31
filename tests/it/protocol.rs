//! INTERFACE 2, byte for byte, for every way in which bytes can be cut into packets.

use crate::support::peer::{Peer, reply_to};
use crate::support::server::{ServerProcess, number};

/// Sends `input` in pieces, each its own segment, ends the stream, and returns all that came back.
fn answer(server: &ServerProcess, pieces: &[&[u8]]) -> String {
    let mut peer = Peer::connect(server.address);
    for piece in pieces {
        peer.send(piece);
    }
    peer.finish();
    String::from_utf8_lossy(&peer.read_to_end()).into_owned()
}

fn replies(server: &ServerProcess, texts: &[&str]) -> String {
    texts.iter().map(|text| reply_to(text, server.address)).collect()
}

#[test]
fn helo_is_answered_with_its_text_and_the_address_that_was_reached() {
    let server = ServerProcess::start(&[]);
    let expected =
        format!("HELO BASE TEST\nIP:127.0.0.1\nPort:{}\nStudentID:16336617\n", server.address.port());
    assert_eq!(answer(&server, &[b"HELO BASE TEST\n"]), expected);
    server.stop();
}

#[test]
fn lines_may_be_cut_and_merged_in_any_way() {
    let server = ServerProcess::start(&[]);
    let input = b"HELO one\nHELO two\r\nnonsense\nHELO three\n";
    let expected = replies(&server, &["one", "two", "three"]);
    assert_eq!(answer(&server, &[input]), expected);
    for cut in 1..input.len() {
        let (left, right) = input.split_at(cut);
        assert_eq!(answer(&server, &[left, right]), expected, "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(answer(&server, &bytes), expected, "byte by byte");
    server.stop();
}

#[test]
fn white_space_is_kept_in_front_and_trimmed_behind() {
    let server = ServerProcess::start(&[]);
    let tail = replies(&server, &[""]).split_once('\n').unwrap().1.to_owned();
    let mut peer = Peer::connect(server.address);
    for (line, text) in [
        (&b"HELO   a b \t\r\x0b\x0c\r\n"[..], &b"  a b"[..]),
        (b"HELO \n", b""),
        (b"HELO      \r\n", b""),
        (b"HELO HELO x\n", b"HELO x"),
        (b"HELO \xff\x00\xfe\x85\n", b"\xff\x00\xfe\x85"),
        (b"HELO a\rb\n", b"a\rb"),
    ] {
        peer.send(line);
        peer.expect(&[b"HELO ", text, b"\n", tail.as_bytes()].concat());
    }
    server.stop();
}

#[test]
fn a_last_line_without_terminator_counts_only_once_the_sending_side_is_closed() {
    let server = ServerProcess::start(&[]);
    let mut peer = Peer::connect(server.address);
    peer.send(b"HELO whole\nHELO part");
    peer.expect(reply_to("whole", server.address).as_bytes());
    // The server has read both, as they came together, and has counted only one.
    assert_eq!(number(&server.stats(), "requests_total.helo"), 1);
    peer.finish();
    peer.expect_last(reply_to("part", server.address).as_bytes());
    server.stop();
}

#[test]
fn anything_else_has_no_reply_and_leaves_the_connection_open() {
    let server = ServerProcess::start(&[]);
    let mut peer = Peer::connect(server.address);
    for line in ["", "HELO", "helo x", " HELO x", "HELO\tx", "KILL_SERVICE ", "kill_service", "\r"] {
        peer.send(format!("{line}\n").as_bytes());
    }
    peer.helo("still here");
    let stats = server.stop();
    assert_eq!(number(&stats, "requests_total.other"), 8);
    assert_eq!(number(&stats, "requests_total.kill"), 0);
    assert_eq!(number(&stats, "requests_total.helo"), 1);
}

#[test]
fn long_lines_up_to_the_limit_are_answered() {
    let server = ServerProcess::start(&[]);
    let text = "x".repeat(65_536 - "HELO ".len());
    assert_eq!(answer(&server, &[format!("HELO {text}\r\n").as_bytes()]), replies(&server, &[&text]));
    server.stop();
}

#[test]
fn options_change_the_tail_of_the_reply() {
    let server = ServerProcess::start(&["--student-id", "42", "--advertise-ip", "10.9.8.7"]);
    let port = server.address.port();
    let expected = format!("HELO x\nIP:10.9.8.7\nPort:{port}\nStudentID:42\n");
    assert_eq!(answer(&server, &[b"HELO x\n"]), expected);
    server.stop();
}

#[test]
fn on_a_wildcard_address_the_reply_names_the_address_that_was_reached() {
    let server = ServerProcess::start(&["--bind", "0.0.0.0"]);
    for ip in ["127.0.0.1", "127.0.0.2", "127.0.0.1"] {
        let mut address = server.address;
        address.set_ip(ip.parse().unwrap());
        let mut peer = Peer::connect(address);
        peer.helo(ip);
        peer.helo("again");
    }
    server.stop();
}

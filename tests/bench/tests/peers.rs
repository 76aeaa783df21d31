//! Every peer gives the replies of the contract, however its input was cut and ended.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

use tidemill_bench::server::Server;

/// A test that waits longer for a peer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

struct Peer(Server);

impl Peer {
    /// Each peer as it is, and with a handler that blocks.
    fn all() -> impl Iterator<Item = Peer> {
        let start = |peer, delay| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
            Peer(Server::start(command.args([peer, "0", "--handler-delay", delay])).unwrap())
        };
        let peers = ["peer-tokio", "peer-floor", "peer-channel"].into_iter();
        peers.flat_map(move |peer| ["0s", "1ms"].map(|delay| start(peer, delay)))
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.0.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn reply(&self, text: &str) -> String {
        format!("HELO {text}\nIP:127.0.0.1\nPort:{}\nStudentID:16336617\n", self.0.address.port())
    }
}

/// Reads until the peer closes.
fn read_all(mut stream: TcpStream) -> String {
    let mut received = String::new();
    stream.read_to_string(&mut received).unwrap();
    received
}

fn read_exactly(stream: &mut TcpStream, expected: &str) {
    let mut received = vec![0; expected.len()];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(String::from_utf8(received).unwrap(), expected);
}

#[test]
fn pipelined_lines_are_answered_in_order_and_the_connection_stays_open() {
    for peer in Peer::all() {
        let mut stream = peer.connect();
        for turn in 0..3 {
            let texts: Vec<String> = (0..20).map(|line| format!("{turn} {line}")).collect();
            let others = "\nHELO\nhelo c\n HELO c\nKILL_SERVICE\n";
            let sent: String = texts.iter().map(|text| format!("HELO {text} \t\r\n{others}")).collect();
            stream.write_all(sent.as_bytes()).unwrap();
            read_exactly(&mut stream, &texts.iter().map(|text| peer.reply(text)).collect::<String>());
        }
    }
}

#[test]
fn split_lines_are_answered_once_they_are_complete() {
    for peer in Peer::all() {
        let mut stream = peer.connect();
        stream.write_all(b"HELO first\nHELO \nHELO  b\nHE").unwrap();
        read_exactly(&mut stream, &["first", "", " b"].map(|text| peer.reply(text)).concat());
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let early = stream.read(&mut [0; 16]).unwrap_err();
        assert!(matches!(early.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"LO sec").unwrap();
        stream.write_all(b"ond \nHELO third\n").unwrap();
        read_exactly(&mut stream, &[peer.reply("second"), peer.reply("third")].concat());
    }
}

#[test]
fn half_closed_client_gets_all_replies_and_its_last_line_needs_no_terminator() {
    for peer in Peer::all() {
        let mut stream = peer.connect();
        stream.write_all(b"HELO one\nHELO two\nHELO three").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(stream), ["one", "two", "three"].map(|text| peer.reply(text)).concat());
        let stream = peer.connect();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(stream), "");
    }
}

#[test]
fn line_too_long_ends_the_connection() {
    for peer in Peer::all().step_by(2) {
        let mut stream = peer.connect();
        // It may be reset, or the peer closes first.
        drop(stream.write_all(&[b'x'; 70_000]));
        assert!(!matches!(stream.read(&mut [0; 16]), Ok(1..)));
        peer.connect().write_all(b"HELO x\n").unwrap();
    }
}

#[test]
fn client_that_reads_late_gets_every_reply() {
    const LINES: usize = 40_000;
    for peer in Peer::all().step_by(2) {
        let mut stream = peer.connect();
        let mut sender = stream.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            sender.write_all("HELO x\n".repeat(LINES).as_bytes()).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        // More than all socket buffers hold, so the peer has met a socket that takes no more.
        std::thread::sleep(Duration::from_millis(50));
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        sending.join().unwrap();
        assert_eq!(received.len(), LINES * peer.reply("x").len());
        assert_eq!(received, peer.reply("x").repeat(LINES));
    }
}

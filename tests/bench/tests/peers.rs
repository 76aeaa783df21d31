//! Every peer gives the replies of the contract, however its input was cut and ended.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

use tidemill::client::Client;
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

    fn connect(&self) -> Client {
        Client::connect(self.0.address, PATIENCE).unwrap()
    }

    fn reply(&self, text: &str) -> String {
        format!("HELO {text}\nIP:127.0.0.1\nPort:{}\nStudentID:16336617\n", self.0.address.port())
    }

    /// The replies to these are what comes next.
    fn expect(&self, client: &mut Client, texts: &[&str]) {
        for text in texts {
            let expected = self.reply(text);
            for line in expected.lines() {
                assert_eq!(client.read_line().unwrap(), line.as_bytes());
            }
        }
    }
}

#[test]
fn pipelined_lines_are_answered_in_order_and_the_connection_stays_open() {
    for peer in Peer::all() {
        let mut client = peer.connect();
        for _ in 0..3 {
            let texts = ["a", " b", "", "HELO", "c d"].repeat(4);
            let others = "\nHELO\nhelo c\n HELO c\nKILL_SERVICE\n";
            let sent: String = texts.iter().map(|text| format!("HELO {text} \t\r\n{others}")).collect();
            client.send(sent.as_bytes()).unwrap();
            peer.expect(&mut client, &texts);
        }
    }
}

#[test]
fn split_lines_are_answered_once_they_are_complete() {
    for peer in Peer::all() {
        let mut client = peer.connect();
        client.send(b"HELO first\nHELO \nHELO  b\nHE").unwrap();
        peer.expect(&mut client, &["first", "", " b"]);
        client.set_timeout(Duration::from_millis(20));
        assert_eq!(client.read_line().unwrap_err().kind(), ErrorKind::TimedOut);
        client.set_timeout(PATIENCE);
        client.send(b"LO sec").unwrap();
        client.send(b"ond \nHELO third\n").unwrap();
        peer.expect(&mut client, &["second", "third"]);
    }
}

#[test]
fn half_closed_client_gets_all_replies_and_its_last_line_needs_no_terminator() {
    for peer in Peer::all() {
        for texts in [&["one", "two", "three"][..], &[]] {
            let mut client = peer.connect();
            let lines: Vec<String> = texts.iter().map(|text| format!("HELO {text}")).collect();
            client.send(lines.join("\n").as_bytes()).unwrap();
            client.finish().unwrap();
            peer.expect(&mut client, texts);
            assert!(client.read_to_end().unwrap().is_empty());
        }
    }
}

#[test]
fn line_too_long_ends_the_connection() {
    for peer in Peer::all().step_by(2) {
        let mut client = peer.connect();
        // It may be reset, or the peer closes first.
        drop(client.send(&[b'x'; 70_000]));
        assert!(client.read_line().is_err_and(|error| error.kind() != ErrorKind::TimedOut));
        peer.connect().helo(b"x").unwrap();
    }
}

#[test]
fn client_that_reads_late_gets_every_reply() {
    const LINES: usize = 40_000;
    for peer in Peer::all().step_by(2) {
        let mut stream = TcpStream::connect(peer.0.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
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

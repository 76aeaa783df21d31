//! A client's side of one connection, byte for byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::server::DEADLINE;

/// A raw connection. Everything fails the test when it takes longer than the deadline.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
}

impl Peer {
    pub(crate) fn connect(address: SocketAddr) -> Peer {
        let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Peer { stream }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Closes the sending side.
    pub(crate) fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Reads as many bytes as `expected` has, and compares.
    #[track_caller]
    pub(crate) fn expect(&mut self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        let mut len = 0;
        while len < got.len() {
            match self.stream.read(&mut got[len..]) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error} after {}", got[..len].escape_ascii()),
            }
        }
        got.truncate(len);
        assert!(got == expected, "expected {}, got {}", expected.escape_ascii(), got.escape_ascii());
    }

    /// Reads until the end of the stream, which must come without a reset.
    #[track_caller]
    pub(crate) fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Err(error) = self.stream.read_to_end(&mut bytes) {
            panic!("{error} after {}", bytes.escape_ascii());
        }
        bytes
    }

    /// Expects `bytes`, then the end of the stream.
    #[track_caller]
    pub(crate) fn expect_last(&mut self, bytes: &[u8]) {
        let got = self.read_to_end();
        assert!(got == bytes, "expected {}, got {}", bytes.escape_ascii(), got.escape_ascii());
    }

    /// Sends a HELO and checks its reply.
    #[track_caller]
    pub(crate) fn helo(&mut self, text: &str) {
        let reply = reply_to(text, self.stream.peer_addr().unwrap());
        self.send(format!("HELO {text}\n").as_bytes());
        self.expect(reply.as_bytes());
    }
}

/// What a server reached at `address` must answer to `HELO text`.
pub(crate) fn reply_to(text: &str, address: SocketAddr) -> String {
    format!("HELO {}\nIP:{}\nPort:{}\nStudentID:16336617\n", text.trim_end(), address.ip(), address.port())
}

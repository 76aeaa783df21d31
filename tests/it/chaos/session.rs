//! One connection of a client that keeps books: what it sent, what came, and how it ended.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::support::{DEADLINE, helo_reply};

/// What one client did, as far as it can know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Connections established.
    pub(crate) connects: u64,
    /// Requests whose replies were read to the end, and were right.
    pub(crate) answered: u64,
    /// Requests sent by a client that left before it could know what became of them.
    pub(crate) open: u64,
    /// Lines sent that are no requests, and were certainly read: a reply came to one behind them.
    pub(crate) ignored: u64,
    /// The same, where it is not certain.
    pub(crate) open_ignored: u64,
    /// Connections that were told of a line too long.
    pub(crate) too_long: u64,
    /// Connections that were told that they may not stop the service.
    pub(crate) refused: u64,
    /// Connections that were told that a line was not completed.
    pub(crate) incomplete: u64,
}

impl AddAssign for Account {
    fn add_assign(&mut self, other: Account) {
        let Account { connects, answered, open, ignored, open_ignored, too_long, refused, incomplete } =
            other;
        self.connects += connects;
        self.answered += answered;
        self.open += open;
        self.ignored += ignored;
        self.open_ignored += open_ignored;
        self.too_long += too_long;
        self.refused += refused;
        self.incomplete += incomplete;
    }
}

/// The server has ended the connection as a stop does: behind a whole reply, without a reset.
#[derive(Debug)]
pub(crate) struct Over;

/// A connection whose every reply is compared with what it must be.
pub(crate) struct Session<'a> {
    stream: TcpStream,
    server: SocketAddr,
    account: &'a mut Account,
    stopping: &'a AtomicBool,
    /// Replies that are owed, in order.
    owed: VecDeque<Vec<u8>>,
    /// Ignored lines since the last request, and before each owed reply.
    silent: u64,
    silent_before: VecDeque<u64>,
}

impl<'a> Session<'a> {
    /// Connects. `receive_buffer`: of so many bytes, about.
    pub(crate) fn connect(
        server: SocketAddr,
        receive_buffer: Option<usize>,
        account: &'a mut Account,
        stopping: &'a AtomicBool,
    ) -> Result<Session<'a>, Over> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        let before = stopping.load(SeqCst);
        if let Err(error) = socket.connect_timeout(&server.into(), DEADLINE) {
            let refused = error.kind() == ErrorKind::ConnectionRefused;
            assert!(refused && stopping.load(SeqCst), "cannot connect: {error} (stopping before: {before})");
            return Err(Over);
        }
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        account.connects += 1;
        let (owed, silent_before) = (VecDeque::new(), VecDeque::new());
        Ok(Session { stream, server, account, stopping, owed, silent: 0, silent_before })
    }

    /// Sends bytes that are a part of what was noted down, or will be.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Over> {
        match self.stream.write_all(bytes) {
            Ok(()) => Ok(()),
            // The server has closed: what it said before is there to be read.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                while !self.owed.is_empty() {
                    self.read_reply()?;
                }
                self.expect_over()
            }
            Err(error) => panic!("cannot send: {error}"),
        }
    }

    /// Notes that `HELO text` was sent, or will be.
    pub(crate) fn note_request(&mut self, text: &str) {
        self.owed.push_back(helo_reply(text.as_bytes(), self.server));
        self.silent_before.push_back(std::mem::take(&mut self.silent));
    }

    /// Notes that a line that is no request was sent, or will be.
    pub(crate) fn note_ignored(&mut self) {
        self.silent += 1;
    }

    /// Notes down and sends `HELO text`.
    pub(crate) fn request(&mut self, text: &str) -> Result<(), Over> {
        self.note_request(text);
        self.send(format!("HELO {text}\n").as_bytes())
    }

    /// Reads the next reply that is owed.
    pub(crate) fn read_reply(&mut self) -> Result<(), Over> {
        let expected = self.owed.front().unwrap();
        let mut read = vec![0; expected.len()];
        let mut len = 0;
        while len < read.len() {
            match self.stream.read(&mut read[len..]) {
                Ok(0) => {
                    assert_eq!(len, 0, "ended inside a reply: {}", read[..len].escape_ascii());
                    return self.expect_over();
                }
                Ok(count) => len += count,
                Err(error) => panic!("{error} with {} replies owed", self.owed.len()),
            }
        }
        assert!(read == *expected, "'{}' for '{}'", read.escape_ascii(), expected.escape_ascii());
        self.owed.pop_front();
        self.account.answered += 1;
        self.account.ignored += self.silent_before.pop_front().unwrap();
        Ok(())
    }

    /// Reads all replies that are owed.
    pub(crate) fn read_replies(&mut self) -> Result<(), Over> {
        while !self.owed.is_empty() {
            self.read_reply()?;
        }
        Ok(())
    }

    /// Reads some bytes of the next reply, if one is owed; none is read after that.
    pub(crate) fn read_a_little_if_owed(&mut self) {
        if !self.owed.is_empty() {
            // Whatever comes: it leaves now.
            drop(self.stream.read(&mut [0; 5]));
        }
    }

    /// Closes the sending side, and reads all that is owed, and the end.
    pub(crate) fn finish(mut self) -> Result<(), Over> {
        // Refused where the server has closed.
        drop(self.stream.shutdown(Shutdown::Write));
        self.read_replies()?;
        let rest = self.rest();
        assert!(rest.is_empty(), "behind the last reply came '{}'", rest.escape_ascii());
        self.account.open_ignored += self.silent;
        Ok(())
    }

    /// Reads all that is owed, `line`, and the end.
    pub(crate) fn told(&mut self, line: &str) -> Result<(), Over> {
        self.read_replies()?;
        let rest = self.rest();
        self.account.open_ignored += std::mem::take(&mut self.silent);
        if rest.is_empty() {
            return self.expect_over();
        }
        assert_eq!(rest.escape_ascii().to_string(), line.as_bytes().escape_ascii().to_string());
        Ok(())
    }

    pub(crate) fn account(&mut self) -> &mut Account {
        self.account
    }

    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest,
            Err(error) => panic!("{error} behind '{}'", rest.escape_ascii()),
        }
    }

    /// Leaves without reading what is owed: `reset`, or as a process does that ends.
    pub(crate) fn leave(self, reset: bool) {
        self.account.open += self.owed.len() as u64;
        self.account.open_ignored += self.silent + self.silent_before.iter().sum::<u64>();
        if reset {
            SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    /// The end of the stream came, which is right only once the server stops.
    fn expect_over(&mut self) -> Result<(), Over> {
        assert!(self.stopping.load(SeqCst), "the server ended a connection, and was not told to stop");
        // Not read by the server, or it would have answered; but lines that need no reply may have been.
        self.account.open_ignored += self.silent + self.silent_before.iter().sum::<u64>();
        Err(Over)
    }
}

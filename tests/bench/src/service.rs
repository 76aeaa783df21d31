//! The service that every peer offers: lines in, replies out, no I/O.
//!
//! One implementation for all peers, by the same functions as the server that they are compared with, so that they differ only in
//! how they wait, read, hand over and write.

use std::io::{Error, ErrorKind, Result, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use memchr::{memchr, memrchr};
use tidemill::protocol::{Advertise, helo_text, render_helo, render_tail};

const STUDENT_ID: &str = "16336617";

/// Most bytes of one line, its terminator included; a longer one ends the connection. As in the server measured.
const MAX_LINE_BYTES: usize = 65_536;

/// Makes replies of lines.
pub(crate) trait Answer: Send + 'static {
    /// Appends the reply to one line, without its terminator.
    fn answer_line(&self, line: &[u8], replies: &mut Vec<u8>);

    /// Appends the replies to all complete lines of `input` and says how many bytes they took.
    fn answer(&self, input: &[u8], replies: &mut Vec<u8>) -> usize {
        let mut used = 0;
        while let Some(end) = memchr(b'\n', &input[used..]) {
            self.answer_line(&input[used..used + end], replies);
            used += end + 1;
        }
        used
    }
}

/// Answers lines on connections that reached one address.
#[derive(Debug)]
pub(crate) struct Service {
    /// What follows the text in each reply.
    tail: Vec<u8>,
    /// How long the handler blocks for each request.
    delay: Duration,
}

impl Service {
    /// A service for clients that reached `local`. Its tail is rendered here, once.
    pub(crate) fn new(local: SocketAddr, delay: Duration) -> Self {
        Service { tail: render_tail(&local.into(), Advertise::default(), STUDENT_ID), delay }
    }
}

impl Answer for Service {
    fn answer_line(&self, line: &[u8], replies: &mut Vec<u8>) {
        let Some(text) = helo_text(line) else { return };
        if !self.delay.is_zero() {
            thread::sleep(self.delay);
        }
        render_helo(text, &self.tail, replies);
    }
}

/// Length of the complete lines at the front of `input`.
pub(crate) fn complete_lines(input: &[u8]) -> usize {
    memrchr(b'\n', input).map_or(0, |end| end + 1)
}

/// An error if `rest`, a line that has no end yet, is longer than a line may be.
pub(crate) fn check_line(rest: &[u8]) -> Result<()> {
    if rest.len() < MAX_LINE_BYTES {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::InvalidData, "line too long"))
    }
}

/// Writes from the front of `output` until it is empty or the socket takes no more; what was written is removed.
pub(crate) fn flush(socket: &mut impl Write, output: &mut Vec<u8>) -> Result<()> {
    while !output.is_empty() {
        match socket.write(output) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => drop(output.drain(..count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

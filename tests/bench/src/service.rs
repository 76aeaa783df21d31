//! The service that every peer offers: lines in, replies out, no I/O.
//!
//! One implementation for all peers, so that they differ only in how they wait, read, hand over and write.

use std::io::{Error, ErrorKind, Result, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use memchr::{memchr, memrchr};

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
        let tail = format!("\nIP:{}\nPort:{}\nStudentID:{STUDENT_ID}\n", local.ip(), local.port());
        Service { tail: tail.into_bytes(), delay }
    }
}

impl Answer for Service {
    fn answer_line(&self, line: &[u8], replies: &mut Vec<u8>) {
        let Some(text) = line.strip_prefix(b"HELO ") else { return };
        if !self.delay.is_zero() {
            thread::sleep(self.delay);
        }
        replies.extend_from_slice(b"HELO ");
        replies.extend_from_slice(trim_end(text));
        replies.extend_from_slice(&self.tail);
    }
}

/// `text` without trailing white space: blank, `\t`, `\r`, `\x0b`, `\x0c`.
fn trim_end(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c);
    let kept = text.iter().rposition(|byte| !is_space(byte)).map_or(0, |last| last + 1);
    &text[..kept]
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
    let mut written = 0;
    let result = loop {
        if written == output.len() {
            break Ok(());
        }
        match socket.write(&output[written..]) {
            Ok(0) => break Err(ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    output.drain(..written);
    result
}

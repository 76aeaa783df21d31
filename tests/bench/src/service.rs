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

/// First capacity of a connection's receive buffer: a few dozen lines in one read.
const INPUT_BYTES: usize = 4096;

/// Answers lines on connections that reached one address.
#[derive(Debug)]
pub struct Service {
    /// What follows the text in each reply.
    tail: Vec<u8>,
    /// How long the handler blocks for each request.
    delay: Duration,
}

impl Service {
    /// A service for clients that reached `local`. Its tail is rendered here, once.
    pub fn new(local: SocketAddr, delay: Duration) -> Self {
        let tail = format!("\nIP:{}\nPort:{}\nStudentID:{STUDENT_ID}\n", local.ip(), local.port());
        Service { tail: tail.into_bytes(), delay }
    }

    /// Appends the replies to all complete lines of `input` and says how many bytes they took.
    pub fn answer(&self, input: &[u8], replies: &mut Vec<u8>) -> usize {
        let mut used = 0;
        while let Some(end) = memchr(b'\n', &input[used..]) {
            self.answer_line(&input[used..used + end], replies);
            used += end + 1;
        }
        used
    }

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
pub fn complete_lines(input: &[u8]) -> usize {
    memrchr(b'\n', input).map_or(0, |end| end + 1)
}

/// An error if `rest`, a line that has no end yet, is longer than a line may be.
///
/// # Errors
/// `InvalidData` for a line too long; nothing was changed.
pub fn check_line(rest: &[u8]) -> Result<()> {
    if rest.len() < MAX_LINE_BYTES {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::InvalidData, "line too long"))
    }
}

/// A connection's receive buffer: what was read and not yet answered.
#[derive(Debug)]
pub struct Input {
    /// Its length is the buffer's capacity, so that reads need no zeroing.
    bytes: Vec<u8>,
    filled: usize,
}

impl Input {
    /// An empty buffer.
    pub fn new() -> Self {
        Input { bytes: vec![0; INPUT_BYTES], filled: 0 }
    }

    /// Where the next read goes; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        if self.filled == self.bytes.len() {
            self.bytes.resize(2 * self.bytes.len(), 0);
        }
        &mut self.bytes[self.filled..]
    }

    /// Takes `read` new bytes for received and appends the replies to all complete lines.
    ///
    /// # Errors
    /// `InvalidData` if a line is too long.
    pub fn received(&mut self, read: usize, service: &Service, replies: &mut Vec<u8>) -> Result<()> {
        self.filled += read;
        let used = service.answer(&self.bytes[..self.filled], replies);
        self.bytes.copy_within(used..self.filled, 0);
        self.filled -= used;
        check_line(&self.bytes[..self.filled])
    }

    /// The client has closed its side: appends the reply to a last line without terminator.
    pub fn closed(&mut self, service: &Service, replies: &mut Vec<u8>) {
        service.answer_line(&self.bytes[..self.filled], replies);
        self.filled = 0;
    }
}

impl Default for Input {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes from the front of `output` until it is empty or the socket takes no more; what was written is removed.
///
/// # Errors
/// Whatever the socket says, but for `WouldBlock` and `Interrupted`.
pub fn flush(socket: &mut impl Write, output: &mut Vec<u8>) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        Service::new("127.0.0.1:8000".parse().unwrap(), Duration::ZERO)
    }

    fn reply(text: &str) -> String {
        format!("HELO {text}\nIP:127.0.0.1\nPort:8000\nStudentID:16336617\n")
    }

    #[test]
    fn replies_are_those_of_the_contract() {
        let input = b"HELO a\nHELO  b \t\r\n\nHELO\nhelo c\nKILL_SERVICE\nHELO \nHELO d";
        let mut replies = Vec::new();
        let used = service().answer(input, &mut replies);
        assert_eq!(used, input.len() - b"HELO d".len());
        let expected = [reply("a"), reply(" b"), reply("")].concat();
        assert_eq!(String::from_utf8(replies).unwrap(), expected);
    }

    #[test]
    fn replies_do_not_depend_on_how_the_lines_were_cut() {
        let sent = b"HELO one\nother\nHELO two\r\nHELO three";
        for chunk in 1..sent.len() {
            let (mut input, mut replies) = (Input::new(), Vec::new());
            for piece in sent.chunks(chunk) {
                input.space()[..piece.len()].copy_from_slice(piece);
                input.received(piece.len(), &service(), &mut replies).unwrap();
            }
            input.closed(&service(), &mut replies);
            let expected = [reply("one"), reply("two"), reply("three")].concat();
            assert_eq!(String::from_utf8(replies).unwrap(), expected, "in pieces of {chunk}");
        }
    }

    #[test]
    fn line_too_long_is_an_error_and_the_buffer_stops_growing() {
        let (mut input, mut replies) = (Input::new(), Vec::new());
        let mut read = 0;
        let error = loop {
            let space = input.space();
            space.fill(b'x');
            let count = space.len();
            read += count;
            if let Err(error) = input.received(count, &service(), &mut replies) {
                break error;
            }
        };
        assert_eq!((error.kind(), read), (ErrorKind::InvalidData, MAX_LINE_BYTES));
    }
}

//! A small blocking client for line protocols, for tests, scripts and embedders.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// A connection that sends lines and reads lines. Each operation blocks until it is done or its timeout has passed.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects to `address`. `timeout` holds for connecting, and then for each single read and write.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::InvalidInput`] for a timeout of zero.
    pub fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Sends `bytes` as they are.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::WouldBlock`] when the timeout has passed.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads one line and returns it without its `\n`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the stream ends before the line does, else what the system says;
    /// [`io::ErrorKind::WouldBlock`] when the timeout has passed.
    pub fn read_line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if line.pop_if(|last| *last == b'\n').is_none() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended within a line"));
        }
        Ok(line)
    }

    /// Sends `HELO text` and returns the four lines of its reply, each with its `\n`.
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`read_line`](Self::read_line). What the server said instead of a reply, for instance
    /// that it is full, is in the message.
    pub fn helo(&mut self, text: &[u8]) -> io::Result<Vec<u8>> {
        self.send(&[b"HELO ", text, b"\n"].concat())?;
        let mut reply = Vec::new();
        for _ in 0..4 {
            let line = self.read_line().map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof if !reply.is_empty() => {
                    let said = String::from_utf8_lossy(&reply);
                    io::Error::new(error.kind(), format!("the server closed after '{}'", said.trim_end()))
                }
                _ => error,
            })?;
            reply.extend(line);
            reply.push(b'\n');
        }
        Ok(reply)
    }

    /// Closes the sending side: the server sees the end of the stream and still answers what it has received.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.get_mut().shutdown(Shutdown::Write)
    }

    /// Reads all that comes until the server closes.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::WouldBlock`] when nothing came for as long as the timeout.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

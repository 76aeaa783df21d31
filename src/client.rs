//! A small blocking client for line protocols, for tests, scripts and embedders.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use memchr::memchr;

/// A connection that sends lines and reads lines.
///
/// Each operation blocks until it is done or its timeout has passed, however little comes at a time.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use tidemill::client::Client;
/// use tidemill::{Helo, Server};
///
/// let server = Server::builder(Helo::new()).listen("127.0.0.1:0".parse()?).start()?;
/// let address = server.local_addr().tcp().expect("it is no Unix socket");
/// let mut client = Client::connect(address, Duration::from_secs(5))?;
/// client.send(b"HELO hello\n")?;
/// assert_eq!(client.read_line()?, b"HELO hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    timeout: Duration,
    /// What came and was not asked for yet.
    received: Vec<u8>,
}

impl Client {
    /// The most that is read for one operation: more is an answer to nothing that a person asks.
    pub const MAX_REPLY_BYTES: usize = 16 << 20;

    /// Connects to `address`. `timeout` holds for connecting, and then for each operation as a whole.
    ///
    /// # Errors
    /// What the system says; [`ErrorKind::InvalidInput`] for a timeout of zero.
    pub fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        Ok(Client { stream, timeout, received: Vec::new() })
    }

    /// Operations take so long at most from now on; zero leaves them no time at all.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Sends `bytes` as they are.
    ///
    /// # Errors
    /// What the system says; [`ErrorKind::TimedOut`] when the timeout has passed.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send_by(self.deadline(), bytes)
    }

    /// Reads one line and returns it without its `\n`.
    ///
    /// # Errors
    /// [`ErrorKind::UnexpectedEof`] when the stream ends before the line does, [`ErrorKind::TimedOut`] when the timeout has
    /// passed, [`ErrorKind::InvalidData`] for a line longer than [`MAX_REPLY_BYTES`](Self::MAX_REPLY_BYTES), else what the
    /// system says. What has come of the line by then is kept for the next read.
    pub fn read_line(&mut self) -> io::Result<Vec<u8>> {
        self.read_line_by(self.deadline())
    }

    /// Sends `HELO text` and returns the four lines of its reply, each with its `\n`.
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`read_line`](Self::read_line), the timeout being for all of it. What the server said
    /// instead of a reply, for instance that it is full, is in the message.
    pub fn helo(&mut self, text: &[u8]) -> io::Result<Vec<u8>> {
        let deadline = self.deadline();
        self.send_by(deadline, &[b"HELO ", text, b"\n"].concat())?;
        let mut reply = Vec::new();
        for _ in 0..4 {
            let line = self.read_line_by(deadline).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof if !reply.is_empty() => {
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
        self.stream.shutdown(Shutdown::Write)
    }

    /// Reads all that comes until the server closes.
    ///
    /// # Errors
    /// What the system says; [`ErrorKind::TimedOut`] when the server has not closed by the timeout,
    /// [`ErrorKind::InvalidData`] when more comes than [`MAX_REPLY_BYTES`](Self::MAX_REPLY_BYTES).
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let deadline = self.deadline();
        while self.receive(deadline)? > 0 {}
        Ok(std::mem::take(&mut self.received))
    }

    /// `None` is beyond all time.
    fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.timeout)
    }

    fn send_by(&mut self, deadline: Option<Instant>, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(left(deadline)?)?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) => go_on(error)?,
            }
        }
        Ok(())
    }

    fn read_line_by(&mut self, deadline: Option<Instant>) -> io::Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            if let Some(end) = memchr(b'\n', &self.received[searched..]) {
                let mut line: Vec<u8> = self.received.drain(..=searched + end).collect();
                line.pop();
                return Ok(line);
            }
            searched = self.received.len();
            if self.receive(deadline)? == 0 {
                self.received.clear();
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection ended within a line"));
            }
        }
    }

    /// Adds what comes next to what was received; 0 at the end of the stream.
    fn receive(&mut self, deadline: Option<Instant>) -> io::Result<usize> {
        if self.received.len() >= Self::MAX_REPLY_BYTES {
            let limit = Self::MAX_REPLY_BYTES;
            return Err(io::Error::new(ErrorKind::InvalidData, format!("more than {limit} bytes came")));
        }
        let mut buffer = [0; 16 * 1024];
        loop {
            self.stream.set_read_timeout(left(deadline)?)?;
            match self.stream.read(&mut buffer) {
                Ok(got) => {
                    self.received.extend_from_slice(&buffer[..got]);
                    return Ok(got);
                }
                Err(error) => go_on(error)?,
            }
        }
    }
}

/// The time until `deadline`, as the system wants it.
fn left(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(deadline) = deadline else { return Ok(None) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
}

/// After an error of a read or write: whether it is one at which the deadline decides.
fn go_on(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// A client of a server that does as `serve` says with its one connection.
    fn client(timeout: Duration, serve: impl FnOnce(TcpStream) + Send + 'static) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(listener.accept().unwrap().0));
        Client::connect(address, timeout).unwrap()
    }

    /// Sends `bytes` as often as they are taken, after a pause each time.
    fn repeat(bytes: &'static [u8], pause: Duration) -> impl FnOnce(TcpStream) + Send {
        move |mut stream| {
            while stream.write_all(bytes).is_ok() {
                thread::sleep(pause);
            }
        }
    }

    #[test]
    fn drip_does_not_prolong_an_operation() {
        type Operation = fn(&mut Client) -> io::Result<Vec<u8>>;
        let operations: [Operation; 3] = [Client::read_line, Client::read_to_end, |client| client.helo(b"x")];
        for operation in operations {
            let mut client = client(Duration::from_millis(100), repeat(b"x", Duration::from_millis(5)));
            assert_eq!(operation(&mut client).unwrap_err().kind(), ErrorKind::TimedOut);
        }
    }

    #[test]
    fn lines_of_one_reply_share_its_timeout() {
        let mut client = client(Duration::from_millis(100), repeat(b"x\n", Duration::from_millis(60)));
        assert_eq!(client.helo(b"x").unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn reading_is_bounded() {
        let mut client = client(Duration::from_secs(60), repeat(&[b'x'; 65536], Duration::ZERO));
        assert_eq!(client.read_line().unwrap_err().kind(), ErrorKind::InvalidData);
        assert!(client.received.len() < Client::MAX_REPLY_BYTES + (1 << 20));
        assert_eq!(client.read_to_end().unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn lines_are_cut_wherever_packets_end() {
        let mut client = client(Duration::from_secs(60), |mut stream| {
            stream.write_all(b"a\nb\nc").unwrap();
            stream.write_all(b"d\n\nrest").unwrap();
        });
        for line in [&b"a"[..], b"b", b"cd", b""] {
            assert_eq!(client.read_line().unwrap(), line);
        }
        assert_eq!(client.read_line().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}

//! A client with nothing between it and the socket.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::DEADLINE;

/// Whoever reads nothing for so long is not going to.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// The reply to `HELO text` from a server that was reached at `address`.
pub(crate) fn helo_reply(text: &[u8], address: impl ToSocketAddrs) -> Vec<u8> {
    let address = resolved(address);
    let tail = format!("\nIP:{}\nPort:{}\nStudentID:16336617\n", address.ip(), address.port());
    [b"HELO ", text, tail.as_bytes()].concat()
}

/// The one address that `address`, of a server, stands for.
pub(crate) fn resolved(address: impl ToSocketAddrs) -> SocketAddr {
    address.to_socket_addrs().unwrap().next().unwrap()
}

/// A client's end of a connection. Whatever takes longer than [`DEADLINE`] fails the test.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: TcpStream,
    server: SocketAddr,
}

impl Peer {
    #[track_caller]
    pub(crate) fn connect(address: impl ToSocketAddrs) -> Peer {
        Peer::over(TcpStream::connect_timeout(&resolved(address), DEADLINE).unwrap())
    }

    /// A peer whose receive buffer holds only about `bytes`, so that a server soon finds the connection full.
    pub(crate) fn with_small_buffer(address: impl ToSocketAddrs, bytes: usize) -> Peer {
        let address = resolved(address);
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.connect(&address.into()).unwrap();
        Peer::over(socket.into())
    }

    /// A connection that was made in a way of its own.
    pub(crate) fn over(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        let server = stream.peer_addr().unwrap();
        Peer { stream, server }
    }

    /// The same connection once more, for another thread.
    pub(crate) fn twin(&self) -> Peer {
        Peer { stream: self.stream.try_clone().unwrap(), server: self.server }
    }

    /// The server's address as this peer reached it.
    pub(crate) fn server(&self) -> SocketAddr {
        self.server
    }

    /// This peer's own address.
    pub(crate) fn local(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends as much of `bytes` as the connection takes until it has taken nothing for `patience`.
    pub(crate) fn send_until_blocked(&mut self, bytes: &[u8], patience: Duration) -> usize {
        // A server that has not come to read by then, because the machine does other work as well, must not pass for a full one.
        self.stream.set_write_timeout(Some(patience.max(LEAST_PATIENCE))).unwrap();
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
        self.stream.set_write_timeout(Some(DEADLINE)).unwrap();
        sent
    }

    /// Sends as much of `bytes` as goes without waiting; nothing if the server has closed.
    pub(crate) fn send_what_goes(&mut self, bytes: &[u8]) {
        self.stream.set_nonblocking(true).unwrap();
        // Full, or closed: either is what this is for.
        drop(self.stream.write(bytes));
        self.stream.set_nonblocking(false).unwrap();
    }

    /// Reads exactly what is expected.
    #[track_caller]
    pub(crate) fn expect(&mut self, expected: &[u8]) {
        let mut read = vec![0; expected.len()];
        let mut len = 0;
        while len < read.len() {
            match self.stream.read(&mut read[len..]) {
                Ok(0) => panic!("the stream ended after '{}'", head(&read[..len])),
                Ok(count) => len += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error} after '{}'", head(&read[..len])),
            }
        }
        assert_same(&read, expected);
    }

    /// Reads what has come, which is the beginning of `expected`. Returns how much it is.
    #[track_caller]
    pub(crate) fn expect_what_is_there(&mut self, expected: &[u8]) -> usize {
        self.stream.set_nonblocking(true).unwrap();
        let mut read = Vec::new();
        let error = self.stream.read_to_end(&mut read).expect_err("the stream ended");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).unwrap();
        assert_same(&read, &expected[..read.len()]);
        read.len()
    }

    /// Reads a byte.
    #[track_caller]
    pub(crate) fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).unwrap();
        byte[0]
    }

    /// Reads so many bytes.
    #[track_caller]
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The next line, its `\n` included.
    #[track_caller]
    pub(crate) fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            // What comes behind it is the next one's.
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => panic!("the stream ended after '{}'", head(&line)),
                Ok(_) => line.push(byte[0]),
                Err(error) => panic!("{error} after '{}'", head(&line)),
            }
        }
        line
    }

    /// `HELO text`, answered as it must be.
    #[track_caller]
    pub(crate) fn ask(&mut self, text: &str) {
        self.send(format!("HELO {text}\n").as_bytes());
        self.expect_reply(text);
    }

    #[track_caller]
    pub(crate) fn expect_reply(&mut self, text: &str) {
        let expected = helo_reply(text.as_bytes(), self.server());
        self.expect(&expected);
    }

    /// Closes the sending side.
    pub(crate) fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Closes so that the server sees a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// The server closes without another byte, and without a reset.
    #[track_caller]
    pub(crate) fn expect_end(&mut self) {
        self.expect_rest(b"");
    }

    /// `expected` comes, then the end of the stream without a reset.
    #[track_caller]
    pub(crate) fn expect_rest(&mut self, expected: &[u8]) {
        assert_same(&self.rest(), expected);
    }

    /// Everything up to the end of the stream.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => bytes,
            Err(error) => panic!("{error} after {} bytes '{}'", bytes.len(), head(&bytes)),
        }
    }

    /// Whether nothing comes for a moment. Proves little, so it never stands alone for "no reply".
    pub(crate) fn is_silent_for(&mut self, moment: Duration) -> bool {
        self.stream.set_read_timeout(Some(moment)).unwrap();
        let result = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        result.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Sends `bytes` while reading, closes the sending side, and returns all that came until the server closed.
    #[track_caller]
    pub(crate) fn exchange(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut sender = self.stream.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                sender.write_all(bytes).unwrap();
                sender.shutdown(Shutdown::Write).unwrap();
            });
            self.rest()
        })
    }

    /// Sends `line` again and again, as fast as it goes, until the server ends the connection. Returns what came.
    pub(crate) fn flood(&mut self, line: &[u8]) -> Vec<u8> {
        let mut sender = self.stream.try_clone().unwrap();
        let burst = line.repeat(1000);
        let deadline = Instant::now() + DEADLINE;
        thread::scope(|scope| {
            // The server ends the connection while this writes: how that shows here is no matter.
            scope.spawn(move || while Instant::now() < deadline && sender.write_all(&burst).is_ok() {});
            self.rest()
        })
    }

    /// Sends `bytes`, or less if the server has closed. Whether it was all.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Reads up to `count` times `reply`, or as many as come before the end of the stream, and tells how many.
    #[track_caller]
    pub(crate) fn replies(&mut self, reply: &[u8], count: usize) -> usize {
        let expected = reply.repeat(count);
        let mut read = vec![0; expected.len()];
        let mut len = 0;
        while len < read.len() {
            match self.stream.read(&mut read[len..]) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) => panic!("{error} after {len} bytes"),
            }
        }
        assert_same(&read[..len], &expected[..len]);
        assert_eq!(len % reply.len(), 0, "ended inside a reply");
        len / reply.len()
    }

    /// Sends `line` a few times, reads as many replies as `reply` is long, and again, until the server ends the connection.
    /// Returns how many replies came; all were right.
    pub(crate) fn keep_asking(&mut self, line: &[u8], reply: &[u8]) -> usize {
        const DEPTH: usize = 20;
        let requests = line.repeat(DEPTH);
        let deadline = Instant::now() + DEADLINE;
        let mut came = 0;
        loop {
            assert!(Instant::now() < deadline, "nobody stopped the server");
            // Refused once the server has gone; then the end of the stream is there to be read.
            self.try_send(&requests);
            let replies = self.replies(reply, DEPTH);
            came += replies;
            if replies < DEPTH {
                return came;
            }
        }
    }
}

fn head(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(200)].escape_ascii().to_string()
}

#[track_caller]
pub(crate) fn assert_same(read: &[u8], expected: &[u8]) {
    if read != expected {
        let same = read.iter().zip(expected).take_while(|(a, b)| a == b).count();
        panic!(
            "{} bytes came where {} were expected; from byte {same} on: '{}' for '{}'",
            read.len(),
            expected.len(),
            head(&read[same..]),
            head(&expected[same..])
        );
    }
}

/// Runs `each` for every number below `count`, on a few threads.
pub(crate) fn in_parallel<T: Send>(count: usize, each: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = Mutex::new(0..count);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..count.min(16) {
            scope.spawn(|| {
                loop {
                    let Some(number) = next.lock().unwrap().next() else { break };
                    let result = each(number);
                    results.lock().unwrap().push((number, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

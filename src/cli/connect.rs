//! Connecting to a server within a time, by TCP or a Unix socket.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// Connects to the first of `addresses` that lets us in.
///
/// # Errors
/// Of the last one that was tried; `TimedOut` where `timeout` has passed.
pub(super) fn tcp(addresses: &[SocketAddr], timeout: Duration) -> io::Result<Socket> {
    let deadline = Instant::now() + timeout;
    let mut refused = io::Error::from(ErrorKind::TimedOut);
    for to in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        let connected = if left.is_zero() { break } else { TcpStream::connect_timeout(to, left) };
        match connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
            Ok(stream) => return Ok(stream.into()),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Connects to a Unix socket. Where its listen backlog is full, that waits until the server accepts.
///
/// # Errors
/// What the system says; `TimedOut` where `timeout` has passed.
pub(super) fn unix(path: &Path, timeout: Duration) -> io::Result<Socket> {
    let (socket, address) = (Socket::new(Domain::UNIX, Type::STREAM, None)?, SockAddr::unix(path)?);
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        // To the microsecond, 0 of which would be for ever. That of a send holds for a connect, which without blocking would be refused where there is no room at once.
        socket.set_write_timeout(Some(left.max(Duration::from_micros(1))))?;
        match socket.connect(&address) {
            Ok(()) => break,
            // Its time may be over a little before ours, which the next turn finds out.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    socket.set_write_timeout(None)?;
    Ok(socket)
}

//! `tidemill client --pipe`: joins standard input and output to a connection, for who wants a command rather than a socket.
//!
//! A thread for each direction. The end of one is passed on at once: the end of standard input to the server, the server's to
//! the reader of standard output. It is over when both have ended.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use super::Failure;

/// What a Unix socket's address begins with.
const UNIX: &str = "unix:";

/// A connection: its two directions, and how they end.
struct Joined {
    from: Box<dyn Read>,
    to: Box<dyn Write + Send>,
    finish: Box<dyn FnOnce() -> io::Result<()> + Send>,
}

/// Exit status 0 once both directions have ended; 1 where one broke off.
pub(super) fn run(address: &str, timeout: Duration) -> Result<ExitCode, Failure> {
    let failure = |error: io::Error| Failure::failed(format!("{address}: {error}"));
    let Joined { mut from, mut to, finish } = connect(address, timeout).map_err(failure)?;
    let sender = thread::spawn(move || {
        let sent = io::copy(&mut io::stdin().lock(), &mut to);
        // The server still says what it has to.
        let finished = finish();
        sent.and(finished)
    });
    let received = io::copy(&mut from, &mut Unbuffered);
    end_output();
    let sent = sender.join().unwrap_or_else(|_| Err(io::Error::other("the sending side panicked")));
    for result in [received.map(drop), sent] {
        match result {
            // The other one has ended before, which is no failure of ours.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::NotConnected) => {}
            result => result.map_err(failure)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Standard output without a buffer of lines: what has come goes on.
struct Unbuffered;

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        rustix::io::write(rustix::stdio::stdout(), bytes).map_err(io::Error::from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reader of standard output sees its end, while standard input may go on.
fn end_output() {
    if let Ok(nothing) = std::fs::File::options().write(true).open("/dev/null") {
        // Where it fails, the end of the process is the end of the output.
        let _ = rustix::stdio::dup2_stdout(&nothing);
    }
}

fn connect(address: &str, timeout: Duration) -> io::Result<Joined> {
    if let Some(path) = address.strip_prefix(UNIX) {
        let stream = UnixStream::connect(path)?;
        let (to, end) = (stream.try_clone()?, stream.try_clone()?);
        return Ok(Joined {
            from: Box::new(stream),
            to: Box::new(to),
            finish: Box::new(move || end.shutdown(Shutdown::Write)),
        });
    }
    let stream = connect_tcp(address, timeout)?;
    stream.set_nodelay(true)?;
    let (to, end) = (stream.try_clone()?, stream.try_clone()?);
    Ok(Joined {
        from: Box::new(stream),
        to: Box::new(to),
        finish: Box::new(move || end.shutdown(Shutdown::Write)),
    })
}

/// Tries each address of the name, all of them within `timeout`.
fn connect_tcp(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + timeout;
    let mut refused = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

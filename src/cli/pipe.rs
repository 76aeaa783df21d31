//! `tidemill client --pipe`: joins standard input and output to a connection, for who wants a command rather than a socket.
//!
//! A thread for each direction. The end of one is passed on at once: the end of standard input to the server, the server's to
//! the reader of standard output. It is over when both have ended.

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use socket2::Socket;
use tidemill::Address;

use super::{Failure, connect, load};

/// Exit status 0 once both directions have ended; 1 where one broke off.
pub(super) fn run(address: &str, timeout: Duration) -> Result<ExitCode, Failure> {
    let socket = Arc::new(connect(address, timeout)?);
    let sender = thread::spawn({
        let socket = Arc::clone(&socket);
        move || {
            let sent = io::copy(&mut io::stdin().lock(), &mut &*socket);
            // The server still says what it has to.
            let finished = socket.shutdown(Shutdown::Write);
            sent.and(finished)
        }
    });
    let received = io::copy(&mut &*socket, &mut Unbuffered);
    end_output();
    let sent = sender.join().unwrap_or_else(|_| Err(io::Error::other("the sending side panicked")));
    for result in [received.map(drop), sent] {
        match result {
            // The other one has ended before, which is no failure of ours.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::NotConnected) => {}
            result => result.map_err(|error| failed(address, error))?,
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

fn connect(address: &str, timeout: Duration) -> Result<Socket, Failure> {
    let connected = match address.parse() {
        Ok(Address::Unix(path)) => connect::unix(&path, timeout),
        _ => connect::tcp(&load::resolve(address)?, timeout),
    };
    connected.map_err(|error| failed(address, error))
}

fn failed(address: &str, error: io::Error) -> Failure {
    Failure::failed(format!("{address}: {error}"))
}

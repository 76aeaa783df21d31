//! One connection of the generator: its socket, what it has not sent yet, and what has come of a reply so far.
//!
//! What it means is judged by the ledger, and what a connection does next is decided by the worker.

use std::io::{self, ErrorKind};
use std::net::Shutdown;

use memchr::{memchr, memchr_iter};
use mio::net::TcpStream;

use super::Stamp;
use super::ledger::{Ledger, Read};
use super::protocol::{Match, Protocol};
use super::tally::{Kind, Tally};
use crate::socket;

/// How long the peer gets to close its side after we closed ours, in nanoseconds: extra replies are seen until then.
const LINGER_NANOS: u64 = 1_000_000_000;

/// To judge more bytes than these takes long enough for the time to be looked up anew.
const MOST_BYTES_A_STAMP: usize = 4 << 10;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// There is no socket.
    Idle,
    /// The system has not connected it yet, or the server has not said what it says first.
    Connecting,
    Open,
    /// Our side is closed; the peer's end is awaited.
    Closing,
}

/// How a connection came to its end.
#[derive(Debug)]
pub(crate) enum Ending {
    Eof,
    Failed(io::Error),
    /// Nothing was settled for as long as the timeout.
    TimedOut,
    /// A line that is too long, or a greeting that is another one.
    Rubbish,
    /// We have waited long enough, or are done.
    Dropped,
}

/// What came of a look at a socket that is being connected.
#[derive(Debug)]
pub(crate) enum Connected {
    NotYet,
    Yes,
    Failed(io::Error),
}

/// What came of reading.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All that was there.
    Drained,
    /// More is there, or may be.
    More,
    Ended(Ending),
}

/// A connection, or the place for one.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) phase: Phase,
    stream: Option<TcpStream>,
    /// Which of the plan's addresses it is connected to, or was tried last.
    pub(crate) address: usize,
    /// When the phase began, or the peer took bytes that had waited here, whichever is later.
    since: u64,
    pub(crate) ledger: Ledger,
    /// The start of a reply whose end has not come yet.
    held: Vec<u8>,
    /// How many bytes of it were looked at, to no end.
    judged: usize,
    /// What the socket did not take yet, from `unsent_from` on.
    unsent: Vec<u8>,
    unsent_from: usize,
    /// Ends of lines in it, and since when the socket has taken nothing of it.
    unsent_lines: usize,
    unsent_since: u64,
    /// The server is yet to say what it says first.
    awaits_greeting: bool,
    /// It is among those that can take a request (open loop), and since when it could.
    pub(crate) queued: bool,
    pub(crate) free_since: u64,
    /// When the request that waits for this connection to open was due (`--reconnect`), and how late the generator itself was
    /// with the connect.
    pub(crate) assigned: Option<u64>,
    pub(crate) late_to_connect: u64,
    /// When the time was over it was counted as not let in.
    pub(crate) is_not_let_in: bool,
    /// The peer has ended its side: reading goes on until that is seen, and nothing else will tell.
    hung_up: bool,
    /// A write was told of a reset. The system tells it only once: the next read sees an ordinary end.
    reset: bool,
}

impl Connection {
    pub(crate) fn idle() -> Self {
        Self {
            phase: Phase::Idle,
            stream: None,
            address: 0,
            since: 0,
            ledger: Ledger::new(0, 1),
            held: Vec::new(),
            judged: 0,
            unsent: Vec::new(),
            unsent_from: 0,
            unsent_lines: 0,
            unsent_since: 0,
            awaits_greeting: false,
            queued: false,
            free_since: 0,
            assigned: None,
            late_to_connect: 0,
            is_not_let_in: false,
            hung_up: false,
            reset: false,
        }
    }

    /// A socket that is being connected takes the place.
    pub(crate) fn start(&mut self, stream: TcpStream, ledger: Ledger, protocol: &Protocol, now: u64) {
        self.phase = Phase::Connecting;
        self.stream = Some(stream);
        self.since = now;
        self.ledger = ledger;
        self.held.clear();
        self.unsent.clear();
        self.unsent_from = 0;
        self.awaits_greeting = protocol.has_greeting();
        (self.hung_up, self.reset) = (false, false);
    }

    /// The socket, for whoever deregisters it; the place is idle from now on.
    pub(crate) fn take_stream(&mut self) -> Option<TcpStream> {
        self.phase = Phase::Idle;
        self.stream.take()
    }

    pub(crate) fn stream(&self) -> Option<&TcpStream> {
        self.stream.as_ref()
    }

    /// Whether the system has connected it, which is asked while it is connecting.
    pub(crate) fn is_connected(&self) -> Connected {
        let Some(stream) = &self.stream else { return Connected::NotYet };
        let outcome = match stream.take_error() {
            Ok(None) => match stream.peer_addr() {
                Ok(_) => stream.set_nodelay(true),
                Err(error) if error.kind() == ErrorKind::NotConnected => return Connected::NotYet,
                Err(error) => Err(error),
            },
            Ok(Some(error)) | Err(error) => Err(error),
        };
        outcome.map_or_else(Connected::Failed, |()| Connected::Yes)
    }

    /// It can be used from now on.
    pub(crate) fn opened(&mut self, now: u64) {
        self.phase = Phase::Open;
        self.since = now;
    }

    /// Whether the system has not let it in. One that only waits to be greeted is in, and has its timeout for that.
    pub(crate) fn waits_for_entry(&self) -> bool {
        self.phase == Phase::Connecting
            && !(self.awaits_greeting && matches!(self.is_connected(), Connected::Yes))
    }

    /// Whether it has been connecting since before `before`.
    pub(crate) fn is_connecting_since(&self, before: u64) -> bool {
        self.phase == Phase::Connecting && self.since < before
    }

    pub(crate) fn awaits_greeting(&self) -> bool {
        self.awaits_greeting
    }

    pub(crate) fn hung_up(&mut self) {
        self.hung_up = true;
    }

    /// The peer has said that nothing more comes, which may not have been read yet.
    pub(crate) fn has_hung_up(&self) -> bool {
        self.hung_up
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.unsent_from < self.unsent.len()
    }

    /// Whether everything on it is settled.
    pub(crate) fn is_settled(&self) -> bool {
        self.ledger.outstanding() == 0 && !self.has_unsent()
    }

    /// Requests that it can take, of `pipeline` outstanding at most.
    pub(crate) fn room(&self, pipeline: usize) -> usize {
        if self.has_unsent() { 0 } else { pipeline.saturating_sub(self.ledger.outstanding()) }
    }

    /// Sends the bytes of requests of `lines` lines each, or keeps what the socket does not take.
    pub(crate) fn send(&mut self, bytes: &[u8], lines: usize, now: u64) {
        debug_assert!(!self.has_unsent(), "requests would overtake each other");
        let taken = self.write(bytes);
        self.unsent.clear();
        self.unsent_from = 0;
        if taken < bytes.len() {
            self.unsent.extend_from_slice(&bytes[taken..]);
            self.unsent_lines = memchr_iter(b'\n', &self.unsent).count();
            self.unsent_since = now;
            self.tell_unsent(lines);
        }
    }

    /// Sends what was kept.
    pub(crate) fn flush(&mut self, lines: usize, now: u64) {
        let unsent = std::mem::take(&mut self.unsent);
        let rest = &unsent[self.unsent_from..];
        let taken = self.write(rest);
        self.unsent_lines -= memchr_iter(b'\n', &rest[..taken]).count();
        self.unsent = unsent;
        self.unsent_from += taken;
        if taken > 0 {
            // The peer could not answer before it got this.
            (self.since, self.unsent_since) = (now, now);
            self.tell_unsent(lines);
        }
    }

    /// Tells the ledger of how many requests the last line has not been taken.
    fn tell_unsent(&mut self, lines: usize) {
        self.ledger.set_unsent(self.unsent_lines.div_ceil(lines.max(1)) as u64);
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(stream) = &mut self.stream else { return bytes.len() };
        let mut taken = 0;
        while taken < bytes.len() {
            match socket::write(&*stream, &bytes[taken..]) {
                Ok(more) => taken += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The read side still has what came before.
                Err(error) => {
                    self.reset = error.kind() == ErrorKind::ConnectionReset;
                    return bytes.len();
                }
            }
        }
        taken
    }

    /// Reads once, has what came judged, and tells when it came.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        protocol: &mut Protocol,
        stamp: &mut Stamp,
        tally: &mut Tally,
    ) -> (u64, Outcome) {
        let Some(stream) = &mut self.stream else { return (stamp.of_read(), Outcome::Drained) };
        let got = socket::read(stream, buffer);
        let now = stamp.of_read();
        let got = match got {
            Ok(0) if self.reset => {
                return (now, Outcome::Ended(Ending::Failed(ErrorKind::ConnectionReset.into())));
            }
            Ok(0) => return (now, Outcome::Ended(Ending::Eof)),
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (now, Outcome::Drained),
            Err(error) if error.kind() == ErrorKind::Interrupted => return (now, Outcome::More),
            Err(error) => return (now, Outcome::Ended(Ending::Failed(error))),
        };
        if got > MOST_BYTES_A_STAMP {
            stamp.expire();
        }
        // A short read has drained the socket, unless its end is there as well.
        let outcome = if got < buffer.len() && !self.hung_up { Outcome::Drained } else { Outcome::More };
        let bytes = &buffer[..got];
        let rest = if self.held.is_empty() {
            bytes
        } else {
            self.held.extend_from_slice(bytes);
            if self.is_put_off(bytes) {
                return (now, outcome);
            }
            &self.held[..]
        };
        #[cfg(test)]
        tests::LOOKED_AT.set(tests::LOOKED_AT.get() + rest.len());
        let (greeted, read) = greet(&mut self.awaits_greeting, rest, &self.ledger, protocol, now, tally);
        let read = match read {
            Read::Consumed(_) if !self.awaits_greeting => {
                match self.ledger.read(&rest[greeted..], protocol, now, tally) {
                    Read::Consumed(used) => Read::Consumed(greeted + used),
                    Read::Rubbish => Read::Rubbish,
                }
            }
            read => read,
        };
        let Read::Consumed(used) = read else { return (now, Outcome::Ended(Ending::Rubbish)) };
        if !self.held.is_empty() {
            self.held.drain(..used);
            self.judged = self.held.len();
        } else if used < got {
            self.held.extend_from_slice(&bytes[used..]);
            self.judged = got - used;
        }
        (now, outcome)
    }

    /// Whether what is held is looked at later, now that these bytes have come to it: every look is from its front, so a line
    /// that comes in many pieces is looked at when it ends, and before that when it is twice as long as the last time.
    fn is_put_off(&self, bytes: &[u8]) -> bool {
        self.held.len() < 2 * self.judged && !self.awaits_greeting && memchr(b'\n', bytes).is_none()
    }

    /// Closes our side.
    pub(crate) fn finish(&mut self, now: u64) {
        self.phase = Phase::Closing;
        self.since = now;
        // Its failure means that the connection is gone, which the next read tells.
        drop(self.stream.as_ref().map(|stream| stream.shutdown(Shutdown::Write)));
    }

    /// What came of a reply that was never finished, after all that came is judged.
    pub(crate) fn take_held(&mut self, protocol: &mut Protocol, now: u64, tally: &mut Tally) -> Vec<u8> {
        let mut held = std::mem::take(&mut self.held);
        if self.judged < held.len()
            && let Read::Consumed(used) = self.ledger.read(&held, protocol, now, tally)
        {
            held.drain(..used);
        }
        held
    }

    /// Whether what the phase waits for should have come by now.
    pub(crate) fn is_overdue(&self, now: u64, timeout: u64) -> bool {
        let before = now.saturating_sub(timeout);
        match self.phase {
            Phase::Idle => false,
            Phase::Connecting => self.since < before,
            Phase::Open => {
                self.is_silent(now, timeout) || self.ledger.misses_since().is_some_and(|since| since < before)
            }
            Phase::Closing => self.since < now.saturating_sub(LINGER_NANOS),
        }
    }

    /// Whether the request whose turn it is has waited for too long, or bytes to be taken have while nothing was answered, so
    /// that nothing is expected any more.
    pub(crate) fn is_silent(&self, now: u64, timeout: u64) -> bool {
        let before = now.saturating_sub(timeout);
        self.ledger.waits_since().is_some_and(|since| since.max(self.since) < before)
            || self.has_unsent() && self.unsent_since.max(self.ledger.settled_last()) < before
    }
}

/// Takes what the server says first off the bytes, if it is awaited. Another one than expected is bytes that nobody asked for.
fn greet(
    awaited: &mut bool,
    bytes: &[u8],
    ledger: &Ledger,
    protocol: &mut Protocol,
    now: u64,
    tally: &mut Tally,
) -> (usize, Read) {
    if !*awaited {
        return (0, Read::Consumed(0));
    }
    match protocol.compare_greeting(bytes) {
        Match::Whole(len) => {
            *awaited = false;
            (len, Read::Consumed(len))
        }
        Match::Start => (0, Read::Consumed(0)),
        Match::No => {
            let expected = super::ledger::shown(&protocol.shown_greeting());
            tally.extra(Kind::Unasked, now, || {
                let mut example = ledger.example(None, bytes, protocol);
                example.expected = expected;
                example
            });
            (0, Read::Rubbish)
        }
    }
}

#[cfg(test)]
mod tests;

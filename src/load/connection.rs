//! One connection of the generator: its socket, what it has not sent yet, and what has come of a reply so far.
//!
//! What it means is judged by the ledger, and what a connection does next is decided by the worker.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;

use memchr::memchr_iter;
use mio::net::TcpStream;

use super::Stamp;
use super::ledger::{Ledger, Read};
use super::protocol::{Match, Protocol};
use super::tally::{Kind, Tally};

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
            match stream.write(&bytes[taken..]) {
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
        let got = stream.read(buffer);
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
        let bytes = &buffer[..got];
        let rest = if self.held.is_empty() {
            bytes
        } else {
            self.held.extend_from_slice(bytes);
            &self.held[..]
        };
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
        if self.held.is_empty() {
            self.held.extend_from_slice(&bytes[used..]);
        } else {
            self.held.drain(..used);
        }
        // A short read has drained the socket, unless its end is there as well.
        (now, if got < buffer.len() && !self.hung_up { Outcome::Drained } else { Outcome::More })
    }

    /// Closes our side.
    pub(crate) fn finish(&mut self, now: u64) {
        self.phase = Phase::Closing;
        self.since = now;
        // Its failure means that the connection is gone, which the next read tells.
        drop(self.stream.as_ref().map(|stream| stream.shutdown(Shutdown::Write)));
    }

    /// What came of a reply that was never finished.
    pub(crate) fn take_held(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
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
mod tests {
    use std::net::{TcpListener, TcpStream as Peer};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::super::ledger::Asked;
    use super::*;
    use crate::load::Clock;

    const TIMEOUT: u64 = 1000;

    struct Fixture {
        connection: Connection,
        protocol: Protocol,
        tally: Tally,
        peer: Peer,
    }

    impl Fixture {
        /// A connection that was started at 5, with its other side.
        fn new(greeting: Option<&str>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = Peer::connect(listener.local_addr().unwrap()).unwrap();
            stream.set_nonblocking(true).unwrap();
            let protocol = Protocol::custom("x{n}", "y{n}", None, greeting).unwrap();
            let mut connection = Connection::idle();
            connection.start(TcpStream::from_std(stream), Ledger::new(7, 1), &protocol, 5);
            Self { connection, protocol, tally: Tally::new(0), peer: listener.accept().unwrap().0 }
        }

        fn ask(&mut self, sent: u64, first: u64, count: u64) {
            let asked = Asked { due: sent, sent };
            self.connection.ledger.ask(asked, first, count, &mut self.protocol, &mut self.tally);
        }

        fn read(&mut self, buffer: &mut [u8]) -> Outcome {
            let mut stamp = Stamp::new(Clock::start());
            self.connection.read(buffer, &mut self.protocol, &mut stamp, &mut self.tally).1
        }

        /// Reads until so many replies were right; what came of the last read.
        fn read_until(&mut self, right: u64, buffer: &mut [u8]) -> Outcome {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                let outcome = self.read(buffer);
                if self.tally.total().right == right {
                    return outcome;
                }
                assert!(Instant::now() < deadline, "{outcome:?} {:?}", self.tally.total());
            }
        }
    }

    #[test]
    fn what_the_socket_does_not_take_is_sent_later_and_in_order() {
        let mut fixture = Fixture::new(None);
        let connection = &mut fixture.connection;
        connection.opened(7);
        assert_eq!((connection.phase, connection.room(5), connection.is_settled()), (Phase::Open, 5, true));
        let bytes: Vec<u8> = (0..16 << 20).map(|at: u32| at.to_le_bytes()[at as usize % 4]).collect();
        connection.send(&bytes, 1, 7);
        assert!(connection.has_unsent() && !connection.is_settled());
        assert_eq!(connection.room(5), 0);
        // Nobody reads, but the system may find room for some more.
        for now in 8..20 {
            let before = connection.unsent_from;
            connection.flush(1, now);
            assert_eq!(connection.since == now, connection.unsent_from > before);
        }
        let mut peer = fixture.peer;
        let reading = thread::spawn(move || {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).unwrap();
            got
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        while connection.has_unsent() {
            connection.flush(1, 20);
            assert!(Instant::now() < deadline);
        }
        assert_eq!((connection.since, connection.is_settled(), connection.room(5)), (20, true, 5));
        connection.finish(21);
        assert_eq!((connection.phase, connection.since), (Phase::Closing, 21));
        assert!(reading.join().unwrap() == bytes, "what came is not what was sent");
        assert!(connection.stream().is_some() && connection.take_stream().is_some());
        assert_eq!(connection.phase, Phase::Idle);
    }

    #[test]
    fn requests_that_are_not_taken_are_known_by_their_number_and_waited_for_no_longer_than_replies() {
        let mut fixture = Fixture::new(None);
        let request = "x".repeat(1000);
        fixture.protocol = Protocol::custom(&request, "y", None, None).unwrap();
        fixture.connection.opened(7);
        let asked = Asked { due: 7, sent: 7 };
        let Fixture { connection, protocol, tally, peer } = &mut fixture;
        let bytes = connection.ledger.ask(asked, 0, 20_000, protocol, tally).to_vec();
        connection.send(&bytes, 1, 7);
        let whole = (bytes.len() - (connection.unsent.len() - connection.unsent_from)) / 1001;
        assert!((1..20_000).contains(&whole), "{whole}");
        // The peer has read nothing, and says that it has everything.
        connection.ledger.read(&b"y\n".repeat(20_000), protocol, 50, tally);
        let total = tally.total();
        assert_eq!((total.right, total.wrong), (whole as u64, 20_000 - whole as u64));
        assert!(connection.has_unsent() && connection.ledger.outstanding() == 0);
        assert!(
            !connection.is_overdue(50 + TIMEOUT, TIMEOUT) && connection.is_overdue(51 + TIMEOUT, TIMEOUT)
        );
        assert!(connection.is_silent(51 + TIMEOUT, TIMEOUT));
        let mut peer = peer.try_clone().unwrap();
        let reading =
            thread::spawn(move || std::io::copy(&mut (&mut peer).take(1001 * 20_000), &mut std::io::sink()));
        let deadline = Instant::now() + Duration::from_secs(10);
        while connection.has_unsent() {
            connection.flush(1, 60);
            assert!(Instant::now() < deadline);
        }
        assert_eq!((connection.unsent_lines, connection.is_overdue(9 * TIMEOUT, TIMEOUT)), (0, false));
        reading.join().unwrap().unwrap();
    }

    #[test]
    fn what_comes_is_judged_as_far_as_it_goes_and_a_short_read_is_the_last() {
        let mut fixture = Fixture::new(None);
        fixture.connection.opened(7);
        fixture.ask(7, 0, 4);
        let mut buffer = [0; 64];
        assert!(matches!(fixture.read(&mut buffer), Outcome::Drained), "nothing is there");
        fixture.peer.write_all(b"y0\ny1").unwrap();
        assert!(matches!(fixture.read_until(1, &mut buffer), Outcome::Drained));
        fixture.peer.write_all(b"\n").unwrap();
        assert!(matches!(fixture.read_until(2, &mut buffer), Outcome::Drained));
        fixture.peer.write_all(b"y2\n").unwrap();
        assert!(matches!(fixture.read_until(3, &mut buffer[..3]), Outcome::More), "it filled the buffer");
        assert!(!fixture.connection.is_settled());
        // Nothing else will tell of the end.
        fixture.connection.hung_up();
        fixture.peer.write_all(b"y3\ny").unwrap();
        assert!(matches!(fixture.read_until(4, &mut buffer), Outcome::More));
        assert_eq!(fixture.connection.take_held(), b"y");
        drop(fixture.peer.shutdown(Shutdown::Both));
        assert!(matches!(fixture.read(&mut buffer), Outcome::Ended(Ending::Eof)));
        fixture.connection.reset = true;
        assert!(matches!(fixture.read(&mut buffer), Outcome::Ended(Ending::Failed(_))));
    }

    #[test]
    fn what_a_server_says_first_is_no_reply() {
        let mut fixture = Fixture::new(Some("hi *"));
        assert!(fixture.connection.awaits_greeting() && !Fixture::new(None).connection.awaits_greeting());
        fixture.ask(7, 0, 1);
        let mut buffer = [0; 64];
        fixture.peer.write_all(b"hi there\ny0\ny").unwrap();
        fixture.read_until(1, &mut buffer);
        assert!(!fixture.connection.awaits_greeting());
        assert_eq!(fixture.connection.take_held(), b"y");
        let mut other = Fixture::new(Some("hi *"));
        other.peer.write_all(b"go away\n").unwrap();
        let outcome = loop {
            let outcome = other.read(&mut buffer);
            if !matches!(outcome, Outcome::Drained) {
                break outcome;
            }
        };
        assert!(matches!(outcome, Outcome::Ended(Ending::Rubbish)));
        assert_eq!(other.tally.total().unasked, 1);
        let example = &other.tally.examples[&Kind::Unasked].example;
        assert_eq!((&*example.expected, &*example.got), (r"hi *\n", r"go away\n"));
    }

    #[test]
    fn reset_is_not_taken_for_an_end_whether_a_write_or_a_read_is_told_of_it() {
        for writes in [true, false] {
            let mut fixture = Fixture::new(None);
            fixture.connection.opened(7);
            // With bytes unread, closing resets the connection; the system tells that once.
            fixture.connection.send(b"x\n", 1, 7);
            fixture.peer.read_exact(&mut [0]).unwrap();
            let Fixture { mut connection, mut protocol, mut tally, peer } = fixture;
            drop(peer);
            let (deadline, mut stamp) =
                (Instant::now() + Duration::from_secs(10), Stamp::new(Clock::start()));
            let ending = loop {
                if writes {
                    connection.send(b"x\n", 1, 8);
                }
                match connection.read(&mut [0; 8], &mut protocol, &mut stamp, &mut tally).1 {
                    Outcome::Ended(ending) => break ending,
                    outcome => assert!(Instant::now() < deadline, "{outcome:?}"),
                }
            };
            let Ending::Failed(error) = &ending else { panic!("{ending:?}") };
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert!(!connection.has_unsent(), "nothing can be sent any more");
        }
    }

    #[test]
    fn socket_that_is_being_connected_is_so_until_it_is_or_failed() {
        let mut connection = Connection::idle();
        assert!(matches!(connection.is_connected(), Connected::NotYet) && !connection.is_connecting_since(9));
        // A listener whose backlog is full lets nobody in.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let _first = Peer::connect(address).unwrap();
        let protocol = Protocol::custom("x", "y", None, None).unwrap();
        let start = |connection: &mut Connection, address| {
            let stream = TcpStream::connect(address).unwrap();
            connection.start(stream, Ledger::new(7, 1), &protocol, 5);
        };
        start(&mut connection, address);
        assert!(matches!(connection.is_connected(), Connected::NotYet));
        assert_eq!([5, 6].map(|before| connection.is_connecting_since(before)), [false, true]);
        assert!(!connection.has_hung_up());
        connection.hung_up();
        assert!(connection.has_hung_up());
        drop(socket);
        let outcome = |connection: &Connection| {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                match connection.is_connected() {
                    Connected::NotYet => assert!(Instant::now() < deadline),
                    other => return other,
                }
            }
        };
        // Nobody listens there any more.
        start(&mut connection, address);
        assert!(!connection.has_hung_up());
        let failed = outcome(&connection);
        assert!(
            matches!(&failed, Connected::Failed(error) if error.kind() == ErrorKind::ConnectionRefused),
            "{failed:?}"
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        start(&mut connection, listener.local_addr().unwrap());
        assert!(matches!(outcome(&connection), Connected::Yes));
        connection.opened(6);
        assert!(!connection.is_connecting_since(9));
    }

    #[test]
    fn much_to_judge_makes_the_time_be_looked_up_anew() {
        for (count, is_anew) in [(MOST_BYTES_A_STAMP, false), (MOST_BYTES_A_STAMP + 1, true)] {
            let mut fixture = Fixture::new(None);
            fixture.connection.opened(7);
            fixture.peer.write_all(&vec![b'y'; count]).unwrap();
            let (deadline, mut buffer) = (Instant::now() + Duration::from_secs(10), vec![0; count]);
            while fixture.connection.stream().unwrap().peek(&mut buffer).unwrap_or(0) < count {
                assert!(Instant::now() < deadline);
            }
            let mut stamp = Stamp::new(Clock::start());
            let Fixture { connection, protocol, tally, .. } = &mut fixture;
            let (read, _) = connection.read(&mut buffer, protocol, &mut stamp, tally);
            while stamp.clock.now() <= read {}
            assert_eq!(stamp.of_read() > read, is_anew, "{count}");
        }
    }

    #[test]
    fn how_long_is_too_long_depends_on_what_is_waited_for() {
        let overdue =
            |connection: &Connection, at: u64| [at, at + 1].map(|now| connection.is_overdue(now, TIMEOUT));
        let mut fixture = Fixture::new(None);
        assert_eq!(overdue(&fixture.connection, 5 + TIMEOUT), [false, true], "connecting since 5");
        fixture.connection.opened(20);
        assert_eq!(overdue(&fixture.connection, 20 + 9 * TIMEOUT), [false; 2], "nothing is outstanding");
        fixture.ask(10, 0, 3);
        assert_eq!(
            overdue(&fixture.connection, 20 + TIMEOUT),
            [false, true],
            "it could be answered since 20"
        );
        let silent =
            |connection: &Connection, at: u64| [at, at + 1].map(|now| connection.is_silent(now, TIMEOUT));
        assert_eq!(silent(&fixture.connection, 20 + TIMEOUT), [false, true]);
        // The third comes first: the others are missing since then, and none is waited for.
        let Fixture { connection, protocol, tally, .. } = &mut fixture;
        connection.ledger.read(b"y2\n", protocol, 30, tally);
        assert_eq!(overdue(connection, 30 + TIMEOUT), [false, true]);
        assert_eq!(silent(connection, 30 + TIMEOUT), [false; 2]);
        fixture.connection.finish(40);
        assert_eq!(overdue(&fixture.connection, 40 + LINGER_NANOS), [false, true]);
        fixture.connection.take_stream();
        assert_eq!(overdue(&fixture.connection, 99 * LINGER_NANOS), [false; 2]);
    }
}

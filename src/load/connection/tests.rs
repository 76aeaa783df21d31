use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream as Peer};
use std::thread;
use std::time::{Duration, Instant};

use super::super::ledger::Asked;
use super::*;
use crate::load::Clock;

const TIMEOUT: u64 = 1000;

thread_local! {
    /// Bytes that were looked at, each as often as it was.
    pub(super) static LOOKED_AT: Cell<usize> = const { Cell::new(0) };
}

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

    fn take_held(&mut self) -> Vec<u8> {
        self.connection.take_held(&mut self.protocol, 9, &mut self.tally)
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
    assert!(!connection.is_overdue(50 + TIMEOUT, TIMEOUT) && connection.is_overdue(51 + TIMEOUT, TIMEOUT));
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
    assert_eq!(fixture.take_held(), b"y");
    drop(fixture.peer.shutdown(Shutdown::Both));
    assert!(matches!(fixture.read(&mut buffer), Outcome::Ended(Ending::Eof)));
    fixture.connection.reset = true;
    assert!(matches!(fixture.read(&mut buffer), Outcome::Ended(Ending::Failed(_))));
}

#[test]
fn line_that_comes_in_many_pieces_is_not_looked_at_from_its_front_with_each() {
    const PIECES: usize = 1000;
    const PIECE_BYTES: usize = 64;
    for expect in ["*", "y{n}"] {
        let mut fixture = Fixture::new(None);
        fixture.protocol = Protocol::custom("x{n}", expect, None, None).unwrap();
        fixture.connection.opened(7);
        fixture.ask(7, 0, 2);
        LOOKED_AT.set(0);
        for piece in 0..PIECES {
            fixture.peer.write_all(&[b'z'; PIECE_BYTES]).unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while fixture.connection.held.len() <= piece * PIECE_BYTES {
                assert!(matches!(fixture.read(&mut [0; 2 * PIECE_BYTES]), Outcome::Drained));
                assert!(Instant::now() < deadline);
            }
        }
        let (came, looked_at) = (PIECES * PIECE_BYTES, LOOKED_AT.get());
        assert!(looked_at < 2 * came, "{looked_at} of {came}");
        // Its end is seen at once.
        fixture.peer.write_all(b"\nleft").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while fixture.connection.held.len() > came {
            fixture.read(&mut [0; 64]);
            assert!(Instant::now() < deadline);
        }
        while fixture.connection.ledger.outstanding() > 1 {
            fixture.read(&mut [0; 64]);
            assert!(Instant::now() < deadline);
        }
        let total = fixture.tally.total();
        assert_eq!((total.right, total.wrong), if expect == "*" { (1, 0) } else { (0, 1) });
    }
}

#[test]
fn what_was_put_off_is_judged_at_the_end() {
    let mut fixture = Fixture::new(None);
    fixture.protocol = Protocol::custom("x{n}", "answers:{n} is right", None, None).unwrap();
    fixture.connection.opened(7);
    fixture.ask(7, 0, 2);
    for (piece, held) in [("answers:0 is wr", 15), ("answers:1", 24)] {
        fixture.peer.write_all(piece.as_bytes()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while fixture.connection.held.len() < held {
            fixture.read(&mut [0; 64]);
            assert!(Instant::now() < deadline);
        }
    }
    assert_eq!(fixture.take_held(), b"answers:1");
    assert_eq!(fixture.tally.total().wrong, 1);
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
    assert_eq!(fixture.take_held(), b"y");
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
        let (deadline, mut stamp) = (Instant::now() + Duration::from_secs(10), Stamp::new(Clock::start()));
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
    assert_eq!(overdue(&fixture.connection, 20 + TIMEOUT), [false, true], "it could be answered since 20");
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

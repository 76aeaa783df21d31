//! The state of a connection: made when it opens, handed to each request in turn, given back once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidemill::{CloseReason, Connection, ConnectionId, Place, Reply, Request, Server, ServerHandle, Service};

use crate::support::{Gate, Peer, assert_adds_up, configure, embed, eventually, in_parallel};

/// What has become of every connection.
#[derive(Debug, Default)]
struct Book {
    opened: Vec<ConnectionId>,
    closed: HashMap<ConnectionId, (CloseReason, u32)>,
}

impl Book {
    fn reason(&self) -> Option<CloseReason> {
        self.closed.values().next().map(|(reason, _)| *reason)
    }
}

type Shared = Arc<Mutex<Book>>;

/// Greets, counts the requests of each connection, and keeps a book. `panic` panics, `close` closes, `wait` waits.
struct Counting {
    book: Shared,
    place: Place,
    pass: Box<dyn Fn() + Send + Sync>,
}

impl Counting {
    fn new(place: Place) -> (Counting, Shared) {
        let book = Shared::default();
        (Counting { book: Arc::clone(&book), place, pass: Box::new(|| ()) }, book)
    }
}

impl Service for Counting {
    type State = u32;
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), connection: &Connection<'_>, reply: &mut Reply<'_>) -> u32 {
        self.book.lock().unwrap().opened.push(connection.id());
        reply.push(b"hello\n");
        0
    }

    fn handle(&self, count: &mut u32, _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        *count += 1;
        match request.line() {
            b"panic" => panic!("on purpose"),
            b"close" => reply.close(),
            b"wait" => (self.pass)(),
            _ => {}
        }
        reply.push(format!("{count}\n").as_bytes());
    }

    fn close(&self, count: u32, _: &mut (), connection: &Connection<'_>, reason: CloseReason) {
        let before = self.book.lock().unwrap().closed.insert(connection.id(), (reason, count));
        assert_eq!(before, None, "closed twice");
    }

    fn place(&self) -> Place {
        self.place
    }
}

const PLACES: [Place; 2] = [Place::Worker, Place::Loop];

#[test]
fn each_connection_is_greeted_and_counts_for_itself() {
    for place in PLACES {
        let (service, book) = Counting::new(place);
        let server = embed(service);
        in_parallel(20, |_| {
            let mut peer = Peer::connect(server.local_addr());
            peer.expect(b"hello\n");
            for count in 1..=50 {
                peer.send(b"x\n");
                peer.expect(format!("{count}\n").as_bytes());
            }
            peer.send(b"x\nx\nx\n");
            peer.finish();
            peer.expect_rest(b"51\n52\n53\n");
        });
        eventually("all are closed", || book.lock().unwrap().closed.len() == 20);
        let book = book.lock().unwrap();
        assert!(book.closed.values().all(|closed| *closed == (CloseReason::Eof, 53)), "{book:?}");
        // Told of at the end of the turn in which they are.
        eventually("all are gone", || server.handle().stats().connections == 0);
        let stats = server.handle().stats();
        assert_adds_up(&stats);
        assert_eq!(
            (stats.replies_total, stats.requests_silent_total),
            (20 * 53, 0),
            "a greeting is no reply"
        );
    }
}

#[test]
fn the_state_is_given_back_once_with_the_reason() {
    type End = fn(&mut Peer);
    let ends: [(End, CloseReason, &[u8]); 4] = [
        (|peer| peer.finish(), CloseReason::Eof, b""),
        (|peer| peer.send(b"close\nnever\n"), CloseReason::Handler, b"1\n"),
        (|peer| peer.send(b"panic\nnever\n"), CloseReason::Panic, b"ERROR internal error\n"),
        (
            |peer| peer.send(&[b'x'; 101]),
            CloseReason::LineTooLong,
            b"ERROR line too long (limit 100 bytes)\n",
        ),
    ];
    for place in PLACES {
        for (end, reason, told) in ends {
            let (service, book) = Counting::new(place);
            let server = configure(service, |config| config.max_line_bytes = 100);
            let mut peer = Peer::connect(server.local_addr());
            peer.expect(b"hello\n");
            end(&mut peer);
            peer.expect_rest(told);
            eventually("it is closed", || book.lock().unwrap().reason() == Some(reason));
            assert!(server.wait_for_end().is_clean());
            assert_eq!(book.lock().unwrap().closed.len(), 1);
        }
    }
}

/// Stops a server and waits for its end.
trait WaitForEnd {
    fn wait_for_end(self) -> tidemill::Outcome;
}

impl WaitForEnd for Server {
    fn wait_for_end(self) -> tidemill::Outcome {
        self.handle().stop();
        self.wait().unwrap()
    }
}

#[test]
fn a_reset_gives_it_back_also_while_a_handler_has_it() {
    for place in PLACES {
        let gate = Gate::closed();
        let (mut service, book) = Counting::new(place);
        service.pass = Box::new(gate.entrance());
        let server = embed(service);
        let mut peer = Peer::connect(server.local_addr());
        peer.expect(b"hello\n");
        peer.reset();
        eventually("it is closed", || book.lock().unwrap().reason() == Some(CloseReason::Reset));
        if place == Place::Loop {
            continue;
        }
        let mut peer = Peer::connect(server.local_addr());
        peer.expect(b"hello\n");
        peer.send(b"wait\n");
        eventually("it is with a handler", || server.handle().stats().pool_busy == 1);
        peer.reset();
        eventually("it is gone", || server.handle().stats().connections == 0);
        assert_eq!(book.lock().unwrap().closed.len(), 1, "the handler has it");
        gate.open();
        eventually("it is closed too", || book.lock().unwrap().closed.len() == 2);
        let closed = book.lock().unwrap().closed.values().map(|closed| closed.0).collect::<Vec<_>>();
        assert_eq!(closed, [CloseReason::Reset; 2]);
    }
}

#[test]
fn a_stop_gives_all_of_them_back() {
    for place in PLACES {
        let (service, book) = Counting::new(place);
        let server = embed(service);
        let mut peers: Vec<Peer> = (0..50).map(|_| Peer::connect(server.local_addr())).collect();
        for peer in &mut peers {
            peer.send(b"x\n");
        }
        assert!(server.wait_for_end().is_clean());
        for mut peer in peers {
            peer.expect_rest(b"hello\n1\n");
        }
        let book = book.lock().unwrap();
        assert_eq!(book.opened.len(), 50);
        assert!(book.closed.values().all(|closed| *closed == (CloseReason::Stopping, 1)), "{book:?}");
        assert_eq!(book.closed.len(), 50);
    }
}

#[test]
fn so_does_a_stop_at_once_also_those_that_a_handler_returns_late() {
    let gate = Gate::closed();
    let (mut service, book) = Counting::new(Place::Worker);
    service.pass = Box::new(gate.entrance());
    let server = configure(service, |config| (config.min_threads, config.max_threads) = (1, 1));
    let handle = server.handle();
    let mut stuck = Peer::connect(server.local_addr());
    stuck.expect(b"hello\n");
    let idle = Peer::connect(server.local_addr());
    eventually("both are open", || book.lock().unwrap().opened.len() == 2);
    stuck.send(b"wait\nwait\n");
    eventually("the only worker is stuck", || handle.stats().pool_busy == 1);
    // Its session cannot be made: it has none to give back.
    let late = Peer::connect(server.local_addr());
    eventually("three are here", || handle.stats().connections == 3);
    let aborter = handle.clone();
    std::thread::scope(|scope| {
        let end = scope.spawn(|| server.wait().unwrap());
        aborter.stop_now();
        gate.open();
        assert!(!end.join().unwrap().is_clean());
    });
    let book = book.lock().unwrap();
    assert_eq!(book.closed.len(), book.opened.len(), "{book:?}");
    drop((stuck, idle, late));
}

#[test]
fn a_stop_at_once_waits_for_a_service_that_does_not_let_go_no_longer_than_a_second() {
    struct Clinging(Gate);
    impl Service for Clinging {
        type State = ();
        type Worker = ();
        fn start_worker(&self) {}
        fn open(&self, _: &mut (), _: &Connection<'_>, reply: &mut Reply<'_>) {
            reply.push(b"in\n");
        }
        fn handle(&self, _: &mut (), _: &mut (), _: &Request<'_>, _: &mut Reply<'_>) {}
        fn close(&self, _: (), _: &mut (), _: &Connection<'_>, _: CloseReason) {
            self.0.entrance()();
        }
    }
    let server = embed(Arc::new(Clinging(Gate::closed())));
    let handle: ServerHandle = server.handle();
    let mut peer = Peer::connect(server.local_addr());
    peer.expect(b"in\n");
    let begun = Instant::now();
    handle.stop_now();
    let outcome = server.wait().unwrap();
    // A second, and a few for a machine that does other work as well.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!outcome.left_behind.is_empty(), "{outcome:?}");
}

#[test]
fn a_panic_while_it_opens_costs_that_connection() {
    struct Picky;
    impl Service for Picky {
        type State = ();
        type Worker = ();
        fn start_worker(&self) {}
        fn open(&self, _: &mut (), connection: &Connection<'_>, reply: &mut Reply<'_>) {
            reply.push(b"half a gree");
            assert!(!connection.id().to_string().ends_with('0'), "on purpose");
            reply.push(b"ting\n");
        }
        fn handle(&self, _: &mut (), _: &mut (), _: &Request<'_>, reply: &mut Reply<'_>) {
            reply.push(b"yes\n");
        }
        fn close(&self, _: (), _: &mut (), connection: &Connection<'_>, _: CloseReason) {
            assert!(!connection.id().to_string().ends_with('0'), "it never was open");
        }
    }
    let server = embed(Picky);
    let mut told = Vec::new();
    for _ in 0..11 {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(b"there?\n");
        peer.finish();
        told.push(String::from_utf8(peer.rest()).unwrap());
    }
    let good = "half a greeting\nyes\n";
    let bad = "ERROR internal error\n";
    assert_eq!(told, [&[bad][..], &[good; 9], &[bad]].concat());
    let handle = server.handle();
    eventually("all are gone", || handle.stats().connections == 0);
    let stats = handle.stats();
    assert_eq!((stats.handler_panics_total, stats.connections_closed_total.panic), (2, 2));
    assert_adds_up(&stats);
}

#[test]
fn a_service_knows_who_it_is_and_for_how_long() {
    let asked = |request: &Request<'_>, reply: &mut Reply<'_>| {
        let connection = request.connection();
        let (peer, local) = (connection.peer_addr(), connection.local_addr());
        reply
            .push(format!("{} {peer} {local} {}\n", connection.id(), connection.age().as_nanos()).as_bytes());
    };
    let server = embed(asked);
    for number in 0..3 {
        let connecting = Instant::now();
        let mut peer = Peer::connect(server.local_addr());
        let mut age = || {
            peer.send(b"who?\n");
            let told = String::from_utf8(peer.line()).unwrap();
            let words: Vec<&str> = told.split_whitespace().collect();
            assert_eq!(words[..3], [number.to_string(), peer.local().to_string(), peer.server().to_string()]);
            Duration::from_nanos(words[3].parse().unwrap())
        };
        let (first, answered) = (age(), Instant::now());
        std::thread::sleep(Duration::from_millis(20));
        let apart = answered.elapsed();
        let second = age();
        assert!(second >= first + apart && second <= connecting.elapsed(), "{first:?}, {second:?}");
    }
}

#[test]
fn nothing_is_handled_before_the_connection_is_open() {
    /// Opens only once the gate is open.
    struct Slow(Gate);
    impl Service for Slow {
        type State = bool;
        type Worker = ();
        fn start_worker(&self) {}
        fn open(&self, _: &mut (), _: &Connection<'_>, reply: &mut Reply<'_>) -> bool {
            self.0.entrance()();
            reply.push(b"ready\n");
            true
        }
        fn handle(&self, open: &mut bool, _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
            assert!(*open);
            reply.push(request.line());
            reply.push(b"\n");
        }
    }
    let service = Arc::new(Slow(Gate::closed()));
    let server = embed(Arc::clone(&service));
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nb\n");
    peer.finish();
    assert!(peer.is_silent_for(Duration::from_millis(50)));
    service.0.open();
    peer.expect_rest(b"ready\na\nb\n");
}

/// Says goodbye to whoever ends its side. A chat tells who leaves that it has left.
struct Farewells(Place);

impl Service for Farewells {
    type State = ();
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) {}

    fn handle(&self, _: &mut (), _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        reply.push(&[request.line(), b"\n"].concat());
    }

    fn close(&self, _: (), _: &mut (), connection: &Connection<'_>, reason: CloseReason) {
        let pusher = connection.pusher();
        pusher.push(&vec![b'x'; 8 << 20][..]).unwrap_or_default();
        pusher.push(reason.as_str().as_bytes()).unwrap_or_default();
    }

    fn place(&self) -> Place {
        self.0
    }
}

#[test]
fn what_is_pushed_while_it_closes_reaches_a_peer_that_has_only_ended_its_side() {
    for place in PLACES {
        // With a limit of time for handlers: this is none.
        let server = configure(Farewells(place), |config| {
            config.request_timeout = Some(Duration::from_secs(60));
            config.high_watermark_bytes = 16 << 20;
        });
        for lines in [&b""[..], b"a\nb\n"] {
            let mut peer = Peer::connect(server.local_addr());
            peer.send(lines);
            peer.finish();
            peer.expect_rest(&[lines, &vec![b'x'; 8 << 20], b"eof"].concat());
        }
        let handle = server.handle();
        eventually("all are gone", || handle.stats().connections == 0);
        let stats = handle.stats();
        assert_eq!((stats.connections_closed_total.eof, stats.held_bytes), (2, 0));
        assert_adds_up(&stats);
        assert!(server.wait_for_end().is_clean());
    }
}

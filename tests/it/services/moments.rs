//! What meets at an odd moment: nobody hangs, nothing is counted twice or never, and the order holds.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemill::framing::{Endian, Fixed, Framing, LengthPrefixed};
use tidemill::{CloseReason, Connection, Handler, Kind, Place, Pusher, Reply, Request, Service};

use crate::support::{Gate, Peer, assert_adds_up, configure, embed, eventually};

/// Longer than anything takes that goes on at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// A sender that threads may share.
fn shared<T: Send + 'static>() -> (impl Fn(T) + Send + Sync + 'static, Receiver<T>) {
    let (sender, receiver) = channel();
    let sender: Mutex<Sender<T>> = Mutex::new(sender);
    (move |value| sender.lock().unwrap().send(value).unwrap_or_default(), receiver)
}

#[test]
fn a_reply_that_is_taken_along_when_its_peer_has_gone_is_accounted_for() {
    let gate = Gate::closed();
    let (pass, (tell, told)) = (gate.entrance(), shared());
    let server = embed(move |_: &Request<'_>, reply: &mut Reply<'_>| {
        tell(());
        pass();
        reply.push(b"begun ");
        reply.defer().send();
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nb\nc\n");
    told.recv_timeout(PATIENCE).unwrap();
    peer.reset();
    let handle = server.handle();
    eventually("it is known to be gone", || handle.stats().connections == 0);
    gate.open();
    eventually("nothing is pending", || handle.stats().requests_pending == 0);
    assert_adds_up(&handle.stats());
    assert_eq!(handle.stats().requests_dropped_total, 3);
}

#[test]
fn a_writer_goes_on_though_more_is_pushed_meanwhile_than_the_peer_may_leave_unread() {
    let gate = Gate::closed();
    let (pass, (tell, pushers)) = (gate.entrance(), shared::<Pusher>());
    let server = embed(move |request: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(b"<");
        reply.flush().unwrap();
        tell(request.connection().pusher());
        pass();
        reply.push(b"|");
        reply.flush().unwrap();
        reply.push(b">");
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect(b"<");
    let pusher = pushers.recv_timeout(PATIENCE).unwrap();
    let handle = server.handle();
    // More than the watermark, at once.
    pusher.push(&[b'p'; 100_000][..]).unwrap();
    eventually("it is taken in", || handle.stats().pushed_total == 1);
    gate.open();
    peer.expect(b"|>");
    peer.expect(&[b'p'; 100_000]);
    assert_adds_up(&handle.stats());
}

#[test]
fn a_writer_that_has_more_after_the_end_of_the_server_is_told() {
    let gate = Gate::closed();
    let (pass, (tell, told)) = (gate.entrance(), shared());
    let server = embed(move |_: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(b"<");
        reply.flush().unwrap();
        pass();
        reply.push(b">");
        tell(reply.flush().is_err());
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect(b"<");
    server.handle().stop_now();
    let outcome = server.wait().unwrap();
    assert_eq!((outcome.busy_workers, outcome.left_behind.len()), (1, 1));
    gate.open();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(true));
}

/// Greets at its gate, hands out pushers, and answers each line with it; with `p` before its reply it pushes the line in brackets.
struct Greets<G> {
    place: Place,
    inline: bool,
    pass: G,
    tell: Box<dyn Fn(Pusher) + Send + Sync>,
}

impl<G: Fn() + Send + Sync + 'static> Service for Greets<G> {
    type State = Pusher;
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), connection: &Connection<'_>, reply: &mut Reply<'_>) -> Pusher {
        (self.tell)(connection.pusher());
        (self.pass)();
        reply.push(b"hello\n");
        connection.pusher()
    }

    fn handle(&self, own: &mut Pusher, _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        if request.line().starts_with(b"p") {
            own.push([b"[", request.line(), b"]\n"].concat()).unwrap();
        }
        reply.push(request.line());
        reply.push(b"\n");
    }

    fn place(&self) -> Place {
        self.place
    }

    fn classify(&self, _: &Pusher, _: &[u8]) -> Kind {
        if self.inline { Kind::Inline } else { Kind::Request }
    }
}

#[test]
fn a_greeting_comes_before_what_others_push() {
    let gate = Gate::closed();
    let (tell, pushers) = shared();
    let service = Greets { place: Place::Worker, inline: false, pass: gate.entrance(), tell: Box::new(tell) };
    let server = embed(service);
    let mut peer = Peer::connect(server.local_addr());
    let pusher = pushers.recv_timeout(PATIENCE).unwrap();
    pusher.push(&b"news\n"[..]).unwrap();
    eventually("it is taken in", || server.handle().stats().pushed_total == 1);
    gate.open();
    peer.expect(b"hello\nnews\n");
    pusher.push(&b"more\n"[..]).unwrap();
    peer.expect(b"more\n");
}

#[test]
fn what_a_handler_pushes_to_its_own_connection_comes_between_the_replies() {
    for (place, inline) in
        [(Place::Worker, false), (Place::Worker, true), (Place::Loop, false), (Place::Loop, true)]
    {
        let service = Greets { place, inline, pass: || (), tell: Box::new(|_| ()) };
        let server = embed(service);
        let mut peer = Peer::connect(server.local_addr());
        peer.send(b"a\np1\nb\nc\np2\np3\nd\n");
        peer.finish();
        peer.expect_rest(b"hello\na\n[p1]\np1\nb\nc\n[p2]\np2\n[p3]\np3\nd\n");
        let handle = server.handle();
        eventually("it is gone", || handle.stats().connections == 0);
        assert_adds_up(&handle.stats());
    }
}

#[test]
fn a_writer_whose_request_takes_too_long_is_let_go() {
    let (tell, told) = shared();
    let flood = move |_: &Request<'_>, reply: &mut Reply<'_>| {
        let written = (0..10_000).all(|_| {
            reply.push(&[b'x'; 16 << 10]);
            reply.flush().is_ok()
        });
        tell(written);
    };
    let server = configure(flood, |config| {
        config.request_timeout = Some(Duration::from_millis(50));
        config.write_timeout = None;
    });
    let mut peer = Peer::with_small_buffer(server.local_addr(), 4 << 10);
    peer.send(b"x\n");
    assert_eq!(told.recv_timeout(PATIENCE), Ok(false));
    let handle = server.handle();
    eventually("no worker is stuck", || handle.stats().pool_busy == 0);
    assert_adds_up(&handle.stats());
    peer.reset();
    eventually("it is gone", || handle.stats().connections == 0);
    assert_eq!(handle.stats().requests_pending, 0);
    assert_adds_up(&handle.stats());
}

/// Frames with a length before them, in which the stop line means nothing.
struct Records;

impl Handler for Records {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        reply.push(request.frame());
    }

    fn framing(&self) -> Option<&dyn Framing> {
        static FRAMING: LengthPrefixed = LengthPrefixed::new(1, Endian::Big, 100);
        Some(&FRAMING)
    }

    fn stop_line(&self) -> Option<&[u8]> {
        Some(b"STOP")
    }
}

/// Lines, and behind `data` a block of seven bytes; `STOP` is the stop line.
struct Data<G>(G);

impl<G: Fn() + Send + Sync + 'static> Service for Data<G> {
    type State = bool;
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) -> bool {
        false
    }

    fn handle(&self, in_data: &mut bool, _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        *in_data = request.frame() == b"data";
        if *in_data {
            (self.0)();
        }
        reply.push(request.frame());
    }

    fn framing<'a>(&'a self, in_data: &'a bool) -> Option<&'a dyn Framing> {
        static BLOCK: Fixed = Fixed::new(7);
        in_data.then_some(&BLOCK)
    }

    fn classify(&self, in_data: &bool, frame: &[u8]) -> Kind {
        match frame {
            b"STOP" if !in_data => Kind::Stop,
            _ => Kind::Switch,
        }
    }

    fn stop_line(&self) -> Option<&[u8]> {
        Some(b"STOP")
    }
}

#[test]
fn a_stop_line_inside_another_frame_is_no_stop() {
    let server = embed(Records);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"\x01a\x08\nSTOP\n");
    peer.expect(b"a");
    peer.send(b"bc");
    peer.expect(b"\nSTOP\nbc");
    assert!(!server.handle().is_stopping());

    let gate = Gate::closed();
    let server = embed(Data(gate.entrance()));
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"data\n\nSTOP\n\nnext\n");
    let handle = server.handle();
    eventually("all is read", || handle.stats().read_bytes_total == 17);
    gate.open();
    peer.expect(b"data\nSTOP\n\nnext");
    assert!(!handle.is_stopping());
    // It is one where a request begins.
    peer.send(b"STOP\n");
    peer.expect_end();
}

/// Says which line stops it, and nothing else of it.
struct Stops;

impl Handler for Stops {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        reply.push(request.frame());
    }

    fn stop_line(&self) -> Option<&[u8]> {
        Some(b"STOP")
    }
}

/// The same with a state, handled where it says.
struct StopsWithState(Place);

impl Service for StopsWithState {
    type State = u8;
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) -> u8 {
        0
    }

    fn handle(&self, _: &mut u8, _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        reply.push(request.frame());
    }

    fn place(&self) -> Place {
        self.0
    }

    fn stop_line(&self) -> Option<&[u8]> {
        Some(b"STOP")
    }
}

#[test]
fn a_stop_line_needs_no_other_word_wherever_it_stands() {
    for (sent, replies) in [("STOP\n", ""), ("a\nSTOPS\nSTOP\n", "aSTOPS")] {
        for server in [embed(Stops), embed(StopsWithState(Place::Worker)), embed(StopsWithState(Place::Loop))]
        {
            let mut peer = Peer::connect(server.local_addr());
            peer.send(sent.as_bytes());
            peer.expect_rest(replies.as_bytes());
            assert!(server.handle().is_stopping(), "{sent:?}");
        }
    }
}

/// Keeps a book of what was opened and closed. Opening waits on the event loop where `hold` says so.
struct Held {
    hold: Mutex<Option<Box<dyn Fn() + Send>>>,
    pass: Box<dyn Fn() + Send + Sync>,
    began: Box<dyn Fn(()) + Send + Sync>,
    book: Arc<Mutex<(usize, Vec<CloseReason>)>>,
}

impl Service for Held {
    type State = ();
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) {
        self.book.lock().unwrap().0 += 1;
        let hold = self.hold.lock().unwrap().take();
        if let Some(hold) = hold {
            (self.began)(());
            hold();
        }
    }

    fn handle(&self, (): &mut (), _: &mut (), _: &Request<'_>, reply: &mut Reply<'_>) {
        (self.began)(());
        (self.pass)();
        reply.push(b"x\n");
    }

    fn close(&self, (): (), _: &mut (), _: &Connection<'_>, reason: CloseReason) {
        self.book.lock().unwrap().1.push(reason);
    }

    fn place(&self) -> Place {
        Place::Loop
    }

    fn classify(&self, (): &(), _: &[u8]) -> Kind {
        Kind::Request
    }
}

/// A turn that was long takes in only a few of the jobs that have come back meanwhile; the others are with the reactor when it
/// ends.
#[test]
fn what_has_come_back_and_was_not_taken_in_before_a_stop_at_once_is_closed_too() {
    const PEERS: usize = 64;
    let (jobs, turn) = (Gate::closed(), Gate::closed());
    let (began, has_begun) = shared();
    let book = Arc::<Mutex<(usize, Vec<CloseReason>)>>::default();
    let service = Arc::new(Held {
        hold: Mutex::default(),
        pass: Box::new(jobs.entrance()),
        began: Box::new(began),
        book: Arc::clone(&book),
    });
    let server = configure(Arc::clone(&service), |config| {
        (config.min_threads, config.max_threads) = (PEERS, PEERS);
    });
    let mut peers: Vec<Peer> = (0..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"x\n"));
    (0..PEERS).for_each(|_| has_begun.recv_timeout(PATIENCE).unwrap());
    // The loop stands still in the accepting part of a turn.
    *service.hold.lock().unwrap() = Some(Box::new(turn.entrance()));
    let _last = Peer::connect(server.local_addr());
    has_begun.recv_timeout(PATIENCE).unwrap();
    jobs.open();
    let handle = server.handle();
    eventually("all jobs are back", || handle.stats().pool_busy == 0);
    handle.stop_now();
    turn.open();
    server.wait().unwrap();
    let book = book.lock().unwrap();
    assert_eq!((book.0, book.1.len()), (PEERS + 1, PEERS + 1));
}

/// Opens at its gate.
struct SlowToOpen<G> {
    pass: G,
    book: Arc<Mutex<(usize, Vec<CloseReason>)>>,
}

impl<G: Fn() + Send + Sync + 'static> Service for SlowToOpen<G> {
    type State = ();
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) {
        self.book.lock().unwrap().0 += 1;
        (self.pass)();
    }

    fn handle(&self, (): &mut (), _: &mut (), _: &Request<'_>, _: &mut Reply<'_>) {}

    fn close(&self, (): (), _: &mut (), _: &Connection<'_>, reason: CloseReason) {
        self.book.lock().unwrap().1.push(reason);
    }
}

#[test]
fn nothing_is_opened_for_who_has_gone_before_its_turn() {
    let gate = Gate::closed();
    let book = Arc::<Mutex<(usize, Vec<CloseReason>)>>::default();
    let service = SlowToOpen { pass: gate.entrance(), book: Arc::clone(&book) };
    let server = configure(service, |config| {
        (config.min_threads, config.max_threads) = (1, 1);
        config.max_connections = 2;
    });
    let handle = server.handle();
    let stays = Peer::connect(server.local_addr());
    eventually("it is being opened", || book.lock().unwrap().0 == 1);
    // As many that have gone are waited for as there may be, and a few.
    let mut refused = 0;
    for _ in 0..100 {
        let before = handle.stats().connections_closed_total.reset;
        Peer::connect(server.local_addr()).reset();
        eventually("it is gone", || {
            let stats = handle.stats();
            refused = stats.connections_rejected_total.full;
            stats.connections == 1 && stats.connections_closed_total.reset + refused > before
        });
    }
    assert!(refused > 0, "work is kept for all who ever came");
    gate.open();
    drop(stays);
    eventually("all is over", || handle.stats().connections == 0 && handle.stats().pool_busy == 0);
    eventually("what was opened is closed", || {
        let book = book.lock().unwrap();
        book.1.len() == book.0
    });
    assert_eq!(book.lock().unwrap().0, 1);
}

/// The service behind each kind of pointer that people share one by.
#[test]
fn every_pointer_to_a_service_is_one() {
    let answers = |server: tidemill::Server| {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(b"x\n");
        peer.expect(b"x\n");
    };
    let echo = |request: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(request.line());
        reply.push(b"\n");
    };
    answers(embed(Arc::new(echo)));
    answers(embed(Box::new(echo) as Box<dyn Handler>));
    answers(embed(Arc::new(Box::new(echo) as Box<dyn Handler>)));
    answers(embed(Arc::new(echo) as Arc<dyn Handler>));
    answers(embed(Box::new(echo) as Box<dyn Service<State = (), Worker = ()>>));
    answers(embed(Arc::new(echo) as Arc<dyn Service<State = (), Worker = ()>>));
}

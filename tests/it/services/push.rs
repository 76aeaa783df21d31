//! Bytes that nobody asked for, to one connection and to many.

use std::io::Read as _;
use std::iter;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tidemill::{
    CloseReason, Connection, Group, Handler, Kind, Place, PushError, Pusher, Reply, Request, Server, Service,
};

use crate::support::{DEADLINE, Peer, allow_files, assert_adds_up, configure, embed, eventually};

/// Whoever connects is in the group, and is told so.
struct Room(Arc<Mutex<Group>>);

impl Service for Room {
    type State = ();
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), connection: &Connection<'_>, reply: &mut Reply<'_>) {
        reply.push(b"in\n");
        self.0.lock().unwrap().insert(connection.pusher());
    }

    fn handle(&self, _: &mut (), _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        reply.push(request.line());
        reply.push(b"\n");
    }

    fn close(&self, _: (), _: &mut (), connection: &Connection<'_>, _: tidemill::CloseReason) {
        self.0.lock().unwrap().remove(connection.id()).expect("it was in");
    }
}

fn room(change: impl FnOnce(&mut tidemill::Config)) -> (Server, Arc<Mutex<Group>>) {
    let group = Arc::<Mutex<Group>>::default();
    (configure(Room(Arc::clone(&group)), change), group)
}

#[test]
fn everybody_gets_every_message_once_in_the_same_order() {
    const PUSHERS: usize = 4;
    const EACH: usize = 500;
    let (server, group) = room(|_| ());
    let mut peers: Vec<Peer> = (0..20).map(|_| Peer::connect(server.local_addr())).collect();
    peers.iter_mut().for_each(|peer| peer.expect(b"in\n"));
    thread::scope(|scope| {
        for pusher in 0..PUSHERS {
            let group = &group;
            scope.spawn(move || {
                for number in 0..EACH {
                    let message = format!("{pusher} {number}\n");
                    let refused = group.lock().unwrap().push(message.as_bytes());
                    assert!(refused.is_empty(), "{refused:?}");
                }
            });
        }
        // All of them go on reading.
        let seen: Vec<Vec<u8>> = thread::scope(|readers| {
            let all: usize = (0..EACH).map(|number| PUSHERS * format!("0 {number}\n").len()).sum();
            let readers: Vec<_> =
                peers.drain(..).map(|mut peer| readers.spawn(move || peer.bytes(all))).collect();
            readers.into_iter().map(|reader| reader.join().unwrap()).collect()
        });
        for other in &seen[1..] {
            assert!(*other == seen[0], "not the same order");
        }
        for pusher in 0..PUSHERS {
            let expected: Vec<String> = (0..EACH).map(|number| format!("{pusher} {number}")).collect();
            let text = String::from_utf8(seen[0].clone()).unwrap();
            let own: Vec<&str> =
                text.lines().filter(|line| line.starts_with(&format!("{pusher} "))).collect();
            assert_eq!(own, expected);
        }
    });
    let handle = server.handle();
    eventually("all are gone", || handle.stats().connections == 0);
    let stats = handle.stats();
    assert_eq!((stats.pushed_total, stats.replies_total), ((20 * PUSHERS * EACH) as u64, 0));
    assert_adds_up(&stats);
    eventually("they are out of the group", || group.lock().unwrap().is_empty());
}

#[test]
fn a_peer_that_does_not_read_makes_the_call_say_so_and_nobody_else_suffers() {
    let (server, group) = room(|config| config.write_timeout = None);
    let mut lazy = Peer::with_small_buffer(server.local_addr(), 4 << 10);
    lazy.expect(b"in\n");
    let mut polite = Peer::connect(server.local_addr());
    polite.expect(b"in\n");
    let mut sent = 0_u64;
    let refused = loop {
        let refused = group.lock().unwrap().push(&[b'm'; 1000][..]);
        sent += 1;
        polite.expect(&[b'm'; 1000]);
        if !refused.is_empty() {
            break refused;
        }
        assert!(sent < 100_000, "it is never full");
    };
    assert!(matches!(refused[..], [(_, PushError::Full)]), "{refused:?}");
    let held = server.handle().stats().held_bytes;
    assert!(held < 200 << 10, "{held}");
    // It reads again, and has all that was taken.
    lazy.expect(&vec![b'm'; 1000 * (usize::try_from(sent).unwrap() - 1)]);
    let pusher = group.lock().unwrap().remove(refused[0].0).unwrap();
    eventually("it is taken again", || pusher.push(&b"!"[..]).is_ok());
    lazy.expect(b"!");
    group.lock().unwrap().insert(pusher);
}

#[test]
fn who_is_pushed_to_is_not_idle() {
    const IDLE: Duration = Duration::from_millis(300);
    let (server, group) = room(|config| config.idle_timeout = Some(IDLE));
    let mut peer = TcpStream::connect(server.local_addr()).unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    peer.read_exact(&mut [0; 3]).unwrap();
    let begun = Instant::now();
    let mut active = begun;
    let is_open = loop {
        let pushed = Instant::now();
        group.lock().unwrap().push(&b"m"[..]);
        // However long this thread stood still, idle is who has had nothing for so long.
        match peer.read(&mut [0]).unwrap() {
            0 => break false,
            _ => active = pushed,
        }
        if begun.elapsed() > 2 * IDLE {
            break true;
        }
    };
    assert!(!is_open || peer.read(&mut [0]).unwrap() == 0, "it is idle now");
    assert!(active.elapsed() >= IDLE, "{:?} after {:?}", active.elapsed(), begun.elapsed());
    let handle = server.handle();
    eventually("it is counted", || handle.stats().connections_closed_total.idle_timeout == 1);
}

/// Hands out its pusher, and for `hold` keeps the loop busy then until it is told to go on; or pushes from there until it cannot.
fn pushers_and_a_loop_that_can_be_held() -> (Server, Receiver<Pusher>, Sender<()>, Receiver<PushError>) {
    struct Held(Mutex<Sender<Pusher>>, Mutex<Receiver<()>>, Mutex<Sender<PushError>>);
    impl Handler for Held {
        fn classify(&self, _: &[u8]) -> Kind {
            Kind::Inline
        }

        fn handle(&self, request: &Request<'_>, _: &mut Reply<'_>) {
            let pusher = request.connection().pusher();
            match request.line() {
                b"hold" => {
                    self.0.lock().unwrap().send(pusher).unwrap();
                    self.1.lock().unwrap().recv_timeout(DEADLINE).unwrap();
                }
                b"push" => {
                    let refused = iter::repeat_with(|| pusher.blocking_push(&b"x"[..])).find_map(Result::err);
                    self.2.lock().unwrap().send(refused.unwrap()).unwrap();
                }
                _ => self.0.lock().unwrap().send(pusher).unwrap(),
            }
        }
    }
    let ((pusher, pushers), (go_on, told), (refusal, refused)) = (channel(), channel(), channel());
    let held = Held(Mutex::new(pusher), Mutex::new(told), Mutex::new(refusal));
    (configure(held, |config| config.high_watermark_bytes = 10_000), pushers, go_on, refused)
}

#[test]
fn a_loop_that_is_behind_is_not_taken_for_a_peer_that_does_not_read() {
    let (server, pushers, go_on, _refused) = pushers_and_a_loop_that_can_be_held();
    let mut peers = [(); 2].map(|()| Peer::connect(server.local_addr()));
    let mut group = Group::new();
    for peer in &mut peers {
        peer.send(b"x\n");
        group.insert(pushers.recv_timeout(DEADLINE).unwrap());
    }
    let mut holder = Peer::connect(server.local_addr());
    holder.send(b"hold\n");
    // Which it says from there.
    drop(pushers.recv_timeout(DEADLINE).unwrap());
    let refused = iter::repeat_with(|| group.push(&[b'm'; 1000][..])).find(|refused| !refused.is_empty());
    let reasons: Vec<_> = refused.unwrap().into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, [PushError::Busy; 2]);
    thread::scope(|scope| {
        let (begin, begun) = channel();
        let group = &group;
        let pushing = scope.spawn(move || {
            begin.send(()).unwrap();
            group.blocking_push(&[b'n'; 1000][..])
        });
        begun.recv_timeout(DEADLINE).unwrap();
        go_on.send(()).unwrap();
        assert_eq!(pushing.join().unwrap(), []);
    });
    for peer in &mut peers {
        peer.expect(&[[b'm'; 1000].repeat(10), [b'n'; 1000].to_vec()].concat());
    }
}

#[test]
fn the_loop_does_not_wait_for_itself() {
    let (server, _pushers, _go_on, refused) = pushers_and_a_loop_that_can_be_held();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"push\n");
    assert_eq!(refused.recv_timeout(DEADLINE), Ok(PushError::Busy));
    peer.expect(&[b'x'; 10_000]);
}

#[test]
fn who_has_gone_is_gone() {
    let (sender, pushers) = channel::<Pusher>();
    let sender = Mutex::new(sender);
    let server = embed(move |request: &Request<'_>, _: &mut Reply<'_>| {
        sender.lock().unwrap().send(request.connection().pusher()).unwrap();
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    let pusher = pushers.recv_timeout(DEADLINE).unwrap();
    pusher.push(&b"hi\n"[..]).unwrap();
    peer.expect(b"hi\n");
    drop(peer);
    eventually("it is known to be gone", || !pusher.is_open());
    assert_eq!(pusher.push(&b"hi\n"[..]), Err(PushError::Gone));
    pusher.close();
    // Another one in its place is not taken for it.
    let mut next = Peer::connect(server.local_addr());
    next.send(b"x\n");
    let its = pushers.recv_timeout(DEADLINE).unwrap();
    assert_eq!(pusher.push(&b"hi\n"[..]), Err(PushError::Gone));
    its.push(&b"you\n"[..]).unwrap();
    next.expect(b"you\n");
    server.handle().stop();
    next.expect_end();
    server.wait().unwrap();
    assert_eq!(its.push(&b"hi\n"[..]), Err(PushError::Gone));
}

#[test]
fn whoever_pushes_may_close_behind_it() {
    let (sender, pushers) = channel::<Pusher>();
    let sender = Mutex::new(sender);
    let server = embed(move |request: &Request<'_>, reply: &mut Reply<'_>| {
        sender.lock().unwrap().send(request.connection().pusher()).unwrap();
        reply.push(b"yes\n");
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect(b"yes\n");
    let pusher = pushers.recv_timeout(DEADLINE).unwrap();
    pusher.push(&b"last\n"[..]).unwrap();
    pusher.close();
    // Nothing comes behind it, whether it is still taken or not.
    pusher.push(&b"never\n"[..]).unwrap_or_default();
    peer.expect_rest(b"last\n");
    let handle = server.handle();
    eventually("it is gone", || handle.stats().connections_closed_total.handler == 1);
}

#[test]
fn a_stop_lets_what_was_received_reach_everybody_first() {
    /// Each line goes to everybody.
    struct Chat(Arc<Mutex<Group>>, AtomicUsize);
    impl Service for Chat {
        type State = ();
        type Worker = ();
        fn start_worker(&self) {}
        fn open(&self, _: &mut (), connection: &Connection<'_>, reply: &mut Reply<'_>) {
            reply.push(b"in\n");
            self.0.lock().unwrap().insert(connection.pusher());
        }
        fn handle(&self, _: &mut (), _: &mut (), request: &Request<'_>, _: &mut Reply<'_>) {
            // The last ones come when most have nothing more to do.
            thread::sleep(Duration::from_millis(5));
            self.1.fetch_add(1, SeqCst);
            self.0.lock().unwrap().push(&[request.line(), b"\n"].concat()[..]);
        }
    }
    let chat = Arc::new(Chat(Arc::default(), AtomicUsize::new(0)));
    let two = |config: &mut tidemill::Config| (config.min_threads, config.max_threads) = (2, 2);
    let said = Arc::clone(&chat);
    expect_all_to_have_all(configure(chat, two), b"", || said.1.load(SeqCst));

    // The same without anything of a connection's own.
    let (group, count) = (Mutex::<Group>::default(), Arc::<AtomicUsize>::default());
    let said = Arc::clone(&count);
    let chat = move |request: &Request<'_>, reply: &mut Reply<'_>| {
        if request.line() == b"in" {
            group.lock().unwrap().insert(request.connection().pusher());
            return reply.push(b"in\n");
        }
        thread::sleep(Duration::from_millis(5));
        count.fetch_add(1, SeqCst);
        group.lock().unwrap().push(&[request.line(), b"\n"].concat()[..]);
    };
    expect_all_to_have_all(configure(chat, two), b"in\n", || said.load(SeqCst));
}

#[test]
fn what_a_service_pushes_as_a_stop_begins_is_the_last_that_who_is_idle_hears() {
    struct Polite(Room);
    impl Service for Polite {
        type State = ();
        type Worker = ();
        fn start_worker(&self) {}
        fn open(&self, state: &mut (), connection: &Connection<'_>, reply: &mut Reply<'_>) {
            self.0.open(state, connection, reply);
        }
        fn handle(&self, _: &mut (), _: &mut (), _: &Request<'_>, _: &mut Reply<'_>) {}
        fn stopping(&self) {
            assert!(self.0.0.lock().unwrap().push(&b"bye\n"[..]).is_empty());
        }
    }
    let server = embed(Polite(Room(Arc::default())));
    let mut peers = [(); 3].map(|()| Peer::connect(server.local_addr()));
    for (peer, said) in peers.iter_mut().zip([&b""[..], b"half a line", b"a line\n"]) {
        peer.expect(b"in\n");
        peer.send(said);
    }
    server.handle().stop();
    for peer in &mut peers {
        peer.expect_rest(b"bye\n");
    }
    assert!(server.wait().unwrap().is_clean());
}

/// Eight peers that begin with `first` say something, and the server is stopped.
fn expect_all_to_have_all(server: Server, first: &[u8], said: impl Fn() -> usize) {
    let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        peer.send(first);
        peer.expect(b"in\n");
    }
    for peer in &mut peers {
        peer.send(&b"hello\n".repeat(5));
    }
    server.handle().stop();
    let seen: Vec<Vec<u8>> = peers.into_iter().map(|mut peer| peer.rest()).collect();
    assert!(server.wait().unwrap().is_clean());
    assert_eq!(said(), 40);
    for bytes in seen {
        assert_eq!(bytes.len(), said() * b"hello\n".len(), "a member did not get all");
    }
}

#[test]
fn a_message_reaches_hundreds() {
    const MEMBERS: usize = 200;
    let (server, group) = room(|config| config.max_connections = MEMBERS + 10);
    let mut peers: Vec<Peer> = (0..MEMBERS).map(|_| Peer::connect(server.local_addr())).collect();
    peers.iter_mut().for_each(|peer| peer.expect(b"in\n"));
    for _ in 0..3 {
        assert!(group.lock().unwrap().push(&b"all\n"[..]).is_empty());
    }
    peers.iter_mut().for_each(|peer| peer.expect(b"all\nall\nall\n"));
    // Counted at the end of the turn in which the last of them was written.
    eventually("all are counted", || server.handle().stats().pushed_total == 3 * MEMBERS as u64);
}

#[test]
fn who_leaves_hears_what_its_own_close_pushes_however_many_others_do() {
    struct Hall(Mutex<Group>);
    impl Service for Hall {
        type State = ();
        type Worker = ();
        fn start_worker(&self) {}
        fn open(&self, _: &mut (), connection: &Connection<'_>, reply: &mut Reply<'_>) {
            self.0.lock().unwrap().insert(connection.pusher());
            reply.push(b"in\n");
        }
        fn handle(&self, _: &mut (), _: &mut (), _: &Request<'_>, _: &mut Reply<'_>) {}
        fn close(&self, _: (), _: &mut (), connection: &Connection<'_>, _: CloseReason) {
            let mut members = self.0.lock().unwrap();
            members.push(&b"one has left\n"[..]);
            members.remove(connection.id());
        }
        fn place(&self) -> Place {
            Place::Loop
        }
    }
    // Both ends of each connection are of this process.
    allow_files(4000);
    let server = embed(Hall(Mutex::default()));
    let enter = || {
        let mut peer = Peer::connect(server.local_addr());
        peer.expect(b"in\n");
        peer
    };
    // More than the event loop writes to in a turn, and who leaves is the last of them.
    let _others: Vec<Peer> = (0..700).map(|_| enter()).collect();
    let mut last = enter();
    last.finish();
    last.expect(b"one has left\n");
    last.expect_end();
    server.handle().stop();
    server.wait().unwrap();
}

//! Sockets that a server was given, or that go from one server to the next: their doors are never shut.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use tidemill::{Address, Error, Handler, Helo, Kind, Listener, Reply, Request, Server};

use crate::support::{DEADLINE, Gate, Peer, SetAtEnd, echo, embed, eventually, scratch};

/// What a connection that was just accepted is given for its first line.
const FIRST_LINE: Duration = Duration::from_millis(50);

/// The reply over a Unix socket to a line that was sent at once.
fn asked_over(path: &Path) -> String {
    asked_quickly(path, Duration::MAX).unwrap()
}

/// The same. `None`: the line was sent later after the connection than that.
fn asked_quickly(path: &Path, limit: Duration) -> Option<String> {
    let begun = Instant::now();
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"HELO x\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    if begun.elapsed() >= limit {
        return None;
    }
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    Some(reply)
}

const UNIX_REPLY: &str = "HELO x\nIP:unix\nPort:0\nStudentID:16336617\n";

#[test]
fn what_was_given_is_served_and_its_door_stays_open_when_the_server_stops() {
    let path = scratch("given").join("socket");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    let address = tcp.local_addr().unwrap();
    for _ in 0..2 {
        let server = Server::builder(Helo::new())
            .listener(tcp.try_clone().unwrap())
            .listener(OwnedFd::from(unix.try_clone().unwrap()))
            .start()
            .unwrap();
        let handle = server.handle();
        let expected = [Address::Tcp(address), Address::Unix(path.clone())];
        assert_eq!(handle.local_addrs(), expected, "and not the default address");
        let mut peer = Peer::connect(address);
        peer.ask("x");
        assert_eq!(asked_over(&path), UNIX_REPLY);
        handle.stop();
        peer.expect_end();
        drop(peer);
        assert!(server.wait().unwrap().is_clean());
    }
    // Whoever has them too accepts: there is no filter, nobody has shut them down, and the file is there.
    let clients =
        (TcpStream::connect_timeout(&address, DEADLINE).unwrap(), UnixStream::connect(&path).unwrap());
    tcp.set_nonblocking(false).unwrap();
    unix.set_nonblocking(false).unwrap();
    assert_eq!(tcp.accept().unwrap().1, clients.0.local_addr().unwrap());
    unix.accept().unwrap();
}

#[test]
fn a_stop_answers_who_is_in_the_queue_of_a_given_socket() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let blocks = LoopBlocker::default();
    let server = Server::builder(blocks.handler()).listener(socket).start().unwrap();
    let blocked = blocks.block(address);
    let mut peers: Vec<Peer> = (0..20).map(|_| Peer::connect(address)).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"x\n"));
    server.handle().stop();
    blocks.gate.open();
    peers.iter_mut().for_each(|peer| peer.expect_rest(b"x\n"));
    drop((peers, blocked));
    assert!(server.wait().unwrap().is_clean());
}

/// A service whose line `block` holds up the event loop until a gate is opened.
#[derive(Debug)]
struct LoopBlocker {
    gate: Gate,
    blocked: Arc<AtomicBool>,
}

impl Default for LoopBlocker {
    fn default() -> Self {
        LoopBlocker { gate: Gate::closed(), blocked: Arc::default() }
    }
}

impl LoopBlocker {
    fn handler(&self) -> impl Handler {
        struct Blocking<F>(F, Arc<AtomicBool>);
        impl<F: Fn() + Send + Sync + 'static> Handler for Blocking<F> {
            fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
                if request.line() == b"block" {
                    self.1.store(true, Relaxed);
                    (self.0)();
                }
                echo(request, reply);
            }

            fn classify(&self, line: &[u8]) -> Kind {
                if line == b"block" { Kind::Inline } else { Kind::Request }
            }
        }
        Blocking(self.gate.entrance(), Arc::clone(&self.blocked))
    }

    /// Holds up the loop of the server at `address`.
    fn block(&self, address: SocketAddr) -> Peer {
        let mut peer = Peer::connect(address);
        peer.send(b"block\n");
        eventually("the loop is held up", || self.blocked.load(Relaxed));
        peer
    }
}

#[test]
fn what_is_no_listening_stream_socket_is_refused() {
    let not_listening = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    for socket in
        [OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap()), not_listening.into(), OwnedFd::from(file)]
    {
        let error = Server::builder(echo).listener(socket).start().unwrap_err();
        assert!(matches!(error, Error::Listener { .. }), "{error:?}");
        assert!(error.to_string().starts_with("cannot listen on a socket that was given: "), "{error}");
    }
}

#[test]
fn a_server_takes_the_place_of_another_and_nobody_is_refused() {
    let path = scratch("given").join("socket");
    let listen = |builder: tidemill::Builder| {
        builder.listen("127.0.0.1:0".parse().unwrap()).listen(Address::Unix(path.clone()))
    };
    let mut server = listen(Server::builder(Helo::new())).start().unwrap();
    let address = server.local_addr().tcp().unwrap();
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _stop = SetAtEnd(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    // Refused or reset, it panics. Without a reply, too, unless it was slower than is promised.
                    let begun = Instant::now();
                    let mut peer = Peer::connect(address);
                    peer.send(b"HELO x\n");
                    if begun.elapsed() < FIRST_LINE / 2 {
                        peer.expect_reply("x");
                        asked.fetch_add(1, Relaxed);
                    }
                    if let Some(reply) = asked_quickly(&path, FIRST_LINE / 2) {
                        assert_eq!(reply, UNIX_REPLY);
                        asked.fetch_add(1, Relaxed);
                    }
                }
            });
        }
        for turn in 1..=20 {
            eventually("clients are served", || asked.load(Relaxed) > turn * 20);
            let listeners = server.handle().listeners().unwrap();
            assert_eq!(listeners.len(), 2);
            let next = listen(Server::builder(Helo::new())).inherit(listeners).start().unwrap();
            assert_eq!(next.local_addr(), &Address::Tcp(address), "port 0 is the same one");
            assert!(server.handle().lend());
            next.handle().own();
            server.handle().stop();
            let old = std::mem::replace(&mut server, next);
            assert!(old.wait().unwrap().is_clean());
            assert!(path.exists());
        }
    });
    server.handle().stop();
    assert!(server.wait().unwrap().is_clean());
    assert!(!path.exists(), "it is removed by the last one");
    TcpStream::connect(address).unwrap_err();
}

#[test]
fn one_that_does_not_take_over_leaves_everything_as_it_was() {
    let path = scratch("given").join("socket");
    let server = Server::builder(Helo::new()).listen(Address::Unix(path.clone())).start().unwrap();
    let other = path.with_file_name("other");
    for address in [&path, &other] {
        let next = Server::builder(Helo::new()).listen(Address::Unix(address.clone()));
        let next = next.inherit(server.handle().listeners().unwrap()).start().unwrap();
        next.handle().stop();
        assert!(next.wait().unwrap().is_clean());
        assert_eq!(asked_over(&path), UNIX_REPLY);
        assert!(!other.exists(), "what it has bound itself it removes");
    }
    // One that listens elsewhere closes what it does not want once it is its own.
    let next = Server::builder(Helo::new()).listen("127.0.0.1:0".parse().unwrap());
    let next = next.inherit(server.handle().listeners().unwrap()).start().unwrap();
    assert!(server.handle().lend());
    server.handle().stop();
    assert!(server.wait().unwrap().is_clean());
    assert!(path.exists());
    next.handle().own();
    assert!(!path.exists());
    Peer::connect(next.local_addr()).ask("x");
}

#[test]
fn a_file_that_stands_in_the_place_of_the_sockets_is_nobodys() {
    let path = scratch("given").join("socket");
    let server = Server::builder(Helo::new()).listen(Address::Unix(path.clone())).start().unwrap();
    std::fs::remove_file(&path).unwrap();
    let stranger = UnixListener::bind(&path).unwrap();
    // One that does not want the socket closes it, and leaves the file alone.
    let next = Server::builder(Helo::new()).listen("127.0.0.1:0".parse().unwrap());
    let next = next.inherit(server.handle().listeners().unwrap()).start().unwrap();
    assert!(server.handle().lend());
    next.handle().own();
    UnixStream::connect(&path).unwrap();
    stranger.accept().unwrap();
    // One that does may not have the address, which is in use.
    let other = Server::builder(Helo::new()).listen(Address::Unix(path.clone()));
    let error = other.inherit(server.handle().listeners().unwrap_or_default()).start().unwrap_err();
    assert!(matches!(error, Error::Bind { .. }), "{error:?}");
    drop((server, next));
    assert!(path.exists());
}

/// As by who passes descriptors between processes without more.
#[test]
fn a_unix_socket_whose_file_is_not_said_is_taken_over_and_its_file_left_alone() {
    let path = scratch("given").join("socket");
    let server = Server::builder(Helo::new()).listen(Address::Unix(path.clone())).start().unwrap();
    let without_file = |one: Listener| {
        let (service, address) = (one.service().to_owned(), one.address().cloned());
        Listener::new(service, address, OwnedFd::from(one))
    };
    let listeners: Vec<_> = server.handle().listeners().unwrap().into_iter().map(without_file).collect();
    let next = Server::builder(Helo::new()).listen(Address::Unix(path.clone())).inherit(listeners);
    let next = next.start().unwrap();
    assert!(server.handle().lend());
    next.handle().own();
    drop(server);
    assert_eq!(asked_over(&path), UNIX_REPLY);
    next.handle().stop();
    assert!(next.wait().unwrap().is_clean());
    assert!(path.exists());
}

#[test]
fn another_service_may_take_over_the_same_address() {
    let server = Server::builder(Helo::new()).listen("127.0.0.1:0".parse().unwrap()).start().unwrap();
    Peer::connect(server.local_addr()).ask("x");
    let next = Server::builder(echo).listen("127.0.0.1:0".parse().unwrap());
    let next = next.inherit(server.handle().listeners().unwrap()).start().unwrap();
    assert_eq!(next.local_addr(), server.local_addr());
    assert!(server.handle().lend());
    next.handle().own();
    drop(server);
    let mut peer = Peer::connect(next.local_addr());
    peer.send(b"HELO x\n");
    peer.expect(b"HELO x\n");
}

#[test]
fn once_a_stop_has_begun_nothing_is_lent() {
    let gate = Gate::closed();
    let server = embed(gate.holds_all());
    let handle = server.handle();
    Peer::connect(server.local_addr()).send(b"x\n");
    eventually("it is pending", || handle.stats().requests_pending == 1);
    assert!(!handle.wait_stopping(Duration::ZERO));
    handle.stop();
    assert!(handle.wait_stopping(DEADLINE));
    assert!(!handle.lend());
    assert!(handle.listeners().unwrap().is_empty());
    gate.open();
    server.wait().unwrap();
    assert!(handle.listeners().unwrap().is_empty(), "nor when it has ended");
}

/// How a connection ends that was accepted `age` before a stop of its server, whose listeners others have, too, and that sends its
/// line then. `None`: the machine was too slow for the promise.
fn line_after_the_stop(age: Duration, lent: bool) -> Option<Vec<u8>> {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = match lent {
        true => embed(echo),
        false => Server::builder(echo).listener(socket.try_clone().unwrap()).start().unwrap(),
    };
    let begun = Instant::now();
    let mut peer = Peer::connect(server.local_addr());
    eventually("it is accepted", || server.handle().stats().connections == 1);
    let accepted = Instant::now();
    eventually("its age is reached", || accepted.elapsed() >= age);
    assert!(!lent || server.handle().lend());
    server.handle().stop();
    assert!(server.handle().wait_stopping(DEADLINE));
    // The second answer comes a turn later than the first, and so behind the beginning of the stop.
    assert!(server.handle().is_alive(DEADLINE) && server.handle().is_alive(DEADLINE));
    peer.try_send(b"x\n");
    let in_time = begun.elapsed() < FIRST_LINE * 4 / 5 || !age.is_zero();
    let came = in_time.then(|| peer.rest());
    drop(peer);
    assert!(server.wait().unwrap().is_clean());
    came
}

#[test]
fn who_was_just_accepted_is_given_time_for_its_first_line() {
    for lent in [true, false] {
        let begun = Instant::now();
        let came = loop {
            assert!(begun.elapsed() < DEADLINE, "this machine is too slow for the promise");
            if let Some(came) = line_after_the_stop(Duration::ZERO, lent) {
                break came;
            }
        };
        assert_eq!(came, b"x\n");
        let late = line_after_the_stop(FIRST_LINE * 12, lent).unwrap();
        assert_eq!(late, b"", "one that has had its time is not waited for");
    }
}

#[test]
fn a_server_is_alive_while_its_loop_turns_whatever_its_workers_do() {
    let blocks = LoopBlocker::default();
    let gate = Gate::closed();
    let server = embed(gate.holds_all());
    let mut stuck: Vec<Peer> = (0..64).map(|_| Peer::connect(server.local_addr())).collect();
    stuck.iter_mut().for_each(|peer| peer.send(b"x\n"));
    eventually("every worker is stuck", || {
        let stats = server.handle().stats();
        stats.pool_busy == stats.pool_max
    });
    assert!(server.handle().is_alive(DEADLINE));
    gate.open();
    let handle = server.handle();
    drop((stuck, server));
    assert!(!handle.is_alive(DEADLINE), "it has ended");

    let server = embed(blocks.handler());
    assert!(server.handle().is_alive(DEADLINE));
    let peer = blocks.block(server.local_addr().tcp().unwrap());
    assert!(!server.handle().is_alive(Duration::from_millis(20)), "its loop is held up");
    blocks.gate.open();
    assert!(server.handle().is_alive(DEADLINE));
    drop((peer, server));
}

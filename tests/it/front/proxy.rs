//! PROXY protocol: whose connection it is, what it may do, and what becomes of one without a header.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tidemill::{Address, CloseReason, Connection, ProxyFrom, Reply, Request, Server, Service};

use crate::support::{
    DEADLINE, Gate, Peer, assert_adds_up, configure, echo, eventually, helo_reply, scratch, serve,
};

const EXPECTED: &[u8] = b"ERROR PROXY header expected\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The line of version 1.
fn v1(from: &str, to: &str) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let family = if from.is_ipv4() { 4 } else { 6 };
    format!("PROXY TCP{family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
}

/// A header of version 2.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    [V2, &[command, family], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// That of an IPv4 client.
fn v2_of(from: &str, to: &str, records: &[u8]) -> Vec<u8> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from.parse().unwrap(), to.parse().unwrap()) else {
        panic!("only for IPv4")
    };
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    v2(0x21, 0x11, &[&from.ip().octets()[..], &to.ip().octets(), &ports, records].concat())
}

fn loopback() -> ProxyFrom {
    let mut proxies = ProxyFrom::default();
    proxies.networks.push("127.0.0.0/8".parse().unwrap());
    proxies
}

/// A server that takes its peers for proxies, and answers each line with who asks and whom.
fn who() -> Server {
    let handler = |request: &Request<'_>, reply: &mut Reply<'_>| {
        let (peer, local) = (request.peer_addr(), request.local_addr());
        reply.push(format!("{} at {peer} to {local}\n", request.line().escape_ascii()).as_bytes());
    };
    configure(handler, |config| config.proxy_from = loopback())
}

#[test]
fn a_connection_counts_as_that_of_the_client_that_its_header_names() {
    let serving = serve("--proxy-from 127.0.0.0/8");
    let (from, to) = ("203.0.113.7:4711", "198.51.100.1:443");
    for header in [v1(from, to), v2_of(from, to, b""), v2_of(from, to, &[4, 0, 1, 0])] {
        // Together with what follows, and byte by byte.
        let mut peer = serving.connect();
        peer.send(&[&header[..], b"HELO one\nHELO two\n"].concat());
        peer.expect(&[helo_reply(b"one", to), helo_reply(b"two", to)].concat());
        peer.send(b"HELO three\n");
        peer.expect(&helo_reply(b"three", to));
        let mut slow = serving.connect();
        for byte in header.iter().chain(b"HELO slow\n") {
            slow.send(&[*byte]);
        }
        slow.expect(&helo_reply(b"slow", to));
    }
    let mut six = serving.connect();
    six.send(&[&v1("[2001:db8::1]:1", "[2001:db8::2]:2")[..], b"HELO six\n"].concat());
    six.expect(&helo_reply(b"six", "[2001:db8::2]:2"));
    drop(six);
    let ended = serving.stop();
    ended.assert_clean();
    assert_eq!(ended.stats()["connections_accepted_total"], 7);
    assert_eq!(ended.stats()["requests_total"]["helo"]["request"], 13);
}

#[test]
fn handlers_see_the_client_and_one_that_is_not_named_has_no_address() {
    let server = who();
    let real = server.local_addr().to_string();
    let local = |header: Vec<u8>, expected: String| {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&[&header[..], b"x\n"].concat());
        peer.expect(expected.as_bytes());
    };
    let (from, to) = ("203.0.113.7:4711", "198.51.100.1:443");
    local(v1(from, to), format!("x at {from} to {to}\n"));
    local(v2_of(from, to, b""), format!("x at {from} to {to}\n"));
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 203.0.113.7 198.51.100.1 1 2\r\n".to_vec(),
        v2(0x20, 0x00, b""),
        v2(0x20, 0x11, &[1; 12]),
        v2(0x21, 0x00, b""),
        v2(0x21, 0x31, &[b'/'; 216]),
    ] {
        local(header, format!("x at unknown to {real}\n"));
    }
}

#[test]
fn what_is_no_good_header_is_told_so_and_no_request() {
    let server = who();
    let (from, to) = ("203.0.113.7:4711", "198.51.100.1:443");
    let mut udp = v2_of(from, to, b"");
    udp[13] = 0x12;
    let headers: Vec<Vec<u8>> = vec![
        b"x\n".to_vec(),
        b"KILL_SERVICE\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\nx\n".to_vec(),
        b"PROXY UDP4 203.0.113.7 198.51.100.1 4711 443\r\nx\n".to_vec(),
        [&udp[..], b"x\n"].concat(),
        [&v2_of(from, to, &[3, 0, 4, 1, 2, 3, 4])[..], b"x\n"].concat(),
        v2(0x20, 0, &[0; 4097]),
    ];
    let count = headers.len() as u64;
    for header in headers {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&header);
        peer.expect_rest(EXPECTED);
    }
    // Half of one, and then the end of the stream.
    let mut cut = Peer::connect(server.local_addr());
    cut.send(&v1(from, to)[..20]);
    cut.finish();
    cut.expect_rest(EXPECTED);
    // One that only looks whether somebody listens has done nothing wrong.
    drop(Peer::connect(server.local_addr()));
    let closed = || server.handle().stats().connections_closed_total.total();
    eventually("all have come and ended", || closed() == count + 2);
    let stats = server.handle().stats();
    assert_eq!(
        (stats.connections_closed_total.proxy_header, stats.connections_closed_total.eof),
        (count + 1, 1)
    );
    assert_eq!(stats.requests(), 0);
    assert_adds_up(&stats);
}

#[test]
fn a_header_of_4_kib_is_taken() {
    let server = who();
    let (from, to) = ("203.0.113.7:4711", "198.51.100.1:443");
    let padding: u16 = 4096 - 16 - 12 - 3;
    let records = [&[4][..], &padding.to_be_bytes(), &vec![0; usize::from(padding)]].concat();
    let header = v2_of(from, to, &records);
    assert_eq!(header.len(), 4096);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(&[&header[..], b"x\n"].concat());
    peer.expect(format!("x at {from} to {to}\n").as_bytes());
}

#[test]
fn a_header_is_waited_for_from_the_accept_on_and_not_for_long() {
    let server = configure(echo, |config| {
        config.proxy_from = loopback();
        config.line_timeout = Some(Duration::from_secs(1));
    });
    let mut silent = Peer::connect(server.local_addr());
    let slow = Peer::connect(server.local_addr());
    let slow = thread::spawn(move || {
        let mut slow = slow;
        // A byte now and then does not put it off.
        for byte in v2(0x20, 0, &[0; 4000]) {
            if !slow.try_send(&[byte]) || !slow.is_silent_for(Duration::from_millis(1)) {
                break;
            }
        }
        slow.rest()
    });
    let mut done = Peer::connect(server.local_addr());
    done.send(b"PROXY UNKNOWN\r\n");
    silent.expect_rest(EXPECTED);
    assert_eq!(slow.join().unwrap(), EXPECTED);
    // Whose header was there in time may be idle for as long as it likes.
    done.send(b"x\n");
    done.expect(b"x\n");
    drop((silent, done));
    let closed = || server.handle().stats().connections_closed_total.total();
    eventually("all have ended", || closed() == 3);
    let stats = server.handle().stats();
    assert_eq!((stats.connections_closed_total.proxy_header, stats.connections_closed_total.eof), (2, 1));
}

#[test]
fn from_others_a_header_is_just_a_line() {
    let serving = serve("--proxy-from 192.0.2.0/24,unix");
    let mut peer = serving.connect();
    peer.send(b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\r\n");
    peer.ask("x");
    drop(peer);
    assert_eq!(serving.stop().stats()["requests_total"]["helo"]["ignored"], 1);
}

#[test]
fn a_unix_socket_is_a_proxys_where_the_list_says_so() {
    let path = scratch("proxy").join("socket");
    let serving = serve(&format!("--proxy-from unix --kill-from 203.0.113.0/24 --unix {}", path.display()));
    // TCP has no header here.
    serving.connect().ask("x");
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let to = "198.51.100.1:443";
    client.write_all(&[&v1("203.0.113.7:4711", to)[..], b"HELO x\nKILL_SERVICE\n"].concat()).unwrap();
    let mut read = Vec::new();
    client.read_to_end(&mut read).unwrap();
    assert_eq!(read, helo_reply(b"x", to));
    drop(client);
    serving.wait().assert_clean();
}

#[test]
fn the_service_is_stopped_by_whom_the_header_names_and_by_nobody_only_under_any() {
    let (one, other, to) = ("203.0.113.7:1", "203.0.114.7:1", "198.51.100.1:443");
    let everywhere = "0.0.0.0/0,::/0";
    let unknown = || b"PROXY UNKNOWN\r\n".to_vec();
    for (kill_from, header, stops) in [
        ("203.0.113.0/24", v1(one, to), true),
        ("203.0.113.0/24", v2_of(other, to, b""), false),
        // The proxy's own address is in it, which is of no account.
        ("loopback", v2_of(one, to, b""), false),
        ("loopback", v1("127.0.0.1:1", to), true),
        ("any", unknown(), true),
        ("any", v2(0x20, 0, b""), true),
        ("loopback", unknown(), false),
        (everywhere, unknown(), false),
        (everywhere, v2(0x20, 0, b""), false),
        (everywhere, v2(0x21, 0x31, &[b'/'; 216]), false),
    ] {
        let serving = serve(&format!("--proxy-from 127.0.0.1 --kill-from {kill_from}"));
        let mut peer = serving.connect();
        peer.send(&[&header[..], b"KILL_SERVICE\n"].concat());
        match stops {
            true => peer.expect_end(),
            false => peer.expect_rest(b"ERROR KILL_SERVICE refused\n"),
        }
        drop(peer);
        if !stops {
            serving.signal(Signal::TERM);
        }
        let ended = serving.wait();
        ended.assert_clean();
        let told = ended.stderr.contains("stop requested by a peer");
        assert_eq!(told, stops, "{kill_from}: {}", header.escape_ascii());
    }
}

#[test]
fn a_stop_right_behind_the_header_is_obeyed_though_every_worker_is_stuck() {
    let gate = Gate::closed();
    struct Stops<H>(H);
    impl<H: Fn(&Request<'_>, &mut Reply<'_>) + Send + Sync + 'static> tidemill::Handler for Stops<H> {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            (self.0)(request, reply);
        }

        fn stop_line(&self) -> Option<&[u8]> {
            Some(b"stop")
        }
    }
    let server = configure(Stops(gate.holds_all()), |config| {
        (config.proxy_from, config.max_pending) = (loopback(), 1);
        config.stop_from = tidemill::StopFrom::Any;
    });
    let mut stuck = Peer::connect(server.local_addr());
    stuck.send(b"PROXY UNKNOWN\r\nstuck\n");
    eventually("it is pending", || server.handle().stats().requests_pending == 1);
    let mut stops = Peer::connect(server.local_addr());
    stops.send(b"PROXY UNKNOWN\r\nbefore\nstop\n");
    eventually("it is obeyed", || server.handle().is_stopping());
    gate.open();
    stuck.expect_rest(b"stuck\n");
    stops.expect_rest(b"before\n");
    drop((stuck, stops));
    assert!(server.wait().unwrap().is_clean());
}

#[test]
fn connections_are_counted_by_the_client_behind_the_proxy() {
    let server = configure(echo, |config| {
        (config.proxy_from, config.max_connections_per_peer) = (loopback(), Some(2));
    });
    let handle = server.handle();
    let of = |ip: &str| {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(&[&v1(&format!("{ip}:1"), "198.51.100.1:443")[..], b"x\n"].concat());
        peer
    };
    let mut kept = Vec::new();
    for ip in ["203.0.113.1", "203.0.113.1", "203.0.113.2", "203.0.113.2"] {
        let mut peer = of(ip);
        peer.expect(b"x\n");
        kept.push(peer);
    }
    // More than can be told at a time: each is told all the same, as all read.
    for _ in 0..300 {
        of("203.0.113.1").expect_rest(b"ERROR too many connections from your address (limit 2)\n");
    }
    // Those whose client is not known count as nobody's.
    for _ in 0..5 {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(b"PROXY UNKNOWN\r\nx\n");
        peer.expect(b"x\n");
        kept.push(peer);
    }
    let stats = handle.stats();
    assert_eq!((stats.connections, stats.connections_rejected_total.peer_full), (9, 300));
    assert_adds_up(&stats);
    drop(kept);
    eventually("all have left", || handle.stats().connections == 0);
    of("203.0.113.1").expect(b"x\n");
    assert_adds_up(&handle.stats());
}

/// Greets with who has come, and notes who has gone.
struct Greets(Arc<Mutex<Vec<(String, CloseReason)>>>);

impl Service for Greets {
    type State = ();
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), connection: &Connection<'_>, reply: &mut Reply<'_>) {
        reply.push(format!("hello {}\n", connection.peer_addr()).as_bytes());
    }

    fn handle(&self, _: &mut (), _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        echo(request, reply);
    }

    fn close(&self, _: (), _: &mut (), connection: &Connection<'_>, reason: CloseReason) {
        self.0.lock().unwrap().push((connection.peer_addr().to_string(), reason));
    }
}

#[test]
fn a_session_opens_for_the_client_once_it_is_known_and_not_before() {
    let gone: Arc<Mutex<Vec<_>>> = Arc::default();
    let server = configure(Greets(Arc::clone(&gone)), |config| config.proxy_from = loopback());
    let mut named = Peer::connect(server.local_addr());
    named.send(&[&v1("203.0.113.7:1", "198.51.100.1:443")[..], b"a\nb\n"].concat());
    named.expect(b"hello 203.0.113.7:1\na\nb\n");
    let mut bad = Peer::connect(server.local_addr());
    bad.send(b"x\n");
    bad.expect_rest(EXPECTED);
    named.finish();
    named.expect_end();
    drop((named, bad));
    eventually("it has ended", || server.handle().stats().connections_closed_total.proxy_header == 1);
    drop(server);
    let expected = [(Address::from(([203, 0, 113, 7], 1)).to_string(), CloseReason::Eof)];
    assert_eq!(*gone.lock().unwrap(), expected);
}

#[test]
fn a_stop_answers_what_had_arrived_behind_its_header_and_lets_go_who_had_sent_none() {
    let serving = serve("--proxy-from loopback");
    let (from, to) = ("203.0.113.7:4711", "198.51.100.1:443");
    let mut silent: Vec<Peer> = (0..5).map(|_| serving.connect()).collect();
    let mut half = serving.connect();
    half.send(&v1(from, to)[..20]);
    eventually("they are known", || serving.stats()["connections"] == 6);
    serving.freeze();
    let mut queued: Vec<Peer> = (0..20).map(|_| serving.connect()).collect();
    for peer in &mut queued {
        peer.send(&[&v2_of(from, to, b"")[..], b"HELO queued\n"].concat());
    }
    half.send(&[&v1(from, to)[20..], b"HELO half\n"].concat());
    serving.signal(Signal::TERM);
    serving.resume();
    queued.iter_mut().for_each(|peer| peer.expect_rest(&helo_reply(b"queued", to)));
    half.expect_rest(&helo_reply(b"half", to));
    silent.iter_mut().for_each(Peer::expect_end);
    drop((queued, half, silent));
    let ended = serving.wait();
    ended.assert_clean();
    assert_eq!(ended.stats()["connections_closed_total"]["proxy_header"], 0);
}

//! Several services in one server: each with listeners and limits of its own, one pool, statistics by service.

use std::io::Write;
use std::iter;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tidemill::framing::{Endian, Framing, LengthPrefixed};
use tidemill::{Config, Handler, Helo, Kind, Reply, Request, Server, ServiceConfig};

use crate::support::{Peer, assert_adds_up, echo, eventually, helo_reply, in_parallel};

/// Frames behind a length of one byte, answered in kind.
struct Framed(LengthPrefixed);

impl Handler for Framed {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        reply.push(&[u8::try_from(request.frame().len()).unwrap()]);
        reply.push(request.frame());
    }

    fn framing(&self) -> Option<&dyn Framing> {
        Some(&self.0)
    }

    fn name(&self) -> &str {
        "framed"
    }
}

#[test]
fn a_further_service_is_given_a_socket_of_its_own() {
    let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [first, second, third] = [0, 1, 2].map(|at| sockets[at].local_addr().unwrap());
    let [for_first, for_second, for_third] = sockets;
    let framed = Framed(LengthPrefixed::new(1, Endian::Big, 255));
    let server = Server::builder(Helo::new())
        .service(framed, ServiceConfig::default())
        .service_listener(for_second)
        .service(echo, ServiceConfig::default())
        .service_listener(for_third)
        .listener(for_first)
        .start()
        .unwrap();
    assert_eq!(server.handle().local_addrs().len(), 3);
    Peer::connect(first).ask("x");
    assert_eq!(Peer::connect(second).exchange(b"\x02\n\n"), b"\x02\n\n");
    assert_eq!(Peer::connect(third).exchange(b"a\n"), b"a\n");
    let handle = server.handle();
    eventually("all are gone", || handle.stats().connections == 0);
    assert_adds_up(&handle.stats());
}

fn at_any_port() -> ServiceConfig {
    ServiceConfig::at("127.0.0.1:0".parse().unwrap())
}

#[test]
fn each_speaks_its_own_and_is_counted_by_its_name() {
    let framed = Framed(LengthPrefixed::new(1, Endian::Big, 255));
    let server = Server::builder(Helo::new())
        .listen("127.0.0.1:0".parse().unwrap())
        .service(framed, at_any_port())
        .service(echo, at_any_port())
        .start()
        .unwrap();
    let handle = server.handle();
    let [helo, framed, lines] = handle.local_addrs() else { panic!("three listeners") };
    in_parallel(9, |peer| match peer % 3 {
        0 => {
            let mut peer = Peer::connect(helo);
            (0..100).for_each(|_| peer.ask("x"));
        }
        1 => assert_eq!(
            Peer::connect(framed).exchange(&b"\x02\n\n\x00".repeat(50)),
            b"\x02\n\n\x00".repeat(50)
        ),
        _ => assert_eq!(Peer::connect(lines).exchange(&b"a\r\nHELO\n".repeat(50)), b"a\nHELO\n".repeat(50)),
    });
    eventually("all are gone", || handle.stats().connections == 0);
    let stats = handle.stats();
    assert_adds_up(&stats);
    let counted: Vec<(&str, u64)> =
        stats.requests_total.iter().map(|(name, requests)| (name.as_str(), requests.request)).collect();
    assert_eq!(counted, [("framed", 300), ("helo", 300), ("service", 300)]);
}

#[test]
fn the_limits_of_one_are_not_those_of_another() {
    let mut config = at_any_port();
    config.max_connections = 1;
    config.max_line_bytes = 3;
    config.idle_timeout = Some(Duration::from_millis(50));
    let server = Server::builder(Helo::new())
        .listen("127.0.0.1:0".parse().unwrap())
        .service(echo, config)
        .start()
        .unwrap();
    let handle = server.handle();
    let [helo, small] = handle.local_addrs() else { panic!("two listeners") };
    let mut first = Peer::connect(helo);
    first.ask("a long line");
    let mut one = Peer::connect(small);
    one.send(b"abc\n");
    one.expect(b"abc\n");
    Peer::connect(small).expect_rest(b"ERROR server full (limit 1 connections)\n");
    Peer::connect(helo).ask("there is room here");
    one.expect_end();
    drop(one);
    eventually("its place is free", || handle.stats().connections_closed_total.idle_timeout == 1);
    let mut two = Peer::connect(small);
    two.send(b"abcd");
    two.expect_rest(b"ERROR line too long (limit 3 bytes)\n");
    assert_eq!(first.exchange(b"HELO x\n"), helo_reply(b"x", helo));
    assert_adds_up(&handle.stats());
}

#[test]
fn a_bad_setting_of_any_is_refused_by_name() {
    let mut config = at_any_port();
    config.max_line_bytes = 0;
    let error = Server::builder(Helo::new()).service(echo, config).start().unwrap_err();
    assert_eq!(error.to_string(), "max_line_bytes is 0, but must be 1 to 67108864");
}

/// Answers each line with so many bytes, on the event loop, and counts them.
struct Long(Arc<AtomicUsize>);

impl Handler for Long {
    fn handle(&self, _: &Request<'_>, reply: &mut Reply<'_>) {
        self.0.fetch_add(1, SeqCst);
        reply.push(&[b'x'; 1000]);
    }

    fn classify(&self, _: &[u8]) -> Kind {
        Kind::Inline
    }
}

#[test]
fn each_has_a_watermark_of_its_own() {
    let [small, large] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let mut config = at_any_port();
    config.high_watermark_bytes = 1 << 30;
    let server = Server::builder(Long(Arc::clone(&small)))
        .listen("127.0.0.1:0".parse().unwrap())
        .service(Long(Arc::clone(&large)), config)
        .start()
        .unwrap();
    let handle = server.handle();
    let mut peers = [0, 1].map(|at| Peer::with_small_buffer(&handle.local_addrs()[at], 4 << 10));
    for peer in &mut peers {
        peer.send(&b"\n".repeat(20_000));
    }
    // What the system holds for a peer is a few megabytes at the most.
    eventually("all are handled for who may leave it unread", || large.load(SeqCst) == 20_000);
    eventually("the other is paused", || handle.stats().held_bytes > 32 << 10);
    assert!(small.load(SeqCst) < 10_000, "{}", small.load(SeqCst));
    for peer in &mut peers {
        peer.finish();
        assert_eq!(peer.rest().len(), 20_000_000);
    }
}

#[test]
fn what_may_be_on_its_way_to_a_connection_is_its_services_watermark() {
    /// Pushes to its own connection, from the loop, until no more is taken, and says how often that was.
    struct Pushes;

    impl Handler for Pushes {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            let pusher = request.connection().pusher();
            let taken = iter::repeat_with(|| pusher.push(&b"x"[..])).take_while(Result::is_ok).count();
            writeln!(reply, "{taken}").unwrap();
        }

        fn classify(&self, _: &[u8]) -> Kind {
            Kind::Inline
        }
    }

    let (mut first, mut config) = (Config::default(), at_any_port());
    first.listen = vec!["127.0.0.1:0".parse().unwrap()];
    first.high_watermark_bytes = 200;
    config.high_watermark_bytes = 100;
    let server = Server::builder(Pushes).config(first).service(Pushes, config).start().unwrap();
    for (address, most) in server.handle().local_addrs().iter().zip([200, 100]) {
        let mut peer = Peer::connect(address);
        peer.send(b"\n");
        peer.expect(format!("{}{most}\n", "x".repeat(most)).as_bytes());
    }
}

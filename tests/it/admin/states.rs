//! What the server is doing makes no difference to the admin address: stuck, full, draining. And it makes none to the server.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tidemill::{Helo, Server, ServerState};

use super::{admin_of, admin_of_program, connect, get, read_answer, try_get};
use crate::support::{Gate, Peer, configure, eventually, resolved, serve};

/// Each worker is stuck, 500 requests wait, and `max_pending` is reached: the address answers as it does at rest.
#[test]
fn it_answers_at_once_while_every_worker_is_stuck_and_requests_queue() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| {
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        (config.min_threads, config.max_threads) = (2, 4);
        config.max_pending = 300;
    });
    let (address, admin) = (resolved(server.local_addr()), admin_of(&server));
    let mut peers: Vec<Peer> = (0..500).map(|_| Peer::connect(address)).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"x\n"));
    eventually("all workers are stuck, and there is no room", || {
        let stats = server.handle().stats();
        stats.pool_busy == 4 && stats.requests_pending == 300
    });
    let mut stream = connect(admin);
    let mut rest = Vec::new();
    let mut fastest = Duration::MAX;
    // The fastest of some: the machine may have other work at any one of them.
    for path in ["/metrics", "/stats.json", "/connections.json?top=100", "/healthz", "/readyz"].repeat(4) {
        let asked_at = Instant::now();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        let answer = read_answer(&mut stream, &mut rest, true).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        if path.starts_with("/stats") || path.starts_with("/metrics") {
            fastest = fastest.min(asked_at.elapsed());
        }
    }
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    let stats = get(admin, "/stats.json").json();
    assert_eq!((&stats["pool_busy"], &stats["requests_pending"]), (&4.into(), &300.into()), "{stats}");
    assert_eq!(stats["pool_waiting"], 296, "{stats}");
    eventually("the handlers are told of as stuck, with their peers", || {
        let stats = get(admin, "/stats.json").json();
        let rows = stats["stuck"].as_array().unwrap();
        let is_right = |row: &serde_json::Value| {
            let peer: std::net::SocketAddr = row["peer"].as_str().unwrap().parse().unwrap();
            peers.iter().any(|known| known.local() == peer)
                && row["age_seconds"].as_f64().unwrap() >= 1.0
                && row["worker"].as_str().unwrap().starts_with("tidemill-w")
        };
        rows.len() == 4 && rows.iter().all(is_right)
    });
    gate.open();
    peers.iter_mut().for_each(|peer| peer.expect(b"x\n"));
}

/// They are in no statistics and under no common limit.
#[test]
fn its_connections_are_no_clients() {
    let server = configure(Helo::new(), |config| {
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        config.max_connections = 1;
    });
    let admin = admin_of(&server);
    let mut peer = Peer::connect(resolved(server.local_addr()));
    peer.ask("x");
    let before = get(admin, "/stats.json").json();
    let others: Vec<_> = (0..10).map(|_| connect(admin)).collect();
    for path in ["/metrics", "/stats.json", "/connections.json", "/nothing"].repeat(20) {
        get(admin, path);
    }
    peer.ask("y");
    let stats = get(admin, "/stats.json").json();
    for name in [
        "connections",
        "connections_accepted_total",
        "connections_closed_total",
        "connections_rejected_total",
        "held_bytes",
    ] {
        assert_eq!(stats[name], before[name], "{name}");
    }
    for name in ["replies_total", "requests_pending", "requests_dropped_total", "requests_silent_total"] {
        assert_eq!(stats[name], if name == "replies_total" { 2 } else { 0 }, "{name} in {stats}");
    }
    let number = |stats: &serde_json::Value, name: &str| stats[name].as_u64().unwrap();
    assert_eq!(number(&stats, "read_bytes_total"), 2 * "HELO x\n".len() as u64);
    assert_eq!(number(&stats, "written_bytes_total"), 2 * number(&before, "written_bytes_total"));
    assert_eq!(
        (&stats["service_seconds"]["count"], &stats["queue_wait_seconds"]["count"]),
        (&2.into(), &2.into())
    );
    assert_eq!(
        stats["requests_total"],
        serde_json::json!({ "helo": { "request": 2, "stop": 0, "ignored": 0 } })
    );
    drop(others);
    // None of them is left behind as one that a stop would have to wait for.
    let _silent = connect(admin);
    peer.finish();
    server.handle().stop();
    assert!(server.wait().unwrap().is_clean());
}

#[test]
fn it_answers_while_the_server_drains_and_says_that_no_more_clients_should_come() {
    let serving = serve("--admin 0 --handler-delay 1s --drain-timeout 20s --min-threads 1 --max-threads 1");
    let admin = admin_of_program(&serving);
    let mut kept = connect(admin);
    let mut peer = serving.connect();
    peer.send(b"HELO a\nHELO b\nHELO c\n");
    eventually("the requests are there", || get(admin, "/stats.json").json()["requests_pending"] == 3);
    assert_eq!(get(admin, "/readyz").status, 200);
    serving.signal(Signal::TERM);
    // On a connection from before as well as on new ones, until the end.
    kept.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut kept, &mut Vec::new(), true).unwrap().status, 200);
    let mut drained = 0;
    eventually("it is not ready, with the reason", || {
        let Some(answer) = try_get(admin, "/readyz") else { return true };
        if answer.status == 503 {
            assert!(answer.body.starts_with("draining"), "{answer:?}");
            drained += 1;
        }
        drained == 3
    });
    assert_eq!(drained, 3);
    // The listeners of clients are closed by now; this one is not.
    eventually("clients are refused", || {
        let connected = TcpStream::connect_timeout(&serving.address, Duration::from_millis(50));
        connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    let stats = get(admin, "/stats.json").json();
    assert_eq!((&stats["state"], &stats["ready"]), (&"draining".into(), &false.into()), "{stats}");
    assert!(stats["reason"].as_str().unwrap().starts_with("draining"), "{stats}");
    assert!(get(admin, "/metrics").body.contains("\ntidemill_ready 0\n"));
    for text in ["a", "b", "c"] {
        peer.expect_reply(text);
    }
    peer.finish();
    let ended = serving.wait();
    ended.assert_clean();
    assert!(try_get(admin, "/healthz").is_none(), "nobody is there any more");
}

#[test]
fn during_the_delay_before_a_drain_it_is_not_ready() {
    let serving = serve("--admin 0 --drain-delay 60s");
    let admin = admin_of_program(&serving);
    serving.signal(Signal::TERM);
    eventually("it is not ready", || get(admin, "/readyz").status == 503);
    assert!(get(admin, "/readyz").body.starts_with("delaying"));
    assert_eq!(get(admin, "/stats.json").json()["state"], "delaying");
    serving.connect().ask("it serves all the same");
    serving.stop().assert_clean();
}

/// A stop waits for no connection of the admin address, nor counts it as lost.
#[test]
fn a_stop_does_not_wait_for_it() {
    let serving = serve("--admin 0 --drain-timeout 60s");
    let admin = admin_of_program(&serving);
    let mut streams: Vec<_> = (0..10).map(|_| connect(admin)).collect();
    for stream in &mut streams {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert_eq!(read_answer(stream, &mut Vec::new(), true).unwrap().status, 200);
        stream.write_all(b"GET /metr").unwrap();
    }
    serving.stop().assert_clean();
    for mut stream in streams {
        // After five seconds it would have been told that it does not finish.
        let mut said = Vec::new();
        // A reset ends it, too.
        drop(stream.read_to_end(&mut said));
        assert_eq!(String::from_utf8_lossy(&said), "");
    }
}

#[test]
fn who_says_that_it_is_not_ready_is_heard() {
    let server = configure(Helo::new(), |config| config.admin = Some("127.0.0.1:0".parse().unwrap()));
    let (handle, admin) = (server.handle(), admin_of(&server));
    handle.set_not_ready(Some("the cache is cold".to_owned()));
    let answer = get(admin, "/readyz");
    assert_eq!((answer.status, answer.body.as_str()), (503, "the cache is cold\n"));
    assert_eq!(get(admin, "/healthz").status, 200);
    assert_eq!(get(admin, "/stats.json").json()["reason"], "the cache is cold");
    Peer::connect(resolved(server.local_addr())).ask("x");
    handle.set_not_ready(None);
    assert_eq!(get(admin, "/readyz").status, 200);
}

/// The listener goes along, and the server that is left does not answer at it any more, whatever it still has to do.
#[test]
fn after_a_hand_over_the_next_server_answers() {
    let gate = Gate::closed();
    let start = |listeners, max_threads| {
        let builder = Server::builder(gate.holds_all()).listen("127.0.0.1:0".parse().unwrap());
        let builder = builder.admin("127.0.0.1:0".parse().unwrap()).threads(1, max_threads);
        builder.inherit(listeners).start().unwrap()
    };
    let old = start(Vec::new(), 2);
    let admin = admin_of(&old);
    let mut peer = Peer::connect(old.local_addr());
    peer.send(b"x\n");
    let asks = |stream: &mut TcpStream| {
        stream.write_all(b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
        let answer = read_answer(stream, &mut Vec::new(), true)?;
        answer.json()["pool_max"].as_u64()
    };
    let mut kept = connect(admin);
    eventually("the handler is at it", || old.handle().stats().pool_busy == 1);
    assert_eq!(asks(&mut kept), Some(2));
    let next = start(old.handle().listeners().unwrap(), 3);
    assert_eq!(admin_of(&next), admin);
    assert!(old.handle().lend());
    // Whoever comes now waits until it is known whose the listeners are.
    let mut waiting = connect(admin);
    waiting.write_all(b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(asks(&mut kept), Some(2), "the old one has not stopped");
    next.handle().own();
    let answer = read_answer(&mut waiting, &mut Vec::new(), true).unwrap();
    assert_eq!(answer.json()["pool_max"], 3);
    for _ in 0..20 {
        assert_eq!(asks(&mut connect(admin)), Some(3));
    }
    old.handle().stop();
    eventually("the old one has let go", || asks(&mut kept).is_none());
    for _ in 0..20 {
        assert_eq!(asks(&mut connect(admin)), Some(3));
    }
    assert_eq!(old.handle().state(), ServerState::Draining);
    gate.open();
    peer.expect_rest(b"x\n");
    assert!(old.wait().unwrap().is_clean());
    assert_eq!(asks(&mut connect(admin)), Some(3));
}

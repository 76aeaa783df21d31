//! What each path answers, and how it is asked.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use tidemill::{Helo, Server};

use super::{admin_of, connect, get, read_answer};
use crate::support::{DEADLINE, Peer, assert_json_adds_up, configure, echo, eventually, resolved, scratch};

fn with_admin(handler: impl tidemill::Service) -> Server {
    configure(handler, |config| config.admin = Some("127.0.0.1:0".parse().unwrap()))
}

#[test]
fn each_path_answers() {
    let server = with_admin(Helo::new());
    let admin = admin_of(&server);
    let mut peer = Peer::connect(resolved(server.local_addr()));
    peer.ask("x");
    for (path, status, part) in [
        ("/metrics", 200, "\ntidemill_replies_total 1\n"),
        ("/healthz", 200, "ok\n"),
        ("/readyz", 200, "ready\n"),
        ("/stats.json", 200, "\"replies_total\":1"),
        ("/connections.json", 200, "[{\"peer\":\"127.0.0.1:"),
        ("/connections.json?top=1000", 200, "\"service\":\"helo\",\"age_seconds\":"),
        ("/connections.json?top=0", 400, "top must be 1 to 1000"),
        ("/connections.json?top=1001", 400, "top must be"),
        ("/connections.json?top=x", 400, "top must be"),
        ("/nothing", 404, "Not Found"),
        ("/metrics/", 404, "Not Found"),
    ] {
        let answer = get(admin, path);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.body.contains(part), "{path}: {answer:?}");
        assert_eq!(answer.field("cache-control"), Some("no-store"), "{path}");
    }
}

#[test]
fn stats_json_has_what_a_person_wants_to_know() {
    let server = configure(Helo::new(), |config| {
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        (config.min_threads, config.max_threads) = (2, 7);
    });
    Peer::connect(resolved(server.local_addr())).ask("x");
    let stats = get(admin_of(&server), "/stats.json").json();
    assert_json_adds_up(&stats);
    for (name, value) in
        [("pool_min", 2), ("pool_max", 7), ("pool_threads", 2), ("pool_waiting", 0), ("replies_total", 1)]
    {
        assert_eq!(stats[name], value, "{name} in {stats}");
    }
    assert_eq!(stats["service_seconds"]["count"], 1, "{stats}");
    assert_eq!((&stats["state"], &stats["ready"]), (&"serving".into(), &true.into()), "{stats}");
    assert_eq!(stats["pid"], std::process::id());
    assert!(
        stats["version"].is_string() && stats["decisions"].is_array() && stats["stuck"].is_array(),
        "{stats}"
    );
    assert!(stats["requests_total"].as_object().unwrap().keys().eq(["helo"]), "{stats}");
}

/// A decision is told with its reason in words.
#[test]
fn decisions_come_in_words() {
    let gate = crate::support::Gate::closed();
    let server = configure(gate.holds_all(), |config| {
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        (config.min_threads, config.max_threads, config.tolerance) = (1, 4, 0);
    });
    let mut peers: Vec<Peer> = (0..4).map(|_| Peer::connect(resolved(server.local_addr()))).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"x\n"));
    eventually("it has grown", || server.handle().stats().pool_threads == 4);
    let stats = get(admin_of(&server), "/stats.json").json();
    let decisions = stats["decisions"].as_array().unwrap();
    assert!(!decisions.is_empty());
    for decision in decisions {
        let words = decision["words"].as_str().unwrap();
        let begin = format!("grew from {} to {}: ", decision["from"], decision["to"]);
        assert!(words.starts_with(&begin) && words.len() > begin.len(), "{decision}");
        assert!(decision["t"].is_f64() && decision["reason"].is_string(), "{decision}");
    }
}

#[test]
fn the_connections_that_hold_most_come_first() {
    let server = with_admin(echo);
    let address = resolved(server.local_addr());
    let mut peers: Vec<Peer> = (0..5).map(|_| Peer::connect(address)).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        // A line that is not complete.
        peer.send(&vec![b'x'; 1000 * (number + 1)]);
    }
    let rows = |top: usize| {
        let answer = get(admin_of(&server), &format!("/connections.json?top={top}")).json();
        answer.as_array().unwrap().clone()
    };
    eventually("all of them hold what they have sent", || {
        rows(10).iter().filter(|row| row["held_bytes"].as_u64() >= Some(1000)).count() == 5
    });
    let most = rows(2);
    assert_eq!(most.len(), 2);
    let name = |peer: &Peer| peer.local().to_string();
    assert_eq!(most[0]["peer"], name(&peers[4]), "{most:?}");
    assert_eq!(most[1]["peer"], name(&peers[3]), "{most:?}");
    let all = rows(10);
    assert_eq!(all.len(), 5, "the one that asks is no client: {all:?}");
    assert!(
        all.is_sorted_by(|one, next| one["held_bytes"].as_u64() >= next["held_bytes"].as_u64()),
        "{all:?}"
    );
    for row in &all {
        assert_eq!(row["state"], "receiving", "{row}");
        assert!(row["age_seconds"].as_f64().unwrap() >= 0.0 && row["service"].is_string(), "{row}");
    }
}

#[test]
fn head_has_the_head_of_get_and_no_body() {
    let server = with_admin(Helo::new());
    let admin = admin_of(&server);
    let mut stream = connect(admin);
    stream
        .write_all(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut rest = Vec::new();
    let head = read_answer(&mut stream, &mut rest, false).unwrap();
    let got = read_answer(&mut stream, &mut rest, true).unwrap();
    assert_eq!(head.head, got.head);
    assert_eq!((head.body.as_str(), got.body.as_str()), ("", "ok\n"));
}

/// Those that ask the reactor first, too.
#[test]
fn a_connection_stays_open_and_answers_in_order() {
    let server = with_admin(Helo::new());
    let mut stream = connect(admin_of(&server));
    let paths = ["/stats.json", "/healthz", "/connections.json", "/metrics", "/stats.json", "/readyz"];
    let requests: String =
        paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).collect();
    let mut rest = Vec::new();
    for _ in 0..3 {
        stream.write_all(requests.as_bytes()).unwrap();
        for (path, begin) in paths.iter().zip(["{\"version\"", "ok", "[", "# HELP", "{\"version\"", "ready"])
        {
            let answer = read_answer(&mut stream, &mut rest, true).unwrap();
            assert!(answer.body.starts_with(begin), "{path}: {answer:?}");
            assert_eq!(answer.field("connection"), None);
        }
    }
    stream.write_all(b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let last = read_answer(&mut stream, &mut rest, true).unwrap();
    assert_eq!(last.field("connection"), Some("close"));
    assert!(read_answer(&mut stream, &mut rest, true).is_none(), "it is closed");
}

#[test]
fn what_is_no_such_request_is_refused_and_the_connection_closed() {
    let server = with_admin(Helo::new());
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 405),
        ("DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("GET /metrics HTTP/1.1\r\n\r\n", 400),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 400),
        ("HELO x\r\n\r\n", 400),
        ("GET /metrics HTTP/1.1\r\nHost a\r\n\r\n", 400),
    ] {
        let mut stream = connect(admin_of(&server));
        stream.write_all(request.as_bytes()).unwrap();
        let mut rest = Vec::new();
        let answer = read_answer(&mut stream, &mut rest, true).unwrap();
        assert_eq!(answer.status, status, "{request}");
        assert_eq!(answer.field("connection"), Some("close"), "{request}");
        assert_eq!(answer.field("allow"), (status == 405).then_some("GET, HEAD"), "{request}");
        assert!(read_answer(&mut stream, &mut rest, true).is_none(), "{request}: it is closed");
    }
}

#[test]
fn a_unix_socket_is_for_the_same_user_only() {
    let directory = scratch("admin-unix");
    let path = directory.join("admin.sock");
    let server = configure(Helo::new(), |config| {
        config.admin = Some(tidemill::Address::Unix(path.clone()));
        config.unix_mode = 0o777;
    });
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let answer = read_answer(&mut stream, &mut Vec::new(), true).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(server.handle().local_addrs().len(), 1, "it is not one of those");
    server.handle().stop();
    server.wait().unwrap();
    assert!(!path.exists(), "it goes with the server");
}

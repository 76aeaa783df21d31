//! INTERFACE 6: names, and that the figures add up at every moment.

use std::thread;

use rustix::process::Signal;

use crate::support::peer::{Peer, reply_to};
use crate::support::server::{ServerProcess, assert_adds_up, number};

#[test]
fn every_figure_has_the_name_of_its_metric() {
    let server = ServerProcess::start(&[]);
    Peer::connect(server.address).helo("x");
    let stats = server.stats();
    for path in [
        "connections",
        "connections_accepted_total",
        "connections_rejected_total.full",
        "connections_closed_total.eof",
        "requests_total.helo",
        "requests_total.kill",
        "requests_total.other",
        "replies_total",
        "requests_pending",
        "queue_wait_seconds.count",
        "service_seconds.count",
        "pool_threads",
        "pool_busy",
        "pool_min",
        "pool_max",
        "pool_demand",
        "pool_resizes_total.grow",
        "pool_resizes_total.shrink",
        "handler_panics_total",
        "read_bytes_total",
        "written_bytes_total",
        "wakeups_total",
    ] {
        number(&stats, path);
    }
    let stats = server.stop();
    let reply = reply_to("x", "127.0.0.1:10000".parse().unwrap()).len() as u64;
    assert_eq!(number(&stats, "read_bytes_total"), "HELO x\n".len() as u64);
    assert_eq!(number(&stats, "written_bytes_total"), reply);
    assert_eq!(number(&stats, "queue_wait_seconds.count"), 1);
    assert_eq!(number(&stats, "service_seconds.count"), 1);
}

#[test]
fn they_add_up_at_every_moment_of_a_flood() {
    let server = ServerProcess::start(&["--stats-every", "1ms"]);
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let address = server.address;
            thread::spawn(move || {
                for round in 0..30 {
                    let mut peer = Peer::connect(address);
                    if client == 7 {
                        // One of them never reads, and resets.
                        peer.send("HELO x\nnonsense\n".repeat(200).as_bytes());
                        socket2::SockRef::from(&peer.stream)
                            .set_linger(Some(std::time::Duration::ZERO))
                            .unwrap();
                        continue;
                    }
                    let text = format!("{client} {round}");
                    peer.send(format!("HELO {text}\nnonsense\n").repeat(50).as_bytes());
                    peer.expect(reply_to(&text, address).repeat(50).as_bytes());
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    server.wait_for_stats(|stats| number(stats, "connections") == 0);
    let lines = server.stats_lines();
    assert!(lines.len() > 3, "{}", lines.len());
    for stats in &lines {
        assert_adds_up(stats);
    }
    let stats = server.stop();
    assert_adds_up(&stats);
    assert!(number(&stats, "replies_total") >= 7 * 30 * 50);
    assert_eq!(number(&stats, "requests_pending"), 0);
}

#[test]
fn sigusr1_logs_one_line_and_changes_nothing() {
    let server = ServerProcess::start(&["--log-format", "json"]);
    server.signal(Signal::USR1);
    let line = server.wait_for_log("\"statistics\"");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let stats: serde_json::Value = serde_json::from_str(line["stats"].as_str().unwrap()).unwrap();
    assert_adds_up(&stats);
    Peer::connect(server.address).helo("still here");
    server.signal(Signal::TERM);
    assert_eq!(server.wait().0.code(), Some(0));
}

//! INTERFACE 5: what a stop answers, what it closes, and how it ends.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::Signal;

use crate::support::peer::{Peer, reply_to};
use crate::support::server::{PROGRAM, ServerProcess, assert_adds_up, number};

#[test]
fn sigint_sigterm_and_kill_service_each_stop_it_with_status_0() {
    for signal in [Some(Signal::INT), Some(Signal::TERM), None] {
        let server = ServerProcess::start(&[]);
        let mut idle = Peer::connect(server.address);
        idle.helo("before");
        match signal {
            Some(signal) => server.signal(signal),
            None => {
                let mut killer = Peer::connect(server.address);
                killer.send(b"KILL_SERVICE\n");
                killer.expect_last(b"");
            }
        }
        idle.expect_last(b"");
        drop(idle);
        let (status, stats, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log:#?}");
        assert_adds_up(&stats);
        assert_eq!(number(&stats, "requests_dropped_total"), 0);
    }
}

#[test]
fn what_had_arrived_is_answered_even_from_the_accept_queue() {
    let server =
        ServerProcess::start(&["--handler-delay", "20ms", "--max-threads", "2", "--min-threads", "2"]);
    // More than the two workers can have taken, each with a pipeline; the last ones may still be in the accept queue.
    let mut peers: Vec<Peer> = (0..20).map(|_| Peer::connect(server.address)).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.send(format!("HELO a {number}\nHELO b {number}\nHELO begun").as_bytes());
    }
    server.signal(Signal::TERM);
    for (number, peer) in peers.iter_mut().enumerate() {
        let replies =
            [format!("a {number}"), format!("b {number}")].map(|text| reply_to(&text, server.address));
        peer.expect_last(replies.concat().as_bytes());
    }
    drop(peers);
    let (status, stats, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert_eq!(number(&stats, "replies_total"), 40);
    assert_adds_up(&stats);
}

#[test]
fn a_last_line_without_terminator_is_answered_if_the_end_of_the_stream_had_arrived() {
    let server =
        ServerProcess::start(&["--handler-delay", "20ms", "--max-threads", "1", "--min-threads", "1"]);
    let mut busy = Peer::connect(server.address);
    busy.send(b"HELO busy\n");
    let mut peer = Peer::connect(server.address);
    peer.send(b"HELO first\nHELO last");
    peer.finish();
    server.signal(Signal::TERM);
    peer.expect_last(["first", "last"].map(|text| reply_to(text, server.address)).concat().as_bytes());
    busy.expect_last(reply_to("busy", server.address).as_bytes());
    drop((peer, busy));
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn a_client_that_goes_on_sending_does_not_keep_the_server_from_stopping() {
    let server = ServerProcess::start(&[]);
    let peer = Peer::connect(server.address);
    let mut writer = Peer { stream: peer.stream.try_clone().unwrap() };
    let sender = std::thread::spawn(move || {
        use std::io::Write;
        let mut sent = 0_u64;
        while writer.stream.write_all(b"HELO again\n").is_ok() {
            sent += 1;
        }
        sent
    });
    let mut reader = peer;
    reader.expect(reply_to("again", server.address).repeat(100).as_bytes());
    server.signal(Signal::TERM);
    // The replies are a clean prefix. The sender may meet a reset, but only after a second of being discarded.
    let mut rest = Vec::new();
    drop(reader.stream.read_to_end(&mut rest));
    let reply = reply_to("again", server.address);
    assert_eq!(rest.len() % reply.len(), 0);
    assert_eq!(rest, reply.repeat(rest.len() / reply.len()).as_bytes());
    let (status, stats, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert_eq!(number(&stats, "replies_total"), 100 + (rest.len() / reply.len()) as u64);
    assert!(sender.join().unwrap() >= 100);
}

#[test]
fn kill_service_is_acted_on_although_every_worker_is_stuck() {
    let server = ServerProcess::start(&[
        "--handler-delay",
        "30s",
        "--max-threads",
        "1",
        "--min-threads",
        "1",
        "--drain-timeout",
        "100ms",
    ]);
    let mut stuck = Peer::connect(server.address);
    stuck.send(b"HELO stuck\n");
    server.wait_until(|stats| number(stats, "pool_busy") == 1);
    // On the very connection whose request is stuck.
    stuck.send(b"KILL_SERVICE\n");
    server.wait_for_log("stop requested by a peer");
    let (status, stats, log) = server.wait();
    assert_eq!(status.code(), Some(1), "the drain timeout dropped the request: {log:#?}");
    assert_eq!(number(&stats, "requests_dropped_total"), 1);
    assert_adds_up(&stats);
    assert!(
        log.iter().any(|line| line.contains("dropped_requests=1") && line.contains("busy_workers=1")),
        "{log:#?}"
    );
}

#[test]
fn kill_service_does_not_wait_behind_the_requests_of_its_own_packet() {
    let server =
        ServerProcess::start(&["--handler-delay", "30s", "--max-threads", "1", "--min-threads", "1"]);
    let mut peer = Peer::connect(server.address);
    // More lines than a job takes.
    peer.send(format!("{}KILL_SERVICE\n", "HELO x\n".repeat(400)).as_bytes());
    server.wait_for_log("stop requested by a peer");
    server.signal(Signal::TERM);
    server.wait_for_log("once more stops at once");
    server.signal(Signal::INT);
    let (status, stats, _) = server.wait();
    assert_eq!(status.code(), Some(1));
    assert_eq!(number(&stats, "requests_dropped_total"), 400);
    assert_adds_up(&stats);
}

#[test]
fn a_second_signal_stops_at_once_and_says_what_was_dropped() {
    let server = ServerProcess::start(&["--handler-delay", "30s"]);
    let mut peer = Peer::connect(server.address);
    peer.send(b"HELO a\nHELO b\n");
    server.wait_until(|stats| number(stats, "pool_busy") == 1);
    server.signal(Signal::INT);
    server.wait_for_log("draining");
    server.signal(Signal::TERM);
    let (status, stats, log) = server.wait();
    assert_eq!(status.code(), Some(1));
    assert_eq!(number(&stats, "requests_dropped_total"), 2);
    assert!(log.iter().any(|line| line.contains("dropped_requests=2")), "{log:#?}");
}

#[test]
fn replies_that_nobody_reads_are_counted_when_the_drain_timeout_passes() {
    let server = ServerProcess::start(&["--drain-timeout", "200ms"]);
    let mut peer = Peer::connect(server.address);
    // More replies than the sockets' buffers hold.
    let line = format!("HELO {}\n", "x".repeat(60_000));
    let mut writer = Peer { stream: peer.stream.try_clone().unwrap() };
    let sender = std::thread::spawn(move || {
        use std::io::Write;
        for _ in 0..400 {
            if writer.stream.write_all(line.as_bytes()).is_err() {
                return;
            }
        }
    });
    server.wait_until_it_stands();
    server.signal(Signal::TERM);
    let (status, stats, log) = server.wait();
    assert_eq!(status.code(), Some(1), "{log:#?}");
    assert!(log.iter().any(|line| line.contains("slow_peers=1")), "{log:#?}");
    assert_adds_up(&stats);
    // What it did get is whole up to the reset.
    let mut got = Vec::new();
    drop(peer.stream.read_to_end(&mut got));
    assert!(got.starts_with(b"HELO xxx"));
    sender.join().unwrap();
}

#[test]
fn who_may_not_stop_the_service_is_told_so_after_its_earlier_replies() {
    for list in ["none", "10.0.0.0/8,192.168.1.1"] {
        let server = ServerProcess::start(&["--kill-from", list]);
        let mut peer = Peer::connect(server.address);
        peer.send(b"HELO a\nKILL_SERVICE\nHELO never answered\n");
        let expected = reply_to("a", server.address) + "ERROR KILL_SERVICE refused\n";
        peer.expect_last(expected.as_bytes());
        let mut other = Peer::connect(server.address);
        other.helo("still served");
        let stats = server.wait_until(|stats| number(stats, "connections_closed_total.kill_refused") == 1);
        assert_eq!(number(&stats, "requests_total.kill"), 1);
        server.stop();
    }
    let server = ServerProcess::start(&["--kill-from", "10.0.0.0/8,127.0.0.0/8"]);
    let mut peer = Peer::connect(server.address);
    peer.send(b"KILL_SERVICE");
    peer.finish();
    peer.expect_last(b"");
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn signals_reach_a_server_that_was_started_through_start_sh() {
    // The build is left out: its result is put where the script looks for it, and "cargo" has nothing to do.
    let target = std::env::temp_dir().join(format!("tidemill-start-{}", std::process::id()));
    std::fs::create_dir_all(target.join("release")).unwrap();
    std::fs::copy(PROGRAM, target.join("release/tidemill")).unwrap();
    let cargo = target.join("cargo");
    std::fs::write(&cargo, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", target.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/start.sh"));
    command.arg("0").env("PATH", path).env("CARGO_TARGET_DIR", &target);
    let server = ServerProcess::spawn(command);
    assert!(server.address.ip().is_unspecified(), "clients come from other machines");
    let mut address = server.address;
    address.set_ip("127.0.0.1".parse().unwrap());
    let mut peer = Peer::connect(address);
    peer.helo("hi");
    server.signal(Signal::INT);
    peer.expect_last(b"");
    drop(peer);
    assert_eq!(server.wait().0.code(), Some(0));
    std::fs::remove_dir_all(&target).unwrap();
}

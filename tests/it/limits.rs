//! Every limit, what happens at it, and that it costs nobody else anything.

use std::io::{Read, Write};
use std::process::Command;
use std::thread;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::support::peer::{Peer, reply_to};
use crate::support::server::{PROGRAM, ServerProcess, assert_adds_up, number};

#[test]
fn one_connection_too_many_is_told_that_the_server_is_full() {
    let server = ServerProcess::start(&["--max-connections", "2"]);
    let mut first = Peer::connect(server.address);
    let mut second = Peer::connect(server.address);
    first.helo("1");
    second.helo("2");
    let mut third = Peer::connect(server.address);
    third.send(b"HELO unread\n");
    third.expect_last(b"ERROR server full (limit 2 connections)\n");
    first.helo("still served");
    drop(second);
    server.wait_until(|stats| number(stats, "connections") == 1);
    Peer::connect(server.address).helo("there is room again");
    drop((first, third));
    let stats = server.wait_until(|stats| number(stats, "connections") == 0);
    assert_eq!(number(&stats, "connections_rejected_total.full"), 1);
    assert_adds_up(&stats);
    server.stop();
}

#[test]
fn a_line_too_long_is_told_so_after_earlier_replies_and_without_a_reset() {
    let server = ServerProcess::start(&["--max-line", "10"]);
    let limit = b"ERROR line too long (limit 10 bytes)\n";
    let mut peer = Peer::connect(server.address);
    peer.send(b"HELO 12345\r\nHELO 123456\nHELO after\n");
    let expected = [reply_to("12345", server.address).as_bytes(), limit].concat();
    peer.expect_last(&expected);

    // Without terminator, and with much more under way when the server gives up: the line arrives all the same.
    let mut peer = Peer::connect(server.address);
    peer.send(&[b'x'; 1 << 20]);
    peer.expect_last(limit);
    drop(peer);
    let stats = server.wait_until(|stats| number(stats, "connections_closed_total.line_too_long") == 2);
    assert_adds_up(&stats);
    server.stop();
}

#[test]
fn at_max_pending_reading_stops_and_every_request_is_answered_in_the_end() {
    let server = ServerProcess::start(&[
        "--max-pending",
        "7",
        "--handler-delay",
        "1ms",
        "--stats-every",
        "2ms",
        "--max-threads",
        "4",
    ]);
    let clients: Vec<_> = (0..6)
        .map(|client| {
            let address = server.address;
            thread::spawn(move || {
                let mut peer = Peer::connect(address);
                let texts: Vec<String> = (0..60).map(|number| format!("{client} {number}")).collect();
                peer.send(texts.iter().map(|text| format!("HELO {text}\n")).collect::<String>().as_bytes());
                peer.expect(texts.iter().map(|text| reply_to(text, address)).collect::<String>().as_bytes());
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    server.wait_for_stats(|stats| number(stats, "replies_total") == 360);
    for stats in server.stats_lines() {
        assert!(number(&stats, "requests_pending") <= 7, "{stats}");
        assert_adds_up(&stats);
    }
    server.stop();
}

#[test]
fn a_client_that_does_not_read_is_paused_and_the_others_are_served() {
    let server = ServerProcess::start(&[]);
    let slow = Peer::connect(server.address);
    let mut writer = Peer { stream: slow.stream.try_clone().unwrap() };
    let line = format!("HELO {}\n", "x".repeat(50_000));
    let count = 1_000;
    let sender = thread::spawn(move || {
        for _ in 0..count {
            writer.send(line.as_bytes());
        }
        writer.finish();
    });
    // It is held up once its replies fill the sockets and the watermark.
    server.wait_until_it_stands();
    let stats = server.stats();
    assert!(number(&stats, "replies_total") < count, "{stats}");
    Peer::connect(server.address).helo("served meanwhile");

    // It reads after all, and gets everything.
    let mut reader = slow;
    let reply = reply_to(&"x".repeat(50_000), server.address);
    for _ in 0..count {
        reader.expect(reply.as_bytes());
    }
    reader.expect_last(b"");
    sender.join().unwrap();
    let stats = server.stop();
    assert_eq!(number(&stats, "replies_total"), count + 1);
    assert_adds_up(&stats);
}

#[test]
fn without_descriptors_it_waits_and_serves_again_when_there_are_some() {
    let server = ServerProcess::start(&[]);
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as u64;
    // Room for four connections more than it has files open.
    let few = Rlimit { current: Some(open + 4), maximum: Some(open + 4) };
    prlimit(pid, Resource::Nofile, few).unwrap();
    let mut peers: Vec<Peer> = (0..12).map(|_| Peer::connect(server.address)).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.send(format!("HELO {number}\n").as_bytes());
    }
    // It tries again and again, but with growing pauses: the fourth refusal comes 70 ms after the first.
    let stats = server.wait_until(|stats| number(stats, "accept_errors_total") >= 4);
    assert!(number(&stats, "connections") < 12, "{stats}");
    assert!(number(&stats, "accept_errors_total") < 50, "{stats}");
    for (number, mut peer) in peers.into_iter().enumerate() {
        // Each one that leaves makes room for the next.
        peer.expect(reply_to(&number.to_string(), server.address).as_bytes());
    }
    server.stop();
}

#[test]
fn a_reset_costs_nobody_but_its_own_connection() {
    let server = ServerProcess::start(&["--handler-delay", "5ms"]);
    let mut steady = Peer::connect(server.address);
    for round in 0..20 {
        let mut rude = Peer::connect(server.address);
        rude.send(b"HELO never read\nHELO nor this\n");
        socket2::SockRef::from(&rude.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(rude);
        steady.helo(&format!("round {round}"));
    }
    let stats = server
        .wait_until(|stats| number(stats, "connections") == 1 && number(stats, "requests_pending") == 0);
    assert_adds_up(&stats);
    assert!(number(&stats, "connections_closed_total.reset") > 0);
    server.stop();
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    // Its standard error is a pipe that is full and never read.
    let (reader, mut full) = std::io::pipe().unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "0", "--log-level", "debug"]).stdout(std::process::Stdio::piped());
    command.stderr(full.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap().parse().unwrap();
    thread::spawn(move || while full.write_all(&[b'.'; 4096]).is_ok() {});
    // Each connection is a line of the debug log: more than the pipe and the waiting lines hold.
    for number in 0..6_000 {
        let mut peer = Peer::connect(address);
        if number % 100 == 0 {
            peer.helo("x");
        }
    }
    let mut peer = Peer::connect(address);
    peer.send(b"KILL_SERVICE\n");
    peer.expect_last(b"");
    drop(peer);
    drop(reader);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
}

//! Leased programs: one for each connection, bytes both ways at any time, and nothing left behind.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use super::shared::in_parallel_all;
use super::{file, is_gone, is_there, number, serve_exec, serve_script};
use crate::support::{Ended, Serving, eventually, program};

/// Says its number, and then sends everything back.
const NUMBERED: &str = "echo $$; exec cat";

#[test]
fn each_connection_has_a_program_of_its_own_that_ends_with_it() {
    let server = serve_script(NUMBERED, "--exec-mode leased");
    let mut one = server.connect();
    let mut other = server.connect();
    let (first, second) = (number(&one.line()), number(&other.line()));
    assert_ne!(first, second);
    one.send(b"half a line");
    one.expect(b"half a line");
    other.send(b"\0\xff\r\n");
    other.expect(b"\0\xff\r\n");
    one.finish();
    one.expect_end();
    other.reset();
    drop(one);
    is_gone(first);
    is_gone(second);
    server.stop().assert_clean();
}

#[test]
fn more_than_the_pool_may_have_is_told_so() {
    let server = serve_script(NUMBERED, "--exec-mode leased --min-threads 1 --max-threads 2");
    let mut peers = [server.connect(), server.connect()];
    peers.iter_mut().for_each(|peer| drop(peer.line()));
    let mut late = server.connect();
    late.expect_rest(b"ERROR server full (limit 2 connections)\n");
    let [mut one, _other] = peers;
    one.finish();
    one.expect_end();
    drop(one);
    eventually("there is a place again", || server.stats()["connections"] == 1);
    number(&server.connect().line());
}

#[test]
fn a_program_is_ready_before_its_client_unless_it_is_to_know_it() {
    let script =
        "echo \"$TIDEMILL_MODE ${REMOTE_ADDR-nobody} ${REMOTE_PORT:+known} ${SERVER_PORT-none}\"; exec cat";
    let ready = serve_script(script, "--exec-mode leased --exec-spare 1");
    ready.connect().expect(b"leased nobody  none\n");
    let on_demand = serve_script(script, "--exec-mode leased --exec-spare 0");
    let mut peer = on_demand.connect();
    peer.expect(format!("leased 127.0.0.1 known {}\n", on_demand.address.port()).as_bytes());
}

#[test]
fn sixty_at_once_each_have_their_own_bytes() {
    let server = serve_exec("cat", "--exec-mode leased --exec-spare 4 --max-threads 64");
    in_parallel_all(60, |number| {
        let mut peer = server.connect();
        let bytes: Vec<u8> = format!("{number} and so on, ").repeat(4000).into_bytes();
        let mut writer = peer.twin();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.send(&bytes);
                writer.finish();
            });
            peer.expect_rest(&bytes);
        });
    });
    eventually("all are gone", || server.stats()["connections"] == 0);
    server.stop().assert_clean();
}

#[test]
fn idle_ones_wake_nobody() {
    let server = serve_exec("cat", "--exec-mode leased --exec-spare 0 --max-threads 60");
    let mut peers: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for peer in &mut peers {
        peer.send(b"x");
        peer.expect(b"x");
    }
    let wakes = |window| {
        let before = server.context_switches();
        std::thread::sleep(window);
        server.context_switches() - before
    };
    eventually("it comes to rest", || wakes(Duration::from_millis(200)) == 0);
    // And stays there.
    let more = wakes(Duration::from_millis(2500));
    assert!(more < 2, "{more} context switches in 2.5 s of silence");
}

#[test]
fn a_stop_gives_programs_what_was_received_and_takes_their_last_word() {
    let server = serve_script("cat; echo bye", "--exec-mode leased");
    let mut peer = server.connect();
    peer.send(b"first\n");
    peer.expect(b"first\n");
    peer.send(b"second\n");
    server.signal(Signal::TERM);
    peer.expect_rest(b"second\nbye\n");
    drop(peer);
    server.wait().assert_clean();
}

#[test]
fn one_that_goes_on_at_the_end_is_ended() {
    let script = file("stubborn.sh", "trap '' TERM; echo $$; while :; do sleep 0.1; done");
    let command = format!("sh {}", script.display());
    let server = serve_exec(&command, "--exec-mode leased --exec-stop 200ms --drain-timeout 300ms");
    let mut peer = server.connect();
    let pid = number(&peer.line());
    server.signal(Signal::TERM);
    assert_eq!(server.wait().status.code(), Some(1), "it had to be dropped");
    assert!(!is_there(pid));
    drop(peer);
}

fn comes_back(server: &Serving) {
    eventually("it is back", || {
        let mut peer = server.connect();
        peer.send_what_goes(b"hello");
        peer.finish();
        peer.rest() == b"hello"
    });
}

#[test]
fn programs_that_cannot_stay_are_refused_and_come_back() {
    let flag = file("flag", "");
    let script = format!("[ -e '{}' ] && exec cat; exit 7", flag.display());
    fs::remove_file(&flag).unwrap();
    let server = serve_script(&script, "--exec-mode leased");
    eventually("it is noticed", || server.log().contains("ends as soon as it is started"));
    server.connect().expect_rest(b"ERROR program unavailable\n");
    fs::write(&flag, "").unwrap();
    comes_back(&server);
}

#[test]
fn what_is_for_shared_programs_is_refused() {
    let arguments = ["serve", "0", "--exec", "cat", "--exec-mode", "leased", "--exec-reply", "none"];
    let ended = Ended::of(program().args(arguments));
    assert_eq!(ended.status.code(), Some(2));
    assert!(
        ended.stderr.contains("--exec-reply is given, but must be left out with --exec-mode leased"),
        "{}",
        ended.stderr
    );
}

#[test]
fn no_other_server_takes_its_place() {
    let server = serve_exec("cat", "--exec-mode leased");
    server.signal(Signal::USR2);
    server.expect_log("not upgraded");
    let mut peer = server.connect();
    peer.send(b"still here\n");
    peer.expect(b"still here\n");
    server.stop();
}

#[test]
fn a_spare_that_ends_with_success_is_not_started_without_end() {
    let server = serve_exec("true", "--exec-mode leased");
    server.expect_log("ends as soon as it is started");
    // Some before it was noticed, and one behind each pause.
    let started = server.stats()["programs"]["started_total"].as_u64().unwrap();
    assert!(started <= 20, "{started} were started");
    server.connect().expect_rest(b"ERROR program unavailable\n");
}

#[test]
fn programs_that_are_started_for_a_client_are_refused_and_come_back_too() {
    let flag = file("flag", "");
    // It needs to know its client, those that are tried too.
    let script = format!("[ -e '{}' ] && [ -n \"$REMOTE_ADDR\" ] && exec cat; exit 7", flag.display());
    fs::remove_file(&flag).unwrap();
    let server = serve_script(&script, "--exec-mode leased --exec-spare 0");
    eventually("clients are refused", || server.connect().rest() == b"ERROR program unavailable\n");
    server.expect_log("ends as soon as it is started");
    fs::write(&flag, "").unwrap();
    comes_back(&server);
    // What was tried knew another client, and is nobody's.
    eventually("none is left", || server.stats()["programs"]["running"] == 0);
}

#[test]
fn clients_that_vanish_leave_no_program_behind() {
    let server = serve_script("sleep 0.2; exec cat", "--exec-mode leased --exec-spare 1 --max-threads 40");
    let peers: Vec<_> = (0..30).map(|_| server.connect()).collect();
    peers.into_iter().for_each(crate::support::Peer::reset);
    // The pool's least, and no more.
    eventually("only those that are kept ready are left", || {
        let stats = server.stats();
        stats["connections"] == 0 && stats["programs"]["running"] == 4 && stats["programs"]["ready"] == 4
    });
}

//! Connections that are joined to programs: bytes both ways, the ends of both, and what becomes of them.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tidemill::{Connection, Join, Joining, Reply, Request, Server, Service};

use crate::support::{DEADLINE, Peer, assert_adds_up, configure, embed, eventually, scratch};

/// Joins each connection to a program of its own, run by a shell.
struct Shell {
    script: &'static str,
    gone: Arc<AtomicUsize>,
}

/// Ends the program with its connection, unless it ends by itself once its input has.
struct Guard {
    program: Child,
    ends: bool,
    gone: Arc<AtomicUsize>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.ends {
            self.program.kill().unwrap();
        }
        self.program.wait().unwrap();
        self.gone.fetch_add(1, SeqCst);
    }
}

impl Join for Shell {
    fn join(&self, _: &Connection<'_>, joining: Joining) {
        let mut command = Command::new("sh");
        command.args(["-c", self.script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn().unwrap();
        let (input, output) = (program.stdin.take().unwrap(), program.stdout.take().unwrap());
        let ends = self.script.contains("cat");
        joining.with(input, output, Guard { program, ends, gone: Arc::clone(&self.gone) });
    }
}

/// What all services here have in common: nothing.
macro_rules! joins {
    ($service:ty) => {
        impl Service for $service {
            type State = ();
            type Worker = ();

            fn start_worker(&self) {}
            fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) {}
            fn handle(&self, _: &mut (), _: &mut (), _: &Request<'_>, _: &mut Reply<'_>) {
                panic!("nothing is handled here");
            }
            fn joins(&self) -> Option<&dyn Join> {
                Some(self)
            }
        }
    };
}

joins!(Shell);

fn shell(script: &'static str) -> (Server, Arc<AtomicUsize>) {
    let gone = Arc::<AtomicUsize>::default();
    (embed(Shell { script, gone: Arc::clone(&gone) }), gone)
}

#[track_caller]
fn expect_gone(server: &Server, gone: &AtomicUsize, closed: impl Fn(&tidemill::Closed) -> u64) {
    eventually("the program and the connection are gone", || {
        gone.load(SeqCst) == 1 && server.handle().stats().connections == 0
    });
    let stats = server.handle().stats();
    assert_eq!(closed(&stats.connections_closed_total), 1, "{:?}", stats.connections_closed_total);
    assert_eq!(stats.held_bytes, 0);
    assert_adds_up(&stats);
}

#[test]
fn bytes_flow_both_ways_and_the_end_of_the_peer_is_passed_on() {
    let (server, gone) = shell("cat; echo end");
    let mut peer = Peer::connect(server.local_addr());
    // Any bytes, more than all buffers on the way hold.
    let bytes: Vec<u8> =
        (0..4_000_000_u32).map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let mut writer = peer.twin();
    let sent = bytes.clone();
    let writer = thread::spawn(move || {
        writer.send(&sent);
        writer.finish();
    });
    peer.expect_rest(&[&bytes[..], b"end\n"].concat());
    writer.join().unwrap();
    drop(peer);
    expect_gone(&server, &gone, |closed| closed.eof);
}

#[test]
fn what_the_other_side_does_not_take_is_held_back_each_way() {
    // One that does not read, and one that does not stop writing.
    for script in ["exec sleep 1000", "exec yes"] {
        let (server, gone) = shell(script);
        let mut peer = Peer::with_small_buffer(server.local_addr(), 4096);
        let stats = || server.handle().stats();
        if script == "exec yes" {
            let before = stats().written_bytes_total;
            // Looked at for long: a server that is kept from running must not pass for one that is held back.
            eventually("the peer's buffers are full", || {
                let written = stats().written_bytes_total;
                thread::sleep(Duration::from_secs(1));
                let now = stats();
                written > before && now.written_bytes_total == written && now.held_bytes > 0
            });
        } else {
            peer.send_until_blocked(&vec![b'x'; 16 << 20], Duration::from_millis(300));
        }
        let held = stats().held_bytes;
        assert!((1..=64 << 10).contains(&held), "{script}: {held} bytes are held");
        peer.reset();
        expect_gone(&server, &gone, |closed| closed.reset);
    }
}

#[test]
fn a_program_that_ends_ends_its_connection_and_what_comes_then_is_thrown_away() {
    let (server, gone) = shell("head -c 3");
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"abcdef");
    peer.expect_rest(b"abc");
    peer.send(b"more");
    // A second later, as the peer has not closed.
    expect_gone(&server, &gone, |closed| closed.handler);
    drop(peer);
}

#[test]
fn the_end_of_the_output_is_passed_on_while_the_input_goes_on() {
    let name = scratch("joined").join("input");
    let script = format!("exec 3>'{0}'; exec 1>&-; cat >&3; mv '{0}' '{0}.whole'", name.display());
    let (server, gone) = shell(script.leak());
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"first ");
    peer.expect_end();
    peer.send(b"second");
    peer.finish();
    let whole = name.with_extension("whole");
    eventually("it was all written", || std::fs::read(&whole).is_ok_and(|read| read == b"first second"));
    drop(peer);
    expect_gone(&server, &gone, |closed| closed.eof);
}

#[test]
fn a_peer_that_resets_takes_its_program_along() {
    let (server, gone) = shell("cat");
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"hello\n");
    peer.expect(b"hello\n");
    peer.reset();
    expect_gone(&server, &gone, |closed| closed.reset);
}

#[test]
fn a_stop_gives_the_program_what_was_received_and_waits_for_its_last_word() {
    let (server, gone) = shell("cat; echo last");
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"first\n");
    peer.expect(b"first\n");
    peer.send(b"second\n");
    server.handle().stop();
    peer.expect_rest(b"second\nlast\n");
    drop(peer);
    let outcome = server.wait().unwrap();
    assert!(outcome.is_clean(), "{outcome:?}");
    assert_eq!((gone.load(SeqCst), outcome.stats.connections_closed_total.stopping), (1, 1));
}

#[test]
fn a_stop_does_not_wait_for_a_program_beyond_its_deadline() {
    let gone = Arc::<AtomicUsize>::default();
    let server = configure(Shell { script: "exec sleep 1000", gone: Arc::clone(&gone) }, |config| {
        config.drain_timeout = Duration::from_millis(200);
    });
    let mut peer = Peer::connect(server.local_addr());
    eventually("it is joined", || server.handle().stats().held_bytes > 0);
    server.handle().stop();
    let outcome = server.wait().unwrap();
    assert_eq!((gone.load(SeqCst), outcome.stats.connections_closed_total.aborted), (1, 1));
    peer.rest();
}

/// Leaves the joining to a test.
struct Later(Mutex<Sender<Joining>>);

impl Join for Later {
    fn join(&self, _: &Connection<'_>, joining: Joining) {
        self.0.lock().unwrap().send(joining).unwrap();
    }
}

joins!(Later);

fn later() -> (Server, Receiver<Joining>) {
    let (sender, receiver): (mpsc::Sender<_>, _) = channel();
    (embed(Later(Mutex::new(sender))), receiver)
}

#[test]
fn a_connection_may_be_joined_later_refused_or_dropped() {
    let (server, joinings) = later();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"early");
    let joining = joinings.recv_timeout(DEADLINE).unwrap();
    let (output, input) = std::io::pipe().unwrap();
    let (from_peer, to_peer) = std::io::pipe().unwrap();
    thread::spawn(move || joining.with(input, from_peer, ())).join().unwrap();
    let mut to_peer = to_peer;
    to_peer.write_all(b"answer").unwrap();
    peer.expect(b"answer");
    let mut read = [0; 5];
    std::io::Read::read_exact(&mut &output, &mut read).unwrap();
    assert_eq!(&read, b"early");
    drop((output, to_peer));
    peer.expect_end();
    assert_eq!(server.handle().stats().requests_total["service"].total(), 0, "no frame was cut");

    let mut refused = Peer::connect(server.local_addr());
    joinings.recv_timeout(DEADLINE).unwrap().refuse(b"ERROR not today\n");
    refused.expect_rest(b"ERROR not today\n");
    let mut dropped = Peer::connect(server.local_addr());
    drop(joinings.recv_timeout(DEADLINE).unwrap());
    dropped.expect_rest(b"");
    drop((peer, refused, dropped));
    eventually("all are gone", || server.handle().stats().connections == 0);
    assert_eq!(server.handle().stats().connections_closed_total.handler, 3);
}

#[test]
fn who_is_gone_before_it_is_joined_costs_nothing() {
    let (server, joinings) = later();
    let peer = Peer::connect(server.local_addr());
    let joining = joinings.recv_timeout(DEADLINE).unwrap();
    peer.reset();
    eventually("it is gone", || server.handle().stats().connections == 0);
    let (output, input) = std::io::pipe().unwrap();
    let (gone, is_gone) = channel::<()>();
    joining.with(input, output, gone);
    assert_eq!(is_gone.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn what_is_dropped_with_a_connection_may_panic() {
    struct Unwell;
    impl Drop for Unwell {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    let (server, joinings) = later();
    for _ in 0..2 {
        let mut peer = Peer::connect(server.local_addr());
        let (output, input) = std::io::pipe().unwrap();
        joinings.recv_timeout(DEADLINE).unwrap().with(input, output, Unwell);
        peer.send(b"back");
        peer.expect(b"back");
        drop(peer);
        eventually("it is gone", || server.handle().stats().connections == 0);
    }
}

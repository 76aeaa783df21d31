//! The delay between SIGTERM and the stop, and several processes on one port.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tidemill::ServerState;

use crate::support::{Gate, Peer, Serving, configure, eventually, program, serve};

/// What is in the log once the delay has begun.
const DELAYING: &str = "not ready, but serving";

#[test]
fn in_the_delay_everything_goes_on_until_a_second_sigterm_which_drops_nothing() {
    let serving = serve("--drain-delay 1h");
    let mut old = serving.connect();
    old.ask("before");
    serving.signal(Signal::TERM);
    serving.expect_log(DELAYING);
    let mut new = serving.connect();
    new.ask("in the delay");
    old.ask("still here");
    assert!(!serving.log().contains("draining"), "{}", serving.log());
    serving.signal(Signal::TERM);
    old.expect_end();
    new.expect_end();
    drop((old, new));
    serving.wait().assert_clean();
}

#[test]
fn sigint_and_kill_service_end_the_delay_at_once() {
    for kill in [false, true] {
        let serving = serve("--drain-delay 1h");
        serving.signal(Signal::TERM);
        serving.expect_log(DELAYING);
        match kill {
            true => serving.connect().send(b"KILL_SERVICE\n"),
            false => serving.signal(Signal::INT),
        }
        serving.wait().assert_clean();
    }
}

#[test]
fn sigint_knows_no_delay_and_the_signal_after_the_delay_was_ended_stops_at_once() {
    let serving = serve("--drain-delay 1h");
    serving.signal(Signal::INT);
    serving.wait().assert_clean();

    let serving = serve("--drain-delay 1h --drain-timeout 1h --handler-delay 1h");
    let mut stuck = serving.connect();
    stuck.send(b"HELO stuck\n");
    eventually("it is with a worker", || serving.stats()["pool_busy"] == 1);
    serving.signal(Signal::TERM);
    serving.expect_log(DELAYING);
    serving.signal(Signal::TERM);
    serving.expect_log("draining");
    serving.signal(Signal::TERM);
    assert_eq!(serving.wait().status.code(), Some(1));
}

#[test]
fn the_delay_ends_by_itself_and_the_drain_timeout_begins_behind_it() {
    let (delay, drain_timeout) = (Duration::from_millis(2200), Duration::from_secs(2));
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| config.drain_timeout = drain_timeout);
    let handle = server.handle();
    assert_eq!((handle.state(), handle.is_stopping()), (ServerState::Serving, false));
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"held\n");
    eventually("it is with a worker", || handle.stats().pool_busy == 1);
    let mut idle = Peer::connect(server.local_addr());
    let begun = Instant::now();
    handle.stop_after(delay);
    // A longer one changes nothing.
    handle.stop_after(10 * delay);
    assert_eq!((handle.state(), handle.is_stopping()), (ServerState::Delaying, true));
    idle.expect_end();
    assert!(begun.elapsed() >= delay, "{:?}", begun.elapsed());
    assert_eq!(handle.state(), ServerState::Draining, "its time to drain began with the drain");
    gate.open();
    peer.expect_rest(b"held\n");
    drop((peer, idle));
    assert!(server.wait().unwrap().is_clean());
    assert_eq!(handle.state(), ServerState::Stopping);
}

#[test]
fn two_processes_share_a_port_and_one_of_them_may_go() {
    let first = serve("--reuse-port");
    let mut command = program();
    command.args(["serve", &first.address.port().to_string(), "--reuse-port"]);
    let second = Serving::start(command);
    assert_eq!(first.address, second.address);
    // The system spreads them by their ports: that one gets all of so many is not to be expected in the life of this test.
    let mut peers: Vec<Peer> = (0..100).map(|_| first.connect()).collect();
    for peer in &mut peers {
        peer.ask("either");
    }
    let accepted = |serving: &Serving| serving.stats()["connections_accepted_total"].as_u64().unwrap();
    let (of_first, of_second) = (accepted(&first), accepted(&second));
    assert!(of_first > 0 && of_second > 0 && of_first + of_second == 100, "{of_first} and {of_second}");
    drop(peers);
    first.stop().assert_clean();
    for _ in 0..100 {
        second.connect().ask("the one that is left");
    }
    second.stop().assert_clean();

    let alone = serve("");
    let mut command = program();
    command.args(["serve", &alone.address.port().to_string(), "--reuse-port"]);
    assert_eq!(Serving::try_start(command).unwrap_err().status.code(), Some(1), "the other does not share");
}

//! What HAProxy's agent-check is told.

use std::net::SocketAddr;

use rustix::process::Signal;
use tidemill::Server;

use crate::support::{Gate, Peer, Serving, configure, echo, embed, eventually, serve};

/// Where a server said that it answers HAProxy.
fn agent_of(serving: &Serving) -> SocketAddr {
    serving.expect_log("agent address");
    let log = serving.log();
    let line = log.lines().find(|line| line.contains("agent address")).unwrap();
    line.split_once("address=").unwrap().1.split(' ').next().unwrap().parse().unwrap()
}

/// One line and the end of the stream: what an agent-check is.
fn ask(agent: impl std::net::ToSocketAddrs) -> String {
    String::from_utf8(Peer::connect(agent).rest()).unwrap()
}

fn percent(said: &str) -> u32 {
    let percent = said.strip_prefix("up ready ").and_then(|said| said.strip_suffix("%\n"));
    percent.unwrap_or_else(|| panic!("{said:?}")).parse().unwrap()
}

fn with_agent(max_threads: usize, gate: &Gate) -> Server {
    configure(gate.holds_all(), |config| {
        (config.min_threads, config.max_threads) = (1, max_threads);
        config.agent = Some(([127, 0, 0, 1], 0).into());
    })
}

#[test]
fn an_idle_server_is_worth_all_of_its_weight_and_one_that_is_more_than_full_ever_less_of_it() {
    let gate = Gate::closed();
    let server = with_agent(4, &gate);
    let handle = server.handle();
    let agent = handle.agent_addr().unwrap();
    assert_eq!(ask(agent), "up ready 100%\n");
    let mut peers: Vec<Peer> = (0..40).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers[..4] {
        peer.send(b"x\n");
    }
    eventually("all workers are stuck", || handle.stats().pool_busy == 4);
    // It follows, and stays where it is.
    eventually("it is full", || percent(&ask(agent)) <= 52);
    assert!(percent(&ask(agent)) >= 50);
    for peer in &mut peers[4..] {
        peer.send(b"x\n");
    }
    eventually("ten times as much is never 0", || percent(&ask(agent)) == 1);
    gate.open();
    for peer in &mut peers {
        peer.expect(b"x\n");
    }
    eventually("it recovers", || percent(&ask(agent)) > 90);
    // Who asks is no client.
    let stats = handle.stats();
    assert_eq!((stats.connections_accepted_total, stats.connections, stats.requests()), (40, 40, 40));
}

#[test]
fn it_says_drain_in_the_delay_and_in_the_drain_until_the_end() {
    let serving = serve("--agent 127.0.0.1:0 --drain-delay 1h --drain-timeout 1h --handler-delay 1h");
    let agent = agent_of(&serving);
    assert_eq!(ask(agent), "up ready 100%\n");
    let mut peer = serving.connect();
    peer.send(b"HELO stuck\n");
    eventually("it is with a worker", || serving.stats()["pool_busy"] == 1);
    serving.signal(Signal::TERM);
    serving.expect_log("not ready, but serving");
    assert_eq!(ask(agent), "drain\n");
    serving.signal(Signal::TERM);
    serving.expect_log("draining");
    assert_eq!(ask(agent), "drain\n");
    serving.signal(Signal::TERM);
    assert_eq!(serving.wait().stats()["connections_accepted_total"], 1);
}

#[test]
fn it_says_drain_where_somebody_says_that_the_server_is_not_ready() {
    let gate = Gate::closed();
    let server = with_agent(4, &gate);
    let handle = server.handle();
    handle.set_not_ready(Some("no backend".to_owned()));
    assert_eq!(ask(handle.agent_addr().unwrap()), "drain\n");
    handle.set_not_ready(None);
    assert_eq!(ask(handle.agent_addr().unwrap()), "up ready 100%\n");
}

#[test]
fn what_is_sent_to_it_is_of_no_account_and_too_many_disturb_nobody() {
    let gate = Gate::closed();
    gate.open();
    let server = with_agent(4, &gate);
    let agent = server.handle().agent_addr().unwrap().clone();
    let mut rude = Peer::connect(&agent);
    rude.send(b"KILL_SERVICE\nHELO x\n");
    assert_eq!(String::from_utf8(rude.rest()).unwrap(), "up ready 100%\n");
    // They stay, and each has a place for a second.
    let mut crowd: Vec<Peer> = (0..100).map(|_| Peer::connect(&agent)).collect();
    let told = crowd.iter_mut().map(Peer::rest).filter(|told| told == b"up ready 100%\n").count();
    assert!(told >= 15, "{told}");
    let mut client = Peer::connect(server.local_addr());
    client.send(b"x\n");
    client.expect(b"x\n");
    drop(crowd);
    eventually("there are places again", || ask(&agent) == "up ready 100%\n");
    assert_eq!(server.handle().stats().connections_accepted_total, 1);
    assert!(embed(echo).handle().agent_addr().is_none());
}

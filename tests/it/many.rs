//! Ten thousand connections: all still answer.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::peer::Peer;
use crate::support::server::{ServerProcess, assert_adds_up, number};

/// Raises this process's limit of open files as far as it goes without privileges.
fn open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    limit.maximum.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap())
}

#[test]
fn ten_thousand_idle_connections_all_still_answer() {
    // A machine with a lower hard limit gets as many as it allows; other tests of this process need some too.
    let count = 10_000.min(open_files().saturating_sub(1_500));
    assert!(count >= 1_000, "a limit of open files this low shows nothing");
    let server = ServerProcess::start(&["--max-connections", &count.to_string()]);
    let mut peers: Vec<Peer> = (0..count).map(|_| Peer::connect(server.address)).collect();
    server.wait_until(|stats| number(stats, "connections") == count as u64);
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.helo(&format!("idle {number}"));
    }
    drop(peers);
    let stats = server.wait_until(|stats| number(stats, "connections") == 0);
    assert_adds_up(&stats);
    assert_eq!(number(&stats, "connections_closed_total.eof"), count as u64);
    server.stop();
}

//! Bugs that were, in words. Each of these fails without its fix.

use rustix::process::Signal;

use crate::support::{DEADLINE, Gate, Peer, configure, eventually, helo_reply, serve};

/// The last read of a drain brought nothing but a line without terminator, while no job was out: the line was kept, and
/// nobody handed it out before the drain timeout. (issue 2)
#[test]
fn a_last_line_alone_in_the_last_read_of_a_drain_is_answered() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| {
        config.max_pending = 1;
        config.drain_timeout = DEADLINE * 2;
    });
    let handle = server.handle();
    let mut first = Peer::connect(server.local_addr());
    first.send(b"first\n");
    eventually("the only place is taken", || handle.stats().requests_pending == 1);
    // This stays in the receive queue until there is a place for it.
    let mut last = Peer::connect(server.local_addr());
    last.send(b"last");
    last.finish();
    eventually("it is accepted", || handle.stats().connections == 2);
    handle.stop();
    eventually("the stop has begun", || std::net::TcpStream::connect(server.local_addr()).is_err());
    assert_eq!(handle.stats().read_bytes_total, 6);
    gate.open();
    first.expect_rest(b"first\n");
    last.expect_rest(b"last\n");
    drop((first, last));
    assert!(server.wait().unwrap().is_clean());
}

/// Who was in the accept queue of a server without descriptors was reset when it stopped, and nobody was told. (issue 2)
#[test]
fn a_stop_without_descriptors_still_answers_who_is_in_the_accept_queue() {
    let serving = serve("");
    serving.limit_files(serving.open_files() + 5);
    let mut peers: Vec<Peer> = (0..30).map(|_| serving.connect()).collect();
    for peer in &mut peers {
        peer.send(b"HELO x\n");
    }
    serving.expect_log("cannot accept connections for now");
    serving.signal(Signal::TERM);
    serving.expect_log("draining");
    for mut peer in peers {
        peer.expect_rest(&helo_reply(b"x", serving.address));
    }
    let ended = serving.wait();
    ended.assert_clean();
    assert_eq!(ended.stats()["replies_total"], 30);
}

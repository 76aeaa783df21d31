//! How the server ends a connection for a reason of its own: after all earlier replies, never inside one, without a reset.

use std::time::{Duration, Instant};

use tidemill::{Farewell, Handler, Helo, Reply, Request, StopFrom};

use crate::support::{DEADLINE, Peer, configure, echo, embed, eventually, helo_reply, serve};

/// Sends more than the server will read of this connection, then sees that the line arrives all the same.
fn expect_despite_unread_data(mut peer: Peer, request: &[u8], expected: &[u8]) {
    peer.send(request);
    // Under way when the server closes: it must not turn the end into a reset, which would destroy the line.
    for _ in 0..64 {
        peer.send(&b"more that nobody reads\n".repeat(100));
    }
    peer.expect_rest(expected);
}

#[test]
fn a_line_too_long_is_told_although_more_is_under_way() {
    let serving = serve("--max-line 100");
    for _ in 0..20 {
        let request = [b"HELO before\n".as_slice(), &[b'x'; 5000], b"\nHELO behind\n"].concat();
        let expected =
            [&helo_reply(b"before", serving.address)[..], b"ERROR line too long (limit 100 bytes)\n"]
                .concat();
        expect_despite_unread_data(serving.connect(), &request, &expected);
    }
}

#[test]
fn a_refusal_to_stop_is_told_although_more_is_under_way() {
    let serving = serve("--kill-from none");
    for _ in 0..20 {
        let expected = [
            &helo_reply(b"a", serving.address)[..],
            &helo_reply(b"b", serving.address),
            b"ERROR KILL_SERVICE refused\n",
        ]
        .concat();
        let request = b"HELO a\nHELO b\nKILL_SERVICE\nHELO never\n";
        expect_despite_unread_data(serving.connect(), request, &expected);
    }
    let ended = serving.stop();
    ended.assert_clean();
    let stats = ended.stats();
    assert_eq!(stats["connections_closed_total"]["kill_refused"], 20);
    assert_eq!(stats["requests_total"]["helo"]["stop"], 20);
    assert_eq!(stats["requests_total"]["helo"]["request"], 40);
}

#[test]
fn a_panic_is_told_after_earlier_replies_although_more_is_under_way() {
    let server = embed(|request: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(request.line());
        assert_ne!(request.line(), b"panic", "on purpose");
        reply.push(b"\n");
    });
    for _ in 0..20 {
        let request = b"one\ntwo\npanic\nthree\n";
        expect_despite_unread_data(
            Peer::connect(server.local_addr()),
            request,
            b"one\ntwo\nERROR internal error\n",
        );
    }
    let handle = server.handle();
    eventually("all are closed", || handle.stats().connections_closed_total.panic == 20);
    assert_eq!(handle.stats().handler_panics_total, 20);
}

#[test]
fn a_reply_that_is_still_being_written_is_finished_before_the_last_line() {
    let server = configure(
        |request: &Request<'_>, reply: &mut Reply<'_>| match request.line() {
            b"long" => reply.push(&vec![b'x'; 8 << 20]),
            _ => panic!("on purpose"),
        },
        |_| {},
    );
    let mut peer = Peer::with_small_buffer(server.local_addr(), 4096);
    peer.send(b"long\npanic\nlong\n");
    let mut expected = vec![b'x'; 8 << 20];
    expected.extend(b"ERROR internal error\n");
    peer.expect_rest(&expected);
}

/// Has a long last line for whom it has no place.
struct Wordy;

impl Wordy {
    const WORDS: usize = 8 << 20;
}

impl Handler for Wordy {
    fn handle(&self, _: &Request<'_>, _: &mut Reply<'_>) {}

    fn last_line(&self, _: &Farewell) -> Option<Vec<u8>> {
        Some(vec![b'x'; Wordy::WORDS])
    }
}

#[test]
fn a_long_last_line_comes_whole_also_to_whom_there_is_no_place_for() {
    let server = configure(Wordy, |config| config.max_connections = 1);
    let _keeps_the_place = Peer::connect(server.local_addr());
    eventually("the only place is taken", || server.handle().stats().connections == 1);
    assert_eq!(Peer::connect(server.local_addr()).rest().len(), Wordy::WORDS);
}

#[test]
fn after_its_last_line_the_server_waits_no_longer_than_a_second_for_the_client() {
    let server = configure(Helo::new(), |config| config.stop_from = StopFrom::None);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"KILL_SERVICE\n");
    peer.expect_rest(b"ERROR KILL_SERVICE refused\n");
    let said = Instant::now();
    // The peer keeps its side open; the server lets go of the connection without its help.
    eventually("the server closes", || server.handle().stats().connections == 0);
    // A second, and a few for a machine that does other work as well.
    assert!(said.elapsed() < Duration::from_secs(5), "{:?}", said.elapsed());
    assert_eq!(server.handle().stats().connections_closed_total.kill_refused, 1);
}

#[test]
fn a_reset_ends_a_connection_and_nothing_else() {
    let server = embed(Helo::new());
    let handle = server.handle();
    for _ in 0..20 {
        let mut peer = Peer::connect(server.local_addr());
        peer.ask("x");
        peer.reset();
    }
    eventually("all are gone", || handle.stats().connections == 0);
    assert_eq!(handle.stats().connections_closed_total.reset, 20);
    Peer::connect(server.local_addr()).ask("fine");
}

/// Who is gone without having read why resets the connection with that; it was ended by the server all the same.
#[test]
fn the_reason_counts_also_where_the_peer_resets_instead_of_reading_it() {
    const PEERS: u64 = 300;
    let server = configure(echo, |config| config.max_line_bytes = 10);
    let handle = server.handle();
    for _ in 0..PEERS {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(b"longer than that");
        assert!(!peer.is_silent_for(DEADLINE), "nothing was said");
        peer.reset();
    }
    eventually("all are gone", || handle.stats().connections == 0);
    let closed = handle.stats().connections_closed_total;
    assert_eq!((closed.line_too_long, closed.reset), (PEERS, 0));
}

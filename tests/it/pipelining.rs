//! Many requests at once, on one connection and on many: every reply right, in order, to whom it belongs.

use std::thread;

use crate::support::peer::{Peer, reply_to};
use crate::support::server::{ServerProcess, number};

#[test]
fn thousands_of_requests_in_one_write_are_answered_in_order() {
    let server = ServerProcess::start(&[]);
    let peer = Peer::connect(server.address);
    let mut writer = Peer { stream: peer.stream.try_clone().unwrap() };
    let mut reader = peer;
    let texts: Vec<String> = (0..20_000).map(|number| format!("request {number}")).collect();
    let input: String = texts.iter().map(|text| format!("HELO {text}\n")).collect();
    let sender = thread::spawn(move || {
        writer.send(input.as_bytes());
        writer.finish();
    });
    let expected: String = texts.iter().map(|text| reply_to(text, server.address)).collect();
    let got = reader.read_to_end();
    assert!(got == expected.as_bytes(), "{} of {} bytes", got.len(), expected.len());
    sender.join().unwrap();
    assert_eq!(number(&server.stop(), "replies_total"), 20_000);
}

#[test]
fn five_hundred_interleaved_connections_each_get_their_own_replies() {
    let server = ServerProcess::start(&["--handler-delay", "1ms"]);
    let mut peers: Vec<Peer> = (0..500).map(|_| Peer::connect(server.address)).collect();
    let text = |peer: usize, round: usize| format!("peer {peer} round {round} {}", "#".repeat(peer % 7));
    // In pieces, so that the lines of all of them are under way at the same time.
    for round in 0..4 {
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.send(format!("HELO {}\nHELO half", text(number, round)).as_bytes());
        }
        for (number, peer) in peers.iter_mut().enumerate().rev() {
            peer.send(format!(" of {number}\r\n").as_bytes());
        }
        for (number, peer) in peers.iter_mut().enumerate() {
            let expected = [text(number, round), format!("half of {number}")];
            for text in expected {
                peer.expect(reply_to(&text, server.address).as_bytes());
            }
        }
    }
    assert_eq!(number(&server.stop(), "replies_total"), 500 * 4 * 2);
}

#[test]
fn a_long_pipeline_does_not_hold_up_a_single_request() {
    let server =
        ServerProcess::start(&["--handler-delay", "2ms", "--max-threads", "1", "--min-threads", "1"]);
    let mut greedy = Peer::connect(server.address);
    greedy.send("HELO greedy\n".repeat(2_000).as_bytes());
    let reply = reply_to("greedy", server.address);
    greedy.expect(reply.as_bytes());
    let mut modest = Peer::connect(server.address);
    modest.helo("modest");
    // Four seconds of work were ahead of it in the order of arrival; it was let in between.
    let stats = server.stats();
    assert!(number(&stats, "replies_total") < 1_000, "{stats}");
}

#[test]
fn requests_of_one_connection_never_overtake_each_other() {
    let server = ServerProcess::start(&["--handler-delay", "1ms"]);
    let mut peer = Peer::connect(server.address);
    let expected: String = (0..50).map(|number| reply_to(&number.to_string(), server.address)).collect();
    for number in 0..50 {
        peer.send(format!("HELO {number}\n").as_bytes());
    }
    peer.expect(expected.as_bytes());
    server.stop();
}

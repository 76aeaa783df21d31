//! Many connections at once.

use rustix::process::Signal;

use crate::support::{Peer, allow_files, helo_reply, in_parallel, serve, tell};

/// Descriptors that this process needs besides its connections, with all tests that run at the same time.
const OTHER_FILES: usize = 3000;

#[test]
fn five_hundred_connections_at_once_each_with_its_own_texts() {
    allow_files(500 + OTHER_FILES);
    let serving = serve("");
    let mut peers: Vec<Peer> = (0..500).map(|_| serving.connect()).collect();
    let text =
        |number: usize, round: usize| format!("client {number} round {round} {}.", "~".repeat(round * 50));
    for round in 0..4 {
        // All first halves, then all second halves, then all replies: the bytes of all clients interleave.
        for (number, peer) in peers.iter_mut().enumerate() {
            let line = format!("HELO {}\nHELO second {number}\n", text(number, round));
            let (head, _) = line.split_at(line.len() / 2);
            peer.send(head.as_bytes());
        }
        for (number, peer) in peers.iter_mut().enumerate().rev() {
            let line = format!("HELO {}\nHELO second {number}\n", text(number, round));
            let (_, tail) = line.split_at(line.len() / 2);
            peer.send(tail.as_bytes());
        }
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.expect_reply(&text(number, round));
            peer.expect_reply(&format!("second {number}"));
        }
    }
    drop(peers);
    let ended = serving.stop();
    ended.assert_clean();
    let stats = ended.stats();
    assert_eq!(stats["connections_accepted_total"], 500);
    assert_eq!(stats["replies_total"], 500 * 4 * 2);
}

#[test]
fn ten_thousand_idle_connections_all_still_answer() {
    let wanted = 10_000;
    let count = wanted.min(allow_files(wanted + OTHER_FILES).saturating_sub(OTHER_FILES)) - 1;
    if count < wanted {
        tell(&format!("the limit of open files allows {count} connections instead of {wanted}"));
    }
    let serving = serve("");
    let peers: Vec<Peer> = (0..count).map(|_| serving.connect()).collect();
    let mut last = serving.connect();
    last.ask("the last one");
    let before = serving.stats();
    assert_eq!(before["connections_closed_total"]["eof"], 0);
    for mut peer in peers {
        peer.ask("I am still here");
    }
    let ended = serving.stop();
    ended.assert_clean();
    assert_eq!(ended.stats()["replies_total"], count as u64 + 1);
}

#[test]
fn a_burst_of_connects_that_the_server_has_not_accepted_is_not_turned_away() {
    allow_files(1000 + OTHER_FILES);
    let serving = serve("");
    serving.freeze();
    let connect = || serving.connect();
    let mut peers: Vec<Peer> = (0..1000).map(|_| connect()).collect();
    for peer in &mut peers {
        peer.send(b"HELO I waited\n");
    }
    serving.signal(Signal::CONT);
    for peer in &mut peers {
        peer.expect_reply("I waited");
    }
}

#[test]
fn connections_come_and_go_without_a_reply_going_astray() {
    let serving = serve("--handler-delay 1ms");
    in_parallel(16, |number| {
        for round in 0..40 {
            let text = format!("{number} {round}");
            let mut peer = serving.connect();
            peer.send(format!("HELO {text}\nHELO {text}\n").as_bytes());
            match (number + round) % 4 {
                // Gone before its replies, by either way: its slot is free for another.
                0 => drop(peer),
                1 => peer.reset(),
                _ => {
                    peer.finish();
                    peer.expect_rest(&helo_reply(text.as_bytes(), serving.address).repeat(2));
                }
            }
        }
    });
    let ended = serving.stop();
    ended.assert_clean();
    let stats = ended.stats();
    assert_eq!(stats["connections_accepted_total"], 16 * 40);
    assert_eq!(stats["connections"], 0);
}

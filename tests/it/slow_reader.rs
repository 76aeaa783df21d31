//! A client that sends and does not read: it is held back, and costs the others nothing.

use std::thread;
use std::time::Duration;

use crate::support::{Peer, allow_files, assert_same, echo, embed, helo_reply, serve};

/// Lines that are numbered and long, so that few fill the buffers.
fn lines(count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| format!("{number:0>8000}\n").into_bytes()).collect()
}

#[test]
fn a_client_that_does_not_read_is_held_back_and_gets_every_reply_when_it_does() {
    let server = embed(echo);
    let lines = lines(8000);
    let mut slow = Peer::with_small_buffer(server.local_addr(), 4096);
    let sent = slow.send_until_blocked(&lines, Duration::from_millis(300));
    assert!(sent < lines.len(), "nothing held the client back");
    // The server holds what it has read and not written: bounded by the watermark, a read and a slice of replies.
    let stats = server.handle().stats();
    let held = stats.read_bytes_total - stats.written_bytes_total;
    assert!(held < 1 << 20, "{held} bytes are held");
    let mut other = Peer::connect(server.local_addr());
    for _ in 0..100 {
        other.send(b"others are served\n");
        other.expect(b"others are served\n");
    }
    // It begins to read: everything comes, in order, and reading resumes.
    let cut = lines[..sent].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    slow.expect(&lines[..cut]);
    let rest = slow.exchange(&lines[sent..]);
    assert_same(&rest, &lines[cut..]);
}

#[test]
fn many_clients_that_do_not_read_are_held_back_with_bounded_memory() {
    allow_files(4000);
    let serving = serve("");
    let flood = b"HELO fill the buffers of this connection please\n".repeat(400_000);
    let mut slow: Vec<Peer> = (0..6).map(|_| Peer::with_small_buffer(serving.address, 4096)).collect();
    thread::scope(|scope| {
        for peer in &mut slow {
            scope
                .spawn(|| assert!(peer.send_until_blocked(&flood, Duration::from_millis(500)) < flood.len()));
        }
    });
    let memory = serving.resident_kib();
    assert!(memory < 64 << 10, "{memory} KiB with 6 slow readers");
    for number in 0..100 {
        serving.connect().ask(&number.to_string());
    }
    // One of them reads again.
    slow[0].expect(&helo_reply(b"fill the buffers of this connection please", serving.address).repeat(5000));
    // The others just leave. What was theirs is counted as dropped, which is no loss of a stop.
    for peer in slow {
        peer.reset();
    }
    let ended = serving.stop();
    ended.assert_clean();
    assert!(ended.stats()["requests_dropped_total"].as_u64().unwrap() > 0);
    assert_eq!(ended.stats()["requests_pending"], 0);
}

#[test]
fn a_client_that_reads_slowly_gets_every_byte() {
    let server = embed(echo);
    let lines = lines(300);
    let mut slow = Peer::with_small_buffer(server.local_addr(), 2048);
    thread::scope(|scope| {
        let mut sender = slow.twin();
        let sent = lines.clone();
        scope.spawn(move || {
            sender.send(&sent);
            sender.finish();
        });
        for chunk in lines.chunks(1013) {
            slow.expect(chunk);
        }
        slow.expect_end();
    });
}

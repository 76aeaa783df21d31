//! Peers that are slow, gone, hostile, or too many.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::Connects::Often;
use super::{beside, settle};
use crate::support::{
    DEADLINE, Peer, allow_files, eventually, helo_reply, in_parallel, resolved, serve, total,
};

/// What other protocols say first, none of which is a request here.
const OTHER_PROTOCOLS: [(&str, &[u8]); 14] = [
    ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: x\r\n\r\n"),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00"),
    ("TLS", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\x0a\x0d\x00\xff\x13\x01\x13\x02\x0a\x00\x2f"),
    ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n\x00\x00\x05\xdc\x08\x14"),
    ("SMTP", b"EHLO me\r\nMAIL FROM:<a@b>\r\nQUIT\r\n"),
    ("Redis", b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n"),
    ("memcached", b"\x80\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00hello"),
    ("PostgreSQL", b"\x00\x00\x00\x08\x04\xd2\x16\x2f"),
    ("PROXY v1", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"),
    ("PROXY v2", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\x00\x01\x00\x02"),
    ("RDP", b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00"),
    ("DNS", b"\x00\x1d\xaa\xbb\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x01b\x00\x00\x01\x00\x01"),
    ("telnet", b"\xff\xfd\x03\xff\xfb\x18\xff\xfb\x1f\r\n"),
    ("almost", b"helo x\n HELO x\nHELO\nHELOx\nKILL_SERVICE \nXKILL_SERVICE\nKILL_SERVICE x\nkill_service\n"),
];

#[test]
fn two_thousand_lines_that_are_never_completed() {
    const PEERS: usize = 2000;
    allow_files(PEERS + 4000);
    let serving = serve("--line-timeout 1s");
    beside(&serving, Often, || {
        let mut peers: Vec<Peer> = (0..PEERS).map(|_| serving.connect()).collect();
        let begun = Instant::now();
        // A byte now and then does not lengthen it.
        while begun.elapsed() < Duration::from_millis(900) {
            peers.iter_mut().for_each(|peer| peer.send_what_goes(b"H"));
        }
        for mut peer in peers {
            peer.expect_rest(b"ERROR line not completed within 1s\n");
        }
    });
    let (_, stats) = settle(serving);
    assert_eq!(stats["connections_closed_total"]["line_timeout"], PEERS);
}

#[test]
fn writers_and_readers_of_a_byte_at_a_time() {
    let serving = serve("");
    beside(&serving, Often, || {
        in_parallel(16, |number| {
            let text = format!("byte by byte {number}");
            let mut writer = serving.connect();
            for byte in format!("HELO {text}\nHELO {text}\r\n").bytes() {
                writer.send(&[byte]);
                thread::sleep(Duration::from_millis(1));
            }
            writer.expect_reply(&text);
            writer.expect_reply(&text);
            let mut reader = Peer::with_small_buffer(serving.address, 1024);
            reader.send(format!("HELO {text}\n").repeat(20).as_bytes());
            let replies = helo_reply(text.as_bytes(), serving.address).repeat(20);
            assert!(replies.iter().all(|byte| reader.byte() == *byte));
        });
    });
    let (_, stats) = settle(serving);
    assert_eq!(total(&stats["requests_dropped_total"]), 0);
}

#[test]
fn a_sending_side_that_is_closed_at_each_stage() {
    let serving = serve("");
    let reply = helo_reply(b"x", serving.address);
    let stages: [(&[u8], usize); 7] = [
        (b"", 0),
        (b"HEL", 0),
        (b"HELO x", 1),
        (b"HELO x\n", 1),
        (b"HELO x\r", 1),
        (b"HELO x\nHELO x\nHELO x", 3),
        (b"nothing\n\n\r\n", 0),
    ];
    beside(&serving, Often, || {
        in_parallel(stages.len() * 20, |number| {
            let (bytes, replies) = stages[number % stages.len()];
            let mut peer = serving.connect();
            peer.send(bytes);
            peer.finish();
            peer.expect_rest(&reply.repeat(replies));
        });
    });
    let (_, stats) = settle(serving);
    assert_eq!(total(&stats["requests_dropped_total"]), 0);
}

#[test]
fn resets_at_each_stage() {
    let serving = serve("--handler-delay 1ms");
    const ROUNDS: usize = 40;
    let reply = helo_reply(b"x", serving.address);
    beside(&serving, Often, || {
        in_parallel(8 * ROUNDS, |number| {
            let mut peer = serving.connect();
            match number % 8 {
                0 => {}
                1 => peer.send(b"HEL"),
                2 => peer.send(b"HELO x\n"),
                3 => peer.send(&b"HELO x\n".repeat(500)),
                4 => {
                    peer.send(b"HELO x\n");
                    peer.byte();
                }
                5 => {
                    peer.send(b"HELO x\nHELO y\n");
                    peer.expect(&reply);
                }
                6 => {
                    peer.send(b"HELO x\n");
                    peer.expect(&reply);
                }
                _ => {
                    peer.send(b"HELO x\n");
                    peer.finish();
                }
            }
            peer.reset();
        });
    });
    let (_, stats) = settle(serving);
    assert!(stats["connections_closed_total"]["reset"].as_u64().unwrap() > ROUNDS as u64, "{stats}");
}

#[test]
fn urgent_data_anywhere() {
    let serving = serve("");
    beside(&serving, Often, || {
        in_parallel(16, |number| {
            let stream = TcpStream::connect(serving.address).unwrap();
            let urgent = |bytes: &[u8]| SockRef::from(&stream).send_out_of_band(bytes).unwrap();
            let mut peer = Peer::over(stream.try_clone().unwrap());
            for round in 0..20 {
                // Within a line, and at its end: only the last byte sent so is urgent, and in no line. One at a time: a
                // second one makes an ordinary byte of the first, as far as that is not passed.
                peer.send(b"HELO a");
                urgent(b"!");
                peer.send(format!("b {number} {round}\n").as_bytes());
                peer.expect_reply(&format!("ab {number} {round}"));
                urgent(b"HELO c!");
                peer.send(b"\n");
                peer.expect_reply("c");
            }
            urgent(b"!");
            peer.finish();
            peer.expect_end();
        });
    });
    settle(serving);
}

#[test]
fn other_protocols() {
    let serving = serve("");
    beside(&serving, Often, || {
        in_parallel(OTHER_PROTOCOLS.len() * 10, |number| {
            let (name, bytes) = OTHER_PROTOCOLS[number % OTHER_PROTOCOLS.len()];
            let mut peer = serving.connect();
            peer.send(bytes);
            peer.send(b"\nHELO now in earnest\n");
            peer.expect_reply("now in earnest");
            peer.finish();
            assert_eq!(peer.rest(), b"", "{name}");
        });
    });
    let (_, stats) = settle(serving);
    assert_eq!(stats["requests_total"]["helo"]["stop"], 0, "{stats}");
    assert!(stats["requests_total"]["helo"]["ignored"].as_u64().unwrap() > 300, "{stats}");
}

#[test]
fn nuls_and_every_other_byte() {
    let serving = serve("--max-line 1000");
    beside(&serving, Often, || {
        let every: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
        in_parallel(50, |number| {
            let mut peer = serving.connect();
            let text = [&vec![0; number][..], &every, b"."].concat();
            peer.send(&[b"HELO ", &text[..], b"\n"].concat());
            peer.expect(&helo_reply(&text, serving.address));
            peer.send(&vec![0; number]);
            peer.send(b"\n\0\n\0HELO x\nHELO x\0\n");
            peer.expect(&helo_reply(b"x\0", serving.address));
            peer.send_what_goes(&[0; 5000]);
            peer.expect_rest(b"ERROR line too long (limit 1000 bytes)\n");
        });
    });
    let (_, stats) = settle(serving);
    assert_eq!(stats["connections_closed_total"]["line_too_long"], 50);
}

#[test]
fn lines_without_end() {
    let serving = serve("");
    beside(&serving, Often, || {
        in_parallel(20, |number| {
            let mut peer = serving.connect();
            if number % 2 == 0 {
                peer.ask("before");
            }
            assert_eq!(peer.flood(b"HELO without end "), b"ERROR line too long (limit 65536 bytes)\n");
        });
    });
    let (_, stats) = settle(serving);
    assert_eq!(stats["connections_closed_total"]["line_too_long"], 20);
}

/// A reset each, so that no port of this machine is in `TIME_WAIT` for it. `TIDEMILL_CONNECTS=N`: so many (`scripts/soak.sh`).
#[test]
fn twenty_thousand_connects() {
    let wanted = std::env::var("TIDEMILL_CONNECTS").ok().map(|text| text.parse::<usize>().unwrap());
    let connects = wanted.unwrap_or(20_000);
    let serving = serve("");
    let address = resolved(serving.address);
    beside(&serving, Often, || {
        in_parallel(16, |_| {
            for _ in 0..connects.div_ceil(16) {
                let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        });
    });
    let (_, stats) = settle(serving);
    assert!(stats["connections_accepted_total"].as_u64().unwrap() >= connects as u64, "{stats}");
}

#[test]
fn more_than_may_connect() {
    allow_files(4000);
    let serving = serve("--max-connections 100 --max-connections-per-peer 90");
    beside(&serving, super::Connects::Once, || {
        let inside: Vec<Peer> = (0..89).map(|_| serving.connect()).collect();
        in_parallel(3000, |number| {
            let mut peer = serving.connect();
            if number % 2 == 0 {
                // Who is turned away may have sent something: that must not destroy what it is told.
                peer.send_what_goes(b"HELO let me in\n");
            }
            peer.expect_rest(b"ERROR too many connections from your address (limit 90)\n");
        });
        drop(inside);
    });
    let (_, stats) = settle(serving);
    assert_eq!(stats["connections_rejected_total"]["peer_full"], 3000);
}

/// They are answered as far as the replies are read; meanwhile little is held, and nobody else waits.
#[test]
fn a_million_pipelined_requests_that_are_read_late() {
    const REQUESTS: usize = 1_000_000;
    let serving = serve("");
    let (line, reply) = (&b"HELO \n"[..], helo_reply(b"", serving.address));
    beside(&serving, Often, || {
        let mut reader = serving.connect();
        let mut writer = reader.twin();
        thread::scope(|scope| {
            scope.spawn(move || {
                let burst = line.repeat(10_000);
                (0..REQUESTS / 10_000).for_each(|_| writer.send(&burst));
                writer.finish();
            });
            let mut before = None;
            eventually("the server waits for the reader", || {
                thread::sleep(Duration::from_millis(50));
                let now = serving.stats()["read_bytes_total"].as_u64();
                // But for the polite client's own.
                before.replace(now).flatten().zip(now).is_some_and(|(before, now)| now - before < 2000)
            });
            let held = serving.stats()["held_bytes"].as_u64().unwrap();
            assert!(held < 300 << 10, "{held} bytes are held");
            let expected = reply.repeat(10_000);
            (0..REQUESTS / 10_000).for_each(|_| reader.expect(&expected));
            reader.expect_end();
        });
    });
    settle(serving);
}

/// Peers that send without pause and read nothing: each is let go in the end, the more so if it holds much.
#[test]
fn pipelines_that_are_never_read() {
    allow_files(4000);
    let serving = serve("--write-timeout 1s --send-buffer 16KiB");
    beside(&serving, Often, || {
        let lines = b"HELO I read nothing\n".repeat(5000);
        let mut peers: Vec<TcpStream> =
            (0..50).map(|_| TcpStream::connect(serving.address).unwrap()).collect();
        peers.iter().for_each(|peer| {
            SockRef::from(peer).set_recv_buffer_size(4096).unwrap();
            peer.set_nonblocking(true).unwrap();
        });
        let deadline = Instant::now() + DEADLINE;
        while !peers.is_empty() {
            assert!(Instant::now() < deadline, "{} were not let go", peers.len());
            peers.retain_mut(|peer| match peer.write(&lines) {
                Ok(_) => true,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            });
            thread::sleep(Duration::from_millis(1));
        }
    });
    let (_, stats) = settle(serving);
    assert_eq!(stats["connections_closed_total"]["write_timeout"], 50);
}

/// Ends of streams that come together with, before, and instead of what they end.
#[test]
fn peers_that_leave_at_once() {
    let serving = serve("--handler-delay 1ms");
    beside(&serving, Often, || {
        in_parallel(400, |number| {
            let mut stream = TcpStream::connect(serving.address).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.write_all(&b"HELO x\n".repeat(number % 5)).unwrap();
            if number % 3 == 0 && number % 5 > 0 {
                // One byte read of a reply, the rest unread: that is a reset.
                stream.read_exact(&mut [0]).unwrap();
            }
        });
    });
    settle(serving);
}

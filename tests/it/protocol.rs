//! The HELO protocol byte for byte, however the bytes are cut into packets.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use tidemill::{Helo, Server};

use crate::support::{Peer, embed, eventually, helo_reply, in_parallel, serve, skipped};

/// Sends each of `parts` only after the server has read the one before, so that each is a read of its own.
fn send_in_parts(server: &Server, peer: &mut Peer, parts: &[&[u8]]) {
    let handle = server.handle();
    for part in parts {
        let target = handle.stats().read_bytes_total + part.len() as u64;
        peer.send(part);
        eventually("the server reads a part", || handle.stats().read_bytes_total >= target);
    }
}

#[test]
fn a_helo_is_answered_with_text_address_and_student() {
    let serving = serve("");
    let mut peer = serving.connect();
    peer.send(b"HELO hi there\n");
    let port = serving.address.port();
    peer.expect(format!("HELO hi there\nIP:127.0.0.1\nPort:{port}\nStudentID:16336617\n").as_bytes());
    peer.ask("again: connections stay open");
    peer.finish();
    peer.expect_end();
}

#[test]
fn wherever_the_bytes_are_cut_the_replies_are_the_same() {
    let server = embed(Helo::new());
    let sent = b"HELO one\r\nx\nHELO \r\nHELO two\n";
    let address = server.local_addr();
    let expected =
        [helo_reply(b"one", address), helo_reply(b"", address), helo_reply(b"two", address)].concat();
    for cut in 0..=sent.len() {
        let mut peer = Peer::connect(address);
        send_in_parts(&server, &mut peer, &[&sent[..cut], &sent[cut..]]);
        peer.expect(&expected);
        peer.finish();
        peer.expect_end();
    }
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let server = embed(Helo::new());
    let mut peer = Peer::connect(server.local_addr());
    let parts: Vec<&[u8]> = b"HELO slow\r\nHELO  \t\nHELO end".chunks(1).collect();
    send_in_parts(&server, &mut peer, &parts);
    peer.finish();
    let address = server.local_addr();
    let expected = [&b"slow"[..], b"", b"end"].map(|text| helo_reply(text, address)).concat();
    peer.expect_rest(&expected);
}

#[test]
fn a_line_without_terminator_waits_for_it() {
    let server = embed(Helo::new());
    let mut peer = Peer::connect(server.local_addr());
    send_in_parts(&server, &mut peer, &[b"HELO wait"]);
    assert!(peer.is_silent_for(Duration::from_millis(50)));
    assert_eq!(server.handle().stats().requests(), 0);
    peer.send(b" for it\n");
    peer.expect_reply("wait for it");
}

#[test]
fn a_last_line_without_terminator_counts_once_the_client_has_closed_its_side() {
    let serving = serve("");
    for (sent, texts) in [
        (&b"HELO last"[..], vec![&b"last"[..]]),
        (b"HELO one\nHELO last", vec![b"one", b"last"]),
        (b"HELO one\n\nHELO ", vec![b"one", b""]),
        (b"HELO last\r", vec![b"last"]),
    ] {
        let expected: Vec<u8> = texts.iter().flat_map(|text| helo_reply(text, serving.address)).collect();
        let mut peer = serving.connect();
        peer.send(sent);
        peer.finish();
        peer.expect_rest(&expected);
    }
}

#[test]
fn half_closed_clients_get_the_replies_that_are_still_being_worked_on() {
    let serving = serve("--handler-delay 50ms --max-threads 1 --min-threads 1");
    let mut peer = serving.connect();
    peer.send(b"HELO a\nHELO b\nHELO c");
    peer.finish();
    let expected = [&b"a"[..], b"b", b"c"].map(|text| helo_reply(text, serving.address)).concat();
    peer.expect_rest(&expected);
}

#[test]
fn text_is_any_bytes() {
    let serving = serve("");
    let all: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').chain(*b"end").collect();
    let texts: [&[u8]; 7] =
        [&all, b"\0", b"\xff\xfe\x80", b"\r\r x", b"KILL_SERVICE", b"HELO ", "žluťoučký kůň".as_bytes()];
    let mut peer = serving.connect();
    for text in texts {
        peer.send(&[b"HELO ", text, b"\n"].concat());
        let kept = if text == b"HELO " { &b"HELO"[..] } else { text };
        peer.expect(&helo_reply(kept, serving.address));
    }
}

#[test]
fn text_keeps_leading_blanks_and_loses_trailing_white_space_only() {
    let serving = serve("");
    let mut peer = serving.connect();
    for (line, text) in [
        (&b"HELO \n"[..], &b""[..]),
        (b"HELO    \n", b""),
        (b"HELO \t\r\x0b\x0c \r\n", b""),
        (b"HELO   a  b\t \x0b\x0c\r\n", b"  a  b"),
        (b"HELO \ta\n", b"\ta"),
        (b"HELO a\r\r\r\n", b"a"),
        // No white space here: no-break space, NEL, information separators, NUL.
        (b"HELO a\xa0\n", b"a\xa0"),
        (b"HELO a\x85\n", b"a\x85"),
        (b"HELO a\x1f\x1c\n", b"a\x1f\x1c"),
        (b"HELO a\0\n", b"a\0"),
        ("HELO a\u{2003}\u{3000}\n".as_bytes(), "a\u{2003}\u{3000}".as_bytes()),
    ] {
        peer.send(line);
        peer.expect(&helo_reply(text, serving.address));
    }
}

#[test]
fn anything_else_has_no_reply_and_changes_nothing() {
    let serving = serve("");
    let mut peer = serving.connect();
    let lines: [&[u8]; 17] = [
        b"",
        b"\r",
        b" ",
        b"HELO",
        b"HELO\r",
        b"helo x",
        b"Helo x",
        b" HELO x",
        b"HELOx",
        b"HELO\tx",
        b"\0HELO x",
        b"EHLO x",
        b"KILL_SERVICE ",
        b" KILL_SERVICE",
        b"kill_service",
        b"KILL_SERVICES",
        b"\xff\xff",
    ];
    for line in lines {
        peer.send(&[line, b"\n"].concat());
    }
    peer.ask("still here");
    drop(peer);
    let stats = serving.stop().stats();
    assert_eq!(stats["requests_total"]["helo"]["ignored"], lines.len());
    assert_eq!(stats["requests_total"]["helo"]["request"], 1);
    assert_eq!(stats["requests_total"]["helo"]["stop"], 0);
    assert_eq!(stats["requests_silent_total"], lines.len());
}

#[test]
fn lines_up_to_the_limit_of_64_kib_are_answered() {
    let serving = serve("");
    for len in [65_535, 65_536] {
        for terminator in ["\n", "\r\n"] {
            let text = "x".repeat(len - "HELO ".len());
            let mut peer = serving.connect();
            peer.send(format!("HELO {text}{terminator}").as_bytes());
            peer.expect_reply(&text);
            peer.ask("and on");
        }
    }
    // Without a terminator, at the end of the stream.
    let text = "y".repeat(65_536 - "HELO ".len());
    let mut peer = serving.connect();
    peer.send(format!("HELO {text}").as_bytes());
    peer.finish();
    peer.expect_rest(&helo_reply(text.as_bytes(), serving.address));
}

#[test]
fn a_longer_line_is_told_so_after_earlier_replies() {
    let serving = serve("");
    let error = b"ERROR line too long (limit 65536 bytes)\n";
    for end in ["\n", "\r\n", "\nHELO never\n", "", "y"] {
        let mut peer = serving.connect();
        let line = format!("HELO first\nother\n{}{end}", "x".repeat(65_537));
        peer.send(line.as_bytes());
        peer.expect_rest(&[&helo_reply(b"first", serving.address)[..], error].concat());
    }
    let ended = serving.stop();
    ended.assert_clean();
    assert_eq!(ended.stats()["connections_closed_total"]["line_too_long"], 5);
    assert_eq!(ended.stats()["requests_total"]["helo"]["request"], 5);
}

#[test]
fn the_limit_of_a_line_can_be_set() {
    let serving = serve("--max-line 10");
    let mut peer = serving.connect();
    peer.send(b"HELO 12345\nHELO 12345\r\nHELO 12345   \n");
    peer.expect_reply("12345");
    peer.expect_reply("12345");
    peer.expect_rest(b"ERROR line too long (limit 10 bytes)\n");
}

#[test]
fn the_address_in_the_reply_is_the_one_that_was_reached() {
    let serving = serve("--bind 0.0.0.0");
    assert!(serving.address.ip().is_unspecified());
    let port = serving.address.port();
    for ip in [[127, 0, 0, 1], [127, 0, 0, 2], [127, 9, 8, 7]] {
        let address = SocketAddr::from((ip, port));
        let mut peer = Peer::connect(address);
        peer.send(b"HELO x\n");
        peer.expect(&helo_reply(b"x", address));
    }
}

#[test]
fn more_local_addresses_than_are_remembered_are_all_named_rightly() {
    let serving = serve("--bind 0.0.0.0");
    let port = serving.address.port();
    let mut peers: Vec<Peer> =
        (1..=200).map(|number| Peer::connect(SocketAddr::from(([127, 0, 1, number], port)))).collect();
    for peer in &mut peers {
        peer.ask("where am I");
    }
    drop(peers.drain(..150));
    for number in 1..=200 {
        Peer::connect(SocketAddr::from(([127, 0, 2, number], port))).ask("and now");
    }
    for peer in &mut peers {
        peer.ask("still");
    }
}

#[test]
fn ipv6_clients_are_served_and_mapped_ones_are_named_by_their_ipv4_address() {
    if TcpListener::bind("[::1]:0").is_err() {
        return skipped("no IPv6 here");
    }
    let serving = serve("--bind ::");
    let port = serving.address.port();
    let mut peer = Peer::connect(SocketAddr::new("::1".parse().unwrap(), port));
    peer.send(b"HELO six\n");
    peer.expect(format!("HELO six\nIP:::1\nPort:{port}\nStudentID:16336617\n").as_bytes());
    let mut mapped = Peer::connect(SocketAddr::from(([127, 0, 0, 1], port)));
    mapped.ask("four");
    // It counts as IPv4 loopback, and so may stop the service.
    mapped.send(b"KILL_SERVICE\n");
    mapped.expect_end();
    peer.expect_end();
    drop((peer, mapped));
    serving.wait().assert_clean();
}

#[test]
fn address_and_student_can_be_set() {
    let serving = serve("--advertise-ip 203.0.113.9 --student-id abc-42");
    let mut peer = serving.connect();
    peer.send(b"HELO x\n");
    let port = serving.address.port();
    peer.expect(format!("HELO x\nIP:203.0.113.9\nPort:{port}\nStudentID:abc-42\n").as_bytes());
}

#[test]
fn clients_that_send_in_many_small_writes_are_all_answered() {
    let serving = serve("");
    in_parallel(32, |number| {
        let mut peer = serving.connect();
        for round in 0..10 {
            let text = format!("{number} {round}");
            for byte in format!("HELO {text}\n").into_bytes() {
                peer.send(&[byte]);
            }
            peer.expect_reply(&text);
        }
    });
}

//! The example `smtp`: its rules byte for byte, and by Python's `smtplib` and `swaks`, where they are installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidemill::framing::verify;

use super::{example, missing};
use crate::support::{Ended, Peer, Serving, assert_same, scratch};

#[path = "../../examples/smtp/body.rs"]
mod body;

const GREETING: &[u8] = b"220 tidemill ESMTP\r\n";
const ENVELOPE: &str = "MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n";
const GO_ON: &str = "250 sender ok\r\n250 recipient ok\r\n354 end with a dot on a line of its own\r\n";
const TAKEN: &str = "250 the message is taken\r\n";

fn sink() -> (Serving, PathBuf) {
    let directory = scratch("mail");
    (example("smtp", &[directory.to_str().unwrap()]), directory)
}

/// What was stored, in the order in which it came; nothing else is there.
fn stored(directory: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort_by_key(|path| {
        assert_eq!(path.extension().unwrap(), "eml", "{path:?}");
        let (_, number) = path.file_stem().unwrap().to_str().unwrap().split_once('-').unwrap();
        number.parse::<u64>().unwrap()
    });
    files.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn mail(text: &[u8]) -> Vec<u8> {
    [b"Return-Path: <a@b.c>\r\nDelivered-To: <d@e.f>\r\n", text].concat()
}

/// A client that was greeted, and has greeted.
fn greeted(sink: &Serving) -> Peer {
    let mut peer = Peer::connect(sink.address);
    peer.expect(GREETING);
    peer.send(b"HELO me\r\n");
    peer.expect(b"250 tidemill\r\n");
    peer
}

#[test]
fn commands_are_answered_by_their_rules_one_by_one_and_together() {
    let dialogue = [
        ("MAIL FROM:<a@b.c>", "503 bad sequence of commands"),
        ("EHLO", "501 syntax error in the arguments"),
        ("MAIL FROM:<a@b.c>", "503 bad sequence of commands"),
        ("ehlo me", "250-tidemill\r\n250-PIPELINING\r\n250-SIZE 16777216\r\n250 8BITMIME"),
        ("RCPT TO:<d@e.f>", "503 bad sequence of commands"),
        ("DATA", "503 bad sequence of commands"),
        ("MAIL", "501 syntax error in the arguments"),
        ("MAIL FROM:a@b.c", "501 syntax error in the arguments"),
        ("MAIL FROM:<a@b.c> SIZE=16777217", "552 the message is too big"),
        ("MAIL FROM:<a@b.c> SIZE=x", "501 syntax error in the arguments"),
        ("MAIL FROM:<a@b.c> SMTPUTF8", "555 parameter not recognized"),
        ("Mail From: <a@b.c> size=16777216 body=8bitmime", "250 sender ok"),
        ("MAIL FROM:<x@y.z>", "503 bad sequence of commands"),
        ("DATA", "503 bad sequence of commands"),
        ("RCPT TO:<>", "501 syntax error in the arguments"),
        ("RCPT FOR:<d@e.f>", "501 syntax error in the arguments"),
        ("RCPT TO:<d@e.f>", "250 recipient ok"),
        ("DATA now", "501 syntax error in the arguments"),
        ("NOOP", "250 ok"),
        ("VRFY d", "252 send it, and see"),
        ("VRFY", "501 syntax error in the arguments"),
        ("DATABASE", "500 unknown command"),
        ("", "500 unknown command"),
        ("RSET", "250 ok"),
        ("DATA", "503 bad sequence of commands"),
        ("MAIL FROM:<>", "250 sender ok"),
        ("EHLO me", "250-tidemill\r\n250-PIPELINING\r\n250-SIZE 16777216\r\n250 8BITMIME"),
        ("RCPT TO:<d@e.f>", "503 bad sequence of commands"),
        ("QUIT", "221 bye"),
    ];
    let (sink, directory) = sink();
    let mut peer = Peer::connect(sink.address);
    // It says the first word.
    peer.expect(GREETING);
    for (command, reply) in dialogue {
        peer.send(format!("{command}\r\n").as_bytes());
        peer.expect(format!("{reply}\r\n").as_bytes());
    }
    peer.expect_end();
    let mut together = Peer::connect(sink.address);
    let (commands, replies): (Vec<_>, Vec<_>) = dialogue.into_iter().unzip();
    together.send((commands.join("\r\n") + "\r\nNOOP\r\n").as_bytes());
    together.expect_rest(&[GREETING, (replies.join("\r\n") + "\r\n").as_bytes()].concat());
    let mut long = greeted(&sink);
    long.send(&[b'x'; 3000]);
    long.expect_rest(b"500 ERROR line too long (limit 2048 bytes)\r\n");
    assert!(stored(&directory).is_empty());
}

#[test]
fn a_message_is_what_lies_before_the_dot_however_the_bytes_come() {
    // What is sent, and what is stored of it.
    let texts: [(&[u8], &[u8]); 8] = [
        (b"", b""),
        (b"hello\r\n", b"hello\r\n"),
        (b"\r\n\r\n", b"\r\n\r\n"),
        (b"..\r\n..one\r\n...two\r\nthree.\r\n", b".\r\n.one\r\n..two\r\nthree.\r\n"),
        (b"a\n.\nb\r\n", b"a\n.\nb\r\n"),
        (b"a\r\n..\rb\r.\r\n", b"a\r\n.\rb\r.\r\n"),
        (b"\xff\x00\r\n", b"\xff\x00\r\n"),
        (b"QUIT\r\nDATA\r\n", b"QUIT\r\nDATA\r\n"),
    ];
    let (sink, directory) = sink();
    for size in [1, 3, 64, 100_000] {
        let mut peer = greeted(&sink);
        let mut sent = Vec::new();
        for (text, _) in texts {
            sent.extend_from_slice(&[ENVELOPE.as_bytes(), text, b".\r\n"].concat());
        }
        sent.extend_from_slice(b"QUIT\r\n");
        sent.chunks(size).for_each(|chunk| peer.send(chunk));
        peer.expect_rest(((GO_ON.to_owned() + TAKEN).repeat(texts.len()) + "221 bye\r\n").as_bytes());
    }
    let stored = stored(&directory);
    assert_eq!(stored.len(), 4 * texts.len());
    for (stored, (_, text)) in stored.iter().zip(texts.iter().cycle()) {
        assert_same(stored, &mail(text));
    }
}

#[test]
fn long_messages_are_kept_up_to_the_limit_and_refused_above() {
    let (sink, directory) = sink();
    let mut peer = greeted(&sink);
    // Lines of every length, so that pieces end everywhere; each begins with a dot.
    let mut text: Vec<u8> =
        (0..4000_usize).flat_map(|len| [&vec![b'.'; len % 700 + 1][..], b"\r\n"].concat()).collect();
    text.resize(text.len() + 60_000, b'x');
    text.extend_from_slice(b"\r\n");
    let stuffed: Vec<u8> =
        text.split_inclusive(|byte| *byte == b'\n').flat_map(|line| [&b"."[..], line].concat()).collect();
    let stuffed = stuffed.strip_suffix(b".x").unwrap_or(&stuffed);
    peer.send(&[ENVELOPE.as_bytes(), stuffed, b".\r\n"].concat());
    peer.expect((GO_ON.to_owned() + TAKEN).as_bytes());
    assert_same(&stored(&directory)[0], &mail(&text));
    let before = sink.most_resident_kib();
    // Too big, and the connection goes on.
    let line = [&[b'x'; 998][..], b"\r\n"].concat();
    peer.send(&[ENVELOPE.as_bytes(), &line.repeat(17_000), b".\r\nNOOP\r\n"].concat());
    peer.expect((GO_ON.to_owned() + "552 the message is too big\r\n250 ok\r\n").as_bytes());
    let grown = sink.most_resident_kib() - before;
    assert!(grown < 4 << 10, "messages are kept in memory: {grown} KiB for one of 17 MB");
    // A line that is too long ends it, and so does going away: nothing of the message is left.
    peer.send(&[ENVELOPE.as_bytes(), &[b'x'; 70_000]].concat());
    peer.expect_rest((GO_ON.to_owned() + "500 ERROR line too long (limit 65536 bytes)\r\n").as_bytes());
    let mut gone = greeted(&sink);
    gone.send(&[ENVELOPE.as_bytes(), b"half of a"].concat());
    gone.expect(GO_ON.as_bytes());
    gone.reset();
    crate::support::eventually("nothing is left of it", || fs::read_dir(&directory).unwrap().count() == 1);
    assert_eq!(sink.stop().status.code(), Some(0));
}

#[test]
fn smtplib_sends_what_is_stored() {
    const CLIENT: &str = r#"
import smtplib, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
line = b"0123456789" * 7 + b"\r\n"
big = b"Subject: big\r\n\r\n" + line * (10_000_000 // len(line) + 1)
with smtplib.SMTP(host, port, timeout=60) as smtp:
    smtp.ehlo()
    assert smtp.has_extn("pipelining") and smtp.has_extn("8bitmime"), smtp.esmtp_features
    assert smtp.esmtp_features["size"] == "16777216"
    assert smtp.sendmail("a@b.c", ["d@e.f"], b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\n") == {}
    assert smtp.sendmail("a@b.c", ["d@e.f"], b"") == {}
    assert smtp.sendmail("a@b.c", ["d@e.f"], big) == {}
    assert smtp.sendmail("a@b.c", ["d@e.f"], "Subject: ü\r\n\r\nü\r\n".encode(), ["BODY=8BITMIME"]) == {}
    assert smtp.verify("d@e.f")[0] == 252 and smtp.noop()[0] == 250 and smtp.rset()[0] == 250
    try:
        smtp.sendmail("a@b.c", ["d@e.f"], big * 2)
        sys.exit("it is too big")
    except smtplib.SMTPSenderRefused as refused:
        assert refused.smtp_code == 552, refused
# By hand: both messages in one write, before any reply.
with socket.create_connection((host, port), 60) as pipelined:
    mail = b"MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n"
    pipelined.sendall(b"EHLO me\r\n" + mail + b"one\r\n.\r\n" + mail + b"..two\r\n.\r\nQUIT\r\n")
    replies = pipelined.makefile("rb").read().decode().split("\r\n")
    codes = [reply[:3] for reply in replies if reply[3:4] != "-"]
    assert codes == ["220", "250"] + ["250", "250", "354", "250"] * 2 + ["221", ""], replies
print("done")
"#;
    let (sink, directory) = sink();
    let (host, port) = (sink.address.ip().to_string(), sink.address.port().to_string());
    if !is_there("python3") {
        return;
    }
    let ended = Ended::of(Command::new("python3").args(["-c", CLIENT, &host, &port]));
    assert_eq!((ended.status.code(), &*ended.stdout), (Some(0), "done\n"), "{ended:?}");
    let line = [&b"0123456789".repeat(7)[..], b"\r\n"].concat();
    let big = [b"Subject: big\r\n\r\n", &line.repeat(10_000_000 / 72 + 1)[..]].concat();
    let texts: [&[u8]; 6] = [
        b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\n",
        // What smtplib makes of nothing.
        b"\r\n",
        &big,
        "Subject: ü\r\n\r\nü\r\n".as_bytes(),
        b"one\r\n",
        b".two\r\n",
    ];
    let stored = stored(&directory);
    assert_eq!(stored.len(), texts.len());
    stored.iter().zip(texts).for_each(|(stored, text)| assert_same(stored, &mail(text)));
}

#[test]
fn swaks_is_served() {
    if !is_there("swaks") {
        return;
    }
    let (sink, directory) = sink();
    let server = sink.address.to_string();
    let (host, port) = server.split_once(':').unwrap();
    for pipeline in [&[][..], &["--pipeline"]] {
        let mut swaks = Command::new("swaks");
        swaks.args(["--server", host, "--port", port, "--from", "a@b.c", "--to", "d@e.f,g@h.i"]);
        swaks.args(["--ehlo", "me", "--data", r"Subject: x\n\n.\n.dot\nlast\n"]).args(pipeline);
        let ended = Ended::of(&mut swaks);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
    let stored = stored(&directory);
    assert_eq!(stored.len(), 2);
    let expected = "Return-Path: <a@b.c>\r\nDelivered-To: <d@e.f>\r\nDelivered-To: <g@h.i>\r\nSubject: x\r\n\r\n.\r\n.dot\r\nlast\r\n";
    for text in stored {
        assert_eq!(String::from_utf8_lossy(&text).trim_end(), expected.trim_end());
    }
}

/// Whether a client is installed.
fn is_there(client: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|directory| directory.join(client).exists());
    if !there {
        missing(&format!("{client} is not installed"));
    }
    there
}

#[test]
fn pieces_of_a_message_do_not_depend_on_how_the_bytes_are_cut() {
    for text in [&b".\r\n"[..], b"\r\n.\r\n", b".\r.\r\n.\n.\r\n\n.\r\n..\r\n.\r\n", b".\r\nNOOP\r\n", b".\r"]
    {
        verify(&body::Body, text);
    }
    let (frames, _) = verify(&body::Body, b"..a\r\nb\r\n.\r\n");
    assert!(frames.len() == 1 && body::is_last(&frames[0]));
    assert_eq!(body::text(&frames[0]), b".a\r\nb\r\n");
}

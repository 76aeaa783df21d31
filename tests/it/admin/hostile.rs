//! Whoever does what he likes to the admin address: the service does not notice, and others are answered as soon as he is gone.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::{MAX_CONNECTIONS, TIMEOUT, admin_of_program, connect, get, read_answer, try_get};
use crate::examples::missing;
use crate::support::{DEADLINE, Serving, SetAtEnd, assert_json_adds_up, eventually, serve};

/// All that is said until the end of the stream.
fn until_the_end(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset ends it, too.
    drop(stream.read_to_end(&mut all));
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn a_head_above_8_kib_is_told_so_and_closed() {
    let serving = serve("--admin 0");
    let mut stream = connect(admin_of_program(&serving));
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ").unwrap();
    stream.write_all(&[b'x'; 9000]).unwrap();
    let mut rest = Vec::new();
    let answer = read_answer(&mut stream, &mut rest, true).unwrap();
    assert_eq!((answer.status, answer.field("connection")), (431, Some("close")));
    assert!(read_answer(&mut stream, &mut rest, true).is_none());
}

#[test]
fn who_does_not_finish_is_closed_after_five_seconds() {
    let serving = serve("--admin 0");
    let admin = admin_of_program(&serving);
    let begun = Instant::now();
    let (mut half, mut silent, mut dripping) = (connect(admin), connect(admin), connect(admin));
    half.write_all(b"GET /metr").unwrap();
    let mut twin = dripping.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            // A byte now and then does not help.
            for byte in b"GET / HTTP/1.1\r\nHost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" {
                if twin.write_all(&[*byte]).is_err() {
                    break;
                }
                thread::sleep(TIMEOUT / 50);
            }
        });
        let told = until_the_end(&mut half);
        assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
        assert!(begun.elapsed() >= TIMEOUT, "{:?}", begun.elapsed());
        assert_eq!(until_the_end(&mut silent), "");
        let told = until_the_end(&mut dripping);
        assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    });
    assert!(begun.elapsed() < DEADLINE);
}

#[test]
fn one_more_than_64_is_told_so_and_others_are_answered_once_they_have_gone() {
    let serving = serve("--admin 0");
    let admin = admin_of_program(&serving);
    let mut held: Vec<TcpStream> = (0..MAX_CONNECTIONS).map(|_| connect(admin)).collect();
    for stream in &mut held {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert_eq!(read_answer(stream, &mut Vec::new(), true).unwrap().status, 200);
    }
    let told = until_the_end(&mut connect(admin));
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    serving.connect().ask("clients are not concerned");
    drop(held.pop());
    eventually("there is a place", || try_get(admin, "/healthz").is_some_and(|answer| answer.status == 200));
    drop(held);
}

/// A page elsewhere whose name is made to stand for this machine is the same to a browser as what is asked for by that name here.
#[test]
fn on_the_loopback_interface_nobody_is_answered_by_another_name() {
    let curl = |address: SocketAddr, name: &str, path: &str| {
        let port = address.port();
        let mut command = Command::new("curl");
        command.args(["--silent", "--max-time", "20", "--write-out", "%{http_code}", "--resolve"]);
        command.arg(format!("{name}:{port}:127.0.0.1")).arg(format!("http://{name}:{port}{path}"));
        let output = command.output().ok()?;
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let serving = serve("--admin 0");
    let admin = admin_of_program(&serving);
    if curl(admin, "127.0.0.1", "/healthz").is_none() {
        return missing("curl is not installed");
    }
    for path in ["/", "/stats.json", "/metrics", "/connections.json", "/healthz", "/nowhere"] {
        let told = curl(admin, "rebound.example", path).unwrap();
        assert!(told.starts_with("Misdirected Request: ") && told.ends_with("\n421"), "{told}");
    }
    for name in ["localhost", "127.0.0.1", "some.localhost"] {
        assert_eq!(curl(admin, name, "/healthz").unwrap(), "ok\n200", "{name}");
    }
    // Where monitors elsewhere can reach it, they do so by names that are not known here.
    let serving = serve("--admin 0.0.0.0:0");
    let admin = admin_of_program(&serving);
    assert_eq!(curl(admin, "tidemill.default.svc", "/healthz").unwrap(), "ok\n200");
}

/// Silent connections hold the address for their five seconds only.
#[test]
fn silent_connections_give_way() {
    let serving = serve("--admin 0");
    let admin = admin_of_program(&serving);
    let _held: Vec<TcpStream> = (0..MAX_CONNECTIONS).map(|_| connect(admin)).collect();
    eventually("they have been closed", || {
        try_get(admin, "/healthz").is_some_and(|answer| answer.status == 200)
    });
}

/// With few descriptors, clients get theirs, and the address has some of its own.
#[test]
fn of_64_descriptors_some_are_for_it_and_most_are_for_clients() {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64 && exec \"$0\" serve 0 --admin 0", env!("CARGO_BIN_EXE_tidemill")]);
    let serving = Serving::start(command);
    let admin = admin_of_program(&serving);
    let mut peers: Vec<_> = (0..40).map(|_| serving.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.ask("x"));
    // As many more as there may be, and beyond.
    let more: Vec<_> = (0..40).map(|_| serving.connect()).collect();
    let stats = get(admin, "/stats.json").json();
    assert!(stats["connections"].as_u64() >= Some(40), "{stats}");
    let admins: Vec<TcpStream> = (0..40).map(|_| connect(admin)).collect();
    peers.iter_mut().for_each(|peer| peer.ask("y"));
    drop((more, admins));
    eventually("it answers again", || try_get(admin, "/healthz").is_some_and(|answer| answer.status == 200));
    drop(peers);
    serving.stop().assert_clean();
}

/// Rubbish of every kind from many connections at once, beside a client that asks on and on.
#[test]
fn rubbish_disturbs_nobody() {
    let serving = serve("--admin 0");
    let admin = admin_of_program(&serving);
    let over = AtomicBool::new(false);
    let asked = thread::scope(|scope| {
        let _over = SetAtEnd(&over);
        for number in 0..16_u8 {
            let over = &over;
            scope.spawn(move || {
                let mut kind = number;
                while !over.load(Relaxed) {
                    kind = kind.wrapping_add(1);
                    let Ok(mut stream) = TcpStream::connect(admin) else { continue };
                    // Whatever becomes of it.
                    drop(match kind % 7 {
                        0 => stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
                        1 => stream.write_all(&[kind; 20_000]),
                        2 => stream.write_all(
                            &b"GET /connections.json?top=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100),
                        ),
                        3 => stream.write_all(&b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50)),
                        4 => stream.write_all(
                            b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
                        ),
                        5 => stream.write_all("\r\n".repeat(3000).as_bytes()),
                        _ => Ok(()),
                    });
                    if kind % 2 == 0 {
                        drop(stream.shutdown(std::net::Shutdown::Write));
                        until_the_end(&mut stream);
                    }
                }
            });
        }
        let mut peer = serving.connect();
        let begun = Instant::now();
        let mut asked = 0;
        while begun.elapsed().as_secs() < 2 {
            peer.ask("polite");
            asked += 1;
        }
        asked
    });
    eventually("it answers again", || try_get(admin, "/healthz").is_some_and(|answer| answer.status == 200));
    let ended = serving.stop();
    ended.assert_clean();
    let stats: Value = ended.stats();
    assert_json_adds_up(&stats);
    assert_eq!(stats["replies_total"], asked, "{stats}");
    assert_eq!(
        (&stats["connections_accepted_total"], &stats["accept_errors_total"]),
        (&1.into(), &0.into()),
        "{stats}"
    );
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

/// An answer that nobody reads is let go, and holds nothing up.
#[test]
fn who_does_not_read_is_closed() {
    let serving = serve("--admin 0");
    let admin = admin_of_program(&serving);
    let mut stream = connect(admin);
    stream.set_write_timeout(Some(TIMEOUT / 5)).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    // Until nothing goes any more: it is not read either, then.
    let begun = Instant::now();
    while stream.write_all(&request).is_ok() {
        assert!(begun.elapsed() < DEADLINE, "nothing holds it back");
    }
    serving.connect().ask("x");
    eventually("it was closed", || {
        stream.write_all(b"x").is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
    });
    assert_eq!(get(admin, "/healthz").status, 200);
}

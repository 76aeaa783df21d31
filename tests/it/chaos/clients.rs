//! Twelve kinds of clients. What each does follows from its random numbers alone.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use fastrand::Rng;

use super::session::{Account, Over, Session};

const MS: Duration = Duration::from_millis(1);
/// Longest line that the servers here take.
pub(crate) const MAX_LINE: usize = 2000;
/// How long the servers here wait for the rest of a line.
pub(crate) const LINE_TIMEOUT: &str = "3s";

/// What a client is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Asks, waits for the reply, asks again.
    Polite,
    /// Many requests in one write.
    Pipeliner,
    /// A byte at a time.
    Dribbler,
    /// Many requests, and replies read slowly through a small window.
    SlowReader,
    /// Sends requests and resets.
    Resetter,
    /// Sends requests and is gone, reading little or nothing.
    Leaver,
    /// Ends its sending side within a line, which counts.
    HalfCloser,
    /// Says much that is no request, and some that is.
    Babbler,
    /// A line that is too long.
    TooLong,
    /// Connects and says nothing for a while, or ever.
    Idler,
    /// Wants to stop the service and may not.
    Killer,
    /// Begins a line and never completes it.
    Unfinished,
}

const KINDS: [Kind; 12] = [
    Kind::Polite,
    Kind::Pipeliner,
    Kind::Dribbler,
    Kind::SlowReader,
    Kind::Resetter,
    Kind::Leaver,
    Kind::HalfCloser,
    Kind::Babbler,
    Kind::TooLong,
    Kind::Idler,
    Kind::Killer,
    Kind::Unfinished,
];

/// Where clients connect, and what they look at.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) server: SocketAddr,
    /// Set before the server is told to stop: from then on it may end connections.
    pub(crate) stopping: &'a AtomicBool,
}

/// Plays client `number` until it has done what it means to, or the server has stopped. Returns its books.
pub(crate) fn play(number: usize, seed: u64, sessions: usize, place: Place<'_>) -> Account {
    let mut random = Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
    let kind = KINDS[random.usize(..KINDS.len())];
    let mut account = Account::default();
    thread::sleep(MS * random.u32(0..100));
    for session in 0..sessions {
        let before = account;
        let name = format!("{seed}.{number}.{session}");
        // Drawn here, so that how far one session came does not change the next.
        let random = random.fork();
        if session_of(kind, &name, random, place, &mut account).is_err() {
            break;
        }
        assert!(account.connects > before.connects);
    }
    account
}

fn session_of(
    kind: Kind,
    name: &str,
    mut random: Rng,
    place: Place<'_>,
    account: &mut Account,
) -> Result<(), Over> {
    let window = (kind == Kind::SlowReader).then_some(2048);
    let mut session = Session::connect(place.server, window, account, place.stopping)?;
    let count = random.usize(1..60);
    match kind {
        Kind::Polite => {
            for request in 0..count {
                session.request(&format!("{name} {request}"))?;
                session.read_reply()?;
                thread::sleep(MS * random.u32(0..5));
            }
            session.finish()
        }
        Kind::Pipeliner => {
            for _ in 0..random.usize(1..5) {
                pipeline(&mut session, name, random.usize(1..300))?;
                session.read_replies()?;
            }
            session.finish()
        }
        Kind::Dribbler => {
            session.note_request(name);
            session.note_request("again");
            for byte in format!("HELO {name}\r\nHELO again\n").bytes() {
                session.send(&[byte])?;
                thread::sleep(MS * random.u32(0..4));
            }
            session.finish()
        }
        Kind::SlowReader => {
            pipeline(&mut session, name, 5 * count)?;
            for _ in 0..5 * count {
                session.read_reply()?;
                if random.u8(0..8) == 0 {
                    thread::sleep(MS * random.u32(0..10));
                }
            }
            session.finish()
        }
        Kind::Resetter | Kind::Leaver => {
            match random.u8(0..4) {
                0 => {}
                1 => {
                    // A last line, if its end is seen before the reset.
                    session.note_ignored();
                    session.send(b"HEL")?;
                }
                _ => pipeline(&mut session, name, count)?,
            }
            if random.bool() {
                session.read_a_little_if_owed();
            }
            session.leave(kind == Kind::Resetter);
            // Beside the others, not instead of them.
            thread::sleep(MS * random.u32(5..30));
            Ok(())
        }
        Kind::HalfCloser => {
            pipeline(&mut session, name, count % 5)?;
            session.note_request("the last");
            session.send(b"HELO the last")?;
            session.finish()
        }
        Kind::Babbler => {
            for request in 0..count {
                for _ in 0..random.usize(0..20) {
                    session.note_ignored();
                    session.send(
                        [&b"\n"[..], b"helo\r\n", b"\0\x16\x03\n", b"GET / HTTP/1.1\r\n"][random.usize(0..4)],
                    )?;
                }
                session.request(&format!("{name} {request}"))?;
                if random.bool() {
                    session.read_replies()?;
                }
            }
            session.finish()
        }
        Kind::TooLong => {
            pipeline(&mut session, name, count % 8)?;
            session.send(&vec![b'x'; MAX_LINE + random.usize(3..5000)])?;
            session.told(&format!("ERROR line too long (limit {MAX_LINE} bytes)\n"))?;
            session.account().too_long += 1;
            Ok(())
        }
        Kind::Idler => {
            thread::sleep(MS * random.u32(0..300));
            if random.bool() {
                session.request(name)?;
            }
            session.finish()
        }
        Kind::Killer => {
            pipeline(&mut session, name, count % 8)?;
            session.note_ignored();
            session.send(b"KILL_SERVICE\n")?;
            session.told("ERROR KILL_SERVICE refused\n")?;
            session.account().refused += 1;
            Ok(())
        }
        Kind::Unfinished => {
            pipeline(&mut session, name, count % 8)?;
            session.send(b"HELO I never")?;
            session.told(&format!("ERROR line not completed within {LINE_TIMEOUT}\n"))?;
            session.account().incomplete += 1;
            Ok(())
        }
    }
}

/// Requests in one write.
fn pipeline(session: &mut Session<'_>, name: &str, count: usize) -> Result<(), Over> {
    let mut lines = String::new();
    for request in 0..count {
        let text = format!("{name} {request}");
        lines += &format!("HELO {text}\n");
        session.note_request(&text);
    }
    session.send(lines.as_bytes())
}

//! Many peers of every kind at once, by seeded chance: what each of them saw, and the server's own account, must be the same.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use tidemill::{Address, Handler, Kind, Reply, Request, Server, ServerHandle, Stats, StopFrom};

use crate::support::{
    DEADLINE, allow_files, assert_adds_up, assert_same, configure, eventually, resolved, scratch,
};

const MAX_LINE: usize = 300;
const PEERS: u64 = 40;

/// `many N` is answered with so many bytes, `silent` and lines that begin with `#` not at all, others with themselves.
struct Mixture;

impl Handler for Mixture {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        let line = request.line();
        match line {
            b"silent" => return,
            b"panic" => panic!("on purpose"),
            b"slow" => thread::sleep(Duration::from_millis(1)),
            b"close" => reply.close(),
            _ => {}
        }
        reply.push(&answer(line));
    }

    fn classify(&self, line: &[u8]) -> Kind {
        match line {
            b"stop" => Kind::Stop,
            [b'#', ..] => Kind::Ignored,
            _ => Kind::Request,
        }
    }

    fn stop_line(&self) -> Option<&[u8]> {
        Some(b"stop")
    }
}

fn answer(line: &[u8]) -> Vec<u8> {
    let many = line.strip_prefix(b"many ").and_then(|count| std::str::from_utf8(count).ok()?.parse().ok());
    match many {
        Some(count) => vec![b'y'; count],
        None => [line, b"\n"].concat(),
    }
}

/// What the server must have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Account {
    requests: u64,
    stops: u64,
    ignored: u64,
    replies: u64,
    silent: u64,
    dropped: u64,
}

impl Account {
    fn of(stats: &Stats) -> Account {
        let requests = stats.requests_total["service"];
        Account {
            requests: requests.request,
            stops: requests.stop,
            ignored: requests.ignored,
            replies: stats.replies_total,
            silent: stats.requests_silent_total,
            dropped: stats.requests_dropped_total,
        }
    }

    fn with(self, other: Account) -> Account {
        Account {
            requests: self.requests + other.requests,
            stops: self.stops + other.stops,
            ignored: self.ignored + other.ignored,
            replies: self.replies + other.replies,
            silent: self.silent + other.silent,
            dropped: self.dropped + other.dropped,
        }
    }
}

/// What a peer sends, and what must come of it.
#[derive(Debug, Default)]
struct Script {
    sends: Vec<u8>,
    expects: Vec<u8>,
    /// Where in `expects` each reply ends.
    reply_ends: Vec<usize>,
    account: Account,
}

impl Script {
    fn new(rng: &mut fastrand::Rng) -> Script {
        let mut script = Script::default();
        for _ in 0..rng.usize(0..60) {
            let line = match rng.u8(0..16) {
                0 | 1 => b"silent".to_vec(),
                2 | 3 => b"slow".to_vec(),
                4..=6 => [b"#", &vec![b'z'; rng.usize(0..100)][..]].concat(),
                7 => format!("many {}", rng.usize(1..20_000)).into_bytes(),
                8 => format!("many {}", rng.usize(20_000..1_000_000)).into_bytes(),
                9 => vec![b'x'; MAX_LINE],
                _ => vec![b'x'; rng.usize(0..40)],
            };
            script.add(&line);
            script.sends.extend(if rng.bool() { &b"\n"[..] } else { b"\r\n" });
        }
        script.end(rng);
        script
    }

    fn add(&mut self, line: &[u8]) {
        self.sends.extend(line);
        let account = &mut self.account;
        match line {
            [b'#', ..] => (account.ignored, account.silent) = (account.ignored + 1, account.silent + 1),
            b"silent" => (account.requests, account.silent) = (account.requests + 1, account.silent + 1),
            _ => {
                (account.requests, account.replies) = (account.requests + 1, account.replies + 1);
                self.expects.extend(answer(line));
                self.reply_ends.push(self.expects.len());
            }
        }
    }

    /// The last line, which may end the connection. Nothing is behind it that would have to be counted.
    fn end(&mut self, rng: &mut fastrand::Rng) {
        let account = &mut self.account;
        match rng.u8(0..8) {
            0 => {
                (account.requests, account.dropped) = (account.requests + 1, account.dropped + 1);
                self.sends.extend(b"panic\n");
                self.expects.extend(b"ERROR internal error\n");
            }
            1 => {
                (account.stops, account.silent) = (account.stops + 1, account.silent + 1);
                self.sends.extend(b"stop\r\nbehind\n#behind\n");
                self.expects.extend(b"ERROR stop refused\n");
            }
            2 => {
                self.sends.extend([b'x'; MAX_LINE + 1]);
                self.sends.extend(b"\nbehind\n");
                self.expects.extend(format!("ERROR line too long (limit {MAX_LINE} bytes)\n").as_bytes());
            }
            3 => {
                self.add(b"close");
                self.sends.extend(b"\n");
            }
            4 => self.add(b"without a terminator"),
            _ => {}
        }
    }
}

/// A peer's end of a connection of either kind.
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Where a server listens.
struct Doors {
    tcp: SocketAddr,
    unix: PathBuf,
}

impl Doors {
    /// `None`: the server is not there any more.
    fn connect(&self, rng: &mut fastrand::Rng) -> Option<Socket> {
        let socket = match rng.bool() {
            true => Socket::Tcp(TcpStream::connect(self.tcp).ok()?),
            false => Socket::Unix(UnixStream::connect(&self.unix).ok()?),
        };
        let timeout = Some(DEADLINE);
        match &socket {
            Socket::Tcp(stream) => stream.set_read_timeout(timeout).and(stream.set_write_timeout(timeout)),
            Socket::Unix(stream) => stream.set_read_timeout(timeout).and(stream.set_write_timeout(timeout)),
        }
        .unwrap();
        Some(socket)
    }
}

impl Socket {
    fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).read(buffer),
            Socket::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }

    /// Sends in pieces of any size. The server may end the connection meanwhile.
    fn send(&self, mut bytes: &[u8], mut rng: fastrand::Rng) {
        let most = [3, 50, 5000][rng.usize(0..3)];
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(rng.usize(1..=most).min(bytes.len()));
            let sent = match self {
                Socket::Tcp(stream) => (&mut &*stream).write_all(piece),
                Socket::Unix(stream) => (&mut &*stream).write_all(piece),
            };
            if sent.is_err() {
                return;
            }
            bytes = rest;
            if rng.u8(0..10) == 0 {
                thread::yield_now();
            }
        }
    }

    fn finish(&self) {
        // The server may have ended the connection.
        drop(match self {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Socket::Unix(stream) => stream.shutdown(Shutdown::Write),
        });
    }

    /// Plays a script to its end, and returns what came.
    fn play(&self, script: &Script, rng: &mut fastrand::Rng) -> Vec<u8> {
        thread::scope(|scope| {
            let writers_rng = rng.fork();
            scope.spawn(|| {
                self.send(&script.sends, writers_rng);
                self.finish();
            });
            let (mut came, mut buffer) = (Vec::new(), vec![0; [100, 4096, 1 << 20][rng.usize(0..3)]]);
            loop {
                match self.read(&mut buffer) {
                    Ok(0) => return came,
                    Ok(count) => came.extend(&buffer[..count]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => panic!("{error} after {} of {} bytes", came.len(), script.expects.len()),
                }
            }
        })
    }

    /// Goes away in the middle, in one way or another.
    fn misbehave(self, script: &Script, rng: &mut fastrand::Rng) {
        match &self {
            Socket::Tcp(stream) => stream.set_nonblocking(true),
            Socket::Unix(stream) => stream.set_nonblocking(true),
        }
        .unwrap();
        self.send(&script.sends[..rng.usize(0..=script.sends.len())], rng.fork());
        // What has come by now, or a part of it, or nothing.
        drop(self.read(&mut vec![0; rng.usize(0..5000)]));
        if let Socket::Tcp(stream) = &self
            && rng.bool()
        {
            socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
}

fn server(seed: u64) -> (Server, Doors) {
    allow_files(4000);
    let unix = scratch("mixture").join("socket");
    let mut rng = fastrand::Rng::with_seed(seed);
    let server = configure(Mixture, |config| {
        config.listen.push(Address::Unix(unix.clone()));
        config.max_line_bytes = MAX_LINE;
        config.max_pending = [1, 7, 65_536][rng.usize(0..3)];
        config.high_watermark_bytes = [1, 1000, 32 << 10][rng.usize(0..3)];
        (config.min_threads, config.max_threads) = (1, rng.usize(1..8));
        config.stop_from = StopFrom::None;
    });
    let tcp = resolved(server.local_addr());
    (server, Doors { tcp, unix })
}

/// Peers side by side, each with a script and a chance of its own, numbered from 0.
fn side_by_side<T: Send>(seed: u64, play: impl Fn(u64, Script, fastrand::Rng) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let play = &play;
        let peers: Vec<_> = (0..PEERS)
            .map(|number| {
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(seed * 1000 + number);
                    play(number, Script::new(&mut rng), rng)
                })
            })
            .collect();
        peers.into_iter().map(|peer| peer.join().unwrap()).collect()
    })
}

/// Nobody is there any more, and nothing is left of anybody.
fn settled(handle: &ServerHandle) -> Stats {
    eventually("all have gone, with all that was theirs", || {
        let stats = handle.stats();
        (stats.connections, stats.requests_pending, stats.held_bytes) == (0, 0, 0)
    });
    let stats = handle.stats();
    assert_adds_up(&stats);
    stats
}

#[test]
fn every_account_balances_whatever_the_peers_do() {
    for seed in 0..6 {
        let (server, doors) = server(seed);
        let handle = server.handle();
        // Those that read all that comes know what must have been counted, to the last line.
        let accounts = side_by_side(seed, |_, script, mut rng| {
            let came = doors.connect(&mut rng).unwrap().play(&script, &mut rng);
            assert_same(&came, &script.expects);
            script.account
        });
        let all = accounts.into_iter().fold(Account::default(), Account::with);
        let stats = settled(&handle);
        assert_eq!(Account::of(&stats), all, "seed {seed}");
        assert_eq!(stats.connections_accepted_total, PEERS);

        // Beside those that go away in the middle nobody else loses anything.
        let accounts = side_by_side(seed + 100, |number, script, mut rng| {
            let socket = doors.connect(&mut rng).unwrap();
            if number % 3 > 0 {
                socket.misbehave(&script, &mut rng);
                return (Account::default(), script.account);
            }
            assert_same(&socket.play(&script, &mut rng), &script.expects);
            (script.account, script.account)
        });
        let least = accounts.iter().fold(all, |sum, (least, _)| sum.with(*least));
        let most = accounts.iter().fold(all, |sum, (_, most)| sum.with(*most));
        let counted = Account::of(&settled(&handle));
        assert!((least.requests..=most.requests).contains(&counted.requests), "seed {seed}: {counted:?}");
        assert!((least.replies..=most.replies).contains(&counted.replies), "seed {seed}: {counted:?}");
        assert!((least.ignored..=most.ignored).contains(&counted.ignored), "seed {seed}: {counted:?}");
        assert!((least.stops..=most.stops).contains(&counted.stops), "seed {seed}: {counted:?}");
    }
}

#[test]
fn every_account_balances_when_a_stop_comes_at_any_moment() {
    for seed in 200..206 {
        let (server, doors) = server(seed);
        let handle = server.handle();
        let begin = Barrier::new(usize::try_from(PEERS).unwrap());
        let replies = side_by_side(seed, |number, script, mut rng| {
            begin.wait();
            if number == 0 {
                let replies = rng.u64(0..200);
                eventually("some are answered, or all are", || {
                    let stats = handle.stats();
                    stats.replies_total >= replies || stats.connections == 0
                });
                handle.stop();
                return 0;
            }
            let Some(socket) = doors.connect(&mut rng) else { return 0 };
            let came = socket.play(&script, &mut rng);
            // Replies from the first one on, each of them whole.
            assert!(script.expects.starts_with(&came), "{}", came.len());
            let whole = script.reply_ends.partition_point(|end| *end <= came.len());
            let end = whole.checked_sub(1).map_or(0, |last| script.reply_ends[last]);
            assert!(came.len() == end || came.len() == script.expects.len(), "ended inside a reply");
            whole as u64
        });
        let outcome = server.wait().unwrap();
        assert!(outcome.is_clean(), "seed {seed}: {outcome:?}");
        let stats = &outcome.stats;
        assert_adds_up(stats);
        assert_eq!(stats.replies_total, replies.iter().sum::<u64>(), "seed {seed}");
        assert_eq!((stats.connections, stats.requests_pending, stats.held_bytes), (0, 0, 0));
    }
}

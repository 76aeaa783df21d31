//! What connections hold: bounded, known, and given back.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use tidemill::{Address, Reply, Request};

use crate::support::{
    DEADLINE, Peer, Serving, SetAtEnd, allow_files, configure, echo, embed, eventually, resolved, scratch,
    seed, serve, tell,
};

/// A peer that does not read costs at most this beyond a line and a reply.
const MAX_HELD: u64 = 200 << 10;

/// Held by each of a few peers that send `line` without end and never read. Over Unix sockets, of which the kernel holds
/// little, so that it is soon full.
fn held_by_a_peer_that_does_not_read(
    line: &[u8],
    handler: impl Fn(&Request<'_>, &mut Reply<'_>) + Send + Sync + 'static,
) -> u64 {
    const PEERS: usize = 8;
    let path = scratch("memory").join("socket");
    let server = configure(handler, |config| config.listen = vec![Address::Unix(path.clone())]);
    let handle = server.handle();
    let lines = line.repeat((1 << 20) / line.len());
    let peers: Vec<UnixStream> = (0..PEERS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    peers.iter().for_each(|peer| peer.set_nonblocking(true).unwrap());
    let mut before = None;
    eventually("all are held back, and nothing moves any more", || {
        for mut peer in &peers {
            match peer.write(&lines) {
                Ok(written) => {
                    assert!(written > 0);
                    before = None;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        let stats = handle.stats();
        let now = (stats.read_bytes_total, stats.requests(), stats.pool_busy, stats.held_bytes);
        before.replace(now) == Some(now) && now.2 == 0 && stats.requests_pending > 0
    });
    let held = handle.stats().held_bytes / PEERS as u64;
    assert!(held > 1000, "nobody held anything: {held}");
    drop(peers);
    eventually("nothing is held for nobody", || {
        let stats = handle.stats();
        (stats.connections, stats.held_bytes, stats.requests_pending) == (0, 0, 0)
    });
    held
}

#[test]
fn a_peer_that_does_not_read_costs_little_whatever_its_lines_and_replies_look_like() {
    let one_byte = |_: &Request<'_>, reply: &mut Reply<'_>| reply.push(b"x");
    let held = held_by_a_peer_that_does_not_read(b"\n", one_byte);
    assert!(held <= MAX_HELD, "{held} with replies of a byte");
    let long = [&[b'x'; 2000][..], b"\n"].concat();
    let held = held_by_a_peer_that_does_not_read(&long, echo);
    assert!(held <= MAX_HELD, "{held} with lines of 2 kB");
    let held = held_by_a_peer_that_does_not_read(&long, one_byte);
    assert!(held <= MAX_HELD, "{held} with lines of 2 kB and replies of a byte");
    const REPLY: usize = 1 << 20;
    let held = held_by_a_peer_that_does_not_read(b"\n", |_, reply| reply.push(&[b'x'; REPLY]));
    assert!(held <= MAX_HELD + REPLY as u64, "{held} with replies of {REPLY} bytes");
}

#[test]
fn held_bytes_are_what_the_connections_hold() {
    const PEERS: u64 = 20;
    const HALF: u64 = 10_000;
    let server = embed(echo);
    let handle = server.handle();
    let half = vec![b'x'; usize::try_from(HALF).unwrap()];
    let mut peers: Vec<Peer> = (0..PEERS).map(|_| Peer::connect(server.local_addr())).collect();
    peers.iter_mut().for_each(|peer| peer.send(&half));
    eventually("half of each line is read", || handle.stats().read_bytes_total == PEERS * HALF);
    let held = handle.stats().held_bytes;
    assert!((PEERS * HALF..PEERS * (HALF + 17_000)).contains(&held), "{held}");
    for peer in &mut peers {
        peer.send(b"\n");
        peer.expect(&[&half[..], b"\n"].concat());
    }
    eventually("nothing is held any more", || handle.stats().held_bytes == 0);
    assert_eq!(handle.stats().connections, PEERS);
}

#[test]
fn what_is_freed_goes_back() {
    const PEERS: usize = 200;
    allow_files(4000);
    let serving = serve("");
    let half = vec![b'x'; 60_000];
    let mut resident = Vec::new();
    for round in 1..=5_u64 {
        let mut peers: Vec<Peer> = (0..PEERS).map(|_| serving.connect()).collect();
        peers.iter_mut().for_each(|peer| peer.send(&half));
        eventually("all is read", || {
            serving.stats()["read_bytes_total"] == round * PEERS as u64 * half.len() as u64
        });
        assert!(serving.stats()["held_bytes"].as_u64().unwrap() >= PEERS as u64 * half.len() as u64);
        drop(peers);
        eventually("all are gone", || serving.stats()["connections"] == 0);
        resident.push(serving.resident_kib());
    }
    let (first, last) = (resident[0], resident[4]);
    assert!(last <= first + 1024, "KiB after each burst: {resident:?}");
}

/// A peer that reads nothing held its place, and what it was to be told, for ever. (issue 13)
#[test]
fn a_peer_that_never_reads_is_let_go_also_when_it_is_leaving() {
    for line in [&b"close\n"[..], b"stay\n"] {
        let handler = |request: &Request<'_>, reply: &mut Reply<'_>| {
            reply.push(&vec![b'x'; 32 << 20]);
            if request.line() == b"close" {
                reply.close();
            }
        };
        let server = configure(handler, |config| config.write_timeout = Some(Duration::from_millis(200)));
        let handle = server.handle();
        let mut peer = Peer::with_small_buffer(resolved(server.local_addr()), 4096);
        peer.send(line);
        eventually("it is let go", || handle.stats().connections_closed_total.write_timeout == 1);
        assert_eq!(handle.stats().held_bytes, 0);
        assert_eq!(handle.stats().requests_dropped_total, 1);
    }
}

/// Those that hold most are closed, the others are not touched.
#[test]
fn above_the_limit_of_memory_the_connections_that_hold_most_are_closed() {
    const LIMIT: u64 = 4 << 20;
    let server = configure(echo, |config| config.max_memory_bytes = usize::try_from(LIMIT).unwrap());
    let handle = server.handle();
    let mut polite: Vec<Peer> = (0..20).map(|_| Peer::connect(server.local_addr())).collect();
    polite.iter_mut().for_each(|peer| peer.send(b"half of a short line"));
    let half = vec![b'x'; 60_000];
    let greedy: Vec<Peer> = (0..200)
        .map(|_| {
            let mut peer = Peer::connect(server.local_addr());
            peer.send(&half);
            assert!(handle.stats().held_bytes <= LIMIT + (2 << 20), "{}", handle.stats().held_bytes);
            peer
        })
        .collect();
    eventually("all is read", || {
        let stats = handle.stats();
        stats.read_bytes_total == 20 * 20 + 200 * 60_000 && stats.held_bytes <= LIMIT + LIMIT / 16
    });
    let closed = handle.stats().connections_closed_total.memory;
    // As many as have to, and no more: 200 of them hold 12 MB, of which 4 MiB may stay.
    assert!((125..=140).contains(&closed), "{closed} were closed");
    for peer in &mut polite {
        peer.send(b"\n");
        peer.expect(b"half of a short line\n");
    }
    drop((polite, greedy));
}

/// Whatever the peers are like: the process grows by the limit and a little, not by what they would have it hold, nor by what the
/// allocator makes of it.
#[test]
fn resident_memory_stays_within_the_limit_whatever_the_peers_do() {
    const LIMIT_KIB: u64 = 48 << 10;
    const PEERS: usize = 3500;
    allow_files(PEERS + 3500);
    let half = vec![b'x'; 64_000];
    let long = [&b"HELO "[..], &[b'x'; 2000], b"\n"].concat().repeat(100);
    let tiny = b"HELO \n".repeat(20_000);
    for (name, kinds) in [("lines of 2 kB", &[&long][..]), ("all kinds", &[&half, &long, &tiny])] {
        let serving = serve("--max-memory 48MiB");
        let before = serving.resident_kib();
        let mut polite = serving.connect();
        let mut peers = Vec::new();
        let mut worst = 0;
        for number in 0..PEERS {
            let mut peer = Peer::with_small_buffer(serving.address, 4096);
            peer.send_what_goes(kinds[number % kinds.len()]);
            peers.push(peer);
            if number % 50 == 0 {
                polite.ask("still here");
                worst = worst.max(serving.resident_kib());
            }
        }
        polite.ask("still here");
        eventually("they hold much", || {
            worst = worst.max(serving.resident_kib());
            serving.stats()["held_bytes"].as_u64() > Some((LIMIT_KIB << 10) / 2)
        });
        let limit = before + LIMIT_KIB * 5 / 4 + (32 << 10);
        tell(&format!("{name}: {worst} KiB where {limit} are the limit; {before} at the start"));
        assert!(worst <= limit, "{name}: {worst} KiB where {limit} are the limit; {before} at the start");
    }
}

/// Greedy peers that come again when they are closed, so that the limit is met again and again. `TIDEMILL_GREEDY=N` has so many, at
/// the default limit, for half a minute, and tells how long the polite client waited.
#[test]
fn a_polite_client_is_served_while_the_limit_of_memory_is_met_again_and_again() {
    let wanted = std::env::var("TIDEMILL_GREEDY").ok().map(|text| text.parse::<usize>().unwrap());
    let (peers, options, time) = match wanted {
        Some(peers) => (peers, "", Duration::from_secs(30)),
        None => (600, "--max-memory 8MiB", Duration::ZERO),
    };
    allow_files(peers + 4000);
    let mut random = fastrand::Rng::with_seed(seed());
    let serving = serve(options);
    let over = AtomicBool::new(false);
    let mut waited = thread::scope(|scope| {
        let is_over = SetAtEnd(&over);
        let polite = scope.spawn(|| ask_until(&serving, &over));
        let begun = Instant::now();
        let mut greedy: Vec<Peer> = (0..peers).map(|number| greedy(&serving, number)).collect();
        let mut connects = peers as u64;
        while begun.elapsed() < time || closed(&serving) <= 100 {
            assert!(begun.elapsed() < time + 2 * DEADLINE, "the limit is not met again: {}", serving.stats());
            // A few at a time, as the server lets them in: as many as come would be a flood of connections, which is another
            // matter, and those that are gone before they are read hold nothing.
            for _ in 0..5 {
                let number = random.usize(..peers);
                greedy[number] = self::greedy(&serving, number);
            }
            connects += 5;
            eventually("they are let in", || {
                serving.stats()["connections_accepted_total"].as_u64() >= Some(connects)
            });
            thread::sleep(Duration::from_millis(10));
        }
        drop(is_over);
        polite.join().unwrap()
    });
    waited.sort_unstable();
    let [p50, p99, most] = [50, 99, 100].map(|percent| waited[(waited.len() - 1) * percent / 100]);
    tell(&format!(
        "{} polite requests beside {peers} greedy peers: p50 {p50:?}, p99 {p99:?}, most {most:?}",
        waited.len()
    ));
}

/// How many connections were closed for the sake of memory.
fn closed(serving: &Serving) -> u64 {
    serving.stats()["connections_closed_total"]["memory"].as_u64().unwrap()
}

/// How long each request of a polite client took.
fn ask_until(serving: &Serving, over: &AtomicBool) -> Vec<Duration> {
    let (mut peer, mut waited) = (serving.connect(), Vec::new());
    while !over.load(Relaxed) {
        let begun = Instant::now();
        peer.ask("still here");
        waited.push(begun.elapsed());
        thread::sleep(Duration::from_millis(1));
    }
    waited
}

/// One that sends half a line, long lines, or many very short ones, and never reads.
fn greedy(serving: &Serving, number: usize) -> Peer {
    let mut peer = Peer::with_small_buffer(serving.address, 4096);
    match number % 3 {
        0 => peer.send_what_goes(&[b'x'; 64_000]),
        1 => peer.send_what_goes(&[&b"HELO "[..], &[b'x'; 2000], b"\n"].concat().repeat(100)),
        _ => peer.send_what_goes(&b"HELO \n".repeat(20_000)),
    }
    peer
}

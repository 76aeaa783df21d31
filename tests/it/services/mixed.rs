//! Everything at once, seeded: each connection gets exactly what it asked for, in order, and every account balances.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use tidemill::{CloseReason, Connection, Deferred, Kind, Pusher, Reply, Request, Service};

use crate::support::{Peer, assert_adds_up, configure, eventually, in_parallel, seed};

/// The first letter of a line says what is done: `w` is answered by a worker, `i` on the event loop, `d` later, `e` later though it
/// was inline, `f` in pieces, `p` and `q` (inline) behind something that is pushed, `s` and `t` (inline) not at all; `c` closes
/// behind its reply, `x` and `y` (inline) panic, `z` is taken along and panics.
struct Mixed {
    later: Mutex<Sender<(Vec<u8>, Deferred)>>,
    opened: AtomicUsize,
    closed: AtomicUsize,
}

impl Service for Mixed {
    type State = Pusher;
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), connection: &Connection<'_>, reply: &mut Reply<'_>) -> Pusher {
        self.opened.fetch_add(1, SeqCst);
        reply.push(b"hello\n");
        connection.pusher()
    }

    fn handle(&self, own: &mut Pusher, _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        let line = [request.line(), b"\n"].concat();
        match line[0] {
            b'd' | b'e' => {
                reply.push(&line[..1]);
                let rest = (line[1..].to_vec(), reply.defer());
                self.later.lock().unwrap().send(rest).unwrap();
                return;
            }
            b'z' => {
                self.later.lock().unwrap().send((Vec::new(), reply.defer())).unwrap();
                panic!("on purpose")
            }
            b'f' => {
                for byte in &line {
                    reply.push(&[*byte]);
                    if reply.flush().is_err() {
                        return;
                    }
                }
                return;
            }
            // Its peer may have gone, or read nothing.
            b'p' | b'q' => own.push([b"!", &line[..]].concat()).unwrap_or_default(),
            b's' | b't' => return,
            b'c' => reply.close(),
            b'x' | b'y' => panic!("on purpose"),
            _ => {}
        }
        reply.push(&line);
    }

    fn close(&self, _: Pusher, _: &mut (), _: &Connection<'_>, _: CloseReason) {
        self.closed.fetch_add(1, SeqCst);
    }

    fn classify(&self, _: &Pusher, line: &[u8]) -> Kind {
        match line.first() {
            Some(b'i' | b'e' | b'q' | b't' | b'y') => Kind::Inline,
            Some(_) => Kind::Request,
            None => Kind::Ignored,
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((bits ^ (bits >> 31)) % limit as u64).unwrap()
    }
}

/// `TIDEMILL_SEED=N cargo test --test it everybody_gets_what` plays other ones.
#[test]
fn everybody_gets_what_it_asked_for_in_order_and_every_account_balances() {
    const PEERS: usize = 120;
    let seed = seed();
    let (sender, later) = channel::<(Vec<u8>, Deferred)>();
    let service = Arc::new(Mixed {
        later: Mutex::new(sender),
        opened: AtomicUsize::new(0),
        closed: AtomicUsize::new(0),
    });
    let server = configure(Arc::clone(&service), |config| {
        config.max_connections = PEERS;
        config.max_pending = 50;
    });
    let answering = thread::spawn(move || {
        for (rest, mut deferred) in later {
            deferred.push(&rest);
            deferred.send();
        }
    });
    in_parallel(PEERS, |peer| {
        let mut random = Random(seed * 1000 + peer as u64);
        let mut peer = Peer::connect(server.local_addr());
        let (mut sent, mut expected) = (Vec::new(), b"hello\n".to_vec());
        let mut is_over = false;
        for number in 0..random.below(60) {
            let kind = b"wwwwiiiiddeeffppqqstwwwwiiiiddeeffppqqstcxyz"[random.below(44)];
            // The last ones only now and then.
            let kind = if kind > b'w' || kind == b'c' { [kind, b'w'][random.below(2)] } else { kind };
            let line = [&[kind][..], format!(" {number}\n").as_bytes()].concat();
            sent.extend_from_slice(&line);
            if is_over {
                continue;
            }
            match kind {
                b's' | b't' => {}
                b'x' | b'y' | b'z' => {
                    expected.extend_from_slice(b"ERROR internal error\n");
                    is_over = true;
                }
                b'p' | b'q' => expected.extend([b"!", &line[..], &line[..]].concat()),
                _ => expected.extend_from_slice(&line),
            }
            is_over |= kind == b'c';
        }
        let step = 1 + random.below(100);
        sent.chunks(step).for_each(|piece| peer.send_what_goes(piece));
        if random.below(4) == 0 {
            return peer.reset();
        }
        if !is_over {
            peer.finish();
        }
        peer.expect_rest(&expected);
    });
    let handle = server.handle();
    eventually("all are gone", || {
        let stats = handle.stats();
        stats.connections == 0 && stats.requests_pending == 0
    });
    eventually("all are closed", || service.closed.load(SeqCst) == service.opened.load(SeqCst));
    let stats = handle.stats();
    assert_adds_up(&stats);
    assert_eq!(stats.held_bytes, 0);
    handle.stop();
    assert!(server.wait().unwrap().is_clean());
    drop(service);
    answering.join().unwrap();
}

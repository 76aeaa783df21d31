//! Every way in which peers and systems fail, beside a polite client that must not notice.
//!
//! The same is asserted everywhere: each of the polite client's replies is right, none is lost, none takes longer than
//! [`PATIENCE`]; it is served before, during and after the fault; then the server stops as asked, with nothing dropped that
//! anybody waited for, and its counters add up.
//!
//! | module | what fails |
//! |---|---|
//! | `peers` | clients: slow, gone, hostile, too many |
//! | `system` | what the server stands on: descriptors, threads, memory, disks, signals, time |

mod peers;
mod system;

use std::collections::HashSet;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Ended, Serving, assert_json_adds_up, eventually, eventually_right, tcp_sockets, tell};

/// Longest time that a polite client waits for a reply. Generous: the machine may be busy, and a stopped process is among
/// the faults. A client that is forgotten waits for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many replies are waited for before a fault, and after it.
const REPLIES_AROUND: u64 = 30;

/// How the polite client connects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Connects {
    /// Once, before the fault.
    Once,
    /// Anew after a few requests.
    Often,
}

/// Runs `fault` with a polite client beside it. Returns what `fault` did, and how many replies the client got.
fn beside<T>(serving: &Serving, connects: Connects, fault: impl FnOnce() -> T) -> (T, u64) {
    let (over, replies) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let polite = scope.spawn(|| ask_politely(serving, connects, &over, &replies));
        let served = |more: u64| {
            let goal = replies.load(Relaxed) + more;
            eventually("the polite client is served", || {
                replies.load(Relaxed) >= goal || polite.is_finished()
            });
        };
        served(REPLIES_AROUND);
        // Also if it fails: the client would go on for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let result = fault();
            served(REPLIES_AROUND);
            result
        }));
        over.store(true, Relaxed);
        if let Err(noticed) = polite.join() {
            resume_unwind(noticed);
        }
        (result.unwrap_or_else(|failed| resume_unwind(failed)), replies.load(Relaxed))
    })
}

fn ask_politely(serving: &Serving, connects: Connects, over: &AtomicBool, replies: &AtomicU64) {
    let mut peer = serving.connect();
    for number in 0_u64.. {
        if over.load(Relaxed) {
            break;
        }
        if connects == Connects::Often && number % 8 == 7 {
            peer.finish();
            peer.expect_end();
            peer = serving.connect();
        }
        let begun = Instant::now();
        if number % 4 == 3 {
            peer.send(format!("HELO {number} a\nHELO {number} b\n").as_bytes());
            peer.expect_reply(&format!("{number} a"));
            peer.expect_reply(&format!("{number} b"));
            replies.fetch_add(2, Relaxed);
        } else {
            peer.ask(&format!("polite {number}"));
            replies.fetch_add(1, Relaxed);
        }
        let took = begun.elapsed();
        assert!(took < PATIENCE, "the polite client waited for {took:?}");
        // Beside the fault, not instead of it.
        thread::sleep(Duration::from_millis(1));
    }
    peer.finish();
    peer.expect_end();
}

/// Established connections to `port`, over IPv4, of which the system knows only the server's end.
fn without_peer(port: u16) -> usize {
    let ends: HashSet<_> =
        tcp_sockets("01").map(|columns| (columns[1].clone(), columns[2].clone())).collect();
    let port = format!(":{port:04X}");
    let is_alone = |(local, peer): &&(String, String)| !ends.contains(&(peer.clone(), local.clone()));
    ends.iter().filter(|(local, _)| local.ends_with(&port)).filter(is_alone).count()
}

/// Waits until nobody is connected and nothing is held, stops the server, and looks at its account.
#[track_caller]
fn settle(serving: Serving) -> (Ended, Value) {
    let mut vanished = 0;
    eventually_right("everything is given back", || {
        let stats = serving.stats();
        assert_json_adds_up(&stats);
        let left = ["connections", "requests_pending", "held_bytes", "pool_busy"].map(|name| &stats[name]);
        // A reset is not sent again: where the system lost one, its peer has vanished without a word.
        vanished = without_peer(serving.address.port());
        (left == [vanished, 0, 0, 0])
            .then_some(())
            .ok_or_else(|| format!("{vanished} have vanished, {stats}"))
    });
    if vanished > 0 {
        tell(&format!("the system lost {vanished} resets"));
    }
    let ended = serving.stop();
    ended.assert_clean();
    let stats = ended.stats();
    assert_json_adds_up(&stats);
    (ended, stats)
}

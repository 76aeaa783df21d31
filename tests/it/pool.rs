//! INTERFACE 4: the pool follows the load, within its limits, and strands nothing.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tidemill::{Reply, Request, Server};

use crate::support::peer::Peer;
use crate::support::server::{ServerProcess, number, until};

#[test]
fn it_grows_for_a_burst_that_blocks_and_comes_down_without_traffic() {
    let server = ServerProcess::start(&[
        "--handler-delay",
        "200ms",
        "--min-threads",
        "2",
        "--max-threads",
        "40",
        "--keep-alive",
        "300ms",
    ]);
    let mut peers: Vec<Peer> = (0..24).map(|_| Peer::connect(server.address)).collect();
    for peer in &mut peers {
        peer.send(b"HELO x\n");
    }
    // All of them at once, with one request each: nothing further arrives that could make it grow.
    let stats = server.wait_until(|stats| number(stats, "pool_busy") >= 20);
    assert!(number(&stats, "pool_threads") <= 40);
    let stats = server.wait_until(|stats| number(stats, "pool_threads") == 2);
    assert_eq!(number(&stats, "requests_pending"), 0);
    assert!(
        number(&stats, "pool_resizes_total.grow") >= 1 && number(&stats, "pool_resizes_total.shrink") >= 1
    );
    let decisions = stats["decisions"].as_array().unwrap();
    assert!(decisions.iter().all(|decision| decision["reason"].is_string()), "{decisions:?}");
    server.stop();
}

#[test]
fn it_never_exceeds_its_maximum() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let server = Server::builder({
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        move |_: &Request<'_>, reply: &mut Reply<'_>| {
            most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            running.fetch_sub(1, SeqCst);
            reply.push(b"x\n");
        }
    })
    .listen("127.0.0.1:0".parse().unwrap())
    .threads(1, 5)
    .tolerance(0)
    .start()
    .unwrap();
    let mut peers: Vec<Peer> = (0..40).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        peer.send(b"a\nb\nc\n");
    }
    for peer in &mut peers {
        peer.expect(b"x\nx\nx\n");
    }
    assert_eq!(most.load(SeqCst), 5);
}

#[test]
fn the_tolerance_never_strands_a_request() {
    // One request that does not end, and others that are within the tolerance of one worker.
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let server = Server::builder({
        let gate = Arc::clone(&gate);
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            if request.line() == b"stuck" {
                let mut open = gate.0.lock().unwrap();
                while !*open {
                    open = gate.1.wait(open).unwrap();
                }
            }
            reply.push(b"done\n");
        }
    })
    .listen("127.0.0.1:0".parse().unwrap())
    .threads(1, 32)
    .tolerance(8)
    .start()
    .unwrap();
    let handle = server.handle();
    let mut stuck = Peer::connect(server.local_addr());
    stuck.send(b"stuck\n");
    until(|| handle.stats().pool_busy == 1);
    let mut others: Vec<Peer> = (0..8).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut others {
        // Then nothing more: no arrival comes to its help.
        peer.send(b"short\n");
        peer.expect(b"done\n");
    }
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    stuck.expect(b"done\n");
}

#[test]
fn a_flood_of_trivial_requests_needs_no_growth() {
    let server = ServerProcess::start(&["--min-threads", "2"]);
    let mut peers: Vec<Peer> = (0..50).map(|_| Peer::connect(server.address)).collect();
    let lines = "HELO x\n".repeat(100);
    let reply = crate::support::peer::reply_to("x", server.address).repeat(100);
    for _ in 0..20 {
        for peer in &mut peers {
            peer.send(lines.as_bytes());
        }
        for peer in &mut peers {
            peer.expect(reply.as_bytes());
        }
    }
    // A worker that is held up by a busy machine may make it grow a little; the work itself must not.
    let stats = server.stop();
    assert!(number(&stats, "pool_resizes_total.grow") <= 2, "{stats}");
}

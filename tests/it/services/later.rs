//! Replies that are given later, from any thread.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use tidemill::{Connection, Deferred, Handler, Kind, Reply, Request, Server, Service};

use crate::support::{DEADLINE, Ended, Peer, assert_adds_up, configure, embed, eventually, program};

/// A line, and the reply to it.
type Taken = (Vec<u8>, Deferred);

/// Takes each reply along to whoever has the other end; `now` is answered at once.
fn taken_along() -> (impl Fn(&Request<'_>, &mut Reply<'_>) + Send + Sync + 'static, Receiver<Taken>) {
    let (sender, receiver) = channel();
    let sender: Mutex<Sender<Taken>> = Mutex::new(sender);
    let take = move |request: &Request<'_>, reply: &mut Reply<'_>| {
        if request.line() == b"now" {
            return reply.push(b"at once\n");
        }
        let taken = (request.line().to_vec(), reply.defer());
        sender.lock().unwrap().send(taken).unwrap_or_default();
    };
    (take, receiver)
}

fn give((line, mut deferred): Taken) {
    deferred.push(&line);
    deferred.push(b"\n");
    deferred.send();
}

#[test]
fn the_order_is_kept_and_no_worker_waits() {
    let (service, taken) = taken_along();
    let server = configure(service, |config| (config.min_threads, config.max_threads) = (1, 1));
    let mut one = Peer::connect(server.local_addr());
    let mut other = Peer::connect(server.local_addr());
    one.send(b"now\na\nnow\nb\nnow\n");
    one.expect(b"at once\n");
    other.send(b"c\nnow\n");
    let (first, second) = (taken.recv_timeout(DEADLINE).unwrap(), taken.recv_timeout(DEADLINE).unwrap());
    eventually("no worker waits", || {
        let stats = server.handle().stats();
        stats.pool_busy == 0 && stats.requests_pending == 6
    });
    assert_adds_up(&server.handle().stats());
    give(second);
    other.expect(b"c\nat once\n");
    give(first);
    one.expect(b"a\nat once\n");
    thread::spawn(move || give(taken.recv_timeout(DEADLINE).unwrap())).join().unwrap();
    one.expect(b"b\nat once\n");
    let handle = server.handle();
    eventually("nothing is pending", || handle.stats().requests_pending == 0);
    assert_adds_up(&handle.stats());
}

/// `TIDEMILL_LATER=10000 cargo test --test it thousands_are_outstanding` for more. The clients are another process, the load tool:
/// each side needs a descriptor for each of them.
#[test]
fn thousands_are_outstanding_with_four_workers() {
    let wanted = std::env::var("TIDEMILL_LATER").map_or(200, |count| count.parse().unwrap());
    // Beside those of other tests.
    let max = crate::support::allow_files(wanted + 1000);
    assert!(wanted < max, "{max} descriptors are allowed");
    let (service, taken) = taken_along();
    let server = configure(service, |config| {
        (config.min_threads, config.max_threads) = (4, 4);
        config.max_connections = wanted;
    });
    let (count, address) = (wanted.to_string(), server.local_addr().to_string());
    let mut clients = program();
    clients.args(["load", &address, "-c", &count, "-n", &count, "--timeout", "120s"]);
    clients.args(["--request", "x {n}", "--expect", "{line}"]);
    let clients = thread::spawn(move || Ended::of(&mut clients));
    let handle = server.handle();
    let all: Vec<Taken> = (0..wanted).map(|_| taken.recv_timeout(DEADLINE).unwrap()).collect();
    eventually("all are pending", || handle.stats().requests_pending == wanted as u64);
    eventually("no worker is wanted", || handle.stats().pool_busy == 0 && handle.stats().pool_demand == 0);
    let held = handle.stats().held_bytes;
    assert!(held <= 1024 * wanted as u64, "{held} bytes are held for {wanted}");
    all.into_iter().for_each(give);
    let ended = clients.join().unwrap();
    assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
    eventually("nothing is pending", || handle.stats().requests_pending == 0);
    let stats = handle.stats();
    assert_eq!((stats.connections_accepted_total, stats.replies_total), (wanted as u64, wanted as u64));
}

#[test]
fn one_that_is_dropped_is_a_failure_like_a_panic() {
    let (service, taken) = taken_along();
    let server = embed(service);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"now\na\nnow\n");
    drop(taken.recv_timeout(DEADLINE).unwrap());
    peer.expect_rest(b"at once\nERROR internal error\n");
    drop(peer);
    let handle = server.handle();
    eventually("it is gone", || handle.stats().connections == 0);
    let stats = handle.stats();
    assert_eq!((stats.handler_panics_total, stats.connections_closed_total.panic), (1, 1));
    assert_adds_up(&stats);
}

#[test]
fn a_stop_waits_for_it() {
    let (service, taken) = taken_along();
    let server = embed(service);
    let handle = server.handle();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nnow\n");
    let deferred = taken.recv_timeout(DEADLINE).unwrap();
    handle.stop();
    eventually("it stops", || handle.is_stopping());
    give(deferred);
    peer.expect_rest(b"a\nat once\n");
    assert!(server.wait().unwrap().is_clean());
}

#[test]
fn a_stop_at_once_counts_it_among_what_was_dropped() {
    let (service, taken) = taken_along();
    let server = embed(service);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\n");
    let deferred = taken.recv_timeout(DEADLINE).unwrap();
    eventually("its job is back", || server.handle().stats().pool_busy == 0);
    server.handle().stop_now();
    let outcome = server.wait().unwrap();
    assert_eq!(outcome.dropped_requests, 1);
    assert_adds_up(&outcome.stats);
    // Nobody is there any more.
    give(deferred);
}

#[test]
fn it_may_come_before_its_handler_has_returned_and_after_its_peer_has_gone() {
    let early = |request: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(b"<");
        let deferred = reply.defer();
        thread::scope(|scope| {
            scope.spawn(move || give((request.line().to_vec(), deferred)));
        });
        reply.push(b">");
    };
    let server = embed(early);
    assert_eq!(Peer::connect(server.local_addr()).exchange(b"a\nb\n"), b"<>a\n<>b\n");

    let (service, taken) = taken_along();
    let server = embed(service);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\n");
    let deferred = taken.recv_timeout(DEADLINE).unwrap();
    let handle = server.handle();
    eventually("its job is back", || handle.stats().pool_busy == 0);
    peer.reset();
    eventually("it is gone", || handle.stats().connections == 0);
    give(deferred);
    let stats = handle.stats();
    assert_eq!((stats.requests_dropped_total, stats.requests_pending), (1, 0));
    assert_adds_up(&stats);
}

#[test]
fn it_may_be_the_last_one_or_none() {
    let (service, taken) = taken_along();
    let server = embed(service);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"silent\nnow\nlast\nnow\n");
    taken.recv_timeout(DEADLINE).unwrap().1.send();
    peer.expect(b"at once\n");
    let (line, mut deferred) = taken.recv_timeout(DEADLINE).unwrap();
    deferred.close();
    give((line, deferred));
    peer.expect_rest(b"last\n");
    let handle = server.handle();
    eventually("it is gone", || handle.stats().connections == 0);
    let stats = handle.stats();
    assert_eq!((stats.requests_silent_total, stats.requests_dropped_total), (1, 1));
    assert_adds_up(&stats);
}

#[test]
fn one_that_takes_too_long_is_told_so() {
    let (service, taken) = taken_along();
    let server = configure(service, |config| {
        config.request_timeout = Some(std::time::Duration::from_millis(50));
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nnow\n");
    let deferred = taken.recv_timeout(DEADLINE).unwrap();
    peer.expect_rest(b"ERROR request not completed within 50ms\n");
    give(deferred);
    let handle = server.handle();
    eventually("it is gone", || handle.stats().connections == 0);
    let stats = handle.stats();
    assert_eq!(stats.connections_closed_total.request_timeout, 1);
    assert_adds_up(&stats);
}

#[test]
fn an_inline_request_may_take_its_reply_along() {
    struct Loop(Mutex<Sender<Deferred>>);
    impl Handler for Loop {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            match request.line() {
                b"later" => self.0.lock().unwrap().send(reply.defer()).unwrap(),
                line => reply.push(&[line, b"\n"].concat()),
            }
        }
        fn classify(&self, _: &[u8]) -> Kind {
            Kind::Inline
        }
    }
    let (sender, receiver) = channel();
    let server = embed(Loop(Mutex::new(sender)));
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nlater\nb\n");
    peer.expect(b"a\n");
    let mut deferred = receiver.recv_timeout(DEADLINE).unwrap();
    deferred.push(b"now\n");
    deferred.send();
    peer.expect(b"now\nb\n");
}

#[test]
fn a_state_is_at_home_meanwhile_and_given_back() {
    struct Stateful(Mutex<Sender<Deferred>>, Mutex<Sender<u32>>);
    impl Service for Stateful {
        type State = u32;
        type Worker = ();
        fn start_worker(&self) {}
        fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) -> u32 {
            0
        }
        fn handle(&self, count: &mut u32, _: &mut (), _: &Request<'_>, reply: &mut Reply<'_>) {
            *count += 1;
            self.0.lock().unwrap().send(reply.defer()).unwrap();
        }
        fn close(&self, count: u32, _: &mut (), _: &Connection<'_>, _: tidemill::CloseReason) {
            self.1.lock().unwrap().send(count).unwrap();
        }
    }
    let ((sender, deferred), (tell, told)) = (channel(), channel());
    let server: Server = embed(Stateful(Mutex::new(sender), Mutex::new(tell)));
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\n");
    let deferred = deferred.recv_timeout(DEADLINE).unwrap();
    eventually("its job is back", || server.handle().stats().pool_busy == 0);
    peer.reset();
    assert_eq!(told.recv_timeout(DEADLINE).unwrap(), 1);
    drop(deferred);
}

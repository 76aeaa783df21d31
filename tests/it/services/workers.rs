//! What a worker has of its own: made on its thread before its first job, dropped there when it retires.

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, ThreadId};

use tidemill::{Connection, PoolLimits, Reply, Request, Service};

use crate::support::{Gate, Peer, configure, embed, eventually, in_parallel};

#[derive(Debug, Default)]
struct Tools {
    made: AtomicUsize,
    there: AtomicUsize,
    wrong_thread: AtomicUsize,
}

/// Of one worker. Not `Send`.
struct Tool {
    thread: ThreadId,
    uses: Rc<()>,
    of: Arc<Tools>,
}

impl Drop for Tool {
    fn drop(&mut self) {
        self.of.there.fetch_sub(1, SeqCst);
        self.of.wrong_thread.fetch_add(usize::from(thread::current().id() != self.thread), SeqCst);
    }
}

/// Answers once the gate is open.
struct Craft {
    tools: Arc<Tools>,
    pass: Box<dyn Fn() + Send + Sync>,
}

impl Service for Craft {
    type State = ();
    type Worker = Tool;

    fn start_worker(&self) -> Tool {
        self.tools.made.fetch_add(1, SeqCst);
        self.tools.there.fetch_add(1, SeqCst);
        Tool { thread: thread::current().id(), uses: Rc::new(()), of: Arc::clone(&self.tools) }
    }

    fn open(&self, _: &mut Tool, _: &Connection<'_>, _: &mut Reply<'_>) {}

    fn handle(&self, _: &mut (), tool: &mut Tool, _: &Request<'_>, reply: &mut Reply<'_>) {
        (self.pass)();
        let wrong = thread::current().id() != tool.thread || Rc::strong_count(&tool.uses) != 1;
        tool.of.wrong_thread.fetch_add(usize::from(wrong), SeqCst);
        reply.push(b"done\n");
    }
}

#[test]
fn each_worker_has_one_and_takes_it_along() {
    let (tools, gate) = (Arc::<Tools>::default(), Gate::closed());
    let service = Craft { tools: Arc::clone(&tools), pass: Box::new(gate.entrance()) };
    let server = configure(service, |config| {
        (config.min_threads, config.max_threads, config.tolerance) = (2, 8, 0);
    });
    let handle = server.handle();
    eventually("it is made before the first job", || tools.made.load(SeqCst) == 2);
    let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(server.local_addr())).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"x\n"));
    eventually("there is one for each worker", || tools.there.load(SeqCst) == 8);
    gate.open();
    peers.iter_mut().for_each(|peer| peer.expect(b"done\n"));
    handle.set_pool_limits(PoolLimits::new(1, 1)).unwrap();
    eventually("they went with their workers", || tools.there.load(SeqCst) == 1);
    handle.stop();
    drop(peers);
    server.wait().unwrap();
    assert_eq!(tools.there.load(SeqCst), 0, "the last one went before the end was told");
    assert_eq!(tools.wrong_thread.load(SeqCst), 0);
}

#[test]
fn one_that_cannot_be_made_fails_what_needs_it_and_is_tried_again() {
    /// Whether it can be made.
    struct Fragile(Mutex<bool>);
    impl Service for Fragile {
        type State = ();
        type Worker = ();
        fn start_worker(&self) {
            assert!(*self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()), "on purpose");
        }
        fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) {}
        fn handle(&self, _: &mut (), _: &mut (), _: &Request<'_>, reply: &mut Reply<'_>) {
            reply.push(b"done\n");
        }
    }
    let service = Arc::new(Fragile(Mutex::new(false)));
    let server = embed(Arc::clone(&service));
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect_rest(b"ERROR internal error\n");
    *service.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
    in_parallel(10, |_| {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(b"x\n");
        peer.expect(b"done\n");
    });
}

/// Has its worker wait for what never comes, unless the server stops.
struct Patient {
    stops: Mutex<usize>,
    word: Condvar,
}

impl Service for Patient {
    type State = ();
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, (): &mut (), _: &Connection<'_>, _: &mut Reply<'_>) {}

    fn handle(&self, (): &mut (), (): &mut (), _: &Request<'_>, reply: &mut Reply<'_>) {
        let stops = self.stops.lock().unwrap();
        drop(self.word.wait_while(stops, |stops| *stops == 0).unwrap());
        reply.push(b"over\n");
    }

    fn stopping(&self) {
        *self.stops.lock().unwrap() += 1;
        self.word.notify_all();
        panic!("a service may fail here");
    }
}

#[test]
fn a_service_hears_of_a_stop_once_and_in_time_to_let_its_workers_go() {
    let service = Arc::new(Patient { stops: Mutex::default(), word: Condvar::new() });
    let server = embed(Arc::clone(&service));
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"wait\n");
    eventually("it is with a worker", || server.handle().stats().pool_busy == 1);
    assert_eq!(*service.stops.lock().unwrap(), 0);
    server.handle().stop();
    peer.expect(b"over\n");
    assert!(server.wait().unwrap().is_clean());
    assert_eq!(*service.stops.lock().unwrap(), 1);
}

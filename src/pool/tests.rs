//! A pool with its real threads, whose handlers a test holds and lets go: who is unparked, who leaves, what becomes of a job.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::sync::{Mutex, mpsc};
use std::thread;

use super::*;
use crate::clock::Clock;
use crate::config::{ServiceSettings, StopFrom};
use crate::job::{Endpoint, FreeJobs, JobEnd};
use crate::mail::Mail;
use crate::metrics::{Counters, PoolGauges, Stats};
use crate::service::{Handler, Reply, Request};
use crate::slots::{ConnId, Slots};

const STACK_BYTES: usize = 256 << 10;

struct NoReactor;

impl Wake for NoReactor {
    fn wake(&self) {}
}

fn job(line: &[u8]) -> Box<Job> {
    let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
    let id = ConnId { slot: 0, generation: 0 };
    let mut job = FreeJobs::new(Slots::new([])).take(id, &endpoint, endpoint.address.clone(), 0, 0);
    job.batch.push_line(line);
    job
}

/// A pool with what its workers need.
struct Workshop {
    pool: Arc<JobPool>,
    hub: Arc<Hub<NoReactor>>,
    services: Arc<[Served]>,
}

impl Workshop {
    fn new(handler: impl Handler, clock: Clock) -> Workshop {
        let services =
            Arc::new([Served::new(Arc::new(handler), &ServiceSettings::of_lines(1024, StopFrom::None))]);
        Workshop { pool: JobPool::new(), hub: Hub::new(NoReactor, clock), services }
    }

    fn start(&self, workers: usize) {
        for _ in 0..self.pool.set_target(workers) {
            let started = self.pool.start_worker(&self.hub, &self.services, STACK_BYTES);
            started.expect("the system grants a thread");
        }
    }

    fn submit(&self, jobs: impl IntoIterator<Item = Box<Job>>) {
        self.pool.submit(&mut jobs.into_iter().collect(), self.hub.clock.now());
    }

    /// What has come back.
    #[expect(clippy::vec_box, reason = "it is how they come")]
    fn collect(&self, into: &mut Vec<Box<Job>>) {
        let mut mail = Vec::new();
        self.hub.replies.drain(&mut mail);
        into.extend(mail.into_iter().map(|mail| match mail {
            Mail::Job(job) => job,
            other => panic!("workers hand back jobs only: {other:?}"),
        }));
    }

    fn census(&self) -> Census {
        self.pool.census(Duration::ZERO, Duration::MAX)
    }

    /// Stops the pool and waits until every thread has ended.
    fn end(&self) {
        self.pool.leave_by(Instant::now() + Duration::from_secs(30));
        self.pool.stop();
        self.pool.join_workers();
        assert_eq!(self.pool.wait_until_joined(), (vec![], true));
    }
}

/// Waits until `condition` holds.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

/// A pool without workers whose handler blocks on the line `block` and passes every other on.
struct Blocking {
    shop: Workshop,
    is_blocked: mpsc::Receiver<()>,
    unblock: mpsc::Sender<()>,
    done: mpsc::Receiver<Vec<u8>>,
}

impl Blocking {
    fn new() -> Blocking {
        let (blocked, is_blocked) = mpsc::channel();
        let (unblock, may_go) = mpsc::channel::<()>();
        let (passed, done) = mpsc::channel();
        let may_go = Mutex::new(may_go);
        let handler = move |request: &Request<'_>, _: &mut Reply<'_>| match request.line() {
            b"block" => {
                blocked.send(()).unwrap();
                may_go.lock().unwrap().recv().unwrap();
            }
            line => passed.send(line.to_vec()).unwrap(),
        };
        let shop = Workshop::new(handler, Clock::start());
        // Short enough that a worker takes several at once.
        shop.pool.came_back(Some(1_000));
        Blocking { shop, is_blocked, unblock, done }
    }

    fn next_done(&self) -> Vec<u8> {
        self.done.recv_timeout(Duration::from_secs(30)).unwrap()
    }

    /// One worker takes a batch of `jobs` and blocks on the first. Returns how many more it took.
    fn hoard(&self, jobs: usize) -> usize {
        let line = |number| if number == 0 { &b"block"[..] } else { b"hoarded" };
        self.shop.submit((0..jobs).map(|number| job(line(number))));
        self.shop.start(1);
        self.is_blocked.recv().unwrap();
        let taken = jobs - 1 - self.shop.pool.queue.injected();
        assert!(taken > 0, "this test is about a batch");
        taken
    }

    fn end(self) {
        self.unblock.send(()).unwrap();
        self.shop.end();
    }
}

#[test]
fn what_a_worker_took_and_then_blocks_on_is_stolen_by_others() {
    let blocking = Blocking::new();
    blocking.hoard(16);
    blocking.shop.start(2);
    for _ in 0..15 {
        blocking.next_done();
    }
    blocking.end();
}

#[test]
fn what_a_blocked_worker_took_does_not_wait_until_the_injector_is_empty() {
    let blocking = Blocking::new();
    let hoarded = blocking.hoard(16);
    blocking.shop.submit((0..5_000).map(|_| job(b"new")));
    blocking.shop.start(2);
    let order: Vec<_> = (0..5_015).map(|_| blocking.next_done()).collect();
    let last = order.iter().rposition(|line| line == b"hoarded").unwrap();
    assert!(last < 2_000, "the last of {hoarded} came after {last} others");
    blocking.end();
}

#[test]
fn a_stuck_worker_is_not_counted_on_again() {
    let blocking = Blocking::new();
    let shop = &blocking.shop;
    let one_parks = || eventually("one parks", || shop.pool.parked() == 1);
    shop.submit([job(b"block")]);
    shop.start(1);
    blocking.is_blocked.recv().unwrap();
    shop.start(2);
    one_parks();
    shop.submit([job(b"pass")]);
    // Too little work to unpark for beside one that is awake, until that one turns out to be stuck.
    assert!(shop.pool.work_waits(false) && shop.pool.work_waits(true), "the tuner has to look");
    shop.pool.nudge();
    blocking.next_done();
    for _ in 0..3 {
        one_parks();
        shop.submit([job(b"pass")]);
        blocking.next_done();
    }
    blocking.end();
}

/// A clock on which every second reading lies 5 µs before the one before it.
fn steps_back() -> Nanos {
    static READINGS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let reading = READINGS.fetch_add(1, Relaxed);
    // Far from zero, as the system's clock is.
    1_000_000_000 + 1_000 * reading - 6_000 * (reading % 2)
}

#[test]
fn a_clock_that_steps_back_makes_no_request_seem_long() {
    let shop = Workshop::new(|_: &Request<'_>, _: &mut Reply<'_>| (), Clock::reading(steps_back));
    shop.start(2);
    let mut back = Vec::new();
    for count in 1..=100 {
        // Several requests each, some of which are timed together.
        let mut several = job(b"1");
        several.accepted_at = shop.hub.clock.now();
        (2..=7).for_each(|_| several.batch.push_line(b"n"));
        shop.submit([several]);
        let deadline = Instant::now() + Duration::from_secs(30);
        while back.len() < count {
            assert!(Instant::now() < deadline, "the {count}th job does not come back");
            shop.collect(&mut back);
            thread::yield_now();
        }
    }
    for job in &back {
        // A reading for each step of a slice; all of them together are some microseconds.
        assert!(job.took < 1_000_000, "{}", job.took);
        shop.pool.came_back(Some(job.took));
    }
    assert!(shop.pool.time_per_job() < Duration::from_millis(1), "{:?}", shop.pool.time_per_job());
    assert_eq!((shop.pool.out(), shop.pool.waiting()), (0, 0));
    let stats = Stats::new(
        Duration::ZERO,
        [].into_iter(),
        &Counters::default(),
        &PoolGauges::default(),
        &shop.hub.timings,
    );
    let (wait, service) = (stats.queue_wait_seconds, stats.service_seconds);
    assert_eq!((wait.count, service.count), (700, 700));
    assert!(service.sum < 0.1 && service.max < 0.001, "{service:?}");
    assert!(wait.sum < 0.1 && wait.max < 0.001, "{wait:?}");
    shop.end();
}

/// A clock that fails at its fifth reading: a bug of ours in the middle of a job.
fn fails_once() -> Nanos {
    static READINGS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    assert_ne!(READINGS.fetch_add(1, Relaxed), 5, "a bug, on purpose");
    1_000_000_000
}

#[test]
fn a_worker_that_unwinds_by_a_bug_of_ours_leaves_every_count_right() {
    let shop = Workshop::new(|_: &Request<'_>, _: &mut Reply<'_>| (), Clock::reading(fails_once));
    // The start reads it once, each worker and each submission once more.
    shop.start(2);
    eventually("both park", || shop.pool.parked() == 2);
    shop.submit([job(b"broken off")]);
    let mut back = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    while back.is_empty() {
        assert!(Instant::now() < deadline, "the job does not come back");
        shop.collect(&mut back);
    }
    let batch = &back[0].batch;
    assert_eq!((back[0].end, batch.handled, batch.reply_ends.len()), (JobEnd::Panicked, 1, 0));
    eventually("it is gone", || {
        shop.census() == Census { live: 1, last_taken: shop.census().last_taken, ..Census::default() }
    });
    assert_eq!(shop.pool.target(), 1, "the tuner misses it");
    eventually("nobody counts as searching", || {
        shop.pool.parked() == 1 && !shop.pool.work_waits(false) && shop.pool.sleep.searching() == 0
    });
    // The other one goes on.
    shop.submit([job(b"next")]);
    eventually("the next job is taken", || shop.pool.waiting() == 0);
    shop.end();
}

#[test]
fn a_lowered_target_lets_parked_workers_go_at_once_and_busy_ones_as_they_finish() {
    let (begun, has_begun) = mpsc::channel();
    let (unblock, may_go) = mpsc::channel::<()>();
    let may_go = Mutex::new(may_go);
    let handler = move |_: &Request<'_>, _: &mut Reply<'_>| {
        begun.send(()).unwrap();
        may_go.lock().unwrap().recv().unwrap();
    };
    let shop = Workshop::new(handler, Clock::start());
    shop.start(4);
    shop.submit([job(b"1"), job(b"2")]);
    shop.pool.nudge();
    has_begun.recv().unwrap();
    has_begun.recv().unwrap();
    shop.pool.set_target(1);
    assert!(shop.census().live >= 2, "the busy ones still count");
    unblock.send(()).unwrap();
    unblock.send(()).unwrap();
    eventually("one is left", || shop.census().live == 1);
    shop.end();
}

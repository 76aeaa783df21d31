//! Turns that a test takes by itself: what is done in one, and what is left for the next.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use super::*;
use crate::clock::Clock;
use crate::config::{Config, StopFrom};
use crate::connection::{Output, Role};
use crate::handover::{Inherited, Lent};
use crate::job::{JobEnd, Task};
use crate::mail::Question;
use crate::service::{Connection, Handler, Kind, Reply, Request, Served, Service};
use crate::slots::MS;

/// How long a test waits for what must happen. Generous: it passes only when something is broken.
const DEADLINE: Duration = Duration::from_secs(20);

/// Bytes of a reply that no socket takes at once.
const LONG: usize = 64 << 20;

/// Lines that begin with `#` are ignored, and take their time.
struct SlowComments;

impl Handler for SlowComments {
    fn handle(&self, _: &Request<'_>, _: &mut Reply<'_>) {}

    fn classify(&self, line: &[u8]) -> Kind {
        if line.first() != Some(&b'#') {
            return Kind::Request;
        }
        thread::sleep(Duration::from_micros(100));
        Kind::Ignored
    }
}

/// A reactor whose turns the test takes, with a pool that has no workers.
struct Bench {
    reactor: Reactor,
    address: SocketAddr,
}

impl Bench {
    fn new(handler: impl Service, change: impl FnOnce(&mut Config)) -> Bench {
        Bench::with_clock(Clock::start(), handler, change)
    }

    fn with_clock(clock: Clock, handler: impl Service, change: impl FnOnce(&mut Config)) -> Bench {
        let mut config = Config { listen: vec![([127, 0, 0, 1], 0).into()], ..Config::default() };
        change(&mut config);
        let settings = config.check().unwrap();
        let names = ["test".to_owned()];
        let sockets = bind(&settings, &names, &mut Inherited::new(Vec::new()), &Lent::default()).unwrap();
        let address = sockets[0].local_addr().unwrap().tcp().unwrap();
        let asked = Some(address.into());
        let bound = |socket| Bound { socket, service: 0, asked: asked.clone() };
        let sockets = sockets.into_iter().map(bound).collect();
        let (sockets, waker) = Sockets::new(sockets, &settings).unwrap();
        let service = Served::new(Arc::new(handler), &settings.services[0]);
        let shared = Shared {
            hub: Hub::new(waker, clock),
            pool: JobPool::new(),
            tuner: Arc::new(Tuner::new(settings.limits, settings.policy)),
            stop: Arc::default(),
            lent: Lent::default(),
            new_settings: Arc::default(),
            counters: Arc::new(Mutex::new(Counters::new(1))),
        };
        Bench { reactor: Reactor::new(sockets, settings, Arc::new([service]), shared), address }
    }

    /// Connects a peer that has sent `bytes`.
    fn peer(&self, bytes: &[u8]) -> TcpStream {
        let mut peer = TcpStream::connect(self.address).unwrap();
        peer.write_all(bytes).unwrap();
        peer
    }

    fn turn(&mut self) {
        let mut events = Events::with_capacity(MAX_EVENTS);
        self.reactor.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        self.reactor.turn_at = self.reactor.shared.hub.clock.now();
        let now = self.reactor.shared.hub.clock.instant(self.reactor.turn_at);
        self.reactor.turn(&events, now);
    }

    /// The connection that was accepted first.
    fn first(&self) -> ConnId {
        self.reactor.table.id_of(0).unwrap()
    }

    /// Takes turns until `condition` holds.
    fn until(&mut self, condition: impl Fn(&Reactor) -> bool) {
        let begun = Instant::now();
        while !condition(&self.reactor) {
            assert!(begun.elapsed() < DEADLINE);
            self.turn();
        }
    }
}

#[test]
fn those_that_waited_for_max_pending_are_resumed_within_the_budget() {
    const PEERS: usize = 40;
    let mut bench = Bench::new(SlowComments, |config| config.max_pending = 1);
    bench.reactor.lines_out = 1;
    let _peers: Vec<TcpStream> = (0..PEERS).map(|_| bench.peer(&b"#\n".repeat(20))).collect();
    bench.until(|reactor| reactor.stalled.len() == PEERS);
    bench.reactor.lines_out = 0;
    bench.turn();
    assert_eq!(bench.reactor.stalled.len(), PEERS - budget::LEAST_LEFT_OVER);
    bench.until(|reactor| reactor.counters.silent == 20 * PEERS as u64);
}

#[test]
fn a_connection_is_on_one_list_once() {
    let mut bench = Bench::new(SlowComments, |config| config.max_pending = 1);
    bench.reactor.lines_out = 1;
    let mut peer = bench.peer(&b"#\n".repeat(5000));
    bench.until(|reactor| reactor.stalled.len() == 1);
    // An event comes in the turn in which it is resumed.
    peer.write_all(b"#\n").unwrap();
    bench.reactor.lines_out = 0;
    bench.turn();
    assert_eq!((bench.reactor.ready.len(), bench.reactor.left_over.len()), (0, 1));
}

/// Gives the first connection a reply of 64 MiB, which its peer does not read, and turns until its socket is full.
fn fill(bench: &mut Bench) {
    bench.until(|reactor| reactor.table.len() > 0);
    let (id, now) = (bench.first(), bench.reactor.turn_at);
    let watermarks = bench.reactor.settings.watermarks(0);
    let mut reply = vec![b'x'; LONG];
    let connection = &mut bench.reactor.table.get(id).unwrap().connection;
    connection.with_outbound(watermarks, now, |outbound| outbound.push(&mut reply, &[LONG], 0));
    bench.reactor.counters.pending += 1;
    bench.reactor.settle(id);
    while bench.reactor.table.get(id).unwrap().connection.output != Output::Full {
        bench.turn();
    }
}

#[test]
fn a_last_line_is_not_put_behind_a_reply_that_is_not_written() {
    let mut bench = Bench::new(SlowComments, |_| ());
    let mut peer = bench.peer(b"");
    fill(&mut bench);
    let id = bench.first();
    let phase = Phase::Closing(CloseReason::KillRefused);
    bench.reactor.table.get(id).unwrap().connection.phase = phase;
    bench.reactor.serve(id, Instant::now());
    assert_eq!(bench.reactor.table.get(id).unwrap().connection.phase, phase);
    peer.set_nonblocking(true).unwrap();
    let mut came = Vec::new();
    let begun = Instant::now();
    while peer.read_to_end(&mut came).is_err() {
        assert!(begun.elapsed() < DEADLINE);
        bench.turn();
    }
    assert!(came.ends_with(b"xERROR stop refused\n"));
}

#[test]
fn what_is_only_discarded_takes_its_share_of_a_turn_and_no_more() {
    let mut bench = Bench::new(SlowComments, |_| ());
    let mut peer = bench.peer(b"");
    bench.until(|reactor| reactor.table.len() == 1);
    let id = bench.first();
    let connection = &mut bench.reactor.table.get(id).unwrap().connection;
    connection.phase = Phase::Lingering(CloseReason::KillRefused);
    peer.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(count) = peer.write(&[b'x'; 64 << 10]) {
        sent += count;
    }
    drop(peer);
    let mut turns = 0;
    while bench.reactor.table.len() > 0 {
        bench.turn();
        turns += 1;
    }
    assert!(turns * budget::READ_BYTES >= sent, "{sent} bytes in {turns} turns");
}

/// A line that begins with `#` is ignored, and `#slow` holds up the turn, by a clock that stands still otherwise.
struct HoldsUp(&'static AtomicU64);

/// What [`HoldsUp`] takes, and what peers are given in the tests with it.
const HELD_UP: Nanos = 300 * MS;
const TIMEOUT: Duration = Duration::from_millis(200);

impl Handler for HoldsUp {
    fn handle(&self, _: &Request<'_>, _: &mut Reply<'_>) {}

    fn classify(&self, line: &[u8]) -> Kind {
        if line == b"#slow" {
            self.0.fetch_add(HELD_UP, Relaxed);
        }
        if line.starts_with(b"#") { Kind::Ignored } else { Kind::Request }
    }
}

/// The first connection is `prepare`d. In a turn that is held up before its share, `act` has it begin what a timeout is for: that
/// runs out no earlier than so long after the turn, and no more than 2 ms later.
fn is_timed_out_on_time(
    clock: (&'static AtomicU64, fn() -> Nanos),
    change: impl FnOnce(&mut Config),
    prepare: impl FnOnce(&mut Bench),
    act: impl FnOnce(&mut TcpStream),
) {
    let (now, read) = clock;
    let mut bench = Bench::with_clock(Clock::reading(read), HoldsUp(now), change);
    let mut peer = bench.peer(b"");
    bench.until(|reactor| reactor.table.len() == 1);
    let id = bench.first();
    let mut slow = bench.peer(b"");
    bench.until(|reactor| reactor.table.len() == 2);
    prepare(&mut bench);
    slow.write_all(b"#slow\n").unwrap();
    act(&mut peer);
    bench.until(|reactor| reactor.counters.silent > 0 && reactor.is_idle());
    let mut open_after = |moment: Nanos| {
        now.fetch_add(moment, Relaxed);
        bench.turn();
        bench.reactor.table.get(id).is_some_and(|entry| entry.connection.phase == Phase::Open)
    };
    assert!(open_after(0), "timed out from the beginning of the turn on");
    assert!(open_after(199 * MS), "timed out too early");
    assert!(!open_after(3 * MS), "not timed out");
}

#[test]
fn the_time_of_a_line_begins_when_it_has_come_however_long_the_turn_is() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    is_timed_out_on_time(
        (&NOW, || NOW.load(Relaxed)),
        |config| config.line_timeout = Some(TIMEOUT),
        |_| (),
        |peer| peer.write_all(b"half").unwrap(),
    );
}

#[test]
fn idling_begins_when_all_is_done_however_long_the_turn_is() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    is_timed_out_on_time(
        (&NOW, || NOW.load(Relaxed)),
        |config| config.idle_timeout = Some(TIMEOUT),
        |_| (),
        |peer| peer.write_all(b"#\n").unwrap(),
    );
}

#[test]
fn the_time_to_read_replies_begins_anew_when_some_are_taken_however_long_the_turn_is() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    is_timed_out_on_time(
        (&NOW, || NOW.load(Relaxed)),
        |config| {
            config.write_timeout = Some(TIMEOUT);
            // So that what is taken is written in one turn, and it is full again.
            config.send_buffer_bytes = Some(16 << 10);
        },
        fill,
        |peer| {
            peer.set_nonblocking(true).unwrap();
            peer.read_to_end(&mut Vec::new()).unwrap_err();
        },
    );
}

#[test]
fn waiting_begins_when_a_request_is_read_however_long_the_turn_is() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    let clock = Clock::reading(|| NOW.load(Relaxed));
    let mut bench = Bench::with_clock(clock, HoldsUp(&NOW), |config| config.queue_timeout = Some(TIMEOUT));
    let (mut slow, mut peer) = (bench.peer(b""), bench.peer(b""));
    bench.until(|reactor| reactor.table.len() == 2);
    slow.write_all(b"#slow\n").unwrap();
    peer.write_all(b"x\n").unwrap();
    bench.until(|reactor| !reactor.outgoing.is_empty());
    assert_eq!(bench.reactor.outgoing[0].accepted_at, NOW.load(Relaxed));
}

/// They went behind those left over, of whom each turn serves a few: a polite client waited for a second beside 9000 peers that
/// had more to be read. (issue 16)
#[test]
fn those_with_news_that_a_turn_does_not_reach_are_first_in_the_next() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    const NEWCOMERS: usize = budget::LEAST_READY + 4;
    let mut bench = Bench::with_clock(Clock::reading(|| NOW.load(Relaxed)), HoldsUp(&NOW), |_| ());
    // More than their share.
    let lines = b"#\n".repeat(10_000);
    let _greedy: Vec<TcpStream> = (0..60).map(|_| bench.peer(&lines)).collect();
    bench.until(|reactor| reactor.left_over.len() == 60);
    let mut newcomers: Vec<TcpStream> = (0..NEWCOMERS).map(|_| bench.peer(b"")).collect();
    bench.until(|reactor| reactor.table.len() == 60 + NEWCOMERS);
    assert!(bench.reactor.left_over.len() > budget::LEAST_LEFT_OVER, "they are done");
    newcomers.iter_mut().for_each(|peer| peer.write_all(b"#slow\n").unwrap());
    let served = || usize::try_from(NOW.load(Relaxed) / HELD_UP).unwrap();
    bench.turn();
    assert_eq!((served(), bench.reactor.ready.len()), (budget::LEAST_READY, 4));
    bench.turn();
    assert_eq!((served(), bench.reactor.ready.len()), (NEWCOMERS, 0));
}

#[test]
fn few_are_let_in_while_more_have_news_than_a_turn_gets_to() {
    let mut bench = Bench::new(SlowComments, |_| ());
    let mut inside: Vec<TcpStream> = (0..MAX_EVENTS + 10).map(|_| bench.peer(b"")).collect();
    bench.until(|reactor| reactor.table.len() == MAX_EVENTS + 10);
    let _outside: Vec<TcpStream> = (0..50).map(|_| bench.peer(b"")).collect();
    inside.iter_mut().for_each(|peer| peer.write_all(b"#\n").unwrap());
    bench.turn();
    assert_eq!(bench.reactor.table.len(), inside.len() + budget::LEAST_ACCEPTS);
    bench.until(|reactor| reactor.table.len() == inside.len() + 50);
}

/// More than a hundred were closed in one turn, which took up to 24 ms. (issue 16)
#[test]
fn the_limit_of_memory_is_met_a_few_in_each_turn_unless_it_is_far_off() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    // Each look at the clock takes its time.
    let clock = Clock::reading(|| NOW.fetch_add(100_000, Relaxed));
    let mut bench = Bench::with_clock(clock, SlowComments, |_| ());
    const PEERS: usize = 300;
    let half = [b'x'; 10_000];
    let peers: Vec<TcpStream> = (0..PEERS).map(|_| bench.peer(&half)).collect();
    bench.until(|reactor| reactor.counters.read_bytes == (PEERS * half.len()) as u64);
    let closed = |reactor: &Reactor| reactor.counters.closed[CloseReason::Memory as usize];
    let held = usize::try_from(bench.reactor.counters.held_bytes).unwrap();
    let limit = held / 10 * 9;
    bench.reactor.settings.max_memory_bytes = limit;
    bench.turn();
    assert!((1..10).contains(&closed(&bench.reactor)), "{} at once", closed(&bench.reactor));
    assert!(!bench.reactor.is_idle(), "nobody would go on");
    bench.until(Reactor::is_idle);
    assert!(bench.reactor.counters.held_bytes <= limit as u64);
    let all = closed(&bench.reactor);
    assert!((29..=31).contains(&all), "{all} were closed where a tenth had to be");
    // Before anything else, as there are other limits.
    bench.reactor.settings.max_memory_bytes = limit / 2;
    bench.turn();
    assert!(bench.reactor.counters.held_bytes <= (limit / 2 + limit / 16) as u64);
    drop(peers);
}

/// With what it hands out for whom it takes back, a turn made so many more jobs that 2000 lay there with their replies, which
/// nobody had counted: twice the limit of memory. (issue 16)
#[test]
fn while_jobs_are_left_over_nothing_is_handed_out_for_whose_is_taken_back() {
    const PEERS: usize = 30;
    let mut bench = Bench::new(SlowComments, |_| ());
    let lines = b"x\n".repeat(1000);
    let _peers: Vec<TcpStream> = (0..PEERS).map(|_| bench.peer(&lines)).collect();
    bench.until(|reactor| reactor.outgoing.len() == PEERS);
    // As if a worker had done them, and a turn had left them over, while memory is short.
    bench.reactor.settings.max_memory_bytes =
        usize::try_from(bench.reactor.counters.held_bytes).unwrap() * 2 / 3;
    for mut job in std::mem::take(&mut bench.reactor.outgoing) {
        while job.batch.next_line().is_some() {}
        bench.reactor.finished.push_back(Mail::Job(job));
    }
    bench.turn();
    assert!(bench.reactor.finished.is_empty());
    assert_eq!((bench.reactor.outgoing.len(), bench.reactor.left_over.len()), (0, PEERS));
    bench.until(|reactor| reactor.outgoing.len() == PEERS);
}

/// Has a state of each connection.
struct Stateful;

impl Service for Stateful {
    type State = u8;
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) -> u8 {
        0
    }

    fn handle(&self, _: &mut u8, _: &mut (), _: &Request<'_>, _: &mut Reply<'_>) {}
}

/// It was counted as if it were a request's: the connection waited for a job that had come back, and was counted for ever as one
/// that is about to leave.
#[test]
fn what_gives_a_state_back_is_of_no_account_where_it_is_left_over() {
    let mut bench = Bench::new(Stateful, |_| ());
    let mut peer = bench.peer(b"x\n");
    let taken = |bench: &mut Bench, task: fn(&Task) -> bool| {
        bench.until(|reactor| !reactor.outgoing.is_empty());
        let mut job = bench.reactor.outgoing.pop().unwrap();
        assert!(task(&job.task), "{:?}", job.task);
        while job.batch.next_line().is_some() {}
        job
    };
    let mut job = taken(&mut bench, |task| *task == Task::Open);
    job.session = Some(Box::new(0_u8));
    bench.reactor.finished.push_back(Mail::Job(job));
    let mut job = taken(&mut bench, |task| *task == Task::Requests);
    job.end = JobEnd::Close;
    bench.reactor.finished.push_back(Mail::Job(job));
    let job = taken(&mut bench, |task| matches!(task, Task::Close(_)));
    // Something was not taken in within its turn.
    let (sender, _answer) = std::sync::mpsc::sync_channel(1);
    bench.reactor.finished.push_back(Mail::Question(Question::Turns(sender)));
    bench.reactor.shared.hub.replies.push(Mail::Job(job));
    bench.until(|reactor| reactor.closing_out == 0);
    peer.set_nonblocking(true).unwrap();
    peer.read_to_end(&mut Vec::new()).unwrap();
    drop(peer);
    bench.until(|reactor| reactor.table.len() == 0);
    assert!(bench.reactor.gone.is_empty());
}

#[test]
fn who_looks_on_is_in_none_of_the_clients_counts_when_it_holds_up_the_loop() {
    static NOW: AtomicU64 = AtomicU64::new(MS);

    /// Holds up the event loop, by that clock.
    struct Slow;
    impl Handler for Slow {
        fn handle(&self, _: &Request<'_>, _: &mut Reply<'_>) {
            NOW.fetch_add(2 * MS, Relaxed);
        }

        fn classify(&self, _: &[u8]) -> Kind {
            Kind::Inline
        }
    }
    for (role, counted) in [(Role::Requests, 1), (Role::Aside, 0)] {
        let mut bench = Bench::with_clock(Clock::reading(|| NOW.load(Relaxed)), Slow, |_| ());
        let mut peer = bench.peer(b"");
        bench.until(|reactor| reactor.table.len() == 1);
        let id = bench.first();
        bench.reactor.table.get(id).unwrap().connection.role = role;
        let before = NOW.load(Relaxed);
        peer.write_all(b"x\n").unwrap();
        bench.until(|_| NOW.load(Relaxed) > before);
        bench.reactor.publish();
        assert_eq!(bench.reactor.counters.inline_overruns, counted, "{role:?}");
    }
}

#[test]
fn replies_of_a_turn_go_together_and_wait_for_nobody_who_takes_long() {
    static NOW: AtomicU64 = AtomicU64::new(MS);

    /// Looks whether the first peer has a reply.
    struct Looks(Arc<Mutex<Vec<TcpStream>>>, Arc<Mutex<Vec<usize>>>);
    impl Handler for Looks {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            match request.line() {
                b"slow" => drop(NOW.fetch_add(MS / 2, Relaxed)),
                b"look" => {
                    let first = self.0.lock().unwrap().remove(0);
                    self.1.lock().unwrap().push(first.peek(&mut [0; 9]).unwrap_or(0));
                }
                _ => {}
            }
            reply.push(b"y\n");
        }

        fn classify(&self, _: &[u8]) -> Kind {
            Kind::Inline
        }
    }
    for (second, there) in [("x\n", 0), ("slow\n", 2)] {
        let (peers, seen) = (Arc::<Mutex<Vec<TcpStream>>>::default(), Arc::<Mutex<Vec<usize>>>::default());
        let looks = Looks(Arc::clone(&peers), Arc::clone(&seen));
        let mut bench = Bench::with_clock(Clock::reading(|| NOW.load(Relaxed)), looks, |_| ());
        let mut all = [(); 3].map(|()| bench.peer(b""));
        bench.until(|reactor| reactor.table.len() == 3);
        bench.turn();
        let first = all[0].try_clone().unwrap();
        first.set_nonblocking(true).unwrap();
        peers.lock().unwrap().push(first);
        for (peer, line) in all.iter_mut().zip(["x\n", second, "look\n"]) {
            peer.write_all(line.as_bytes()).unwrap();
        }
        bench.turn();
        assert_eq!(*seen.lock().unwrap(), [there], "{second:?}");
        all[0].set_nonblocking(false).unwrap();
        for peer in &mut all {
            let mut reply = [0; 2];
            peer.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"y\n");
        }
        assert_eq!((bench.reactor.jobs_out, bench.reactor.lines_out, bench.reactor.due.len()), (0, 0, 0));
    }
}

#[test]
fn it_spins_behind_many_requests_handled_here_while_that_is_not_in_vain() {
    static NOW: AtomicU64 = AtomicU64::new(MS);

    struct Inline;
    impl Handler for Inline {
        fn handle(&self, _: &Request<'_>, reply: &mut Reply<'_>) {
            reply.push(b"y\n");
        }

        fn classify(&self, _: &[u8]) -> Kind {
            Kind::Inline
        }
    }
    // Each look at the clock takes a microsecond.
    let mut bench = Bench::with_clock(Clock::reading(|| NOW.fetch_add(1000, Relaxed)), Inline, |_| ());
    let mut events = Events::with_capacity(MAX_EVENTS);
    let mut peer = bench.peer(b"");
    bench.until(|reactor| reactor.table.len() == 1);
    let handle = |bench: &mut Bench, peer: &mut TcpStream, requests: usize| {
        let replied = bench.reactor.counters.replied + requests as u64;
        peer.write_all(&b"x\n".repeat(requests)).unwrap();
        bench.until(|reactor| reactor.counters.replied == replied);
    };
    // Whether something was found, and how often the clock was read.
    let mut spin = |bench: &mut Bench| {
        let before = NOW.load(Relaxed);
        (bench.reactor.spin(&mut events), (NOW.load(Relaxed) - before) / 1000)
    };
    handle(&mut bench, &mut peer, 15);
    assert_eq!(spin(&mut bench), (false, 0), "too few");
    handle(&mut bench, &mut peer, 1);
    assert_eq!(spin(&mut bench), (false, 11), "in vain for ten microseconds");
    assert_eq!(spin(&mut bench), (false, 0), "so not the next time");
    peer.write_all(b"x\n").unwrap();
    assert_eq!(spin(&mut bench), (true, 1));
    assert_eq!(spin(&mut bench), (false, 11), "it had paid");
    spin(&mut bench);
    bench.reactor.jobs_out = 1;
    assert_eq!(spin(&mut bench), (false, 0), "beside a worker");
    bench.reactor.jobs_out = 0;
    bench.reactor.spin.sleeps();
    assert_eq!(spin(&mut bench), (false, 0), "nothing was handled since");
}

#[test]
fn a_stop_behind_the_last_request_of_a_connection_is_dropped() {
    struct Last;
    impl Handler for Last {
        fn handle(&self, _: &Request<'_>, reply: &mut Reply<'_>) {
            reply.push(b"y\n");
            reply.close();
        }

        fn classify(&self, line: &[u8]) -> Kind {
            if line == b"STOP" { Kind::Stop } else { Kind::Inline }
        }

        fn stop_line(&self) -> Option<&[u8]> {
            Some(b"STOP")
        }
    }
    let mut bench = Bench::new(Last, |config| config.stop_from = StopFrom::Any);
    let mut peer = bench.peer(b"bye\nSTOP\n");
    bench.until(|reactor| reactor.counters.replied == 1);
    peer.shutdown(Shutdown::Write).unwrap();
    bench.until(|reactor| reactor.counters.closed[CloseReason::Handler as usize] == 1);
    let mut reply = Vec::new();
    peer.read_to_end(&mut reply).unwrap();
    assert_eq!(reply, b"y\n");
    assert!(!bench.reactor.stop_requested);
}

//! The load generator: what `tidemill load` does once its arguments are read.
//!
//! `schedule` says when requests are due and `pace` when they may be sent; `protocol` says what is asked and what must come
//! back; `worker` is the event loop that sends and reads on each `connection`, one a thread; `ledger` and `tally` judge
//! every reply; `histogram` holds the latencies; `honesty` judges the generator itself; `asserts` reads what a run must
//! fulfil; `find` looks for the rate at which it does. [`run`] starts the threads and puts together what they say. Nothing here prints.

pub(crate) mod asserts;
mod connection;
pub(crate) mod find;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod histogram;
mod honesty;
mod ledger;
pub(crate) mod merge;
mod pace;
pub(crate) mod progress;
pub(crate) mod protocol;
pub(crate) mod result;
mod series;
mod tally;
mod timer;
mod worker;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use histogram::Latencies;

use honesty::{Absence, Generator, Usage};
use progress::Progress;
use protocol::Protocol;
use series::Series;
use tally::{First, Kind};
pub(crate) use worker::Polling;
use worker::{Done, Row, Share, Worker};

use crate::report::load::{Connections, Requests};
use tidemill::schedule::Curve;

/// What to do.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Plan {
    /// The server, as it was written.
    pub(crate) target: String,
    /// Its addresses, in the order in which they are tried: the first that lets a connection in is it.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) protocol: Protocol,
    pub(crate) connections: usize,
    pub(crate) pipeline: usize,
    /// Measured requests; without it the duration ends the run.
    pub(crate) requests: Option<u64>,
    pub(crate) duration: Option<Duration>,
    pub(crate) warm_up: Duration,
    /// Requests a second over time: with it the loop is open.
    pub(crate) rate: Option<Curve>,
    pub(crate) poisson: bool,
    /// Connections over time, at most `connections`.
    pub(crate) connection_curve: Option<Curve>,
    pub(crate) reconnect: bool,
    pub(crate) threads: u32,
    pub(crate) timeout: Duration,
    /// The server is going to stop, and that is no error.
    pub(crate) expect_stop: bool,
    pub(crate) seed: u64,
}

impl Plan {
    /// How many threads there will be: no more than connections.
    pub(crate) fn threads(&self) -> u32 {
        self.threads.min(u32::try_from(self.connections).unwrap_or(u32::MAX)).max(1)
    }
}

/// What the user's interrupts have come to.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    /// Set by a signal handler, taken back by whoever sees it first.
    pub(crate) came: Arc<AtomicBool>,
    /// How many were seen.
    seen: AtomicU8,
    /// Set when one more may end the program without an account.
    pub(crate) enough: Arc<AtomicBool>,
}

impl Interrupts {
    /// How many came, of which those within a few milliseconds are one.
    fn count(&self) -> u8 {
        // Nothing else is read or written by the signal handler: there is nothing to order.
        if self.came.load(Ordering::Relaxed) && self.came.swap(false, Ordering::Relaxed) {
            let seen = self.seen.fetch_add(1, Ordering::Relaxed);
            self.enough.fetch_or(seen > 0, Ordering::Relaxed);
        }
        self.seen.load(Ordering::Relaxed)
    }

    /// Whether the run has been asked to end.
    pub(crate) fn any(&self) -> bool {
        self.seen.load(Ordering::Relaxed) > 0
    }

    /// The run is over: from now on an interrupt ends the program.
    pub(crate) fn run_is_over(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }
}

/// Why a run ended before its time.
#[derive(Debug, Clone)]
pub(crate) enum EndedEarly {
    /// The server does not answer any more.
    Gone,
    /// It waited for the replies that were on their way.
    Interrupted,
    /// It did not.
    InterruptedTwice,
    /// The generator ran out of something of its own: that says nothing about the server.
    OutOf(&'static str),
    /// The system refused a worker what it needs to go on.
    Failed(String),
}

impl EndedEarly {
    /// The errors of a connect to `address` that say nothing about the server.
    fn of_connect(error: &io::Error, address: SocketAddr) -> Option<Self> {
        match Errno::from_io_error(error)? {
            // The same error is told where there is no way to the address at all, by a socket without ports to run out of too.
            Errno::ADDRNOTAVAIL if is_reachable(address) => Some(Self::OutOf(
                "local ports for this target, which closed connections hold for a minute: use fewer connections, with \
                 --reconnect a lower --rate, or widen net.ipv4.ip_local_port_range",
            )),
            Errno::MFILE | Errno::NFILE => {
                Some(Self::OutOf("file descriptors: use fewer connections, or raise `ulimit -n`"))
            }
            _ => None,
        }
    }
}

/// Whether the system knows a way to `address`.
fn is_reachable(address: SocketAddr) -> bool {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address)).is_ok()
}

impl fmt::Display for EndedEarly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the server does not answer any more"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::InterruptedTwice => {
                f.write_str("interrupted twice: replies that were on their way were not waited for")
            }
            Self::OutOf(what) => write!(f, "the generator is out of {what}"),
            Self::Failed(why) => write!(f, "the generator failed: {why}"),
        }
    }
}

/// What happened.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) started: std::time::SystemTime,
    measured: Requests,
    total: Requests,
    connections: Connections,
    examples: Vec<(Kind, First)>,
    latencies: Latencies,
    generator: Generator,
    /// Of the generator, in the measured part.
    cpu_seconds: f64,
    series: Series,
    ended_early: Option<EndedEarly>,
}

/// Floods the target as planned, and tells `watch` how it goes about ten times a second.
///
/// An error is the system's, and says nothing about the target. Nothing has been sent then: what fails later ends a run early.
pub(crate) fn run(
    plan: &Plan,
    interrupts: &Interrupts,
    watch: &mut dyn FnMut(&Progress),
) -> io::Result<Outcome> {
    let threads = plan.threads();
    let (started, clock) = (std::time::SystemTime::now(), Clock::start());
    let mut series = Series::new();
    let mut progress = Progress::new(plan);
    let mut collect = |row: Row| {
        progress.add(&row, Duration::from_nanos(clock.now()));
        series.add(row);
        watch(&progress);
    };
    let share = |thread| share(plan, thread, threads);
    let mut polls = (0..threads).map(|_| Polling::new()).collect::<io::Result<Vec<_>>>()?;
    if threads == 1
        && let Some(polling) = polls.pop()
    {
        // No second thread: a process of one saves every system call the counting of who uses its descriptors.
        let done = Worker::new(plan, share(0), polling, clock, interrupts, &mut collect).run();
        return Ok(put_together(plan, started, vec![done], series, Usage::default()));
    }
    let before = Usage::of_thread();
    let done = thread::scope(|scope| {
        let (rows, received) = mpsc::channel();
        let mut spawned = Vec::new();
        for (thread, polling) in (0..threads).zip(polls) {
            let (share, rows) = (share(thread), rows.clone());
            let (start, started) = mpsc::channel::<()>();
            let flood = move || {
                // Where another thread was refused, none begins.
                started.recv().ok()?;
                // Whoever listens goes on until all have ended.
                let mut send = |row| drop(rows.send(row));
                Some(Worker::new(plan, share, polling, clock, interrupts, &mut send).run())
            };
            let builder = thread::Builder::new().name(format!("load-{thread}"));
            spawned.push((start, builder.spawn_scoped(scope, flood)?));
        }
        drop(rows);
        for (start, _) in &spawned {
            // It waits for this.
            let _ = start.send(());
        }
        received.into_iter().for_each(&mut collect);
        let mut done: Vec<Done> = Vec::new();
        for (_, thread) in spawned {
            match thread.join() {
                Ok(ended) => done.extend(ended),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok::<_, io::Error>(done)
    })?;
    Ok(put_together(plan, started, done, series, Usage::of_thread().since(before)))
}

fn put_together(
    plan: &Plan,
    started: std::time::SystemTime,
    done: Vec<Done>,
    series: Series,
    own: Usage,
) -> Outcome {
    let (mut measured, mut total) = (Requests::default(), Requests::default());
    let mut connections = Connections::default();
    let mut examples: Vec<(Kind, First)> = Vec::new();
    let mut lateness = Latencies::new();
    let (mut right_while_busy, mut ended, mut ended_early, mut threads) = (0, 0, None, Vec::new());
    let mut absence = Absence::default();
    for one in done {
        measured.add(&one.tally.measured());
        total.add(&one.tally.total());
        connections.add(&one.tally.connections);
        lateness.add(&one.lateness.sparse());
        right_while_busy += one.right_while_busy;
        ended = ended.max(one.ended);
        absence = absence.worse(one.absence);
        ended_early = ended_early.or(one.ended_early);
        threads.push(one.usage);
        examples.extend(one.tally.examples);
    }
    assert!(
        measured.adds_up() && total.adds_up(),
        "a request is not accounted for: {measured:?} of {total:?}"
    );
    // The first of each kind over all threads.
    examples.sort_by_key(|(kind, first)| (*kind, first.at));
    examples.dedup_by_key(|(kind, _)| *kind);
    let mut latencies = Latencies::new();
    latencies.add(&series.histogram());
    let seconds = Duration::from_nanos(ended).saturating_sub(plan.warm_up).as_secs_f64();
    let cpu_seconds = own.cpu_seconds + threads.iter().map(|usage| usage.cpu_seconds).sum::<f64>();
    let generator = Generator {
        threads,
        right: measured.right,
        right_while_busy,
        seconds,
        lateness,
        absence,
        open_loop: plan.rate.is_some(),
        latency: honesty::compared(&latencies),
    };
    Outcome {
        started,
        measured,
        total,
        connections,
        examples,
        latencies,
        generator,
        cpu_seconds,
        series,
        ended_early,
    }
}

fn share(plan: &Plan, thread: u32, threads: u32) -> Share {
    let part =
        |whole: u64| whole / u64::from(threads) + u64::from(u64::from(thread) < whole % u64::from(threads));
    let connections = usize::try_from(part(plan.connections as u64)).unwrap_or(usize::MAX);
    Share {
        thread,
        threads,
        connections,
        requests: plan.requests.map_or(u64::MAX, part),
        rate: plan.rate.as_ref().map(|curve| curve.scaled(1.0 / f64::from(threads))),
        connection_curve: plan
            .connection_curve
            .as_ref()
            .map(|curve| curve.scaled(connections as f64 / plan.connections as f64)),
        protocol: plan.protocol.clone(),
    }
}

/// Four characters that tell this run's requests from another's.
pub(crate) fn tag(seed: u64) -> [u8; 4] {
    let mut random = fastrand::Rng::with_seed(seed);
    std::array::from_fn(|_| *random.choice(b"abcdefghijklmnopqrstuvwxyz0123456789").unwrap_or(&b'x'))
}

/// Time since the start of a run. It is read for every reply, so it is a number from the first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: u64,
}

impl Clock {
    fn start() -> Self {
        Self { start: monotonic() }
    }

    /// Nanoseconds since the start.
    fn now(self) -> u64 {
        monotonic().saturating_sub(self.start)
    }
}

/// So many reads one after the other share one look at the clock. Between the first and the last of them lies a fraction of what
/// it takes to wake up; as the next request is sent at the same time by the same clock, latencies are no longer and no
/// shorter for it in the mean.
const READS_A_STAMP: u32 = 4;

/// The time as a thread of the generator knows it.
#[derive(Debug)]
pub(crate) struct Stamp {
    clock: Clock,
    last: u64,
    /// Reads that may still take it for the time.
    left: u32,
}

impl Stamp {
    fn new(clock: Clock) -> Self {
        Self { clock, last: 0, left: 0 }
    }

    /// The time now.
    fn now(&mut self) -> u64 {
        self.last = self.clock.now();
        self.left = READS_A_STAMP - 1;
        self.last
    }

    /// The time of a read, which has just been.
    fn of_read(&mut self) -> u64 {
        if self.left == 0 {
            return self.now();
        }
        self.left -= 1;
        self.last
    }

    /// Time has passed: the next read is told the time anew.
    fn expire(&mut self) {
        self.left = 0;
    }
}

/// Nanoseconds of the system's clock that only goes forward.
#[expect(clippy::cast_sign_loss, reason = "it begins at 0")]
fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// A duration as nanoseconds; 585 years fit.
fn nanoseconds(duration: Duration) -> u64 {
    // Not by way of the 128 bits of `as_nanos`: this is done for every reply.
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// A value that is not negative, without its fraction.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and that is what is wanted"
)]
pub(crate) fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_looked_up_for_every_few_reads_and_whenever_it_has_expired() {
        let mut stamp = Stamp::new(Clock::start());
        let wait_for = |time: u64, clock: Clock| while clock.now() <= time {};
        for _ in 0..3 {
            let first = stamp.of_read();
            wait_for(first, stamp.clock);
            for _ in 1..READS_A_STAMP {
                assert_eq!(stamp.of_read(), first);
            }
            let next = stamp.of_read();
            assert!(next > first);
            wait_for(next, stamp.clock);
            stamp.expire();
            let anew = stamp.of_read();
            assert!(anew > next);
            wait_for(anew, stamp.clock);
            assert!(stamp.now() > anew);
            stamp.expire();
        }
    }

    fn plan() -> Plan {
        Plan {
            target: String::new(),
            addresses: Vec::new(),
            protocol: Protocol::custom("x", "y", None, None).expect("that is a protocol"),
            connections: 10,
            pipeline: 1,
            requests: Some(11),
            duration: None,
            warm_up: Duration::ZERO,
            rate: Some(Curve::constant(90.0)),
            poisson: false,
            connection_curve: Some(Curve::constant(10.0)),
            reconnect: false,
            threads: 3,
            timeout: Duration::from_secs(1),
            expect_stop: false,
            seed: 1,
        }
    }

    #[test]
    fn shares_of_all_threads_are_the_whole() {
        let plan = plan();
        assert_eq!(
            [0, 1, 2, 9].map(|connections| Plan { connections, ..self::tests::plan() }.threads()),
            [1, 1, 2, 3]
        );
        let shares: Vec<Share> = (0..3).map(|thread| share(&plan, thread, 3)).collect();
        assert_eq!(shares.iter().map(|share| share.connections).collect::<Vec<_>>(), [4, 3, 3]);
        assert_eq!(shares.iter().map(|share| share.requests).collect::<Vec<_>>(), [4, 4, 3]);
        for share in shares {
            assert!((share.rate.map_or(0.0, |rate| rate.at(0.0)) - 30.0).abs() < 1e-9);
            let connections = share.connection_curve.map_or(0.0, |curve| curve.at(0.0));
            assert!((connections - share.connections as f64).abs() < 1e-9);
        }
    }

    #[test]
    fn each_interrupt_counts_once_and_the_second_may_end_the_program() {
        let interrupts = Interrupts::default();
        let state = || (interrupts.count(), interrupts.any(), interrupts.enough.load(Ordering::Relaxed));
        assert_eq!(state(), (0, false, false));
        for (count, enough) in [(1, false), (2, true)] {
            interrupts.came.store(true, Ordering::Relaxed);
            for _ in 0..2 {
                assert_eq!(state(), (count, true, enough));
            }
        }
        let interrupts = Interrupts::default();
        interrupts.run_is_over();
        assert!(interrupts.enough.load(Ordering::Relaxed) && !interrupts.any());
    }

    #[test]
    fn connect_that_fails_for_want_of_the_generators_own_is_told_from_one_that_the_server_refused() {
        let of = |errno: Errno, address: &str| {
            let address = address.parse().expect("that is an address");
            EndedEarly::of_connect(&errno.into(), address).map(|why| why.to_string())
        };
        let here = "127.0.0.1:9";
        for (errno, what) in [
            (Errno::ADDRNOTAVAIL, "local ports"),
            (Errno::MFILE, "descriptors"),
            (Errno::NFILE, "descriptors"),
        ] {
            assert!(of(errno, here).is_some_and(|why| why.contains(what)), "{errno}");
        }
        assert_eq!(of(Errno::CONNREFUSED, here), None);
        // The system lets no ordinary socket reach everybody.
        assert_eq!(of(Errno::ADDRNOTAVAIL, "255.255.255.255:9"), None);
        let timed_out = io::Error::from(io::ErrorKind::TimedOut);
        assert!(EndedEarly::of_connect(&timed_out, here.parse().expect("that is an address")).is_none());
    }

    #[test]
    fn tag_is_that_of_its_seed_and_made_of_letters_and_digits() {
        let tags: Vec<_> = (0..9).map(tag).collect();
        assert_eq!(tags, (0..9).map(tag).collect::<Vec<_>>());
        let mut distinct = tags.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), tags.len(), "{tags:?}");
        assert!(tags.iter().flatten().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()), "{tags:?}");
    }

    #[test]
    fn threads_are_put_together() {
        let done = |cpu_seconds, right_while_busy, ended, ended_early| Done {
            tally: tally::Tally::new(0),
            lateness: Latencies::new(),
            usage: Usage { cpu_seconds, waited_seconds: None },
            right_while_busy,
            ended,
            absence: Absence { longest: ended, sum: ended },
            ended_early,
        };
        let second = 1_000_000_000;
        let mut plan = plan();
        plan.warm_up = Duration::from_secs(1);
        let mut all = vec![
            done(0.5, 3, 3 * second, None),
            done(0.25, 4, 2 * second, Some(EndedEarly::Gone)),
            done(0.0, 0, 0, Some(EndedEarly::Interrupted)),
        ];
        for (at, (thread, kind)) in
            [(0, Kind::Reset), (1, Kind::Reset), (2, Kind::Wrong)].into_iter().enumerate()
        {
            all[thread].tally.error(kind, 9 - at as u64, ledger::Example::default);
        }
        let own = Usage { cpu_seconds: 2.0, waited_seconds: None };
        let outcome = put_together(&plan, std::time::UNIX_EPOCH, all, Series::new(), own);
        assert_eq!((outcome.cpu_seconds, outcome.generator.right_while_busy), (2.75, 7));
        assert_eq!((outcome.generator.seconds, outcome.generator.threads.len()), (2.0, 3));
        assert_eq!(
            (outcome.generator.absence.longest, outcome.generator.absence.sum),
            (3 * second, 3 * second)
        );
        assert!(matches!(outcome.ended_early, Some(EndedEarly::Gone)), "{:?}", outcome.ended_early);
        let examples: Vec<_> = outcome.examples.iter().map(|(kind, first)| (*kind, first.at)).collect();
        assert_eq!(examples, [(Kind::Wrong, 7), (Kind::Reset, 8)]);
    }
}

//! What all themes share: the program as a child process, raw sockets, and waiting for a condition.

pub(crate) mod browser;
mod peer;
mod program;
mod unread;
pub(crate) mod wrong_server;

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use serde_json::Value;
use tidemill::{Reply, Request, Server, Service, Stats};

pub(crate) use peer::{Peer, assert_same, helo_reply, in_parallel, resolved};
pub(crate) use program::{
    Ended, Killed, Serving, allow_files, fake_toolchain, freeze, program, program_at, scratch, serve,
    stats_in, tcp_sockets,
};
pub(crate) use unread::Unread;

/// How long a test waits for what must happen. Generous: it passes only when something is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds, or fails naming `what` did not happen.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    eventually_right(what, || if condition() { Ok(()) } else { Err("") });
}

/// Waits until `look` finds nothing wrong, or fails with what it found last.
#[track_caller]
pub(crate) fn eventually_right<W: Display>(what: &str, mut look: impl FnMut() -> Result<(), W>) {
    let deadline = Instant::now() + DEADLINE;
    while let Err(wrong) = look() {
        assert!(
            Instant::now() < deadline,
            "{}",
            format!("not within {DEADLINE:?}: {what} {wrong}").trim_end()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Writes a line that is seen whether the test passes or not.
pub(crate) fn tell(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Tells that (a part of) the test that calls this did not run, and counts it. Not by a macro: of a test that passes those
/// are not shown.
pub(crate) fn skipped(why: &str) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    tell(&format!("skipped ({count} so far): {name}: {why}"));
}

/// Sets a flag when it is dropped, by a test that fails too: whoever goes on until it is set would go on for ever, and nobody
/// would hear of the failure.
pub(crate) struct SetAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Of a property: the same cases in every run, or those of `PROPTEST_RNG_SEED`. What a run finds becomes a test by name.
#[expect(clippy::print_stdout, reason = "shown where a test fails")]
pub(crate) fn seeded(cases: u32) -> ProptestConfig {
    let mut config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0x71de);
    }
    if let RngSeed::Fixed(seed) = config.rng_seed {
        println!("PROPTEST_RNG_SEED={seed}");
    }
    config
}

/// Of a test by chance: the same in every run, or `TIDEMILL_SEED`. One that fails says which.
#[expect(clippy::print_stdout, reason = "shown where a test fails")]
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("TIDEMILL_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("TIDEMILL_SEED={seed}");
    seed
}

/// A server in this process, on a port of its own.
pub(crate) fn embed(service: impl Service) -> Server {
    configure(service, |_| {})
}

/// As [`embed`], with other settings.
pub(crate) fn configure(service: impl Service, change: impl FnOnce(&mut tidemill::Config)) -> Server {
    let mut config = tidemill::Config::default();
    config.listen = vec![([127, 0, 0, 1], 0).into()];
    change(&mut config);
    Server::builder(service).config(config).start().unwrap()
}

/// A handler that answers each line with itself.
pub(crate) fn echo(request: &Request<'_>, reply: &mut Reply<'_>) {
    reply.push(request.line());
    reply.push(b"\n");
}

/// Holds back handlers until it is opened, which is for good. Dropping it opens it, so that a failing test ends.
#[derive(Debug)]
pub(crate) struct Gate(Arc<Bar>);

#[derive(Debug, Default)]
struct Bar {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn closed() -> Gate {
        Gate(Arc::default())
    }

    pub(crate) fn open(&self) {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.opened.notify_all();
    }

    /// What lets a handler wait for this gate.
    pub(crate) fn entrance(&self) -> impl Fn() + Send + Sync + 'static {
        let bar = Arc::clone(&self.0);
        move || {
            let mut open = bar.open.lock().unwrap_or_else(PoisonError::into_inner);
            while !*open {
                open = bar.opened.wait(open).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// A handler that answers each line with itself, once this is open.
    pub(crate) fn holds_all(&self) -> impl Fn(&Request<'_>, &mut Reply<'_>) + Send + Sync + 'static {
        let pass = self.entrance();
        move |request, reply| {
            pass();
            echo(request, reply);
        }
    }

    /// A handler that answers each line with itself, and the line `stuck` only once this is open.
    pub(crate) fn holds_stuck(&self) -> impl Fn(&Request<'_>, &mut Reply<'_>) + Send + Sync + 'static {
        let pass = self.entrance();
        move |request, reply| {
            if request.line() == b"stuck" {
                pass();
            }
            echo(request, reply);
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

/// The two sums that hold in every snapshot.
#[track_caller]
pub(crate) fn assert_adds_up(stats: &Stats) {
    assert_eq!(
        stats.connections_accepted_total,
        stats.connections + stats.connections_closed_total.total() + stats.connections_rejected_total.total(),
        "accepted = open + closed + rejected: {stats:?}"
    );
    assert_eq!(
        stats.requests(),
        stats.replies_total
            + stats.requests_silent_total
            + stats.requests_pending
            + stats.requests_dropped_total,
        "requests = replied + silent + pending + dropped: {stats:?}"
    );
}

/// The two sums, and that nothing is negative, in a snapshot of the program.
#[track_caller]
pub(crate) fn assert_json_adds_up(stats: &Value) {
    let number = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("{name} in {stats}"));
    let sum = |name: &str| total(&stats[name]);
    assert_eq!(
        number("connections_accepted_total"),
        number("connections") + sum("connections_closed_total") + sum("connections_rejected_total"),
        "{stats}"
    );
    assert_eq!(
        sum("requests_total"),
        number("replies_total")
            + number("requests_silent_total")
            + number("requests_pending")
            + number("requests_dropped_total"),
        "{stats}"
    );
}

/// All the numbers of an object, of objects in it too.
pub(crate) fn total(value: &Value) -> u64 {
    match value.as_object() {
        Some(object) => object.values().map(total).sum(),
        None => value.as_u64().unwrap(),
    }
}

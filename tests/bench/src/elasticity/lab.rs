//! A server in this process whose handler does what each request says, and clients that ask it to.
//!
//! A request is `KIND:ARGUMENT:SENT`: what to do, for how many microseconds, and when it was sent, in nanoseconds since
//! [`EPOCH`], 0 if it does not matter. The handler notes when it was called, so that the time in the queue is known without asking the server.

use std::io::{Error, Result};
use std::iter;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::time::{ClockId, clock_gettime};
use tidemill::schedule::Curve;
use tidemill::{PoolLimits, Reply, Request, Server, ServerHandle};

use super::rows::ms;
use super::score::Series;
use crate::wait::wait_for;

/// What all times count from.
pub(crate) static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Longest time that any one reply may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How often a row over time looks at the pool.
const SAMPLE: Duration = Duration::from_millis(5);

/// A call of the handler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// When it was sent.
    pub(crate) sent: Duration,
    /// When the handler was called.
    pub(crate) begun: Duration,
    /// By which worker.
    pub(crate) thread: ThreadId,
    /// What it was asked for.
    pub(crate) kind: Kind,
}

impl Call {
    /// How long it waited, from sending to the call.
    pub(crate) fn wait(&self) -> Duration {
        self.begun.saturating_sub(self.sent)
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Sleep so many microseconds.
    Sleep = b's',
    /// Use a CPU for so many microseconds.
    Burn = b'c',
    /// Ask the same server the same again, one less, and wait for the answer.
    Nest = b'n',
    /// Block until [`Lab::release`].
    Block = b'b',
}

impl Kind {
    fn letter(self) -> char {
        char::from(self as u8)
    }
}

/// The server and what its handler noted.
pub(crate) struct Lab {
    server: Server,
    pub(crate) notes: Arc<Notes>,
}

/// Does what requests ask for, and notes when it was asked.
pub(crate) struct Notes {
    /// Workers that begin at the same time do not wait for each other to note it.
    calls: (Sender<Call>, Receiver<Call>),
    /// What a request that blocks waits for.
    release: (Sender<()>, Receiver<()>),
}

impl Lab {
    /// A server with these limits.
    pub(crate) fn start(limits: PoolLimits) -> Result<Lab> {
        let notes = Notes::new();
        let handler = {
            let notes = Arc::clone(&notes);
            move |request: &Request<'_>, reply: &mut Reply<'_>| {
                notes.handle(request.line(), request.local_addr().tcp());
                reply.push(b"ok\n");
            }
        };
        let server = Server::builder(handler)
            .pool_limits(limits)
            .listen(([127, 0, 0, 1], 0).into())
            .start()
            .map_err(Error::other)?;
        Ok(Lab { server, notes })
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server.local_addr().tcp().expect("it listens on TCP")
    }

    /// The server's handle.
    pub(crate) fn handle(&self) -> ServerHandle {
        self.server.handle()
    }

    /// Workers that the pool has.
    pub(crate) fn workers(&self) -> usize {
        usize::try_from(self.server.handle().stats().pool_threads).unwrap_or(usize::MAX)
    }

    /// Waits until the pool has as many workers as that. Returns how long it took.
    pub(crate) fn wait_for_workers(
        &self,
        workers: RangeInclusive<usize>,
        limit: Duration,
    ) -> Result<Duration> {
        wait_for(&format!("{workers:?} workers"), limit, || workers.contains(&self.workers()))
    }

    /// Lets a request that blocks go on.
    pub(crate) fn release(&self) {
        self.notes.release.0.send(()).expect("the notes have the other end, too");
    }
}

impl Notes {
    pub(crate) fn new() -> Arc<Notes> {
        LazyLock::force(&EPOCH);
        Arc::new(Notes { calls: unbounded(), release: unbounded() })
    }

    /// The calls since the last time, in order of their beginning.
    pub(crate) fn take_calls(&self) -> Vec<Call> {
        let mut calls: Vec<Call> = self.calls.1.try_iter().collect();
        calls.sort_by_key(|call| call.begun);
        calls
    }

    /// A request, without its terminator, that came to `local`.
    pub(crate) fn handle(&self, line: &[u8], local: Option<SocketAddr>) {
        let begun = EPOCH.elapsed();
        let text = std::str::from_utf8(line).unwrap_or_default();
        let mut words = text.split(':');
        let letter = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
        let (argument, sent) = (number(), Duration::from_nanos(number()));
        let kind = [Kind::Sleep, Kind::Burn, Kind::Nest, Kind::Block]
            .into_iter()
            .find(|kind| letter.starts_with(kind.letter()));
        let Some(kind) = kind else { return };
        let call = Call { sent, begun, thread: thread::current().id(), kind };
        self.calls.0.send(call).expect("it has the other end, too");
        match kind {
            Kind::Sleep => thread::sleep(Duration::from_micros(argument)),
            Kind::Burn => burn(Duration::from_micros(argument)),
            Kind::Nest if argument > 0 => {
                // A failure ends the connection of the client, which notices.
                let asked = Client::connect(local.expect("it listens on TCP"))
                    .and_then(|mut client| client.ask(Kind::Nest, argument - 1));
                assert!(asked.is_ok(), "the inner request failed: {asked:?}");
            }
            Kind::Nest => {}
            Kind::Block => self.release.1.recv().expect("it has the other end, too"),
        }
    }
}

/// Uses a CPU for `work`, however long that takes.
fn burn(work: Duration) {
    let used = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::MAX, Duration::from);
    let until = used().saturating_add(work);
    while used() < until {
        for _ in 0..200 {
            std::hint::spin_loop();
        }
    }
}

/// One connection.
pub(crate) struct Client(tidemill::client::Client);

impl Client {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> Result<Client> {
        tidemill::client::Client::connect(address, TIMEOUT).map(Client)
    }

    /// So many of them.
    pub(crate) fn connect_many(address: SocketAddr, count: usize) -> Result<Vec<Client>> {
        (0..count).map(|_| Client::connect(address)).collect()
    }

    /// Sends a request.
    pub(crate) fn send(&mut self, kind: Kind, argument: u64) -> Result<()> {
        let line = format!("{}:{argument}:{}\n", kind.letter(), EPOCH.elapsed().as_nanos());
        self.0.send(line.as_bytes())
    }

    /// Waits for a reply.
    pub(crate) fn receive(&mut self) -> Result<()> {
        let line = self.0.read_line()?;
        if line == b"ok" { Ok(()) } else { Err(Error::other(String::from_utf8_lossy(&line).into_owned())) }
    }

    /// Sends a request and waits for its reply.
    pub(crate) fn ask(&mut self, kind: Kind, argument: u64) -> Result<()> {
        self.send(kind, argument)?;
        self.receive()
    }
}

/// Sends one request on each connection as fast as it can. Returns when it began.
pub(crate) fn burst(clients: &mut [Client], kind: Kind, argument: u64) -> Result<Duration> {
    let begun = EPOCH.elapsed();
    clients.iter_mut().try_for_each(|client| client.send(kind, argument))?;
    Ok(begun)
}

/// The reply to each.
pub(crate) fn collect(clients: &mut [Client]) -> Result<()> {
    clients.iter_mut().try_for_each(Client::receive)
}

/// Clients on threads of their own, as many at a time as a curve says: each sends its next request when it has the reply to the one
/// before.
pub(crate) struct Crowd {
    curve: Curve,
    begun: Instant,
    threads: Vec<JoinHandle<Result<Vec<f64>>>>,
}

impl Crowd {
    /// Plays `curve` once, which is written as in `tidemill load --shape`.
    pub(crate) fn start(address: SocketAddr, curve: &str, kind: Kind, argument: u64) -> Result<Crowd> {
        let curve: Curve = curve.parse().map_err(Error::other)?;
        let curve = curve.drawn(&mut fastrand::Rng::with_seed(7));
        let clients = Client::connect_many(address, whole(curve.highest()))?;
        let begun = Instant::now();
        let spawn = |(number, mut client): (usize, Client)| {
            let curve = curve.clone();
            thread::spawn(move || {
                let (mut latencies, mut now) = (Vec::new(), 0.0);
                loop {
                    let mut moments = iter::successors(Some(now), |at| curve.next_change(*at));
                    let due = moments.find(|at| number < whole(curve.at(*at)));
                    let Some(due) = due.filter(|due| *due < curve.seconds()) else { return Ok(latencies) };
                    thread::sleep(Duration::from_secs_f64(due - now));
                    let sent = Instant::now();
                    client.ask(kind, argument)?;
                    latencies.push(ms(sent.elapsed()));
                    now = begun.elapsed().as_secs_f64();
                }
            })
        };
        let threads = clients.into_iter().enumerate().map(spawn).collect();
        Ok(Crowd { curve, begun, threads })
    }

    /// Looks at the pool until the curve is over: time, clients, workers. Then how many ms each reply took.
    pub(crate) fn play(self, lab: &Lab) -> Result<(Series, Vec<f64>)> {
        let mut series = Vec::new();
        loop {
            let t = self.begun.elapsed().as_secs_f64();
            if t >= self.curve.seconds() {
                return Ok((series, self.finish()?));
            }
            series.push((t, self.curve.at(t).round(), lab.workers() as f64));
            thread::sleep(SAMPLE);
        }
    }

    /// Waits until the curve is over. How many ms each reply took.
    ///
    /// # Errors
    /// A reply was wrong or missing.
    pub(crate) fn finish(self) -> Result<Vec<f64>> {
        let join = |thread: JoinHandle<_>| thread.join().map_err(|_| Error::other("a client panicked"))?;
        Ok(self.threads.into_iter().map(join).collect::<Result<Vec<_>>>()?.concat())
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and not negative")]
fn whole(value: f64) -> usize {
    value.round() as usize
}

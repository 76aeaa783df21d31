//! A running server: its threads, from their start to their end.
//!
//! How it comes to run is `builder`, what others can do with it `handle`. A graceful stop, step by step (the
//! reactor does them, see `reactor`): 1. shut the door; 2. accept what is in the accept queue; 3. read of each
//! connection what its receive queue held; 4. answer it; 5. end the stream, and discard what still comes until the peer
//! closes, for a second at most; 6. when no connection and no job is left, let the workers go, and join them: what belongs to
//! the server's threads is gone when the end is told; 7. drop the handler; 8. tell the end, and be joined by who waits.
//! Only a worker that does not return is left behind, after the deadline, and named.
//!
//! Nothing that a [`ServerHandle`] reaches owns the handler, so that a handler may keep one.

mod builder;
mod handle;

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::config::{Config, LooksOn, PoolLimits, ServiceConfig, Settings};
use crate::error::Error;
use crate::handover::Lent;
use crate::job::{Job, Task};
use crate::mail::{Mail, Post};
use crate::overview::Overview;
use crate::pool::{LEAVE_TIMEOUT, open_or_close};
use crate::reactor::{Bound, Dropped, ListenSocket, NewSettings};
use crate::reason::CloseReason;
use crate::service::{Served, Service, WorkerStates};
use crate::sync::lock_std;
use crate::threads;
pub use builder::Builder;
pub use handle::{Outcome, ServerHandle};

/// How long dropping a [`Server`] waits beyond the drain timeout: twice what its threads get to end in.
const DROP_GRACE: Duration = Duration::from_secs(2);
/// Stack of the reactor's thread, in bytes: what Rust gives a thread. A handler's `classify` and the embedder's subscriber of logs
/// run on it.
const REACTOR_STACK_BYTES: usize = 2 << 20;
/// The same of the tuner's: of what is not ours only the subscriber runs on it.
const TUNER_STACK_BYTES: usize = 512 << 10;
/// The thread that gives sessions back after a stop that was not graceful.
const CLOSER: &str = "tidemill-closer";

/// A running server. Dropping it stops it gracefully and waits for the end, as [`wait`](Self::wait) does, but not inside one of
/// its own handlers.
///
/// # Examples
/// ```
/// use tidemill::{Helo, Server};
///
/// let server = Server::builder(Helo::new()).listen("127.0.0.1:0".parse()?).start()?;
/// println!("listening on {}", server.local_addr());
/// server.handle().stop();
/// assert!(server.wait()?.is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server {
    handle: ServerHandle,
}

struct Inner {
    addrs: Addrs,
    /// What can be said of the server, and with it what its threads share.
    overview: Arc<Overview>,
    /// What is set now. Held while it is changed, so that the reactor gets changes in their order.
    present: Mutex<Present>,
    lent: Lent,
    /// Inherited listeners that no address was found for, until they are this server's own to close.
    unused: Mutex<Vec<ListenSocket>>,
    settings: Arc<NewSettings>,
    end: Mutex<Option<End>>,
    ended: Condvar,
    /// Until it is joined by the reactor's thread. Workers are joined by this one, see `pool`.
    tuner_thread: Mutex<Option<JoinHandle<()>>>,
    /// Until it is joined by who waits for the end.
    reactor_thread: Mutex<Option<JoinHandle<()>>>,
}

/// What is set: for the server and its first service, and for the others.
#[derive(Debug)]
struct Present {
    config: Config,
    others: Vec<ServiceConfig>,
}

/// How the reactor ended.
#[derive(Clone, Debug)]
enum End {
    Stopped { dropped: Dropped, left_behind: Vec<String> },
    PollFailed(Arc<io::Error>),
    Panicked,
}

/// Where a server listens, with real ports.
#[derive(Debug, Default)]
struct Addrs {
    of_clients: Vec<Address>,
    /// Those of services that look on.
    aside: Vec<(LooksOn, Address)>,
}

impl Addrs {
    /// Those of `sockets`.
    ///
    /// # Errors
    /// [`Error::Listener`]
    fn of(sockets: &[Bound], settings: &Settings) -> Result<Addrs, Error> {
        let mut addrs = Addrs::default();
        for Bound { socket, service, .. } in sockets {
            let address = socket.local_addr().map_err(|source| Error::Listener { source })?;
            match settings.services[usize::from(*service)].looks_on {
                None => addrs.of_clients.push(address),
                Some(kind) => addrs.aside.push((kind, address)),
            }
        }
        Ok(addrs)
    }

    #[cfg(feature = "admin")]
    fn aside_of(&self, wanted: LooksOn) -> Option<&Address> {
        self.aside.iter().find(|(kind, _)| *kind == wanted).map(|(_, address)| address)
    }
}

impl Server {
    /// Begins to set up a server for `service` with the defaults of [`Config`]. A closure that takes a
    /// [`Request`](crate::Request) and a [`Reply`](crate::Reply) is a service.
    pub fn builder(service: impl Service) -> Builder {
        Builder::new(service)
    }

    /// The address of the first listener, with its real port.
    pub fn local_addr(&self) -> &Address {
        self.handle.local_addr()
    }

    /// A handle to this server.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Blocks until the server has ended, with its threads, and its handler is dropped; someone else has to stop it. See
    /// [`ServerHandle::wait`].
    ///
    /// # Errors
    /// As [`ServerHandle::wait`].
    pub fn wait(self) -> Result<Outcome, Error> {
        self.handle.wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let inner = &self.handle.inner;
        self.handle.stop();
        if !inner.overview.hub.is_on_own_thread() {
            let drain_timeout = lock_std(&inner.present).config.drain_timeout;
            let limit = Instant::now() + drain_timeout + DROP_GRACE;
            inner.wait_until(Some(limit));
        }
    }
}

fn spawn(
    name: &'static str,
    stack_bytes: usize,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    threads::spawn(name.to_owned(), stack_bytes, run).map_err(|source| Error::Thread { name, source })
}

impl Inner {
    /// Starts the workers, the tuner and the reactor. Where one is refused, what has been started is still there.
    fn start_threads(
        self: &Arc<Self>,
        services: Arc<[Served]>,
        stack_bytes: usize,
        turns: impl FnOnce() -> io::Result<Dropped> + Send + 'static,
    ) -> Result<(), Error> {
        let Overview { hub, pool, tuner, .. } = &*self.overview;
        let PoolLimits { min_threads, max_threads, .. } = tuner.limits();
        pool.set_max(max_threads);
        let missing = pool.set_target(min_threads);
        for rest in (0..missing).rev() {
            pool.start_worker(hub, &services, stack_bytes).map_err(|source| {
                pool.give_up(rest);
                Error::Thread { name: "worker", source }
            })?;
        }
        let watcher = spawn("tidemill-tuner", TUNER_STACK_BYTES, {
            let (hub, pool, tuner) = (Arc::clone(hub), Arc::clone(pool), Arc::clone(tuner));
            let services = Arc::clone(&services);
            move || tuner.run(&pool, &hub, &services, stack_bytes)
        })?;
        *lock_std(&self.tuner_thread) = Some(watcher);
        // Held until the thread's handle is in its place: the end may come before.
        let mut place = lock_std(&self.reactor_thread);
        *place = Some(spawn("tidemill-loop", REACTOR_STACK_BYTES, {
            let inner = Arc::clone(self);
            move || inner.run(services, turns)
        })?);
        Ok(())
    }

    /// Ends workers and tuner, and joins them. Blocks until the pool's deadline at the latest. Returns who is left behind.
    fn end_threads(&self, services: &[Served]) -> Vec<String> {
        // Where there was no stop: workers may wait for what nobody does any more.
        services.iter().for_each(Served::stop);
        self.overview.pool.stop();
        self.overview.tuner.stop();
        let tuner = lock_std(&self.tuner_thread).take();
        if tuner.is_none() {
            // It was refused: workers are busy with their start at the most.
            self.overview.pool.join_workers();
        }
        let (left_behind, joined) = self.overview.pool.wait_until_joined();
        if !left_behind.is_empty() {
            tracing::warn!(
                workers = left_behind.join(", "),
                "workers are left behind: their handler has not returned"
            );
        } else if !joined {
            tracing::warn!("a worker is left behind: a destructor of its thread has not returned");
        }
        // While a thread does not end that has left the pool, neither does who joins it.
        if (joined || !left_behind.is_empty()) && tuner.is_some_and(|tuner| tuner.join().is_err()) {
            tracing::error!("the tuner panicked");
        }
        left_behind
    }

    /// Gives back the sessions that are left after a stop that was not graceful, on a thread of its own, as services may block.
    /// Blocks until that is done, for a second at most. Returns who is left behind.
    fn close_sessions(&self, services: &Arc<[Served]>) -> Option<String> {
        let mut mail = Vec::new();
        self.overview.hub.replies.drain(&mut mail);
        let came_back = mail.into_iter().filter_map(Mail::into_job);
        let mut jobs: Vec<Box<Job>> = self.overview.pool.take_left().chain(came_back).collect();
        jobs.retain(|job| job.session.is_some());
        if jobs.is_empty() {
            return None;
        }
        let (done, is_done) = mpsc::channel::<()>();
        let (services, hub) = (Arc::clone(services), Arc::clone(&self.overview.hub));
        let close = move || {
            hub.adopt_thread();
            let post: Arc<dyn Post> = hub;
            let mut states = WorkerStates::none();
            for job in &mut jobs {
                if !matches!(job.task, Task::Close(_)) {
                    job.become_closing(CloseReason::Aborted);
                }
                open_or_close(job, &services, &mut states, &post);
            }
            drop(states);
            drop(services);
            drop(done);
        };
        match threads::spawn(CLOSER.to_owned(), REACTOR_STACK_BYTES, close) {
            Ok(thread) => match is_done.recv_timeout(LEAVE_TIMEOUT) {
                Err(RecvTimeoutError::Timeout) => Some(CLOSER.to_owned()),
                // It has nothing more to do than to end itself.
                _ => {
                    thread
                        .join()
                        .unwrap_or_else(|_| tracing::error!("the thread that closes connections panicked"));
                    None
                }
            },
            Err(error) => {
                tracing::error!(%error, "connections could not be closed for their services");
                None
            }
        }
    }

    /// The reactor's thread; `turns` are those of its loop.
    fn run(&self, services: Arc<[Served]>, turns: impl FnOnce() -> io::Result<Dropped>) {
        // Unwind safety: what the reactor shares are counters and queues, all usable as they are after a panic.
        let mut end = match panic::catch_unwind(AssertUnwindSafe(turns)) {
            Ok(Ok(dropped)) => End::Stopped { dropped, left_behind: Vec::new() },
            Ok(Err(error)) => {
                tracing::error!(%error, "poll failed");
                End::PollFailed(Arc::new(error))
            }
            Err(_) => {
                tracing::error!("the reactor panicked");
                End::Panicked
            }
        };
        self.overview.stop.abort();
        self.overview.hub.end();
        let mut left = self.end_threads(&services);
        left.extend(self.close_sessions(&services));
        if let End::Stopped { left_behind, .. } = &mut end {
            *left_behind = left;
        }
        // The last one, unless a worker is left behind. Unwind safety: nothing of it is used any more.
        if panic::catch_unwind(AssertUnwindSafe(|| drop(services))).is_err() {
            tracing::error!("the handler panicked while it was dropped");
        }
        self.overview.hub.slow.tell_left_out();
        *lock_std(&self.end) = Some(end);
        self.ended.notify_all();
    }

    /// Blocks until the server has ended or `limit` has passed.
    fn wait_until(&self, limit: Option<Instant>) -> Option<End> {
        let mut end = lock_std(&self.end);
        while end.is_none() {
            end = match limit {
                None => self.ended.wait(end).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let rest = limit.checked_duration_since(Instant::now())?;
                    self.ended.wait_timeout(end, rest).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let end = end.clone();
        // It has told the end, and has nothing more to do than to end itself. Others who wait find it joined.
        let mut thread = lock_std(&self.reactor_thread);
        if thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the reactor panicked");
        }
        end
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    use crate::reactor::Reactor;
    use crate::service::{Connection, Reply, Request, Service};

    fn builder() -> Builder {
        let silent = |_: &Request<'_>, _: &mut Reply<'_>| ();
        Server::builder(silent).listen("127.0.0.1:0".parse().unwrap())
    }

    #[test]
    fn a_loop_that_cannot_wait_any_more_ends_as_a_failure() {
        // Bad file descriptor: what a poll instance says that was closed behind our back.
        let fail = |_: Reactor| Err(io::Error::from_raw_os_error(9));
        let server = builder().start_with(fail).unwrap();
        for error in [server.handle().wait().unwrap_err(), server.wait().unwrap_err()] {
            assert!(matches!(error, Error::PollFailed { .. }), "{error:?}");
            assert_eq!(error.to_string(), "waiting for events failed: Bad file descriptor (os error 9)");
        }
    }

    /// Its worker waits, before its first job, until the server stops. With how often it was told so.
    struct Waits(mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>, Mutex<usize>);

    impl Service for Waits {
        type State = ();
        type Worker = ();

        fn start_worker(&self) {
            // For a while only, or a fault here would never end.
            lock_std(&self.1).recv_timeout(Duration::from_secs(20)).unwrap();
        }

        fn open(&self, (): &mut (), _: &Connection<'_>, _: &mut Reply<'_>) {}

        fn handle(&self, (): &mut (), (): &mut (), _: &Request<'_>, _: &mut Reply<'_>) {}

        fn stopping(&self) {
            *lock_std(&self.2) += 1;
            self.0.send(()).unwrap();
        }
    }

    #[test]
    fn a_server_that_ends_without_a_stop_tells_its_services_once() {
        let (bring, brought) = mpsc::channel();
        let service = Arc::new(Waits(bring, Mutex::new(brought), Mutex::default()));
        let fail = |_: Reactor| Err(io::Error::from_raw_os_error(9));
        let builder = Server::builder(Arc::clone(&service)).listen("127.0.0.1:0".parse().unwrap());
        let server = builder.threads(1, 1).start_with(fail).unwrap();
        server.wait().unwrap_err();
        assert_eq!(*lock_std(&service.2), 1);
    }
}

//! Wiring: from a [`Config`] and a [`Service`] to running threads, and the handle to them.
//!
//! Starting: check the settings, bind, start the workers, the tuner and the reactor. A graceful stop, step by step (the
//! reactor does them, see `reactor`): 1. shut the door; 2. accept what is in the accept queue; 3. read of each
//! connection what its receive queue held; 4. answer it; 5. end the stream, and discard what still comes until the peer
//! closes, for a second at most; 6. when no connection and no job is left, let the workers go, and join them: what belongs to
//! the server's threads is gone when the end is told; 7. drop the handler; 8. tell the end, and be joined by who waits.
//! Only a worker that does not return is left behind, after the deadline, and named.
//!
//! Nothing that a [`ServerHandle`] reaches owns the handler, so that a handler may keep one.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::address::Address;
#[cfg(feature = "admin")]
use crate::admin::Admin;
#[cfg(feature = "admin")]
use crate::agent::Agent;
use crate::clock::{Clock, nanos};
use crate::config::{Config, LooksOn, PoolLimits, ServiceConfig, ServiceSettings, Settings, StopFrom};
use crate::controller::Decision;
use crate::error::Error;
use crate::handover::{Inherited, Lent, Listener};
use crate::hub::Hub;
use crate::job::{Job, Task};
use crate::mail::{Mail, Post, Question};
use crate::metrics::{Counters, Stats};
use crate::overview::Overview;
use crate::pool::{JobPool, LEAVE_TIMEOUT, open_or_close};
use crate::reactor::{
    self, Bound, Dropped, ListenSocket, NewSettings, Reactor, ReactorHub, Shared, Sockets, StopLevel,
};
use crate::reason::CloseReason;
use crate::service::{Erased, Served, Service, ServiceId, WorkerStates};
use crate::state::ServerState;
use crate::sync::lock_std;
use crate::threads;
use crate::tuner::Tuner;

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

/// Sets up a [`Server`]. Made by [`Server::builder`].
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    config: Config,
    /// The first one is set by `config`, the others are by what comes with them.
    service: Arc<dyn Erased>,
    others: Vec<(Arc<dyn Erased>, ServiceConfig)>,
    /// Sockets of the first service that others have opened and keep.
    given: Vec<OwnedFd>,
    /// Those of the server whose place this one takes.
    inherited: Vec<Listener>,
}

/// Reaches a running server from any thread, handlers included. Cheap to clone.
#[derive(Clone)]
pub struct ServerHandle {
    inner: Arc<Inner>,
}

struct Inner {
    addrs: Addrs,
    overview: Arc<Overview>,
    /// What is set now. Held while it is changed, so that the reactor gets changes in their order.
    present: Mutex<Present>,
    hub: Arc<ReactorHub>,
    pool: Arc<JobPool>,
    tuner: Arc<Tuner>,
    stop: Arc<StopLevel>,
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
    #[cfg(feature = "admin")]
    fn aside_of(&self, wanted: LooksOn) -> Option<&Address> {
        self.aside.iter().find(|(kind, _)| *kind == wanted).map(|(_, address)| address)
    }
}

/// How a server ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Requests that were received and not handled, or whose handler had not returned.
    pub dropped_requests: u64,
    /// Replies that their peers had not read.
    pub dropped_replies: u64,
    /// Handlers that had not returned when the stop gave up waiting for them.
    pub busy_workers: usize,
    /// The names of the worker threads that still had not returned a second later: they are left behind, and the handler with
    /// them. Every other thread of the server has ended.
    pub left_behind: Vec<String>,
    /// Peers that had not read their replies.
    pub slow_peers: usize,
    /// Peers of which lines had arrived that were not read any more: requests that were not received and are in no counter.
    pub unread_peers: usize,
    /// Connections that were [joined](crate::Join) to something, and had not ended.
    pub parted: usize,
    /// The last statistics.
    pub stats: Stats,
}

impl Outcome {
    /// Whether the stop dropped nothing.
    pub fn is_clean(&self) -> bool {
        self.dropped_requests == 0 && self.dropped_replies == 0 && self.unread_peers == 0 && self.parted == 0
    }
}

impl Server {
    /// Begins to set up a server for `service` with the defaults of [`Config`]. A closure that takes a
    /// [`Request`](crate::Request) and a [`Reply`](crate::Reply) is a service.
    pub fn builder(service: impl Service) -> Builder {
        Builder {
            config: Config::default(),
            service: Arc::new(service),
            others: Vec::new(),
            given: Vec::new(),
            inherited: Vec::new(),
        }
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
        if !inner.hub.is_on_own_thread() {
            let drain_timeout = lock_std(&inner.present).config.drain_timeout;
            let limit = Instant::now() + drain_timeout + DROP_GRACE;
            inner.wait_until(Some(limit));
        }
    }
}

impl Builder {
    /// Replaces all settings made so far.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Listens on `address`, with port 0 on a free port. Can be given more than once. See [`Config::listen`].
    pub fn listen(mut self, address: Address) -> Self {
        self.config.listen.push(address);
        self
    }

    /// Listens on a socket that is open already, TCP or Unix: a `TcpListener`, a `UnixListener`, or a descriptor that came from
    /// whoever started this process. Can be given more than once; the default address is not listened on then.
    ///
    /// Others may have the socket, too. So a stop accepts what is in its queue, gives connections that were just accepted 50 ms for
    /// their first line, and closes our descriptor, but shuts no door that is not this server's: nothing is done to the socket itself,
    /// and the file of a Unix socket stays. Its backlog
    /// is the giver's; `TCP_NODELAY`, keep-alive and [`Config::send_buffer_bytes`] are set.
    ///
    /// # Examples
    /// ```
    /// use tidemill::{Helo, Server};
    ///
    /// let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let server = Server::builder(Helo::new()).listener(socket.try_clone()?).start()?;
    /// assert_eq!(server.local_addr().tcp(), Some(socket.local_addr()?));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn listener(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.given.push(socket.into());
        self
    }

    /// Takes the place of another server, whose [listeners](ServerHandle::listeners) these are. Each address that this one is to
    /// listen on is not bound if one of them was, by the service of the same name: with port 0 it keeps its port. Those that were
    /// [given](Self::listener) to the other one are given to this one, too; the others are closed once they are its own.
    ///
    /// Both servers accept connections from when this one has started. Until [`ServerHandle::own`] the listeners are the other's.
    pub fn inherit(mut self, listeners: Vec<Listener>) -> Self {
        self.inherited.extend(listeners);
        self
    }

    /// Adds a service, with listeners and limits of its own. All services share the pool and the event loop; the statistics tell them
    /// apart by [`Service::name`]. Can be given more than once.
    pub fn service(mut self, service: impl Service, config: ServiceConfig) -> Self {
        self.others.push((Arc::new(service), config));
        self
    }

    /// Tells about the server by HTTP at `address`, with port 0 at a free one ([`ServerHandle::admin_addr`]).
    ///
    /// Paths: `/metrics` for Prometheus, `/stats.json`, `/connections.json?top=N`, `/healthz`, `/readyz`, and `/`, a page that draws
    /// the pool live. It is answered by the event loop, so also while every worker is stuck and while the server drains, and it
    /// changes nothing. Whoever reaches the address may read all of that: give a loopback address or a Unix socket, which
    /// only the server's user can open.
    ///
    /// Its connections are no clients: they are in no statistics, and at most [`Config::admin_connections`] at a time.
    #[cfg(feature = "admin")]
    pub fn admin(mut self, address: Address) -> Self {
        self.config.admin = Some(address);
        self
    }

    /// Everything about the size of the pool at once.
    pub fn pool_limits(mut self, limits: PoolLimits) -> Self {
        self.config.set_pool_limits(limits);
        self
    }

    /// See [`Config::min_threads`] and [`Config::max_threads`].
    pub fn threads(mut self, min: usize, max: usize) -> Self {
        (self.config.min_threads, self.config.max_threads) = (min, max);
        self
    }

    /// See [`Config::tolerance`].
    pub fn tolerance(mut self, tolerance: usize) -> Self {
        self.config.tolerance = tolerance;
        self
    }

    /// See [`Config::keep_alive`].
    pub fn keep_alive(mut self, keep_alive: Duration) -> Self {
        self.config.keep_alive = keep_alive;
        self
    }

    /// See [`Config::drain_timeout`].
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.config.drain_timeout = timeout;
        self
    }

    /// See [`Config::stop_from`].
    pub fn stop_from(mut self, peers: StopFrom) -> Self {
        self.config.stop_from = peers;
        self
    }

    /// Binds the listeners and starts the threads. Clients can connect when this returns.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Bind`], [`Error::Poll`] or [`Error::Thread`]. Nothing is left running.
    pub fn start(self) -> Result<Server, Error> {
        self.start_with(Reactor::run)
    }

    /// `run` is the reactor's loop; a test has another.
    fn start_with(
        self,
        run: impl FnOnce(Reactor) -> io::Result<Dropped> + Send + 'static,
    ) -> Result<Server, Error> {
        let (others, configs): (Vec<_>, Vec<_>) = self.others.into_iter().unzip();
        let lent = Lent::new(!self.inherited.is_empty());
        let (inherited, given): (Vec<_>, Vec<_>) =
            self.inherited.into_iter().partition(|listener| listener.address().is_some());
        let by_default = given.is_empty() && self.given.is_empty();
        let settings = self.config.clone().check_with(configs.clone(), by_default)?;
        let served =
            |(service, settings): (Arc<dyn Erased>, &ServiceSettings)| Served::new(service, settings);
        let services = std::iter::once(self.service).chain(others);
        let services: Vec<Served> = services.zip(&settings.services).map(served).collect();
        let names_of_clients: Vec<String> = services.iter().map(|service| service.name.clone()).collect();
        let aside = settings.looks_on.iter().map(|kind| kind.name().to_owned());
        let service_names: Vec<String> = names_of_clients.iter().cloned().chain(aside).collect();
        let mut inherited = Inherited::new(inherited);
        let sockets = reactor::bind(&settings, &service_names, &mut inherited, &lent)?;
        let in_error = |source| Error::Listener { source };
        let unused = inherited.into_unused().map(|listener| ListenSocket::inherited(listener.into(), &lent));
        // One whose file has gone needs no more than to be closed.
        let unused = unused.filter_map(Result::ok).collect();
        let asked = settings.listen.iter().cloned().map(Some).zip(settings.listen_services.iter().copied());
        let bound = sockets.into_iter().zip(asked);
        let bound = bound.map(|(socket, (asked, service))| Ok(Bound { socket, service, asked }));
        let given = given.into_iter().map(|listener| {
            let service = service_names.iter().position(|name| name == listener.service()).unwrap_or(0);
            (OwnedFd::from(listener), ServiceId::try_from(service).unwrap_or(0))
        });
        let given = given.chain(self.given.into_iter().map(|socket| (socket, 0)));
        let given = given.map(|(socket, service)| {
            let socket = ListenSocket::open(socket).map_err(in_error)?;
            Ok(Bound { socket, service, asked: None })
        });
        let sockets = bound.chain(given).collect::<Result<Vec<Bound>, Error>>()?;
        let mut addrs = Addrs::default();
        for Bound { socket, service, .. } in &sockets {
            let address = socket.local_addr().map_err(in_error)?;
            match settings.looks_on(*service) {
                None => addrs.of_clients.push(address),
                Some(kind) => addrs.aside.push((kind, address)),
            }
        }
        let (sockets, waker) = Sockets::new(sockets, &settings)?;

        let hub = Hub::new(waker, Clock::start());
        let pool = JobPool::new();
        let tuner = Arc::new(Tuner::new(settings.limits, settings.policy));
        let stop = Arc::<StopLevel>::default();
        let counters = Arc::new(Mutex::new(Counters::new(settings.services.len())));
        let overview = Arc::new(Overview {
            service_names: names_of_clients,
            hub: Arc::clone(&hub),
            pool: Arc::clone(&pool),
            tuner: Arc::clone(&tuner),
            stop: Arc::clone(&stop),
            counters: Arc::clone(&counters),
            obstacle: Mutex::default(),
            #[cfg(feature = "admin")]
            details: Mutex::default(),
        });
        let services: Arc<[Served]> = services.into_iter().chain(looks_on(&settings, &overview)).collect();
        let inner = Arc::new(Inner {
            addrs,
            overview,
            present: Mutex::new(Present { config: self.config, others: configs }),
            hub: Arc::clone(&hub),
            pool: Arc::clone(&pool),
            tuner: Arc::clone(&tuner),
            stop: Arc::clone(&stop),
            lent: lent.clone(),
            unused: Mutex::new(unused),
            settings: Arc::default(),
            end: Mutex::new(None),
            ended: Condvar::new(),
            tuner_thread: Mutex::default(),
            reactor_thread: Mutex::default(),
        });
        let new_settings = Arc::clone(&inner.settings);
        let shared = Shared { hub, pool, tuner, stop, lent, new_settings, counters };
        let stack_bytes = settings.thread_stack_bytes;
        // Made on its thread: what services keep for a thread stays there.
        let turns = {
            let services = Arc::clone(&services);
            move || run(Reactor::new(sockets, settings, services, shared))
        };

        inner.start_threads(services, stack_bytes, turns).inspect_err(|_| drop(inner.end_threads()))?;
        Ok(Server { handle: ServerHandle { inner } })
    }
}

/// The services that tell about the server. They stand behind all others.
#[cfg(feature = "admin")]
fn looks_on(settings: &Settings, overview: &Arc<Overview>) -> Vec<Served> {
    let first = settings.services.len() - settings.looks_on.len();
    let kinds = settings.looks_on.iter().zip(&settings.services[first..]);
    let served = kinds.map(|(kind, service)| {
        let overview = Arc::clone(overview);
        let kind: Arc<dyn Erased> = match kind {
            LooksOn::Admin => Arc::new(Admin::new(overview)),
            LooksOn::Agent => Arc::new(Agent::new(overview)),
        };
        Served::new(kind, service)
    });
    served.collect()
}

/// The same where nobody does.
#[cfg(not(feature = "admin"))]
fn looks_on(_: &Settings, _: &Arc<Overview>) -> Vec<Served> {
    Vec::new()
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
        self.pool.set_max(self.tuner.limits().max_threads);
        let missing = self.pool.set_target(self.tuner.limits().min_threads);
        for rest in (0..missing).rev() {
            self.pool.start_worker(&self.hub, &services, stack_bytes).map_err(|source| {
                self.pool.give_up(rest);
                Error::Thread { name: "worker", source }
            })?;
        }
        let tuner = spawn("tidemill-tuner", TUNER_STACK_BYTES, {
            let (tuner, pool) = (Arc::clone(&self.tuner), Arc::clone(&self.pool));
            let (hub, services) = (Arc::clone(&self.hub), Arc::clone(&services));
            move || tuner.run(&pool, &hub, &services, stack_bytes)
        })?;
        *lock_std(&self.tuner_thread) = Some(tuner);
        // Held until the thread's handle is in its place: the end may come before.
        let mut place = lock_std(&self.reactor_thread);
        *place = Some(spawn("tidemill-loop", REACTOR_STACK_BYTES, {
            let inner = Arc::clone(self);
            move || inner.run(services, turns)
        })?);
        Ok(())
    }

    /// Ends workers and tuner, and joins them. Blocks until the pool's deadline at the latest. Returns who is left behind.
    fn end_threads(&self) -> Vec<String> {
        self.pool.stop();
        self.tuner.stop();
        let tuner = lock_std(&self.tuner_thread).take();
        if tuner.is_none() {
            // It was refused, and with it everything that workers could be busy with.
            self.pool.join_workers();
        }
        let (left_behind, joined) = self.pool.wait_until_joined();
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
        self.hub.replies.drain(&mut mail);
        let came_back = mail.into_iter().filter_map(Mail::into_job);
        let mut jobs: Vec<Box<Job>> = self.pool.take_left().chain(came_back).collect();
        jobs.retain(|job| job.session.is_some());
        if jobs.is_empty() {
            return None;
        }
        let (done, is_done) = mpsc::channel::<()>();
        let (services, hub) = (Arc::clone(services), Arc::clone(&self.hub));
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
        self.stop.abort();
        self.hub.end();
        let mut left = self.end_threads();
        left.extend(self.close_sessions(&services));
        if let End::Stopped { left_behind, .. } = &mut end {
            *left_behind = left;
        }
        // The last one, unless a worker is left behind. Unwind safety: nothing of it is used any more.
        if panic::catch_unwind(AssertUnwindSafe(|| drop(services))).is_err() {
            tracing::error!("the handler panicked while it was dropped");
        }
        self.hub.slow.tell_left_out();
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

/// The same error once more: the original has but one owner, and any number of threads may wait.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

impl ServerHandle {
    /// The address of the first listener, with its real port.
    pub fn local_addr(&self) -> &Address {
        &self.inner.addrs.of_clients[0]
    }

    /// The addresses where clients reach the services, with their real ports: those of [`Config::listen`] in its order, those of the
    /// services besides, and those of sockets that were given. The admin and the agent address are not among them.
    pub fn local_addrs(&self) -> &[Address] {
        &self.inner.addrs.of_clients
    }

    /// Begins a graceful stop: what has arrived is answered, then everything ends, after
    /// [`Config::drain_timeout`] at the latest. Never blocks. Again it does nothing.
    pub fn stop(&self) {
        self.stop_after(Duration::ZERO);
    }

    /// Begins a graceful stop after `delay`. Until then everything goes on as before, new connections too, but
    /// [`state`](Self::state) says [`Delaying`](ServerState::Delaying): for a load balancer that needs time to see that nothing
    /// more is to be sent here. [`Config::drain_timeout`] counts from its end. Whatever else stops the server, or a shorter delay,
    /// ends it sooner; a longer one does nothing. Never blocks.
    pub fn stop_after(&self, delay: Duration) {
        let Inner { stop, hub, .. } = &*self.inner;
        stop.drain_at(match delay {
            Duration::ZERO => 0,
            delay => hub.clock.now().saturating_add(nanos(delay)),
        });
        hub.replies.wake();
    }

    /// Stops at once: what is not answered is dropped. Handlers that run get a second more to return. Never blocks.
    pub fn stop_now(&self) {
        self.inner.stop.abort();
        self.inner.pool.leave_by(Instant::now() + LEAVE_TIMEOUT);
        self.inner.hub.replies.wake();
    }

    /// The open listeners, once more, for a server that takes the place of this one ([`Builder::inherit`]), in this process or in
    /// another. None if a stop was asked for. Blocks until the event loop has turned.
    ///
    /// # Errors
    /// [`Error::WaitInHandler`] at once when called by a handler of this server; [`Error::Listener`] with what the system said,
    /// as when no descriptor is left.
    pub fn listeners(&self) -> Result<Vec<Listener>, Error> {
        if self.inner.hub.is_on_own_thread() {
            return Err(Error::WaitInHandler);
        }
        let (answer, answered) = mpsc::sync_channel(1);
        self.inner.hub.post(Mail::Question(Question::Listeners(answer)));
        let listeners = answered.recv().unwrap_or_else(|_| Ok(Vec::new()));
        listeners.map_err(|source| Error::Listener { source })
    }

    /// From now on the listeners are another server's, until [`own`](Self::own): a stop does not shut their doors. It leaves who
    /// is in their queues to the other one, removes no file of a Unix socket, and gives connections that were just accepted
    /// 50 ms for their first line. Never blocks. `false`: a stop was asked for before, and may have shut the doors; nothing is lent.
    #[must_use = "it may not lend them"]
    pub fn lend(&self) -> bool {
        self.inner.lent.set_out(true);
        let is_open = self.inner.stop.begins_at().is_none();
        if !is_open {
            self.inner.lent.set_out(false);
        }
        is_open
    }

    /// From now on the listeners are this server's own: those that it had [lent](Self::lend) and those that it has
    /// [inherited](Builder::inherit). Of these the ones that it does not listen on are closed. Never blocks.
    pub fn own(&self) {
        let was_lent = self.inner.lent.is_set();
        self.inner.lent.end();
        lock_std(&self.inner.unused).clear();
        if was_lent {
            // For who is in the queue of the admin address.
            self.inner.hub.replies.wake();
        }
    }

    /// Whether a stop has been asked for, by anyone, also one that begins after a delay.
    pub fn is_stopping(&self) -> bool {
        self.inner.stop.begins_at().is_some()
    }

    /// What the server is doing.
    pub fn state(&self) -> ServerState {
        self.inner.overview.state()
    }

    /// Blocks until a stop was asked for, by anyone, or for `timeout`. The same as [`is_stopping`](Self::is_stopping) then.
    pub fn wait_stopping(&self, timeout: Duration) -> bool {
        self.inner.stop.wait_until_asked(timeout)
    }

    /// Whether the server works: its event loop turns within `timeout`, and its pool has workers and its tuner, whatever their
    /// handlers do. Blocks for `timeout` at most. What a watchdog should ask; a server that has ended does not work.
    ///
    /// Called by a handler of this server on its event loop, it would wait for itself: `false`.
    pub fn is_alive(&self, timeout: Duration) -> bool {
        let Inner { hub, pool, tuner_thread, .. } = &*self.inner;
        let (answer, answered) = mpsc::sync_channel(1);
        hub.post(Mail::Question(Question::Turns(answer)));
        let has_workers = pool.census(Duration::ZERO, Duration::MAX).live > 0;
        let has_tuner = lock_std(tuner_thread).as_ref().is_some_and(|thread| !thread.is_finished());
        has_workers && has_tuner && answered.recv_timeout(timeout).is_ok()
    }

    /// Blocks until the server has ended; it does not stop it. Any number of threads may wait.
    ///
    /// When it returns, every thread of the server has ended, destructors of thread-local values included, and the handler is
    /// dropped. Only workers whose handler does not return are left behind, a second after the stop gave up waiting for them,
    /// and named in [`Outcome::left_behind`].
    ///
    /// # Errors
    /// [`Error::WaitInHandler`] at once when called by a handler of this server; [`Error::PollFailed`] and
    /// [`Error::ReactorPanicked`] where the server did not stop but failed.
    pub fn wait(&self) -> Result<Outcome, Error> {
        if self.inner.hub.is_on_own_thread() {
            return Err(Error::WaitInHandler);
        }
        match self.inner.wait_until(None) {
            Some(End::Stopped { dropped, left_behind }) => Ok(Outcome {
                dropped_requests: dropped.requests,
                dropped_replies: dropped.replies,
                busy_workers: dropped.busy_workers,
                left_behind,
                slow_peers: dropped.slow_peers,
                unread_peers: dropped.unread_peers,
                parted: dropped.parted,
                stats: self.stats(),
            }),
            Some(End::PollFailed(error)) => Err(Error::PollFailed { source: again(&error) }),
            Some(End::Panicked) | None => Err(Error::ReactorPanicked),
        }
    }

    /// The statistics at the end of the reactor's last turn. Takes some microseconds and does not hold up the reactor.
    pub fn stats(&self) -> Stats {
        self.inner.overview.stats()
    }

    /// The last changes of the pool's size with their reasons, the oldest first; at most
    /// [`MAX_DECISIONS`](crate::MAX_DECISIONS).
    pub fn decisions(&self) -> Vec<Decision> {
        self.inner.overview.decisions()
    }

    /// Why no new clients should be sent to the server: it stops, or somebody said so ([`set_not_ready`](Self::set_not_ready)).
    /// `None`: they should.
    pub fn not_ready(&self) -> Option<String> {
        self.inner.overview.not_ready()
    }

    /// Says, for those who send clients here, that the server is not ready, and why; or, with `None`, that it is. It serves all the
    /// same. The admin address tells it at `/readyz`.
    pub fn set_not_ready(&self, reason: Option<String>) {
        *lock_std(&self.inner.overview.obstacle) = reason;
    }

    /// Adds a member `name` to what the admin address tells at `/stats.json`: what `details` says, which must be JSON. It is called on the
    /// event loop each time, so it must not block. Called again, this replaces it.
    #[cfg(feature = "admin")]
    pub fn set_details(&self, name: &str, details: impl Fn() -> String + Send + Sync + 'static) {
        let details = crate::overview::Details(Arc::new(details));
        *lock_std(&self.inner.overview.details) = Some((name.to_owned(), details));
    }

    /// The admin address, with its real port, if there is one: see [`Builder::admin`].
    #[cfg(feature = "admin")]
    pub fn admin_addr(&self) -> Option<&Address> {
        self.inner.addrs.aside_of(LooksOn::Admin)
    }

    /// Where HAProxy's agent-check is answered, with its real port, if it is: see [`Config::agent`].
    #[cfg(feature = "admin")]
    pub fn agent_addr(&self) -> Option<&Address> {
        self.inner.addrs.aside_of(LooksOn::Agent)
    }

    /// What is set now.
    pub fn config(&self) -> Config {
        lock_std(&self.inner.present).config.clone()
    }

    /// Changes the settings of the running server and of its first service, all of them or, where one is out of range, none. No
    /// request and no reply is lost by it; connections that are there obey too. A time limit that was off begins to count now, and
    /// [`Config::request_timeout`] with the next request that a worker takes. Never blocks: the event loop obeys from its next
    /// turn on, so also for whoever connects or asks after this has returned.
    ///
    /// What takes effect at the start only stays as it is: [`Config::listen`], [`Config::unix_mode`], [`Config::reuse_port`],
    /// [`Config::proxy_from`], [`Config::thread_stack_bytes`], what is set for the admin and the agent address, and
    /// [`Config::send_buffer_bytes`] where it is to be left to the system again. Returns the names of those of them that differ.
    ///
    /// ```
    /// # use tidemill::{Helo, Server};
    /// # let server = Server::builder(Helo::new()).listen("127.0.0.1:0".parse()?).start()?;
    /// let handle = server.handle();
    /// let mut config = handle.config();
    /// config.max_connections = 500;
    /// config.idle_timeout = Some(std::time::Duration::from_secs(60));
    /// assert!(handle.reconfigure(config)?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] for the first one out of range; nothing is changed then.
    pub fn reconfigure(&self, mut config: Config) -> Result<Vec<&'static str>, Error> {
        let mut present = lock_std(&self.inner.present);
        let kept = config.keep_what_is_fixed(&present.config);
        let settings = config.clone().check_with(present.others.clone(), true)?;
        self.inner.tuner.set_limits(settings.limits)?;
        present.config = config;
        self.inner.settings.give(settings);
        self.inner.hub.replies.wake();
        Ok(kept)
    }

    /// The present limits of the pool.
    pub fn pool_limits(&self) -> PoolLimits {
        self.inner.tuner.limits()
    }

    /// Changes the limits of the pool while it runs. Obeyed at once; above a lowered maximum, busy workers leave as they
    /// finish. No request is lost by it.
    ///
    /// # Errors
    /// [`Error::Setting`] for a limit out of range; nothing is changed then.
    pub fn set_pool_limits(&self, limits: PoolLimits) -> Result<(), Error> {
        let mut present = lock_std(&self.inner.present);
        self.inner.tuner.set_limits(limits)?;
        present.config.set_pool_limits(limits);
        drop(present);
        tracing::info!(?limits, "pool limits changed");
        Ok(())
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle")
            .field("local_addrs", &self.inner.addrs.of_clients)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::service::{Reply, Request};

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
}

//! Wiring: from a [`Config`] and a [`Service`] to running threads: checks the settings, binds, makes what the threads share, and
//! has `Inner` start them.
//!
//! On the thread that starts the server. Where something is refused, nothing is left running.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::{Addrs, Inner, Present, Server, ServerHandle};
use crate::address::Address;
#[cfg(feature = "admin")]
use crate::admin::Admin;
#[cfg(feature = "admin")]
use crate::agent::Agent;
use crate::clock::Clock;
use crate::config::{Config, LooksOn, PoolLimits, ServiceConfig, ServiceSettings, Settings, StopFrom};
use crate::error::Error;
use crate::handover::{Inherited, Lent, Listener};
use crate::hub::Hub;
use crate::metrics::Counters;
use crate::overview::Overview;
use crate::pool::JobPool;
use crate::reactor::{self, Bound, Dropped, ListenSocket, Reactor, Shared, Sockets, StopLevel};
use crate::service::{Erased, Served, Service, ServiceId};
use crate::tuner::Tuner;

/// Sets up a [`Server`]. Made by [`Server::builder`].
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    config: Config,
    /// The first one is set by `config`, the others are by what comes with them.
    service: Arc<dyn Erased>,
    others: Vec<(Arc<dyn Erased>, ServiceConfig)>,
    /// Sockets that others have opened and keep, each with the number of its service.
    given: Vec<(OwnedFd, usize)>,
    /// Those of the server whose place this one takes.
    inherited: Vec<Listener>,
}

impl Builder {
    /// With the defaults.
    pub(super) fn new(service: impl Service) -> Builder {
        Builder {
            config: Config::default(),
            service: Arc::new(service),
            others: Vec::new(),
            given: Vec::new(),
            inherited: Vec::new(),
        }
    }

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
    /// whoever started this process. Can be given more than once; the default address is not listened on then. It is served by the
    /// first service; for a further one there is [`service_listener`](Self::service_listener).
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
        self.given.push((socket.into(), 0));
        self
    }

    /// The same for the [service](Self::service) that was added last, before any for the first one.
    ///
    /// # Examples
    /// ```
    /// use tidemill::{Helo, Reply, Request, Server, ServiceConfig};
    ///
    /// let echo = |request: &Request<'_>, reply: &mut Reply<'_>| reply.push(request.line());
    /// let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let server = Server::builder(Helo::new())
    ///     .listen("127.0.0.1:0".parse()?)
    ///     .service(echo, ServiceConfig::default())
    ///     .service_listener(socket)
    ///     .start()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn service_listener(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.given.push((socket.into(), self.others.len()));
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
    /// apart by [`Service::name`]. Can be given more than once. Its limits hold from the start to the end:
    /// [`ServerHandle::reconfigure`] changes those of the first service only.
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
    /// [`Error::Setting`], [`Error::Bind`], [`Error::Listener`], [`Error::Poll`] or [`Error::Thread`]. Nothing is left running.
    ///
    /// # Panics
    /// If a service does when it is asked what holds for all its connections: [`Service::name`], [`joins`](Service::joins),
    /// [`has_sessions`](Service::has_sessions), [`place`](Service::place), [`stop_line`](Service::stop_line), and
    /// [`framing`](Service::framing) where it has no sessions. Nothing is left running then either.
    pub fn start(self) -> Result<Server, Error> {
        self.start_with(Reactor::run)
    }

    /// `run` is the reactor's loop; a test has another.
    pub(super) fn start_with(
        self,
        run: impl FnOnce(Reactor) -> io::Result<Dropped> + Send + 'static,
    ) -> Result<Server, Error> {
        let (others, configs): (Vec<_>, Vec<_>) = self.others.into_iter().unzip();
        let lent = Lent::new(!self.inherited.is_empty());
        // Without an address the default one is meant, unless there is a socket.
        let by_default = self.given.is_empty() && self.inherited.iter().all(|one| one.address().is_some());
        let settings = self.config.clone().check_with(configs.clone(), by_default)?;
        let served =
            |(service, settings): (Arc<dyn Erased>, &ServiceSettings)| Served::new(service, settings);
        let services = std::iter::once(self.service).chain(others);
        let services: Vec<Served> = services.zip(&settings.services).map(served).collect();
        let names_of_clients: Vec<String> = services.iter().map(|service| service.name.clone()).collect();
        let aside = settings.services.iter().filter_map(|service| Some(service.looks_on?.name().to_owned()));
        let service_names: Vec<String> = names_of_clients.iter().cloned().chain(aside).collect();
        let (sockets, unused) = open_sockets(&settings, &service_names, self.inherited, self.given, &lent)?;
        let addrs = Addrs::of(&sockets, &settings)?;
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

        let started = inner.start_threads(Arc::clone(&services), stack_bytes, turns);
        started.inspect_err(|_| drop(inner.end_threads(&services)))?;
        Ok(Server { handle: ServerHandle { inner } })
    }
}

/// Opens the sockets that clients reach the services of these names at: those that are bound or inherited for an address, then those
/// that were given, to this server or to the one whose place it takes. With what was inherited and is not listened on.
///
/// # Errors
/// [`Error::Bind`] and [`Error::Listener`].
fn open_sockets(
    settings: &Settings,
    names: &[String],
    inherited: Vec<Listener>,
    given: Vec<(OwnedFd, usize)>,
    lent: &Lent,
) -> Result<(Vec<Bound>, Vec<ListenSocket>), Error> {
    let (inherited, given_before): (Vec<_>, Vec<_>) =
        inherited.into_iter().partition(|listener| listener.address().is_some());
    let mut inherited = Inherited::new(inherited);
    let sockets = reactor::bind(settings, names, &mut inherited, lent)?;
    let unused = inherited.into_unused().map(|listener| ListenSocket::inherited(listener.into(), lent));
    // What cannot even be opened needs no more than to be closed.
    let unused = unused.filter_map(Result::ok).collect();
    let asked = settings.listen.iter().cloned().map(Some).zip(settings.listen_services.iter().copied());
    let bound = sockets.into_iter().zip(asked);
    let bound = bound.map(|(socket, (asked, service))| Ok(Bound { socket, service, asked }));
    let given_before = given_before.into_iter().map(|listener| {
        let service = names.iter().position(|name| name == listener.service()).unwrap_or(0);
        (OwnedFd::from(listener), service)
    });
    let given = given_before.chain(given).map(|(socket, service)| {
        let service = ServiceId::try_from(service).unwrap_or(0);
        let socket = ListenSocket::open(socket).map_err(|source| Error::Listener { source })?;
        Ok(Bound { socket, service, asked: None })
    });
    let sockets = bound.chain(given).collect::<Result<Vec<Bound>, Error>>()?;
    Ok((sockets, unused))
}

/// The services that tell about the server. They stand behind all others.
fn looks_on(settings: &Settings, overview: &Arc<Overview>) -> impl Iterator<Item = Served> {
    let served = |(number, service): (usize, &ServiceSettings)| {
        let looks_on = service.looks_on?;
        let mut listeners = settings.listen_services.iter().zip(&settings.listen);
        let listener = listeners.find(|(service, _)| usize::from(**service) == number);
        let address = listener.map(|(_, address)| address);
        Some(Served::new(service_that(looks_on, Arc::clone(overview), address), service))
    };
    settings.services.iter().enumerate().filter_map(served)
}

#[cfg_attr(not(feature = "admin"), expect(unused_variables, reason = "there is no kind"))]
fn service_that(looks_on: LooksOn, overview: Arc<Overview>, address: Option<&Address>) -> Arc<dyn Erased> {
    match looks_on {
        #[cfg(feature = "admin")]
        LooksOn::Admin => Arc::new(Admin::new(overview, address)),
        #[cfg(feature = "admin")]
        LooksOn::Agent => Arc::new(Agent::new(overview)),
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}

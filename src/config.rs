//! What can be set: [`Config`], plain and with defaults, turned once into checked [`Settings`].
//!
//! Nothing here reads the environment or a file; the program's `cli` does that and fills a `Config`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::address::Address;
use crate::clock::{Nanos, nanos};
use crate::controller::Policy;
use crate::error::Error;
use crate::job::ServiceId;

/// Largest pool that can be asked for. Each worker is a thread with about four memory mappings, of which Linux allows a
/// process 65 530 by default; a thread that starts and cannot map its own would end the process.
pub const MAX_WORKERS: usize = 10_000;
/// Most connections that can be asked for: slots are counted in 32 bits (`job::ConnId`).
const MAX_CONNECTIONS: usize = 1 << 30;
/// Longest line that can be asked for, in bytes: what one peer may make the server hold.
pub const MAX_LINE_BYTES: usize = 64 << 20;
/// Where a server listens that was not told where.
const DEFAULT_PORT: u16 = 8000;
/// What is the same in [`Config::default`] and [`PoolLimits::new`].
const DEFAULT_TOLERANCE: usize = 4;
const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Longest duration that can be asked for: a year. Longer is "never", which has a setting of its own where it makes sense.
pub const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// Smallest stack of a worker that can be asked for, in bytes. The server itself needs some 10 KiB of it, in a build without
/// optimization some more; the rest is the handler's.
pub const MIN_THREAD_STACK_BYTES: usize = 64 << 10;
/// Largest stack of a worker that can be asked for, in bytes.
pub const MAX_THREAD_STACK_BYTES: usize = 1 << 30;

/// Everything that can be set before a server starts.
///
/// A plain value: change what matters and leave the rest.
///
/// ```
/// let mut config = tidemill::Config::default();
/// (config.min_threads, config.max_threads) = (2, 8);
/// assert_eq!(config.tolerance, 4);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen. Port 0 lets the system pick one, the same for all addresses with port 0, where one is free at all of
    /// them; the same address twice gets two. `[::]` serves IPv4 too, unless an IPv4 address with the same port is
    /// in the list. Default: none, which means `127.0.0.1:8000`.
    pub listen: Vec<Address>,
    /// Least workers at any time, 1 to [`MAX_WORKERS`]. Default: 4.
    pub min_threads: usize,
    /// Most workers at any time, `min_threads` to [`MAX_WORKERS`]. Default: 32.
    pub max_threads: usize,
    /// The dead band in threads: no resize while demand and pool differ by this much or less, except when waiting work
    /// makes no progress. Default: 4.
    pub tolerance: usize,
    /// The pool shrinks to the highest demand seen within this window. 1 ms to [`MAX_DURATION`]. Default: 5 s.
    pub keep_alive: Duration,
    /// Most connections at a time. One more is told `ERROR server full` and closed. At least 1. Default: 10 000.
    pub max_connections: usize,
    /// Longest line in bytes, without its terminator (`\n` or `\r\n`), 1 to [`MAX_LINE_BYTES`]. A longer one is told
    /// `ERROR line too long` and its connection is closed. Default: 65 536.
    pub max_line_bytes: usize,
    /// Most requests that wait for a worker or are with one, over all connections. At the limit the server stops reading,
    /// and TCP holds the clients back. Replies that a client does not read are not counted here but limited for each
    /// connection by `high_watermark_bytes`: a few clients that do not read must not stop the service for all. At least 1.
    /// Default: 65 536.
    pub max_pending: usize,
    /// Reply bytes that a client may leave unread before the server stops reading from it, and takes no further
    /// request of it to a worker. It goes on below a quarter of this. Each reply counts eight bytes besides its own. One reply of
    /// any length, and what one turn of a worker adds (32 KiB and a reply), may stand above. At least 1. Default: 32 KiB.
    pub high_watermark_bytes: usize,
    /// Most connections at a time from one IPv4 address or one IPv6 network of 64 bits. One more is told
    /// `ERROR too many connections from your address` and closed. Unix sockets are not counted. `None`: no limit. At least 1.
    /// Default: `None`.
    pub max_connections_per_peer: Option<usize>,
    /// Bytes that all connections together may hold ([`Stats::held_bytes`](crate::Stats::held_bytes)). From half of it on hardly
    /// anything is read ahead of what can be handled; above it, with a sixteenth of leeway, the connections that hold most are
    /// closed until it is met. Resident memory
    /// stays below that at the start, and 1.25 times this, and 32 MiB. From 1 MiB. Default: 256 MiB.
    pub max_memory_bytes: usize,
    /// The kernel's part of the replies that a client does not read, in bytes. `None`: as the kernel tunes it, up to megabytes.
    /// TCP only. From 4 KiB to 1 GiB. Default: 128 KiB.
    pub send_buffer_bytes: Option<usize>,
    /// The mode of a Unix socket's file, as `chmod` takes it. Default: `0o600`.
    pub unix_mode: u32,
    /// Several processes may listen on one port, each of which says so: the system spreads connections over them. Of those that
    /// begin while one of them stops, some wait a second for another. Default: `false`.
    pub reuse_port: bool,
    /// How long the rest of a line may take once its first byte has come, whatever comes meanwhile. It stands still while the
    /// server itself does not read the connection. `None`: for ever. From 1 ms to [`MAX_DURATION`]. Default: 30 s.
    pub line_timeout: Option<Duration>,
    /// How long a connection may have nothing outstanding. `None`: for ever. From 1 ms to [`MAX_DURATION`]. Default: `None`.
    pub idle_timeout: Option<Duration>,
    /// How long a request may wait, from when it was read to when a worker takes it. One that has waited longer is not run; its
    /// client is told so in place of the reply ([`Handler::busy_line`](crate::Handler::busy_line)). `None`: for ever. From 1 ms to
    /// [`MAX_DURATION`]. Default: `None`.
    pub queue_timeout: Option<Duration>,
    /// How long a handler may take for a request. Its client is told then, and its connection closed. The handler cannot be
    /// ended: it runs on, and is counted as stuck. While this is set, a job holds one request, so that the replies before it are
    /// not held up with it. `None`: for ever. From 1 ms to [`MAX_DURATION`]. Default: `None`.
    pub request_timeout: Option<Duration>,
    /// How long a client may take none of the replies that wait for it before its connection is closed; begins anew whenever
    /// the kernel takes bytes for it. `None`: for ever. From 1 ms to [`MAX_DURATION`]. Default: 30 s.
    pub write_timeout: Option<Duration>,
    /// Requests that take so long from when they are read until they are handled are logged as slow, with what there was to do, at
    /// most ten within a second. `None`: none are. From 1 ms to [`MAX_DURATION`]. Default: `None`.
    pub slow_log: Option<Duration>,
    /// Stack of each worker in bytes, [`MIN_THREAD_STACK_BYTES`] to [`MAX_THREAD_STACK_BYTES`]. Address space: resident is only
    /// as much of it as the handler has ever used, for a handler such as [`Helo`](crate::Helo) 8 to 12 KiB. A handler that
    /// recurses deeply may need more; under a limit of the address space (`ulimit -v`) less lets more workers start. Default:
    /// 2 MiB.
    pub thread_stack_bytes: usize,
    /// How long a graceful stop may take before what is left is dropped. Up to [`MAX_DURATION`]. Default: 8 s.
    pub drain_timeout: Duration,
    /// Which peers may stop the service through a line that the handler takes for a stop request. Default: loopback.
    pub stop_from: StopFrom,
    /// Which peers are proxies: they must begin with a header of the PROXY protocol, version 1 or 2, and count as the client that it
    /// names. Default: none.
    pub proxy_from: ProxyFrom,
    /// Where the server tells about itself by HTTP: see [`Builder::admin`](crate::Builder::admin). A Unix socket there has the mode
    /// `0o600`. `None`: nowhere. Default: `None`.
    #[cfg(feature = "admin")]
    pub admin: Option<Address>,
    /// Most connections of the admin address at a time, which are no others: one more is told so and closed. At least 1.
    /// Default: 64.
    #[cfg(feature = "admin")]
    pub admin_connections: usize,
    /// Where HAProxy's agent-check is answered: `up ready N%`, with a weight from the pool's headroom, or `drain` from when a stop was
    /// asked for, also with a delay. Its connections are no clients. `None`: nowhere. Default: `None`.
    #[cfg(feature = "admin")]
    pub agent: Option<Address>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: Vec::new(),
            min_threads: 4,
            max_threads: 32,
            tolerance: DEFAULT_TOLERANCE,
            keep_alive: DEFAULT_KEEP_ALIVE,
            max_connections: 10_000,
            max_line_bytes: 65_536,
            max_pending: 65_536,
            high_watermark_bytes: 32 << 10,
            max_connections_per_peer: None,
            max_memory_bytes: 256 << 20,
            send_buffer_bytes: Some(128 << 10),
            unix_mode: 0o600,
            reuse_port: false,
            line_timeout: Some(Duration::from_secs(30)),
            idle_timeout: None,
            queue_timeout: None,
            request_timeout: None,
            write_timeout: Some(Duration::from_secs(30)),
            slow_log: None,
            thread_stack_bytes: 2 << 20,
            drain_timeout: Duration::from_secs(8),
            stop_from: StopFrom::Loopback,
            proxy_from: ProxyFrom::default(),
            #[cfg(feature = "admin")]
            admin: None,
            #[cfg(feature = "admin")]
            admin_connections: crate::admin::MAX_CONNECTIONS,
            #[cfg(feature = "admin")]
            agent: None,
        }
    }
}

/// What is set for one service of several: each has its own listeners and limits, and all share one pool and one event loop. The
/// first one is set by the fields of the same names in [`Config`], which say what they mean; given to
/// [`Builder::service`](crate::Builder::service) for every further one.
///
/// # Examples
/// ```
/// use tidemill::{Helo, Reply, Request, Server, ServiceConfig};
///
/// let echo = |request: &Request<'_>, reply: &mut Reply<'_>| reply.push(request.line());
/// let mut config = ServiceConfig::at("127.0.0.1:0".parse()?);
/// config.max_connections = 64;
/// let server = Server::builder(Helo::new()).listen("127.0.0.1:0".parse()?).service(echo, config).start()?;
/// assert_eq!(server.handle().local_addrs().len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServiceConfig {
    /// See [`Config::listen`]. Default: none, so that the service has no clients.
    pub listen: Vec<Address>,
    /// See [`Config::max_connections`]; of this service.
    pub max_connections: usize,
    /// See [`Config::max_connections_per_peer`]; of this service.
    pub max_connections_per_peer: Option<usize>,
    /// See [`Config::max_line_bytes`].
    pub max_line_bytes: usize,
    /// See [`Config::line_timeout`].
    pub line_timeout: Option<Duration>,
    /// See [`Config::idle_timeout`].
    pub idle_timeout: Option<Duration>,
    /// See [`Config::queue_timeout`].
    pub queue_timeout: Option<Duration>,
    /// See [`Config::request_timeout`].
    pub request_timeout: Option<Duration>,
    /// See [`Config::write_timeout`].
    pub write_timeout: Option<Duration>,
    /// See [`Config::slow_log`].
    pub slow_log: Option<Duration>,
    /// See [`Config::stop_from`].
    pub stop_from: StopFrom,
    /// See [`Config::proxy_from`].
    pub proxy_from: ProxyFrom,
}

impl ServiceConfig {
    /// Listens at `address`, the rest as in [`Config::default`].
    pub fn at(address: Address) -> ServiceConfig {
        ServiceConfig { listen: vec![address], ..ServiceConfig::default() }
    }
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Config::default().first_service()
    }
}

/// The size of the pool: what can be changed while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PoolLimits {
    /// See [`Config::min_threads`].
    pub min_threads: usize,
    /// See [`Config::max_threads`].
    pub max_threads: usize,
    /// See [`Config::tolerance`].
    pub tolerance: usize,
    /// See [`Config::keep_alive`].
    pub keep_alive: Duration,
}

impl PoolLimits {
    /// From `min_threads` to `max_threads`, the rest as in [`Config::default`].
    pub const fn new(min_threads: usize, max_threads: usize) -> PoolLimits {
        PoolLimits { min_threads, max_threads, tolerance: DEFAULT_TOLERANCE, keep_alive: DEFAULT_KEEP_ALIVE }
    }

    /// The same with other [`min_threads`](Self::min_threads) and [`max_threads`](Self::max_threads).
    #[must_use]
    pub const fn threads(self, min_threads: usize, max_threads: usize) -> PoolLimits {
        PoolLimits { min_threads, max_threads, ..self }
    }

    /// The same with another [`tolerance`](Self::tolerance).
    #[must_use]
    pub const fn tolerance(self, tolerance: usize) -> PoolLimits {
        PoolLimits { tolerance, ..self }
    }

    /// The same with another [`keep_alive`](Self::keep_alive).
    #[must_use]
    pub const fn keep_alive(self, keep_alive: Duration) -> PoolLimits {
        PoolLimits { keep_alive, ..self }
    }

    /// The controller's policy for these limits.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first limit out of range.
    pub(crate) fn check(&self) -> Result<Policy, Error> {
        within("min_threads", self.min_threads, 1, MAX_WORKERS)?;
        within("max_threads", self.max_threads, 1, MAX_WORKERS)?;
        if self.min_threads > self.max_threads {
            return Err(setting(
                "min_threads",
                self.min_threads,
                format!("at most max_threads, which is {}", self.max_threads),
            ));
        }
        within("tolerance", self.tolerance, 0, MAX_WORKERS)?;
        lasting("keep_alive", self.keep_alive, Duration::from_millis(1))?;
        Ok(Policy::new(self.min_threads, self.max_threads, self.tolerance, self.keep_alive))
    }
}

/// Which peers may stop the service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopFrom {
    /// Every peer.
    Any,
    /// No peer: only signals and [`ServerHandle::stop`](crate::ServerHandle::stop).
    None,
    /// Peers on this machine that came through the loopback interface.
    Loopback,
    /// Peers in one of these networks. An IPv4 address mapped into IPv6 counts as its IPv4 address, a peer's as well as
    /// a network's.
    Networks(Vec<IpNet>),
}

impl StopFrom {
    /// Whether a peer at `address` may stop the service. The peer of a Unix socket counts as one at 127.0.0.1; one whose proxy
    /// names nobody may only where all may.
    pub fn allows(&self, address: &Address) -> bool {
        let ip = match address {
            Address::Tcp(_) => address.ip(),
            Address::Unix(_) => Some(Ipv4Addr::LOCALHOST.into()),
            Address::Unknown => None,
        };
        match self {
            StopFrom::Any => true,
            StopFrom::None => false,
            StopFrom::Loopback => ip.is_some_and(|ip| ip.is_loopback()),
            StopFrom::Networks(networks) => ip.is_some_and(|ip| are_around(networks, ip)),
        }
    }
}

/// Which peers are proxies. None of them by default.
///
/// # Examples
/// ```
/// use tidemill::{Address, ProxyFrom};
///
/// let mut proxies = ProxyFrom::default();
/// proxies.networks.push("10.0.0.0/8".parse().expect("it is a network"));
/// assert!(proxies.includes(&Address::from(([10, 1, 2, 3], 80))));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyFrom {
    /// Those in one of these networks. An IPv4 address mapped into IPv6 counts as its IPv4 address.
    pub networks: Vec<IpNet>,
    /// Those that come through a Unix socket.
    pub unix: bool,
}

impl ProxyFrom {
    /// Whether a peer at `address` is a proxy.
    pub fn includes(&self, address: &Address) -> bool {
        match address {
            Address::Tcp(_) => address.ip().is_some_and(|ip| are_around(&self.networks, ip)),
            Address::Unix(_) => self.unix,
            Address::Unknown => false,
        }
    }
}

/// Whether `ip` is in one of the networks.
fn are_around(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|network| unmapped(network).contains(&ip))
}

/// The network of the IPv4 addresses, if `network` is one of such addresses mapped into IPv6; else as it is.
fn unmapped(network: &IpNet) -> IpNet {
    let mapped = |network: &Ipv6Net| {
        let prefix = network.prefix_len().checked_sub(96)?;
        Ipv4Net::new(network.network().to_ipv4_mapped()?, prefix).ok()
    };
    match network {
        IpNet::V6(network) => mapped(network).map_or(IpNet::V6(*network), IpNet::V4),
        IpNet::V4(_) => *network,
    }
}

/// A [`Config`] that was checked. Only [`Config::check`] makes one.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) listen: Vec<Address>,
    pub(crate) limits: PoolLimits,
    pub(crate) policy: Policy,
    pub(crate) max_pending: usize,
    pub(crate) high_watermark_bytes: usize,
    pub(crate) low_watermark_bytes: usize,
    pub(crate) max_memory_bytes: usize,
    pub(crate) send_buffer_bytes: Option<usize>,
    pub(crate) unix_mode: u32,
    pub(crate) reuse_port: bool,
    pub(crate) thread_stack_bytes: usize,
    pub(crate) drain_timeout: Duration,
    /// Of each service.
    pub(crate) services: Vec<ServiceSettings>,
    /// What the last of them are, those that look on.
    pub(crate) looks_on: Vec<LooksOn>,
    /// Whose the listeners are: for each of `listen` the index of its service.
    pub(crate) listen_services: Vec<ServiceId>,
}

impl Settings {
    /// Which of the services that look on this is, if it is one.
    pub(crate) fn looks_on(&self, service: ServiceId) -> Option<LooksOn> {
        let first = self.services.len() - self.looks_on.len();
        usize::from(service).checked_sub(first).map(|number| self.looks_on[number])
    }
}

/// A service that looks on: it tells of the server, and its connections are no clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LooksOn {
    #[cfg(feature = "admin")]
    Admin,
    #[cfg(feature = "admin")]
    Agent,
}

impl LooksOn {
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "admin")]
            LooksOn::Admin => "admin",
            #[cfg(feature = "admin")]
            LooksOn::Agent => "agent",
        }
    }
}

/// A [`ServiceConfig`] that was checked.
#[derive(Clone, Debug)]
pub(crate) struct ServiceSettings {
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_peer: Option<usize>,
    pub(crate) max_line_bytes: usize,
    pub(crate) timeouts: Timeouts,
    pub(crate) queue_timeout: Option<Nanos>,
    /// See `slow`.
    pub(crate) slow: Option<Nanos>,
    pub(crate) stop_from: StopFrom,
    pub(crate) proxy_from: ProxyFrom,
    /// It looks on: its connections are no clients. They are in no statistics and under no common limit, and a graceful stop
    /// leaves them alone.
    pub(crate) aside: bool,
}

/// How long peers may take, in nanoseconds; `None`: for ever.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timeouts {
    /// For the rest of a line, from its first byte on, while it is read.
    pub(crate) line: Option<Nanos>,
    /// With nothing outstanding.
    pub(crate) idle: Option<Nanos>,
    /// To take any of the replies that wait.
    pub(crate) write: Option<Nanos>,
    /// For a handler, until its client is not kept waiting any longer.
    pub(crate) request: Option<Nanos>,
}

impl ServiceSettings {
    /// Lines of up to so many bytes, and nothing that is limited.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_lines(max_line_bytes: usize, stop_from: StopFrom) -> ServiceSettings {
        ServiceSettings {
            max_connections: usize::MAX,
            max_connections_per_peer: None,
            max_line_bytes,
            timeouts: Timeouts::default(),
            queue_timeout: None,
            slow: None,
            stop_from,
            proxy_from: ProxyFrom::default(),
            aside: false,
        }
    }
}

impl ServiceConfig {
    /// Checks every value but the addresses.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first one out of range.
    fn check(&self) -> Result<ServiceSettings, Error> {
        within("max_connections", self.max_connections, 1, MAX_CONNECTIONS)?;
        within("max_line_bytes", self.max_line_bytes, 1, MAX_LINE_BYTES)?;
        if let Some(limit) = self.max_connections_per_peer {
            within("max_connections_per_peer", limit, 1, 1 << 30)?;
        }
        let timeouts = Timeouts {
            line: timeout("line_timeout", self.line_timeout)?,
            idle: timeout("idle_timeout", self.idle_timeout)?,
            write: timeout("write_timeout", self.write_timeout)?,
            request: timeout("request_timeout", self.request_timeout)?,
        };
        Ok(ServiceSettings {
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
            max_line_bytes: self.max_line_bytes,
            queue_timeout: timeout("queue_timeout", self.queue_timeout)?,
            slow: timeout("slow_log", self.slow_log)?,
            timeouts,
            stop_from: self.stop_from.clone(),
            proxy_from: self.proxy_from.clone(),
            aside: false,
        })
    }
}

impl Config {
    /// What is set for the first service.
    fn first_service(&mut self) -> ServiceConfig {
        ServiceConfig {
            listen: std::mem::take(&mut self.listen),
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
            max_line_bytes: self.max_line_bytes,
            line_timeout: self.line_timeout,
            idle_timeout: self.idle_timeout,
            queue_timeout: self.queue_timeout,
            request_timeout: self.request_timeout,
            write_timeout: self.write_timeout,
            slow_log: self.slow_log,
            stop_from: self.stop_from.clone(),
            proxy_from: self.proxy_from.clone(),
        }
    }

    /// Checks every value, as [`Builder::start`](crate::Builder::start) does first.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first one out of range.
    pub fn validate(&self) -> Result<(), Error> {
        self.clone().check_with(Vec::new(), true).map(drop)
    }

    /// Takes over from `present` what a running server keeps. Returns the names of what would have been different.
    pub(crate) fn keep_what_is_fixed(&mut self, present: &Config) -> Vec<&'static str> {
        let mut kept = Vec::new();
        macro_rules! keep {
            ($($field:ident),*) => {$(
                if self.$field != present.$field {
                    kept.push(stringify!($field));
                    self.$field = present.$field.clone();
                }
            )*};
        }
        keep!(listen, unix_mode, reuse_port, proxy_from, thread_stack_bytes);
        #[cfg(feature = "admin")]
        keep!(admin, admin_connections, agent);
        // A size that was set once cannot be given up again.
        if self.send_buffer_bytes.is_none() {
            keep!(send_buffer_bytes);
        }
        kept
    }

    /// Sets all that belongs to the size of the pool.
    pub(crate) fn set_pool_limits(&mut self, limits: PoolLimits) {
        let PoolLimits { min_threads, max_threads, tolerance, keep_alive } = limits;
        (self.min_threads, self.max_threads, self.tolerance, self.keep_alive) =
            (min_threads, max_threads, tolerance, keep_alive);
    }

    /// Checks every value, for a server of one service.
    ///
    /// # Errors
    /// As [`check_with`](Self::check_with).
    #[cfg(test)]
    pub(crate) fn check(self) -> Result<Settings, Error> {
        self.check_with(Vec::new(), true)
    }

    /// Checks every value. `others`: what is set for the services besides the first. `by_default`: without an address the default
    /// one is meant.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first one out of range.
    pub(crate) fn check_with(
        mut self,
        others: Vec<ServiceConfig>,
        by_default: bool,
    ) -> Result<Settings, Error> {
        let limits = PoolLimits {
            min_threads: self.min_threads,
            max_threads: self.max_threads,
            tolerance: self.tolerance,
            keep_alive: self.keep_alive,
        };
        let policy = limits.check()?;
        within("max_pending", self.max_pending, 1, 1 << 30)?;
        within("high_watermark_bytes", self.high_watermark_bytes, 1, 1 << 30)?;
        within("max_memory_bytes", self.max_memory_bytes, 1 << 20, usize::MAX)?;
        if let Some(bytes) = self.send_buffer_bytes {
            within("send_buffer_bytes", bytes, 4 << 10, 1 << 30)?;
        }
        if self.unix_mode > 0o777 {
            return Err(setting("unix_mode", format!("{:o}", self.unix_mode), "0 to 777".to_owned()));
        }
        within(
            "thread_stack_bytes",
            self.thread_stack_bytes,
            MIN_THREAD_STACK_BYTES,
            MAX_THREAD_STACK_BYTES,
        )?;
        lasting("drain_timeout", self.drain_timeout, Duration::ZERO)?;
        let mut first = self.first_service();
        if first.listen.is_empty() && others.is_empty() && by_default {
            first.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)).into()];
        }
        let (mut services, mut listen, mut listen_services) = (Vec::new(), Vec::new(), Vec::new());
        for (number, service) in std::iter::once(first).chain(others).enumerate() {
            let number = ServiceId::try_from(number)
                .map_err(|_| setting("services", number + 1, format!("at most {}", ServiceId::MAX)))?;
            services.push(service.check()?);
            listen_services.extend(service.listen.iter().map(|_| number));
            listen.extend(service.listen);
        }
        // Behind all others, so that a list of these has their numbers.
        #[cfg_attr(not(feature = "admin"), expect(unused_mut, reason = "nobody looks on"))]
        let mut looks_on = Vec::new();
        #[cfg(feature = "admin")]
        {
            if self.admin.is_some() {
                within("admin_connections", self.admin_connections, 1, MAX_CONNECTIONS)?;
            }
            let admin = crate::admin::service_config(self.admin_connections);
            let agent = crate::agent::service_config();
            for (kind, address, service) in
                [(LooksOn::Admin, self.admin, admin), (LooksOn::Agent, self.agent, agent)]
            {
                let Some(address) = address else { continue };
                let number = ServiceId::try_from(services.len()).map_err(|_| {
                    setting("services", services.len() + 1, format!("at most {}", ServiceId::MAX))
                })?;
                services.push(ServiceSettings { aside: true, ..service.check()? });
                listen_services.push(number);
                listen.push(address);
                looks_on.push(kind);
            }
        }
        Ok(Settings {
            listen,
            limits,
            policy,
            max_pending: self.max_pending,
            high_watermark_bytes: self.high_watermark_bytes,
            low_watermark_bytes: self.high_watermark_bytes / 4,
            max_memory_bytes: self.max_memory_bytes,
            send_buffer_bytes: self.send_buffer_bytes,
            unix_mode: self.unix_mode,
            reuse_port: self.reuse_port,
            thread_stack_bytes: self.thread_stack_bytes,
            drain_timeout: self.drain_timeout,
            services,
            looks_on,
            listen_services,
        })
    }
}

fn within(name: &'static str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(setting(name, value, format!("{least} to {most}")))
}

fn lasting(name: &'static str, value: Duration, least: Duration) -> Result<(), Error> {
    if (least..=MAX_DURATION).contains(&value) {
        return Ok(());
    }
    Err(setting(name, format!("{value:?}"), format!("{least:?} to a year")))
}

fn timeout(name: &'static str, timeout: Option<Duration>) -> Result<Option<Nanos>, Error> {
    timeout
        .map(|timeout| lasting(name, timeout, Duration::from_millis(1)).map(|()| nanos(timeout)))
        .transpose()
}

fn setting(name: &'static str, value: impl ToString, must: String) -> Error {
    Error::Setting { name, value: value.to_string(), must }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range() {
        Config::default().check().unwrap();
    }

    #[test]
    fn the_setting_out_of_range_is_named_with_its_value() {
        let cases: [(Config, &str); 7] = [
            (Config { min_threads: 0, ..Config::default() }, "min_threads is 0, but must be 1 to 10000"),
            (Config { max_threads: 0, ..Config::default() }, "max_threads is 0, but must be 1 to 10000"),
            (
                Config { min_threads: 9, max_threads: 8, ..Config::default() },
                "min_threads is 9, but must be at most max_threads, which is 8",
            ),
            (
                Config { max_line_bytes: 0, ..Config::default() },
                "max_line_bytes is 0, but must be 1 to 67108864",
            ),
            (
                Config { thread_stack_bytes: 65_535, ..Config::default() },
                "thread_stack_bytes is 65535, but must be 65536 to 1073741824",
            ),
            (Config { max_pending: 0, ..Config::default() }, "max_pending is 0, but must be 1 to 1073741824"),
            (
                Config { keep_alive: Duration::ZERO, ..Config::default() },
                "keep_alive is 0ns, but must be 1ms to a year",
            ),
        ];
        for (config, expected) in cases {
            assert_eq!(config.check().unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn mapped_addresses_count_as_their_ipv4_address() {
        let mapped: Address = "[::ffff:10.1.2.3]:1".parse().unwrap();
        assert!(StopFrom::Networks(vec!["10.0.0.0/8".parse().unwrap()]).allows(&mapped));
        assert!(!StopFrom::Networks(vec!["10.2.0.0/16".parse().unwrap()]).allows(&mapped));
        assert!(StopFrom::Loopback.allows(&"[::ffff:127.0.0.1]:1".parse().unwrap()));
        assert!(StopFrom::Loopback.allows(&"unix:".parse().unwrap()));
        assert!(!StopFrom::Loopback.allows(&mapped));
        let everywhere = StopFrom::Networks(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
        assert!(StopFrom::Any.allows(&Address::Unknown));
        assert!(!StopFrom::Loopback.allows(&Address::Unknown) && !everywhere.allows(&Address::Unknown));
        assert!(!StopFrom::None.allows(&"127.0.0.1:1".parse().unwrap()));
        for (network, allows) in [
            ("::ffff:10.1.2.3/128", true),
            ("::ffff:10.0.0.0/104", true),
            ("::ffff:0.0.0.0/96", true),
            ("::ffff:10.0.0.0/120", false),
            ("::/0", false),
            ("::10.1.2.3/128", false),
        ] {
            let list = StopFrom::Networks(vec![network.parse().unwrap()]);
            assert_eq!(list.allows(&mapped), allows, "{network}");
        }
    }
}

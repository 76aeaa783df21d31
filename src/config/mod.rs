//! What can be set: [`Config`], plain and with defaults, [`ServiceConfig`] and [`PoolLimits`].
//!
//! Who a peer is counted as is `peers`, which services look on `looks_on`, and what becomes of it all, checked once, `settings`.
//! Nothing here reads the environment or a file; the program's `cli` does that and fills a `Config`.

mod looks_on;
mod peers;
mod settings;

use std::time::Duration;

use crate::address::Address;
use crate::error::Error;

pub(crate) use looks_on::LooksOn;
#[cfg(feature = "admin")]
pub(crate) use looks_on::MAX_HEAD_BYTES;
pub use peers::{ProxyFrom, StopFrom};
pub(crate) use settings::{ServiceId, ServiceSettings, Settings, Timeouts};

/// Largest pool that can be asked for. Each worker is a thread with about four memory mappings, of which Linux allows a
/// process 65 530 by default; a thread that starts and cannot map its own would end the process.
pub const MAX_WORKERS: usize = 10_000;
/// Longest line that can be asked for, in bytes: what one peer may make the server hold.
pub const MAX_LINE_BYTES: usize = 64 << 20;
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
    /// Most connections at a time. One more is told `ERROR server full` and closed; and so is each that comes while
    /// as many that have ended, 64 at least, still wait for [`Service::close`](crate::Service::close). At least 1. Default: 10 000.
    pub max_connections: usize,
    /// Longest line in bytes, without its terminator (`\n` or `\r\n`), 1 to [`MAX_LINE_BYTES`]. A longer one is told
    /// `ERROR line too long` and its connection is closed. Default: 65 536.
    pub max_line_bytes: usize,
    /// Most requests that wait for a worker or are with one, over all connections. At the limit the server stops reading,
    /// and TCP holds the clients back. Replies that a client does not read are not counted here but limited for each
    /// connection by `high_watermark_bytes`: a few clients that do not read must not stop the service for all. Nor are replies
    /// that are [given later](crate::Reply::defer), of which a connection has one at most. At least 1. Default: 65 536.
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
    /// server itself does not read the connection. With another framing it is the rest of the frame: of a body of many
    /// bytes from a slow client, too, so there it says how slow one may be. `None`: for ever. From 1 ms to [`MAX_DURATION`]. Default: 30 s.
    pub line_timeout: Option<Duration>,
    /// How long a connection may have nothing outstanding: it counts anew from whatever comes or goes, also what is
    /// [pushed](crate::Pusher). Its peer is told nothing. `None`: for ever. From 1 ms to [`MAX_DURATION`]. Default: `None`.
    pub idle_timeout: Option<Duration>,
    /// How long a request may wait, from when it was read to when a worker takes it, also behind others of its own client. One that
    /// has waited longer is not run; its client is told so in place of the reply
    /// ([`Handler::busy_line`](crate::Handler::busy_line)). `None`: for ever. From 1 ms to [`MAX_DURATION`]. Default: `None`.
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
            admin_connections: looks_on::ADMIN_CONNECTIONS,
            #[cfg(feature = "admin")]
            agent: None,
        }
    }
}

/// What is set for one service of several: each has its own listeners and limits, and all share one pool and one event loop. The
/// first one is set by the fields of the same names in [`Config`], which say what they mean; given to
/// [`Builder::service`](crate::Builder::service) for every further one. What is not here is the server's, for all services together:
/// memory, pending requests, threads.
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
    /// See [`Config::high_watermark_bytes`].
    pub high_watermark_bytes: usize,
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
}

impl Config {
    /// What is set for the first service.
    fn first_service(&mut self) -> ServiceConfig {
        ServiceConfig {
            listen: std::mem::take(&mut self.listen),
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
            max_line_bytes: self.max_line_bytes,
            high_watermark_bytes: self.high_watermark_bytes,
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
}

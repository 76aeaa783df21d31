//! What any thread can do with a running server: stop it, wait for it, ask how it is, change its settings; and how it ended.
//!
//! Nothing that a [`ServerHandle`] reaches owns the handler, so that a handler may keep one.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{End, Inner};
use crate::address::Address;
use crate::clock::nanos;
#[cfg(feature = "admin")]
use crate::config::LooksOn;
use crate::config::{Config, PoolLimits};
use crate::controller::Decision;
use crate::error::Error;
use crate::handover::Listener;
use crate::mail::{Mail, Post, Question};
use crate::metrics::Stats;
use crate::overview::Overview;
use crate::pool::LEAVE_TIMEOUT;
use crate::state::ServerState;
use crate::sync::lock_std;

/// Reaches a running server from any thread, handlers included. Cheap to clone.
#[derive(Clone)]
pub struct ServerHandle {
    pub(super) inner: Arc<Inner>,
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
    ///
    /// A connection is closed when it has had its own replies; where others may still push to it, as its service has a state or it
    /// has a [`Pusher`](crate::Pusher), when no request of anyone is outstanding.
    pub fn stop(&self) {
        self.stop_after(Duration::ZERO);
    }

    /// Begins a graceful stop after `delay`. Until then everything goes on as before, new connections too, but
    /// [`state`](Self::state) says [`Delaying`](ServerState::Delaying): for a load balancer that needs time to see that nothing
    /// more is to be sent here. [`Config::drain_timeout`] counts from its end. Whatever else stops the server, or a shorter delay,
    /// ends it sooner; a longer one does nothing. Never blocks.
    pub fn stop_after(&self, delay: Duration) {
        let Overview { stop, hub, .. } = &*self.inner.overview;
        stop.drain_at(match delay {
            Duration::ZERO => 0,
            delay => hub.clock.now().saturating_add(nanos(delay)),
        });
        hub.replies.wake();
    }

    /// Stops at once: what is not answered is dropped. Handlers that run get a second more to return. Never blocks.
    pub fn stop_now(&self) {
        self.inner.overview.stop.abort();
        self.inner.overview.pool.leave_by(Instant::now() + LEAVE_TIMEOUT);
        self.inner.overview.hub.replies.wake();
    }

    /// The open listeners, once more, for a server that takes the place of this one ([`Builder::inherit`](crate::Builder::inherit)), in this process or in
    /// another. None if a stop was asked for. Blocks until the event loop has turned.
    ///
    /// # Errors
    /// [`Error::WaitInHandler`] at once when called by a handler of this server; [`Error::Listener`] with what the system said,
    /// as when no descriptor is left.
    pub fn listeners(&self) -> Result<Vec<Listener>, Error> {
        if self.inner.overview.hub.is_on_own_thread() {
            return Err(Error::WaitInHandler);
        }
        let (answer, answered) = mpsc::sync_channel(1);
        self.inner.overview.hub.post(Mail::Question(Question::Listeners(answer)));
        let listeners = answered.recv().unwrap_or_else(|_| Ok(Vec::new()));
        listeners.map_err(|source| Error::Listener { source })
    }

    /// From now on the listeners are another server's, until [`own`](Self::own): a stop does not shut their doors. It leaves who
    /// is in their queues to the other one, removes no file of a Unix socket, and gives connections that were just accepted
    /// 50 ms for their first line. Never blocks. `false`: a stop was asked for before, and may have shut the doors; nothing is lent.
    #[must_use = "it may not lend them"]
    pub fn lend(&self) -> bool {
        self.inner.lent.set_out(true);
        let is_open = self.inner.overview.stop.begins_at().is_none();
        if !is_open {
            self.inner.lent.set_out(false);
        }
        is_open
    }

    /// From now on the listeners are this server's own: those that it had [lent](Self::lend) and those that it has
    /// [inherited](crate::Builder::inherit). Of these the ones that it does not listen on are closed. Never blocks.
    pub fn own(&self) {
        let was_lent = self.inner.lent.is_set();
        self.inner.lent.end();
        lock_std(&self.inner.unused).clear();
        if was_lent {
            // For who is in the queue of the admin address.
            self.inner.overview.hub.replies.wake();
        }
    }

    /// Whether a stop has been asked for, by anyone, also one that begins after a delay.
    pub fn is_stopping(&self) -> bool {
        self.inner.overview.stop.begins_at().is_some()
    }

    /// What the server is doing.
    pub fn state(&self) -> ServerState {
        self.inner.overview.state()
    }

    /// Blocks until a stop was asked for, by anyone, or for `timeout`. The same as [`is_stopping`](Self::is_stopping) then.
    pub fn wait_stopping(&self, timeout: Duration) -> bool {
        self.inner.overview.stop.wait_until_asked(timeout)
    }

    /// Whether the server works: its event loop turns within `timeout`, and its pool has workers and its tuner, whatever their
    /// handlers do. Blocks for `timeout` at most. What a watchdog should ask; a server that has ended does not work.
    ///
    /// Called by a handler of this server on its event loop, it would wait for itself: `false`.
    pub fn is_alive(&self, timeout: Duration) -> bool {
        let Overview { hub, pool, .. } = &*self.inner.overview;
        let (answer, answered) = mpsc::sync_channel(1);
        hub.post(Mail::Question(Question::Turns(answer)));
        let has_workers = pool.live() > 0;
        let has_tuner =
            lock_std(&self.inner.tuner_thread).as_ref().is_some_and(|thread| !thread.is_finished());
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
        if self.inner.overview.hub.is_on_own_thread() {
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

    /// The admin address, with its real port, if there is one: see [`Builder::admin`](crate::Builder::admin).
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
    /// turn on, so also for whoever connects or asks after this has returned. Further [services](crate::Builder::service) keep
    /// what they were started with.
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
        self.inner.overview.tuner.set_limits(settings.limits)?;
        present.config = config;
        self.inner.settings.give(settings);
        self.inner.overview.hub.replies.wake();
        Ok(kept)
    }

    /// The present limits of the pool.
    pub fn pool_limits(&self) -> PoolLimits {
        self.inner.overview.tuner.limits()
    }

    /// Changes the limits of the pool while it runs. Obeyed at once; above a lowered maximum, busy workers leave as they
    /// finish. No request is lost by it.
    ///
    /// # Errors
    /// [`Error::Setting`] for a limit out of range; nothing is changed then.
    pub fn set_pool_limits(&self, limits: PoolLimits) -> Result<(), Error> {
        let mut present = lock_std(&self.inner.present);
        self.inner.overview.tuner.set_limits(limits)?;
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

/// The same error once more: the original has but one owner, and any number of threads may wait.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

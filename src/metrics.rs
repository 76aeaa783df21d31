//! What the server counts, and how it is shown.
//!
//! The reactor is the only writer of [`Counters`] and publishes them whole at the end of each turn, so that a snapshot
//! adds up at any moment: accepted = open + closed + rejected; requests = replied + silent + pending + dropped. How long requests
//! take is in `timings`. The names of [`Stats`] are those of the metrics, without the prefix `tidemill_`.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use crate::reason::CloseReason;
use crate::timings::{Distribution, Timings};

/// The reactor's counts. Plain numbers: only the reactor thread writes them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    /// By service.
    pub(crate) services: Box<[ServiceCounters]>,
    pub(crate) totals: Totals,
}

/// What is counted for each service.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ServiceCounters {
    /// A gauge: its connections.
    pub(crate) open: u64,
    pub(crate) requests: u64,
    pub(crate) stops: u64,
    pub(crate) ignored: u64,
}

/// What is counted for all services together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) open: u64,
    pub(crate) accepted: u64,
    pub(crate) rejected_full: u64,
    pub(crate) rejected_peer_full: u64,
    pub(crate) late: u64,
    /// A gauge: jobs out whose clients have been told that they took too long.
    pub(crate) stuck: u64,
    pub(crate) closed: [u64; CloseReason::COUNT],
    pub(crate) replied: u64,
    pub(crate) silent: u64,
    pub(crate) pending: u64,
    pub(crate) dropped: u64,
    pub(crate) panics: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) wakeups: u64,
    pub(crate) accept_errors: u64,
    pub(crate) stale_replies: u64,
    pub(crate) pushed: u64,
    pub(crate) inline_overruns: u64,
    /// A gauge: what the connections hold, see `Connection::held_bytes`.
    pub(crate) held_bytes: u64,
}

impl Counters {
    /// All 0, for so many services.
    pub(crate) fn new(services: usize) -> Counters {
        Counters { services: vec![ServiceCounters::default(); services].into(), totals: Totals::default() }
    }

    /// Takes over all values of `other`, which is of the same server, without allocating.
    pub(crate) fn copy_from(&mut self, other: &Counters) {
        self.services.copy_from_slice(&other.services);
        self.totals = other.totals;
    }
}

impl Deref for Counters {
    type Target = Totals;

    fn deref(&self) -> &Totals {
        &self.totals
    }
}

impl DerefMut for Counters {
    fn deref_mut(&mut self) -> &mut Totals {
        &mut self.totals
    }
}

/// How the pool is at the moment of a snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PoolGauges {
    pub(crate) threads: usize,
    pub(crate) busy: usize,
    pub(crate) waiting: usize,
    pub(crate) min: usize,
    pub(crate) max: usize,
    pub(crate) demand: usize,
    pub(crate) cores: usize,
    pub(crate) grown: u64,
    pub(crate) shrunk: u64,
    pub(crate) refused: u64,
}

/// A snapshot of everything that a server counts. Fields are named as the metrics are.
///
/// Counters start at 0 with the server. At every snapshot
/// `connections_accepted_total = connections + closed + rejected` and
/// `requests = replies_total + requests_silent_total + requests_pending + requests_dropped_total` hold exactly.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// Seconds since the server started.
    pub uptime_seconds: f64,
    /// Connections that are open.
    pub connections: u64,
    /// Connections ever accepted.
    pub connections_accepted_total: u64,
    /// Connections turned away, by reason.
    pub connections_rejected_total: Rejected,
    /// Connections that ended, by reason.
    pub connections_closed_total: Closed,
    /// Lines accepted, by the name of their service and by kind.
    pub requests_total: BTreeMap<String, Requests>,
    /// Replies written completely to their socket.
    pub replies_total: u64,
    /// Requests that have no reply by nature: kinds `stop` and `ignored`, and those for which the handler wrote nothing.
    pub requests_silent_total: u64,
    /// Requests accepted whose reply is not written yet.
    pub requests_pending: u64,
    /// Requests that will never have a reply: their peer was gone, their handler panicked, or the stop was not graceful.
    pub requests_dropped_total: u64,
    /// Requests that were not run because they had waited longer than
    /// [`Config::queue_timeout`](crate::Config::queue_timeout). They are among the replied ones.
    pub requests_late_total: u64,
    /// Requests whose clients were told that they took longer than
    /// [`Config::request_timeout`](crate::Config::request_timeout), and whose handlers have not returned yet.
    pub requests_stuck: u64,
    /// Time from a request's arrival to the call of its handler, in seconds.
    pub queue_wait_seconds: Distribution,
    /// Time that the handler took for a request, in seconds; on the event loop with what it took to find it and to see what it is.
    /// Requests of one connection that take less than 1 µs are timed up to 16 together, and those of one job, or of one turn of the
    /// event loop, count with their mean: the count and the sum are exact, and slow ones that come right after short ones count as one.
    pub service_seconds: Distribution,
    /// Workers that run or are being started.
    pub pool_threads: u64,
    /// Workers that run a job.
    pub pool_busy: u64,
    /// Jobs that wait for a worker: the requests that one read of a connection brought are one.
    pub pool_waiting: u64,
    /// Present [`Config::min_threads`](crate::Config::min_threads).
    pub pool_min: u64,
    /// Present [`Config::max_threads`](crate::Config::max_threads).
    pub pool_max: u64,
    /// Workers wanted for the present work.
    pub pool_demand: u64,
    /// CPUs that the process may use, by affinity and quota, as the pool last counted them: while anything is to decide, at
    /// least once a second.
    pub pool_cores: u64,
    /// `pool_demand / pool_max`. Above 1 more work is there than the pool may have workers for.
    pub pool_saturation: f64,
    /// Resizes of the pool, by direction.
    pub pool_resizes_total: Resizes,
    /// Threads that the system refused to start.
    pub pool_threads_refused_total: u64,
    /// Handlers that panicked.
    pub handler_panics_total: u64,
    /// Bytes that connections hold, by capacity: what has come in and was not handled, replies that wait for their peers, what
    /// jobs carry, and the bookkeeping. What the kernel holds for them is not among it.
    pub held_bytes: u64,
    /// Bytes read from sockets.
    pub read_bytes_total: u64,
    /// Bytes written to sockets.
    pub written_bytes_total: u64,
    /// Times that a worker or a handle woke the reactor out of its sleep.
    pub wakeups_total: u64,
    /// Errors of the listening sockets, such as running out of file descriptors.
    pub accept_errors_total: u64,
    /// Jobs that came back from a worker after their connection had gone.
    pub stale_replies_total: u64,
    /// Pushes that were taken in, one for each connection that they were for. They are no replies.
    pub pushed_total: u64,
    /// Times that requests of [`Kind::Inline`](crate::Kind::Inline) held up the event loop for longer than a millisecond, with what it took
    /// to find them and to see what they are, or the opening or the close of a connection of a service at
    /// [`Place::Loop`](crate::Place::Loop) did. The log names the request; where `requests` were timed together, each of them.
    pub inline_overruns_total: u64,
}

/// Connections turned away, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Rejected {
    /// The limit [`Config::max_connections`](crate::Config::max_connections) was reached.
    pub full: u64,
    /// The limit [`Config::max_connections_per_peer`](crate::Config::max_connections_per_peer) was reached.
    pub peer_full: u64,
}

impl Rejected {
    /// Over all reasons.
    pub fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }

    pub(crate) fn by_reason(&self) -> [(&'static str, u64); 2] {
        let Rejected { full, peer_full } = *self;
        [(CloseReason::Full.as_str(), full), (CloseReason::PeerFull.as_str(), peer_full)]
    }
}

/// Connections that ended, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Closed {
    /// The peer closed its side, and had all its replies.
    pub eof: u64,
    /// The peer reset the connection, or it broke.
    pub reset: u64,
    /// A line was longer than [`Config::max_line_bytes`](crate::Config::max_line_bytes), or another frame than its framing's limit.
    pub line_too_long: u64,
    /// The peer asked to stop the service and may not.
    pub kill_refused: u64,
    /// The handler panicked.
    pub panic: u64,
    /// The handler asked for it.
    pub handler: u64,
    /// The rest of a line, or of another frame, did not come within [`Config::line_timeout`](crate::Config::line_timeout).
    pub line_timeout: u64,
    /// Nothing came for as long as [`Config::idle_timeout`](crate::Config::idle_timeout).
    pub idle_timeout: u64,
    /// The peer did not read its replies for as long as [`Config::write_timeout`](crate::Config::write_timeout).
    pub write_timeout: u64,
    /// The handler did not return within [`Config::request_timeout`](crate::Config::request_timeout).
    pub request_timeout: u64,
    /// It held most when connections held more than [`Config::max_memory_bytes`](crate::Config::max_memory_bytes).
    pub memory: u64,
    /// It did not begin with a good PROXY header, and had to ([`Config::proxy_from`](crate::Config::proxy_from)).
    pub proxy_header: u64,
    /// The server stopped gracefully.
    pub stopping: u64,
    /// The server stopped at once.
    pub aborted: u64,
}

impl Closed {
    /// Over all reasons.
    pub fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }

    pub(crate) fn by_reason(&self) -> [(&'static str, u64); 14] {
        let Closed {
            eof,
            reset,
            line_too_long,
            kill_refused,
            panic,
            handler,
            line_timeout,
            idle_timeout,
            write_timeout,
            request_timeout,
            memory,
            proxy_header,
            stopping,
            aborted,
        } = *self;
        [
            (CloseReason::Eof, eof),
            (CloseReason::Reset, reset),
            (CloseReason::LineTooLong, line_too_long),
            (CloseReason::KillRefused, kill_refused),
            (CloseReason::Panic, panic),
            (CloseReason::Handler, handler),
            (CloseReason::LineTimeout, line_timeout),
            (CloseReason::IdleTimeout, idle_timeout),
            (CloseReason::WriteTimeout, write_timeout),
            (CloseReason::RequestTimeout, request_timeout),
            (CloseReason::Memory, memory),
            (CloseReason::ProxyHeader, proxy_header),
            (CloseReason::Stopping, stopping),
            (CloseReason::Aborted, aborted),
        ]
        .map(|(reason, count)| (reason.as_str(), count))
    }
}

/// Frames accepted, which by default are lines, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Requests {
    /// [`Kind::Request`](crate::Kind::Request), [`Switch`](crate::Kind::Switch) or [`Inline`](crate::Kind::Inline): given to a worker,
    /// or handled on the event loop.
    pub request: u64,
    /// [`Kind::Stop`](crate::Kind::Stop), whether it was obeyed or refused.
    pub stop: u64,
    /// [`Kind::Ignored`](crate::Kind::Ignored).
    pub ignored: u64,
}

impl Requests {
    /// Over all kinds.
    pub fn total(&self) -> u64 {
        self.request + self.stop + self.ignored
    }
}

/// Resizes of the pool, by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Resizes {
    /// The pool grew.
    pub grow: u64,
    /// The pool shrank.
    pub shrink: u64,
}

impl Stats {
    /// Lines accepted, of all services and kinds.
    pub fn requests(&self) -> u64 {
        self.requests_total.values().map(Requests::total).sum()
    }

    /// `names`: of the services, in their order.
    pub(crate) fn new<'a>(
        uptime: Duration,
        names: impl Iterator<Item = &'a str>,
        counters: &Counters,
        pool: &PoolGauges,
        timings: &Timings,
    ) -> Stats {
        let mut requests_total = BTreeMap::<String, Requests>::new();
        for (name, counted) in names.zip(&counters.services) {
            // Services of the same name are told together.
            let requests = requests_total.entry(name.to_owned()).or_default();
            requests.request += counted.requests;
            requests.stop += counted.stops;
            requests.ignored += counted.ignored;
        }
        let closed = |reason: CloseReason| counters.closed[reason as usize];
        let (queue_wait_seconds, service_seconds) = timings.summaries();
        Stats {
            uptime_seconds: uptime.as_secs_f64(),
            connections: counters.open,
            connections_accepted_total: counters.accepted,
            connections_rejected_total: Rejected {
                full: counters.rejected_full,
                peer_full: counters.rejected_peer_full,
            },
            connections_closed_total: Closed {
                eof: closed(CloseReason::Eof),
                reset: closed(CloseReason::Reset),
                line_too_long: closed(CloseReason::LineTooLong),
                kill_refused: closed(CloseReason::KillRefused),
                panic: closed(CloseReason::Panic),
                handler: closed(CloseReason::Handler),
                line_timeout: closed(CloseReason::LineTimeout),
                idle_timeout: closed(CloseReason::IdleTimeout),
                write_timeout: closed(CloseReason::WriteTimeout),
                request_timeout: closed(CloseReason::RequestTimeout),
                memory: closed(CloseReason::Memory),
                proxy_header: closed(CloseReason::ProxyHeader),
                stopping: closed(CloseReason::Stopping),
                aborted: closed(CloseReason::Aborted),
            },
            requests_total,
            replies_total: counters.replied,
            requests_silent_total: counters.silent,
            requests_pending: counters.pending,
            requests_dropped_total: counters.dropped,
            requests_late_total: counters.late,
            requests_stuck: counters.stuck,
            queue_wait_seconds,
            service_seconds,
            pool_threads: pool.threads as u64,
            pool_busy: pool.busy as u64,
            pool_waiting: pool.waiting as u64,
            pool_min: pool.min as u64,
            pool_max: pool.max as u64,
            pool_demand: pool.demand as u64,
            pool_cores: pool.cores as u64,
            pool_saturation: pool.demand as f64 / pool.max.max(1) as f64,
            pool_resizes_total: Resizes { grow: pool.grown, shrink: pool.shrunk },
            pool_threads_refused_total: pool.refused,
            handler_panics_total: counters.panics,
            held_bytes: counters.held_bytes,
            read_bytes_total: counters.read_bytes,
            written_bytes_total: counters.written_bytes,
            wakeups_total: counters.wakeups,
            accept_errors_total: counters.accept_errors,
            stale_replies_total: counters.stale_replies,
            pushed_total: counters.pushed,
            inline_overruns_total: counters.inline_overruns,
        }
    }
}

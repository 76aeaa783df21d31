//! What the server counts, and how it is shown.
//!
//! The reactor is the only writer of [`Counters`] and publishes them whole at the end of each turn, so that a snapshot
//! adds up at any moment: accepted = open + closed + rejected; requests = replied + silent + pending + dropped. Workers
//! write [`Timings`]. The names of [`Stats`] are those of the metrics, without the prefix `tidemill_`.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock::{Nanos, nanos};
use crate::reason::CloseReason;
use crate::sync::lock_std;

/// Longest time that the histograms tell apart, in nanoseconds: an hour. Longer ones count as this long.
const MAX_NANOS: u64 = 3600 * 1_000_000_000;
/// Significant digits of the histograms: values are at most 1 % off.
const DIGITS: u8 = 2;
/// Most parts of the timings, so that workers rarely meet at one lock.
const MAX_SHARDS: usize = 8;

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

/// Requests that take less than this on average may be timed together, in nanoseconds.
pub(crate) const SHORT_REQUEST: Nanos = 1_000;

/// Waiting times that differ by this part of them or less are the same to the histograms, of [`DIGITS`] digits.
const WAIT_PARTS: Nanos = 128;

/// Requests of one job, timed together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lap {
    /// From their arrival to the call of the handler for the first of them.
    pub(crate) wait: Nanos,
    /// Time that the handler took for all of them.
    pub(crate) took: Nanos,
    /// How many, at least one.
    pub(crate) requests: usize,
}

impl Lap {
    /// Whether the requests of `later`, which came with these, may be counted with them: all are short, and waited for as long
    /// as the histograms can tell.
    pub(crate) fn is_like(&self, later: &Lap) -> bool {
        let is_short = |lap: &Lap| lap.took < SHORT_REQUEST * lap.requests as u64;
        is_short(self) && is_short(later) && later.wait.saturating_sub(self.wait) <= self.wait / WAIT_PARTS
    }

    /// Counts the requests of `later` with these.
    pub(crate) fn append(&mut self, later: &Lap) {
        self.took += later.took;
        self.requests += later.requests;
    }
}

/// Distribution of the waiting and the service times, one value a request.
#[derive(Debug)]
pub(crate) struct Timings {
    /// A worker writes to the shard of its number; a reader adds them up. Constant memory for any number of workers.
    shards: Box<[Mutex<Shard>]>,
}

/// Bounds of the buckets that monitors get, in seconds: fixed, so that those of all servers and versions can be added up.
#[cfg(feature = "admin")]
const BUCKET_BOUNDS: [f64; 25] = [
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0,
];

/// A distribution of times in buckets.
#[cfg(feature = "admin")]
#[derive(Debug)]
pub(crate) struct Buckets {
    /// A bound in seconds, and how many times are no longer.
    pub(crate) up_to: Vec<(f64, u64)>,
    pub(crate) count: u64,
    pub(crate) sum_seconds: f64,
}

#[derive(Debug)]
struct Shard {
    wait: Times,
    service: Times,
}

#[derive(Clone, Debug)]
struct Times {
    histogram: Histogram<u64>,
    sum_nanos: u128,
}

impl Times {
    fn new() -> Times {
        let histogram = Histogram::new_with_max(MAX_NANOS, DIGITS)
            .expect("an hour and two digits are within the crate's bounds");
        Times { histogram, sum_nanos: 0 }
    }

    /// Adds `count` times of `nanos` each, about; all together they are `sum`.
    fn record(&mut self, nanos: Nanos, count: usize, sum: Nanos) {
        self.histogram.saturating_record_n(nanos, count as u64);
        self.sum_nanos += u128::from(sum);
    }

    fn add(&mut self, other: &Times) {
        self.histogram.add(&other.histogram).expect("both have the same bounds");
        self.sum_nanos += other.sum_nanos;
    }

    /// The same in buckets. A time counts in the first whose bound is above the least that it may have been: 1 % off at most.
    #[cfg(feature = "admin")]
    fn buckets(&self) -> Buckets {
        let mut counts = [0; BUCKET_BOUNDS.len()];
        for recorded in self.histogram.iter_recorded() {
            let least = self.histogram.lowest_equivalent(recorded.value_iterated_to()) as f64 / 1e9;
            if let Some(bucket) = BUCKET_BOUNDS.iter().position(|bound| least <= *bound) {
                counts[bucket] += recorded.count_at_value();
            }
        }
        let up_to = counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        Buckets {
            up_to: BUCKET_BOUNDS.into_iter().zip(up_to).collect(),
            count: self.histogram.len(),
            sum_seconds: self.sum_nanos as f64 / 1e9,
        }
    }

    fn summary(&self) -> Distribution {
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        let at = |quantile| seconds(self.histogram.value_at_quantile(quantile));
        Distribution {
            count: self.histogram.len(),
            sum: self.sum_nanos as f64 / 1e9,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: seconds(self.histogram.max()),
        }
    }
}

/// How long requests have waited, at some moment.
#[derive(Debug)]
pub(crate) struct Waits(Histogram<u64>);

impl Waits {
    /// How many have waited `at_least` that long since `before`, and the longest that one has, to 1 %.
    pub(crate) fn longer_since(mut self, before: &Waits, at_least: Duration) -> (u64, Duration) {
        // Fails only where there was more before.
        if self.0.subtract(&before.0).is_err() {
            return (0, Duration::ZERO);
        }
        let count = self.0.count_between(nanos(at_least), MAX_NANOS);
        (count, Duration::from_nanos(self.0.max()))
    }
}

impl Timings {
    pub(crate) fn new() -> Timings {
        let shards = thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS);
        let shard = || Mutex::new(Shard { wait: Times::new(), service: Times::new() });
        Timings { shards: (0..shards).map(|_| shard()).collect() }
    }

    /// Records requests of worker `worker`. Inlined, it spares 3 % of the instructions of a pipelined request.
    #[inline(always)]
    pub(crate) fn record(&self, worker: u64, laps: impl Iterator<Item = Lap>) {
        let shard = usize::try_from(worker % self.shards.len() as u64).unwrap_or(0);
        let mut shard = lock_std(&self.shards[shard]);
        for Lap { wait, took, requests } in laps {
            shard.wait.record(wait, requests, wait.saturating_mul(requests as u64));
            // Timed together, they are short. Where they were not, one of them is the likely cause.
            let mean = took / requests as u64;
            if mean <= SHORT_REQUEST {
                shard.service.record(mean, requests, took);
            } else {
                let others = SHORT_REQUEST * (requests as u64 - 1);
                let long = took.saturating_sub(others);
                shard.service.record(SHORT_REQUEST, requests - 1, others);
                shard.service.record(long, 1, long);
            }
        }
    }

    /// Waiting and service times of all workers so far, in fixed buckets.
    #[cfg(feature = "admin")]
    pub(crate) fn histograms(&self) -> (Buckets, Buckets) {
        let (wait, service) = self.sums();
        (wait.buckets(), service.buckets())
    }

    /// Waiting and service times of all workers so far.
    fn summaries(&self) -> (Distribution, Distribution) {
        let (wait, service) = self.sums();
        (wait.summary(), service.summary())
    }

    /// How long requests have waited so far.
    pub(crate) fn waits(&self) -> Waits {
        Waits(self.sums().0.histogram)
    }

    fn sums(&self) -> (Times, Times) {
        let (mut wait, mut service) = (Times::new(), Times::new());
        for shard in &self.shards {
            let shard = lock_std(shard);
            wait.add(&shard.wait);
            service.add(&shard.service);
        }
        (wait, service)
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
    /// Time that the handler took for a request, in seconds. Requests of one connection that take less than 1 µs are timed
    /// up to four together, and those of one job count with their mean: the count and the sum are exact, and slow ones that come
    /// right after short ones count as one.
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
    /// Times that requests of [`Kind::Inline`](crate::Kind::Inline) held up the event loop for longer than a millisecond.
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
    /// A line was longer than [`Config::max_line_bytes`](crate::Config::max_line_bytes).
    pub line_too_long: u64,
    /// The peer asked to stop the service and may not.
    pub kill_refused: u64,
    /// The handler panicked.
    pub panic: u64,
    /// The handler asked for it.
    pub handler: u64,
    /// The rest of a line did not come within [`Config::line_timeout`](crate::Config::line_timeout).
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

/// Lines accepted, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Requests {
    /// [`Kind::Request`](crate::Kind::Request): given to a worker.
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

/// A distribution of times in seconds; quantiles are at most 1 % too high. All 0 while `count` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names of the quantiles say it all")]
pub struct Distribution {
    pub count: u64,
    pub sum: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_that_the_histograms_cannot_tell_apart_are_alike() {
        let lap = |wait, took| Lap { wait, took, requests: 4 };
        let first = lap(12_800, 400);
        assert!(first.is_like(&lap(12_900, 3_999)));
        assert!(!first.is_like(&lap(12_901, 400)), "it waited for longer");
        assert!(
            !first.is_like(&lap(12_800, 4_000)) && !lap(12_800, 4_000).is_like(&first),
            "they are not short"
        );
        assert!(lap(12_800, 400).is_like(&lap(0, 400)), "a clock that steps back");
    }

    #[test]
    fn what_is_counted_together_keeps_its_count_and_its_sum() {
        let timings = Timings::new();
        let mut laps = Lap { wait: 1_000_000, took: 300, requests: 4 };
        laps.append(&Lap { wait: 1_000_300, took: 500, requests: 4 });
        timings.record(0, std::iter::once(laps));
        let (wait, service) = timings.summaries();
        assert_eq!((wait.count, service.count), (8, 8));
        assert!((service.sum - 800e-9).abs() < 1e-15 && (service.p50 - 100e-9).abs() <= 1e-9, "{service:?}");
        assert!((wait.sum - 8e-3).abs() < 1e-9 && (wait.p50 - 1e-3).abs() < 1e-5, "{wait:?}");
    }
}

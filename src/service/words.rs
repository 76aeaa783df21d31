//! What the reactor asks a service: what a frame is, where something runs, and what a peer is told at the end.

use std::fmt;
use std::time::Duration;

/// What a frame is, and where it is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A request: goes to a worker, where its handler may block.
    Request,
    /// A request behind which nothing is cut until it has been handled, because the framing or the kind of what follows may
    /// change with it. It goes to a worker too. Costs the connection that nothing behind it goes out with it.
    Switch,
    /// A request that is handled on the event loop, at once: for what takes microseconds and never blocks. It spares two changes
    /// of the thread, and holds up every connection while it runs: longer than a millisecond is counted
    /// ([`Stats::inline_overruns_total`](crate::Stats::inline_overruns_total)) and logged. The framing may change with it. Its reply is,
    /// as a rule, sent with those that others get in the same turn of the loop: at its end, a millisecond, or sooner, once those handled
    /// behind it have taken 0.2 ms and the last of them has returned.
    Inline,
    /// A request to stop the server, if this peer may ([`Config::stop_from`](crate::Config::stop_from)); else the peer is
    /// told so and its connection is closed. See [`Handler::stop_line`](crate::Handler::stop_line) for one that does not wait for its
    /// turn.
    Stop,
    /// None of these. It is counted and has no reply; nobody handles it.
    Ignored,
}

/// Where something of a service runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// On a worker: it may block.
    Worker,
    /// On the event loop: it must not.
    Loop,
}

/// What a peer may be told when its connection is ended by the server. Its text is what it is told by default, with "line" for a frame
/// of any kind: it begins with `ERROR`, so a protocol with another word for that matches the variants. They may grow by fields, so they
/// are matched with `..`.
///
/// Who is idle, does not read, holds too much memory, or is there when the server stops, is told nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Farewell {
    /// A frame is longer than the limit.
    #[non_exhaustive]
    LineTooLong {
        /// The framing's [`max_bytes`](crate::framing::Framing::max_bytes): of lines,
        /// [`Config::max_line_bytes`](crate::Config::max_line_bytes).
        limit: usize,
    },
    /// There are as many connections as there may be.
    #[non_exhaustive]
    Full {
        /// [`Config::max_connections`](crate::Config::max_connections)
        limit: usize,
    },
    /// The peer's address has as many connections as it may have.
    #[non_exhaustive]
    PeerFull {
        /// [`Config::max_connections_per_peer`](crate::Config::max_connections_per_peer)
        limit: usize,
    },
    /// The rest of a frame, whatever the framing, did not come in time.
    #[non_exhaustive]
    LineTimeout {
        /// [`Config::line_timeout`](crate::Config::line_timeout)
        limit: Duration,
    },
    /// The handler did not return in time, or the reply that it [took along](crate::Reply::defer) was not given in time.
    #[non_exhaustive]
    RequestTimeout {
        /// [`Config::request_timeout`](crate::Config::request_timeout)
        limit: Duration,
    },
    /// The peer asked to stop the server, and may not.
    StopRefused,
    /// The handler panicked.
    Panic,
    /// A header of the PROXY protocol had to come first.
    ProxyHeader,
}

impl fmt::Display for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Farewell::LineTooLong { limit } => write!(f, "ERROR line too long (limit {limit} bytes)"),
            Farewell::Full { limit } => write!(f, "ERROR server full (limit {limit} connections)"),
            Farewell::PeerFull { limit } => {
                write!(f, "ERROR too many connections from your address (limit {limit})")
            }
            Farewell::LineTimeout { limit } => write!(f, "ERROR line not completed within {limit:?}"),
            Farewell::RequestTimeout { limit } => write!(f, "ERROR request not completed within {limit:?}"),
            Farewell::StopRefused => write!(f, "ERROR stop refused"),
            Farewell::Panic => write!(f, "ERROR internal error"),
            Farewell::ProxyHeader => write!(f, "ERROR PROXY header expected"),
        }
    }
}

impl Farewell {
    /// What a peer is told by default.
    pub(super) fn line(&self) -> Option<Vec<u8>> {
        Some(format!("{self}\n").into_bytes())
    }
}

/// What a peer is told by default in place of a reply that comes too late.
pub(super) fn busy_line(waited: Duration) -> Vec<u8> {
    format!("ERROR busy (waited {waited:?})\n").into_bytes()
}

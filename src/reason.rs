//! Why a connection ended.
//!
//! A further reason: a variant with its label here, a field in [`Closed`](crate::Closed), and what a peer is told in
//! `reactor::farewell`.

/// Why a connection ended, as a service is told when it gets a connection's state back, and as the statistics count it. The
/// order is that of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed its side, and had all its replies.
    Eof,
    /// The peer reset the connection, or it broke.
    Reset,
    /// A frame was longer than its framing allows.
    LineTooLong,
    /// The peer asked to stop the server and may not.
    KillRefused,
    /// The handler panicked.
    Panic,
    /// The handler asked for it, or who pushed.
    Handler,
    /// The rest of a frame did not come within [`Config::line_timeout`](crate::Config::line_timeout).
    LineTimeout,
    /// Nothing was outstanding for as long as [`Config::idle_timeout`](crate::Config::idle_timeout).
    IdleTimeout,
    /// The peer did not read what waited for it for as long as [`Config::write_timeout`](crate::Config::write_timeout).
    WriteTimeout,
    /// The handler did not answer within [`Config::request_timeout`](crate::Config::request_timeout).
    RequestTimeout,
    /// It held more than others when all together held more than [`Config::max_memory_bytes`](crate::Config::max_memory_bytes).
    Memory,
    /// The peer is a proxy, and no header of the PROXY protocol came, or a bad one, or too late
    /// ([`Config::proxy_from`](crate::Config::proxy_from)). No service hears of it.
    ProxyHeader,
    /// The server stops, and this connection had all that it was to get.
    Stopping,
    /// The server stopped at once.
    Aborted,
    /// There were as many connections as there may be. It never was open: no service hears of it, and it counts as rejected.
    Full,
    /// There were as many connections from its address as there may be. The same.
    PeerFull,
}

impl CloseReason {
    /// How many reasons there are.
    pub(crate) const COUNT: usize = CloseReason::PeerFull as usize + 1;

    /// Whether it is the server that will not go on, for what the peer or a handler did: worth a warning.
    pub(crate) fn is_ours(self) -> bool {
        match self {
            CloseReason::Eof
            | CloseReason::Reset
            | CloseReason::Handler
            | CloseReason::IdleTimeout
            | CloseReason::Stopping
            | CloseReason::Aborted => false,
            CloseReason::LineTooLong
            | CloseReason::KillRefused
            | CloseReason::Panic
            | CloseReason::LineTimeout
            | CloseReason::WriteTimeout
            | CloseReason::RequestTimeout
            | CloseReason::Memory
            | CloseReason::ProxyHeader
            | CloseReason::Full
            | CloseReason::PeerFull => true,
        }
    }

    /// The label in logs and statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            CloseReason::Eof => "eof",
            CloseReason::Reset => "reset",
            CloseReason::LineTooLong => "line_too_long",
            CloseReason::KillRefused => "kill_refused",
            CloseReason::Panic => "panic",
            CloseReason::Handler => "handler",
            CloseReason::LineTimeout => "line_timeout",
            CloseReason::IdleTimeout => "idle_timeout",
            CloseReason::WriteTimeout => "write_timeout",
            CloseReason::RequestTimeout => "request_timeout",
            CloseReason::Memory => "memory",
            CloseReason::ProxyHeader => "proxy_header",
            CloseReason::Stopping => "stopping",
            CloseReason::Aborted => "aborted",
            CloseReason::Full => "full",
            CloseReason::PeerFull => "peer_full",
        }
    }
}

//! How a connection ends: the phases of its life and the reasons.
//!
//! A further reason: a variant in [`CloseReason`] with its label, a field in [`Closed`](crate::Closed), and what a peer is told
//! in `reactor::farewell`.

/// Why a connection ended. The order is that of [`Counters::closed`](crate::metrics::Counters).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    Eof,
    Reset,
    LineTooLong,
    KillRefused,
    Panic,
    Handler,
    LineTimeout,
    IdleTimeout,
    WriteTimeout,
    RequestTimeout,
    Memory,
    Stopping,
    Aborted,
    /// Never was open: counted as rejected.
    Full,
    /// The same.
    PeerFull,
}

impl CloseReason {
    /// How many reasons there are.
    pub(crate) const COUNT: usize = CloseReason::PeerFull as usize + 1;

    /// The label in logs.
    pub(crate) fn as_str(self) -> &'static str {
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
            CloseReason::Stopping => "stopping",
            CloseReason::Aborted => "aborted",
            CloseReason::Full => "full",
            CloseReason::PeerFull => "peer_full",
        }
    }
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Requests are read and answered.
    Open,
    /// Nothing more is read. What was accepted is answered.
    Closing(CloseReason),
    /// The last line is queued, if the reason has one. What is queued is written.
    Leaving(CloseReason),
    /// Our side is shut down; what still comes is discarded, so that no reset destroys what the peer has not read yet.
    Lingering(CloseReason),
}

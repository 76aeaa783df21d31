//! How a connection ends: the phases of its life.

use crate::reason::CloseReason;

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

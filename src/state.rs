//! What a server as a whole is doing. A further state: a variant with its word here, told by `reactor::StopLevel::state`, and what it means
//! for those who send clients in `overview`.

use std::fmt;

/// What a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerState {
    /// It accepts and serves.
    Serving,
    /// The same, but it is to stop soon and should get no new clients: see
    /// [`ServerHandle::stop_after`](crate::ServerHandle::stop_after).
    Delaying,
    /// It stops gracefully: what has arrived is answered.
    Draining,
    /// It stops at once, or has ended.
    Stopping,
}

impl ServerState {
    /// The word for it in statistics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            ServerState::Serving => "serving",
            ServerState::Delaying => "delaying",
            ServerState::Draining => "draining",
            ServerState::Stopping => "stopping",
        }
    }
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

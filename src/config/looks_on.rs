//! Services that look on: which there are, and their limits. They tell of the server; their connections are no clients, and are on
//! accounts of their own (`reactor::aside`).

#[cfg(feature = "admin")]
use std::time::Duration;

#[cfg(feature = "admin")]
use super::{ServiceConfig, StopFrom};

/// Most connections of the admin address at a time, unless set otherwise: a few monitors and pages that are open.
#[cfg(feature = "admin")]
pub(super) const ADMIN_CONNECTIONS: usize = 64;
/// Most connections of the agent address at a time: each is over at once, and few balancers stand in front of a server.
#[cfg(feature = "admin")]
const AGENT_CONNECTIONS: usize = 16;
/// Longest head of a request to the admin address in bytes, its request line included: what HTTP servers take by default.
#[cfg(feature = "admin")]
pub(crate) const MAX_HEAD_BYTES: usize = 8 << 10;
/// How long the rest of a request may take, a peer may be silent, or not read an answer: nobody who is served by these needs longer, and
/// so long 64 who do not can keep others away.
#[cfg(feature = "admin")]
const TIMEOUT: Duration = Duration::from_secs(5);

/// A service that looks on.
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

    /// Its limits, where the admin address has so many connections.
    #[cfg(feature = "admin")]
    pub(super) fn service_config(self, admin_connections: usize) -> ServiceConfig {
        let (max_connections, max_line_bytes) = match self {
            LooksOn::Admin => (admin_connections, MAX_HEAD_BYTES),
            // Nothing is read of its peers.
            LooksOn::Agent => (AGENT_CONNECTIONS, 1),
        };
        ServiceConfig {
            max_connections,
            max_line_bytes,
            line_timeout: Some(TIMEOUT),
            idle_timeout: Some(TIMEOUT),
            write_timeout: Some(TIMEOUT),
            stop_from: StopFrom::None,
            ..ServiceConfig::default()
        }
    }
}

//! Programs that belong to one connection each until that closes: bytes flow both ways at any time (`reactor::joined`).
//!
//! A ready program is taken on the event loop, which does not block for it; where none is ready the connection waits, and the keeper
//! gives it the next one that it starts.

use std::ffi::OsString;
use std::sync::Arc;

use super::program::Program;
use super::shared::{End, Shared};
use super::{Programs, UNAVAILABLE};
use crate::address::Address;
use crate::service::{Connection, Join, Joining};

/// How programs and clients meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Any ready program takes the next request of anybody, one at a time, and gives one reply.
    #[default]
    Shared,
    /// A ready program belongs to one connection until that closes; bytes flow both ways at any time. No worker takes part: as many
    /// programs run as there are connections, so that [`Config::max_connections`](crate::Config::max_connections) limits them.
    Leased,
}

/// A connection that waits for a program.
#[derive(Debug)]
pub(super) struct Lease {
    joining: Joining,
    peer: Address,
    local: Address,
}

/// With the connection's end its program's begins.
struct Guard {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.end_lease(self.number, End::Surplus);
    }
}

impl Join for Programs {
    fn join(&self, connection: &Connection<'_>, joining: Joining) {
        let (peer, local) = (connection.peer_addr().clone(), connection.local_addr().clone());
        self.handle.shared.lease(Lease { joining, peer, local });
    }
}

impl Lease {
    /// Gives it its program.
    pub(super) fn give(self, shared: &Arc<Shared>, program: Program) {
        let number = program.card.number;
        let guard = Guard { shared: Arc::clone(shared), number };
        match program.into_ends() {
            (input, Some(output)) => self.joining.with(input, output, guard),
            // Not in this mode.
            (_, None) => self.refuse(),
        }
    }

    /// Whether its client is still there.
    pub(super) fn is_there(&self) -> bool {
        self.joining.is_there()
    }

    /// There is none for it.
    pub(super) fn refuse(self) {
        self.joining.refuse(UNAVAILABLE.as_bytes());
    }

    /// What its program may know of it, where it is started for nobody else.
    pub(super) fn environment(&self) -> impl Iterator<Item = (&'static str, OsString)> {
        let remote = ["REMOTE_ADDR", "REMOTE_PORT"].into_iter().zip(parts(&self.peer));
        remote.chain(["SERVER_ADDR", "SERVER_PORT"].into_iter().zip(parts(&self.local)))
    }
}

fn parts(address: &Address) -> [OsString; 2] {
    match address.tcp() {
        Some(address) => [address.ip().to_string().into(), address.port().to_string().into()],
        None => [address.to_string().into(), "0".into()],
    }
}

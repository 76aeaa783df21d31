//! What a service sees of a connection: who it is, and how to reach it from elsewhere.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::job::Origin;
use crate::mail::Post;
use crate::service::push::Pusher;
use crate::slots::ConnId;

/// The name of a connection within its server. None other ever has it, until four billion have come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(crate) ConnId);

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionId({self})")
    }
}

/// A number that grows with each connection, those of the admin address included. There may be gaps.
impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.generation.fmt(f)
    }
}

/// A connection, as its service sees it.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    origin: &'a Origin,
    pub(super) post: &'a Arc<dyn Post>,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(origin: &'a Origin, post: &'a Arc<dyn Post>) -> Self {
        Connection { origin, post }
    }

    /// Its name.
    pub fn id(&self) -> ConnectionId {
        ConnectionId(self.origin.id)
    }

    /// The address that the peer reached: the accepted socket's local address.
    pub fn local_addr(&self) -> &'a Address {
        &self.origin.local.address
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> &'a Address {
        &self.origin.peer
    }

    /// How long ago it was accepted.
    pub fn age(&self) -> Duration {
        Duration::from_nanos(self.post.now().saturating_sub(self.origin.opened_at))
    }

    /// A handle that pushes bytes to it, from any thread and for as long as it is kept.
    ///
    /// Once one was made of any connection of a listener, replies of all its connections are handed over one by one for as long as the
    /// server runs, so that what is pushed between two of them arrives there, which costs those who send many requests at a time. Only of
    /// the very first one, made by a request that came together with others, what is pushed may overtake the replies to these: make
    /// it in [`Service::open`](crate::Service::open).
    pub fn pusher(&self) -> Pusher {
        let Origin { id, slots, local, .. } = self.origin;
        local.set_has_pushers();
        Pusher::new(*id, local.service, Arc::clone(slots), Arc::clone(self.post))
    }
}

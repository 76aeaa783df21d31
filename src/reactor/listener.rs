//! Listening sockets: how they are bound, accepted from, and what happens when descriptors run out.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::Error;
use crate::job::Endpoint;

/// Longest listen backlog to ask for; the system cuts it to its own limit. mio's own `bind` asks for 128, which a burst
/// of connects overruns.
const LISTEN_BACKLOG: i32 = i32::MAX;
/// First pause after the system refused to accept, as without file descriptors; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Local addresses remembered before those without connections are looked for and let go; the next time it is twice
/// what was left, so that looking costs each new address the same.
const FIRST_ENDPOINTS: usize = 64;

/// Binds a listener whose accepted sockets have `TCP_NODELAY`, which Linux lets them inherit.
///
/// # Errors
/// [`Error::Bind`] with what the system said.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        Ok(TcpListener::from_std(socket.into()))
    };
    bind().map_err(|source| Error::Bind { address, source })
}

/// What a call of [`Listeners::accept`] came to.
pub(super) enum Accepted {
    Connection(TcpStream, SocketAddr, Arc<Endpoint>),
    /// The queue is empty.
    None,
    /// The system refuses for now; [`Listeners::retry_at`] is set.
    Refused(io::Error),
}

/// The listeners of a server.
#[derive(Debug)]
pub(super) struct Listeners {
    listeners: Vec<Listener>,
    endpoints: HashMap<SocketAddr, Arc<Endpoint>>,
    /// Endpoints at which those without connections are let go.
    prune_at: usize,
    pause: Duration,
    retry_at: Option<Instant>,
    /// Where the search for one that is ready begins.
    next: usize,
}

#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    /// Set when the listener is bound to one address, which then is that of each connection.
    endpoint: Option<Arc<Endpoint>>,
    /// An edge was seen, and the queue was not emptied since.
    ready: bool,
}

impl Listeners {
    pub(super) fn new(sockets: Vec<TcpListener>) -> Listeners {
        let listener = |socket: TcpListener| {
            let bound = socket.local_addr().ok().filter(|address| !address.ip().is_unspecified());
            Listener { socket, endpoint: bound.map(Endpoint::new), ready: true }
        };
        Listeners {
            listeners: sockets.into_iter().map(listener).collect(),
            endpoints: HashMap::new(),
            prune_at: FIRST_ENDPOINTS,
            pause: FIRST_PAUSE,
            retry_at: None,
            next: 0,
        }
    }

    /// The sockets, for registration.
    pub(super) fn sockets(&mut self) -> impl Iterator<Item = &mut TcpListener> {
        self.listeners.iter_mut().map(|listener| &mut listener.socket)
    }

    /// An edge came for the listener of this number.
    pub(super) fn set_ready(&mut self, number: usize) {
        if let Some(listener) = self.listeners.get_mut(number) {
            listener.ready = true;
        }
    }

    /// Any listener may have something, whatever the last edge or refusal said.
    pub(super) fn set_all_ready(&mut self) {
        self.retry_at = None;
        for listener in &mut self.listeners {
            listener.ready = true;
        }
    }

    /// Closes the listening sockets. Who is in their queues is reset by the system.
    pub(super) fn close(&mut self) {
        self.listeners.clear();
        self.retry_at = None;
    }

    /// Whether there may be something to accept now.
    pub(super) fn is_ready(&self) -> bool {
        self.retry_at.is_none() && self.listeners.iter().any(|listener| listener.ready)
    }

    /// When to try again after a refusal.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Lets accepting go on: the pause is over, or a descriptor was given back.
    pub(super) fn retry(&mut self) {
        self.retry_at = None;
    }

    /// Accepts one connection from a listener that is ready.
    pub(super) fn accept(&mut self, now: Instant) -> Accepted {
        // From the one behind the last, so that a busy one does not keep the others waiting.
        let count = self.listeners.len();
        let Some(number) =
            (0..count).map(|step| (self.next + step) % count).find(|number| self.listeners[*number].ready)
        else {
            return Accepted::None;
        };
        self.next = number + 1;
        loop {
            match self.listeners[number].socket.accept() {
                Ok((stream, peer)) => {
                    self.pause = FIRST_PAUSE;
                    match self.endpoint(number, &stream) {
                        Ok(local) => return Accepted::Connection(stream, peer, local),
                        // It broke between its arrival and now.
                        Err(_) => continue,
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => {
                        self.listeners[number].ready = false;
                        match self.listeners.iter().any(|listener| listener.ready) {
                            true => return self.accept(now),
                            false => return Accepted::None,
                        }
                    }
                    // The peer gave up while it was in the queue, or a signal came: the next one may be fine.
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset => {}
                    _ => {
                        self.retry_at = Some(now + self.pause);
                        self.pause = (self.pause * 2).min(MAX_PAUSE);
                        return Accepted::Refused(error);
                    }
                },
            }
        }
    }

    /// The local address of `stream`, shared with the other connections that came in through it.
    fn endpoint(&mut self, number: usize, stream: &TcpStream) -> io::Result<Arc<Endpoint>> {
        if let Some(endpoint) = &self.listeners[number].endpoint {
            return Ok(Arc::clone(endpoint));
        }
        let address = stream.local_addr()?;
        if let Some(endpoint) = self.endpoints.get(&address) {
            return Ok(Arc::clone(endpoint));
        }
        if self.endpoints.len() >= self.prune_at {
            self.endpoints.retain(|_, endpoint| Arc::strong_count(endpoint) > 1);
            self.prune_at = (self.endpoints.len() * 2).max(FIRST_ENDPOINTS);
        }
        let endpoint = Endpoint::new(address);
        self.endpoints.insert(address, Arc::clone(&endpoint));
        Ok(endpoint)
    }
}

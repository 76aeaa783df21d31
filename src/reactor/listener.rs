//! The listeners while the server runs: accepting, what happens when descriptors run out, and how the door is shut.
//!
//! The reactor's thread only. How they are bound is `bind`. A listener that is refused leaves the others alone, and its pause doubles
//! (the tests below).

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Registry;
use mio::event::Source;
use mio::net::TcpListener;
use socket2::SockRef;

use super::bind::Options;
use super::socket::{ListenSocket, SocketFile, Stream};
use crate::address::Address;
use crate::config::Settings;
use crate::handover::{self, Lent};
use crate::job::Endpoint;
use crate::service::ServiceId;

/// First pause after the system refused to accept, as without file descriptors; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Local addresses remembered before those without connections are looked for and let go; the next time it is twice
/// what was left, so that looking costs each new address the same.
const FIRST_ENDPOINTS: usize = 64;

/// Lets no new connection begin at `socket` any more, while those that have begun can still be accepted: a Unix socket loses
/// its path, TCP drops.
fn shut_door(socket: &ListenSocket) -> io::Result<()> {
    match socket {
        ListenSocket::Tcp(socket) => drop_new(socket),
        ListenSocket::Unix(_, file) => file.as_ref().map_or(Ok(()), SocketFile::remove),
    }
}

/// Drops whatever has the SYN flag, which no packet of an established connection has, as accepted sockets inherit this.
///
/// The filter belongs to the socket, so whoever else holds it has a closed door too. A peer that is turned away here tries
/// again after a second, and is refused then, as the socket is closed by that time.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn drop_new(socket: &TcpListener) -> io::Result<()> {
    use socket2::SockFilter;
    /// Load a byte; jump if any of these bits is set; return. (`linux/bpf_common.h`)
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_ANY: u16 = 0x45;
    const RETURN: u16 = 0x06;
    /// Where the flags stand in a TCP header, and the one that begins a connection.
    const FLAGS_OFFSET: u32 = 13;
    const SYN: u32 = 0x02;
    SockRef::from(socket).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_OFFSET),
        SockFilter::new(JUMP_IF_ANY, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// Nothing can be done here: who connects in the moment of the stop may be reset.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn drop_new(_socket: &TcpListener) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// What a call of [`Listeners::accept`] came to.
pub(super) enum Accepted {
    Connection(Stream, Address, Arc<Endpoint>),
    /// The queue is empty.
    None,
    /// The system refuses for now; [`Listeners::retry_at`] is set.
    Refused(io::Error),
}

/// A listening socket of a service.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: ListenSocket,
    pub(crate) service: ServiceId,
    /// The address that was asked for. `None`: the socket was given, and others have it too.
    pub(crate) asked: Option<Address>,
}

/// The listeners of a server.
#[derive(Debug)]
pub(super) struct Listeners {
    listeners: Vec<Listener>,
    endpoints: HashMap<(Address, ServiceId), Arc<Endpoint>>,
    /// Endpoints at which those without connections are let go.
    prune_at: usize,
    /// Where the search for one that is ready begins.
    next: usize,
}

#[derive(Debug)]
struct Listener {
    /// By which events name it.
    number: usize,
    socket: ListenSocket,
    service: ServiceId,
    /// Its service looks on, and is not stopped with the others.
    is_aside: bool,
    /// The address that was asked for. `None`: the socket was given, so its door is not ours to shut.
    asked: Option<Address>,
    /// What connections lack that began before the socket was given: they are in its queue, until that was seen empty.
    lacking: Option<Options>,
    /// Set when the listener is bound to one address, which then is that of each connection.
    endpoint: Option<Arc<Endpoint>>,
    /// An edge was seen, and the queue was not emptied since.
    ready: bool,
    /// The system refused: it is left alone until then.
    retry_at: Option<Instant>,
    /// How long it is left alone after the next refusal in a row.
    pause: Duration,
}

impl Listener {
    /// A service that looks on is that of the server whose listeners they are: who asks it wants to know of that one.
    fn may_accept(&self, lent: &Lent) -> bool {
        self.ready && self.retry_at.is_none() && !(self.is_aside && lent.is_set())
    }
}

impl Listeners {
    /// The listeners that were bound for these settings.
    pub(super) fn new(sockets: Vec<Bound>, settings: &Settings) -> Listeners {
        let options = Options::of(settings);
        let listener = |(number, Bound { socket, service, asked }): (usize, Bound)| {
            let lacks = asked.is_none() && matches!(socket, ListenSocket::Tcp(_));
            if lacks && let Err(error) = options.set(&SockRef::from(&socket)) {
                tracing::debug!(%error, "cannot set the options of a socket that was given");
            }
            let bound = socket.local_addr().ok();
            let bound = bound.filter(|address| address.ip().is_none_or(|ip| !ip.is_unspecified()));
            Listener {
                number,
                socket,
                service,
                is_aside: settings.services[usize::from(service)].looks_on.is_some(),
                asked,
                lacking: lacks.then_some(options),
                endpoint: bound.map(|address| Endpoint::new(address, service)),
                ready: true,
                retry_at: None,
                pause: FIRST_PAUSE,
            }
        };
        Listeners {
            listeners: sockets.into_iter().enumerate().map(listener).collect(),
            endpoints: HashMap::new(),
            prune_at: FIRST_ENDPOINTS,
            next: 0,
        }
    }

    /// What connections have that come from now on.
    pub(super) fn set_options(&mut self, settings: &Settings) {
        let options = Options::of(settings);
        for listener in &mut self.listeners {
            listener.lacking = listener.lacking.map(|_| options);
            if let ListenSocket::Tcp(socket) = &listener.socket
                && let Err(error) = options.set(&SockRef::from(socket))
            {
                tracing::warn!(%error, "cannot change the options of new connections");
            }
        }
    }

    /// The sockets, for registration.
    pub(super) fn sources(&mut self) -> impl Iterator<Item = &mut dyn Source> {
        self.listeners.iter_mut().map(|listener| listener.socket.source())
    }

    pub(super) fn len(&self) -> usize {
        self.listeners.len()
    }

    /// An edge came for the listener of this number.
    pub(super) fn set_ready(&mut self, number: usize) {
        // It may have been closed, and others not.
        if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.number == number) {
            listener.ready = true;
        }
    }

    /// Any listener may have something, whatever the last edge or refusal said.
    pub(super) fn set_all_ready(&mut self) {
        for listener in &mut self.listeners {
            (listener.ready, listener.retry_at) = (true, None);
        }
    }

    /// Those of services whose connections are clients: what a graceful stop is about.
    fn of_clients(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().filter(|listener| !listener.is_aside)
    }

    /// Lets no client connect any more where the door is ours. Connections that have begun can still be accepted.
    pub(super) fn shut_doors(&self) {
        for listener in self.of_clients().filter(|listener| listener.asked.is_some()) {
            if let Err(error) = shut_door(&listener.socket) {
                tracing::debug!(%error, "cannot shut the door before the last accept");
            }
        }
    }

    /// The open sockets once more, for another server, with the names of their services.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn duplicates(
        &self,
        names: impl Fn(ServiceId) -> String,
    ) -> io::Result<Vec<handover::Listener>> {
        let duplicate = |listener: &Listener| {
            let socket = listener.socket.as_fd().try_clone_to_owned()?;
            let one = handover::Listener::new(names(listener.service), listener.asked.clone(), socket);
            let file = match &listener.socket {
                ListenSocket::Unix(_, file) => file.as_ref().map(SocketFile::id),
                ListenSocket::Tcp(_) => None,
            };
            Ok(file.into_iter().fold(one, |one, (device, number)| one.with_file(device, number)))
        };
        self.listeners.iter().map(duplicate).collect()
    }

    /// Whether others have some of the sockets, too.
    pub(super) fn has_given(&self) -> bool {
        self.listeners.iter().any(|listener| listener.asked.is_none())
    }

    /// Leaves the sockets to those who have them too: `all`, or those that were given, which stand behind the others. As they stay
    /// open elsewhere, closing ours would not end the registration.
    pub(super) fn leave(&mut self, all: bool, registry: &Registry) {
        let kept = if all { 0 } else { self.listeners.iter().filter(|one| one.asked.is_some()).count() };
        for mut listener in self.listeners.drain(kept..) {
            if let Err(error) = registry.deregister(listener.socket.source()) {
                tracing::debug!(%error, "cannot forget a listener");
            }
        }
    }

    /// Closes the listening sockets for clients. Who is in their queues is reset by the system.
    pub(super) fn close(&mut self) {
        self.listeners.retain(|listener| listener.is_aside);
    }

    /// Whether the listening sockets for clients are closed.
    pub(super) fn is_closed(&self) -> bool {
        self.of_clients().next().is_none()
    }

    /// Whether there may be something to accept now.
    pub(super) fn is_ready(&self, lent: &Lent) -> bool {
        self.listeners.iter().any(|listener| listener.may_accept(lent))
    }

    /// Whether all queues of clients were seen empty.
    pub(super) fn is_drained(&self) -> bool {
        self.of_clients().all(|listener| !listener.ready)
    }

    /// When to try again after a refusal.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.listeners.iter().filter_map(|listener| listener.retry_at).min()
    }

    /// Lets accepting go on where the pause is over.
    pub(super) fn retry_due(&mut self, now: Instant) {
        for listener in &mut self.listeners {
            listener.retry_at = listener.retry_at.filter(|at| *at > now);
        }
    }

    /// Lets accepting go on at once: a descriptor was given back.
    pub(super) fn retry(&mut self) {
        for listener in &mut self.listeners {
            listener.retry_at = None;
        }
    }

    /// Accepts one connection from a listener that is ready.
    pub(super) fn accept(&mut self, now: Instant, lent: &Lent) -> Accepted {
        // From the one behind the last, so that a busy one does not keep the others waiting.
        let count = self.listeners.len();
        let may = |number: &usize| self.listeners[*number].may_accept(lent);
        let Some(number) = (0..count).map(|step| (self.next + step) % count).find(may) else {
            return Accepted::None;
        };
        self.next = number + 1;
        loop {
            let listener = &mut self.listeners[number];
            match listener.socket.accept() {
                Ok((stream, peer)) => {
                    listener.pause = FIRST_PAUSE;
                    if let Some(options) = listener.lacking {
                        // Refused only for one that has broken.
                        drop(options.set(&SockRef::from(&stream)));
                    }
                    match self.endpoint(number, &stream) {
                        Ok(local) => return Accepted::Connection(stream, peer, local),
                        // It broke between its arrival and now.
                        Err(_) => continue,
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => {
                        (listener.ready, listener.lacking) = (false, None);
                        return self.accept(now, lent);
                    }
                    // The peer gave up while it was in the queue, or a signal came: the next one may be fine.
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset => {}
                    _ => {
                        listener.retry_at = Some(now + listener.pause);
                        listener.pause = (listener.pause * 2).min(MAX_PAUSE);
                        return Accepted::Refused(error);
                    }
                },
            }
        }
    }

    /// The local address of `stream`, shared with the other connections that came in through it.
    fn endpoint(&mut self, number: usize, stream: &Stream) -> io::Result<Arc<Endpoint>> {
        let Listener { endpoint, service, .. } = &self.listeners[number];
        if let Some(endpoint) = endpoint {
            return Ok(Arc::clone(endpoint));
        }
        let service = *service;
        Ok(self.endpoint_at(stream.local_addr()?, service))
    }

    /// The same where clients reached the service at `address`, which may be that of a proxy.
    pub(super) fn endpoint_at(&mut self, address: Address, service: ServiceId) -> Arc<Endpoint> {
        let key = (address, service);
        if let Some(endpoint) = self.endpoints.get(&key) {
            return Arc::clone(endpoint);
        }
        if self.endpoints.len() >= self.prune_at {
            self.endpoints.retain(|_, endpoint| Arc::strong_count(endpoint) > 1);
            self.prune_at = (self.endpoints.len() * 2).max(FIRST_ENDPOINTS);
        }
        let endpoint = Endpoint::new(key.0.clone(), key.1);
        self.endpoints.insert(key, Arc::clone(&endpoint));
        endpoint
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use super::*;
    use crate::config::Config;

    #[test]
    fn a_listener_that_is_refused_leaves_the_others_alone() {
        let sockets = [(); 2].map(|()| {
            ListenSocket::open(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()).unwrap()
        });
        let healthy = sockets[1].local_addr().unwrap().tcp().unwrap();
        // Accepting from it fails from now on.
        SockRef::from(&sockets[0]).shutdown(Shutdown::Read).unwrap();
        let client = std::net::TcpStream::connect(healthy).unwrap();
        let asked = Some(healthy.into());
        let bound = |socket| Bound { socket, service: 0, asked: asked.clone() };
        let sockets = sockets.into_iter().map(bound).collect();
        let settings = Config { send_buffer_bytes: None, ..Config::default() }.check().unwrap();
        let (mut listeners, now) = (Listeners::new(sockets, &settings), Instant::now());
        assert!(matches!(listeners.accept(now, &Lent::default()), Accepted::Refused(_)));
        assert_eq!(listeners.retry_at(), Some(now + FIRST_PAUSE));
        let Accepted::Connection(_, peer, _) = listeners.accept(now, &Lent::default()) else {
            panic!("not accepted")
        };
        assert_eq!(peer, client.local_addr().unwrap().into());
        assert!(matches!(listeners.accept(now, &Lent::default()), Accepted::None));
        listeners.retry_due(now + FIRST_PAUSE);
        assert!(matches!(listeners.accept(now, &Lent::default()), Accepted::Refused(_)));
        assert_eq!(listeners.retry_at(), Some(now + 2 * FIRST_PAUSE));
    }

    /// A listener for a socket that somebody else has, too.
    fn given(socket: &std::net::TcpListener) -> Listeners {
        let socket = ListenSocket::open(socket.try_clone().unwrap().into()).unwrap();
        let settings = Config { send_buffer_bytes: Some(32 << 10), ..Config::default() }.check().unwrap();
        Listeners::new(vec![Bound { socket, service: 0, asked: None }], &settings)
    }

    #[test]
    fn who_was_in_the_queue_before_a_socket_was_given_lacks_nothing() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        let early = connect();
        let mut listeners = given(&socket);
        let late = connect();
        for _ in 0..2 {
            let Accepted::Connection(stream, ..) = listeners.accept(Instant::now(), &Lent::default()) else {
                panic!()
            };
            let known = SockRef::from(&stream);
            assert!(known.tcp_nodelay().unwrap() && known.keepalive().unwrap());
            assert_eq!(known.send_buffer_size().unwrap(), 64 << 10, "the system reckons with twice as much");
        }
        assert!(matches!(listeners.accept(Instant::now(), &Lent::default()), Accepted::None));
        assert!(listeners.listeners[0].lacking.is_none(), "from here on they inherit it");
        drop((early, late));
    }

    #[test]
    fn what_was_left_to_others_tells_of_nothing_any_more() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut poll = mio::Poll::new().unwrap();
        let mut listeners = given(&socket);
        for source in listeners.sources() {
            poll.registry().register(source, mio::Token(0), mio::Interest::READABLE).unwrap();
        }
        listeners.leave(false, poll.registry());
        assert!(listeners.is_closed());
        let _peer = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        let mut events = mio::Events::with_capacity(1);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
    }
}

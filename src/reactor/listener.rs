//! Listening sockets: how they are bound, accepted from, and what happens when descriptors run out.

use std::collections::HashMap;
use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::socket::{ListenSocket, SocketFile, Stream};
use crate::address::Address;
use crate::config::Settings;
use crate::error::Error;
use crate::job::Endpoint;
use crate::service::ServiceId;

/// Longest listen backlog to ask for; the system cuts it to its own limit. mio's own `bind` asks for 128, which a burst
/// of connects overruns.
const LISTEN_BACKLOG: i32 = i32::MAX;
/// How often another port is tried where the one that the system picked for one address is taken at another.
const SAME_PORT_TRIES: usize = 16;
/// First pause after the system refused to accept, as without file descriptors; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Local addresses remembered before those without connections are looked for and let go; the next time it is twice
/// what was left, so that looking costs each new address the same.
const FIRST_ENDPOINTS: usize = 64;

/// How long a connection is silent before the system asks whether its peer is still there, how often it asks again, and
/// after how many questions without an answer the connection is over: two minutes after the peer vanished. An idle peer
/// that lives pays for it with a packet a minute.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(6);

/// Binds a listener to each address. Accepted sockets have `TCP_NODELAY` and `SO_KEEPALIVE`, which Linux lets them inherit.
///
/// `[::]` serves both families, but IPv6 only where an IPv4 listener of the same port stands beside it. Port 0 is the same
/// free port at all addresses that ask for it; where none is, as at the same address twice, a port each.
///
/// # Errors
/// [`Error::Bind`] with the address and what the system said.
pub(crate) fn bind(settings: &Settings) -> Result<Vec<ListenSocket>, Error> {
    let mut same_port_tries = SAME_PORT_TRIES;
    let sockets = loop {
        match bind_all(settings, same_port_tries > 0) {
            Err(Error::Bind { address, source })
                if same_port_tries > 0
                    && source.kind() == ErrorKind::AddrInUse
                    && address.tcp().is_some_and(|address| address.port() == 0) =>
            {
                same_port_tries -= 1;
            }
            bound => break bound?,
        }
    };
    for address in settings.listen.iter().filter_map(Address::tcp) {
        if address.is_ipv6() && address.ip().is_unspecified() {
            let only_v6 = has_ipv4_beside(address, &settings.listen);
            let families = if only_v6 { "IPv6" } else { "IPv4 and IPv6" };
            tracing::info!(%address, families, "listening on every address");
        }
    }
    Ok(sockets)
}

/// The same. `same_port`: port 0 is what the system picks at the first address that asks for it, whether that is taken at
/// the others or not; else it picks one for each.
fn bind_all(settings: &Settings, same_port: bool) -> Result<Vec<ListenSocket>, Error> {
    let addresses = &settings.listen;
    let mut picked = 0;
    let mut tcp = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            // Said either way: the system's default is a setting of the machine.
            socket.set_only_v6(has_ipv4_beside(address, addresses))?;
        }
        socket.set_reuse_address(true)?;
        if settings.reuse_port {
            socket.set_reuse_port(true)?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&KEEPALIVE)?;
        if let Some(bytes) = settings.send_buffer_bytes {
            socket.set_send_buffer_size(bytes)?;
        }
        socket.set_nonblocking(true)?;
        let mut bound = address;
        if address.port() == 0 {
            bound.set_port(picked);
        }
        socket.bind(&bound.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        let listener = TcpListener::from_std(socket.into());
        if same_port && address.port() == 0 {
            picked = listener.local_addr()?.port();
        }
        Ok(ListenSocket::Tcp(listener))
    };
    let unix = |path: &PathBuf| {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let address = SockAddr::unix(path)?;
        if let Err(error) = socket.bind(&address) {
            if error.kind() != ErrorKind::AddrInUse || !is_left_behind(path, &address)? {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        // From here on the file is removed if something fails.
        let file = SocketFile::at(path)?;
        let socket = ListenSocket::Unix(UnixListener::from_std(OwnedFd::from(socket).into()), file);
        // Nobody can connect before it listens.
        std::fs::set_permissions(path, Permissions::from_mode(settings.unix_mode))?;
        SockRef::from(&socket).listen(LISTEN_BACKLOG)?;
        Ok(socket)
    };
    let mut bind = |address: &Address| {
        let bound = match address {
            Address::Tcp(address) => tcp(*address),
            Address::Unix(path) => unix(path),
        };
        bound.map_err(|source| Error::Bind { address: address.clone(), source })
    };
    addresses.iter().map(&mut bind).collect()
}

/// Whether the file at `path` is a socket that nobody listens on any more.
fn is_left_behind(path: &Path, address: &SockAddr) -> io::Result<bool> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    let refused = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
    Ok(Socket::new(Domain::UNIX, Type::STREAM, None)?.connect(address).is_err_and(refused))
}

/// Whether an IPv4 listener of the same port is asked for besides the IPv6 one at `address`, which then leaves IPv4 to it.
fn has_ipv4_beside(address: SocketAddr, addresses: &[Address]) -> bool {
    let mapped = address.ip().to_canonical().is_ipv4();
    let mut others = addresses.iter().filter_map(Address::tcp);
    !mapped && others.any(|other| other.is_ipv4() && other.port() == address.port())
}

/// Lets no new connection begin at `socket` any more, while those that have begun can still be accepted: a Unix socket loses
/// its path, TCP drops.
fn shut_door(socket: &ListenSocket) -> io::Result<()> {
    match socket {
        ListenSocket::Tcp(socket) => drop_new(socket),
        ListenSocket::Unix(_, file) => file.remove(),
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
    socket: ListenSocket,
    service: ServiceId,
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
    fn may_accept(&self) -> bool {
        self.ready && self.retry_at.is_none()
    }
}

impl Listeners {
    /// Listeners of services.
    pub(super) fn new(sockets: Vec<(ListenSocket, ServiceId)>) -> Listeners {
        let listener = |(socket, service): (ListenSocket, ServiceId)| {
            let bound = socket.local_addr().ok();
            let bound = bound.filter(|address| address.ip().is_none_or(|ip| !ip.is_unspecified()));
            Listener {
                socket,
                service,
                endpoint: bound.map(|address| Endpoint::new(address, service)),
                ready: true,
                retry_at: None,
                pause: FIRST_PAUSE,
            }
        };
        Listeners {
            listeners: sockets.into_iter().map(listener).collect(),
            endpoints: HashMap::new(),
            prune_at: FIRST_ENDPOINTS,
            next: 0,
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
        if let Some(listener) = self.listeners.get_mut(number) {
            listener.ready = true;
        }
    }

    /// Any listener may have something, whatever the last edge or refusal said.
    pub(super) fn set_all_ready(&mut self) {
        for listener in &mut self.listeners {
            (listener.ready, listener.retry_at) = (true, None);
        }
    }

    /// Lets no connection begin any more. Those that have begun can still be accepted.
    pub(super) fn shut_doors(&self) {
        for listener in &self.listeners {
            if let Err(error) = shut_door(&listener.socket) {
                tracing::debug!(%error, "cannot shut the door before the last accept");
            }
        }
    }

    /// Closes the listening sockets. Who is in their queues is reset by the system.
    pub(super) fn close(&mut self) {
        self.listeners.clear();
    }

    /// Whether the listening sockets are closed.
    pub(super) fn is_closed(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Whether there may be something to accept now.
    pub(super) fn is_ready(&self) -> bool {
        self.listeners.iter().any(Listener::may_accept)
    }

    /// Whether all queues were seen empty.
    pub(super) fn is_drained(&self) -> bool {
        self.listeners.iter().all(|listener| !listener.ready)
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
    pub(super) fn accept(&mut self, now: Instant) -> Accepted {
        // From the one behind the last, so that a busy one does not keep the others waiting.
        let count = self.listeners.len();
        let may = |number: &usize| self.listeners[*number].may_accept();
        let Some(number) = (0..count).map(|step| (self.next + step) % count).find(may) else {
            return Accepted::None;
        };
        self.next = number + 1;
        loop {
            let listener = &mut self.listeners[number];
            match listener.socket.accept() {
                Ok((stream, peer)) => {
                    listener.pause = FIRST_PAUSE;
                    match self.endpoint(number, &stream) {
                        Ok(local) => return Accepted::Connection(stream, peer, local),
                        // It broke between its arrival and now.
                        Err(_) => continue,
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => {
                        listener.ready = false;
                        return self.accept(now);
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
        let key = (stream.local_addr()?, *service);
        if let Some(endpoint) = self.endpoints.get(&key) {
            return Ok(Arc::clone(endpoint));
        }
        if self.endpoints.len() >= self.prune_at {
            self.endpoints.retain(|_, endpoint| Arc::strong_count(endpoint) > 1);
            self.prune_at = (self.endpoints.len() * 2).max(FIRST_ENDPOINTS);
        }
        let endpoint = Endpoint::new(key.0.clone(), key.1);
        self.endpoints.insert(key, Arc::clone(&endpoint));
        Ok(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Shutdown};

    use super::*;
    use crate::config::Config;

    #[test]
    fn a_listener_that_is_refused_leaves_the_others_alone() {
        let address = Address::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let config = Config { listen: vec![address.clone(), address], ..Config::default() };
        let sockets = bind(&config.check().unwrap()).unwrap();
        let healthy = sockets[1].local_addr().unwrap();
        // Accepting from it fails from now on.
        SockRef::from(&sockets[0]).shutdown(Shutdown::Read).unwrap();
        let client = std::net::TcpStream::connect(healthy).unwrap();
        let sockets = sockets.into_iter().map(|socket| (socket, 0)).collect();
        let (mut listeners, now) = (Listeners::new(sockets), Instant::now());
        assert!(matches!(listeners.accept(now), Accepted::Refused(_)));
        assert_eq!(listeners.retry_at(), Some(now + FIRST_PAUSE));
        let Accepted::Connection(_, peer, _) = listeners.accept(now) else { panic!("not accepted") };
        assert_eq!(peer, client.local_addr().unwrap().into());
        assert!(matches!(listeners.accept(now), Accepted::None));
        listeners.retry_due(now + FIRST_PAUSE);
        assert!(matches!(listeners.accept(now), Accepted::Refused(_)));
        assert_eq!(listeners.retry_at(), Some(now + 2 * FIRST_PAUSE));
    }

    #[test]
    fn port_0_is_one_port_for_all_and_at_the_same_address_one_each() {
        let ports = |addresses: &[&str]| -> Vec<u16> {
            let listen = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let settings = Config { listen, ..Config::default() }.check().unwrap();
            bind(&settings).unwrap().iter().map(|socket| socket.local_addr().unwrap().port()).collect()
        };
        let same = ports(&["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"]);
        assert!(same[0] > 0 && same == [same[0]; 3], "{same:?}");
        let each = ports(&["127.0.0.1:0", "127.0.0.1:0"]);
        assert!(each[0] > 0 && each[1] > 0 && each[0] != each[1], "{each:?}");
    }

    #[test]
    fn only_ipv6_where_ipv4_has_a_listener_of_the_same_port() {
        let beside = |address: &str, others: &[&str]| {
            let others: Vec<Address> = others.iter().map(|other| other.parse().unwrap()).collect();
            has_ipv4_beside(address.parse().unwrap(), &others)
        };
        assert!(beside("[::]:80", &["0.0.0.0:80", "[::]:80"]));
        assert!(!beside("[::]:80", &["[::]:80"]) && !beside("[::]:80", &["0.0.0.0:81", "[::]:80"]));
        assert!(!beside("[::ffff:10.0.0.1]:80", &["0.0.0.0:80"]));
    }
}

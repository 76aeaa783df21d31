//! How listening sockets are bound: options, the one port for all, both families at `[::]`, and what is left of a Unix socket.
//!
//! At the start, before there is a reactor's thread. What was inherited from another server is not bound again.

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use mio::net::{TcpListener, UnixListener};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::socket::{ListenSocket, SocketFile};
use crate::address::Address;
use crate::config::Settings;
use crate::error::Error;
use crate::handover::{Found, Inherited, Lent};
use crate::service::ServiceId;

/// Longest listen backlog to ask for; the system cuts it to its own limit. mio's own `bind` asks for 128, which a burst
/// of connects overruns.
const LISTEN_BACKLOG: i32 = i32::MAX;
/// How often another port is tried where the one that the system picked for one address is taken at another.
const SAME_PORT_TRIES: usize = 16;
/// Mode of the Unix socket of a service that looks on: what it tells is the server's user's business.
const ASIDE_MODE: u32 = 0o600;

/// How long a connection is silent before the system asks whether its peer is still there, how often it asks again, and
/// after how many questions without an answer the connection is over: two minutes after the peer vanished. An idle peer
/// that lives pays for it with a packet a minute.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(6);

/// What TCP connections have. Linux lets them inherit it from their listener, as that is when they begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    send_buffer_bytes: Option<usize>,
}

impl Options {
    pub(super) fn of(settings: &Settings) -> Options {
        Options { send_buffer_bytes: settings.send_buffer_bytes }
    }

    pub(super) fn set(self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&KEEPALIVE)?;
        self.send_buffer_bytes.map_or(Ok(()), |bytes| socket.set_send_buffer_size(bytes))
    }
}

/// Binds a listener to each address, or takes the one that was inherited for it: `names` are those of the services.
///
/// `[::]` serves both families, but IPv6 only where an IPv4 listener of the same port stands beside it. Port 0 is the same
/// free port at all addresses that ask for it; where none is, as at the same address twice, a port each.
///
/// # Errors
/// [`Error::Bind`] with the address and what the system said.
pub(crate) fn bind(
    settings: &Settings,
    names: &[String],
    inherited: &mut Inherited,
    lent: &Lent,
) -> Result<Vec<ListenSocket>, Error> {
    let mut same_port_tries = SAME_PORT_TRIES;
    let sockets = loop {
        inherited.begin();
        match bind_all(settings, names, inherited, lent, same_port_tries > 0) {
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
fn bind_all(
    settings: &Settings,
    names: &[String],
    inherited: &mut Inherited,
    lent: &Lent,
    same_port: bool,
) -> Result<Vec<ListenSocket>, Error> {
    let addresses = &settings.listen;
    let options = Options::of(settings);
    let mut picked = 0;
    let mut tcp = |address: SocketAddr, found: Option<Found>, is_aside: bool| {
        let same_port = same_port && !is_aside;
        if let Some(found) = found {
            options.set(&SockRef::from(&found.socket))?;
            let socket = ListenSocket::inherited(found, lent)?;
            if same_port && address.port() == 0 {
                picked = socket.local_addr()?.port();
            }
            return Ok(socket);
        }
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            // Said either way: the system's default is a setting of the machine.
            socket.set_only_v6(has_ipv4_beside(address, addresses))?;
        }
        socket.set_reuse_address(true)?;
        if settings.reuse_port && !is_aside {
            socket.set_reuse_port(true)?;
        }
        options.set(&SockRef::from(&socket))?;
        socket.set_nonblocking(true)?;
        let mut bound = address;
        if same_port && address.port() == 0 {
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
    let unix = |path: &Path, found: Option<Found>, mode: u32| {
        let mode = || Permissions::from_mode(mode);
        let says_which = found.as_ref().is_some_and(|found| found.file.is_some());
        match found.map(|found| ListenSocket::inherited(found, lent)).transpose()? {
            Some(socket @ ListenSocket::Unix(_, Some(_))) => {
                std::fs::set_permissions(path, mode())?;
                return Ok(socket);
            }
            // Its file is not ours to care for.
            Some(socket) if !says_which && path.exists() => return Ok(socket),
            // Whose file has gone is one that nobody can reach.
            _ => {}
        }
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
        let file = SocketFile::at(path, lent, false)?;
        let socket = ListenSocket::Unix(UnixListener::from_std(OwnedFd::from(socket).into()), Some(file));
        // Nobody can connect before it listens.
        std::fs::set_permissions(path, mode())?;
        SockRef::from(&socket).listen(LISTEN_BACKLOG)?;
        Ok(socket)
    };
    let mut bind = |(address, service): (&Address, &ServiceId)| {
        let is_aside = settings.services[usize::from(*service)].looks_on.is_some();
        let found = inherited.find(&names[usize::from(*service)], address, names).transpose();
        let bound = found.and_then(|found| match address {
            Address::Tcp(address) => tcp(*address, found, is_aside),
            Address::Unix(path) => unix(path, found, if is_aside { ASIDE_MODE } else { settings.unix_mode }),
            Address::Unknown => Err(ErrorKind::InvalidInput.into()),
        });
        bound.map_err(|source| Error::Bind { address: address.clone(), source })
    };
    addresses.iter().zip(&settings.listen_services).map(&mut bind).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn bound(config: Config) -> Vec<ListenSocket> {
        let settings = config.check().unwrap();
        bind(&settings, &["x".to_owned()], &mut Inherited::new(Vec::new()), &Lent::default()).unwrap()
    }

    #[test]
    fn port_0_is_one_port_for_all_and_at_the_same_address_one_each() {
        let ports = |addresses: &[&str]| -> Vec<u16> {
            let listen = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let sockets = bound(Config { listen, ..Config::default() });
            sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect()
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

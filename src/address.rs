//! Where a listener stands and a connection comes from: TCP or a Unix socket.

use std::fmt;
use std::io;
use std::net::{AddrParseError, IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// What a Unix socket's address begins with when it is written.
const UNIX: &str = "unix:";

/// An address of a listener or of one side of a connection.
///
/// Written as `127.0.0.1:8000`, `[::1]:8000` or `unix:/run/tidemill.sock`, and parsed from the same: no name of a host is looked up.
///
/// # Examples
/// ```
/// use tidemill::Address;
///
/// let tcp: Address = "127.0.0.1:8000".parse()?;
/// assert_eq!(tcp.tcp().map(|address| address.port()), Some(8000));
/// let unix: Address = "unix:/run/tidemill.sock".parse()?;
/// assert_eq!(unix.to_string(), "unix:/run/tidemill.sock");
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket. Empty for a peer, which has no path of its own.
    Unix(PathBuf),
    /// That of a peer whose proxy names nobody ([`Config::proxy_from`](crate::Config::proxy_from)). Written as `unknown`, and never
    /// parsed.
    Unknown,
}

impl Address {
    /// The IP address and port, if it has one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) | Address::Unknown => None,
        }
    }

    /// The IP address, if it has one. An IPv4 address mapped into IPv6 is given as the IPv4 address.
    pub fn ip(&self) -> Option<IpAddr> {
        self.tcp().map(|address| address.ip().to_canonical())
    }

    /// The port; 0 where it has none.
    pub fn port(&self) -> u16 {
        self.tcp().map_or(0, |address| address.port())
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Tcp(address)
    }
}

impl From<([u8; 4], u16)> for Address {
    fn from(address: ([u8; 4], u16)) -> Self {
        Address::Tcp(address.into())
    }
}

impl FromStr for Address {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix(UNIX) {
            Some(path) => Ok(Address::Unix(path.into())),
            None => text.parse().map(Address::Tcp),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "{UNIX}{}", path.display()),
            Address::Unknown => f.write_str("unknown"),
        }
    }
}

/// So that a client of this process can connect to it.
impl ToSocketAddrs for Address {
    type Iter = std::option::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        match self {
            Address::Tcp(address) => address.to_socket_addrs(),
            Address::Unix(_) | Address::Unknown => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "it has no IP address"))
            }
        }
    }
}

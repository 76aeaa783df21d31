//! A peer's address in 16 bytes; most are IPv4, and there are many connections.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;

use crate::address::Address;

#[derive(Debug)]
pub(super) enum Peer {
    V4(Ipv4Addr, u16),
    V6(Box<SocketAddrV6>),
    /// The other side of a Unix socket has no name.
    Unix,
    /// Its proxy named nobody.
    Unknown,
}

impl Peer {
    pub(super) fn new(address: &Address) -> Peer {
        let address = match address {
            Address::Tcp(address) => address,
            Address::Unix(_) => return Peer::Unix,
            Address::Unknown => return Peer::Unknown,
        };
        match (address.ip().to_canonical(), address) {
            (IpAddr::V4(ip), _) => Peer::V4(ip, address.port()),
            (IpAddr::V6(ip), SocketAddr::V4(_)) => {
                Peer::V6(Box::new(SocketAddrV6::new(ip, address.port(), 0, 0)))
            }
            (IpAddr::V6(_), SocketAddr::V6(address)) => Peer::V6(Box::new(*address)),
        }
    }

    pub(super) fn address(&self) -> Address {
        match self {
            Peer::V4(ip, port) => Address::Tcp(SocketAddr::from((*ip, *port))),
            Peer::V6(address) => Address::Tcp(SocketAddr::V6(**address)),
            Peer::Unix => Address::Unix(PathBuf::new()),
            Peer::Unknown => Address::Unknown,
        }
    }
}

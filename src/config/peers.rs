//! Lists of peers: [`StopFrom`], who may stop the service, and [`ProxyFrom`], who speaks for others.
//!
//! An IPv4 address mapped into IPv6 counts as its IPv4 address, on both sides. Held by the test below.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::address::Address;

/// Which peers may stop the service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopFrom {
    /// Every peer.
    Any,
    /// No peer: only signals and [`ServerHandle::stop`](crate::ServerHandle::stop).
    None,
    /// Peers on this machine that came through the loopback interface.
    Loopback,
    /// Peers in one of these networks. An IPv4 address mapped into IPv6 counts as its IPv4 address, a peer's as well as
    /// a network's.
    Networks(Vec<IpNet>),
}

impl StopFrom {
    /// Whether a peer at `address` may stop the service. The peer of a Unix socket counts as one at 127.0.0.1; one whose proxy
    /// names nobody may only where all may.
    pub fn allows(&self, address: &Address) -> bool {
        let ip = match address {
            Address::Tcp(_) => address.ip(),
            Address::Unix(_) => Some(Ipv4Addr::LOCALHOST.into()),
            Address::Unknown => None,
        };
        match self {
            StopFrom::Any => true,
            StopFrom::None => false,
            StopFrom::Loopback => ip.is_some_and(|ip| ip.is_loopback()),
            StopFrom::Networks(networks) => ip.is_some_and(|ip| are_around(networks, ip)),
        }
    }
}

/// Which peers are proxies. None of them by default.
///
/// # Examples
/// ```
/// use tidemill::{Address, ProxyFrom};
///
/// let mut proxies = ProxyFrom::default();
/// proxies.networks.push("10.0.0.0/8".parse().expect("it is a network"));
/// assert!(proxies.includes(&Address::from(([10, 1, 2, 3], 80))));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxyFrom {
    /// Those in one of these networks. An IPv4 address mapped into IPv6 counts as its IPv4 address.
    pub networks: Vec<IpNet>,
    /// Those that come through a Unix socket.
    pub unix: bool,
}

impl ProxyFrom {
    /// Whether a peer at `address` is a proxy.
    pub fn includes(&self, address: &Address) -> bool {
        match address {
            Address::Tcp(_) => address.ip().is_some_and(|ip| are_around(&self.networks, ip)),
            Address::Unix(_) => self.unix,
            Address::Unknown => false,
        }
    }
}

/// Whether `ip` is in one of the networks.
fn are_around(networks: &[IpNet], ip: IpAddr) -> bool {
    networks.iter().any(|network| unmapped(network).contains(&ip))
}

/// The network of the IPv4 addresses, if `network` is one of such addresses mapped into IPv6; else as it is.
fn unmapped(network: &IpNet) -> IpNet {
    let mapped = |network: &Ipv6Net| {
        let prefix = network.prefix_len().checked_sub(96)?;
        Ipv4Net::new(network.network().to_ipv4_mapped()?, prefix).ok()
    };
    match network {
        IpNet::V6(network) => mapped(network).map_or(IpNet::V6(*network), IpNet::V4),
        IpNet::V4(_) => *network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_count_as_their_ipv4_address() {
        let mapped: Address = "[::ffff:10.1.2.3]:1".parse().unwrap();
        assert!(StopFrom::Networks(vec!["10.0.0.0/8".parse().unwrap()]).allows(&mapped));
        assert!(!StopFrom::Networks(vec!["10.2.0.0/16".parse().unwrap()]).allows(&mapped));
        assert!(StopFrom::Loopback.allows(&"[::ffff:127.0.0.1]:1".parse().unwrap()));
        assert!(StopFrom::Loopback.allows(&"unix:".parse().unwrap()));
        assert!(!StopFrom::Loopback.allows(&mapped));
        let everywhere = StopFrom::Networks(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
        assert!(StopFrom::Any.allows(&Address::Unknown));
        assert!(!StopFrom::Loopback.allows(&Address::Unknown) && !everywhere.allows(&Address::Unknown));
        assert!(!StopFrom::None.allows(&"127.0.0.1:1".parse().unwrap()));
        for (network, allows) in [
            ("::ffff:10.1.2.3/128", true),
            ("::ffff:10.0.0.0/104", true),
            ("::ffff:0.0.0.0/96", true),
            ("::ffff:10.0.0.0/120", false),
            ("::/0", false),
            ("::10.1.2.3/128", false),
        ] {
            let list = StopFrom::Networks(vec![network.parse().unwrap()]);
            assert_eq!(list.allows(&mapped), allows, "{network}");
        }
    }
}

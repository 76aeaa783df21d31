//! How many connections each address has: one IPv4 address, or one IPv6 network of 64 bits, which a single host may have.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::address::Address;

/// The first 64 bits of an IPv6 address.
const NETWORK: u128 = !0 << 64;

/// Connections by address. Empty, and without cost, where there is no limit.
#[derive(Debug, Default)]
pub(super) struct Peers {
    limit: Option<usize>,
    counts: HashMap<u128, usize>,
}

impl Peers {
    pub(super) fn new(limit: Option<usize>) -> Peers {
        Peers { limit, counts: HashMap::new() }
    }

    /// Counts a connection from `peer`. `false`: it has as many as it may, and this one is not counted.
    pub(super) fn enter(&mut self, peer: &Address) -> bool {
        let (Some(limit), Some(key)) = (self.limit, key(peer)) else { return true };
        let count = self.counts.entry(key).or_default();
        let enters = *count < limit;
        *count += usize::from(enters);
        enters
    }

    /// Counts a connection from `peer` that is here already, however many there may be.
    pub(super) fn count(&mut self, peer: &Address) {
        if let (Some(_), Some(key)) = (self.limit, key(peer)) {
            *self.counts.entry(key).or_default() += 1;
        }
    }

    /// A connection that has entered ends.
    pub(super) fn leave(&mut self, peer: &Address) {
        let Some(key) = key(peer).filter(|_| self.limit.is_some()) else { return };
        if let Some(count) = self.counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
    }
}

/// What is counted together. `None`: a Unix socket, which is not counted.
fn key(peer: &Address) -> Option<u128> {
    Some(match peer.ip()? {
        // Mapped into IPv6, where no network of 64 bits begins like that.
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits() & NETWORK,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_or_an_ipv6_network_has_so_many_and_a_unix_socket_any() {
        let mut peers = Peers::new(Some(2));
        let mut enter = |address: &str| peers.enter(&address.parse().unwrap());
        assert!(enter("10.0.0.1:1") && enter("[::ffff:10.0.0.1]:2") && !enter("10.0.0.1:3"));
        assert!(enter("10.0.0.2:1"));
        assert!(enter("[2001:db8::1]:1") && enter("[2001:db8::2]:1") && !enter("[2001:db8:0:0:ffff::3]:1"));
        assert!(enter("[2001:db8:0:1::1]:1"));
        assert!((0..5).all(|_| enter("unix:")));
        peers.leave(&"10.0.0.1:9".parse().unwrap());
        assert!(peers.enter(&"10.0.0.1:1".parse().unwrap()));
        assert!(!peers.enter(&"10.0.0.1:1".parse().unwrap()));
    }

    #[test]
    fn nobody_is_remembered_who_has_left() {
        let mut peers = Peers::new(Some(1));
        let peer = "10.0.0.1:1".parse().unwrap();
        assert!(peers.enter(&peer));
        peers.leave(&peer);
        assert!(peers.counts.is_empty());
    }
}

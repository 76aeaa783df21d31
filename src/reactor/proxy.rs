//! Connections from proxies: the header that comes first, and the client whose connection it becomes with it.
//!
//! Until then it is nobody's: it has no session, no place among those of an address, and may stop nothing. What was read
//! behind the header is there as if it had been read ahead. Held by `front::proxy` tests.

use std::io::Write;

use super::Reactor;
use super::serve::read_raw;
use super::table::Entry;
use crate::address::Address;
use crate::connection::{Inbound, Phase, Role};
use crate::framing::proxy::{FromTo, Header, MAX_HEADER_BYTES};
use crate::reason::CloseReason;
use crate::slots::ConnId;

impl Reactor {
    /// Reads on until the header is here, and goes on for the client that it names. `false`: the connection is gone.
    pub(super) fn serve_announced(&mut self, id: ConnId) -> bool {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        if connection.phase != Phase::Open {
            return self.write_waiting(id);
        }
        if !self.read_header(id) {
            return false;
        }
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        let ended = connection.has_ended();
        let Some(inbound) = connection.inbound() else { return true };
        match Header::read(inbound.rest()) {
            Header::Whole { consumed, from_to } => self.become_client(id, consumed, from_to),
            Header::More if !ended => true,
            Header::More | Header::Bad => {
                self.close_unread(id, CloseReason::ProxyHeader);
                true
            }
        }
    }

    /// Reads once, no more than a header may have. `false`: the connection is gone.
    fn read_header(&mut self, id: ConnId) -> bool {
        let (sparing, now) = (self.is_sparing(), self.turn_at);
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return false };
        let here = connection.inbound().map_or(0, Inbound::len);
        let limit = connection.may_read(MAX_HEADER_BYTES.saturating_sub(here), sparing);
        if limit == 0 {
            return true;
        }
        let Ok(read) = read_raw(stream, connection, &mut self.buffer[..limit]) else {
            self.close(id, CloseReason::Reset);
            return false;
        };
        if read > 0 {
            // What is here is no frame of the service's, whole or not.
            connection.inbound_mut().append(&self.buffer[..read], Some(here + read), now);
            self.counters.read_bytes += read as u64;
            self.budget.bytes(read);
        }
        true
    }

    /// The header of `bytes` is here: the connection is its client's from now on. `false`: it is gone.
    fn become_client(&mut self, id: ConnId, bytes: usize, from_to: Option<FromTo>) -> bool {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        let service = connection.service();
        let (peer, local) = match from_to {
            Some(FromTo { from, to }) => {
                (Address::Tcp(from), Some(self.listeners.endpoint_at(Address::Tcp(to), service)))
            }
            None => (Address::Unknown, None),
        };
        let may_stop = self.settings.services[service as usize].stop_from.allows(&peer);
        connection.become_client(&peer, local, may_stop, bytes);
        tracing::debug!(%peer, "a proxy has named its client");
        if !self.peers[service as usize].enter(&peer) {
            return self.turn_client_away(id, &peer);
        }
        self.welcome(id, service);
        match self.table.get(id) {
            None => false,
            Some(Entry { connection, .. }) if connection.role == Role::Joined => self.serve_joined(id),
            Some(_) => {
                let alive = self.serve_requests(id);
                if alive {
                    // It may ask for a stop, which does not wait.
                    self.look_ahead(id);
                }
                alive
            }
        }
    }

    /// The client of a proxy has as many connections as it may. `false`: it could not even be waited for.
    fn turn_client_away(&mut self, id: ConnId, peer: &Address) -> bool {
        const REASON: CloseReason = CloseReason::PeerFull;
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        let service = connection.service();
        let refused = self.turn_away(service, REASON, peer);
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return false };
        connection.role = Role::TurnedAway;
        if let Err(line) = &refused {
            drop(stream.write(line));
        }
        self.counters.open -= 1;
        self.counters.services[service as usize].open -= 1;
        self.rejected += 1;
        match refused {
            Ok(()) => self.close_unread(id, REASON),
            Err(_) => self.close(id, REASON),
        }
        refused.is_ok()
    }
}

//! Letting connections in, or turning them away.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use mio::{Interest, Token};

use super::Reactor;
use super::listener::Accepted;
use super::socket::Stream;
use crate::address::Address;
use crate::connection::{Connection, Phase, Role};
use crate::job::Endpoint;
use crate::reason::CloseReason;
use crate::service::ServiceId;
use crate::slots::ConnId;

/// What is asked for from the start. Urgent data too, which is of no interest: reads stop short at it.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) const READ_INTEREST: Interest = Interest::READABLE.add(Interest::PRIORITY);
/// What is asked for from the start.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) const READ_INTEREST: Interest = Interest::READABLE;

/// Connections that may be told at a time that the server is full. For one more the oldest that has been told is let go.
const MAX_REJECTED: usize = 256;

/// Least sessions of connections that have ended whose work with them may wait, where fewer connections than that may be open.
const MIN_LEAVING: usize = 64;

impl Reactor {
    /// Accepts up to `budget` connections.
    pub(super) fn accept(&mut self, budget: usize, now: Instant) {
        self.listeners.retry_due(now);
        for _ in 0..budget {
            if !self.listeners.is_ready(&self.shared.lent) {
                return;
            }
            let (stream, peer, local) = match self.listeners.accept(now, &self.shared.lent) {
                Accepted::Connection(stream, peer, local) => (stream, peer, local),
                Accepted::None => return,
                Accepted::Refused(error) => {
                    if is_out_of_descriptors(&error) && self.let_one_go() {
                        continue;
                    }
                    self.counters.accept_errors += 1;
                    self.warn("cannot accept connections for now", &error);
                    continue;
                }
            };
            match self.settings.services[local.service as usize].looks_on {
                None => self.admit(stream, &peer, local),
                Some(_) => self.aside(|reactor| reactor.admit(stream, &peer, local)),
            }
        }
    }

    /// Lets a connection in, or turns it away.
    fn admit(&mut self, mut stream: Stream, peer: &Address, local: Arc<Endpoint>) {
        self.counters.accepted += 1;
        let service = local.service;
        let settings = &self.settings.services[service as usize];
        let is_proxy = settings.proxy_from.includes(peer);
        let may_stop = !is_proxy && settings.stop_from.allows(peer);
        let limit = settings.max_connections;
        let is_full = self.counters.services[service as usize].open >= limit as u64;
        // Those of clients are no matter of who looks on.
        let leaves = !self.aside.entered && self.has_sessions(service);
        let turned_away = if is_full || leaves && self.leaving() >= limit.max(MIN_LEAVING) {
            Some(CloseReason::Full)
        } else if !is_proxy && !self.peers[service as usize].enter(peer) {
            Some(CloseReason::PeerFull)
        } else {
            None
        };
        let aside = self.aside.entered;
        let role = match turned_away {
            Some(_) => Role::TurnedAway,
            None if aside => Role::Aside,
            None if is_proxy => Role::Announced,
            None => Role::Requests,
        };
        let mut connection = Connection::new(local, peer, may_stop, role, self.turn_at);
        match turned_away {
            None => {
                self.counters.open += 1;
                self.counters.services[service as usize].open += 1;
            }
            Some(reason) => {
                if let Err(line) = self.turn_away(service, reason, peer) {
                    return drop(stream.write(&line));
                }
                connection.phase = Phase::Closing(reason);
                self.rejected += 1;
            }
        }
        let id = self.table.insert(stream, connection);
        let Some(entry) = self.table.get(id) else { return };
        let token = Token(id.slot as usize);
        if let Err(error) = self.poll.registry().register(&mut entry.stream, token, READ_INTEREST) {
            self.warn("cannot watch a connection", &error);
            self.close(id, CloseReason::Reset);
            return;
        }
        if matches!(role, Role::Requests | Role::Aside) {
            self.welcome(id, service);
        }
        match role {
            Role::TurnedAway => self.list(id),
            Role::Requests | Role::Announced if self.drain.is_some() => self.drain(id),
            // Its idle time begins, and the time for its proxy to say whose it is.
            _ => self.settle(id),
        }
    }

    /// A connection has opened that is its client's: what its service begins with.
    pub(super) fn welcome(&mut self, id: ConnId, service: ServiceId) {
        if self.services[service as usize].joins {
            self.join(id);
        } else if self.has_sessions(service) {
            self.open_session(id);
        }
    }

    /// Counts a peer that is turned away.
    ///
    /// # Errors
    /// It cannot be waited for: the line that it is told at once, which a reset may overtake.
    pub(super) fn turn_away(
        &mut self,
        service: ServiceId,
        reason: CloseReason,
        peer: &Address,
    ) -> Result<(), Vec<u8>> {
        self.count_rejected(reason, peer);
        // The places of those who are waited for are for clients.
        if !self.aside.entered && (self.rejected < MAX_REJECTED || self.let_one_go()) {
            return Ok(());
        }
        Err(self.last_line(service, reason, 0).unwrap_or_default())
    }

    fn count_rejected(&mut self, reason: CloseReason, peer: &Address) {
        *match reason {
            CloseReason::PeerFull => &mut self.counters.rejected_peer_full,
            _ => &mut self.counters.rejected_full,
        } += 1;
        match self.warns_of(reason) {
            Some(left_out) => {
                tracing::warn!(%peer, reason = reason.as_str(), left_out, "connection rejected");
            }
            None => tracing::debug!(%peer, reason = reason.as_str(), "connection rejected"),
        }
    }

    /// Sessions of connections that have ended, with workers or on their way to one: they outlive their connections, so these do
    /// not limit them.
    fn leaving(&self) -> usize {
        self.closing_out + self.gone.len()
    }
}

/// Whether the process or the system has no descriptor left.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(errno, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

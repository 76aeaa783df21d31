//! The end of one connection: what the peer is told, the end of the stream, and what still comes after it.
//!
//! Closing a socket with unread data in it sends a reset, which destroys what the peer has not read yet. So our side is
//! shut down first, and what still comes is discarded until the peer closes, for a second at most.

use std::io::{ErrorKind, Read};
use std::time::Instant;

use super::Reactor;
use super::table::Entry;
use super::timeouts::told;
use crate::connection::{Phase, Role};
use crate::reason::CloseReason;
use crate::service::{self, Farewell, ServiceId};
use crate::slots::ConnId;

/// Reads of a connection that is let go at once: more may come while it is read, from one that sends without a pause.
const LAST_READS: usize = 4;

impl Reactor {
    /// Takes a connection to the next phase of its life if it has come to the end of the present one.
    pub(super) fn end_if_over(&mut self, id: ConnId, now: Instant) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        if connection.role == Role::Joined && connection.phase == Phase::Open {
            self.end_if_parted(id);
        } else if connection.phase == Phase::Open {
            if connection.has_ended() && connection.is_quiet() {
                return match connection.session {
                    Some(_) => self.close_behind_session(id),
                    None => self.close(id, CloseReason::Eof),
                };
            }
            if connection.drain_left() != Some(0) || connection.may_have_frame() {
                return;
            }
            if self.waits_for_others(id) {
                return;
            }
            let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return };
            // All that had come when the stop began is read. A line without terminator counts only if the end of the
            // stream had come with it.
            if connection.inbound().is_some()
                && !connection.has_ended()
                && stream.peek(&mut [0]).is_ok_and(|read| read == 0)
            {
                connection.set_ended();
                connection.inbound_mut().set_ended();
                // Handing it out is for the next turn, as no event may come any more.
                return self.list(id);
            }
            connection.phase = Phase::Closing(CloseReason::Stopping);
        }
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        match connection.phase {
            // Not before: putting a word behind a long reply would move all of it.
            Phase::Closing(reason) if connection.has_answered() && connection.outbound().is_none() => {
                self.say_farewell(id, reason, now);
            }
            Phase::Leaving(reason) => self.end_stream(id, reason, now),
            Phase::Lingering(reason) if connection.is_readable() => self.discard(id, reason),
            _ => {}
        }
    }

    /// Whether a connection that has had its own is kept open in a stop, as others may still push something to it.
    fn waits_for_others(&mut self, id: ConnId) -> bool {
        let is_open = self.drain.is_some_and(|drain| !drain.all_handled);
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        let (has_pushers, service) = (connection.local.has_pushers(), connection.service());
        is_open && (has_pushers || self.has_sessions(service))
    }

    /// Everything is answered and written: queues the last line, if the reason has one, and goes on to the end of the stream.
    fn say_farewell(&mut self, id: ConnId, reason: CloseReason, now: Instant) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        let service = connection.service();
        let limit = match reason {
            CloseReason::LineTooLong => {
                self.services[service as usize].max_frame_bytes(connection.session.as_ref())
            }
            _ => 0,
        };
        let line = self.last_line(service, reason, limit);
        let (watermarks, told_at) = (self.settings.watermarks(service), self.now());
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        connection.phase = Phase::Leaving(reason);
        // Never inside a reply that was broken off.
        if let Some(line) = line.filter(|_| !connection.mid_reply) {
            connection.with_outbound(watermarks, told_at, |outbound| outbound.push_word(&line));
            if connection.is_writable() && !self.flush(id) {
                return;
            }
        }
        self.end_stream(id, reason, now);
    }

    /// Nothing more of what a peer has sent is handled: its connection is closed for `reason`, behind what it is owed.
    pub(super) fn close_unread(&mut self, id: ConnId, reason: CloseReason) {
        if let Some(Entry { connection, .. }) = self.table.get(id) {
            connection.phase = Phase::Closing(reason);
            let free = connection.discard_input();
            self.litter.drop_later(free);
        }
    }

    /// Once everything is written: ends the stream, and begins to discard what still comes.
    fn end_stream(&mut self, id: ConnId, reason: CloseReason, now: Instant) {
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return };
        if connection.outbound().is_some() {
            return;
        }
        if connection.has_ended() || stream.end().is_err() {
            return self.close(id, reason);
        }
        let free = connection.discard_input();
        connection.phase = Phase::Lingering(reason);
        connection.set_readable();
        self.litter.drop_later(free);
        // What the peer still does makes no difference any more.
        self.end_session(id, reason);
        self.lingering.begin(now, id);
        self.discard(id, reason);
    }

    /// What a peer is told when its connection is closed for this reason. `max_frame_bytes`: what a frame may have.
    pub(super) fn last_line(
        &self,
        service: ServiceId,
        reason: CloseReason,
        max_frame_bytes: usize,
    ) -> Option<Vec<u8>> {
        let (service, settings) =
            (&self.services[service as usize], &self.settings.services[service as usize]);
        let farewell = match reason {
            CloseReason::LineTooLong => Farewell::LineTooLong { limit: max_frame_bytes },
            CloseReason::Full => Farewell::Full { limit: settings.max_connections },
            CloseReason::PeerFull => {
                Farewell::PeerFull { limit: settings.max_connections_per_peer.unwrap_or_default() }
            }
            CloseReason::LineTimeout => Farewell::LineTimeout { limit: told(settings.timeouts.line) },
            CloseReason::RequestTimeout => {
                Farewell::RequestTimeout { limit: told(settings.timeouts.request) }
            }
            CloseReason::KillRefused => Farewell::StopRefused,
            CloseReason::Panic => Farewell::Panic,
            CloseReason::ProxyHeader => Farewell::ProxyHeader,
            CloseReason::Eof
            | CloseReason::Reset
            | CloseReason::Handler
            | CloseReason::IdleTimeout
            | CloseReason::WriteTimeout
            | CloseReason::Memory
            | CloseReason::Stopping
            | CloseReason::Aborted => return None,
        };
        service::last_line(&*service.service, &farewell)
    }

    /// Lets the connection go that has been told everything and has been waited for longest: somebody else needs its place.
    /// `false`: there is none.
    pub(super) fn let_one_go(&mut self) -> bool {
        while let Some(id) = self.lingering.pop() {
            let Some(Entry { connection, .. }) = self.table.get(id) else { continue };
            let Phase::Lingering(reason) = connection.phase else { continue };
            // What has come meanwhile would turn the close into a reset, which may overtake the last line.
            for _ in 0..LAST_READS {
                self.discard(id, reason);
            }
            self.close(id, reason);
            return true;
        }
        false
    }

    /// Reads its share of a turn and throws it away, until the peer closes.
    fn discard(&mut self, id: ConnId, reason: CloseReason) {
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return };
        match stream.read(&mut self.buffer) {
            Ok(0) => self.close(id, reason),
            Ok(read) => {
                if read < self.buffer.len() {
                    connection.set_read_short();
                }
                self.budget.bytes(read);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => connection.set_read_empty(),
            Err(_) => self.close(id, reason),
        }
    }

    /// Ends a connection now, and accounts for what is lost with it. A job that is out is accounted for when it
    /// comes back.
    pub(super) fn close(&mut self, id: ConnId, reason: CloseReason) {
        if self.steps_aside(id) {
            return self.aside(|reactor| reactor.close(id, reason));
        }
        self.end_session(id, reason);
        let Some(mut entry) = self.table.remove(id) else { return };
        // Closing alone would do, but for a process that is just being started: it has a copy of the socket for a moment, and events of it
        // would go on to come, under a slot that may be another's by then.
        self.poll.registry().deregister(&mut entry.stream).unwrap_or_default();
        let connection = &mut entry.connection;
        if connection.is_job_out() && self.services[connection.service() as usize].has_sessions {
            // Its session comes back with the job.
            self.gone.insert(id, reason);
        }
        let mut lost = connection.unsent_replies();
        if connection.end_await().is_some() {
            self.deferred -= 1;
            lost += 1;
        }
        if let Some(job) = connection.take_held() {
            lost += job.batch.lines_left();
            self.free.put(job, &mut self.litter);
        }
        self.drop_requests(lost);
        match connection.role {
            role @ (Role::Requests | Role::Joined | Role::Announced | Role::Aside) => {
                let service = connection.service() as usize;
                self.counters.open -= 1;
                self.counters.services[service].open -= 1;
                self.counters.closed[reason as usize] += 1;
                if role == Role::Joined {
                    self.part(id);
                }
                if matches!(role, Role::Requests | Role::Joined) {
                    self.peers[service].leave(&connection.peer());
                }
            }
            // It never was open.
            Role::TurnedAway => self.rejected -= 1,
        }
        self.counters.held_bytes -= connection.accounted_bytes as u64;
        self.litter.drop_later(connection.discard_input());
        self.litter.drop_later(connection.discard_output());
        // Who was turned away was told of then.
        if connection.role != Role::TurnedAway {
            let peer = connection.peer();
            match self.warns_of(reason) {
                Some(left_out) => {
                    tracing::warn!(%peer, reason = reason.as_str(), lost, left_out, "connection closed");
                }
                None => tracing::debug!(%peer, reason = reason.as_str(), lost, "connection closed"),
            }
        }
        // A descriptor is free again.
        self.listeners.retry();
    }
}

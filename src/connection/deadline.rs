//! When a connection has to end, and why, if nothing else happens.
//!
//! What deadlines begin with is read off the clock after it has happened, so that none is ever early, however long the turn is in
//! which it happens (`reactor::tests`). Who looks at them when is `reactor::deadlines`, what becomes of them `reactor::timeouts`.

use super::{Connection, Input, Phase, Role, Turn};
use crate::clock::Nanos;
use crate::config::Timeouts;
use crate::reason::CloseReason;
use crate::slots::{from_ms, to_ms};

impl Connection {
    /// Something has happened with it at `now`.
    pub(crate) fn set_active(&mut self, now: Nanos) {
        self.active_ms = to_ms(now);
    }

    /// Takes in whether it is read, as far as that is up to the server: the time in which it is not does not count against the
    /// peer. A pause that has begun did so no earlier than at `turn_at`; one that is over is over `now`.
    pub(crate) fn note_pause(&mut self, turn_at: Nanos, now: impl FnOnce() -> Nanos) {
        let waits = self.turn == Turn::Waits;
        let Some(buffers) = &mut self.buffers else { return };
        match (buffers.choked || waits, buffers.paused_since) {
            (true, None) => buffers.paused_since = Some(turn_at),
            (false, Some(since)) => {
                buffers.paused_since = None;
                buffers.inbound.forgive(now().saturating_sub(since));
            }
            _ => {}
        }
    }

    /// Whether it is worth asking for its [`deadline`](Self::deadline). Cheap: asked after each job.
    pub(crate) fn may_have_deadline(&self, timeouts: &Timeouts) -> bool {
        self.buffers.is_some()
            || timeouts.idle.is_some()
            || timeouts.request.is_some()
            || self.role == Role::Announced
    }

    /// When it has to end, and why, if nothing else happens. `taken_at`: when a worker took the request that is out, or
    /// `now` if none has.
    pub(crate) fn deadline(
        &self,
        timeouts: &Timeouts,
        now: Nanos,
        taken_at: impl FnOnce() -> Option<Nanos>,
    ) -> Option<(Nanos, CloseReason)> {
        if matches!(self.phase, Phase::Lingering(_)) {
            return None;
        }
        let buffers = self.buffers.as_deref();
        let blocked = buffers.filter(|buffers| !buffers.outbound.is_empty());
        let due = |since: Option<Nanos>, after: Option<Nanos>, reason| {
            Some((since?.saturating_add(after?), reason))
        };
        let write =
            due(blocked.map(|buffers| buffers.progress_at), timeouts.write, CloseReason::WriteTimeout);
        // Also of a connection that ends once that is answered.
        let awaited_since = buffers.and_then(|buffers| buffers.awaits).map(|(since, _)| since);
        // To give the session back is no request.
        let is_asked = self.is_job_out() && self.phase != Phase::Closing(CloseReason::Eof);
        let request = match timeouts.request.filter(|_| is_asked || awaited_since.is_some()) {
            None => None,
            after => {
                let since = awaited_since.unwrap_or_else(|| taken_at().unwrap_or(now));
                due(Some(since), after, CloseReason::RequestTimeout)
            }
        };
        if self.role == Role::Announced && self.phase == Phase::Open {
            let after = timeouts.line.or(timeouts.idle);
            return due(Some(self.opened_at), after, CloseReason::ProxyHeader);
        }
        if self.phase != Phase::Open || self.role == Role::TurnedAway {
            return [write, request].into_iter().flatten().min_by_key(|(at, _)| *at);
        }
        let read = buffers.filter(|buffers| buffers.paused_since.is_none());
        let line_since = read.and_then(|buffers| buffers.inbound.incomplete_since());
        let line = due(line_since, timeouts.line, CloseReason::LineTimeout);
        let idle = match timeouts.idle.filter(|_| self.is_quiet() && self.input != Input::Ended) {
            None => None,
            after => due(Some(from_ms(self.active_ms, now)), after, CloseReason::IdleTimeout),
        };
        [write, line, request, idle].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Endpoint;
    use crate::slots::MS;

    #[test]
    fn a_pause_counts_to_its_end_however_long_the_turn_is_in_which_it_ends() {
        let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
        let peer = endpoint.address.clone();
        let mut connection = Connection::new(endpoint, &peer, false, Role::Requests, 0);
        connection.inbound_mut().append(b"half", Some(4), 5 * MS);
        connection.turn = Turn::Waits;
        connection.note_pause(10 * MS, || 12 * MS);
        connection.turn = Turn::Any;
        connection.note_pause(20 * MS, || 90 * MS);
        let timeouts = Timeouts { line: Some(10 * MS), ..Timeouts::default() };
        let due = connection.deadline(&timeouts, 90 * MS, || None);
        assert_eq!(due, Some(((5 + 80 + 10) * MS, CloseReason::LineTimeout)));
    }
}

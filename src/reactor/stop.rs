//! How the reactor ends: gracefully, step by step, or at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::Reactor;
use super::socket::Stream;
use super::table::Entry;
use crate::clock::{Nanos, nanos};
use crate::connection::{Phase, Role};
use crate::reason::CloseReason;
use crate::slots::ConnId;
use crate::state::ServerState;
use crate::sync::lock_std;

/// Connections accepted when a stop begins: what was in the accept queue by then. The longest queue that Linux grants
/// by default is 4096.
const FINAL_ACCEPT_BUDGET: usize = 64 << 10;
/// How long a handshake that had begun when the door was shut is waited for: while nothing else is outstanding, which
/// lengthens every stop by this, and while something is, which costs nothing. Below the second after which the system of
/// a peer that found the door shut tries again, and has to be refused.
const MIN_HANDSHAKE: Duration = Duration::from_millis(10);
const MAX_HANDSHAKE: Duration = Duration::from_millis(500);
/// How long a connection that was just accepted is given for its first line where others have the listeners, too: had it come a
/// little later, it would have waited in the queue for the next server.
const FIRST_LINE: Duration = Duration::from_millis(50);
/// Who was accepted within this time counts as one that just was: more than that, as a connection counts from the beginning of the turn
/// that accepted it, and a process may be kept from a CPU in the middle of one.
const JUST_ACCEPTED: Duration = Duration::from_millis(500);

/// A graceful stop under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    pub(super) from: Instant,
    /// When the last connection was accepted that did not come by a late handshake.
    pub(super) accepted: Instant,
    pub(super) until: Instant,
    /// Every request that was received is handled: nobody has anything more to push.
    pub(super) all_handled: bool,
}

/// What was asked for of a stop. A drain only ever comes nearer. Written by handles and by the reactor, read by it. `SeqCst`: see
/// [`Lent`](crate::handover::Lent). Who asks wakes the reactor.
#[derive(Debug)]
pub(crate) struct StopLevel {
    /// When the drain begins, by the server's clock; [`NEVER`] until it is asked for.
    drain_at: AtomicU64,
    abort: AtomicBool,
    /// For who waits for a stop to be asked for. Locked between that and the call, so that nobody sleeps through it.
    asked: Mutex<()>,
    heard: Condvar,
}

const NEVER: Nanos = Nanos::MAX;

impl Default for StopLevel {
    fn default() -> StopLevel {
        StopLevel {
            drain_at: AtomicU64::new(NEVER),
            abort: AtomicBool::new(false),
            asked: Mutex::default(),
            heard: Condvar::new(),
        }
    }
}

impl StopLevel {
    /// Asks for a graceful stop that begins at `at`, or when it was to begin before that; 0 is at once.
    pub(crate) fn drain_at(&self, at: Nanos) {
        self.drain_at.fetch_min(at, SeqCst);
        drop(lock_std(&self.asked));
        self.heard.notify_all();
    }

    /// Asks for a stop at once.
    pub(crate) fn abort(&self) {
        self.drain_at(0);
        self.abort.store(true, SeqCst);
    }

    /// Whether a stop at once was asked for.
    pub(super) fn is_abort(&self) -> bool {
        self.abort.load(SeqCst)
    }

    /// When a stop begins that was asked for.
    pub(crate) fn begins_at(&self) -> Option<Nanos> {
        Some(self.drain_at.load(SeqCst)).filter(|at| *at != NEVER)
    }

    /// What a server does at `now` that was asked for no more than this.
    pub(crate) fn state(&self, now: Nanos) -> ServerState {
        match self.drain_at.load(SeqCst) {
            _ if self.is_abort() => ServerState::Stopping,
            NEVER => ServerState::Serving,
            at if at > now => ServerState::Delaying,
            _ => ServerState::Draining,
        }
    }

    /// Whether a stop has to be under way at `now`.
    pub(super) fn is_due(&self, now: Nanos) -> bool {
        self.drain_at.load(SeqCst) <= now
    }

    /// Blocks until a stop was asked for, or for `timeout`. Whether one was.
    pub(crate) fn wait_until_asked(&self, timeout: Duration) -> bool {
        let asked = lock_std(&self.asked);
        let waited = self.heard.wait_timeout_while(asked, timeout, |()| self.begins_at().is_none());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.begins_at().is_some()
    }
}

/// What a stop had to drop, and what held it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) requests: u64,
    pub(crate) replies: u64,
    /// Handlers that had not returned.
    pub(crate) busy_workers: usize,
    /// Peers that had not read their replies.
    pub(crate) slow_peers: usize,
    /// Peers of which lines had arrived that were not read.
    pub(crate) unread_peers: usize,
    /// Connections that were joined to something, and had not ended.
    pub(crate) parted: usize,
}

impl Reactor {
    /// Steps one and two of a graceful stop: shuts the door, takes what is in the accept queue, and limits each connection
    /// to what its receive queue holds now. Where the listeners are another's, who is in the queue is left to that one.
    pub(super) fn begin_drain(&mut self, now: Instant) {
        let until = now + self.settings.drain_timeout;
        for served in &*self.services {
            served.stop();
        }
        let is_lent = self.shared.lent.is_set();
        let is_shared = is_lent || self.listeners.has_given();
        if !is_lent {
            self.listeners.shut_doors();
            self.listeners.set_all_ready();
            self.accept(FINAL_ACCEPT_BUDGET, now);
        }
        self.listeners.leave(is_lent, self.poll.registry());
        let accepted = self.shared.hub.clock.instant(self.now());
        self.drain = Some(Drain { from: now, accepted, until, all_handled: false });
        tracing::info!(connections = self.clients(), pending = self.counters.pending, "draining");
        for id in self.table.ids() {
            if is_lent && self.steps_aside(id) {
                // The next server answers from now on.
                self.close(id, CloseReason::Stopping);
            } else if is_shared && self.is_newcomer(id) {
                self.newcomers.push(id);
            } else {
                self.drain(id);
            }
        }
    }

    /// Whether a connection was accepted so lately that its first line may still be on its way.
    fn is_newcomer(&mut self, id: ConnId) -> bool {
        let now = self.turn_at;
        let opened_at = self.table.get(id).map(|entry| entry.connection.opened_at);
        opened_at.is_some_and(|at| now.saturating_sub(at) < nanos(JUST_ACCEPTED))
    }

    /// Until when newcomers are given time.
    pub(super) fn newcomers_until(&self) -> Option<Instant> {
        let drain = self.drain.filter(|_| !self.newcomers.is_empty())?;
        Some(drain.accepted + FIRST_LINE)
    }

    /// Ends the time that newcomers are given: from then on they are as the others.
    pub(super) fn drain_newcomers(&mut self, now: Instant) {
        if self.newcomers_until().is_some_and(|until| until <= now) {
            for id in std::mem::take(&mut self.newcomers) {
                self.drain(id);
            }
        }
    }

    /// Limits what is read of a connection to what its receive queue holds now.
    pub(super) fn drain(&mut self, id: ConnId) {
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return };
        if connection.role == Role::Aside {
            return;
        }
        if connection.phase == Phase::Open {
            connection.begin_drain(queued_bytes(stream));
        }
        self.list(id);
    }

    /// While draining: closes the listeners once their queues are empty and no handshake can be under way any more. Where
    /// descriptors have run out, who is in the queues gets those of connections that end.
    pub(super) fn close_listeners(&mut self, now: Instant) {
        let over = self.handshakes_until().is_none_or(|until| until <= now);
        if over && self.listeners.is_drained() {
            self.listeners.close();
        }
    }

    /// While draining: once every request that was received is handled, as far as peers read what they get, the connections are
    /// let go that were kept for what others might push to them.
    pub(super) fn let_go_when_handled(&mut self) {
        let handled = self.is_idle() && self.stalled.is_empty() && self.jobs_out == 0 && self.deferred == 0;
        let Some(drain) = self.drain.as_mut().filter(|drain| handled && !drain.all_handled) else { return };
        if self.shared.hub.replies.is_empty() {
            drain.all_handled = true;
            for id in self.table.ids() {
                self.list(id);
            }
        }
    }

    /// While draining and listening: until when handshakes are waited for.
    pub(super) fn handshakes_until(&self) -> Option<Instant> {
        let drain = self.drain.filter(|_| !self.listeners.is_closed())?;
        let alone = self.clients() == 0 && self.jobs_out == 0;
        Some(drain.from + if alone { MIN_HANDSHAKE } else { MAX_HANDSHAKE })
    }

    /// Stops at once: counts what is dropped and what held it up, and closes everything.
    pub(super) fn abort(mut self) -> Dropped {
        self.submit();
        let pending = self.counters.pending;
        // Who is in an accept queue that could not be emptied is reset, and may have sent something.
        let turned_away = usize::from(self.drain.is_some() && !self.listeners.is_drained());
        let (mut unread, mut kept, mut slow_peers, mut unread_peers, mut parted) = (0, 0, 0, turned_away, 0);
        for id in self.table.ids() {
            let Some(Entry { stream, connection, .. }) = self.table.get(id) else { continue };
            if connection.role == Role::Aside {
                self.close(id, CloseReason::Aborted);
                continue;
            }
            let service = &self.services[connection.service() as usize];
            if connection.phase == Phase::Open && connection.drain_left() != Some(0) {
                let queued = stream.peek(&mut self.buffer).unwrap_or(0);
                unread_peers += usize::from(self.buffer[..queued].contains(&b'\n'));
            }
            parted += usize::from(connection.role == Role::Joined && connection.phase == Phase::Open);
            unread += connection.unsent_replies() as u64;
            slow_peers += usize::from(connection.unsent_replies() > 0);
            // Read, but in no job yet: accepted only to be dropped.
            let ended = connection.has_ended();
            let session = connection.session.as_ref();
            // Of a connection that nobody is named for there is only a header.
            let inbound = connection.inbound().filter(|_| connection.role == Role::Requests);
            let requests =
                inbound.map_or(0, |inbound| inbound.count_requests(service, session, ended)) as u64;
            self.counters.services[connection.service() as usize].requests += requests;
            kept += requests;
            self.close(id, CloseReason::Aborted);
        }
        let dropped = Dropped {
            requests: pending - unread + kept,
            replies: unread,
            busy_workers: self.shared.pool.census(Duration::ZERO, Duration::MAX).busy,
            slow_peers,
            unread_peers,
            parted,
        };
        // Those in jobs that are out, and those in no job; closing accounted for the rest.
        self.counters.dropped += self.counters.pending + kept;
        self.counters.pending = 0;
        // Sessions that are given back: by workers that are free, or when all have left.
        self.submit();
        for mail in self.finished.drain(..) {
            self.shared.hub.replies.push(mail);
        }
        self.shared.pool.stop();
        self.told.tell(self.turn_at);
        self.publish();
        dropped
    }
}

/// Bytes in the receive queue of `stream`, those behind an urgent one too. One that is not part of the stream may be among
/// them.
fn queued_bytes(stream: &Stream) -> usize {
    let socket = SockRef::from(stream);
    // Else the system counts up to the urgent byte only. Where it refuses, that is what is known.
    let inline = socket.set_out_of_band_inline(true);
    let queued = rustix::io::ioctl_fionread(stream).unwrap_or(u64::MAX);
    drop(inline.and_then(|()| socket.set_out_of_band_inline(false)));
    usize::try_from(queued).unwrap_or(usize::MAX)
}

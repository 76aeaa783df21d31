//! How connections come and go: opened at the first address that lets one in, opened again after they failed, and what their
//! end means.

use std::io;

use mio::net::TcpStream;
use mio::{Interest, Token};

use super::Worker;
use crate::load::EndedEarly;
use crate::load::connection::{Connected, Ending, Phase};
use crate::load::ledger::{End, Example, Ledger, shown};
use crate::load::pace::{Due, Pace};
use crate::load::tally::Kind;

/// Before a connection that failed is opened again: a server that restarts is not flooded with connects.
const RETRY_NANOS: u64 = 20_000_000;
/// At most so many connections of a thread are being opened at once: more only overrun the listen backlog.
pub(super) const MOST_CONNECTING: usize = 512;

impl Worker<'_> {
    pub(super) fn open_connections(&mut self, now: u64) -> io::Result<()> {
        while let Some(&(at, slot)) = self.to_retry.front()
            && at <= now
        {
            self.to_retry.pop_front();
            self.to_open.push_back(slot);
        }
        while self.connecting < MOST_CONNECTING {
            let Some(slot) = self.to_open.pop_front() else { break };
            let connection = &mut self.connections[slot];
            if connection.phase != Phase::Idle {
                continue;
            }
            let is_useful = self.offering && slot < self.wanted;
            match (&mut self.pace, self.plan.reconnect) {
                (_, true) if connection.assigned.is_some() => {}
                (Pace::Closed(closed), true) if is_useful => {
                    if closed.take(1, now, &mut self.tally) == 0 {
                        continue;
                    }
                    connection.assigned = Some(now);
                    self.assigned += 1;
                }
                (Pace::Open(_), true) => {
                    // It is opened when a request is due.
                    if slot < self.wanted {
                        self.offer(slot, now);
                    }
                    continue;
                }
                (pace, false) if is_useful || slot < self.wanted && pace.has_backlog() => {}
                _ => continue,
            }
            self.connect(slot)?;
        }
        Ok(())
    }

    pub(super) fn connect(&mut self, slot: usize) -> io::Result<()> {
        let now = self.now();
        let connection = &mut self.connections[slot];
        connection.address = self.address;
        match TcpStream::connect(self.plan.addresses[self.address]) {
            Ok(mut stream) => {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut stream, Token(slot), interest)?;
                let ledger = Ledger::new(self.next_connection, u64::from(self.threads));
                connection.start(stream, ledger, &self.protocol, now);
                self.next_connection = self.next_connection.wrapping_add(self.threads);
                self.connecting += 1;
                self.live += 1;
            }
            Err(error) => self.not_connected(slot, &error, now),
        }
        Ok(())
    }

    pub(super) fn not_connected(&mut self, slot: usize, error: &io::Error, now: u64) {
        if self.try_next_address(slot) {
            return;
        }
        let address = self.plan.addresses[self.connections[slot].address];
        if let Some(own_fault) = EndedEarly::of_connect(error, address) {
            self.end_early(own_fault);
            return;
        }
        self.tally.connections.refused += 1;
        let connection = self.connections[slot].ledger.connection();
        let got = error.to_string();
        self.tally.error(Kind::Refused, now, || Example { connection, got, ..Example::default() });
        self.failed(slot, now);
    }

    /// Whether a connection that was not let in tries another address: while nobody was let in at all, or where others were.
    pub(super) fn try_next_address(&mut self, slot: usize) -> bool {
        let tried = self.connections[slot].address;
        if self.tally.connections.opened == 0
            && tried == self.address
            && tried + 1 < self.plan.addresses.len()
        {
            self.address += 1;
        }
        if tried == self.address {
            return false;
        }
        self.to_open.push_back(slot);
        true
    }

    /// A connection ended badly: its place tries again, unless the server seems to be gone.
    pub(super) fn failed(&mut self, slot: usize, now: u64) {
        self.failures += 1;
        if !self.plan.expect_stop {
            self.to_retry.push_back((now + RETRY_NANOS, slot));
        }
        let all = self.connections.len().min(self.wanted.max(1));
        let gone = if self.tally.connections.opened == 0 {
            // Nobody ever got in: everybody has tried.
            self.failures >= all
        } else {
            // Everybody has tried again, and no reply came for as long as one may take.
            self.failures >= 2 * all && now > self.tally.last_reply.saturating_add(self.timeout)
        };
        if gone {
            self.end_early(EndedEarly::Gone);
        }
    }

    pub(super) fn look_whether_connected(&mut self, slot: usize) {
        let now = self.now();
        match self.connections[slot].is_connected() {
            Connected::NotYet => {}
            // What it says first comes with a read.
            Connected::Yes if self.connections[slot].awaits_greeting() => {}
            Connected::Yes => self.opened(slot, now),
            Connected::Failed(error) => {
                self.drop_socket(slot);
                self.not_connected(slot, &error, now);
            }
        }
    }

    pub(super) fn opened(&mut self, slot: usize, now: u64) {
        let connection = &self.connections[slot];
        if self.tally.connections.opened == 0 {
            // This address it is. A wildcard address is never the one that was reached.
            self.address = connection.address;
            if let Some(Ok(peer)) = connection.stream().map(TcpStream::peer_addr) {
                self.protocol.reached(peer);
            }
        } else if connection.address != self.address {
            self.drop_socket(slot);
            self.try_next_address(slot);
            return;
        }
        self.tally.connections.opened += 1;
        self.connecting -= 1;
        self.open += 1;
        let connection = &mut self.connections[slot];
        connection.opened(now);
        // It was let in after all, before what waited for it was given up.
        let was_not = std::mem::take(&mut connection.is_not_let_in);
        self.tally.connections.not_let_in -= u64::from(was_not);
        let late = std::mem::take(&mut connection.late_to_connect);
        connection.free_since = now.min(self.turn_began).saturating_sub(late);
        match connection.assigned.take() {
            Some(due) => {
                self.assigned -= 1;
                self.due.push(Due { at: due, seen: due });
                self.send_due(slot, now);
            }
            None => self.go_on(slot, now),
        }
    }

    pub(super) fn drop_socket(&mut self, slot: usize) {
        let was = self.connections[slot].phase;
        if let Some(mut stream) = self.connections[slot].take_stream() {
            // Closing deregisters it in any case.
            drop(self.poll.registry().deregister(&mut stream));
            self.live -= 1;
            self.connecting -= usize::from(was == Phase::Connecting);
            self.open -= usize::from(was == Phase::Open);
        }
    }

    /// The connection is over: settles its books and decides what its place does next.
    pub(super) fn end(&mut self, slot: usize, ending: Ending) {
        let now = self.now();
        let phase = self.connections[slot].phase;
        self.drop_socket(slot);
        let is_given_up = self.plan.expect_stop && phase == Phase::Open && matches!(ending, Ending::Dropped);
        self.tally.connections.not_stopped += u64::from(is_given_up);
        let connection = &mut self.connections[slot];
        let said = connection.ledger.take_last_words();
        let stopped = self.plan.expect_stop && matches!(ending, Ending::Eof) && said.is_none();
        let how = if stopped { End::Stopped } else { End::Broken };
        let before = self.tally.errors;
        // Half a reply is wrong, unless it is us who do not wait for the other half.
        let mut held = connection.take_held(&mut self.protocol, now, &mut self.tally);
        if matches!(ending, Ending::Dropped) {
            held.clear();
        }
        connection.ledger.close(how, &held, &mut self.protocol, now, &mut self.tally);
        let clean = self.tally.errors == before;
        let (kind, got) = match (ending, said) {
            (Ending::Failed(error), _) => (Kind::Reset, error.to_string()),
            (Ending::Eof, Some(said)) => (Kind::ClosedEarly, shown(&said)),
            // It has said why it ends the connection, and did not end it.
            (_, Some(said)) => {
                let ledger = &self.connections[slot].ledger;
                let protocol = &mut self.protocol;
                self.tally.extra(Kind::Unasked, now, || ledger.example(None, &said, protocol));
                return self.failed(slot, now);
            }
            (Ending::Eof, None) if phase == Phase::Closing => return self.to_open.push_back(slot),
            (Ending::Eof, None) if stopped && clean => {
                self.tally.connections.stopped += 1;
                return;
            }
            (Ending::Eof, None) => (Kind::ClosedEarly, "end of stream".to_owned()),
            // Whether these are wrong or lost has been counted with the requests.
            (Ending::TimedOut | Ending::Rubbish, None) => return self.failed(slot, now),
            (Ending::Dropped, None) => return self.to_open.push_back(slot),
        };
        if kind == Kind::Reset {
            self.tally.connections.reset += 1;
        } else {
            self.tally.connections.closed_early += 1;
        }
        let connection = self.connections[slot].ledger.connection();
        self.tally.error(kind, now, || Example { connection, got, ..Example::default() });
        self.failed(slot, now);
    }
}

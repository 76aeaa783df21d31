//! What is done every few milliseconds: interrupts, the shape, silence that has lasted too long, the end of the run, rows.

use std::io::{self, ErrorKind};

use super::{HOUSEKEEPING, ROW_NANOS, Row, Worker};
use crate::load::connection::{Ending, Phase};
use crate::load::honesty::Usage;
use crate::load::pace::Pace;
use crate::load::series::Point;
use crate::load::{EndedEarly, nanoseconds, whole};

/// After an interrupt, replies are waited for at least so long: longer than a round trip anywhere, and not longer than a
/// person waits.
const PATIENCE_NANOS: u64 = 1_000_000_000;

/// A connection that is being opened for less long than this when the time is over, in nanoseconds, is not held against the
/// server: it was begun late. A handshake is done by then, and one that found the listen backlog full takes a second at least.
const LET_IN_NANOS: u64 = 200_000_000;

impl Worker<'_> {
    pub(super) fn housekeeping(&mut self, now: u64) {
        self.flush_row(now);
        match (self.interrupts.count(), self.interrupts_heeded) {
            (1, 0) => {
                self.interrupts_heeded = 1;
                self.end_early(EndedEarly::Interrupted);
                // The replies that are on their way are still waited for, as long as such replies take.
                let patience = (2 * self.tally.slowest).max(PATIENCE_NANOS).min(self.timeout);
                self.settle_by = self.settle_by.min(now + patience);
            }
            (2.., 0 | 1) => {
                self.interrupts_heeded = 2;
                self.end_early(EndedEarly::InterruptedTwice);
                self.ended_early = Some(EndedEarly::InterruptedTwice);
                self.settle_by = now;
            }
            _ => {}
        }
        self.follow_shape(now);
        if now >= self.next_expiry {
            self.next_expiry = now + (self.timeout / 20).clamp(nanoseconds(HOUSEKEEPING), ROW_NANOS);
            self.expire(now);
        }
        if !self.offering {
            self.wind_up(now);
        }
        // Places in `ready` wait for a request, with --reconnect without a socket.
        let idle =
            self.to_open.is_empty() && !matches!(&self.pace, Pace::Open(open) if !open.ready.is_empty());
        if self.plan.expect_stop && self.live == 0 && idle && self.tally.connections.opened > 0 {
            // Every connection ended after the expected stop.
            self.stop_offering(now);
            self.send_by = 0;
            self.wind_up(now);
        }
    }

    /// Takes down the time for which this thread neither ran nor meant to sleep, before [`Self::housekeeping`]: it is late for
    /// that, and has not computed meanwhile.
    pub(super) fn look_for_absence(&mut self, now: u64) {
        let core_nanos = Usage::nanoseconds_on_a_core();
        let computed = core_nanos.saturating_sub(std::mem::replace(&mut self.core_nanos, core_nanos));
        if self.next_housekeeping > 0 {
            let absent = now.saturating_sub(self.next_housekeeping.saturating_add(computed));
            self.absence.add(absent, now, self.measure_from);
        }
    }

    pub(super) fn follow_shape(&mut self, now: u64) {
        let all = self.connections.len();
        let wanted = match &self.connection_curve {
            None => all,
            Some(curve) => {
                let at = now.saturating_sub(self.measure_from) as f64 / 1e9;
                usize::try_from(whole(curve.at(at) + 0.5)).unwrap_or(all).min(all)
            }
        };
        if wanted > self.wanted {
            self.to_open.extend(self.wanted..wanted);
        }
        let before = std::mem::replace(&mut self.wanted, wanted);
        for slot in wanted..before {
            self.close_if_settled(slot, now);
        }
    }

    /// Counts the connections that there should be and that the server has not let in, when the time is over. Where each request
    /// has its own, these are the requests that were never sent.
    pub(super) fn count_not_let_in(&mut self, now: u64) {
        if self.plan.reconnect || self.plan.expect_stop {
            return;
        }
        let before = now.saturating_sub(LET_IN_NANOS.min(self.deadline / 2));
        let mut is_stuck = false;
        for slot in 0..self.wanted {
            if self.connections[slot].phase == Phase::Connecting {
                self.catch_up(slot);
                let connection = &self.connections[slot];
                is_stuck |= connection.waits_for_entry() && connection.is_connecting_since(before);
            }
        }
        if !is_stuck {
            return;
        }
        // Others were begun later, or never, because only so many are opened at once.
        let untried = self.to_open.iter().copied().filter(|&slot| slot < self.wanted);
        let is_connecting = |&slot: &usize| self.connections[slot].waits_for_entry();
        let waiting: Vec<usize> = (0..self.wanted).filter(is_connecting).chain(untried).collect();
        for slot in waiting {
            let connection = &mut self.connections[slot];
            let is_new =
                matches!(connection.phase, Phase::Idle | Phase::Connecting) && !connection.is_not_let_in;
            connection.is_not_let_in |= is_new;
            self.tally.connections.not_let_in += u64::from(is_new);
        }
    }

    /// Takes in what lies in the socket, for whoever is about to judge its silence: this process may not have run for long.
    pub(super) fn catch_up(&mut self, slot: usize) {
        match self.connections[slot].phase {
            Phase::Idle => {}
            Phase::Connecting => {
                self.look_whether_connected(slot);
                self.read(slot);
            }
            Phase::Open | Phase::Closing => {
                if self.connections[slot].has_unsent() {
                    self.flush(slot);
                }
                self.read(slot);
            }
        }
    }

    pub(super) fn expire(&mut self, now: u64) {
        for slot in 0..self.connections.len() {
            if !self.connections[slot].is_overdue(now, self.timeout) {
                continue;
            }
            self.catch_up(slot);
            let connection = &mut self.connections[slot];
            if !connection.is_overdue(now, self.timeout) {
                continue;
            }
            match connection.phase {
                Phase::Idle => {}
                Phase::Connecting => {
                    self.drop_socket(slot);
                    let error = io::Error::new(ErrorKind::TimedOut, "not accepted within the timeout");
                    self.not_connected(slot, &error, now);
                }
                Phase::Open => {
                    let before = now.saturating_sub(self.timeout);
                    connection.ledger.expire_missing(before, &mut self.protocol, now, &mut self.tally);
                    if connection.is_silent(now, self.timeout) {
                        self.end(slot, Ending::TimedOut);
                    } else {
                        self.go_on(slot, now);
                    }
                }
                Phase::Closing => self.end(slot, Ending::Dropped),
            }
        }
    }

    /// Nothing more is offered: closes what is settled, and gives up what has had its time.
    pub(super) fn wind_up(&mut self, now: u64) {
        if now >= self.send_by {
            self.pace.give_up(&mut self.tally);
        }
        for slot in 0..self.connections.len() {
            // It may have been ended, or answered, a moment ago.
            if now >= self.settle_by || self.plan.expect_stop {
                self.catch_up(slot);
            }
            let connection = &mut self.connections[slot];
            if let Some(due) = connection.assigned.take_if(|_| now >= self.send_by) {
                self.assigned -= 1;
                self.tally.unsent(due, 1);
            }
            let connection = &self.connections[slot];
            match connection.phase {
                Phase::Open | Phase::Closing if now >= self.settle_by => self.end(slot, Ending::Dropped),
                Phase::Open => self.close_if_settled(slot, now),
                // It has no request to wait for.
                Phase::Connecting if connection.assigned.is_none() && !self.pace.has_backlog() => {
                    self.drop_socket(slot);
                }
                Phase::Idle | Phase::Connecting | Phase::Closing => {}
            }
        }
        if now >= self.send_by {
            self.to_open.clear();
            self.to_retry.clear();
        }
    }

    /// Sends the row that has ended before `now`, and all of it at the end.
    pub(super) fn flush_row(&mut self, now: u64) {
        let row_now = now.saturating_sub(self.measure_from) / ROW_NANOS;
        if row_now <= self.row {
            return;
        }
        let (clock, usage) = (self.now(), Usage::of_thread());
        let recent = &mut self.tally.recent;
        let any = recent.offered + recent.sent + recent.right + recent.errors > 0;
        if clock >= self.measure_from && (now != u64::MAX || any) {
            if usage.since(self.row_usage).is_never_idle(clock.saturating_sub(self.row_began)) {
                self.right_while_busy += recent.right;
            }
            let point = Point {
                sent: recent.sent,
                right: recent.right,
                errors: recent.errors,
                offered: recent.offered,
                connections: self.live as u64,
                latencies: recent.latencies.sparse(),
            };
            recent.reset();
            (self.rows)(Row { index: self.row, point });
        }
        (self.row_began, self.row_usage) = (clock, usage);
        self.row = row_now;
    }
}

//! What rules of others look at from time to time: the gate of .NET, php-fpm's maintenance, RoadRunner's allocator, and workers that
//! have been idle for long enough.

use super::{Engine, Event, Rule};
use crate::clock::{Nanos, nanos};
use crate::controller::Reason;

/// .NET: the gate looks this often (`GateActivitiesPeriodMs`).
const GATE: Nanos = 500_000_000;
/// .NET: so long without a request taken, times the threads, where the CPUs are in use (`DequeueDelayThresholdMs`).
const GATE_BUSY: Nanos = 1_000_000_000;
/// php-fpm: how often it looks (`FPM_IDLE_SERVER_MAINTENANCE_HEARTBEAT`), and most that it starts in a look (`FPM_MAX_SPAWN_RATE`).
const MAINTENANCE: Nanos = 1_000_000_000;
const MAX_SPAWN_RATE: usize = 32;
/// RoadRunner: how long a request waits in vain (`allocate_timeout`), the workers that are added then (`spawn_rate`), and how
/// often they may be.
const ALLOCATE_TIMEOUT: Nanos = 60_000_000_000;
const SPAWN_RATE: usize = 5;
const RATE_LIMIT: Nanos = 1_000_000_000;

/// What they remember.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// .NET: CPU time that was used when the gate looked last.
    used_at_gate: f64,
    /// php-fpm: how many it may start next, as a power of two.
    spawn_rate: u32,
    /// RoadRunner: an event is due for a request that waits.
    awaits: bool,
    /// RoadRunner: when workers were added last, and when a request would have had some added last.
    added_at: Option<Nanos>,
    tried_at: Nanos,
    /// RoadRunner: it looks whether some can leave. It begins when the first ones are added.
    listens: bool,
}

impl Rule {
    /// How often it looks.
    pub(super) fn looks_every(self) -> Option<Nanos> {
        match self {
            Rule::DotNet => Some(GATE),
            Rule::PhpFpm => Some(MAINTENANCE),
            _ => None,
        }
    }
}

impl Engine<'_> {
    pub(super) fn look(&mut self) {
        if let Some(after) = self.setup.rule.looks_every() {
            self.at(self.now + after, Event::Look);
        }
        match self.setup.rule {
            Rule::DotNet => self.look_through_gate(),
            Rule::PhpFpm => self.maintain(),
            Rule::RoadRunner => self.take_batch_away(),
            _ => {}
        }
    }

    /// As the gate thread of .NET.
    fn look_through_gate(&mut self) {
        let used = self.cpu.used(self.now);
        let in_use = used - self.others.used_at_gate >= 0.8 * GATE as f64 * self.cores as f64;
        self.others.used_at_gate = used;
        let patience = if in_use { GATE_BUSY * self.live as u64 } else { GATE };
        let starved = !self.waiting.is_empty() && self.now.saturating_sub(self.last_taken) > patience;
        if starved && self.live < self.policy.max() {
            self.resize(self.live + 1, self.jobs(), Reason::Valve, None);
        }
    }

    /// Ends workers that have been idle for the keep-alive.
    pub(super) fn end_idle(&mut self) {
        self.idle_timer = false;
        let keep_alive = nanos(self.policy.keep_alive());
        let least = self.setup.rule.idle_ends_above().unwrap_or(usize::MAX);
        while let Some(since) = self.idle.front().copied()
            && self.live > least
        {
            if self.now < since.saturating_add(keep_alive) {
                self.idle_timer = true;
                self.at(since.saturating_add(keep_alive), Event::IdleLongEnough);
                return;
            }
            self.resize(self.live - 1, self.jobs(), Reason::Surplus, None);
        }
    }

    /// As the master process of php-fpm.
    fn maintain(&mut self) {
        let (min_spare, max_spare) =
            (self.policy.min(), self.policy.min().saturating_add(self.policy.tolerance()));
        let idle = self.idle.len();
        let rate = std::mem::take(&mut self.others.spawn_rate);
        if idle > max_spare {
            self.resize(self.live - 1, self.jobs(), Reason::Surplus, None);
        } else if idle < min_spare && self.live < self.policy.max() {
            let most = (1 << rate).min(MAX_SPAWN_RATE);
            let more = most.min(min_spare - idle).min(self.policy.max() - self.live);
            self.others.spawn_rate = rate + u32::from(most < MAX_SPAWN_RATE);
            self.resize(self.live + more, self.jobs(), Reason::Demand, None);
        }
    }

    /// A request waits: RoadRunner looks once that has been in vain.
    pub(super) fn await_in_vain(&mut self) {
        if self.setup.rule == Rule::RoadRunner && !std::mem::replace(&mut self.others.awaits, true) {
            self.at(self.now + ALLOCATE_TIMEOUT, Event::WaitedInVain);
        }
    }

    /// As RoadRunner where no worker was free for a request in time.
    pub(super) fn add_batch(&mut self) {
        let in_vain = |arrived: Nanos| arrived + ALLOCATE_TIMEOUT;
        let until_now = self.waiting.partition_point(|waiting| in_vain(waiting.arrived) <= self.now);
        let next = self.waiting.get(until_now).map(|waiting| in_vain(waiting.arrived));
        self.others.awaits = next.is_some();
        if let Some(next) = next {
            self.at(next, Event::WaitedInVain);
        }
        let now = self.now;
        let some = until_now.checked_sub(1).and_then(|last| self.waiting.get(last));
        let fails = some.is_some_and(|waiting| in_vain(waiting.arrived) == now);
        if fails {
            self.others.tried_at = now;
        }
        if fails && self.others.added_at.is_none_or(|at| now >= at + RATE_LIMIT) {
            self.others.added_at = Some(now);
            if !std::mem::replace(&mut self.others.listens, true) {
                self.at(now.saturating_add(nanos(self.policy.keep_alive())), Event::Look);
            }
            self.resize((self.live + SPAWN_RATE).min(self.policy.max()), self.jobs(), Reason::Valve, None);
        }
    }

    /// As RoadRunner at each end of its idle timeout, until none is left of those that were added.
    fn take_batch_away(&mut self) {
        let (keep_alive, now) = (nanos(self.policy.keep_alive()), self.now);
        let added = |engine: &Engine<'_>| engine.live.saturating_sub(engine.policy.min());
        if now.saturating_sub(self.others.tried_at) >= keep_alive {
            let leave = added(self).min(SPAWN_RATE).min(self.idle.len());
            self.resize(self.live - leave, self.jobs(), Reason::Surplus, None);
            self.others.listens = added(self) > 0;
        }
        if self.others.listens {
            self.at(now.saturating_add(keep_alive), Event::Look);
        }
    }
}

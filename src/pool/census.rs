//! How the workers are doing, looked at one by one: what the controller needs to know of them, and the statistics show.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::crew::Thread;
use crate::clock::Nanos;
use crate::controller::DRAIN_TARGET;
use crate::service::Waits;
use crate::slots::ConnId;

/// What a worker shows of itself. The atomics are statistics, relaxed, written by the worker only.
#[derive(Debug)]
pub(crate) struct WorkerState {
    /// See `crew`.
    pub(super) thread: Mutex<Thread>,
    /// The system's number of the thread; 0 before it runs.
    tid: AtomicU32,
    /// When it took its last job, by the server's clock, times two, plus one while it runs it.
    last: AtomicU64,
    /// Of which connection that was. Apart from `last`, so for a moment it may be that of another.
    connection: AtomicU64,
    /// What its handler says that it waits for.
    pub(super) waits: Waits,
}

impl WorkerState {
    /// Of a worker that is started at `now`.
    pub(super) fn new(now: Nanos) -> WorkerState {
        WorkerState {
            thread: Mutex::default(),
            tid: AtomicU32::new(0),
            last: AtomicU64::new(now * 2),
            connection: AtomicU64::new(0),
            waits: Waits::default(),
        }
    }

    /// Called by the worker's thread, so that it is known as such.
    pub(super) fn runs_here(&self) {
        self.tid.store(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs(), Relaxed);
    }

    /// It begins a job of `connection` at `now`.
    pub(super) fn begins(&self, connection: ConnId, now: Nanos) {
        let ConnId { slot, generation } = connection;
        self.connection.store(u64::from(slot) << 32 | u64::from(generation), Relaxed);
        self.last.store(now * 2 + 1, Relaxed);
    }

    /// It has done the job that it began at `begun`.
    pub(super) fn is_done(&self, begun: Nanos) {
        self.last.store(begun * 2, Relaxed);
    }

    pub(super) fn last_taken(&self) -> Duration {
        Duration::from_nanos(self.last.load(Relaxed) / 2)
    }

    /// Of whom it has had a job for `long` or longer at `now`, and for how long.
    #[cfg(feature = "admin")]
    #[expect(clippy::cast_possible_truncation, reason = "each is a half")]
    pub(super) fn has_had_for(&self, long: Duration, now: Duration) -> Option<(ConnId, Duration)> {
        let age = now.saturating_sub(self.last_taken());
        let connection = self.connection.load(Relaxed);
        (self.is_busy() && age >= long)
            .then_some((ConnId { slot: (connection >> 32) as u32, generation: connection as u32 }, age))
    }

    fn is_busy(&self) -> bool {
        self.last.load(Relaxed) % 2 == 1
    }
}

/// How the workers are doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Workers that run or are being started.
    pub(crate) live: usize,
    pub(crate) busy: usize,
    /// When a worker last took a job.
    pub(crate) last_taken: Duration,
    /// Busy workers that have had their jobs for [`DRAIN_TARGET`] or longer.
    pub(crate) old: usize,
    /// Those that have for as long as was asked.
    pub(crate) lost: usize,
    /// How long the one that has had its job for longest has had it.
    pub(crate) oldest_age: Duration,
    /// Busy workers whose handlers say that they are blocked.
    pub(crate) declared: usize,
    /// Who does what the other busy workers are busy with.
    pub(crate) doers: Vec<Doer>,
}

/// Who does a job: by whether it runs it is known whether the worker is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doer {
    /// The worker's own thread.
    Thread(u32),
    /// A process that the worker waits for.
    Process(u32),
}

impl Census {
    /// Of `live` workers, who show `states` at `now`; those who have left took their last job at `last_taken`. Whoever has had
    /// a job for `long` counts as lost.
    pub(super) fn take<'a>(
        live: usize,
        states: impl Iterator<Item = &'a WorkerState>,
        last_taken: Duration,
        now: Duration,
        long: Duration,
    ) -> Census {
        let mut census = Census { live, last_taken, ..Census::default() };
        for state in states {
            let taken = state.last_taken();
            census.last_taken = census.last_taken.max(taken);
            if !state.is_busy() {
                continue;
            }
            let age = now.saturating_sub(taken);
            census.busy += 1;
            census.old += usize::from(age >= DRAIN_TARGET);
            census.lost += usize::from(age >= long);
            census.oldest_age = census.oldest_age.max(age);
            if state.waits.blocks() {
                census.declared += 1;
            } else {
                let thread = || Doer::Thread(state.tid.load(Relaxed));
                census.doers.push(state.waits.process().map_or_else(thread, Doer::Process));
            }
        }
        census
    }
}

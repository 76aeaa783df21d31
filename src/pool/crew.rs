//! Who is there: how many workers there are and should be, who they are, and their threads, from the start to the last join.
//!
//! Three places are written in an order that others rely on; held by `loom_tests` of the pool:
//! - [`Crew::set_target`] shows the excess, then lets parked workers go: a worker that parks too late to be let go has seen
//!   the lock of the parked ones after it, and so sees the excess before it sleeps.
//! - [`Crew::retire`] and [`Crew::give_up`] show that there is one worker less, and only then look for work, behind a fence. Who
//!   submits pushes, and behind a fence reads how many there are. So one of the two sees what the other did, and a job is not
//!   left to a worker that is gone.
//! - [`Crew::leave`] comes when a worker owes nothing any more: no reply, no job, no search.

use std::mem;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::census::{Census, WorkerState};
use super::sleep::Sleep;
use crate::clock::Nanos;
use crate::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use crate::sync::{Condvar, Mutex, lock, lock_std, wait, wait_timeout};

/// How long the threads of a server may take to end once the last of them has been told to.
pub(crate) const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Crew {
    state: Mutex<State>,
    /// The crew became smaller, or all its threads have ended, or they are waited for no longer.
    left: Condvar,
    /// Copy of `State::live` that is read without the lock.
    live: AtomicUsize,
    /// Live workers above the target. Each busy one looks here after its job.
    excess: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Workers that run or are being started. Surplus workers that are busy count until they end.
    live: usize,
    target: usize,
    /// Once set, the target stays 0.
    stopping: bool,
    next_id: u64,
    /// When one of those who have left took its last job.
    last_taken: Duration,
    workers: Vec<(u64, Arc<WorkerState>)>,
    /// The thread that left last: it ends, or has ended. It has joined the one that left before it, so whoever joins this one
    /// has joined them all, and never more than one that has ended keeps its stack.
    leaver: Option<JoinHandle<()>>,
    /// Workers are waited for until then. Set when the pool is stopped, and only ever brought forward.
    deadline: Option<Instant>,
    /// Every thread of a worker has ended and was joined.
    joined: bool,
}

/// The thread of a worker, between who starts it and itself, which may leave before the other has its handle.
#[derive(Debug, Default)]
pub(super) enum Thread {
    #[default]
    Starting,
    Runs(JoinHandle<()>),
    Left,
}

impl Crew {
    pub(super) fn new() -> Crew {
        Crew {
            state: Mutex::new(State::default()),
            left: Condvar::new(),
            live: AtomicUsize::new(0),
            excess: AtomicUsize::new(0),
        }
    }

    /// Workers that run or are being started, perhaps a moment ago.
    pub(super) fn live(&self) -> usize {
        self.live.load(Relaxed)
    }

    /// Workers there should be.
    pub(super) fn target(&self) -> usize {
        lock(&self.state).target
    }

    pub(super) fn has_excess(&self) -> bool {
        self.excess.load(Relaxed) > 0
    }

    /// Sets how many workers there should be, and lets parked ones go. Returns how many are missing, which count from here on.
    pub(super) fn set_target(&self, target: usize, sleep: &Sleep) -> usize {
        let mut state = lock(&self.state);
        state.target = if state.stopping { 0 } else { target };
        let missing = state.target.saturating_sub(state.live);
        state.live += missing;
        for _ in 0..missing {
            sleep.starts();
        }
        self.show(&state);
        let surplus = state.live - state.target;
        if surplus > 0 {
            state.live -= sleep.release(surplus);
            self.show(&state);
        }
        missing
    }

    /// Every target is 0 from now on.
    pub(super) fn stop(&self, sleep: &Sleep) {
        lock(&self.state).stopping = true;
        self.set_target(0, sleep);
    }

    /// A worker is about to be started, at `now`: its number, and what it shows of itself.
    pub(super) fn enlist(&self, now: Nanos) -> (u64, Arc<WorkerState>) {
        let mut state = lock(&self.state);
        state.next_id += 1;
        let worker = (state.next_id, Arc::new(WorkerState::new(now)));
        state.workers.push(worker.clone());
        worker
    }

    /// The thread of an enlisted worker runs.
    pub(super) fn has_started(&self, worker: &WorkerState, thread: JoinHandle<()>) {
        {
            let mut place = lock_std(&worker.thread);
            if let Thread::Starting = *place {
                *place = Thread::Runs(thread);
                return;
            }
        }
        // It has left already, and could not put itself there.
        let before = lock(&self.state).leaver.replace(thread);
        join(before);
    }

    /// An enlisted worker was not started.
    pub(super) fn strike(&self, id: u64) {
        lock(&self.state).workers.retain(|(other, _)| *other != id);
    }

    /// `count` missing workers are not going to be started, and the target is lowered to match.
    pub(super) fn give_up(&self, count: usize) {
        let mut state = lock(&self.state);
        state.live -= count;
        state.target = state.target.min(state.live);
        self.show(&state);
        self.left.notify_all();
    }

    /// A worker asks whether it is surplus. If so it does not count as live any more, and has to end.
    pub(super) fn retire(&self) -> bool {
        if !self.has_excess() {
            return false;
        }
        let mut state = lock(&self.state);
        let surplus = state.live > state.target;
        if surplus {
            state.live -= 1;
            self.show(&state);
        }
        surplus
    }

    /// A worker is not in the crew any more. `counts`: it still counts as live, as it unwinds by a bug of ours.
    ///
    /// Returns the one that left before, which this one has to join when it has nothing else left to do.
    pub(super) fn leave(&self, id: u64, counts: bool) -> Option<JoinHandle<()>> {
        let mut state = lock(&self.state);
        let mut before = None;
        if let Some(place) = state.workers.iter().position(|(other, _)| *other == id) {
            let (_, worker) = state.workers.remove(place);
            state.last_taken = state.last_taken.max(worker.last_taken());
            if let Thread::Runs(thread) = mem::replace(&mut *lock_std(&worker.thread), Thread::Left) {
                before = state.leaver.replace(thread);
            }
        }
        if counts {
            state.live -= 1;
            // So that the tuner misses it.
            state.target = state.target.min(state.live);
            self.show(&state);
        }
        self.left.notify_all();
        before
    }

    /// Looks at every worker at `now`. Whoever has had its job for `long` counts as lost.
    pub(super) fn census(&self, now: Duration, long: Duration) -> Census {
        let state = lock(&self.state);
        let states = state.workers.iter().map(|(_, worker)| &**worker);
        Census::take(state.live, states, state.last_taken, now, long)
    }

    /// See [`Pool::old_jobs`](super::Pool::old_jobs).
    #[cfg(feature = "admin")]
    pub(super) fn old_jobs(&self, now: Duration, long: Duration) -> Vec<super::OldJob> {
        let state = lock(&self.state);
        let old = |(id, worker): &(u64, Arc<WorkerState>)| {
            let (connection, age) = worker.has_had_for(long, now)?;
            Some(super::OldJob { worker: thread_name(*id), connection, age })
        };
        state.workers.iter().filter_map(old).collect()
    }

    /// See [`Pool::leave_by`](super::Pool::leave_by).
    pub(super) fn leave_by(&self, deadline: Instant) {
        let mut state = lock(&self.state);
        state.deadline = Some(state.deadline.map_or(deadline, |before| before.min(deadline)));
        self.left.notify_all();
    }

    /// See [`Pool::join_workers`](super::Pool::join_workers).
    pub(super) fn join_all(&self) {
        let mut state = lock(&self.state);
        while !state.workers.is_empty() || state.live > 0 {
            if state.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return;
            }
            state = wait(&self.left, state);
        }
        let last = state.leaver.take();
        drop(state);
        join(last);
        lock(&self.state).joined = true;
        self.left.notify_all();
    }

    /// See [`Pool::wait_until_joined`](super::Pool::wait_until_joined).
    pub(super) fn wait_until_joined(&self) -> (Vec<String>, bool) {
        let mut state = lock(&self.state);
        while !state.joined {
            let deadline = *state.deadline.get_or_insert_with(|| Instant::now() + LEAVE_TIMEOUT);
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                break;
            }
            state = wait_timeout(&self.left, state, rest);
        }
        let left_behind: Vec<_> = state.workers.iter().map(|(id, _)| thread_name(*id)).collect();
        let joined = state.joined;
        // Whoever joins them sees that the deadline has passed.
        self.left.notify_all();
        (left_behind, joined)
    }

    /// Copies what is read without the lock.
    fn show(&self, state: &State) {
        self.live.store(state.live, Relaxed);
        self.excess.store(state.live.saturating_sub(state.target), Relaxed);
    }
}

/// The name of the thread of worker `id`.
pub(super) fn thread_name(id: u64) -> String {
    format!("tidemill-w{id}")
}

/// Waits until a worker's thread has ended, which it is about to.
pub(super) fn join(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        tracing::error!("a worker's thread panicked");
    }
}

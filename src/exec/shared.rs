//! What workers and keeper share: the spares, how many programs are missing, what was given back, and the counts.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mio::Waker;

use super::command;
use super::extent::{Extent, Requests};
use super::leased::{Lease, Mode};
use super::log::{Notice, Notices};
use super::prefix::Prefix;
use super::program::{Card, Program};
use super::stats::{ProgramEnds, ProgramStats, ProgramsStats, resident_bytes};
use crate::sync::lock_std;

/// Processes that are looked at for what all of them occupy, the oldest: each takes some 10 µs.
const MAX_LOOKS: usize = 64;

/// What was set, checked.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) command: command::Program,
    /// `None`: the server's lines.
    pub(super) requests: Option<Requests>,
    pub(super) reply: Extent,
    pub(super) prefix: Prefix,
    pub(super) timeout: Duration,
    pub(super) spare: usize,
    pub(super) max_requests: Option<u64>,
    pub(super) max_age: Option<Duration>,
    pub(super) pty: bool,
    pub(super) stop_timeout: Duration,
    pub(super) stop_line: Option<Vec<u8>>,
    pub(super) mode: Mode,
    pub(super) least: usize,
}

/// Why a program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself.
    Died,
    /// It did not reply in time.
    TimedOut,
    /// It wrote what was no reply.
    Broke,
    /// It had served or lived for as long as it may.
    Replaced,
    /// Nobody needs it any more.
    Surplus,
}

pub(super) struct Shared {
    pub(super) settings: Settings,
    state: Mutex<State>,
    /// There is a spare, or none is to be waited for.
    news: Condvar,
    /// Of the keeper.
    waker: Waker,
    /// Requests that were served by any program. Relaxed: a statistic.
    pub(super) served: AtomicU64,
    /// Numbers of requests.
    requests: AtomicU64,
    /// Held-back output was named.
    pub(super) is_named: AtomicBool,
    /// Is told whether programs stay.
    watcher: Mutex<Option<Watcher>>,
}

/// Is told whether programs stay where they are started.
type Watcher = Box<dyn Fn(bool) + Send>;

#[derive(Debug, Default)]
struct State {
    /// Ready, the oldest first, so that the next one that is taken has had the most time to start.
    spares: VecDeque<Program>,
    /// Workers without a program.
    empty: usize,
    /// Connections that wait for one, in the order in which they came. While a spare is there none does.
    leases: VecDeque<Lease>,
    /// Connections that have one.
    leased: usize,
    /// What programs may know of the client that was refused last: for the one that is tried, where all are started for a client.
    last_known: Vec<(&'static str, OsString)>,
    /// Given back to be ended: as what, and whether it has served nobody.
    gone: Vec<(u64, End, bool)>,
    /// None stays: nobody waits for one.
    in_trouble: bool,
    /// The server stops: who starts does not wait.
    hurries: bool,
    /// It is to end: how long programs get for it.
    stopping: Option<Duration>,
    /// The keeper is gone.
    over: bool,
    listed: BTreeMap<u64, Arc<Card>>,
    started: u64,
    ends: ProgramEnds,
    notices: Notices,
}

impl Shared {
    pub(super) fn new(settings: Settings, waker: Waker) -> Shared {
        Shared {
            settings,
            state: Mutex::default(),
            news: Condvar::new(),
            waker,
            served: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            is_named: AtomicBool::new(false),
            watcher: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock_std(&self.state)
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "the programs' thread cannot be woken");
        }
    }

    // For workers.

    /// The number of the next request.
    pub(super) fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Relaxed) + 1
    }

    /// A worker has no program yet, or has lost its own: one is started for it, besides the spares.
    pub(super) fn is_missing(&self) {
        self.state().empty += 1;
        self.wake();
    }

    /// A worker without a program is gone.
    pub(super) fn is_not_missing(&self) {
        let mut state = self.state();
        debug_assert!(state.empty > 0, "a worker without a program was counted when it lost it");
        state.empty = state.empty.saturating_sub(1);
        self.end_surplus(state);
    }

    /// Ends spares that nobody needs any more.
    fn end_surplus(&self, mut state: MutexGuard<'_, State>) {
        let most = self.kept_ready(&state).min(state.spares.len());
        let surplus: Vec<Program> = state.spares.drain(most..).collect();
        state.gone.extend(surplus.iter().map(|program| (program.card.number, End::Surplus, false)));
        drop(state);
        if !surplus.is_empty() {
            // Only now their input ends: whoever is told to end them knows already why.
            drop(surplus);
            self.wake();
        }
    }

    /// Programs that are to be ready now, for those who have none and as spares.
    fn kept_ready(&self, state: &State) -> usize {
        let (spare, least) = (self.settings.spare, self.settings.least);
        // With no spares programs are started for clients that are known: none goes before.
        let spares = if spare == 0 { 0 } else { spare.max(least.saturating_sub(state.leased)) };
        state.empty + spares
    }

    /// A program for a worker without one, which it then has. Blocks until one is ready, or until `until`. `None`: there is none.
    pub(super) fn take(&self, until: Instant) -> Option<Program> {
        self.take_unless(until, |_| false)
    }

    /// The same for a worker that starts, which nobody waits for while the server stops.
    pub(super) fn take_at_start(&self, until: Instant) -> Option<Program> {
        self.take_unless(until, |state| state.hurries)
    }

    fn take_unless(&self, until: Instant, gives_up: impl Fn(&State) -> bool) -> Option<Program> {
        let mut state = self.state();
        loop {
            if state.stopping.is_some() || state.over || gives_up(&state) {
                return None;
            }
            if let Some(program) = state.spares.pop_front() {
                state.empty = state.empty.saturating_sub(1);
                drop(state);
                self.wake();
                return Some(program);
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.in_trouble || left.is_zero() {
                return None;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A worker that leaves gives its program back, as a spare if one is missing.
    pub(super) fn give_back(&self, program: Program) {
        let mut state = self.state();
        // One that has ended meanwhile is in no list any more.
        let is_alive = state.listed.contains_key(&program.card.number);
        let is_missing = state.spares.len() < self.kept_ready(&state);
        if state.stopping.is_none() && !state.over && is_alive && is_missing {
            state.spares.push_back(program);
            self.news.notify_all();
            return;
        }
        state.gone.push((program.card.number, End::Surplus, false));
        drop(state);
        self.wake();
    }

    /// A worker's program is to end; the worker has none then.
    pub(super) fn retire(&self, program: Program, end: End) {
        let is_first = program.card.served.load(Relaxed) == 0;
        let mut state = self.state();
        state.gone.push((program.card.number, end, is_first));
        state.empty += 1;
        drop(state);
        // Only now its input ends: whoever is told to end it knows already why.
        drop(program);
        self.wake();
    }

    // For the event loop.

    /// A connection wants a program of its own. Does not block.
    pub(super) fn lease(self: &Arc<Self>, lease: Lease) {
        let mut state = self.state();
        if state.stopping.is_some() || state.over || state.in_trouble {
            state.last_known = lease.environment().collect();
            drop(state);
            return lease.refuse();
        }
        match state.spares.pop_front() {
            Some(program) => {
                state.leased += 1;
                drop(state);
                self.has_proved(&program);
                lease.give(self, program);
            }
            None => {
                state.leases.push_back(lease);
                drop(state);
            }
        }
        self.wake();
    }

    /// A program has shown that it stays: whatever becomes of it now says nothing of the others.
    fn has_proved(&self, program: &Program) {
        program.has_served();
        self.served.fetch_add(1, Relaxed);
    }

    /// What programs may know of the client that was refused last.
    pub(super) fn last_known(&self) -> Vec<(&'static str, OsString)> {
        self.state().last_known.clone()
    }

    /// The connection of a program has ended.
    pub(super) fn end_lease(&self, number: u64, end: End) {
        let mut state = self.state();
        state.leased -= 1;
        state.gone.push((number, end, false));
        drop(state);
        self.wake();
    }

    /// Tells of a failure, now and then. `None`: not now. Else how many there were since.
    pub(super) fn notice(&self, notice: Notice) -> Option<u64> {
        self.state().notices.tell(notice)
    }

    // For the keeper.

    pub(super) fn take_gone(&self) -> (Vec<(u64, End, bool)>, bool) {
        let mut state = self.state();
        let stops = state.stopping.is_some();
        let left = stops.then(|| (mem::take(&mut state.spares), mem::take(&mut state.leases)));
        let gone = mem::take(&mut state.gone);
        drop(state);
        // Not under the lock: a connection that waits is told.
        drop(left);
        (gone, stops)
    }

    /// How long a program gets to end.
    pub(super) fn grace(&self) -> Duration {
        self.state().stopping.unwrap_or(self.settings.stop_timeout)
    }

    /// Programs that are missing, those that are being started among them.
    pub(super) fn wanted(&self) -> usize {
        let mut state = self.state();
        let mut gone = VecDeque::new();
        if !state.leases.is_empty() {
            (state.leases, gone) = mem::take(&mut state.leases).into_iter().partition(Lease::is_there);
        }
        let wanted = state.leases.len() + self.kept_ready(&state);
        let missing = wanted.saturating_sub(state.spares.len());
        drop(state);
        // Not under the lock: it says so to the event loop.
        drop(gone);
        missing
    }

    pub(super) fn has_spare(&self) -> bool {
        !self.state().spares.is_empty()
    }

    pub(super) fn has_started(&self, card: &Arc<Card>) {
        let mut state = self.state();
        state.started += 1;
        state.listed.insert(card.number, Arc::clone(card));
    }

    /// A program may be taken.
    pub(super) fn is_ready(self: &Arc<Self>, program: Program) {
        let mut state = self.state();
        match state.leases.pop_front() {
            Some(lease) => {
                state.leased += 1;
                drop(state);
                self.has_proved(&program);
                lease.give(self, program);
            }
            None => {
                state.spares.push_back(program);
                self.news.notify_all();
                // What it was started for may have gone. While none stays, one that does is what shows that they do again.
                if !state.in_trouble {
                    self.end_surplus(state);
                }
            }
        }
    }

    /// The next connection that waits for a program.
    pub(super) fn next_lease(&self) -> Option<Lease> {
        let mut state = self.state();
        let lease = state.leases.pop_front()?;
        state.leased += 1;
        Some(lease)
    }

    /// It waits still.
    pub(super) fn lease_waits(&self, lease: Lease) {
        let mut state = self.state();
        state.leased -= 1;
        state.leases.push_front(lease);
    }

    /// The process of program `number` is gone, and why. Whether it was a spare.
    pub(super) fn has_ended(&self, number: u64, end: End) -> bool {
        let mut state = self.state();
        state.listed.remove(&number);
        *match end {
            End::Died => &mut state.ends.died,
            End::TimedOut => &mut state.ends.timed_out,
            End::Broke => &mut state.ends.broke_framing,
            End::Replaced => &mut state.ends.replaced,
            End::Surplus => &mut state.ends.surplus,
        } += 1;
        let before = state.spares.len();
        state.spares.retain(|spare| spare.card.number != number);
        state.spares.len() < before
    }

    pub(super) fn is_in_trouble(&self) -> bool {
        self.state().in_trouble
    }

    /// No program stays. Whether that is news.
    pub(super) fn is_in_trouble_from_now(&self) -> bool {
        let mut state = self.state();
        let was = mem::replace(&mut state.in_trouble, true);
        let leases = mem::take(&mut state.leases);
        drop(state);
        leases.into_iter().for_each(Lease::refuse);
        self.news.notify_all();
        self.tell(false);
        !was
    }

    fn tell(&self, available: bool) {
        if let Some(watcher) = &*lock_std(&self.watcher) {
            watcher(available);
        }
    }

    /// `watcher` is told whether programs stay: now, and whenever that changes.
    pub(super) fn watch(&self, watcher: Watcher) {
        let mut place = lock_std(&self.watcher);
        watcher(!self.is_in_trouble());
        *place = Some(watcher);
    }

    pub(super) fn trouble_is_over(&self) {
        let mut state = self.state();
        if mem::replace(&mut state.in_trouble, false) {
            self.end_surplus(state);
            self.tell(true);
            tracing::info!("programs stay again; requests are served");
        }
    }

    /// The keeper is gone.
    pub(super) fn is_over(&self) {
        let mut state = self.state();
        let was_stopping = state.stopping.is_some();
        state.over = true;
        state.in_trouble |= !was_stopping;
        let left = (mem::take(&mut state.spares), mem::take(&mut state.leases));
        drop(state);
        drop(left);
        self.news.notify_all();
        if !was_stopping {
            self.tell(false);
        }
    }

    // For everybody.

    /// Workers that start do not wait any more.
    pub(super) fn hurry(&self) {
        self.state().hurries = true;
        self.news.notify_all();
    }

    /// Programs are to end, and get `grace` for it at the most.
    pub(super) fn stop(&self, grace: Duration) {
        let mut state = self.state();
        state.stopping = Some(state.stopping.map_or(grace, |before| before.min(grace)));
        self.news.notify_all();
        drop(state);
        self.wake();
    }

    pub(super) fn stats(&self) -> ProgramsStats {
        let state = self.state();
        let ids: Vec<u32> = state.listed.values().map(|card| card.id).take(MAX_LOOKS).collect();
        let mut stats = ProgramsStats {
            available: !state.in_trouble,
            ready: state.spares.len() as u64,
            running: state.listed.len() as u64,
            resident_bytes: 0,
            started_total: state.started,
            ended_total: state.ends,
        };
        // Nobody waits while it is looked at what they occupy.
        drop(state);
        let looked_at = ids.len().max(1) as u64;
        let sum: u64 = ids.into_iter().map(resident_bytes).sum();
        // Those that were looked at stand for all.
        stats.resident_bytes = sum / looked_at * stats.running.max(looked_at);
        stats
    }

    /// Those that run, the oldest first, `most` at the most.
    pub(super) fn programs(&self, most: usize) -> Vec<ProgramStats> {
        let state = self.state();
        let is_ready = |card: &Card| state.spares.iter().any(|spare| spare.card.number == card.number);
        let mut programs: Vec<ProgramStats> = state
            .listed
            .values()
            .take(most)
            .map(|card| ProgramStats {
                number: card.number,
                pid: card.id,
                age_seconds: card.started.elapsed().as_secs_f64(),
                requests: card.served.load(Relaxed),
                resident_bytes: 0,
                ready: is_ready(card),
            })
            .collect();
        drop(state);
        for program in &mut programs {
            program.resident_bytes = resident_bytes(program.pid);
        }
        programs
    }
}

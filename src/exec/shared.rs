//! What workers and keeper share: the programs that are ready, how many there are to be, what failed, and the counts.
//!
//! A worker has a program while it has a request, no longer: whoever has one is served by any that is ready, and those that wait for one
//! get it in the order in which they came. So no request waits for a start while programs are idle, and what is to be done about idle
//! ones, of age or dead, is done by the keeper. Held by `exec::replaced` in `tests/it`, but for the order: without it whoever waits is
//! mostly awake before the next request is taken, so that no test from outside tells.

mod figures;

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
use super::stats::ProgramEnds;
use crate::sync::lock_std;

/// Programs that have reached their age have successors started so many at a time, a part of all: they take the CPUs from those that serve.
const SUCCESSORS_SHARE: usize = 4;

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

/// A program that nobody uses any more.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) number: u64,
    pub(super) end: End,
    /// It failed before it had served anybody.
    pub(super) is_first: bool,
    /// Where it is to be seen whether it ends by itself: until then its input does not.
    pub(super) program: Option<Program>,
}

impl Gone {
    fn because(program: &Program, end: End) -> Gone {
        Gone { number: program.card.number, end, is_first: false, program: None }
    }
}

pub(super) struct Shared {
    pub(super) settings: Settings,
    state: Mutex<State>,
    /// There is a program, or none is to be waited for.
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
    /// Programs that wait for a request. The last is taken next: the one that was used last, or, of those that were not used yet, the
    /// oldest, which has had the most time to start.
    idle: VecDeque<Program>,
    /// Programs that have a request.
    busy: usize,
    /// Those that there may be beyond what is wanted, as others are to be replaced by them.
    successors: usize,
    /// Workers, and of them those that take requests.
    workers: usize,
    seated: usize,
    /// Requests that wait for a program, in the order in which they came, by a number of their own.
    waiting: VecDeque<u64>,
    last_waiting: u64,
    /// Connections that wait for one, in the order in which they came. While one is ready none does.
    leases: VecDeque<Lease>,
    /// Connections that have one.
    leased: usize,
    /// What programs may know of the client that was refused last: for the one that is tried, where all are started for a client.
    last_known: Vec<(&'static str, OsString)>,
    /// To be ended.
    gone: Vec<Gone>,
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

/// A program has a request. Dropped, where something panicked, it has none any more, and is in no list: its input has ended.
pub(super) struct Busy<'a>(&'a Shared);

impl Busy<'_> {
    fn end(self, state: &mut State) {
        state.busy -= 1;
        mem::forget(self);
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.state().busy -= 1;
        self.0.wake();
    }
}

impl State {
    /// Programs that are ready or have a request.
    fn there(&self) -> usize {
        self.idle.len() + self.busy
    }

    /// The programs are to end, or nobody keeps them any more.
    fn refuses(&self) -> bool {
        self.stopping.is_some() || self.over
    }

    /// The next program, for a request.
    fn pop(&mut self) -> Option<Program> {
        if self.refuses() {
            return None;
        }
        let program = self.idle.pop_back()?;
        self.busy += 1;
        Some(program)
    }
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

    /// A worker starts: a program is started for it, besides the spares. Blocks until that is ready, or until `until`, so that the pool
    /// does not take it for one that waits for nothing.
    pub(super) fn enter(&self, until: Instant) {
        let mut state = self.state();
        state.workers += 1;
        self.wake();
        while !state.refuses() && !state.hurries && !state.in_trouble && state.seated >= state.there() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.seated += 1;
    }

    /// A worker is gone, and one program fewer is needed.
    pub(super) fn leave(&self) {
        let mut state = self.state();
        debug_assert!(state.seated > 0, "a worker that leaves has entered");
        (state.workers, state.seated) = (state.workers.saturating_sub(1), state.seated.saturating_sub(1));
        // Its seat is for one that waits for one.
        self.news.notify_all();
        self.end_surplus(state);
    }

    /// Ends idle programs that nobody needs any more, or whose successor is there.
    fn end_surplus(&self, mut state: MutexGuard<'_, State>) {
        let mut surplus = Vec::new();
        let wanted = self.wanted_in_all(&state);
        while state.there() > wanted && !state.idle.is_empty() {
            // The one that was started first: a successor may be of age itself by the time that it is ready.
            let idle = state.idle.iter().enumerate();
            let aged = idle.filter(|(_, program)| self.is_aged(&program.card));
            let aged = aged.min_by_key(|(_, program)| program.card.number).map(|(place, _)| place);
            if aged.is_none() && state.there() <= wanted + state.successors {
                break;
            }
            let Some(program) = state.idle.remove(aged.unwrap_or(0)) else { break };
            let end = if aged.is_some() { End::Replaced } else { End::Surplus };
            state.successors -= usize::from(aged.is_some() && state.successors > 0);
            state.gone.push(Gone::because(&program, end));
            surplus.push(program);
        }
        drop(state);
        if !surplus.is_empty() {
            // Only now their input ends: whoever is told to end them knows already why.
            drop(surplus);
            self.wake();
        }
    }

    /// It is to be replaced for its age.
    pub(super) fn is_aged(&self, card: &Card) -> bool {
        self.settings.max_age.is_some_and(|age| card.started.elapsed() >= age)
    }

    /// Programs that are to be there, of those that no connection has.
    fn wanted_in_all(&self, state: &State) -> usize {
        let (spare, least) = (self.settings.spare, self.settings.least);
        // With no spares programs are started for clients that are known: none goes before.
        let spares = if spare == 0 { 0 } else { spare.max(least.saturating_sub(state.leased)) };
        state.workers + spares
    }

    /// A program for a request. Blocks until one is ready, behind those that wait already, or until `until`. `None`: there is none. It
    /// has to be given back, or retired.
    pub(super) fn take(&self, until: Instant) -> Option<(Program, Busy<'_>)> {
        let mut state = self.state();
        if state.waiting.is_empty()
            && let Some(program) = state.pop()
        {
            return Some((program, Busy(self)));
        }
        state.last_waiting += 1;
        let me = state.last_waiting;
        state.waiting.push_back(me);
        let taken = loop {
            if state.waiting.front() == Some(&me)
                && let Some(program) = state.pop()
            {
                break Some(program);
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.refuses() || state.in_trouble || left.is_zero() {
                break None;
            }
            state = self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        state.waiting.retain(|waiting| *waiting != me);
        if !state.waiting.is_empty() && !state.idle.is_empty() {
            self.news.notify_all();
        }
        drop(state);
        taken.map(|program| (program, Busy(self)))
    }

    /// A program has answered its request and may have another.
    pub(super) fn give_back(&self, program: Program, busy: Busy<'_>) {
        let mut state = self.state();
        busy.end(&mut state);
        // One that has ended meanwhile is in no list any more.
        if state.refuses() || !state.listed.contains_key(&program.card.number) {
            drop(state);
            drop(program);
            return self.wake();
        }
        state.idle.push_back(program);
        if !state.waiting.is_empty() {
            self.news.notify_all();
        }
        self.end_surplus(state);
    }

    /// A program that had a request is to end. `untouched`: it has read nothing of that.
    pub(super) fn retire(&self, program: Program, busy: Busy<'_>, end: End, untouched: bool) {
        let mut gone = Gone::because(&program, end);
        gone.is_first = program.card.served.load(Relaxed) == 0 && (untouched || end == End::Died);
        // Whether it ends by itself shows only while its input does not end.
        let (kept, ended) = match end {
            End::Died => (Some(program), None),
            End::Broke if gone.is_first => (Some(program), None),
            _ => (None, Some(program)),
        };
        gone.program = kept;
        let mut state = self.state();
        busy.end(&mut state);
        state.gone.push(gone);
        drop(state);
        // Only now its input ends: whoever is told to end it knows already why.
        drop(ended);
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
        match state.idle.pop_back() {
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
        state.gone.push(Gone { number, end, is_first: false, program: None });
        drop(state);
        self.wake();
    }

    /// Tells of a failure, now and then. `None`: not now. Else how many there were since.
    pub(super) fn notice(&self, notice: Notice) -> Option<u64> {
        self.state().notices.tell(notice)
    }

    // For the keeper.

    pub(super) fn take_gone(&self) -> (Vec<Gone>, bool) {
        let mut state = self.state();
        let stops = state.stopping.is_some();
        let left = stops.then(|| (mem::take(&mut state.idle), mem::take(&mut state.leases)));
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

    /// Programs that are missing, those that are being started among them, where so many are of age: successors of a part of them
    /// are wanted, too, so that not all of them start at once.
    pub(super) fn missing(&self, aged: usize) -> usize {
        let mut state = self.state();
        let mut gone = VecDeque::new();
        if !state.leases.is_empty() {
            (state.leases, gone) = mem::take(&mut state.leases).into_iter().partition(Lease::is_there);
        }
        let wanted = self.wanted_in_all(&state);
        state.successors = aged.min((wanted / SUCCESSORS_SHARE).max(1));
        let missing = (state.leases.len() + wanted + state.successors).saturating_sub(state.there());
        drop(state);
        // Not under the lock: it says so to the event loop.
        drop(gone);
        missing
    }

    pub(super) fn has_idle(&self) -> bool {
        !self.state().idle.is_empty()
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
                state.idle.push_front(program);
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

    /// A process is gone. `end_of` says what it is counted as, from its program if that was idle; returns both.
    pub(super) fn has_ended(
        &self,
        number: u64,
        end_of: impl FnOnce(Option<&Program>) -> End,
    ) -> (Option<Program>, End) {
        let mut state = self.state();
        state.listed.remove(&number);
        let at = state.idle.iter().position(|idle| idle.card.number == number);
        let program = at.and_then(|at| state.idle.remove(at));
        let end = end_of(program.as_ref());
        *match end {
            End::Died => &mut state.ends.died,
            End::TimedOut => &mut state.ends.timed_out,
            End::Broke => &mut state.ends.broke_framing,
            End::Replaced => &mut state.ends.replaced,
            End::Surplus => &mut state.ends.surplus,
        } += 1;
        (program, end)
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
        let left = (mem::take(&mut state.idle), mem::take(&mut state.leases), mem::take(&mut state.gone));
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
}

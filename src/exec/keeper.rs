//! The thread that keeps the programs: starts spares, reads their standard error, sees how they end, and ends them.
//!
//! Workers own programs (`program`), this thread their processes. It alone starts and reaps them: it is off the event loop, off the way of
//! a request while spares last, and lives as long as they do, which the kernel's parent-death signal needs, as that comes
//! when the *thread* ends that has started the process. All it waits for comes through one poll: standard errors, ends of processes
//! (pidfd), workers (waker).
//!
//! A process is reaped last: until then its number is nobody else's, so that a signal to its group reaches nobody else. Held by
//! `exec::remains` in `tests/it`.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::unix::pipe::Receiver;
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::command::Streams;
use super::leased::Mode;
use super::log::Lines;
use super::look::{self, Doing};
use super::program::{Card, Program};
use super::shared::{End, Gone, Shared};
use super::terminal;

/// A program that ends so soon after its start, and has served nobody, says something about all of them.
pub(super) const EARLY: Duration = Duration::from_secs(1);
/// So many of them in a row, and requests are refused. Fewer may be anybody's signal.
const MAX_EARLY: u32 = 3;
/// The pause before a program is started behind that; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Whether a program that was started waits for input is looked at so soon for the first time, then whenever its age has grown by
/// an eighth: a look takes some 30 µs, also of those that start beside it.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const MAX_LOOK: Duration = Duration::from_millis(50);
/// A program that is never seen to wait for input counts as ready at this age: it may do so in a way that does not show.
const READY_AFTER: Duration = Duration::from_secs(5);
/// A program whose streams are closed has mostly ended, which shows microseconds later, or so long where CPUs are short. One that was
/// not asked anything yet has no successor started until then.
const EXIT_GRACE: Duration = Duration::from_millis(250);
/// How long a process may take to be gone behind SIGKILL before a stop goes on without it.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// Bytes of a program's standard error that are read at a time: one that writes without end does not hold up the others.
const STDERR_BYTES: usize = 64 << 10;
const MAX_EVENTS: usize = 256;
/// Programs that are started before ends, signals and what else there is are looked at again: each takes a millisecond.
const MAX_STARTS: usize = 16;
/// So many may be on their way out, or such a part of those that are to be there, before no more are started.
const MIN_ENDING: usize = 16;
const ENDING_SHARE: usize = 4;
/// Signals that a program gets at its end: SIGTERM and SIGKILL.
const SIGNALS: usize = 2;

pub(super) const WAKER: Token = Token(0);

/// The process of a program.
struct Kept {
    card: Arc<Card>,
    child: Child,
    pidfd: OwnedFd,
    stderr: Option<Receiver>,
    lines: Lines,
    phase: Phase,
}

enum Phase {
    /// It was started and has not been seen to wait for input.
    Starts { program: Program, inode: Option<u64>, look_at: Instant },
    /// It is idle, or has a request.
    Runs,
    /// It has failed: what it is counted as depends on whether it ends by itself, which shows within [`EXIT_GRACE`].
    Fails { since: Instant, gone: Gone },
    /// It is to end: since when, as what that is counted, and the signals it got.
    Ends { since: Instant, end: End, signals: usize },
}

pub(super) struct Keeper {
    shared: Arc<Shared>,
    poll: Poll,
    kept: HashMap<u64, Kept>,
    /// Of the program that was started last.
    number: u64,
    /// Programs whose standard error may have more.
    again: Vec<u64>,
    /// More are missing than are started at a time.
    starts_more: bool,
    /// When it was last told that starts are held back.
    told_at: Option<Instant>,
    trouble: Trouble,
    stop: Option<Instant>,
}

/// Programs that end as soon as they start.
struct Trouble {
    /// In a row.
    early: u32,
    /// Requests served when the last one ended.
    served: u64,
    pause: Duration,
    /// When the last one was noticed, and until when none is started.
    at: Instant,
    until: Instant,
}

impl Kept {
    /// It stays.
    fn is_sound(&self, now: Instant) -> bool {
        let stays = now.duration_since(self.card.started) >= EARLY || self.card.served.load(Relaxed) > 0;
        stays && !matches!(self.phase, Phase::Fails { .. } | Phase::Ends { .. })
    }
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, poll: Poll) -> Keeper {
        let now = Instant::now();
        let trouble = Trouble { early: 0, served: 0, pause: Duration::ZERO, at: now, until: now };
        Keeper {
            shared,
            poll,
            kept: HashMap::new(),
            number: 0,
            again: Vec::new(),
            starts_more: false,
            told_at: None,
            trouble,
            stop: None,
        }
    }

    /// Runs until it is told to stop and every program is gone.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(MAX_EVENTS);
        loop {
            self.take_in();
            if self.stop.is_some() {
                let gone = self.kept.is_empty();
                let late = |stop: Instant| stop + self.shared.grace() + KILL_GRACE <= Instant::now();
                if gone || self.stop.is_some_and(late) {
                    self.leave_behind();
                    return;
                }
            } else {
                self.start_missing();
            }
            let due = self.step();
            let goes_on = !self.again.is_empty() || std::mem::take(&mut self.starts_more);
            let timeout = if goes_on { Some(Duration::ZERO) } else { due };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "programs cannot be waited for");
                    return;
                }
            }
            let mut ready: Vec<u64> = std::mem::take(&mut self.again);
            for event in &events {
                match event.token() {
                    WAKER => {}
                    Token(token) if token % 2 == 0 => ready.push(token as u64 / 2),
                    Token(token) => self.reap(token as u64 / 2),
                }
            }
            ready.sort_unstable();
            ready.dedup();
            for number in ready {
                self.read_stderr(number);
            }
        }
    }

    /// Takes in what is to end, and whether it is time to stop.
    fn take_in(&mut self) {
        let (gone, stops) = self.shared.take_gone();
        for gone in gone {
            match self.kept.get_mut(&gone.number) {
                Some(kept) if gone.program.is_some() && matches!(kept.phase, Phase::Runs) => {
                    kept.phase = Phase::Fails { since: Instant::now(), gone };
                }
                _ => self.begin_end(gone.number, gone.end),
            }
        }
        if stops && self.stop.is_none() {
            self.stop = Some(Instant::now());
            let numbers: Vec<u64> = self.kept.keys().copied().collect();
            numbers.into_iter().for_each(|number| self.begin_end(number, End::Surplus));
        }
    }

    /// A program is to end: it is not used any more, so its input has ended.
    fn begin_end(&mut self, number: u64, end: End) {
        let Some(kept) = self.kept.get_mut(&number) else { return };
        let end = match &kept.phase {
            Phase::Ends { .. } => return,
            // It is not for this that it ends.
            Phase::Fails { gone, .. } if end == End::Surplus => gone.end,
            _ => end,
        };
        kept.phase = Phase::Ends { since: Instant::now(), end, signals: 0 };
    }

    /// Those that have failed and do not end by themselves.
    fn end_failed(&mut self, now: Instant) {
        let lives_on = |kept: &Kept| match &kept.phase {
            Phase::Fails { since, gone } if now >= *since + EXIT_GRACE => {
                Some((Arc::clone(&kept.card), gone.end, gone.is_first))
            }
            _ => None,
        };
        let failed: Vec<_> = self.kept.values().filter_map(lives_on).collect();
        for (card, end, is_first) in failed {
            self.begin_end(card.number, End::Broke);
            let why = match end {
                End::Broke => {
                    "writes to its standard output before it was asked anything, which cannot be told from a reply. Have it write \
                     only replies there, and the rest to standard error"
                }
                _ => "closes its standard input or output as soon as it is started",
            };
            if is_first {
                self.failed_early(&card, why.to_owned());
            }
        }
    }

    fn start_missing(&mut self) {
        let now = Instant::now();
        let (mut starting, mut aged) = (0, 0);
        for kept in self.kept.values() {
            match &kept.phase {
                // Whether others would do better is not known yet.
                Phase::Fails { gone, .. } if gone.is_first => return,
                Phase::Starts { .. } => starting += 1,
                Phase::Runs => aged += usize::from(self.shared.is_aged(&kept.card)),
                Phase::Fails { .. } | Phase::Ends { .. } => {}
            }
        }
        let mut missing = self.shared.missing(aged).saturating_sub(starting);
        // While others serve nobody is refused, but those that do not stay are not started without end.
        if !self.shared.is_in_trouble() && self.trouble.early >= MAX_EARLY && now < self.trouble.until {
            return;
        }
        if self.shared.is_in_trouble() {
            let has_young = self.kept.values().any(|kept| {
                !matches!(kept.phase, Phase::Ends { .. }) && now.duration_since(kept.card.started) < EARLY
            });
            missing = usize::from(now >= self.trouble.until && !has_young && !self.shared.has_idle());
        }
        if missing > 0 && self.holds_back(missing, now) {
            return;
        }
        // Others are heard between.
        self.starts_more = missing > MAX_STARTS;
        for _ in 0..missing.min(MAX_STARTS) {
            self.number += 1;
            if let Err(error) = self.start(self.number) {
                let card = Card::new(self.number, 0);
                self.failed_early(&card, format!("cannot be started: {error}"));
                // Before another is tried it is found out whether there is to be a pause.
                return;
            }
        }
    }

    /// Whether no more are started for now: those that end take up what the next ones need. Those that got SIGKILL do not count, as
    /// nothing more can be done for them.
    fn holds_back(&mut self, missing: usize, now: Instant) -> bool {
        let ends = |kept: &&Kept| matches!(kept.phase, Phase::Ends { .. });
        let heard = |kept: &&Kept| matches!(kept.phase, Phase::Ends { signals, .. } if signals < SIGNALS);
        let there = self.kept.len() - self.kept.values().filter(ends).count() + missing;
        let ending = self.kept.values().filter(heard).count();
        let holds = ending > MIN_ENDING.max(there / ENDING_SHARE);
        if holds && self.told_at.is_none_or(|at| now.duration_since(at) >= MAX_PAUSE) {
            self.told_at = Some(now);
            tracing::warn!(
                ending,
                missing,
                "programs are slow to end (--exec-stop): no more are started until some are gone"
            );
        }
        holds
    }

    fn start(&mut self, number: u64) -> io::Result<()> {
        let settings = &self.shared.settings;
        let stdin = Stdio::piped();
        let (stdout, mut terminal) = match (&settings.reply, settings.pty) {
            (super::Extent::None, _) => (Stdio::null(), None),
            (_, false) => (Stdio::piped(), None),
            (_, true) => {
                let (ours, theirs) = terminal::open()?;
                (theirs.into(), Some(ours))
            }
        };
        let streams = Streams { stdin, stdout, stderr: Stdio::piped() };
        // Who waits has it at once. One that was started before does not know its client.
        let lease = self.shared.next_lease();
        let known = match &lease {
            _ if settings.spare > 0 => Vec::new(),
            Some(lease) => lease.environment().collect(),
            // One that is tried while none stays.
            None => self.shared.last_known(),
        };
        let started = settings.command.start(number, settings.mode, known, streams).and_then(|mut child| {
            match Self::adopt(&self.poll, number, &mut child, terminal.take()) {
                Ok((card, pidfd, stderr, program)) => Ok((child, card, pidfd, stderr, program)),
                Err(error) => {
                    drop(child.kill());
                    drop(child.wait());
                    Err(error)
                }
            }
        });
        let (child, card, pidfd, stderr, program) = match started {
            Ok(started) => started,
            Err(error) => {
                lease.into_iter().for_each(|lease| self.shared.lease_waits(lease));
                return Err(error);
            }
        };
        self.shared.has_started(&card);
        let phase = match lease {
            Some(lease) => {
                lease.give(&self.shared, program);
                Phase::Runs
            }
            None => {
                let (inode, look_at) = (program.input_inode(), card.started + FIRST_LOOK);
                Phase::Starts { program, inode, look_at }
            }
        };
        self.kept.insert(
            number,
            Kept { card, child, pidfd, stderr: Some(stderr), lines: Lines::default(), phase },
        );
        Ok(())
    }

    /// Watches a process that was started.
    fn adopt(
        poll: &Poll,
        number: u64,
        child: &mut Child,
        terminal: Option<OwnedFd>,
    ) -> io::Result<(Arc<Card>, OwnedFd, Receiver, Program)> {
        let missing = || io::Error::from(ErrorKind::NotFound);
        let card = Arc::new(Card::new(number, child.id()));
        let input: OwnedFd = child.stdin.take().ok_or_else(missing)?.into();
        let output = terminal.or_else(|| child.stdout.take().map(OwnedFd::from));
        let mut stderr = Receiver::from(child.stderr.take().ok_or_else(missing)?);
        stderr.set_nonblocking(true)?;
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let token = usize::try_from(number * 2).map_err(io::Error::other)?;
        poll.registry().register(&mut stderr, Token(token), Interest::READABLE)?;
        poll.registry().register(&mut SourceFd(&pidfd.as_raw_fd()), Token(token + 1), Interest::READABLE)?;
        let program = Program::new(Arc::clone(&card), input, output)?;
        Ok((card, pidfd, stderr, program))
    }

    /// Does what is due for each program. Returns how soon there is more to do.
    fn step(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.end_failed(now);
        let stop_timeout = self.shared.grace();
        let max_age = self.shared.settings.max_age;
        let mut due: Option<Instant> = None;
        let mut at = |moment: Instant| due = Some(due.map_or(moment, |due| due.min(moment)));
        let in_trouble = self.shared.is_in_trouble();
        let mut survivor = false;
        for kept in self.kept.values_mut() {
            let age = now.duration_since(kept.card.started);
            if in_trouble && !matches!(kept.phase, Phase::Fails { .. } | Phase::Ends { .. }) {
                survivor |= kept.is_sound(now);
                at(kept.card.started + EARLY);
            }
            match &mut kept.phase {
                Phase::Starts { inode, look_at, .. } if *look_at <= now => {
                    let doing = inode.and_then(|inode| look::doing(kept.card.id, inode));
                    if doing == Some(Doing::Other) && age < READY_AFTER {
                        *look_at = now + (age / 8).clamp(FIRST_LOOK, MAX_LOOK);
                        at(*look_at);
                    } else if let Phase::Starts { mut program, .. } =
                        std::mem::replace(&mut kept.phase, Phase::Runs)
                    {
                        program.watch();
                        self.shared.is_ready(program);
                        // It may be of age already.
                        max_age.into_iter().for_each(|most| at(kept.card.started + most));
                    }
                }
                Phase::Starts { look_at, .. } => at(*look_at),
                // The successor of one that is of age was seen to before.
                Phase::Runs => {
                    max_age
                        .filter(|most| age < *most)
                        .into_iter()
                        .for_each(|most| at(kept.card.started + most));
                }
                Phase::Fails { since, .. } => at(*since + EXIT_GRACE),
                Phase::Ends { since, signals, .. } => {
                    let steps: [_; SIGNALS] =
                        [(stop_timeout / 4, Signal::TERM), (stop_timeout, Signal::KILL)];
                    while let Some((after, signal)) = steps.get(*signals) {
                        if *since + *after > now {
                            at(*since + *after);
                            break;
                        }
                        signal_group(&kept.child, *signal);
                        *signals += 1;
                    }
                }
            }
        }
        if survivor {
            self.trouble.early = 0;
            self.trouble.pause = Duration::ZERO;
            self.shared.trouble_is_over();
            // There may be more to start now.
            return Some(Duration::ZERO);
        }
        // One that could not be started is tried again then.
        if self.trouble.until > now {
            at(self.trouble.until);
        }
        if let Some(stop) = self.stop {
            at(stop + stop_timeout + KILL_GRACE);
        }
        due.map(|due| due.saturating_duration_since(now))
    }

    /// The process of this program has ended.
    fn reap(&mut self, number: u64) {
        // Where it was told to end, or has failed, that was said before.
        self.take_in();
        let Some(kept) = self.kept.get(&number) else { return };
        // What it has left in its group goes with it. It is not reaped yet, so the group is still its own.
        signal_group(&kept.child, Signal::KILL);
        self.read_stderr(number);
        let Some(mut kept) = self.kept.remove(&number) else { return };
        let status = match kept.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) => {
                // It was not over after all.
                self.kept.insert(number, kept);
                return;
            }
            Err(error) => {
                tracing::error!(program = number, %error, "a program's end cannot be found out");
                ExitStatus::default()
            }
        };
        drop(self.poll.registry().deregister(&mut SourceFd(&kept.pidfd.as_raw_fd())));
        if let Some(mut stderr) = kept.stderr.take() {
            drop(self.poll.registry().deregister(&mut stderr));
        }
        kept.lines.end(number);
        let served = kept.card.served.load(Relaxed);
        let (idle, end) = self.shared.has_ended(number, |idle| match &kept.phase {
            Phase::Ends { end, .. } => *end,
            // What it wrote behind its reply, before it ended, would have been found out by the next request.
            Phase::Runs if served > 0 && idle.is_some_and(Program::has_written) => End::Broke,
            Phase::Starts { .. } | Phase::Runs | Phase::Fails { .. } => End::Died,
        });
        let (by_itself, was_idle) = (end == End::Died, idle.is_some());
        if !by_itself || self.stop.is_some() {
            return;
        }
        let settings = &self.shared.settings;
        let age = kept.card.started.elapsed();
        let last = kept.lines.last();
        let said = if last.is_empty() { String::new() } else { format!("; it said last: {last}") };
        tracing::debug!(program = number, %status, ?age, served, was_idle, "a program ended by itself{said}");
        // What a client has to itself may be over soon.
        let is_given = settings.mode == Mode::Leased && matches!(kept.phase, Phase::Runs) && !was_idle;
        if is_given && age >= EARLY {
            self.shared.served.fetch_add(1, Relaxed);
        }
        if age < EARLY && served == 0 && !(is_given && status.success()) {
            let hint = if status.success() {
                ". A program has to read its standard input line by line until that ends"
            } else {
                ". Run it by hand to see why"
            };
            self.failed_early(&kept.card, format!("ends as soon as it is started ({status}){said}{hint}"));
        }
    }

    /// A program says something about all of them.
    fn failed_early(&mut self, card: &Card, why: String) {
        let now = Instant::now();
        let served = self.shared.served.load(Relaxed);
        let Trouble { early, served: served_before, pause, at, until } = &mut self.trouble;
        // The last one may be long ago, and say nothing of this.
        if served != *served_before || now.duration_since(*at) > MAX_PAUSE * 2 {
            (*served_before, *early, *pause) = (served, 0, Duration::ZERO);
        }
        *early += 1;
        // Those that were started together are one attempt.
        if card.started > *at || pause.is_zero() {
            *pause = (*pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
            *at = now;
        }
        *until = now + *pause;
        let early = *early;
        if early < MAX_EARLY {
            return;
        }
        let command = &self.shared.settings.command.text;
        if self.kept.values().any(|kept| kept.is_sound(now)) {
            if early == MAX_EARLY {
                tracing::warn!(
                    program = card.number,
                    "{command} {why}. Those that were started before serve on; it is tried again, in growing pauses"
                );
            }
            return;
        }
        if self.shared.is_in_trouble_from_now() {
            tracing::error!(
                program = card.number,
                "{command} {why}. Requests are refused until one stays; it is tried again, in growing pauses"
            );
        }
    }

    fn read_stderr(&mut self, number: u64) {
        let Some(kept) = self.kept.get_mut(&number) else { return };
        let Some(stderr) = &mut kept.stderr else { return };
        let mut buffer = [0; 4096];
        let mut left = STDERR_BYTES;
        loop {
            match stderr.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => {
                    kept.lines.add(number, &buffer[..bytes]);
                    left = left.saturating_sub(bytes);
                    if left == 0 {
                        self.again.push(number);
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        // It is closed.
        if let Some(mut stderr) = kept.stderr.take() {
            drop(self.poll.registry().deregister(&mut stderr));
        }
    }

    /// Told at the end of a stop, where a process is not gone.
    fn leave_behind(&mut self) {
        for (number, kept) in self.kept.drain() {
            signal_group(&kept.child, Signal::KILL);
            tracing::error!(
                program = number,
                pid = kept.card.id,
                "a program is left behind: it is not gone behind SIGKILL"
            );
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // However it ends: nobody waits for a program that does not come, and none is left.
        self.shared.is_over();
        for kept in self.kept.values_mut() {
            signal_group(&kept.child, Signal::KILL);
            drop(kept.child.try_wait());
        }
    }
}

/// To the process group of `child`, which was not reaped.
fn signal_group(child: &Child, signal: Signal) {
    // Refused where nobody is left in it.
    let _ = kill_process_group(Pid::from_child(child), signal);
}

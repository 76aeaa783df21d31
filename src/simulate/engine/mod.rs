//! The events of a run, one after the other.
//!
//! The parts stand for those of the server: `arrive` and `finish` for the reactor and the workers, `work_waits` for the
//! reactor's word to the tuner, `tune` for the tuner. What rules of others look at is in `others`.

mod others;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use slab::Slab;

use super::cpu::Cpu;
use super::rules::Order;
use super::tally::{Now, Tally};
use super::{Load, Rule, Run, Service, Setup, Workload};
use crate::clock::{Nanos, nanos};
use crate::controller::{self, Decision, Memory, Policy, Reason, Sample};
use crate::schedule::{Arrivals, Curve};
use others::Others;

/// Until a request has finished, demand is shown as if requests needed this long, as the server's pool does.
const UNKNOWN_TIME_PER_JOB: Nanos = 1_000_000;
/// So long after a look the tuner is deaf to the reactor, as the server's is.
const DEAF: Nanos = 2_000_000;
/// A finished request's share in the moving average, as in the server's pool: 1/16.
const MEAN_SHIFT: u32 = 4;
/// How often the tuner counts the CPUs anew, as the server's does.
const COUNT_CORES_EVERY: Nanos = 1_000_000_000;
/// Threads whose state the server reads at most for one sample.
const MAX_STATES_READ: u64 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The next request of a stream with a rate, or its next burst.
    Arrival(usize),
    /// The number of clients of a stream changes.
    Clients(usize),
    /// A blocked request goes on, and is done.
    Unblocked(usize),
    /// A new worker's thread has started.
    Started,
    Tune,
    /// A rule of others looks.
    Look,
    /// A request has waited as long as others let it.
    WaitedInVain,
    IdleLongEnough,
    Limits(usize),
    Cores(usize),
}

/// A request that waits for a worker.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    stream: usize,
    arrived: Nanos,
}

/// A request that a worker has.
#[derive(Clone, Copy, Debug)]
struct Running {
    stream: usize,
    arrived: Nanos,
    taken: Nanos,
    /// Nanoseconds it blocks once it has had its CPU.
    block: Nanos,
}

#[derive(Debug)]
struct Source {
    service: Service,
    kind: SourceKind,
}

#[derive(Debug)]
enum SourceKind {
    Rate(Box<Arrivals>),
    /// The next one first; each comes again after a pass of the workload.
    Bursts(VecDeque<(Nanos, u32)>),
    Clients {
        curve: Curve,
        wanted: u64,
        there: u64,
    },
}

/// What the tuner keeps.
#[derive(Debug)]
struct Tuner {
    memory: Memory,
    /// Most requests at the same time since its last look.
    peak: usize,
    /// When the workers of the last growth had all started.
    grown_at: Nanos,
    /// CPUs when it counted them last.
    cores: usize,
    cores_counted_at: Nanos,
    /// When it looks next. Other events of its kind are void.
    next: Option<Nanos>,
    /// It does not listen before.
    deaf_until: Nanos,
    /// It is starting threads until then.
    busy_until: Nanos,
}

pub(super) struct Engine<'a> {
    setup: &'a Setup,
    policy: Policy,
    /// How long one pass of the workload takes.
    pass: Nanos,
    now: Nanos,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    events_ever: u64,
    sources: Vec<Source>,
    random: fastrand::Rng,
    waiting: VecDeque<Waiting>,
    running: Slab<Running>,
    cpu: Cpu,
    cores: usize,
    /// Since when each idle worker is, the longest first.
    idle: VecDeque<Nanos>,
    /// Workers, those too that are being started.
    live: usize,
    starting: usize,
    target: usize,
    /// Until when threads are being started.
    spawning_until: Nanos,
    last_taken: Nanos,
    idle_timer: bool,
    others: Others,
    mean: Nanos,
    tuner: Tuner,
    tally: Tally,
}

impl<'a> Engine<'a> {
    pub(super) fn new(setup: &'a Setup, workload: &Workload) -> Engine<'a> {
        let mut random = fastrand::Rng::with_seed(setup.seed);
        let sources = workload.streams.iter().map(|stream| {
            let kind = match stream.load.clone() {
                Load::Clients(curve) => {
                    SourceKind::Clients { curve: curve.drawn(&mut random), wanted: 0, there: 0 }
                }
                Load::Rate { curve, poisson } => {
                    let curve = curve.drawn(&mut random);
                    let chance = poisson.then(|| random.fork());
                    SourceKind::Rate(Box::new(Arrivals::new(curve, 0.0, chance)))
                }
                Load::Bursts(bursts) => {
                    let mut bursts: Vec<_> = bursts.iter().map(|(at, count)| (nanos(*at), *count)).collect();
                    bursts.sort_unstable();
                    SourceKind::Bursts(bursts.into())
                }
            };
            Source { service: stream.service, kind }
        });
        let sources: Vec<_> = sources.collect();
        let live = setup.rule.at_start(&setup.policy);
        let start = Now { workers: live, started: live, min: setup.policy.min(), ..Now::default() };
        Engine {
            setup,
            policy: setup.policy,
            pass: nanos(workload.duration()),
            now: 0,
            events: BinaryHeap::new(),
            events_ever: 0,
            tally: Tally::new(sources.len(), setup.duration, setup.policy.keep_alive(), start),
            sources,
            random,
            waiting: VecDeque::new(),
            running: Slab::new(),
            cpu: Cpu::new(setup.machine.cores),
            cores: setup.machine.cores,
            idle: std::iter::repeat_n(0, live).collect(),
            live,
            starting: 0,
            target: live,
            spawning_until: 0,
            last_taken: 0,
            idle_timer: false,
            others: Others::default(),
            mean: 0,
            tuner: Tuner {
                memory: Memory::default(),
                peak: 0,
                grown_at: 0,
                cores: setup.machine.cores,
                cores_counted_at: 0,
                next: None,
                deaf_until: 0,
                busy_until: 0,
            },
        }
    }

    pub(super) fn run(mut self) -> Run {
        for stream in 0..self.sources.len() {
            match &self.sources[stream].kind {
                SourceKind::Clients { .. } => self.change_clients(stream),
                SourceKind::Rate(_) | SourceKind::Bursts(_) => self.await_arrival(stream),
            }
        }
        for (number, (at, _)) in self.setup.changes.iter().enumerate() {
            self.at(nanos(*at), Event::Limits(number));
        }
        for (number, (at, _)) in self.setup.core_changes.iter().enumerate() {
            self.at(nanos(*at), Event::Cores(number));
        }
        if let Some(first) = self.setup.rule.looks_every() {
            self.at(first, Event::Look);
        }
        let end = nanos(self.setup.duration);
        loop {
            let event = self.events.peek().map(|Reverse((at, ..))| *at);
            let Some(next) = event.into_iter().chain(self.cpu.next_end()).min().filter(|next| *next < end)
            else {
                break;
            };
            self.now = next;
            while let Some(job) = self.cpu.pop_ended(next) {
                self.leave_cpu(job);
            }
            while let Some(Reverse((at, _, event))) = self.events.peek().copied()
                && at <= next
            {
                self.events.pop();
                self.happen(event);
            }
            self.show();
        }
        self.now = end;
        self.show();
        // Whoever still waits has waited at least until now.
        for waiting in &self.waiting {
            self.tally.waited(waiting.stream, end.saturating_sub(waiting.arrived));
        }
        self.tally.run(self.setup.rule)
    }

    fn at(&mut self, at: Nanos, event: Event) {
        self.events_ever += 1;
        self.events.push(Reverse((at, self.events_ever, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrival(stream) => self.next_arrivals(stream),
            Event::Clients(stream) => self.change_clients(stream),
            Event::Unblocked(job) => self.finish(job),
            Event::Started => {
                self.starting -= 1;
                self.free_worker();
            }
            Event::Tune if self.tuner.next == Some(self.now) => {
                self.tuner.next = None;
                self.tune();
            }
            Event::Tune => {}
            Event::Look => self.look(),
            Event::WaitedInVain => self.add_batch(),
            Event::IdleLongEnough => self.end_idle(),
            Event::Cores(number) => {
                self.cores = self.setup.core_changes[number].1;
                self.cpu.set_cores(self.now, self.cores);
            }
            Event::Limits(number) => {
                self.policy = self.setup.changes[number].1;
                self.tune_at(self.now + nanos(self.setup.machine.hand_over));
            }
        }
    }

    /// The CPUs that the tuner reckons with: it counts them anew once a second, if a decision is due.
    fn counted_cores(&mut self) -> usize {
        if self.now.saturating_sub(self.tuner.cores_counted_at) >= COUNT_CORES_EVERY {
            self.tuner.cores_counted_at = self.now;
            self.tuner.cores = self.cores;
        }
        self.tuner.cores
    }

    fn show(&mut self) {
        self.tally.observe(Now {
            at: self.now,
            workers: self.live,
            started: self.live - self.starting,
            demand: self.demand().min(self.policy.max()),
            waiting: self.waiting.len(),
            min: self.policy.min(),
        });
    }

    // What comes.

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; saturates")]
    fn await_arrival(&mut self, stream: usize) {
        let next = match &self.sources[stream].kind {
            SourceKind::Rate(arrivals) => (arrivals.peek() * 1e9) as Nanos,
            SourceKind::Bursts(bursts) => match bursts.front() {
                Some((at, _)) => *at,
                None => return,
            },
            SourceKind::Clients { .. } => return,
        };
        self.at(next, Event::Arrival(stream));
    }

    fn next_arrivals(&mut self, stream: usize) {
        let count = match &mut self.sources[stream].kind {
            SourceKind::Rate(arrivals) => {
                arrivals.advance();
                1
            }
            SourceKind::Bursts(bursts) => bursts.pop_front().map_or(0, |(at, count)| {
                bursts.push_back((at.saturating_add(self.pass), count));
                count
            }),
            SourceKind::Clients { .. } => 0,
        };
        for _ in 0..count {
            self.arrive(stream);
        }
        self.await_arrival(stream);
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; saturates")]
    fn change_clients(&mut self, stream: usize) {
        let seconds = self.now as f64 / 1e9;
        let SourceKind::Clients { curve, wanted, there } = &mut self.sources[stream].kind else { return };
        *wanted = curve.at(seconds).round() as u64;
        let new = wanted.saturating_sub(*there);
        *there += new;
        let next = curve.next_change(seconds);
        for _ in 0..new {
            self.arrive(stream);
        }
        if let Some(next) = next {
            self.at(((next * 1e9) as Nanos).max(self.now + 1), Event::Clients(stream));
        }
    }

    fn arrive(&mut self, stream: usize) {
        self.tally.arrived(stream);
        self.waiting.push_back(Waiting { stream, arrived: self.now });
        let idle = match self.setup.rule.order() {
            Order::LastIdleFirst => self.idle.pop_back(),
            Order::FirstIdleFirst => self.idle.pop_front(),
        };
        if idle.is_some() {
            self.take();
        }
        match self.setup.rule {
            Rule::Tidemill => self.work_waits(),
            other => {
                if idle.is_none() {
                    self.await_in_vain();
                }
                let target = other.on_request(&self.policy, self.target, self.jobs(), idle.is_some());
                self.resize(target, self.jobs(), Reason::Demand, None);
            }
        }
    }

    // What workers do.

    fn take(&mut self) {
        let Some(Waiting { stream, arrived }) = self.waiting.pop_front() else { return };
        self.tally.waited(stream, self.now.saturating_sub(arrived));
        self.last_taken = self.now;
        let Service { cpu, block, exponential } = self.sources[stream].service;
        let share = if exponential { -(1.0 - self.random.f64()).ln() } else { 1.0 };
        let (cpu, block) = (nanos(cpu.mul_f64(share)), nanos(block.mul_f64(share)));
        let job = self.running.insert(Running { stream, arrived, taken: self.now, block });
        if cpu > 0 {
            self.cpu.begin(self.now, job, cpu);
        } else {
            self.at(self.now.saturating_add(block), Event::Unblocked(job));
        }
    }

    fn leave_cpu(&mut self, job: usize) {
        match self.running[job].block {
            0 => self.finish(job),
            block => self.at(self.now.saturating_add(block), Event::Unblocked(job)),
        }
    }

    fn finish(&mut self, job: usize) {
        let Running { stream, arrived, taken, .. } = self.running.remove(job);
        let took = self.now.saturating_sub(taken);
        self.mean = match self.mean {
            0 => took,
            mean => mean - (mean >> MEAN_SHIFT) + (took >> MEAN_SHIFT),
        }
        .max(1);
        self.tally.finished(stream, self.now.saturating_sub(arrived));
        self.free_worker();
        if let SourceKind::Clients { wanted, there, .. } = &mut self.sources[stream].kind {
            if *there > *wanted {
                *there -= 1;
            } else {
                self.arrive(stream);
            }
        }
        if self.setup.rule == Rule::Assignment {
            let target = Rule::Assignment.on_request(&self.policy, self.target, self.jobs(), false);
            self.resize(target, self.jobs(), Reason::Surplus, None);
        }
    }

    /// A worker has started, or has finished a request.
    fn free_worker(&mut self) {
        if self.live > self.target {
            self.live -= 1;
        } else if self.waiting.is_empty() {
            self.idle.push_back(self.now);
            if self.setup.rule.idle_ends_above().is_some() && !self.idle_timer {
                self.idle_timer = true;
                self.at(self.now.saturating_add(nanos(self.policy.keep_alive())), Event::IdleLongEnough);
            }
        } else {
            self.take();
        }
    }

    // Who decides.

    fn jobs(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    fn demand(&self) -> usize {
        let mean = if self.mean == 0 { UNKNOWN_TIME_PER_JOB } else { self.mean };
        controller::weigh(self.jobs(), Duration::from_nanos(mean))
    }

    /// As the reactor after a turn that has brought work.
    fn work_waits(&mut self) {
        self.tuner.peak = self.tuner.peak.max(self.jobs());
        if !self.waiting.is_empty() && self.target < self.policy.max() {
            let heard = (self.now + nanos(self.setup.machine.hand_over)).max(self.tuner.deaf_until);
            self.tune_at(heard);
        }
    }

    fn tune_at(&mut self, at: Nanos) {
        let at = at.max(self.tuner.busy_until);
        if self.tuner.next.is_none_or(|next| at < next) {
            self.tuner.next = Some(at);
            self.at(at, Event::Tune);
        }
    }

    fn tune(&mut self) {
        let (jobs, cores) = (self.jobs(), self.counted_cores());
        let now = Duration::from_nanos(self.now);
        let mean = Some(self.mean).filter(|mean| *mean > 0).map(Duration::from_nanos);
        let age = |job: &Running| Duration::from_nanos(self.now.saturating_sub(job.taken));
        let ages: Vec<Duration> = self.running.iter().map(|(_, job)| age(job)).collect();
        let longer = |than: Duration| ages.iter().filter(|age| **age >= than).count();
        let since = |at: Nanos| Duration::from_nanos(self.now.saturating_sub(at));
        let mut sample = Sample {
            now,
            workers: self.target,
            waiting: self.waiting.len(),
            oldest_wait: self.waiting.front().map_or(Duration::ZERO, |oldest| since(oldest.arrived)),
            busy: self.running.len(),
            blocked: None,
            cores,
            old: longer(controller::DRAIN_TARGET),
            lost: longer(Policy::lost_after(mean)),
            oldest_age: ages.iter().copied().max().unwrap_or_default(),
            mean,
            peak: std::mem::replace(&mut self.tuner.peak, jobs),
            stalled: since(self.last_taken),
            grown_at: Duration::from_nanos(self.tuner.grown_at),
        };
        let mut done_at = self.now;
        if self.policy.wants_blocked(&self.tuner.memory, &sample) {
            // Nobody can say who is blocked while nobody runs.
            let known = sample.busy > 0 && self.setup.machine.shows_states;
            sample.blocked = known.then(|| sample.busy - self.cpu.runnable());
            done_at += nanos(self.setup.machine.state_read) * (sample.busy as u64).min(MAX_STATES_READ);
        }
        let (memory, verdict) = controller::decide(&self.policy, self.tuner.memory, &sample);
        self.tuner.memory = memory;
        self.spawning_until = self.spawning_until.max(done_at);
        self.resize(verdict.target, verdict.demand, verdict.reason, sample.blocked);
        if verdict.target > sample.workers {
            (self.tuner.busy_until, self.tuner.grown_at) = (self.spawning_until, self.spawning_until);
        } else {
            self.tuner.busy_until = done_at;
        }
        self.tuner.deaf_until = self.now + DEAF;
        if let Some(after) = verdict.check_after {
            self.tune_at(self.now.saturating_add(nanos(after)));
        }
    }

    /// Changes the number of workers: new ones start one after the other, idle ones go at once, busy ones as they finish.
    fn resize(&mut self, target: usize, demand: usize, reason: Reason, blocked: Option<usize>) {
        let from = self.target;
        if target == from {
            return;
        }
        self.target = target;
        let missing = target.saturating_sub(self.live);
        self.tally.started_threads(missing);
        self.live += missing;
        self.starting += missing;
        self.spawning_until = self.spawning_until.max(self.now);
        for _ in 0..missing {
            self.spawning_until += nanos(self.setup.machine.thread_start);
            self.at(self.spawning_until, Event::Started);
        }
        let surplus = self.live.saturating_sub(target).min(self.idle.len());
        self.idle.drain(..surplus);
        self.live -= surplus;
        self.tally.resized(Decision {
            at: Duration::from_nanos(self.now),
            demand,
            waiting: self.waiting.len(),
            busy: self.running.len(),
            blocked,
            from,
            to: target,
            reason,
        });
    }
}

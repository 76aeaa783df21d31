//! Frames off the front of what a connection has sent, and what is done with each: it goes into a job, is handled at once, or counts.
//!
//! All frames of a cut are taken in one call of the service: within it its types are known, so that lines, `classify` and a handler
//! that runs here are inlined into one loop. Panics are caught once, but for those of a framing of the service's own.

use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use super::connection::Connection;
use super::erased::{discard, worker_state};
use super::reply::{Mode, Reply};
use super::request::{Request, Waits};
use super::traits::Service;
use super::words::Kind;
use super::workers::WorkerStates;
use super::{Cutter, Served};
use crate::clock::{Clock, Nanos};
use crate::framing::{Found, Framing};
use crate::job::{Batch, Handled, Job, JobEnd, MAX_JOB_BYTES, MAX_SLICE, MAX_SLICE_BYTES, Origin, Session};
use crate::mail::Post;
use crate::reason::CloseReason;
use crate::slow;
use crate::timings::{Lap, Laps, MAX_LAP_BYTES};

/// A job to be filled with frames, and how far.
#[derive(Debug)]
pub(crate) struct Cut<'a> {
    pub(crate) service: &'a Served,
    /// Whether this peer may stop the server.
    pub(crate) stop_allowed: bool,
    pub(crate) job: &'a mut Job,
    /// Most requests in the job.
    pub(crate) room: usize,
    /// Most frames, requests or not.
    pub(crate) frames: usize,
    /// Most requests that are timed together at first: see [`Taken::lap`].
    pub(crate) lap: u8,
    pub(crate) worker: &'a mut LoopWorker,
}

/// What a [`Cut`] took.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) consumed: usize,
    /// Frames that are in the job.
    pub(crate) requests: usize,
    /// Requests that were handled at once. Then none is in the job but their replies, and how the last of them ended.
    pub(crate) inline: usize,
    /// Frames that are no request.
    pub(crate) ignored: usize,
    /// Stop requests.
    pub(crate) stops: usize,
    pub(crate) end: End,
    /// For the next cut of the same connection. 0: its last requests are handled by workers, so no time is taken here before one is not.
    pub(crate) lap: u8,
}

/// Why a [`Cut`] took no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// No whole frame is left. Of what is left, so many bytes were looked at.
    More { scanned: usize },
    /// The job, or its share of the turn, is full, or what follows has to wait. The next frame was not looked at.
    Full,
    /// The connection has to end for this reason behind what was taken.
    Close(CloseReason),
}

impl End {
    pub(crate) fn scanned(self) -> usize {
        if let End::More { scanned } = self { scanned } else { 0 }
    }
}

impl Cut<'_> {
    /// Takes frames off the front of `bytes`, of which `scanned` need not be looked at again for the first one's end. `ended`: no byte
    /// follows.
    pub(crate) fn take(
        self,
        session: &mut Option<Session>,
        bytes: &[u8],
        scanned: usize,
        ended: bool,
    ) -> Taken {
        let Cut { service, stop_allowed, job, room, frames, lap, worker } = self;
        let Job { origin, batch, accepted_at, end, .. } = job;
        let mut cutting = Cutting {
            service,
            bytes,
            scanned,
            ended,
            stop_allowed,
            room,
            frames,
            origin,
            accepted_at: *accepted_at,
            batch,
            job_end: end,
            worker,
            at: At::Frame,
            next: 0,
            reply_start: 0,
            slice_begun: None,
            lap: 0..0,
            taken: Taken { consumed: 0, requests: 0, inline: 0, ignored: 0, stops: 0, end: End::Full, lap },
        };
        // What it takes to find the first frame and see what it is counts with its request.
        if lap > 0 {
            cutting.begin_slice();
        }
        // Unwind safety: of what is ours only a reply may be half written, and is cut back; the states are the service's own.
        let call = || service.service.cut(session, &mut cutting);
        if let Err(value) = panic::catch_unwind(AssertUnwindSafe(call)) {
            discard(value);
            cutting.has_panicked();
        }
        if cutting.worker.laps.is_open() {
            cutting.end_lap();
        }
        if cutting.taken.inline > 0 {
            cutting.taken.lap = cutting.worker.laps.expected();
        } else if cutting.taken.requests > 0 {
            cutting.taken.lap = 0;
        }
        cutting.taken
    }
}

/// What the event loop has of its own to handle requests with.
#[derive(Debug)]
pub(crate) struct LoopWorker {
    pub(crate) services: Arc<[Served]>,
    pub(crate) states: WorkerStates,
    pub(crate) post: Arc<dyn Post>,
    clock: Clock,
    /// For [`Request::blocking`] and its kin, which tell nobody here.
    waits: Waits,
    pub(crate) laps: Laps,
    /// What takes longer is told of.
    held: Nanos,
    /// What is to be told of.
    pub(crate) told: Vec<Told>,
}

/// Requests that took long.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) lap: Lap,
    /// When the last of them was handled.
    pub(crate) at: Nanos,
    /// By the log of slow requests.
    pub(crate) is_slow: bool,
    /// They held up the loop.
    pub(crate) held: bool,
    /// What the log shows of them, as they came.
    pub(crate) requests: Vec<u8>,
}

impl LoopWorker {
    /// Tells of requests that are timed together and take longer than `held`.
    pub(crate) fn new(services: Arc<[Served]>, post: Arc<dyn Post>, clock: Clock, held: Nanos) -> LoopWorker {
        LoopWorker {
            services,
            states: WorkerStates::none(),
            post,
            clock,
            waits: Waits::default(),
            laps: Laps::default(),
            held,
            told: Vec::new(),
        }
    }
}

#[cfg(any(test, fuzzing))]
impl LoopWorker {
    /// Without a reactor.
    pub(crate) fn alone(services: impl Into<Arc<[Served]>>) -> LoopWorker {
        LoopWorker::new(services.into(), Arc::new(crate::mail::Nowhere), Clock::start(), Nanos::MAX)
    }
}

/// What the service is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// It says where the next frame ends.
    Frame,
    /// It says what the frame is.
    Kind,
    /// It handles it.
    Request,
}

/// A [`Cut`] under way.
#[derive(Debug)]
pub(crate) struct Cutting<'a> {
    service: &'a Served,
    bytes: &'a [u8],
    scanned: usize,
    ended: bool,
    stop_allowed: bool,
    room: usize,
    /// How many may still be taken.
    frames: usize,
    origin: &'a Origin,
    accepted_at: Nanos,
    batch: &'a mut Batch,
    job_end: &'a mut JobEnd,
    worker: &'a mut LoopWorker,
    at: At,
    /// Behind the frame that was found.
    next: usize,
    /// Where in the replies that of the request at hand begins.
    reply_start: usize,
    /// Since when requests are handled here, if they are.
    slice_begun: Option<Nanos>,
    /// Where the requests of the present lap are.
    lap: Range<usize>,
    taken: Taken,
}

impl Cutting<'_> {
    /// Takes frames until there are no more, or no more may be taken. `state` is that of the connection.
    #[inline(always)]
    pub(super) fn run<S: Service>(&mut self, service: &S, state: &mut S::State) {
        while self.frames > 0 {
            if self.taken.consumed == self.bytes.len() {
                break;
            }
            self.at = At::Frame;
            let framing = if self.service.only_lines { None } else { service.framing(state) };
            let Some(content) = self.find(framing) else { return };
            let frame = &self.bytes[content.clone()];
            self.at = At::Kind;
            let kind = service.classify(state, frame);
            let mut goes_on = true;
            match kind {
                Kind::Request | Kind::Switch => {
                    let full = self.taken.requests == self.room || self.batch.len_bytes() >= MAX_JOB_BYTES;
                    if full || self.taken.inline > 0 {
                        return;
                    }
                    self.batch.push_line(frame);
                    self.taken.requests += 1;
                    goes_on = kind != Kind::Switch;
                }
                Kind::Inline => {
                    if self.taken.requests > 0 {
                        return;
                    }
                    self.begin_request(content);
                    let handled = self.handle(service, state, frame);
                    goes_on = self.end_request(handled);
                }
                Kind::Ignored => {
                    self.taken.ignored += 1;
                    self.begins_behind();
                    // The log shows it, too.
                    let is_long = self.next.saturating_sub(self.lap.start) >= MAX_LAP_BYTES;
                    goes_on = !(self.worker.laps.is_open() && is_long) || self.slice_goes_on();
                }
                Kind::Stop => {
                    self.taken.stops += 1;
                    self.begins_behind();
                    if !self.stop_allowed {
                        self.taken.end = End::Close(CloseReason::KillRefused);
                        goes_on = false;
                    }
                }
            }
            self.taken.consumed = self.next;
            self.scanned = 0;
            self.frames -= 1;
            if !goes_on {
                return;
            }
        }
        if self.taken.consumed == self.bytes.len() {
            self.taken.end = End::More { scanned: 0 };
        }
    }

    /// Looks for the next frame. Returns where its content is; `None`: there is none, and the end says why.
    #[inline(always)]
    fn find(&mut self, framing: Option<&dyn Framing>) -> Option<Range<usize>> {
        let begin = self.taken.consumed;
        let rest = &self.bytes[begin..];
        let cutter = Cutter { lines: self.service.lines(), custom: framing };
        self.taken.end = match cutter.next(rest, self.scanned, self.ended) {
            Some(Found::Frame { content, consumed }) => {
                self.next = begin + consumed;
                return Some(begin + content.start..begin + content.end);
            }
            // Of a stream that has ended nothing more comes.
            Some(Found::More { .. }) if self.ended => {
                self.taken.consumed = self.bytes.len();
                End::More { scanned: 0 }
            }
            Some(Found::More { scanned }) => End::More { scanned },
            Some(Found::TooLong) => End::Close(CloseReason::LineTooLong),
            None => End::Close(CloseReason::Panic),
        };
        None
    }

    /// What is handled here is timed from now on.
    #[inline(always)]
    fn begin_slice(&mut self) {
        let LoopWorker { laps, clock, .. } = &mut *self.worker;
        let now = clock.now();
        self.slice_begun = Some(now);
        laps.begin(now, self.taken.lap.max(1));
    }

    /// What was taken is no request: the time of the first that is handled here does not begin before it.
    fn begins_behind(&mut self) {
        if self.taken.inline == 0 {
            self.slice_begun = None;
        }
    }

    /// The request that was found there is handled now.
    #[inline(always)]
    fn begin_request(&mut self, content: Range<usize>) {
        if self.slice_begun.is_none() {
            self.begin_slice();
        }
        if !self.worker.laps.is_open() {
            self.lap.start = content.start;
        }
        self.lap.end = content.end;
        self.reply_start = self.batch.replies.len();
        self.at = At::Request;
    }

    #[inline(always)]
    fn handle<S: Service>(&mut self, service: &S, state: &mut S::State, frame: &[u8]) -> Handled {
        let LoopWorker { services, states, post, waits, .. } = &mut *self.worker;
        let Some(worker) = states.get(services, self.origin.local.service) else {
            return Handled::Panicked;
        };
        let connection = Connection::new(self.origin, post);
        let request = Request::new(frame, &connection, waits);
        let mut reply = Reply::new(self.batch.replies(), &connection, Mode::Loop);
        service.handle(state, worker_state(worker, &mut ()), &request, &mut reply);
        reply.handled()
    }

    /// The request was handled. Returns whether the next may be.
    #[inline(always)]
    fn end_request(&mut self, handled: Handled) -> bool {
        self.taken.inline += 1;
        *self.job_end = self.batch.end_line(handled);
        let is_done = *self.job_end == JobEnd::Done;
        let full = self.batch.replies.len() >= MAX_SLICE_BYTES;
        // What others push may come between this reply and the next.
        let alone = self.origin.local.has_pushers() && !self.batch.reply_ends.is_empty();
        let lap_ends = self.worker.laps.count();
        if full || alone || !is_done {
            self.end_lap();
            if is_done {
                *self.job_end = JobEnd::Unfinished;
            }
            return false;
        }
        !(lap_ends || self.lap.len() >= MAX_LAP_BYTES) || self.slice_goes_on()
    }

    /// The present lap ends. Returns whether its slice goes on.
    #[inline]
    fn slice_goes_on(&mut self) -> bool {
        let spent = self.end_lap();
        if spent {
            *self.job_end = JobEnd::Unfinished;
        }
        !spent
    }

    /// The present lap ends. Returns whether its slice is over.
    #[inline]
    fn end_lap(&mut self) -> bool {
        let LoopWorker { laps, clock, held, told, .. } = &mut *self.worker;
        let at = clock.now();
        let lap = laps.end(at, self.accepted_at);
        let is_slow = self.service.slow().is_some_and(|limit| lap.wait.saturating_add(lap.took) >= limit);
        if is_slow || lap.took > *held {
            let shown = slow::shown(&self.bytes[self.lap.clone()], lap.requests);
            told.push(Told { lap, at, is_slow, held: lap.took > *held, requests: shown.to_vec() });
        }
        self.slice_begun.is_some_and(|begun| laps.begun().saturating_sub(begun) >= MAX_SLICE)
    }

    #[cold]
    fn has_panicked(&mut self) {
        match self.at {
            At::Frame => self.taken.end = End::Close(CloseReason::Panic),
            At::Kind => {
                self.taken.consumed = self.next;
                self.taken.end = End::Close(CloseReason::Panic);
            }
            At::Request => {
                self.batch.replies.truncate(self.reply_start);
                self.taken.consumed = self.next;
                self.end_request(Handled::Panicked);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::config::{ServiceSettings, StopFrom};
    use crate::framing::Fixed;
    use crate::job::{Endpoint, FreeJobs};
    use crate::mail::Nowhere;
    use crate::service::Handler;
    use crate::slots::{ConnId, Slots};

    const MS: Nanos = 1_000_000;

    /// Answers each line with itself, at once, but for comments, and those for workers. `slow` takes two milliseconds by the clock, and to
    /// see what `odd` and `#odd` are takes as long; others take 10 ns.
    struct Echo(&'static AtomicU64);

    impl Handler for Echo {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            reply.push(request.line());
            assert_ne!(request.line(), b"panic", "on purpose");
            self.0.fetch_add(if request.line() == b"slow" { 2 * MS } else { 10 }, Relaxed);
        }

        fn classify(&self, line: &[u8]) -> Kind {
            assert_ne!(line, b"what", "on purpose");
            match line {
                b"odd" | b"#odd" => drop(self.0.fetch_add(2 * MS, Relaxed)),
                b"worker" => return Kind::Request,
                _ => {}
            }
            if line.starts_with(b"#") { Kind::Ignored } else { Kind::Inline }
        }
    }

    /// A connection of a service, all of whose requests are handled here.
    struct Bench {
        worker: LoopWorker,
        lap: u8,
    }

    impl Bench {
        fn new(service: impl Handler, clock: Clock) -> Bench {
            let service = Served::new(Arc::new(service), &ServiceSettings::of_lines(1000, StopFrom::None));
            Bench { worker: LoopWorker::new(Arc::new([service]), Arc::new(Nowhere), clock, MS), lap: 1 }
        }

        /// One whose last requests were short.
        fn used_to(now: &'static AtomicU64, clock: Clock) -> Bench {
            let mut bench = Bench::new(Echo(now), clock);
            bench.take(&b"short\n".repeat(50));
            bench
        }

        fn take(&mut self, bytes: &[u8]) -> (Taken, Box<Job>) {
            self.take_until(bytes, false)
        }

        fn take_until(&mut self, bytes: &[u8], ended: bool) -> (Taken, Box<Job>) {
            let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
            let id = ConnId { slot: 0, generation: 0 };
            let mut job = FreeJobs::new(Slots::new([])).take(id, &endpoint, endpoint.address.clone(), 0, 0);
            let (worker, lap) = (&mut self.worker, self.lap);
            let service = &Arc::clone(&worker.services)[0];
            let cut =
                Cut { service, stop_allowed: false, job: &mut job, room: 256, frames: 256, lap, worker };
            let taken = cut.take(&mut None, bytes, 0, ended);
            self.lap = taken.lap;
            (taken, job)
        }

        /// What is to be told: the requests, and how many.
        fn told(&mut self) -> Vec<(String, usize)> {
            let told = self.worker.told.drain(..);
            told.map(|told| (String::from_utf8_lossy(&told.requests).into_owned(), told.lap.requests))
                .collect()
        }
    }

    #[test]
    fn whatever_took_long_is_among_those_that_are_told() {
        static NOW: AtomicU64 = AtomicU64::new(0);
        let mut bench = Bench::used_to(&NOW, Clock::reading(|| NOW.load(Relaxed)));
        assert_eq!(bench.told(), []);
        bench.take(b"a\nb\nslow\nc\n");
        assert_eq!(bench.told(), [("a\nb\nslow\nc".to_owned(), 4)]);
        // It is known by then that not all are short.
        bench.take(b"slow\na\n");
        assert_eq!(bench.told(), [("slow".to_owned(), 1)]);
    }

    #[test]
    fn what_it_takes_to_see_what_a_request_is_counts() {
        static NOW: AtomicU64 = AtomicU64::new(0);
        let mut bench = Bench::new(Echo(&NOW), Clock::reading(|| NOW.load(Relaxed)));
        bench.take(b"odd\n");
        bench.take(b"odd\nworker\n");
        assert_eq!(bench.told(), [("odd".to_owned(), 1), ("odd".to_owned(), 1)]);
        bench.take(b"#odd\nshort\n");
        assert_eq!(bench.told(), [], "what is no request is not blamed on the next");
        // Whose requests are handled by workers is not timed here; that one is not again is seen only then.
        bench.take(b"worker\n");
        bench.take(b"odd\n");
        assert_eq!(bench.told(), []);
        bench.take(b"odd\n");
        assert_eq!(bench.told(), [("odd".to_owned(), 1)]);
    }

    #[test]
    fn no_more_are_timed_together_than_can_be_told() {
        static NOW: AtomicU64 = AtomicU64::new(0);
        let mut bench = Bench::used_to(&NOW, Clock::reading(|| NOW.load(Relaxed)));
        let long = "x".repeat(MAX_LAP_BYTES - 1);
        bench.take(format!("{long}\n{long}\n{long}\nslow\n").as_bytes());
        assert_eq!(bench.told(), [(format!("{long}\nslow"), 2)]);
        // What is no request is shown too.
        let ignored = format!("#{long}");
        bench.take(&b"short\n".repeat(50));
        bench.take(format!("a\n{ignored}\nslow\n").as_bytes());
        assert_eq!(bench.told(), [("slow".to_owned(), 1)]);
    }

    #[test]
    fn who_was_short_before_is_not_believed_for_long_and_not_for_others() {
        static NOW: AtomicU64 = AtomicU64::new(0);
        let mut bench = Bench::used_to(&NOW, Clock::reading(|| NOW.load(Relaxed)));
        let slow = b"slow\n".repeat(50);
        let (taken, _) = bench.take(&slow);
        assert_eq!(taken.inline, 8, "a part of the most that are timed together");
        assert_eq!(bench.take(&slow).0.inline, 1);
        bench.take(&b"short\n".repeat(50));
        // Another connection.
        bench.lap = 1;
        assert_eq!(bench.take(&slow).0.inline, 1);
        // One short one says little of those behind it.
        let (taken, _) = bench.take(&[b"short\n", &slow[..]].concat());
        assert_eq!(taken.inline, 3);
    }

    #[test]
    fn a_slice_ends_behind_what_took_too_long() {
        static NOW: AtomicU64 = AtomicU64::new(0);
        let mut bench = Bench::new(Echo(&NOW), Clock::reading(|| NOW.load(Relaxed)));
        let (taken, job) = bench.take(b"slow\na\n");
        assert_eq!((taken.inline, taken.consumed, taken.end), (1, 5, End::Full));
        assert_eq!((job.end, &job.batch.replies[..]), (JobEnd::Unfinished, &b"slow"[..]));
    }

    #[test]
    fn a_panic_costs_what_it_was_about_and_no_reply_before_it() {
        static NOW: AtomicU64 = AtomicU64::new(0);
        let mut bench = Bench::new(Echo(&NOW), Clock::start());
        let (taken, job) = bench.take(b"a\npanic\nb\n");
        assert_eq!((taken.inline, taken.consumed, taken.end), (2, 8, End::Full));
        assert_eq!((job.end, &job.batch.replies[..]), (JobEnd::Panicked, &b"a"[..]));
        assert_eq!(job.batch.reply_ends, [1]);
        let (taken, job) = bench.take(b"a\nwhat\nb\n");
        assert_eq!((taken.inline, taken.consumed, taken.end), (1, 7, End::Close(CloseReason::Panic)));
        assert_eq!((job.end, &job.batch.replies[..]), (JobEnd::Done, &b"a"[..]));
    }

    #[test]
    fn a_rest_that_becomes_no_frame_is_dropped_at_the_end() {
        struct Pairs(Fixed);
        impl Handler for Pairs {
            fn handle(&self, _: &Request<'_>, _: &mut Reply<'_>) {}

            fn framing(&self) -> Option<&dyn Framing> {
                Some(&self.0)
            }
        }
        let mut bench = Bench::new(Pairs(Fixed::new(2)), Clock::start());
        for (ended, consumed, scanned) in [(false, 2, 1), (true, 3, 0)] {
            let (taken, _) = bench.take_until(b"abc", ended);
            assert_eq!((taken.requests, taken.consumed, taken.end), (1, consumed, End::More { scanned }));
        }
    }
}

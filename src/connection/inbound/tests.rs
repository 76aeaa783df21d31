//! What is cut, what is kept and what is held, case by case; and, as a property, that a stream comes to the same whatever the order of
//! reads, cuts and looks.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::config::{ServiceSettings, StopFrom};
use crate::connection::model::Comments;
use crate::framing::{Framing, Lines};
use crate::job::{Endpoint, FreeJobs, Job, MAX_JOB_BYTES};
use crate::reason::CloseReason;
use crate::service::{Handler, LoopWorker, Reply, Request, Service};
use crate::slots::{ConnId, Slots};

fn service() -> Served {
    Served::new(Arc::new(Comments), &ServiceSettings::of_lines(8, StopFrom::Any))
}

/// Its requests are of each kind, by their first byte. Behind one that ends with `!` its connection is closed.
struct Kinds;

impl Handler for Kinds {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        if request.line().ends_with(b"!") {
            reply.close();
        }
    }

    fn classify(&self, line: &[u8]) -> Kind {
        match line {
            [b'#', ..] => Kind::Ignored,
            [b'i', ..] => Kind::Inline,
            [b's', ..] => Kind::Switch,
            _ => Kind::Request,
        }
    }
}

/// Its requests are handled inline, and its framing panics when it is asked for behind the first.
struct Falters {
    asked: AtomicUsize,
    lines: Lines,
}

impl Service for Falters {
    type State = ();
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, (): &mut (), _: &crate::service::Connection<'_>, _: &mut Reply<'_>) {}

    fn handle(&self, (): &mut (), (): &mut (), _: &Request<'_>, _: &mut Reply<'_>) {}

    fn framing(&self, (): &()) -> Option<&dyn Framing> {
        // At the start, and when the cut begins.
        assert!(self.asked.fetch_add(1, Relaxed) < 2, "it falters");
        Some(&self.lines)
    }

    fn classify(&self, (): &(), _: &[u8]) -> Kind {
        Kind::Inline
    }

    fn has_sessions(&self) -> bool {
        false
    }
}

fn job() -> Box<Job> {
    let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
    let id = ConnId { slot: 0, generation: 0 };
    FreeJobs::new(Slots::new([])).take(id, &endpoint, endpoint.address.clone(), 0, 0)
}

fn lines(job: &mut Job) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some((line, _)) = job.batch.next_line() {
        lines.push(String::from_utf8_lossy(line).into_owned());
    }
    lines
}

/// As much as there is in most of these tests.
fn cut_of<'a>(service: &'a Served, job: &'a mut Job, worker: &'a mut LoopWorker) -> Cut<'a> {
    Cut { service, stop_allowed: true, job, room: 9, frames: 9, lap: 1, worker }
}

fn inbound(bytes: &[u8]) -> Inbound {
    let mut inbound = Inbound::default();
    inbound.append(bytes, None, 7);
    inbound
}

#[test]
fn every_frame_counts_against_the_share_of_the_turn_whether_it_is_a_request_or_not() {
    let (service, mut job) = (service(), job());
    let mut inbound = inbound(b"#\n\n#\na\n#\nb\n");
    let mut all = (0, 0);
    for (frames, end) in [(2, End::Full), (3, End::Full), (3, End::More { scanned: 0 })] {
        let worker = &mut LoopWorker::alone([]);
        let cut = Cut { frames, ..cut_of(&service, &mut job, worker) };
        let taken = inbound.cut(&mut None, false, cut, 9);
        assert_eq!(taken.end, end);
        all = (all.0 + taken.requests, all.1 + taken.ignored);
    }
    assert_eq!((all, lines(&mut job)), ((3, 3), vec![String::new(), "a".to_owned(), "b".to_owned()]));
    assert_eq!(inbound.capacity(), 0, "nothing is held where nothing is left");
}

#[test]
fn what_finds_no_room_is_left_for_the_next_job() {
    let (service, mut job) = (service(), job());
    let mut inbound = inbound(b"a\nb\nc");
    let worker = &mut LoopWorker::alone([]);
    let cut = Cut { room: 1, ..cut_of(&service, &mut job, worker) };
    let taken = inbound.cut(&mut None, false, cut, 9);
    assert_eq!((taken.requests, taken.consumed, taken.end), (1, 2, End::Full));
    assert!(inbound.may_have_frame());
    assert_eq!(inbound.count_requests(&service, None, false), 1);
    assert_eq!(inbound.count_requests(&service, None, true), 2);
}

#[test]
fn what_is_handled_inline_shares_no_job_and_nothing_is_cut_behind_a_switch() {
    let take = |worker: &mut LoopWorker, bytes: &[u8]| {
        let (service, job) = (&Arc::clone(&worker.services)[0], &mut *job());
        let cut = cut_of(service, job, worker);
        let Taken { requests, inline, consumed, end, .. } = cut.take(&mut None, bytes, 0, false);
        (requests, inline, consumed, end)
    };
    let settings = ServiceSettings::of_lines(8, StopFrom::Any);
    let mut kinds = LoopWorker::alone([Served::new(Arc::new(Kinds), &settings)]);
    for (bytes, expected) in [
        (&b"i\ni\n#\n"[..], (0, 2, 6, End::More { scanned: 0 })),
        (b"i\na\ni\n", (0, 1, 2, End::Full)),
        (b"a\ni\n", (1, 0, 2, End::Full)),
        (b"i!\ni\n", (0, 1, 3, End::Full)),
        (b"a\ns\nb\n", (2, 0, 4, End::Full)),
    ] {
        assert_eq!(take(&mut kinds, bytes), expected, "{}", bytes.escape_ascii());
    }
    let falters = Falters { asked: AtomicUsize::new(0), lines: Lines::new(8) };
    let mut falters = LoopWorker::alone([Served::new(Arc::new(falters), &settings)]);
    assert_eq!(take(&mut falters, b"i\ni\n"), (0, 1, 2, End::Close(CloseReason::Panic)));
}

#[test]
fn requests_are_counted_as_far_as_it_is_known_how_they_are_framed() {
    let service = Served::new(Arc::new(Kinds), &ServiceSettings::of_lines(8, StopFrom::Any));
    for (bytes, expected) in [(b"a\n#\nb\nc\n", 3), (b"a\ni\nb\nc\n", 2), (b"a\ns\nb\nc\n", 2)] {
        assert_eq!(inbound(bytes).count_requests(&service, None, false), expected);
    }
}

#[test]
fn a_refused_stop_and_a_line_too_long_end_what_is_behind_them() {
    for (bytes, reason, stops) in [
        (&b"a\nstop\nb\n"[..], CloseReason::KillRefused, 1),
        (b"a\n123456789\nb\n", CloseReason::LineTooLong, 0),
        (b"a\n123456789", CloseReason::LineTooLong, 0),
    ] {
        let (service, mut job) = (service(), job());
        let worker = &mut LoopWorker::alone([]);
        let cut = Cut { stop_allowed: false, ..cut_of(&service, &mut job, worker) };
        let taken = cut.take(&mut None, bytes, 0, false);
        assert_eq!((taken.end, taken.stops, taken.requests), (End::Close(reason), stops, 1));
    }
}

#[test]
fn a_stop_is_seen_ahead_of_what_waits_however_it_was_cut_and_only_once() {
    let service = service();
    let bytes = b"a\nstop\r\nb\n";
    for cut in 1..bytes.len() {
        let mut inbound = Inbound::default();
        let mut seen = 0;
        for part in [&bytes[..cut], &bytes[cut..]] {
            inbound.append(part, None, 0);
            seen += usize::from(inbound.asks_for_stop(&service, false));
        }
        assert!(seen >= 1, "cut at {cut}");
        assert!(!inbound.asks_for_stop(&service, false), "cut at {cut}");
    }
    let mut last = inbound(b"a\nstop");
    assert!(!last.asks_for_stop(&service, false) && last.asks_for_stop(&service, true));
}

#[test]
fn a_long_line_that_comes_in_pieces_holds_little_more_than_its_length() {
    let mut inbound = Inbound::default();
    for _ in 0..60_000 {
        inbound.append(b"x", Some(0), 0);
    }
    assert!(inbound.capacity() <= 60_000 + MAX_GROWTH_BYTES, "{}", inbound.capacity());
    let mut line = Inbound::default();
    line.append(&[b'x'; 60_000], Some(60_000), 0);
    assert_eq!(line.capacity(), 60_000);
    let mut full = Vec::with_capacity(100);
    full.resize(full.capacity() - 3, b'x');
    let before = full.capacity();
    grow(&mut full, 3);
    assert_eq!(full.capacity(), before, "there is room");
}

#[test]
fn the_wait_for_the_rest_of_a_frame_begins_anew_only_with_the_next_frame() {
    let (service, mut job) = (service(), job());
    let mut cut = |inbound: &mut Inbound| {
        let (service, job) = (&service, &mut job);
        let worker = &mut LoopWorker::alone([]);
        let cut = cut_of(service, job, worker);
        inbound.cut(&mut None, false, cut, 9)
    };
    let mut inbound = Inbound::default();
    inbound.append(b"x", Some(1), 5);
    inbound.append(b"y", None, 8);
    assert_eq!(inbound.arrived_at(), 5, "when the front came");
    assert_eq!((cut(&mut inbound).consumed, inbound.incomplete_since()), (0, Some(5)));
    inbound.append(b"\nz", None, 8);
    assert_eq!((cut(&mut inbound).consumed, inbound.incomplete_since()), (3, Some(9)));
    assert_eq!(inbound.scanned, 1, "it is not looked at again");
    let mut empty = Inbound::default();
    empty.examine(&service, None, 5);
    assert_eq!(empty.incomplete_since(), None, "nothing has begun");
}

#[test]
fn a_job_that_is_full_takes_no_more() {
    let service = service();
    for (there, requests) in [(MAX_JOB_BYTES - 1, 1), (MAX_JOB_BYTES, 0)] {
        let mut job = job();
        job.batch.push_line(&vec![b'x'; there]);
        let job = &mut job;
        let worker = &mut LoopWorker::alone([]);
        let cut = cut_of(&service, job, worker);
        assert_eq!(cut.take(&mut None, b"a\nb\n", 0, false).requests, requests, "{there} bytes");
    }
}

#[test]
fn a_front_that_is_not_most_of_it_stays_and_growth_is_bounded() {
    let (service, mut job) = (service(), job());
    let mut inbound = inbound(&[&b"#\n"[..], &b"x".repeat(7), &[b'\n'; 1000]].concat());
    let before = inbound.capacity();
    let worker = &mut LoopWorker::alone([]);
    let cut = Cut { frames: 1, ..cut_of(&service, &mut job, worker) };
    inbound.cut(&mut None, false, cut, 9);
    assert_eq!((inbound.capacity(), inbound.len()), (before, before - 2));
    inbound.skip(before / 2 - 2);
    assert_eq!((inbound.capacity(), inbound.len()), (before, before - before / 2), "half of it is not most");
    let mut long = Inbound::default();
    for _ in 0..100 {
        long.append(&[b'x'; 1024], Some(0), 0);
        assert!(long.capacity() <= long.len() + MAX_GROWTH_BYTES, "{} for {}", long.capacity(), long.len());
    }
}

#[test]
fn the_front_is_let_go_when_it_is_most_of_what_is_held() {
    let (service, mut job) = (service(), job());
    let mut inbound = inbound(&[&b"#\n".repeat(1000)[..], b"rest"].concat());
    let worker = &mut LoopWorker::alone([]);
    let cut = Cut { frames: 1001, ..cut_of(&service, &mut job, worker) };
    assert_eq!(inbound.cut(&mut None, false, cut, 9).end, End::More { scanned: 4 });
    assert!(inbound.capacity() <= 4 + MIN_GROWTH_BYTES, "{}", inbound.capacity());
    assert_eq!((inbound.len(), inbound.may_have_frame()), (4, false));
}

/// What a stream comes to, whoever looks at it and however.
#[derive(Debug, Default, PartialEq)]
struct Account {
    requests: Vec<String>,
    ignored: usize,
    stops: usize,
    end: Option<CloseReason>,
}

impl Account {
    fn add(&mut self, taken: &Taken) {
        self.ignored += taken.ignored;
        self.stops += taken.stops;
        if let End::Close(reason) = taken.end {
            self.end = Some(reason);
        }
    }
}

/// The account of a stream that has ended, seen as a whole. `max`: most bytes of a line.
fn reference(stream: &[u8], max: usize, stop_allowed: bool) -> Account {
    let mut account = Account::default();
    let lines = stream.split_inclusive(|byte| *byte == b'\n').map(|line| match line {
        [content @ .., b'\r', b'\n'] | [content @ .., b'\n'] => content,
        content => content,
    });
    for line in lines {
        match line {
            line if line.len() > max => account.end = Some(CloseReason::LineTooLong),
            b"stop" => {
                account.stops += 1;
                account.end = (!stop_allowed).then_some(CloseReason::KillRefused);
            }
            [b'#', ..] => account.ignored += 1,
            line => account.requests.push(String::from_utf8_lossy(line).into_owned()),
        }
        if account.end.is_some() {
            break;
        }
    }
    account
}

/// Something that the reactor does with what comes in.
#[derive(Clone, Debug)]
enum Step {
    /// Reads some bytes. If nothing is here yet, it cuts what it can of them at once.
    Read { bytes: Vec<u8>, room: usize, frames: usize },
    /// Cuts what is here.
    Cut { room: usize, frames: usize },
    /// Looks at what is here.
    Examine,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let parts: &[&[u8]] =
        &[b"\n", b"\r\n", b"\r", b"stop", b"stop\n", b"st", b"op", b"#", b"a", b"12345678", b"x\n"];
    let bytes = prop::collection::vec(prop::sample::select(parts), 0..6).prop_map(|parts| parts.concat());
    let step = prop_oneof![
        3 => (bytes, 0_usize..4, 0_usize..5)
            .prop_map(|(bytes, room, frames)| Step::Read { bytes, room, frames }),
        2 => (0_usize..4, 0_usize..5).prop_map(|(room, frames)| Step::Cut { room, frames }),
        1 => Just(Step::Examine),
    ];
    prop::collection::vec(step, 0..24)
}

/// Takes the steps, then the end of the stream. Returns the account, and whether a stop was seen ahead of its turn.
fn run(service: &Served, steps: &[Step], stop_allowed: bool) -> (Account, bool) {
    let (mut inbound, mut job, mut account) = (Inbound::default(), job(), Account::default());
    let (mut came, mut seen) = (Vec::new(), false);
    let end = Step::Cut { room: 2, frames: 3 };
    let mut ended = false;
    for step in steps.iter().chain(std::iter::repeat(&end)) {
        if account.end.is_some() || ended && inbound.is_empty() {
            break;
        }
        if std::ptr::eq(step, &end) && !std::mem::replace(&mut ended, true) {
            inbound.set_ended();
            seen |= inbound.asks_for_stop(service, true);
        }
        match step {
            Step::Read { bytes, room, frames } => {
                came.extend(bytes);
                let (mut kept, mut incomplete) = (0, None);
                if inbound.is_empty() && *frames > 0 && *room > 0 {
                    let (room, frames) = (*room, *frames);
                    let worker = &mut LoopWorker::alone([]);
                    let cut = Cut { stop_allowed, room, frames, ..cut_of(service, &mut job, worker) };
                    let taken = cut.take(&mut None, bytes, 0, false);
                    account.add(&taken);
                    kept = taken.consumed;
                    if let End::More { scanned } = taken.end {
                        incomplete = Some(scanned);
                    }
                }
                if kept < bytes.len() && account.end.is_none() {
                    inbound.append(&bytes[kept..], incomplete, 0);
                    seen |= inbound.asks_for_stop(service, false);
                }
            }
            Step::Cut { room, frames } => {
                let (room, frames) = (*room, *frames);
                let worker = &mut LoopWorker::alone([]);
                let cut = Cut { stop_allowed, room, frames, ..cut_of(service, &mut job, worker) };
                let taken = inbound.cut(&mut None, ended, cut, 9);
                account.add(&taken);
                assert!(taken.requests <= room && taken.requests + taken.ignored + taken.stops <= frames);
                // Or it would be asked again and again, or never.
                let goes_on = inbound.may_have_frame();
                assert!(goes_on || inbound.is_empty() || matches!(taken.end, End::More { .. }));
                assert!(!goes_on || taken.end == End::Full || account.end.is_some());
            }
            Step::Examine => {
                inbound.examine(service, None, 9);
                if !inbound.is_empty() {
                    let whole = !matches!(
                        service.framing(None).unwrap().next(inbound.rest(), 0, false),
                        Some(Found::More { .. })
                    );
                    assert_eq!(inbound.may_have_frame(), whole);
                }
            }
        }
        assert!(inbound.is_empty() == (inbound.capacity() == 0), "nothing is held for nothing");
        // A stop is never missed: it was counted, or seen ahead.
        let whole = came.split_inclusive(|byte| *byte == b'\n');
        let stops = whole.filter(|line| matches!(*line, b"stop\n" | b"stop\r\n")).count();
        let late = account.end.is_none() && stops > 0 && account.stops == 0 && !seen;
        assert!(!late, "{}", came.escape_ascii());
    }
    account.requests = lines(&mut job);
    (account, seen)
}

proptest! {
    // The same cases in every run. What a run finds becomes a test by name.
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x71de),
        ..Default::default()
    })]

    #[test]
    fn whatever_the_order_of_reads_cuts_and_looks_a_stream_comes_to_the_same(
        steps in steps(),
        stop_allowed in any::<bool>(),
    ) {
        let service = service();
        let stream = steps.iter().fold(Vec::new(), |mut stream, step| {
            if let Step::Read { bytes, .. } = step {
                stream.extend(bytes);
            }
            stream
        });
        let expected = reference(&stream, service.max_frame_bytes(None), stop_allowed);
        let (account, seen) = run(&service, &steps, stop_allowed);
        prop_assert_eq!(&account, &expected);
        // Seen ahead is only what is there, counted in its turn unless a line before it ended everything.
        prop_assert!(!seen || account.stops > 0 || account.end == Some(CloseReason::LineTooLong));
    }
}

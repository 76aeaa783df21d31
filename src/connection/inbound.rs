//! What has come in and is not handled yet: raw bytes, a mark how far they were looked at, and frames cut off the front.
//!
//! Frames are cut one at a time, so a connection's share of a turn can end behind any of them, and the framing of the next is
//! not decided before. No I/O, no clock.

use crate::clock::Nanos;
use crate::framing::Found;
use crate::job::{Job, JobEnd, MAX_JOB_BYTES, Session};
use crate::reason::CloseReason;
use crate::service::{self, Kind, Served};

/// Bytes by which a buffer grows at least, up to a doubling: what is held is counted by capacity, so growth is not
/// left to the vector.
const MIN_GROWTH_BYTES: usize = 512;
/// Bytes by which it grows at most beyond what is asked for: what one read may bring, so that a long line does not hold twice
/// its length.
const MAX_GROWTH_BYTES: usize = 16 << 10;

/// Bytes that were read and not consumed.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    bytes: Vec<u8>,
    /// Bytes at the front that were consumed.
    start: usize,
    /// Bytes behind `start` that framing need not look at again.
    scanned: usize,
    /// Bytes behind `start` in which the stop line was looked for.
    searched: usize,
    /// Framing has said that the frame at the front is not complete.
    incomplete: bool,
    /// Since when the frame at the front has begun and is not complete; kept while more of it comes.
    incomplete_since: Option<Nanos>,
    /// When the bytes at the front were read, or a little earlier.
    arrived_at: Nanos,
}

impl Inbound {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// What it held.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// No byte will follow: what is here may be a whole frame now.
    pub(crate) fn set_ended(&mut self) {
        self.incomplete = false;
    }

    /// Whether a whole frame may be there, as far as is known.
    pub(crate) fn may_have_frame(&self) -> bool {
        !self.is_empty() && !self.incomplete
    }

    pub(crate) fn arrived_at(&self) -> Nanos {
        self.arrived_at
    }

    /// Since when the rest of the frame at the front is waited for.
    pub(crate) fn incomplete_since(&self) -> Option<Nanos> {
        self.incomplete_since.filter(|_| self.incomplete)
    }

    /// The rest was not waited for during the last `nanos`.
    pub(crate) fn forgive(&mut self, nanos: Nanos) {
        self.incomplete_since = self.incomplete_since.map(|since| since.saturating_add(nanos));
    }

    /// The bytes that are not consumed.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Consumes `count` bytes that were of no frame. What is behind them was not looked at as what it is.
    pub(crate) fn skip(&mut self, count: usize) {
        self.start += count;
        (self.scanned, self.searched) = (0, 0);
        (self.incomplete, self.incomplete_since) = (false, None);
        self.tidy();
    }

    /// Adds bytes that were read at `now`. `incomplete`: nothing here is a whole frame, and framing has looked at so many bytes of all
    /// that is here then.
    pub(crate) fn append(&mut self, bytes: &[u8], incomplete: Option<usize>, now: Nanos) {
        if self.is_empty() {
            self.arrived_at = now;
        }
        grow(&mut self.bytes, bytes.len());
        self.bytes.extend_from_slice(bytes);
        self.scanned = incomplete.unwrap_or(self.scanned);
        self.set_incomplete(incomplete.is_some(), now);
    }

    fn set_incomplete(&mut self, incomplete: bool, now: Nanos) {
        self.incomplete = incomplete;
        if incomplete {
            self.incomplete_since.get_or_insert(now);
        }
    }

    /// Looks at `now` whether the frame at the front is complete, without consuming it; not while it cannot be told.
    pub(crate) fn examine(&mut self, service: &Served, session: Option<&Session>, now: Nanos) {
        if self.may_have_frame()
            && service.knows_framing(session)
            && let Some(framing) = service.framing(session)
            && let Some(Found::More { scanned }) = framing.next(self.rest(), self.scanned, false)
        {
            self.scanned = scanned;
            self.set_incomplete(true, now);
        }
    }

    /// Whether the service's stop line is there. Looks only at what it has not looked at before, and what may go on in it.
    pub(crate) fn asks_for_stop(&mut self, service: &Served, ended: bool) -> bool {
        let from = if ended { self.searched.saturating_sub(1) } else { self.searched };
        self.searched = self.len();
        service.asks_for_stop(self.rest(), from, ended)
    }

    /// Cuts frames off the front at `now`.
    pub(crate) fn cut(
        &mut self,
        session: &mut Option<Session>,
        ended: bool,
        cut: Cut<'_>,
        now: Nanos,
    ) -> Taken {
        let taken = cut.take(session, self.rest(), self.scanned, ended);
        if taken.consumed > 0 {
            self.incomplete_since = None;
        }
        self.start += taken.consumed;
        self.searched = self.searched.saturating_sub(taken.consumed);
        self.scanned = taken.end.scanned();
        self.set_incomplete(matches!(taken.end, End::More { .. }), now);
        self.tidy();
        taken
    }

    /// How many requests are among the frames that are here.
    pub(crate) fn count_requests(&self, service: &Served, session: Option<&Session>, ended: bool) -> usize {
        let (mut rest, mut scanned, mut requests) = (self.rest(), self.scanned, 0);
        let framing = service.knows_framing(session).then(|| service.framing(session)).flatten();
        let Some(framing) = framing else { return 0 };
        while !rest.is_empty()
            && let Some(Found::Frame { content, consumed }) = framing.next(rest, scanned, ended)
        {
            match service::classify(&*service.service, session, &rest[content]) {
                Some(Kind::Request) => requests += 1,
                // What is behind it may be framed in another way.
                Some(Kind::Switch | Kind::Inline) => return requests + 1,
                _ => {}
            }
            (rest, scanned) = (&rest[consumed..], 0);
        }
        requests
    }

    /// Frees what is not needed: everything, where nothing is left; the front, where it is most of it.
    fn tidy(&mut self) {
        if self.is_empty() {
            *self = Inbound::default();
        } else if self.start > self.bytes.capacity() / 2 {
            // Copied: cut to length, a long buffer would leave a hole in the heap that is too small for the next.
            let mut rest = Vec::with_capacity(self.len() + MIN_GROWTH_BYTES);
            rest.extend_from_slice(self.rest());
            (self.bytes, self.start) = (rest, 0);
        }
    }
}

/// Makes room for `additional` bytes without holding much more than is asked for.
fn grow(bytes: &mut Vec<u8>, additional: usize) {
    if bytes.capacity() - bytes.len() < additional {
        let spare = match bytes.is_empty() {
            true => 0,
            false => bytes.len().clamp(MIN_GROWTH_BYTES, MAX_GROWTH_BYTES),
        };
        bytes.reserve_exact(additional.max(spare));
    }
}

/// Handles requests where they are cut.
pub(crate) trait HandleInline {
    /// Handles one, and writes its reply to `job`. What it tells is [`JobEnd::Done`] where the next may follow.
    fn handle(
        &mut self,
        service: &Served,
        session: &mut Option<Session>,
        frame: &[u8],
        job: &mut Job,
    ) -> JobEnd;
}

/// A job to be filled with frames, and how far.
pub(crate) struct Cut<'a> {
    pub(crate) service: &'a Served,
    /// Whether this peer may stop the server.
    pub(crate) stop_allowed: bool,
    pub(crate) job: &'a mut Job,
    /// Most requests in the job.
    pub(crate) room: usize,
    /// Most frames, requests or not.
    pub(crate) frames: usize,
    pub(crate) inline: &'a mut dyn HandleInline,
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
    fn scanned(self) -> usize {
        if let End::More { scanned } = self { scanned } else { 0 }
    }
}

impl Cut<'_> {
    /// Takes frames off the front of `bytes`, of which `scanned` need not be looked at again for the first one's end.
    pub(crate) fn take(
        self,
        session: &mut Option<Session>,
        bytes: &[u8],
        mut scanned: usize,
        ended: bool,
    ) -> Taken {
        let Cut { service, stop_allowed, job, room, frames, inline } = self;
        let mut taken = Taken { consumed: 0, requests: 0, inline: 0, ignored: 0, stops: 0, end: End::Full };
        let Some(mut framing) = service.framing(session.as_ref()) else {
            taken.end = End::Close(CloseReason::Panic);
            return taken;
        };
        for _ in 0..frames {
            let rest = &bytes[taken.consumed..];
            if rest.is_empty() {
                taken.end = End::More { scanned: 0 };
                return taken;
            }
            let (content, consumed) = match framing.next(rest, scanned, ended) {
                Some(Found::Frame { content, consumed }) => (&rest[content], consumed),
                Some(Found::More { scanned }) => {
                    taken.end = End::More { scanned };
                    // Of a stream that has ended nothing more comes.
                    if ended {
                        taken.consumed = bytes.len();
                        taken.end = End::More { scanned: 0 };
                    }
                    return taken;
                }
                Some(Found::TooLong) => {
                    taken.end = End::Close(CloseReason::LineTooLong);
                    return taken;
                }
                None => {
                    taken.end = End::Close(CloseReason::Panic);
                    return taken;
                }
            };
            let kind = service::classify(&*service.service, session.as_ref(), content);
            let mut goes_on = true;
            match kind {
                Some(Kind::Request | Kind::Switch) => {
                    if taken.requests == room || taken.inline > 0 || job.batch.len_bytes() >= MAX_JOB_BYTES {
                        return taken;
                    }
                    job.batch.push_line(content);
                    taken.requests += 1;
                    goes_on = kind != Some(Kind::Switch);
                }
                Some(Kind::Inline) => {
                    if taken.requests > 0 {
                        return taken;
                    }
                    job.end = inline.handle(service, session, content, job);
                    taken.inline += 1;
                    goes_on = job.end == JobEnd::Done;
                    let Some(next) = service.framing(session.as_ref()) else {
                        taken.consumed += consumed;
                        taken.end = End::Close(CloseReason::Panic);
                        return taken;
                    };
                    framing = next;
                }
                Some(Kind::Ignored) => taken.ignored += 1,
                Some(Kind::Stop) => {
                    taken.stops += 1;
                    if !stop_allowed {
                        taken.end = End::Close(CloseReason::KillRefused);
                    }
                }
                None => taken.end = End::Close(CloseReason::Panic),
            }
            taken.consumed += consumed;
            scanned = 0;
            if !goes_on || taken.end != End::Full {
                return taken;
            }
        }
        if taken.consumed == bytes.len() {
            taken.end = End::More { scanned: 0 };
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::config::{ServiceSettings, StopFrom};
    use crate::connection::model::{Comments, NoInline};
    use crate::job::{Endpoint, FreeJobs};
    use crate::slots::{ConnId, Slots};

    fn service() -> Served {
        Served::new(Arc::new(Comments), &ServiceSettings::of_lines(8, StopFrom::Any))
    }

    fn job() -> Box<Job> {
        let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
        let id = ConnId { slot: 0, generation: 0 };
        FreeJobs::new(Slots::new(0)).take(id, &endpoint, endpoint.address.clone(), 0, 0)
    }

    fn lines(job: &mut Job) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some((line, _)) = job.batch.next_line() {
            lines.push(String::from_utf8_lossy(line).into_owned());
        }
        lines
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
            let cut = Cut {
                service: &service,
                stop_allowed: true,
                job: &mut job,
                room: 9,
                frames,
                inline: &mut NoInline,
            };
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
        let cut = Cut {
            service: &service,
            stop_allowed: true,
            job: &mut job,
            room: 1,
            frames: 9,
            inline: &mut NoInline,
        };
        let taken = inbound.cut(&mut None, false, cut, 9);
        assert_eq!((taken.requests, taken.consumed, taken.end), (1, 2, End::Full));
        assert!(inbound.may_have_frame());
        assert_eq!(inbound.count_requests(&service, None, false), 1);
        assert_eq!(inbound.count_requests(&service, None, true), 2);
    }

    #[test]
    fn a_refused_stop_and_a_line_too_long_end_what_is_behind_them() {
        for (bytes, reason, stops) in [
            (&b"a\nstop\nb\n"[..], CloseReason::KillRefused, 1),
            (b"a\n123456789\nb\n", CloseReason::LineTooLong, 0),
            (b"a\n123456789", CloseReason::LineTooLong, 0),
        ] {
            let (service, mut job) = (service(), job());
            let cut = Cut {
                service: &service,
                stop_allowed: false,
                job: &mut job,
                room: 9,
                frames: 9,
                inline: &mut NoInline,
            };
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
    }

    #[test]
    fn the_wait_for_the_rest_of_a_frame_begins_anew_only_with_the_next_frame() {
        let (service, mut job) = (service(), job());
        let mut cut = |inbound: &mut Inbound| {
            let (service, job) = (&service, &mut job);
            let cut = Cut { service, stop_allowed: true, job, room: 9, frames: 9, inline: &mut NoInline };
            inbound.cut(&mut None, false, cut, 9)
        };
        let mut inbound = Inbound::default();
        inbound.append(b"x", Some(1), 5);
        inbound.append(b"y", None, 8);
        assert_eq!(inbound.arrived_at(), 5, "when the front came");
        assert_eq!((cut(&mut inbound).consumed, inbound.incomplete_since()), (0, Some(5)));
        inbound.append(b"\nz", None, 8);
        assert_eq!((cut(&mut inbound).consumed, inbound.incomplete_since()), (3, Some(9)));
    }

    #[test]
    fn a_job_that_is_full_takes_no_more() {
        let service = service();
        for (there, requests) in [(MAX_JOB_BYTES - 1, 1), (MAX_JOB_BYTES, 0)] {
            let mut job = job();
            job.batch.push_line(&vec![b'x'; there]);
            let job = &mut job;
            let cut =
                Cut { service: &service, stop_allowed: true, job, room: 9, frames: 9, inline: &mut NoInline };
            assert_eq!(cut.take(&mut None, b"a\nb\n", 0, false).requests, requests, "{there} bytes");
        }
    }

    #[test]
    fn a_front_that_is_not_most_of_it_stays_and_growth_is_bounded() {
        let (service, mut job) = (service(), job());
        let mut inbound = inbound(&[&b"#\n"[..], &b"x".repeat(7), &[b'\n'; 1000]].concat());
        let before = inbound.capacity();
        let cut = Cut {
            service: &service,
            stop_allowed: true,
            job: &mut job,
            room: 9,
            frames: 1,
            inline: &mut NoInline,
        };
        inbound.cut(&mut None, false, cut, 9);
        assert_eq!((inbound.capacity(), inbound.len()), (before, before - 2));
        let mut long = Inbound::default();
        for _ in 0..100 {
            long.append(&[b'x'; 1024], Some(0), 0);
            assert!(
                long.capacity() <= long.len() + MAX_GROWTH_BYTES,
                "{} for {}",
                long.capacity(),
                long.len()
            );
        }
    }

    #[test]
    fn the_front_is_let_go_when_it_is_most_of_what_is_held() {
        let (service, mut job) = (service(), job());
        let mut inbound = inbound(&[&b"#\n".repeat(1000)[..], b"rest"].concat());
        let cut = Cut {
            service: &service,
            stop_allowed: true,
            job: &mut job,
            room: 9,
            frames: 1001,
            inline: &mut NoInline,
        };
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
                        let cut =
                            Cut { service, stop_allowed, job: &mut job, room, frames, inline: &mut NoInline };
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
                    let cut =
                        Cut { service, stop_allowed, job: &mut job, room, frames, inline: &mut NoInline };
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
}

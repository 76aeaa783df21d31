//! What was asked on each connection, what came back, and what that makes of every request.
//!
//! Every request carries a nonce of its own (run, connection, number), so every byte of its reply is known beforehand.
//! A reply that is exactly the next one expected costs one comparison; everything else takes the slow path, which finds out
//! which request, if any, those bytes answer, and where the next reply starts. No I/O and no clock here: time is an
//! argument, in nanoseconds since the start of the run.
//!
//! Invariant: `sent = right + wrong + reordered + lost + unread + outstanding`, whatever the peer sends.
//! Held by `the_books_balance_whatever_the_peer_sends`.

use std::collections::VecDeque;

use super::tally::{Kind, Tally};

/// `HELO `, the run's tag, the connection's number and the request's number, with a dash between each two.
pub(crate) const HEAD_LEN: usize = 5 + TAG_LEN + 1 + 8 + 1 + 8;
/// A request is its head and the line's end.
pub(crate) const REQUEST_LEN: usize = HEAD_LEN + 1;
const TAG_LEN: usize = 4;
const CONNECTION_AT: usize = 5 + TAG_LEN + 1;
const NUMBER_AT: usize = CONNECTION_AT + 8 + 1;
/// Lines in a reply: `HELO`, `IP`, `Port`, `StudentID`.
const REPLY_LINES: usize = 4;
/// A wrong reply that goes on for longer than this without an end ends the connection.
const MAX_WRONG_BYTES: usize = 64 * 1024;

/// The bytes of requests and replies, but for the numbers that change.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    reply: Vec<u8>,
    request: [u8; REQUEST_LEN],
}

impl Template {
    /// `tag` tells this run's requests from those of any other; `tail` is what follows the text in every reply.
    pub(crate) fn new(tag: [u8; TAG_LEN], tail: &[u8]) -> Self {
        let mut request = [b'-'; REQUEST_LEN];
        request[..5].copy_from_slice(b"HELO ");
        request[5..5 + TAG_LEN].copy_from_slice(&tag);
        request[HEAD_LEN] = b'\n';
        let mut reply = request[..HEAD_LEN].to_vec();
        reply.extend_from_slice(tail);
        Self { reply, request }
    }

    /// Replies end in `tail` from now on.
    pub(crate) fn set_tail(&mut self, tail: &[u8]) {
        self.reply.truncate(HEAD_LEN);
        self.reply.extend_from_slice(tail);
    }

    fn request(&self, connection: u32, number: u32) -> [u8; REQUEST_LEN] {
        let mut request = self.request;
        request[CONNECTION_AT..CONNECTION_AT + 8].copy_from_slice(&hex(connection));
        request[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&hex(number));
        request
    }

    pub(crate) fn reply(&mut self, connection: u32, number: u32) -> &[u8] {
        self.reply[CONNECTION_AT..CONNECTION_AT + 8].copy_from_slice(&hex(connection));
        self.reply_numbered(number)
    }

    /// To the connection of the last `reply`.
    fn reply_numbered(&mut self, number: u32) -> &[u8] {
        self.reply[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&hex(number));
        &self.reply
    }

    /// How every reply of this run starts: what the slow path looks for to find its feet again.
    fn marker(&self) -> &[u8] {
        &self.request[..CONNECTION_AT]
    }

    fn head(&self, bytes: &[u8]) -> Head {
        let marker = self.marker();
        let known = marker.len().min(bytes.len());
        if bytes[..known] != marker[..known] {
            return Head::Other;
        }
        if bytes.len() < HEAD_LEN {
            return Head::Unfinished;
        }
        match (
            unhex(&bytes[CONNECTION_AT..CONNECTION_AT + 8]),
            bytes[CONNECTION_AT + 8],
            unhex(&bytes[NUMBER_AT..HEAD_LEN]),
        ) {
            (Some(connection), b'-', Some(number)) => Head::Ours { connection, number },
            _ => Head::Other,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Head {
    Ours { connection: u32, number: u32 },
    Unfinished,
    Other,
}

/// When a request was due and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// When it should have been sent; latency counts from here.
    pub(crate) due: u64,
    /// When it was sent; the timeout counts from here.
    pub(crate) sent: u64,
}

/// What became of the bytes given to [`Ledger::read`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many bytes are dealt with; the rest is the start of a reply.
    Consumed(usize),
    /// Where the next reply starts cannot be known any more.
    Rubbish,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Whatever is outstanding is lost.
    Broken,
    /// The peer stopped as it was expected to: what it never read is no loss, if its replies are a clean prefix.
    Stopped,
}

enum Step {
    Consumed(usize),
    Wait,
    Rubbish,
}

/// Requests in the order of their replies. Those that were sent at once share an entry, so that the cost of a pipelined
/// request is that of its bytes.
#[derive(Debug, Default)]
struct Outstanding {
    runs: VecDeque<(Asked, u32)>,
    len: usize,
}

impl Outstanding {
    fn push(&mut self, asked: Asked, count: u32) {
        self.len += count as usize;
        match self.runs.back_mut() {
            Some((last, length)) if *last == asked => *length += count,
            _ => self.runs.push_back((asked, count)),
        }
    }

    fn front(&self) -> Option<(Asked, u32)> {
        self.runs.front().copied()
    }

    /// Takes `count` from the front run, which is not shorter.
    fn take(&mut self, count: u32) {
        if let Some((_, length)) = self.runs.front_mut() {
            *length -= count;
            self.len -= count as usize;
            if *length == 0 {
                self.runs.pop_front();
            }
        }
    }

    fn pop(&mut self) -> Option<Asked> {
        let (asked, _) = self.front()?;
        self.take(1);
        Some(asked)
    }
}

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct Ledger {
    connection: u32,
    /// Number of the next reply expected: those before it are answered, or in `missing`.
    next_reply: u32,
    next_request: u32,
    outstanding: Outstanding,
    /// Requests that later ones overtook.
    missing: Vec<(u32, Asked)>,
    /// The bytes at the front belong to a wrong reply that has been counted, and whose end has not been seen.
    inside_wrong: bool,
}

impl Ledger {
    pub(crate) fn new(connection: u32) -> Self {
        Self {
            connection,
            next_reply: 0,
            next_request: 0,
            outstanding: Outstanding::default(),
            missing: Vec::new(),
            inside_wrong: false,
        }
    }

    /// Requests without a reply.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding.len + self.missing.len()
    }

    pub(crate) fn connection(&self) -> u32 {
        self.connection
    }

    /// Requests asked on this connection so far.
    pub(crate) fn asked(&self) -> u32 {
        self.next_request
    }

    /// When the oldest request whose turn has come was sent.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.outstanding.front().map(|(asked, _)| asked.sent)
    }

    /// Appends the next `count` requests to `out`.
    pub(crate) fn ask(
        &mut self,
        asked: Asked,
        count: u32,
        template: &Template,
        out: &mut Vec<u8>,
        tally: &mut Tally,
    ) {
        let mut request = template.request(self.connection, 0);
        for _ in 0..count {
            request[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&hex(self.next_request));
            out.extend_from_slice(&request);
            self.next_request = self.next_request.wrapping_add(1);
        }
        self.outstanding.push(asked, count);
        tally.sent(asked, u64::from(count));
    }

    /// Matches the bytes at the front of the connection's stream with what was asked.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        template: &mut Template,
        now: u64,
        tally: &mut Tally,
    ) -> Read {
        let len = template.reply.len();
        let mut at = 0;
        while at < bytes.len() {
            if let (false, Some((asked, count))) = (self.inside_wrong, self.outstanding.front()) {
                let mut right = 0;
                let mut expected = template.reply(self.connection, self.next_reply);
                while right < count && bytes.get(at..at + len).is_some_and(|reply| reply == expected) {
                    right += 1;
                    at += len;
                    self.next_reply = self.next_reply.wrapping_add(1);
                    expected = template.reply_numbered(self.next_reply);
                }
                if right > 0 {
                    self.outstanding.take(right);
                    tally.right(asked, u64::from(right), now);
                    continue;
                }
                if expected.starts_with(&bytes[at..]) {
                    break;
                }
            }
            let rest = &bytes[at..];
            match self.unexpected(rest, template, now, tally) {
                Step::Consumed(n) => at += n,
                Step::Wait => break,
                Step::Rubbish => return Read::Rubbish,
            }
        }
        Read::Consumed(at)
    }

    /// Bytes that are neither the reply expected next nor the start of it.
    #[cold]
    fn unexpected(&mut self, rest: &[u8], template: &mut Template, now: u64, tally: &mut Tally) -> Step {
        if self.inside_wrong {
            return self.find_the_end(rest, template);
        }
        if rest.starts_with(b"ERROR ") || b"ERROR ".starts_with(rest) {
            // A line in which the server says why it ends the connection: it answers no request.
            let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
                return if rest.len() < MAX_WRONG_BYTES { Step::Wait } else { Step::Rubbish };
            };
            tally.said(&rest[..end]);
            return Step::Consumed(end + 1);
        }
        let (connection, number) = match template.head(rest) {
            Head::Unfinished => return Step::Wait,
            Head::Other => {
                let number = self.next_unsettled();
                self.wrong(number, rest, template, now, tally);
                self.inside_wrong = true;
                return self.find_the_end(rest, template);
            }
            Head::Ours { connection, number } => (connection, number),
        };
        let full = template.reply(connection, number);
        if rest.len() < full.len() && full.starts_with(rest) {
            return Step::Wait;
        }
        if !rest.starts_with(full) {
            let number = if connection == self.connection { Some(number) } else { self.next_unsettled() };
            self.wrong(number, rest, template, now, tally);
            self.inside_wrong = true;
            return self.find_the_end(rest, template);
        }
        let len = full.len();
        if connection != self.connection {
            // Whole, but somebody else's.
            self.wrong(self.next_unsettled(), &rest[..len], template, now, tally);
            return Step::Consumed(len);
        }
        if let Some(asked) = self.overtake(number) {
            tally.right(asked, 1, now);
        } else if let Some(asked) = self.late(number) {
            tally.reordered(asked, now, || self.example(number, &rest[..len], template));
        } else if number.wrapping_sub(self.next_request) > u32::MAX / 2 {
            tally.extra(Kind::Duplicated, now, || self.example(number, &rest[..len], template));
        } else {
            tally.extra(Kind::Unasked, now, || self.example(number, &rest[..len], template));
        }
        Step::Consumed(len)
    }

    /// The end of a wrong reply: where the next reply of this run starts, or after as many lines as a reply has.
    fn find_the_end(&mut self, rest: &[u8], template: &Template) -> Step {
        let marker = template.marker();
        let next = rest.windows(marker.len()).skip(1).position(|window| window == marker).map(|at| at + 1);
        let lines = rest.iter().enumerate().filter(|&(_, &byte)| byte == b'\n').nth(REPLY_LINES - 1);
        let after = lines.map(|(at, _)| at + 1);
        let end = match (next, after) {
            (Some(next), Some(after)) => Some(next.min(after)),
            (next, after) => next.or(after),
        };
        if let Some(end) = end {
            self.inside_wrong = false;
            return Step::Consumed(end);
        }
        if !b"HELO ".starts_with(&rest[..rest.len().min(5)]) || rest.len() > MAX_WRONG_BYTES {
            return Step::Rubbish;
        }
        Step::Wait
    }

    /// The request that a reply without a usable nonce is taken to answer.
    fn next_unsettled(&self) -> Option<u32> {
        if self.outstanding.len == 0 {
            self.missing.first().map(|&(number, _)| number)
        } else {
            Some(self.next_reply)
        }
    }

    /// Takes a request whose turn has come or that jumps the queue; those it jumps are missing from now on.
    fn overtake(&mut self, number: u32) -> Option<Asked> {
        let ahead = number.wrapping_sub(self.next_reply) as usize;
        if ahead >= self.outstanding.len {
            return None;
        }
        for _ in 0..ahead {
            let asked = self.outstanding.pop()?;
            self.missing.push((self.next_reply, asked));
            self.next_reply = self.next_reply.wrapping_add(1);
        }
        self.next_reply = self.next_reply.wrapping_add(1);
        self.outstanding.pop()
    }

    fn late(&mut self, number: u32) -> Option<Asked> {
        let at = self.missing.iter().position(|&(missing, _)| missing == number)?;
        Some(self.missing.remove(at).1)
    }

    fn wrong(
        &mut self,
        number: Option<u32>,
        got: &[u8],
        template: &mut Template,
        now: u64,
        tally: &mut Tally,
    ) {
        let asked = number.and_then(|number| self.overtake(number).or_else(|| self.late(number)));
        let shown = number.unwrap_or(self.next_reply);
        match asked {
            Some(asked) => tally.wrong(asked, now, || self.example(shown, got, template)),
            None => tally.extra(Kind::Unasked, now, || self.example(shown, got, template)),
        }
    }

    fn example(&self, number: u32, got: &[u8], template: &mut Template) -> Example {
        Example {
            connection: self.connection,
            request: shown(&template.request(self.connection, number)[..HEAD_LEN]),
            expected: shown(template.reply(self.connection, number)),
            got: shown(got),
        }
    }

    /// Gives up the missing requests that were sent before `before`, and tells whether there were any.
    pub(crate) fn expire_missing(
        &mut self,
        before: u64,
        template: &mut Template,
        now: u64,
        tally: &mut Tally,
    ) -> bool {
        let missing = self.missing.len();
        while let Some(at) = self.missing.iter().position(|(_, asked)| asked.sent < before) {
            let (number, asked) = self.missing.remove(at);
            tally.lost(asked, now, || self.example(number, b"", template));
        }
        self.missing.len() < missing
    }

    /// Settles everything that is outstanding. `leftover` is what came of a reply that was never finished.
    pub(crate) fn close(
        &mut self,
        end: End,
        leftover: &[u8],
        template: &mut Template,
        now: u64,
        tally: &mut Tally,
    ) {
        let clean = leftover.is_empty() && self.missing.is_empty();
        if !leftover.is_empty() && !self.inside_wrong {
            self.wrong(self.next_unsettled(), leftover, template, now, tally);
        }
        self.inside_wrong = false;
        for (number, asked) in std::mem::take(&mut self.missing) {
            tally.lost(asked, now, || self.example(number, b"", template));
        }
        while let Some(asked) = self.outstanding.pop() {
            let number = self.next_reply;
            self.next_reply = number.wrapping_add(1);
            if clean && end == End::Stopped {
                tally.unread(asked);
            } else {
                tally.lost(asked, now, || self.example(number, b"", template));
            }
        }
    }
}

/// What was asked, what should have come and what came, as text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Example {
    pub(crate) connection: u32,
    pub(crate) request: String,
    pub(crate) expected: String,
    pub(crate) got: String,
}

/// Bytes as text that can be printed, not longer than a few lines.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 160;
    let mut text = bytes[..bytes.len().min(MOST)].escape_ascii().to_string();
    if bytes.len() > MOST {
        text.push('…');
    }
    text
}

/// Eight hexadecimal digits, without a loop or a table: two are written for every request.
fn hex(value: u32) -> [u8; 8] {
    let mut x = u64::from(value);
    x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    x = (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((x + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (x + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

fn unhex(digits: &[u8]) -> Option<u32> {
    let lower = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let text = std::str::from_utf8(digits).ok().filter(|_| lower)?;
    u32::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tally::Counts;

    const TAIL: &str = "\nIP:127.0.0.1\nPort:8000\nStudentID:16336617\n";

    struct Fixture {
        ledger: Ledger,
        template: Template,
        tally: Tally,
    }

    impl Fixture {
        fn with_requests(count: u32) -> Self {
            let mut fixture = Self {
                ledger: Ledger::new(7),
                template: Template::new(*b"abcd", TAIL.as_bytes()),
                tally: Tally::new(0),
            };
            let mut out = Vec::new();
            for number in 0..count {
                // Pairs share an entry.
                let asked = Asked { due: 0, sent: u64::from(number / 2) };
                fixture.ledger.ask(asked, 1, &fixture.template, &mut out, &mut fixture.tally);
            }
            fixture
        }

        fn replies(&mut self, numbers: &[u32]) -> Vec<u8> {
            numbers.iter().flat_map(|&number| self.template.reply(7, number).to_vec()).collect()
        }

        /// Feeds the bytes in pieces, closes, and returns what was counted.
        fn counts(mut self, bytes: &[u8], piece: usize, end: End) -> Counts {
            let mut held: Vec<u8> = Vec::new();
            for chunk in bytes.chunks(piece.max(1)) {
                held.extend_from_slice(chunk);
                match self.ledger.read(&held, &mut self.template, 1, &mut self.tally) {
                    Read::Consumed(n) => drop(held.drain(..n)),
                    Read::Rubbish => {
                        held.clear();
                        break;
                    }
                }
            }
            self.ledger.close(end, &held, &mut self.template, 1, &mut self.tally);
            self.tally.total()
        }
    }

    fn counts(sent: u64, right: u64) -> Counts {
        Counts { sent, right, ..Counts::default() }
    }

    #[test]
    fn hex_is_what_the_standard_library_writes() {
        for value in [0, 1, 9, 10, 15, 16, 0xdead_beef, 0x0123_4567, 0x89ab_cdef, u32::MAX] {
            assert_eq!(hex(value).to_vec(), format!("{value:08x}").into_bytes());
            assert_eq!(unhex(&hex(value)), Some(value));
        }
    }

    #[test]
    fn right_replies_are_right_in_pieces_of_any_size() {
        for piece in 1..200 {
            let mut fixture = Fixture::with_requests(3);
            let bytes = fixture.replies(&[0, 1, 2]);
            assert_eq!(fixture.counts(&bytes, piece, End::Broken), counts(3, 3), "pieces of {piece}");
        }
    }

    #[test]
    fn swapped_replies_are_one_reordered() {
        let mut fixture = Fixture::with_requests(3);
        let bytes = fixture.replies(&[1, 0, 2]);
        let expected = Counts { reordered: 1, ..counts(3, 2) };
        assert_eq!(fixture.counts(&bytes, 50, End::Broken), expected);
    }

    #[test]
    fn dropped_reply_is_one_lost() {
        let mut fixture = Fixture::with_requests(4);
        let bytes = fixture.replies(&[0, 2, 3]);
        assert_eq!(fixture.counts(&bytes, 33, End::Stopped), Counts { lost: 1, ..counts(4, 3) });
    }

    #[test]
    fn second_reply_is_duplicated_even_when_nothing_is_outstanding() {
        let mut fixture = Fixture::with_requests(2);
        let bytes = fixture.replies(&[0, 0, 1, 1]);
        assert_eq!(fixture.counts(&bytes, 999, End::Broken), Counts { duplicated: 2, ..counts(2, 2) });
    }

    #[test]
    fn wrong_tail_is_wrong_and_the_next_reply_is_found() {
        let mut fixture = Fixture::with_requests(2);
        let mut bytes = fixture.replies(&[0]);
        let end = bytes.len() - 2;
        bytes[end] = b'9';
        bytes.extend(fixture.replies(&[1]));
        for piece in [1, 7, 1000] {
            let mut fixture = Fixture::with_requests(2);
            fixture.ledger.inside_wrong = false;
            assert_eq!(fixture.counts(&bytes, piece, End::Broken), Counts { wrong: 1, ..counts(2, 1) });
        }
    }

    #[test]
    fn truncated_reply_is_wrong_and_the_next_reply_is_found() {
        for cut in 1..70 {
            let mut fixture = Fixture::with_requests(2);
            let mut bytes = fixture.replies(&[0]);
            bytes.truncate(cut);
            bytes.extend(fixture.replies(&[1]));
            let counted = fixture.counts(&bytes, 13, End::Broken);
            // A cut inside "HELO " leaves no way to tell where the next reply starts while it comes in pieces.
            if cut >= 5 {
                assert_eq!(counted, Counts { wrong: 1, ..counts(2, 1) }, "cut at {cut}");
            } else {
                assert_eq!(counted.wrong, 1, "cut at {cut}");
            }
        }
    }

    #[test]
    fn reply_cut_off_by_the_end_is_wrong() {
        let mut fixture = Fixture::with_requests(2);
        let bytes = fixture.replies(&[0]);
        let counted = fixture.counts(&bytes[..40], 40, End::Stopped);
        assert_eq!(counted, Counts { wrong: 1, lost: 1, ..counts(2, 0) });
    }

    #[test]
    fn clean_prefix_and_expected_stop_leave_the_rest_unread() {
        let mut fixture = Fixture::with_requests(4);
        let bytes = fixture.replies(&[0, 1]);
        assert_eq!(fixture.counts(&bytes, 40, End::Stopped), Counts { unread: 2, ..counts(4, 2) });
    }

    #[test]
    fn reply_to_another_connection_is_wrong() {
        let mut fixture = Fixture::with_requests(1);
        let bytes = fixture.template.reply(8, 0).to_vec();
        assert_eq!(fixture.counts(&bytes, 10, End::Broken), Counts { wrong: 1, ..counts(1, 0) });
    }

    #[test]
    fn bytes_that_nobody_asked_for_are_unasked() {
        let fixture = Fixture::with_requests(0);
        assert_eq!(fixture.counts(b"HELO you\nIP:1\nPort:2\nStudentID:3\n", 99, End::Broken).unasked, 1);
        let mut fixture = Fixture::with_requests(1);
        let bytes = fixture.replies(&[0, 5]);
        assert_eq!(fixture.counts(&bytes, 99, End::Broken), Counts { unasked: 1, ..counts(1, 1) });
    }

    #[test]
    fn error_line_answers_nothing() {
        let fixture = Fixture::with_requests(1);
        let counted = fixture.counts(b"ERROR server full (limit 3 connections)\n", 4, End::Broken);
        assert_eq!(counted, Counts { lost: 1, ..counts(1, 0) });
    }

    #[test]
    fn the_books_balance_whatever_the_peer_sends() {
        let mut random = fastrand::Rng::with_seed(3);
        for round in 0..2000 {
            let mut fixture = Fixture::with_requests(8);
            let mut bytes = Vec::new();
            for _ in 0..random.usize(0..12) {
                let mut reply = fixture.replies(&[random.u32(0..10)]);
                match random.u8(0..6) {
                    0 => reply.truncate(random.usize(0..reply.len())),
                    1 => {
                        let at = random.usize(0..reply.len());
                        reply[at] = random.u8(..);
                    }
                    2 => reply.extend_from_slice(b"rubbish\n"),
                    _ => {}
                }
                bytes.extend(reply);
            }
            let piece = random.usize(1..300);
            let end = if random.bool() { End::Broken } else { End::Stopped };
            let counted = fixture.counts(&bytes, piece, end);
            let settled = counted.right + counted.wrong + counted.reordered + counted.lost + counted.unread;
            assert_eq!(settled, counted.sent, "round {round}: {counted:?}");
        }
    }
}

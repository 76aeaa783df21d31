//! What was asked on one connection, what came back, and what that makes of every request.
//!
//! Every request has a number of its own in the run. Where its reply has that number in it, every byte of it is known
//! beforehand, and it is found out which request, if any, some bytes answer; where it has not, replies are matched in their
//! order. A reply that is the next one expected costs one comparison. No I/O and no clock here: time is an argument, in
//! nanoseconds since the start of the run.
//!
//! Invariant: `sent = right + wrong + reordered + lost + unread + outstanding`, whatever the peer sends.
//! Held by `the_books_balance_whatever_the_peer_sends`.

mod outstanding;

use std::collections::BTreeMap;

use super::protocol::{Identity, Line, MAX_LINE_BYTES, Match, Protocol};
use super::tally::{Kind, Tally};
use outstanding::{Outstanding, Run};

/// So many runs of settled requests are remembered: a second reply mostly comes right after the first.
const REMEMBERED_RUNS: usize = 4;

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
    /// A line that is too long.
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

/// A request that a later one overtook, and when.
#[derive(Debug)]
struct Missing {
    asked: Asked,
    since: u64,
}

/// The requests of one connection.
#[derive(Debug)]
pub(crate) struct Ledger {
    connection: u32,
    /// From one number of this thread to the next.
    step: u64,
    asked: u64,
    /// The number of the last request asked, and of how many, it and those before it, the system has not taken all bytes yet.
    last_number: u64,
    unsent: u64,
    outstanding: Outstanding,
    /// By number, which is the order in which they were asked, and mostly that in which they were overtaken.
    missing: BTreeMap<u64, Missing>,
    /// Runs settled last, and where the next one goes.
    settled: [Run; REMEMBERED_RUNS],
    next_settled: usize,
    /// The bytes at the front belong to a wrong reply that has been counted, and of which so many lines were seen.
    inside_wrong: Option<usize>,
    /// A line in which the server said why it ends the connection, if nothing came after it.
    last_words: Option<Vec<u8>>,
    /// When a request was settled last.
    progress: u64,
}

impl Ledger {
    /// `step` is the distance between the numbers that requests get.
    pub(crate) fn new(connection: u32, step: u64) -> Self {
        Self {
            connection,
            step,
            asked: 0,
            last_number: 0,
            unsent: 0,
            outstanding: Outstanding::new(),
            missing: BTreeMap::new(),
            settled: [Run::default(); REMEMBERED_RUNS],
            next_settled: 0,
            inside_wrong: None,
            last_words: None,
            progress: 0,
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
    pub(crate) fn asked(&self) -> u64 {
        self.asked
    }

    /// Of so many of those asked last, which have numbers that follow each other, the system has not taken all bytes: the peer
    /// cannot answer these.
    pub(crate) fn set_unsent(&mut self, count: u64) {
        self.unsent = count;
    }

    /// Whether the peer cannot have read this request yet, which is outstanding.
    fn is_unsent(&self, number: u64) -> bool {
        number.saturating_add(self.unsent * self.step) > self.last_number
    }

    /// How many requests of a run the peer can have read.
    fn sent_of(&self, run: Run) -> u64 {
        if self.unsent == 0 {
            return run.count;
        }
        // The first that is not sent is so much above the first of the run.
        let ahead = (self.last_number + self.step).saturating_sub(self.unsent * self.step + run.first);
        run.count.min(ahead / self.step)
    }

    /// Since when the request whose turn it is has been waited for: since it was sent, or since the one before was settled.
    pub(crate) fn waits_since(&self) -> Option<u64> {
        self.outstanding.front().map(|(asked, _)| asked.sent.max(self.progress))
    }

    /// When a request was settled last.
    pub(crate) fn settled_last(&self) -> u64 {
        self.progress
    }

    /// Since when the first of those that were overtaken is missing.
    pub(crate) fn misses_since(&self) -> Option<u64> {
        self.missing.first_key_value().map(|(_, missing)| missing.since)
    }

    /// What the server said last, if it was to tell why it ends the connection.
    pub(crate) fn take_last_words(&mut self) -> Option<Vec<u8>> {
        self.last_words.take()
    }

    /// Takes down `count` requests, and returns their bytes. Their numbers begin at `first`, above all of before.
    #[inline(always)] // For every request; each of the two loops has one place that asks.
    pub(crate) fn ask<'a>(
        &mut self,
        asked: Asked,
        first: u64,
        count: u64,
        protocol: &'a mut Protocol,
        tally: &mut Tally,
    ) -> &'a [u8] {
        self.asked += count;
        self.last_number = first + count.saturating_sub(1) * self.step;
        self.outstanding.push(asked, Run { first, count }, self.step);
        tally.sent(asked, count);
        protocol.requests(first, self.step, usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// Matches the bytes at the front of the connection's stream with what was asked.
    pub(crate) fn read(
        &mut self,
        bytes: &[u8],
        protocol: &mut Protocol,
        now: u64,
        tally: &mut Tally,
    ) -> Read {
        let mut at = 0;
        // Once something was not as expected, replies are looked at one by one.
        let mut is_plain = true;
        while at < bytes.len() {
            if let (None, None, Some((asked, run))) =
                (self.inside_wrong, &self.last_words, self.outstanding.front())
            {
                let (mut right, mut next) = (0, Match::No);
                let most = self.sent_of(run);
                if is_plain
                    && let Some((count, len)) =
                        protocol.compare_many(&bytes[at..], run.first, self.step, most)
                {
                    (right, next) = (count, Match::Whole(len));
                    at += len;
                }
                while right < most {
                    next = protocol.compare(&bytes[at..], run.first + right * self.step);
                    let Match::Whole(len) = next else { break };
                    right += 1;
                    at += len;
                }
                if right > 0 {
                    self.settle(right, now);
                    tally.right(asked, right, now);
                }
                match next {
                    Match::Start => break,
                    Match::Whole(_) => continue,
                    Match::No => {}
                }
            }
            is_plain = false;
            match self.unexpected(&bytes[at..], protocol, now, tally) {
                Step::Consumed(n) => at += n,
                Step::Wait => break,
                Step::Rubbish => return Read::Rubbish,
            }
        }
        Read::Consumed(at)
    }

    /// Takes requests from the front, which have their replies.
    fn settle(&mut self, count: u64, now: u64) {
        if let Some((_, run)) = self.outstanding.front() {
            self.remember(Run { count, ..run });
        }
        self.outstanding.take(count, self.step);
        self.progress = now;
    }

    fn remember(&mut self, run: Run) {
        self.settled[self.next_settled] = run;
        self.next_settled = (self.next_settled + 1) % REMEMBERED_RUNS;
    }

    /// Bytes that are neither the reply expected next nor the start of it.
    #[cold]
    fn unexpected(&mut self, rest: &[u8], protocol: &mut Protocol, now: u64, tally: &mut Tally) -> Step {
        if let Some(words) = self.last_words.take() {
            // They were not the last.
            tally.extra(Kind::Unasked, now, || self.example(None, &words, protocol));
            return Step::Consumed(0);
        }
        if let Some(lines) = self.inside_wrong {
            return self.find_the_end(lines, rest, protocol);
        }
        let number = match protocol.identify(rest) {
            Identity::Unfinished => return Step::Wait,
            Identity::Unknown => return self.foreign(rest, protocol, now, tally),
            Identity::Of(number) => number,
        };
        let len = match protocol.compare(rest, number) {
            Match::Start => return Step::Wait,
            Match::Whole(len) => len,
            Match::No => {
                let asked =
                    self.outstanding.contains(number, self.step) || self.missing.contains_key(&number);
                let number = if asked { Some(number) } else { self.next_unsettled() };
                self.wrong(number, rest, protocol, now, tally);
                self.inside_wrong = Some(0);
                return Step::Consumed(0);
            }
        };
        let reply = &rest[..len];
        if self.outstanding.contains(number, self.step) && self.is_unsent(number) {
            self.wrong(Some(number), reply, protocol, now, tally);
        } else if let Some(asked) = self.overtake(number, now) {
            tally.right(asked, 1, now);
        } else if let Some(missing) = self.missing.remove(&number) {
            self.progress = now;
            self.remember(Run { first: number, count: 1 });
            tally.reordered(missing.asked, now, || self.example(Some(number), reply, protocol));
        } else if self.settled.iter().any(|run| run.has(number, self.step)) {
            tally.extra(Kind::Duplicated, now, || self.example(Some(number), reply, protocol));
        } else {
            // Whole, but to a request of another connection, or of nobody.
            self.wrong(self.next_unsettled(), reply, protocol, now, tally);
        }
        Step::Consumed(len)
    }

    /// A line that is none of a reply's.
    fn foreign(&mut self, rest: &[u8], protocol: &mut Protocol, now: u64, tally: &mut Tally) -> Step {
        let end = Line::of(rest);
        let line = if let Line::Ends(end) = end { &rest[..end] } else { rest };
        if let Some(at) = protocol.find_within(line) {
            self.wrong(self.next_unsettled(), &rest[..at], protocol, now, tally);
            return Step::Consumed(at);
        }
        let end = match end {
            Line::Ends(end) => end,
            Line::Unfinished => return Step::Wait,
            Line::TooLong => return Step::Rubbish,
        };
        if Protocol::is_last_word(line) {
            self.last_words = Some(line.to_vec());
        } else {
            self.wrong(self.next_unsettled(), &rest[..=end], protocol, now, tally);
            self.inside_wrong = Some(1).filter(|_| protocol.lines() > 1 && protocol.is_of_this_kind(line));
        }
        Step::Consumed(end + 1)
    }

    /// The end of a wrong reply: where the next reply of this run starts, or after as many lines as a reply has.
    fn find_the_end(&mut self, lines: usize, rest: &[u8], protocol: &mut Protocol) -> Step {
        let next = self.outstanding.front().map_or(Match::No, |(_, run)| protocol.compare(rest, run.first));
        match (lines, next, protocol.identify(rest)) {
            // Its own first line has its number.
            (0, ..) | (_, Match::No, Identity::Unknown) => {}
            (_, Match::Whole(_), _) | (_, _, Identity::Of(_)) => {
                self.inside_wrong = None;
                return Step::Consumed(0);
            }
            _ => return Step::Wait,
        }
        let end = Line::of(rest);
        if let Some(at) = protocol.find_within(if let Line::Ends(end) = end { &rest[..end] } else { rest }) {
            self.inside_wrong = None;
            return Step::Consumed(at);
        }
        match end {
            Line::Ends(end) => {
                self.inside_wrong = Some(lines + 1).filter(|&lines| lines < protocol.lines());
                Step::Consumed(end + 1)
            }
            Line::Unfinished => Step::Wait,
            Line::TooLong => Step::Rubbish,
        }
    }

    /// The request that bytes without a usable number are taken to answer.
    fn next_unsettled(&self) -> Option<u64> {
        let first = self.outstanding.front().map(|(_, run)| run.first);
        first.or_else(|| self.missing.first_key_value().map(|(&number, _)| number))
    }

    /// Takes a request whose turn has come or that jumps the queue; those it jumps are missing from now on.
    fn overtake(&mut self, number: u64, now: u64) -> Option<Asked> {
        if !self.outstanding.contains(number, self.step) {
            return None;
        }
        while let Some((asked, run)) = self.outstanding.front() {
            if run.first == number {
                self.settle(1, now);
                return Some(asked);
            }
            self.missing.insert(run.first, Missing { asked, since: now });
            self.outstanding.take(1, self.step);
        }
        None
    }

    fn wrong(
        &mut self,
        number: Option<u64>,
        got: &[u8],
        protocol: &mut Protocol,
        now: u64,
        tally: &mut Tally,
    ) {
        let asked = number.and_then(|number| {
            let late = |missing: Missing| missing.asked;
            self.overtake(number, now).or_else(|| self.missing.remove(&number).map(late))
        });
        match asked {
            Some(asked) => {
                self.progress = now;
                tally.wrong(asked, now, || self.example(number, got, protocol));
            }
            None => tally.extra(Kind::Unasked, now, || self.example(None, got, protocol)),
        }
    }

    /// Bytes that came, and what was asked and should have come instead, if anything.
    pub(crate) fn example(&self, number: Option<u64>, got: &[u8], protocol: &mut Protocol) -> Example {
        let number = number.or_else(|| self.next_unsettled());
        let mut got_shown = shown(got);
        if Line::of(got) == Line::TooLong {
            got_shown.push_str(&format!(" (a line of more than {} MiB)", MAX_LINE_BYTES >> 20));
        }
        Example {
            connection: self.connection,
            request: number.map_or_else(String::new, |number| {
                let request = protocol.request(number);
                shown(request.strip_suffix(b"\n").unwrap_or(request))
            }),
            expected: number.map_or_else(String::new, |number| shown(&protocol.shown_reply(number))),
            got: got_shown,
        }
    }

    /// Gives up the requests that have been missing since before `before`, and tells whether there were any.
    pub(crate) fn expire_missing(
        &mut self,
        before: u64,
        protocol: &mut Protocol,
        now: u64,
        tally: &mut Tally,
    ) -> bool {
        let mut any = false;
        while let Some(first) = self.missing.first_entry().filter(|first| first.get().since < before) {
            let (number, missing) = first.remove_entry();
            tally.lost(missing.asked, now, || self.example(Some(number), b"", protocol));
            any = true;
        }
        any
    }

    /// Settles everything that is outstanding. `leftover` is what came of a reply that was never finished.
    pub(crate) fn close(
        &mut self,
        end: End,
        leftover: &[u8],
        protocol: &mut Protocol,
        now: u64,
        tally: &mut Tally,
    ) {
        let clean = leftover.is_empty() && self.missing.is_empty();
        if !leftover.is_empty() && self.inside_wrong.is_none() {
            self.wrong(self.next_unsettled(), leftover, protocol, now, tally);
        }
        self.inside_wrong = None;
        for (number, missing) in std::mem::take(&mut self.missing) {
            tally.lost(missing.asked, now, || self.example(Some(number), b"", protocol));
        }
        while let Some((asked, run)) = self.outstanding.front() {
            self.outstanding.take(1, self.step);
            if clean && end == End::Stopped {
                tally.unread(asked);
            } else {
                tally.lost(asked, now, || self.example(Some(run.first), b"", protocol));
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
pub(crate) fn shown(bytes: &[u8]) -> String {
    const MOST_BYTES: usize = 160;
    let mut text = bytes[..bytes.len().min(MOST_BYTES)].escape_ascii().to_string();
    if bytes.len() > MOST_BYTES {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;

//! A connection in any order of reads, writes, deadlines and ends of jobs, against what its replies must be. Only in tests and
//! for the fuzzer.
//!
//! The state machine is the real one; the socket, the pool and the clock are numbers. What the reactor does with a real socket
//! is for the `chaos` tests.

use std::sync::Arc;

use super::{Connection, Cut, Inbound, Phase, Role, Taken};
use crate::clock::Nanos;
use crate::config::{ServiceSettings, StopFrom, Timeouts};
use crate::job::{Batch, Endpoint, FreeJobs, Job};
use crate::litter::Litter;
use crate::reason::CloseReason;
use crate::service::{End, Handler, Kind, LoopWorker, Reply, Request, Served};
use crate::slots::{ConnId, MS, Slots};

/// Longest line.
const MAX_LINE: usize = 8;
/// Unread replies at which the connection is paused, and at which it is resumed.
const WATERMARKS: (usize, usize) = (64, 16);
/// What the replies of one job add at most, but in the end.
const MAX_JOB_WEIGHT: usize = MAX_FRAMES * (MAX_LINE + 1 + size_of::<usize>());
const MAX_FRAMES: usize = 5;
const TIMEOUTS: Timeouts =
    Timeouts { line: Some(10 * MS), idle: Some(50 * MS), write: Some(20 * MS), request: Some(30 * MS) };

/// What the peer may send at a time.
const PIECES: [&[u8]; 16] = [
    b"a\n",
    b"bcd\r\n",
    b"#\n",
    b"-\n",
    b"st",
    b"op\n",
    b"\n",
    b"x",
    b"12345678\n",
    b"123456789\n",
    b"\r",
    b"stop\n",
    b"stop\r\n",
    b"\r\n",
    b"\0\xff\n",
    b"a\nb\nc\nd\n#\ne\nf\n",
];

/// `stop` stops, lines that begin with `#` are ignored, those with `-` have no reply, the others are answered with themselves.
pub(super) struct Comments;

impl Handler for Comments {
    fn handle(&self, _: &Request<'_>, _: &mut Reply<'_>) {}

    fn classify(&self, line: &[u8]) -> Kind {
        match line {
            b"stop" => Kind::Stop,
            [b'#', ..] => Kind::Ignored,
            _ => Kind::Request,
        }
    }

    fn stop_line(&self) -> Option<&[u8]> {
        Some(b"stop")
    }
}

struct World {
    connection: Connection,
    service: Served,
    free: FreeJobs,
    litter: Litter,
    worker: LoopWorker,
    /// The job that is out.
    job: Option<Box<Job>>,
    /// All that the peer has sent, and how much of it was read.
    sent: Vec<u8>,
    read: usize,
    ended: bool,
    /// What the peer has got.
    got: Vec<u8>,
    stop_seen: bool,
    now: Nanos,
}

/// Does what `data` says: each byte is an action and a number.
///
/// # Panics
/// If the peer gets anything but its replies in order, if any is missing in the end, or if something is held for nothing.
pub fn play(data: &[u8]) {
    let [stop_allowed, actions @ ..] = data else { return };
    let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
    let peer = endpoint.address.clone();
    let mut world = World {
        connection: Connection::new(endpoint, &peer, stop_allowed & 1 == 1, Role::Requests, 0),
        service: Served::new(Arc::new(Comments), &ServiceSettings::of_lines(MAX_LINE, StopFrom::Any)),
        free: FreeJobs::new(Slots::new([])),
        litter: Litter::default(),
        worker: LoopWorker::alone([]),
        job: None,
        sent: Vec::new(),
        read: 0,
        ended: false,
        got: Vec::new(),
        stop_seen: false,
        now: MS,
    };
    for byte in actions {
        world.act(byte % 8, usize::from(byte / 8));
        world.check();
    }
    // Whatever is outstanding gets its turn.
    for _ in 0..2 * world.sent.len() + 8 {
        world.serve(usize::MAX, 1000, false);
        world.work(usize::MAX);
        world.take(usize::MAX);
    }
    world.check_end();
}

impl World {
    fn act(&mut self, action: u8, number: usize) {
        match action {
            0 | 1 if !self.ended => self.sent.extend_from_slice(PIECES[number % PIECES.len()]),
            0 | 1 => {}
            2 => self.ended |= number.is_multiple_of(4),
            3 => self.serve(1 + number * 3, 1 + number % MAX_FRAMES, number % 2 == 1),
            4 => self.work(1 + number % 4),
            5 => self.take(1 + number),
            6 => {
                self.now += MS * number as Nanos;
                self.connection.note_pause(self.now, || self.now);
            }
            _ => {
                if self.connection.drain_left().is_none() && number.is_multiple_of(8) {
                    self.connection.begin_drain(self.sent.len() - self.read);
                }
            }
        }
    }

    /// The connection's turn: hands out what it may, reads what it may.
    fn serve(&mut self, most: usize, frames: usize, sparing: bool) {
        if self.read < self.sent.len() || self.ended {
            self.connection.set_readable();
        }
        self.hand_out(frames);
        let limit = self.connection.may_read(most, sparing);
        let count = limit.min(self.sent.len() - self.read);
        if limit > 0 {
            match count {
                0 if self.ended => {
                    self.connection.set_ended();
                    if self.connection.inbound().is_some() {
                        self.connection.inbound_mut().set_ended();
                    }
                }
                0 => self.connection.set_read_empty(),
                count if count < limit => self.connection.set_read_short(),
                _ => {}
            }
            self.connection.count_drained(count);
            if count > 0 {
                let bytes = &self.sent[self.read..self.read + count];
                self.connection.inbound_mut().append(bytes, None, self.now);
                self.read += count;
            }
            if self.connection.inbound().is_some() {
                self.hand_out(frames);
            }
            self.look_ahead();
        }
        self.connection.note_pause(self.now, || self.now);
    }

    fn hand_out(&mut self, frames: usize) {
        if !self.connection.has_buffers() || !self.connection.may_hand_out() {
            return;
        }
        if let Some(job) = self.connection.take_held() {
            return self.send_out(job);
        }
        if !self.connection.may_have_frame() {
            return;
        }
        let id = ConnId { slot: 0, generation: 0 };
        let mut job = self.connection.new_job(id, &mut self.free, self.now);
        let stop_allowed = self.connection.may_stop;
        let cut = Cut {
            service: &self.service,
            stop_allowed,
            job: &mut job,
            room: frames,
            frames,
            lap: 1,
            // No request is classified as one that is handled there.
            worker: &mut self.worker,
        };
        let Taken { requests, stops, end, .. } = self.connection.cut(cut, self.now);
        self.connection.tidy();
        self.stop_seen |= stops > 0 && stop_allowed;
        if let End::Close(reason) = end {
            self.connection.phase = Phase::Closing(reason);
            drop(self.connection.discard_input());
        }
        match requests {
            0 => self.free.put(job, &mut self.litter),
            _ => self.send_out(job),
        }
    }

    fn send_out(&mut self, job: Box<Job>) {
        assert!(self.job.is_none(), "two jobs are out");
        self.connection.set_job_out(job.held_bytes());
        self.job = Some(job);
    }

    fn look_ahead(&mut self) {
        if self.connection.inbound().is_none() {
            return;
        }
        let (ended, may_stop) = (self.connection.has_ended(), self.connection.may_stop);
        if !ended {
            self.connection.examine(&self.service, self.now);
        }
        self.stop_seen |= may_stop && self.connection.inbound_mut().asks_for_stop(&self.service, ended);
    }

    /// A worker handles up to `count` lines of the job, and it comes back.
    fn work(&mut self, count: usize) {
        let Some(mut job) = self.job.take() else { return };
        for _ in 0..count {
            let Some((line, to)) = job.batch.next_line() else { break };
            if line.first() != Some(&b'-') {
                to.bytes.extend_from_slice(line);
                to.bytes.push(b'\n');
                to.ends.push(to.bytes.len());
            }
        }
        self.connection.set_job_back();
        if !job.batch.reply_ends.is_empty() {
            let Batch { replies, reply_ends, .. } = &mut job.batch;
            self.connection
                .with_outbound(WATERMARKS, self.now, |outbound| outbound.push(replies, reply_ends, 0));
        }
        job.begin_slice();
        match job.batch.lines_left() {
            0 => self.free.put(job, &mut self.litter),
            _ if self.connection.may_hand_out() => self.send_out(job),
            _ => self.connection.hold(job),
        }
    }

    /// The kernel takes up to `count` bytes of what waits.
    fn take(&mut self, count: usize) {
        let Some(outbound) = self.connection.outbound() else { return };
        let (bytes, replies) = (outbound.bytes(), outbound.replies());
        let count = count.min(bytes.len());
        let completed = bytes[..count].iter().filter(|byte| **byte == b'\n').count();
        self.got.extend_from_slice(&bytes[..count]);
        let (counted, _) =
            self.connection.with_outbound(WATERMARKS, self.now, |outbound| outbound.advance(count));
        assert_eq!(counted, completed, "replies that were sent to their end");
        assert_eq!(self.connection.unsent_replies(), replies - completed);
    }

    fn check(&mut self) {
        let expected = expected(&self.sent, self.ended, self.connection.may_stop).0;
        assert!(expected.starts_with(&self.got), "got {:?} for {expected:?}", self.got);
        let inbound = self.connection.inbound().map_or(0, Inbound::len);
        let outbound = self.connection.outbound().map_or(0, |outbound| outbound.bytes().len());
        assert!(self.connection.held_bytes() >= inbound + outbound);
        let weight = self.connection.outbound().map_or(0, super::Outbound::weight);
        assert!(weight <= WATERMARKS.0 + MAX_JOB_WEIGHT, "{weight} wait to be read");
        if !self.connection.has_buffers() && self.job.is_none() {
            assert_eq!(self.connection.held_bytes(), 0, "held for nothing");
        }
        match self.connection.deadline(&TIMEOUTS, self.now, || None) {
            Some((_, CloseReason::LineTimeout)) => assert!(inbound > 0, "no line has begun"),
            Some((_, CloseReason::WriteTimeout)) => assert!(outbound > 0, "nothing waits to be read"),
            Some((_, CloseReason::RequestTimeout)) => {
                assert!(self.job.is_some(), "nothing is with a handler")
            }
            Some((_, CloseReason::IdleTimeout)) => assert!(self.connection.is_quiet(), "it is not idle"),
            Some((_, reason)) => panic!("no deadline is for {reason:?}"),
            None => {}
        }
    }

    fn check_end(&self) {
        // A drain reads no further than what was there when it began.
        let ended = self.connection.has_ended();
        let (expected, closes, stops) = expected(&self.sent[..self.read], ended, self.connection.may_stop);
        assert_eq!(self.got.escape_ascii().to_string(), expected.escape_ascii().to_string(), "in the end");
        assert_eq!(matches!(self.connection.phase, Phase::Closing(_)), closes);
        if self.connection.may_stop {
            // Behind a line too long it may be seen ahead, or not.
            let any =
                self.sent[..self.read].split(|byte| *byte == b'\n').any(|line| line.starts_with(b"stop"));
            assert!(!stops || self.stop_seen, "a stop was not seen");
            assert!(!self.stop_seen || any, "nobody asked for a stop");
        } else {
            assert!(!self.stop_seen, "a stop by one who may not");
        }
        assert!(self.job.is_none() && self.connection.outbound().is_none() && self.connection.has_answered());
        if self.connection.drain_left().is_none() && !closes {
            assert_eq!((self.read, ended), (self.sent.len(), self.ended), "something was not read");
        }
        if self.connection.is_quiet() && self.connection.drain_left().is_none() {
            assert_eq!(self.connection.held_bytes(), 0, "held for nothing");
        }
    }
}

/// The replies to `bytes`, whether they end the connection, and whether a stop was asked for: by the letter of the rule.
fn expected(bytes: &[u8], ended: bool, may_stop: bool) -> (Vec<u8>, bool, bool) {
    let (mut replies, mut stops) = (Vec::new(), false);
    let mut pieces: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let last = pieces.pop().unwrap_or_default();
    let mut lines: Vec<&[u8]> =
        pieces.into_iter().map(|piece| piece.strip_suffix(b"\r").unwrap_or(piece)).collect();
    if ended && !last.is_empty() {
        lines.push(last);
    }
    for line in lines {
        match line {
            line if line.len() > MAX_LINE => return (replies, true, stops),
            b"stop" if may_stop => stops = true,
            b"stop" => return (replies, true, true),
            [b'#' | b'-', ..] => {}
            line => replies.extend([line, b"\n"].concat()),
        }
    }
    let rest = if ended { &[] } else { last.strip_suffix(b"\r").unwrap_or(last) };
    (replies, rest.len() > MAX_LINE, stops)
}

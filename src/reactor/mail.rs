//! What comes through the mailbox: finished jobs, pieces of replies, replies that were given later, and what is pushed.
//!
//! All of it is one queue, so that what is for one connection is taken in the order in which it was given. What was pushed while
//! a reply has begun and not ended waits with the connection.

use std::sync::Arc;
use std::time::Instant;

use super::Reactor;
use super::serve::{account_for, write};
#[cfg(feature = "admin")]
use super::survey::Search;
use super::table::Entry;
use crate::connection::Phase;
use crate::job::{Job, JobEnd, Task};
use crate::mail::{Completion, Mail, Piece, Push, Question};
use crate::reason::CloseReason;
use crate::slots::ConnId;

impl Reactor {
    /// Takes in one piece of mail. `Some`: what is left of it, as the turn is over.
    pub(super) fn take_mail(&mut self, mail: Mail, now: Instant) -> Option<Mail> {
        match mail {
            Mail::Job(job) => self.finish(job, now),
            Mail::Inline(job) => self.come_back(job, now),
            Mail::Piece(piece) => self.take_piece(*piece),
            Mail::Completion(completion) => self.complete(completion, now),
            Mail::Push(push) => return self.push(push, now),
            Mail::Join(to) => self.take_joint(*to, now),
            Mail::Question(question) => self.tell(question),
            #[cfg(feature = "admin")]
            Mail::Survey(survey) => self.searches.push_back(Search::new(survey)),
        }
        None
    }

    /// Whoever asked may have given up.
    fn tell(&mut self, question: Question) {
        match question {
            Question::Turns(answer) => answer.send(()).unwrap_or_default(),
            Question::Listeners(answer) => {
                let names = |service| self.services[usize::from(service)].name.clone();
                let none = self.shared.stop.begins_at().is_some();
                let listeners = if none { Ok(Vec::new()) } else { self.listeners.duplicates(names) };
                drop(answer.send(listeners));
            }
        }
    }

    /// A job came back from a worker.
    fn finish(&mut self, job: Box<Job>, now: Instant) {
        let ran = job.task != Task::Requests || job.batch.handled > job.late;
        self.shared.pool.came_back(ran.then_some(job.took));
        self.counters.late += job.late as u64;
        self.come_back(job, now);
    }

    /// A job came back: its replies go to the socket, the connection goes on.
    fn come_back(&mut self, job: Box<Job>, now: Instant) {
        let id = job.origin.id;
        self.jobs_out -= 1;
        self.lines_out -= job.batch.handled + job.batch.lines_left();
        self.budget.visit();
        if self.take_back(job, now) && !self.is_at_rest(id) {
            let Some(Entry { connection, .. }) = self.table.get(id) else { return };
            // One in the list is served later in this turn; twice would be beyond its budget.
            if !connection.wants_service() || connection.listed {
                self.settle(id);
            } else if self.collects_late && self.is_sparing() {
                // What is handed out comes back, with replies: there would never be fewer of those that wait to be taken back.
                self.list_left_over(id);
                self.settle(id);
            } else {
                self.serve(id, now);
            }
        }
    }

    /// Sends the replies that were given on this thread since it began to visit the connections of a turn: all together, so that a
    /// peer that has many connections is woken once for many. Each has had its share of the turn.
    pub(super) fn send_due(&mut self, now: Instant) {
        let mut due = std::mem::take(&mut self.due);
        for job in due.drain(..) {
            let id = job.origin.id;
            if self.take_back(job, now) && !self.is_at_rest(id) {
                self.end_if_over(id, now);
                self.settle(id);
            }
        }
        self.due = due;
    }

    /// A job came back: its replies go to the socket. `false`: its connection is gone, or there was none.
    fn take_back(&mut self, mut job: Box<Job>, now: Instant) -> bool {
        let id = job.origin.id;
        if let Task::Close(_) = job.task {
            self.closing_out -= 1;
            self.counters.panics += u64::from(job.end == JobEnd::Panicked);
            self.free.put(job, &mut self.litter);
            self.closed_session(id, now);
            return false;
        }
        self.count_unreplied(&job);
        let Some(Entry { connection, .. }) = self.table.get(id) else {
            self.counters.stale_replies += 1;
            self.orphans.remove(&id);
            let deferred = usize::from(matches!(job.end, JobEnd::Deferred { .. }));
            self.drop_requests(job.batch.reply_ends.len() + deferred + job.batch.lines_left());
            let reason = self.gone.remove(&id).unwrap_or(CloseReason::Reset);
            match job.session {
                Some(_) => self.give_back(job, reason),
                None => self.free.put(job, &mut self.litter),
            }
            return false;
        };
        connection.set_job_back();
        connection.session = job.session.take();
        account_for(connection, 0, &mut self.counters);
        self.deliver(job)
    }

    /// The session of a connection was given back by a worker. The connection may have waited for that.
    fn closed_session(&mut self, id: ConnId, now: Instant) {
        self.gone.remove(&id);
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        if connection.phase == Phase::Closing(CloseReason::Eof) {
            connection.set_job_back();
            self.serve(id, now);
        }
    }

    /// Counts those requests of a job that have come to no reply in it.
    pub(super) fn count_unreplied(&mut self, job: &Job) {
        let panicked = job.end == JobEnd::Panicked && job.task == Task::Requests;
        let deferred = matches!(job.end, JobEnd::Deferred { .. });
        let replies = job.batch.reply_ends.len() + job.batch.sent_ahead;
        let silent = job.batch.handled - replies - usize::from(panicked) - usize::from(deferred);
        self.counters.silent += silent as u64;
        self.counters.pending -= silent as u64;
        self.counters.panics += u64::from(job.end == JobEnd::Panicked);
        self.drop_requests(usize::from(panicked));
    }

    /// Gives the replies of a job to its connection, and does what its end says. `false`: the connection is gone.
    pub(super) fn deliver(&mut self, mut job: Box<Job>) -> bool {
        let id = job.origin.id;
        let batch = &mut job.batch;
        let rest = batch.replies.len() > batch.reply_ends.last().copied().unwrap_or(0);
        if (rest || !batch.reply_ends.is_empty()) && !self.reply(id, &mut batch.replies, &batch.reply_ends) {
            // Gone in the attempt, with all that was left of this job.
            let lost = batch.lines_left() + usize::from(matches!(job.end, JobEnd::Deferred { .. }));
            self.drop_requests(lost);
            self.free.put(job, &mut self.litter);
            return false;
        }
        let is_deferred = matches!(job.end, JobEnd::Deferred { .. });
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        let goes_on = connection.mid_reply && batch.reply_ends.is_empty();
        // One that was broken off stays so: nothing stands inside it, not the last line either.
        connection.mid_reply = is_deferred && (rest || goes_on) || job.end == JobEnd::Panicked && goes_on;
        connection.opening = false;
        match job.end {
            JobEnd::Done => {
                let has_buffers = connection.has_buffers();
                self.free.put(job, &mut self.litter);
                // Nothing that was pushed is parked there.
                if !has_buffers {
                    return true;
                }
            }
            JobEnd::Unfinished if connection.may_hand_out() => {
                job.begin_slice();
                self.resubmit(job);
            }
            JobEnd::Unfinished => {
                job.begin_slice();
                job.batch.trim();
                connection.hold(job);
            }
            JobEnd::Deferred { close } => {
                connection.await_reply(self.shared.hub.clock.now(), close);
                self.deferred += 1;
                if job.batch.lines_left() > 0 {
                    job.begin_slice();
                    job.batch.trim();
                    connection.hold(job);
                } else {
                    self.free.put(job, &mut self.litter);
                }
                if let Some(Entry { connection, .. }) = self.table.get(id)
                    && let Some(completion) = connection.take_completion()
                    && !self.answer(*completion)
                {
                    return false;
                }
            }
            JobEnd::Close | JobEnd::Panicked => {
                let reason =
                    if job.end == JobEnd::Panicked { CloseReason::Panic } else { CloseReason::Handler };
                self.drop_requests(job.batch.lines_left());
                self.free.put(job, &mut self.litter);
                self.begin_closing(id, reason);
            }
        }
        self.unpark_pushes(id)
    }

    /// Nothing more of a connection is handled; what was accepted is answered.
    fn begin_closing(&mut self, id: ConnId, reason: CloseReason) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        drop(connection.take_completion());
        let held = connection.take_held();
        if connection.phase == Phase::Open {
            connection.phase = Phase::Closing(reason);
        }
        let free = connection.discard_input();
        self.litter.drop_later(free);
        if let Some(job) = held {
            self.drop_requests(job.batch.lines_left());
            self.free.put(job, &mut self.litter);
        }
    }

    /// Takes in what a handler has written so far.
    fn take_piece(&mut self, mut piece: Piece) {
        let id = piece.connection;
        self.budget.visit();
        if self.table.get(id).is_none() {
            return self.drop_requests(piece.ends.len());
        }
        let rest = piece.bytes.len() > piece.ends.last().copied().unwrap_or(0);
        if !self.reply(id, &mut piece.bytes, &piece.ends) {
            return;
        }
        if let Some(Entry { connection, .. }) = self.table.get(id) {
            connection.mid_reply = rest || connection.mid_reply && piece.ends.is_empty();
            connection.keep_writer(piece.go_on);
        }
        if self.unpark_pushes(id) {
            self.settle(id);
        }
    }

    /// Takes in a reply that was given later, or the news that it will not be.
    fn complete(&mut self, completion: Box<Completion>, now: Instant) {
        let id = completion.connection;
        if self.steps_aside(id) {
            return self.aside(|reactor| reactor.complete(completion, now));
        }
        self.budget.visit();
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        if connection.is_job_out() {
            // Its handler has not returned.
            return connection.keep_completion(completion);
        }
        if self.answer(*completion) {
            self.serve(id, now);
        }
    }

    /// Gives a connection the reply that it waits for. `false`: it is gone.
    fn answer(&mut self, completion: Completion) -> bool {
        let id = completion.connection;
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        // It may have been told that it took too long.
        let Some(closes) = connection.end_await() else { return true };
        self.deferred -= 1;
        let begun = std::mem::take(&mut connection.mid_reply);
        let reason = match completion.reply {
            Some(mut reply) if begun || !reply.is_empty() => {
                let end = reply.len();
                if !self.reply(id, &mut reply, &[end]) {
                    return false;
                }
                CloseReason::Handler
            }
            Some(_) => {
                self.counters.silent += 1;
                self.counters.pending -= 1;
                CloseReason::Handler
            }
            None => {
                connection.mid_reply = begun;
                self.counters.panics += 1;
                self.drop_requests(1);
                CloseReason::Panic
            }
        };
        if closes || completion.close || reason == CloseReason::Panic {
            self.begin_closing(id, reason);
        }
        self.unpark_pushes(id)
    }

    /// Takes in what was pushed. `Some`: what is left of it, as the turn is over.
    fn push(&mut self, mut push: Box<Push>, now: Instant) -> Option<Mail> {
        while let Some(id) = push.to.get(push.given).copied() {
            if push.given > 0 && self.is_spent() {
                return Some(Mail::Push(push));
            }
            push.given += 1;
            self.budget.visit();
            self.free.slots().took_in(id, push.bytes.len());
            let Some(Entry { connection, .. }) = self.table.get(id) else { continue };
            // Nothing comes behind what a handler or a pusher has closed.
            let is_over = matches!(
                connection.phase,
                Phase::Closing(CloseReason::Handler) | Phase::Leaving(_) | Phase::Lingering(_)
            );
            if is_over {
                continue;
            }
            if push.close {
                if connection.phase == Phase::Open {
                    self.close_unread(id, CloseReason::Handler);
                }
                self.list(id);
                continue;
            }
            self.counters.pushed += 1;
            if connection.parks_pushes() {
                let watermarks = self.settings.watermarks(connection.service());
                connection.park(Arc::clone(&push.bytes), watermarks);
                self.settle(id);
            } else if self.write_pushed(id, &push.bytes) {
                self.end_if_over(id, now);
                self.settle(id);
            }
        }
        None
    }

    /// Writes what was pushed while a reply had begun, or the greeting was to come, if that has ended. `false`: the connection is gone.
    fn unpark_pushes(&mut self, id: ConnId) -> bool {
        loop {
            let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
            if connection.parks_pushes() {
                return true;
            }
            let Some(bytes) = connection.take_parked() else { return true };
            connection.keep_watermarks(self.settings.watermarks(connection.service()));
            if !self.write_pushed(id, &bytes) {
                return false;
            }
        }
    }

    /// Writes pushed bytes, or queues them behind what waits. `false`: the connection is gone.
    pub(super) fn write_pushed(&mut self, id: ConnId, bytes: &[u8]) -> bool {
        let sent = match self.write_now(id, bytes) {
            Written::Now(sent) => sent,
            Written::Waits => 0,
            Written::Gone(_) => return false,
        };
        if sent < bytes.len() {
            let now = self.now();
            let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
            let watermarks = self.settings.watermarks(connection.service());
            connection.with_outbound(watermarks, now, |outbound| outbound.push_word(&bytes[sent..]));
        }
        true
    }

    /// Writes replies, which end at `ends`, or queues them behind what waits. `false`: the connection is gone; the replies are
    /// accounted for.
    #[inline(always)]
    fn reply(&mut self, id: ConnId, replies: &mut Vec<u8>, ends: &[usize]) -> bool {
        let sent = match self.write_now(id, replies) {
            Written::Waits => 0,
            Written::Now(sent) => {
                self.count_replied(ends.partition_point(|end| *end <= sent));
                if sent == replies.len() {
                    return true;
                }
                sent
            }
            Written::Gone(sent) => {
                let done = ends.partition_point(|end| *end <= sent);
                self.count_replied(done);
                self.drop_requests(ends.len() - done);
                return false;
            }
        };
        let now = self.now();
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        let watermarks = self.settings.watermarks(connection.service());
        connection.with_outbound(watermarks, now, |outbound| outbound.push(replies, ends, sent));
        true
    }

    /// Writes `bytes`, where nothing waits before them and the socket may take them.
    #[inline(always)]
    fn write_now(&mut self, id: ConnId, bytes: &[u8]) -> Written {
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return Written::Gone(0) };
        if connection.outbound().is_some() {
            return Written::Waits;
        }
        if !connection.is_writable() {
            return Written::Now(0);
        }
        let wrote = write(stream, bytes);
        self.counters.written_bytes += wrote.bytes as u64;
        self.budget.bytes(wrote.bytes);
        if wrote.failed {
            self.close(id, CloseReason::Reset);
            return Written::Gone(wrote.bytes);
        }
        match wrote.is_full && !self.watch_writes(id) {
            true => Written::Gone(wrote.bytes),
            false => Written::Now(wrote.bytes),
        }
    }
}

/// What came of [`Reactor::write_now`].
#[derive(Clone, Copy, Debug)]
enum Written {
    /// Nothing: other bytes are before them.
    Waits,
    /// So many bytes were written.
    Now(usize),
    /// The same, and the connection is gone.
    Gone(usize),
}

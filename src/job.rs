//! What goes from the reactor to a worker: a [`Job`], which comes back with its replies. All else that comes back is `mail`.
//!
//! A job is the complete lines that one read of one connection brought. While it is out, no other job of that connection
//! is: that keeps replies in the order of their requests. It carries bytes and a [`ConnId`], no references, and its
//! buffers are recycled with it, so that a request allocates nothing.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::address::Address;
use crate::clock::Nanos;
use crate::config::ServiceId;
use crate::litter::Litter;
use crate::reason::CloseReason;
use crate::slots::{ConnId, Slots};

/// Most lines in a job. More would make one connection's burst a long wait for another's single line.
pub(crate) const MAX_JOB_LINES: usize = 256;
/// Bytes of lines in a job after which it takes no further line. It may hold one line of any length.
pub(crate) const MAX_JOB_BYTES: usize = 16 << 10;
/// Wall time after which a worker hands a job back with lines left, so that nobody waits behind a long one.
pub(crate) const MAX_SLICE: Nanos = 1_000_000;
/// Reply bytes after which it does, so that what the reactor has to write stays small.
pub(crate) const MAX_SLICE_BYTES: usize = 32 << 10;
/// Capacity in bytes that a recycled buffer may keep. Larger ones were for long lines or replies, and are let go.
const MAX_RECYCLED_BYTES: usize = 8 << 10;
/// Jobs kept for reuse, for as many connections that have one out at the same time; what is above is freed. With two
/// buffers and the ends of their lines and replies this keeps 10 MiB at the most, and usually some hundred bytes each.
const MAX_RECYCLED_JOBS: usize = 512;

/// A local address of a service that clients reached, shared by all connections that came in through it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    /// The service that listens there.
    pub(crate) service: ServiceId,
    /// A [`Pusher`](crate::Pusher) was made of one of its connections. Written by handlers, read by who cuts their replies together.
    /// Relaxed: what is pushed comes through the mailbox, behind it.
    has_pushers: AtomicBool,
}

impl Endpoint {
    pub(crate) fn new(address: Address, service: ServiceId) -> Arc<Endpoint> {
        Arc::new(Endpoint { address, service, has_pushers: AtomicBool::new(false) })
    }

    /// Bytes may be pushed to its connections from now on.
    pub(crate) fn set_has_pushers(&self) {
        // Read first: it is set but once, and read by every worker.
        if !self.has_pushers() {
            self.has_pushers.store(true, Relaxed);
        }
    }

    /// Whether bytes may be pushed to its connections: replies are then handed over one by one, so that what is pushed between
    /// two of them is.
    pub(crate) fn has_pushers(&self) -> bool {
        self.has_pushers.load(Relaxed)
    }
}

/// What a service keeps for a connection: its state, whose type the service knows.
pub(crate) type Session = Box<dyn Any + Send>;

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Its connection has opened: makes the session.
    Open,
    /// Handles the requests.
    Requests,
    /// Its connection has ended: gives the session back.
    Close(CloseReason),
}

/// How a call of a handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handled {
    Replied,
    Silent,
    /// The connection is to be closed, behind the reply if there is one.
    Close {
        replied: bool,
    },
    /// The reply is given later; the connection is to be closed behind it, or not.
    Deferred {
        close: bool,
    },
    Panicked,
}

/// How a worker left a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobEnd {
    /// Everything was done.
    Done,
    /// The worker's slice was over: lines are left, and the job goes back to the tail of the queue.
    Unfinished,
    /// The handler took the reply to the last line along, to give it later. Lines may be left. `close`: it is the last one.
    Deferred {
        /// The connection is to be closed behind it.
        close: bool,
    },
    /// The handler asked for the connection to be closed behind the last reply. Lines may be left.
    Close,
    /// The handler panicked. Its line has no reply; lines may be left.
    Panicked,
}

/// The connection that a job is of.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) id: ConnId,
    pub(crate) slots: Arc<Slots>,
    pub(crate) local: Arc<Endpoint>,
    pub(crate) peer: Address,
    /// When the connection was accepted, by the pool's clock.
    pub(crate) opened_at: Nanos,
}

impl Origin {
    /// Whether anybody would read the replies, as far as is known: the connection is there.
    pub(crate) fn is_there(&self) -> bool {
        self.slots.has(self.id)
    }
}

/// Lines of one connection on their way to a worker, or their replies on the way back.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) origin: Origin,
    pub(crate) task: Task,
    /// The connection's state, which travels with its job; `None` where the service keeps none.
    pub(crate) session: Option<Session>,
    /// When the reactor took these lines in, by the pool's clock. Waiting is counted from here.
    pub(crate) accepted_at: Nanos,
    pub(crate) batch: Batch,
    /// Of the lines handled in this slice, those that were not run because they had waited too long.
    pub(crate) late: usize,
    /// Wall time of this slice.
    pub(crate) took: Nanos,
    pub(crate) end: JobEnd,
}

/// The lines of a job, and the replies to them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The lines, back to back, without terminators.
    lines: Vec<u8>,
    /// Where in `lines` each line ends.
    line_ends: Vec<usize>,
    /// Lines that have been handled, in this slice and before.
    taken: usize,
    /// Replies of this slice, back to back.
    pub(crate) replies: Vec<u8>,
    /// Where in `replies` each reply ends.
    pub(crate) reply_ends: Vec<usize>,
    /// Lines handled in this slice, whether they had a reply or not.
    pub(crate) handled: usize,
    /// Replies of this slice that went ahead in pieces, ends included.
    pub(crate) sent_ahead: usize,
}

impl Batch {
    /// Adds a line.
    pub(crate) fn push_line(&mut self, line: &[u8]) {
        self.lines.extend_from_slice(line);
        self.line_ends.push(self.lines.len());
    }

    /// Bytes of its lines, those that are handled too.
    pub(crate) fn len_bytes(&self) -> usize {
        self.lines.len()
    }

    /// Lines not handled yet.
    pub(crate) fn lines_left(&self) -> usize {
        self.line_ends.len() - self.taken
    }

    /// Takes the next line, and the place for its reply; `None` when all are handled.
    pub(crate) fn next_line(&mut self) -> Option<(&[u8], Replies<'_>)> {
        let end = *self.line_ends.get(self.taken)?;
        let begin = self.taken.checked_sub(1).map_or(0, |before| self.line_ends[before]);
        self.taken += 1;
        self.handled += 1;
        let Batch { lines, replies: bytes, reply_ends: ends, sent_ahead, .. } = self;
        Some((&lines[begin..end], Replies { bytes, ends, sent_ahead }))
    }

    /// Of the lines that were handled in this slice the one of this number, from 0, as far as they are in it.
    pub(crate) fn handled_line(&self, number: usize) -> Option<&[u8]> {
        let line = self.taken.checked_sub(self.handled)? + number;
        let end = *self.line_ends.get(line)?;
        let begin = line.checked_sub(1).map_or(0, |before| self.line_ends[before]);
        Some(&self.lines[begin..end])
    }

    /// The place for the reply to a line that is not in it.
    pub(crate) fn replies(&mut self) -> Replies<'_> {
        let Batch { replies: bytes, reply_ends: ends, sent_ahead, .. } = self;
        Replies { bytes, ends, sent_ahead }
    }

    /// A reply ends here, if anything was written since the last one.
    pub(crate) fn end_reply(&mut self) {
        let end = self.replies.len();
        if end > self.reply_ends.last().copied().unwrap_or(0) {
            self.reply_ends.push(end);
        }
    }

    /// The handler is done with a line. Tells what that means for the job.
    pub(crate) fn end_line(&mut self, handled: Handled) -> JobEnd {
        match handled {
            Handled::Replied => {
                // Of one whose last piece was flushed nothing is left but its end.
                self.reply_ends.push(self.replies.len());
                JobEnd::Done
            }
            Handled::Silent => JobEnd::Done,
            Handled::Close { replied } => {
                if replied {
                    self.reply_ends.push(self.replies.len());
                }
                JobEnd::Close
            }
            // What was written is the begin of a reply that ends later.
            Handled::Deferred { close } => JobEnd::Deferred { close },
            Handled::Panicked => JobEnd::Panicked,
        }
    }

    /// Gives back what it does not need to hold its lines, as it will be held for long.
    pub(crate) fn trim(&mut self) {
        self.replies = Vec::new();
        self.reply_ends = Vec::new();
        // Copied: cut to length it would leave a hole that is too small for the next.
        let handled = self.taken.checked_sub(1).map_or(0, |last| self.line_ends[last]);
        self.lines = self.lines[handled..].to_vec();
        self.line_ends = self.line_ends[self.taken..].iter().map(|end| end - handled).collect();
        self.taken = 0;
    }

    fn capacity(&self) -> usize {
        let ends = self.line_ends.capacity() + self.reply_ends.capacity();
        self.lines.capacity() + self.replies.capacity() + ends * size_of::<usize>()
    }

    fn begin_slice(&mut self) {
        self.replies.clear();
        self.reply_ends.clear();
        self.handled = 0;
        self.sent_ahead = 0;
    }
}

/// Where replies are written.
#[derive(Debug)]
pub(crate) struct Replies<'a> {
    pub(crate) bytes: &'a mut Vec<u8>,
    /// Where in `bytes` those end that are complete.
    pub(crate) ends: &'a mut Vec<usize>,
    /// Replies that went ahead, in pieces.
    pub(crate) sent_ahead: &'a mut usize,
}

impl Job {
    /// Bytes that it holds, by capacity.
    pub(crate) fn held_bytes(&self) -> usize {
        size_of::<Job>() + self.batch.capacity()
    }

    /// A worker has taken it at `now`.
    pub(crate) fn set_taken(&self, now: Nanos) {
        self.origin.slots.set_taken(self.origin.id, now);
    }

    /// Forgets the replies and figures of the last slice, so that the job can be handed out again.
    pub(crate) fn begin_slice(&mut self) {
        self.batch.begin_slice();
        self.late = 0;
        self.took = 0;
        self.end = JobEnd::Done;
    }

    /// The worker broke off in the middle of a slice: the line that it was at has no reply.
    pub(crate) fn fail(&mut self) {
        let batch = &mut self.batch;
        if batch.handled <= batch.reply_ends.len() + batch.sent_ahead && batch.next_line().is_none() {
            // It was at none of them: the last one stands for it.
            batch.reply_ends.pop();
        }
        batch.replies.truncate(batch.reply_ends.last().copied().unwrap_or(0));
        self.end = JobEnd::Panicked;
    }

    /// Makes it the job that gives its session back.
    pub(crate) fn become_closing(&mut self, reason: CloseReason) {
        let session = self.session.take();
        self.clear();
        (self.session, self.task) = (session, Task::Close(reason));
    }

    fn clear(&mut self) {
        self.batch.lines.clear();
        self.batch.line_ends.clear();
        self.batch.taken = 0;
        self.session = None;
        self.task = Task::Requests;
        self.begin_slice();
    }
}

/// Jobs that can be used again. Only the reactor has one.
#[derive(Debug)]
pub(crate) struct FreeJobs {
    slots: Arc<Slots>,
    // Boxed: a job moves between queues many times, and a box is one word.
    #[expect(clippy::vec_box, reason = "the boxes themselves are what is recycled")]
    free: Vec<Box<Job>>,
}

impl FreeJobs {
    /// None yet. Their workers ask `slots` whether their connections are there.
    pub(crate) fn new(slots: Arc<Slots>) -> FreeJobs {
        FreeJobs { slots, free: Vec::new() }
    }

    /// What workers and the reactor tell each other of connections.
    pub(crate) fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    /// An empty job for the connection `id`, which was accepted at `opened_at`; what it will hold came at `now`.
    #[inline(always)]
    pub(crate) fn take(
        &mut self,
        id: ConnId,
        local: &Arc<Endpoint>,
        peer: Address,
        opened_at: Nanos,
        now: Nanos,
    ) -> Box<Job> {
        let Some(mut job) = self.free.pop() else {
            return Box::new(Job {
                origin: Origin {
                    id,
                    slots: Arc::clone(&self.slots),
                    local: Arc::clone(local),
                    peer,
                    opened_at,
                },
                task: Task::Requests,
                session: None,
                accepted_at: now,
                batch: Batch::default(),
                late: 0,
                took: 0,
                end: JobEnd::Done,
            });
        };
        let origin = &mut job.origin;
        (origin.id, origin.peer, origin.opened_at) = (id, peer, opened_at);
        // Nearly always the same one: spare the two atomic operations.
        if !Arc::ptr_eq(&origin.local, local) {
            origin.local = Arc::clone(local);
        }
        job.accepted_at = now;
        job
    }

    /// Takes back a job that nobody needs any more. What it holds too much goes to `litter`.
    pub(crate) fn put(&mut self, mut job: Box<Job>, litter: &mut Litter) {
        job.clear();
        for buffer in [&mut job.batch.lines, &mut job.batch.replies] {
            if buffer.capacity() > MAX_RECYCLED_BYTES {
                litter.drop_later(Some(std::mem::take(buffer)));
            }
        }
        if self.free.len() < MAX_RECYCLED_JOBS {
            self.free.push(job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::FIRST_SLOTS;

    fn free_jobs() -> FreeJobs {
        FreeJobs::new(Slots::new([]))
    }

    fn take(free: &mut FreeJobs) -> Box<Job> {
        let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
        free.take(ConnId { slot: 0, generation: 0 }, &endpoint, endpoint.address.clone(), 0, 0)
    }

    #[test]
    fn lines_come_out_as_they_went_in() {
        let mut job = take(&mut free_jobs());
        for line in [&b"one"[..], b"", b"three\r"] {
            job.batch.push_line(line);
        }
        let mut seen = Vec::new();
        while let Some((line, _)) = job.batch.next_line() {
            seen.push(line.to_vec());
        }
        assert_eq!(seen, [&b"one"[..], b"", b"three\r"]);
        assert_eq!((job.batch.handled, job.batch.lines_left()), (3, 0));
    }

    #[test]
    fn a_recycled_job_is_empty_and_its_buffers_are_capped() {
        let mut free = free_jobs();
        let mut job = take(&mut free);
        job.batch.push_line(&vec![b'x'; 1 << 20]);
        job.batch.replies = vec![0; 1 << 20];
        free.put(job, &mut Litter::default());
        let mut job = take(&mut free);
        assert!(job.batch.next_line().is_none());
        assert_eq!((job.batch.lines_left(), job.batch.replies.len(), job.batch.reply_ends.len()), (0, 0, 0));
        assert!(
            job.batch.lines.capacity() <= MAX_RECYCLED_BYTES
                && job.batch.replies.capacity() <= MAX_RECYCLED_BYTES
        );
    }

    #[test]
    fn a_job_is_wanted_while_its_connection_has_its_slot() {
        let slots = Slots::new([100]);
        let mut free = FreeJobs::new(Arc::clone(&slots));
        let first = u32::try_from(FIRST_SLOTS).unwrap();
        for slot in [0, first - 1, first, 3 * first - 1, 3 * first] {
            let id = ConnId { slot, generation: u32::MAX };
            let mut job = take(&mut free);
            job.origin.id = id;
            slots.set(id);
            assert!(job.origin.is_there());
            slots.clear(id);
            assert!(!job.origin.is_there());
            slots.set(ConnId { generation: 5, ..id });
            assert!(!job.origin.is_there());
        }
        assert!(slots.has(ConnId { slot: u32::MAX, generation: 1 }), "nobody has been there");
    }
}

//! All that crosses threads: a [`Job`] goes from the reactor to a worker and comes back with its replies.
//!
//! A job is the complete lines that one read of one connection brought. While it is out, no other job of that connection
//! is: that keeps replies in the order of their requests. It carries bytes and a [`ConnId`], no references, and its
//! buffers are recycled with it, so that a request allocates nothing.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use crate::address::Address;
use crate::clock::Nanos;
use crate::litter::Litter;
use crate::service::ServiceId;

/// Most lines in a job. More would make one connection's burst a long wait for another's single line.
pub(crate) const MAX_JOB_LINES: usize = 256;
/// Bytes of lines in a job after which it takes no further line. It may hold one line of any length.
pub(crate) const MAX_JOB_BYTES: usize = 16 << 10;
/// Capacity in bytes that a recycled buffer may keep. Larger ones were for long lines or replies, and are let go.
const MAX_RECYCLED_BYTES: usize = 8 << 10;
/// Jobs kept for reuse, for as many connections that have one out at the same time; what is above is freed. With two
/// buffers and the ends of their lines and replies this keeps 10 MiB at the most, and usually some hundred bytes each.
const MAX_RECYCLED_JOBS: usize = 512;

/// Which connection: its place in the slab, and which of the connections that have had this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnId {
    pub(crate) slot: u32,
    /// Slots are reused. A job whose generation is old belongs to a connection that is gone.
    pub(crate) generation: u32,
}

/// A millisecond in nanoseconds.
pub(crate) const MS: Nanos = 1_000_000;

/// `now` in milliseconds; wraps after seven weeks, and is only compared with what is nearby.
#[expect(clippy::cast_possible_truncation, reason = "it wraps")]
pub(crate) fn to_ms(now: Nanos) -> u32 {
    (now / MS) as u32
}

/// Slots whose generations lie together.
const CHUNK: usize = 4096;

/// Which generation of connections each slot has: written by the reactor, read by the workers, who do not run a request
/// whose connection has gone. Eight bytes a slot, for as many slots as ever were in use.
#[derive(Debug)]
pub(crate) struct Generations {
    chunks: Box<[OnceLock<Box<[Slot]>>]>,
}

/// What workers and the reactor tell each other of a slot. Relaxed: nothing else is read because of it.
#[derive(Debug, Default)]
struct Slot {
    /// Of the connection that is there. Written by the reactor.
    generation: AtomicU32,
    /// When a worker took the present job, in milliseconds since the server's start, which wrap; 0 while none has. Set to 0 by
    /// the reactor when the job goes out, and then by the worker; only where handlers are timed.
    taken_ms: AtomicU32,
}

impl Generations {
    /// For slots below `slots`. Connections in others are never taken for gone.
    pub(crate) fn new(slots: usize) -> Arc<Generations> {
        Arc::new(Generations { chunks: (0..slots.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() })
    }

    fn slot(&self, id: ConnId) -> Option<&Slot> {
        let slot = id.slot as usize;
        Some(&self.chunks.get(slot / CHUNK)?.get()?[slot % CHUNK])
    }

    /// The connection of this name has its slot now. For the reactor.
    pub(crate) fn set(&self, id: ConnId) {
        let slot = id.slot as usize;
        if let Some(chunk) = self.chunks.get(slot / CHUNK) {
            let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| Slot::default()).collect());
            chunk[slot % CHUNK].generation.store(id.generation, Relaxed);
        }
    }

    /// The connection of this name has gone. For the reactor.
    pub(crate) fn clear(&self, id: ConnId) {
        self.set(ConnId { generation: id.generation.wrapping_add(1), ..id });
    }

    /// Whether the connection of this name is there, as far as is known: what the reactor has just done may be seen late.
    /// Relaxed, as nothing else is read because of it.
    pub(crate) fn has(&self, id: ConnId) -> bool {
        self.slot(id).is_none_or(|slot| slot.generation.load(Relaxed) == id.generation)
    }

    /// A worker has taken the job of this connection at `now`, or, with 0, it is on its way to one.
    pub(crate) fn set_taken(&self, id: ConnId, now: Nanos) {
        if let Some(slot) = self.slot(id) {
            slot.taken_ms.store(if now == 0 { 0 } else { to_ms(now).max(1) }, Relaxed);
        }
    }

    /// When a worker took the job of this connection, to the millisecond, seen from `now`; `None`: none has.
    pub(crate) fn taken_at(&self, id: ConnId, now: Nanos) -> Option<Nanos> {
        let taken = self.slot(id)?.taken_ms.load(Relaxed);
        (taken > 0).then(|| now.saturating_sub(MS * Nanos::from(to_ms(now).wrapping_sub(taken))))
    }
}

/// A local address of a service that clients reached, shared by all connections that came in through it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    /// The service that listens there.
    pub(crate) service: ServiceId,
}

impl Endpoint {
    pub(crate) fn new(address: Address, service: ServiceId) -> Arc<Endpoint> {
        Arc::new(Endpoint { address, service })
    }
}

/// How a worker left a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobEnd {
    /// Every line was handled.
    Done,
    /// The worker's slice was over: lines are left, and the job goes back to the tail of the queue.
    Unfinished,
    /// The handler asked for the connection to be closed behind the last reply. Lines may be left.
    Close,
    /// The handler panicked. Its line has no reply; lines may be left.
    Panicked,
}

/// Lines of one connection on their way to a worker, or their replies on the way back.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) connection: ConnId,
    generations: Arc<Generations>,
    pub(crate) local: Arc<Endpoint>,
    pub(crate) peer: Address,
    /// When the reactor took these lines in, by the pool's clock. Waiting is counted from here.
    pub(crate) accepted_at: Nanos,
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
    /// Of these, those that were not run because they had waited too long.
    pub(crate) late: usize,
    /// Wall time of this slice.
    pub(crate) took: Nanos,
    pub(crate) end: JobEnd,
}

impl Job {
    /// Adds a line.
    pub(crate) fn push_line(&mut self, line: &[u8]) {
        self.lines.extend_from_slice(line);
        self.line_ends.push(self.lines.len());
    }

    /// Bytes of its lines, those that are handled too.
    pub(crate) fn len_bytes(&self) -> usize {
        self.lines.len()
    }

    /// Bytes that it holds, by capacity.
    pub(crate) fn held_bytes(&self) -> usize {
        let ends = self.line_ends.capacity() + self.reply_ends.capacity();
        size_of::<Job>() + self.lines.capacity() + self.replies.capacity() + ends * size_of::<usize>()
    }

    /// Lines not handled yet.
    pub(crate) fn lines_left(&self) -> usize {
        self.line_ends.len() - self.taken
    }

    /// A worker has taken it at `now`.
    pub(crate) fn set_taken(&self, now: Nanos) {
        self.generations.set_taken(self.connection, now);
    }

    /// Whether anybody would read the replies, as far as is known: the connection is there.
    pub(crate) fn is_wanted(&self) -> bool {
        self.generations.has(self.connection)
    }

    /// Takes the next line, with the addresses of both sides, and the place for its reply; `None` when all are handled.
    pub(crate) fn next_line(&mut self) -> Option<(&[u8], &Address, &Address, &mut Vec<u8>)> {
        let end = *self.line_ends.get(self.taken)?;
        let begin = self.taken.checked_sub(1).map_or(0, |before| self.line_ends[before]);
        self.taken += 1;
        self.handled += 1;
        Some((&self.lines[begin..end], &self.local.address, &self.peer, &mut self.replies))
    }

    /// Forgets the replies and figures of the last slice, so that the job can be handed out again.
    pub(crate) fn begin_slice(&mut self) {
        self.replies.clear();
        self.reply_ends.clear();
        self.handled = 0;
        self.late = 0;
        self.took = 0;
        self.end = JobEnd::Done;
    }

    /// The worker broke off in the middle of a slice: the line that it was at has no reply.
    pub(crate) fn fail(&mut self) {
        if self.handled <= self.reply_ends.len() && self.next_line().is_none() {
            // It was at none of them: the last one stands for it.
            self.reply_ends.pop();
        }
        self.replies.truncate(self.reply_ends.last().copied().unwrap_or(0));
        self.end = JobEnd::Panicked;
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

    fn clear(&mut self) {
        self.lines.clear();
        self.line_ends.clear();
        self.taken = 0;
        self.begin_slice();
    }
}

/// Jobs that can be used again. Only the reactor has one.
#[derive(Debug)]
pub(crate) struct FreeJobs {
    generations: Arc<Generations>,
    // Boxed: a job moves between queues many times, and a box is one word.
    #[expect(clippy::vec_box, reason = "the boxes themselves are what is recycled")]
    free: Vec<Box<Job>>,
}

impl FreeJobs {
    /// None yet. Their workers ask `generations` whether their connections are there.
    pub(crate) fn new(generations: Arc<Generations>) -> FreeJobs {
        FreeJobs { generations, free: Vec::new() }
    }

    /// What workers and the reactor tell each other of connections.
    pub(crate) fn generations(&self) -> &Generations {
        &self.generations
    }

    /// An empty job for `connection`.
    pub(crate) fn take(
        &mut self,
        connection: ConnId,
        local: &Arc<Endpoint>,
        peer: Address,
        now: Nanos,
    ) -> Box<Job> {
        let Some(mut job) = self.free.pop() else {
            return Box::new(Job {
                connection,
                generations: Arc::clone(&self.generations),
                local: Arc::clone(local),
                peer,
                accepted_at: now,
                lines: Vec::new(),
                line_ends: Vec::new(),
                taken: 0,
                replies: Vec::new(),
                reply_ends: Vec::new(),
                handled: 0,
                late: 0,
                took: 0,
                end: JobEnd::Done,
            });
        };
        job.connection = connection;
        job.peer = peer;
        job.accepted_at = now;
        // Nearly always the same one: spare the two atomic operations.
        if !Arc::ptr_eq(&job.local, local) {
            job.local = Arc::clone(local);
        }
        job
    }

    /// Takes back a job that nobody needs any more. What it holds too much goes to `litter`.
    pub(crate) fn put(&mut self, mut job: Box<Job>, litter: &mut Litter) {
        job.clear();
        for buffer in [&mut job.lines, &mut job.replies] {
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

    fn free_jobs() -> FreeJobs {
        FreeJobs::new(Generations::new(1))
    }

    fn take(free: &mut FreeJobs) -> Box<Job> {
        let endpoint = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
        free.take(ConnId { slot: 0, generation: 0 }, &endpoint, endpoint.address.clone(), 0)
    }

    #[test]
    fn lines_come_out_as_they_went_in() {
        let mut job = take(&mut free_jobs());
        for line in [&b"one"[..], b"", b"three\r"] {
            job.push_line(line);
        }
        let mut seen = Vec::new();
        while let Some((line, ..)) = job.next_line() {
            seen.push(line.to_vec());
        }
        assert_eq!(seen, [&b"one"[..], b"", b"three\r"]);
        assert_eq!((job.handled, job.lines_left()), (3, 0));
    }

    #[test]
    fn a_recycled_job_is_empty_and_its_buffers_are_capped() {
        let mut free = free_jobs();
        let mut job = take(&mut free);
        job.push_line(&vec![b'x'; 1 << 20]);
        job.replies = vec![0; 1 << 20];
        free.put(job, &mut Litter::default());
        let mut job = take(&mut free);
        assert!(job.next_line().is_none());
        assert_eq!((job.lines_left(), job.replies.len(), job.reply_ends.len()), (0, 0, 0));
        assert!(job.lines.capacity() <= MAX_RECYCLED_BYTES && job.replies.capacity() <= MAX_RECYCLED_BYTES);
    }

    #[test]
    fn a_job_is_wanted_while_its_connection_has_its_slot() {
        let generations = Generations::new(CHUNK + 1);
        let mut free = FreeJobs::new(Arc::clone(&generations));
        for slot in [0, 4095, 4096] {
            let id = ConnId { slot, generation: u32::MAX };
            let mut job = take(&mut free);
            job.connection = id;
            generations.set(id);
            assert!(job.is_wanted());
            generations.clear(id);
            assert!(!job.is_wanted());
            generations.set(ConnId { generation: 5, ..id });
            assert!(!job.is_wanted());
        }
        assert!(generations.has(ConnId { slot: 1 << 20, generation: 1 }), "beyond what is kept");
    }
}

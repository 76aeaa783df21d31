//! What the threads of one server share besides the pool: the clock, the reactor's mailbox, the times of requests, and who is one
//! of them.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::{Clock, Nanos};
use crate::mail::{Mail, Post};
use crate::replies::{Replies, Wake};
use crate::slow::SlowLog;
use crate::timings::Timings;

thread_local! {
    /// [`Hub::number`] of the server that the thread belongs to; 0 for a thread that is no server's. Without a destructor, so
    /// that it can be read in those of others.
    static OWN: Cell<u64> = const { Cell::new(0) };
    /// The thread is the event loop of that server.
    static IS_LOOP: Cell<bool> = const { Cell::new(false) };
}

/// Shared by the reactor, the tuner, the workers and the handles.
#[derive(Debug)]
pub(crate) struct Hub<W> {
    /// Of all servers of this process, from 1.
    number: u64,
    pub(crate) clock: Clock,
    pub(crate) replies: Replies<Mail, W>,
    pub(crate) timings: Timings,
    pub(crate) slow: SlowLog,
}

impl<W: Wake> Hub<W> {
    pub(crate) fn new(waker: W, clock: Clock) -> Arc<Self> {
        static SERVERS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Hub {
            number: SERVERS.fetch_add(1, Relaxed) + 1,
            clock,
            replies: Replies::new(waker),
            timings: Timings::new(),
            slow: SlowLog::default(),
        })
    }

    /// The reactor has ended: handlers that wait for peers are told, and what comes from now on is dropped, but for jobs.
    pub(crate) fn end(&self) {
        for mail in self.replies.end() {
            if let Mail::Job(_) | Mail::Inline(_) = mail {
                self.replies.push(mail);
            }
        }
    }

    /// The calling thread belongs to this server from now on: a worker, or the reactor.
    pub(crate) fn adopt_thread(&self) {
        OWN.set(self.number);
    }

    /// The calling thread is this server's event loop from now on.
    pub(crate) fn adopt_loop(&self) {
        self.adopt_thread();
        IS_LOOP.set(true);
    }

    /// Whether the calling thread is one of those: the server cannot end while it waits.
    pub(crate) fn is_on_own_thread(&self) -> bool {
        OWN.get() == self.number
    }
}

impl<W: Wake> Post for Hub<W> {
    fn post(&self, mail: Mail) {
        match self.replies.try_push(mail) {
            Ok(()) => self.replies.signal(),
            // Who waits for an answer to it is told.
            Err(mail) => drop(mail),
        }
    }

    fn now(&self) -> Nanos {
        self.clock.now()
    }

    fn takes_in(&self) -> bool {
        let is_loop = self.is_on_own_thread() && IS_LOOP.get();
        !(is_loop || self.replies.has_ended())
    }
}

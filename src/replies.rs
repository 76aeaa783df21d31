//! From many workers to the one reactor, with as few wake-ups as possible.
//!
//! Workers push finished jobs at once and wake the reactor separately, when it pays; only the reactor thread drains. Order
//! per connection is not kept here: a connection has one job out at a time.
//!
//! Invariant: `asleep` is set only under the lock that finds the queue empty, so whoever pushes later sees it. Held by
//! `loom_tests::no_wake_is_lost`.

use crate::sync::{Mutex, lock};

/// Ends the reactor's sleep, or keeps its next one from beginning.
pub(crate) trait Wake: Send + Sync + 'static {
    fn wake(&self);
}

/// The mailbox of the reactor. (A lock-free queue measured the same.)
#[derive(Debug)]
pub(crate) struct Replies<T, W> {
    mailbox: Mutex<Mailbox<T>>,
    waker: W,
}

#[derive(Debug)]
struct Mailbox<T> {
    queue: Vec<T>,
    /// The reactor is about to block in poll, or does.
    asleep: bool,
    /// The reactor has ended.
    ended: bool,
}

impl<T, W: Wake> Replies<T, W> {
    pub(crate) fn new(waker: W) -> Self {
        Replies { mailbox: Mutex::new(Mailbox { queue: Vec::new(), asleep: false, ended: false }), waker }
    }

    /// Hands over `item`. The reactor sees it at its next turn; it is not woken for it.
    pub(crate) fn push(&self, item: T) {
        lock(&self.mailbox).queue.push(item);
    }

    /// The same, for what is of no use once the reactor has ended: gives it back then.
    pub(crate) fn try_push(&self, item: T) -> Result<(), T> {
        let mut mailbox = lock(&self.mailbox);
        if mailbox.ended {
            return Err(item);
        }
        mailbox.queue.push(item);
        Ok(())
    }

    /// The reactor has ended. Takes out what is here.
    pub(crate) fn end(&self) -> Vec<T> {
        let mut mailbox = lock(&self.mailbox);
        mailbox.ended = true;
        std::mem::take(&mut mailbox.queue)
    }

    /// Whether the reactor has ended.
    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.mailbox).ended
    }

    /// Wakes the reactor if it sleeps while something is here.
    pub(crate) fn signal(&self) {
        let wake = {
            let mut mailbox = lock(&self.mailbox);
            let wake = mailbox.asleep && !mailbox.queue.is_empty();
            // One wake is enough: whoever signals before the reactor has woken spares the system call.
            mailbox.asleep &= !wake;
            wake
        };
        if wake {
            self.waker.wake();
        }
    }

    /// Wakes the reactor whether it sleeps or not, for news that does not come through here.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// The reactor is awake: moves all that is here to the end of `into`.
    pub(crate) fn drain(&self, into: &mut Vec<T>) {
        let mut mailbox = lock(&self.mailbox);
        mailbox.asleep = false;
        if into.is_empty() {
            std::mem::swap(&mut mailbox.queue, into);
        } else {
            into.append(&mut mailbox.queue);
        }
    }

    /// Whether nothing is here.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.mailbox).queue.is_empty()
    }

    /// The reactor is about to block: `false` if something is here, and it must not.
    pub(crate) fn try_sleep(&self) -> bool {
        let mut mailbox = lock(&self.mailbox);
        mailbox.asleep = mailbox.queue.is_empty();
        mailbox.asleep
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::{Arc, thread};

    /// What an eventfd in a poll does: a wake before the sleep ends it at once.
    struct Sleeper(thread::Thread);

    impl Wake for Sleeper {
        fn wake(&self) {
            self.0.unpark();
        }
    }

    /// The reactor sleeps only while nothing is here, and every item arrives. A lost wake is a deadlock, which loom
    /// reports.
    #[test]
    fn no_wake_is_lost() {
        loom::model(|| {
            let replies = Arc::new(Replies::new(Sleeper(thread::current())));
            let workers: Vec<_> = (0..2)
                .map(|worker| {
                    let replies = Arc::clone(&replies);
                    thread::spawn(move || {
                        replies.push(worker);
                        replies.signal();
                    })
                })
                .collect();
            let mut seen = Vec::new();
            while seen.len() < 2 {
                if replies.try_sleep() {
                    thread::park();
                }
                replies.drain(&mut seen);
            }
            for worker in workers {
                worker.join().unwrap();
            }
        });
    }
}

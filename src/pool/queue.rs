//! Where jobs wait: one queue of all, one of each worker, from which the others steal.
//!
//! A worker takes several jobs from the queue of all at once only while they are short. It looks into the others' queues when
//! that is empty, and now and then before: what a blocked one took along must not wait until then. In models a stand-in takes
//! the place of [`Deques`], as the deque is not instrumented.

use std::sync::{PoisonError, RwLock};

use crossbeam_deque::{Injector, Steal, Stealer, Worker as Deque};

/// So often a worker looks into the others' deques first: what a blocked one took along must not wait until the
/// injector is empty, which under steady load it never is.
const STEAL_FIRST_EVERY: u32 = 32;

/// What the pool needs of its queues.
pub(crate) trait Queue: Send + Sync + 'static {
    type Job: Send + 'static;
    /// A worker's part.
    type Own;

    /// Puts `job` at the end of the queue of all.
    fn push(&self, job: Self::Job);

    /// Whether no job is in any queue.
    fn is_empty(&self) -> bool;

    /// The part of a worker of number `id`, from which the others steal from now on.
    fn join(&self, id: u64) -> Self::Own;

    /// A job for the worker whose part is `own`, which may take `at_once` of them if it takes more than that one.
    fn take(&self, own: &mut Self::Own, at_once: usize) -> Option<Self::Job>;

    /// A worker ends: what it took along goes back.
    fn leave(&self, own: &mut Self::Own);
}

/// The real ones.
#[derive(Debug)]
pub(crate) struct Deques<T> {
    injector: Injector<T>,
    /// One for each worker. Read on the way to parking, written when a worker starts or ends.
    stealers: RwLock<Vec<(u64, Stealer<T>)>>,
}

#[derive(Debug)]
pub(crate) struct Own<T> {
    id: u64,
    deque: Deque<T>,
    /// Searches so far.
    searches: u32,
}

impl<T> Deques<T> {
    pub(crate) fn new() -> Deques<T> {
        Deques { injector: Injector::new(), stealers: RwLock::default() }
    }

    fn steal(&self, own: &Own<T>) -> Option<T> {
        let stealers = self.stealers.read().unwrap_or_else(PoisonError::into_inner);
        // Those who started after this one first, so that not all thieves begin with the same victim.
        let place = stealers.iter().position(|(id, _)| *id == own.id).unwrap_or(0);
        let (before, after) = stealers.split_at(place);
        after.iter().chain(before).find_map(|(_, stealer)| first(|| stealer.steal()))
    }

    /// Takes out all that is in the queue of all.
    pub(super) fn take_injected(&self) -> impl Iterator<Item = T> {
        std::iter::from_fn(|| first(|| self.injector.steal()))
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn injected(&self) -> usize {
        self.injector.len()
    }
}

impl<T: Send + 'static> Queue for Deques<T> {
    type Job = T;
    type Own = Own<T>;

    fn push(&self, job: T) {
        self.injector.push(job);
    }

    fn is_empty(&self) -> bool {
        let stealers = self.stealers.read().unwrap_or_else(PoisonError::into_inner);
        self.injector.is_empty() && stealers.iter().all(|(_, stealer)| stealer.is_empty())
    }

    fn join(&self, id: u64) -> Own<T> {
        let deque = Deque::new_fifo();
        let stealer = deque.stealer();
        self.stealers.write().unwrap_or_else(PoisonError::into_inner).push((id, stealer));
        Own { id, deque, searches: 0 }
    }

    fn take(&self, own: &mut Own<T>, at_once: usize) -> Option<T> {
        own.searches = own.searches.wrapping_add(1);
        if own.searches.is_multiple_of(STEAL_FIRST_EVERY)
            && let Some(job) = self.steal(own)
        {
            return Some(job);
        }
        let injected = || {
            first(|| match at_once {
                1 => self.injector.steal(),
                limit => self.injector.steal_batch_with_limit_and_pop(&own.deque, limit),
            })
        };
        own.deque.pop().or_else(injected).or_else(|| self.steal(own))
    }

    fn leave(&self, own: &mut Own<T>) {
        while let Some(job) = own.deque.pop() {
            self.injector.push(job);
        }
        self.stealers.write().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| *id != own.id);
    }
}

/// Tries again while others interfere.
fn first<T>(mut attempt: impl FnMut() -> Steal<T>) -> Option<T> {
    loop {
        match attempt() {
            Steal::Success(found) => return Some(found),
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}

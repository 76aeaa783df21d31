//! The only choice between the standard library and loom.
//!
//! Whatever decides whether a thread sleeps, or whether the reactor wakes, takes its primitives from here, so that
//! `scripts/loom.sh` can run the very same code through every interleaving. Statistics do not need to.

#[cfg(loom)]
pub(crate) use loom::{
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread,
};

/// Where the thread that made it sleeps until it is unparked; an unpark before that ends the sleep at once. It may also end for
/// no reason.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Parker(thread::Thread);

#[cfg(not(loom))]
impl Parker {
    pub(crate) fn new() -> Parker {
        Parker(thread::current())
    }

    /// For the thread that made it.
    pub(crate) fn park(&self) {
        thread::park();
    }

    pub(crate) fn unpark(&self) {
        self.0.unpark();
    }
}

/// loom takes an unpark of a thread that waits for a lock for the lock.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct Parker(loom::sync::Notify);

#[cfg(loom)]
impl Parker {
    pub(crate) fn new() -> Parker {
        Parker(loom::sync::Notify::new())
    }

    pub(crate) fn park(&self) {
        self.0.wait();
    }

    pub(crate) fn unpark(&self) {
        self.0.notify();
    }
}

/// The CPU that the caller runs on, by the time it knows perhaps another.
#[cfg(not(loom))]
pub(crate) fn current_cpu() -> usize {
    rustix::thread::sched_getcpu()
}

/// Every model runs on one.
#[cfg(loom)]
pub(crate) fn current_cpu() -> usize {
    0
}

/// Locks `mutex`, also when a thread panicked while it held the lock.
///
/// Nothing in this crate leaves a guarded value half changed: handlers, the only foreign code, run under no lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Gives `guard` back and waits for news.
pub(crate) fn wait<'a, T>(news: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    news.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The same, for `timeout` at the longest.
pub(crate) fn wait_timeout<'a, T>(
    news: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: std::time::Duration,
) -> MutexGuard<'a, T> {
    news.wait_timeout(guard, timeout).unwrap_or_else(std::sync::PoisonError::into_inner).0
}

/// Locks what loom does not look at: statistics, and what is guarded together with a condition variable of its own.
pub(crate) fn lock_std<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

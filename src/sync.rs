//! The only choice between the standard library and loom.
//!
//! Whatever decides whether a thread sleeps, or whether the reactor wakes, takes its primitives from here, so that
//! `scripts/loom.sh` can run the very same code through every interleaving. Statistics do not need to.

#[cfg(loom)]
pub(crate) use loom::{
    sync::{Arc, Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::{Arc, Mutex, MutexGuard, atomic},
    thread,
};

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

/// The same for what loom does not look at: statistics, and what is guarded together with a condition variable of its own.
pub(crate) fn lock_std<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

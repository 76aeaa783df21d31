//! The reactor's word to the tuner: work waits.
//!
//! An edge, not a clock: the tuner says that it is about to sleep, looks once more, and sleeps; the reactor, after it has
//! submitted, looks whether it does. Of "says, fences, looks" and "submits, fences, looks" at least one sees the other. While
//! the tuner is awake the reactor's part is one load. Held by `loom_tests::no_work_waits_unwatched`.

use crate::replies::Wake;
use crate::sync::atomic::{AtomicU8, Ordering::*, fence};

const AWAKE: u8 = 0;
/// Asleep; any work that waits is news.
const LISTENS: u8 = 1;
/// Asleep; news is only work for which a parked worker is there: nothing else can be done about any, as the pool is full.
const LISTENS_FULL: u8 = 2;

/// Whether the watcher sleeps.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Written by the watcher before it sleeps, taken back by who wakes it or by itself. Relaxed: the fences order it.
    ///
    /// The watcher's own changes are swaps, where stores would do, for the model's sake. Memory models promise that the swap in
    /// [`Watch::tell`] stands right behind the value that it read; loom does not: of a store and a swap that nothing else orders it
    /// takes either for the later one, whatever the swap read (store 1 beside swap 2: it has the swap read 0 and the end be 2). So
    /// it would find a watcher that says it sleeps to be overruled by the word for its sleep before. Swaps each read the newest value,
    /// which orders them for loom too; they cost nothing here, as the watcher wakes some hundred times a second.
    state: AtomicU8,
}

impl Watch {
    pub(crate) fn new() -> Watch {
        Watch { state: AtomicU8::new(AWAKE) }
    }

    /// The watcher is about to sleep: `false` if work waits already, and it must not. `waits(full)`: whether work waits that is
    /// news to a watcher of a pool that is `full` or not.
    pub(crate) fn try_sleep(&self, full: bool, waits: impl FnOnce(bool) -> bool) -> bool {
        self.state.swap(if full { LISTENS_FULL } else { LISTENS }, Relaxed);
        fence(SeqCst);
        let sleeps = !waits(full);
        if !sleeps {
            self.wakes();
        }
        sleeps
    }

    /// The watcher has woken, by whatever it was.
    pub(crate) fn wakes(&self) {
        self.state.swap(AWAKE, Relaxed);
    }

    /// After a submission and a fence: wakes the watcher if it sleeps and `waits(full)`.
    pub(crate) fn tell(&self, waits: impl FnOnce(bool) -> bool, waker: &impl Wake) {
        let state = self.state.load(Relaxed);
        if state != AWAKE && waits(state == LISTENS_FULL) && self.state.swap(AWAKE, Relaxed) != AWAKE {
            waker.wake();
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::atomic::AtomicUsize;
    use crate::sync::{Arc, Parker, thread};

    struct Sleeper(Arc<Parker>);

    impl Wake for Sleeper {
        fn wake(&self) {
            self.0.unpark();
        }
    }

    /// Work is submitted, twice, while the watcher goes to sleep. A lost word is a deadlock, which loom reports.
    #[test]
    fn no_work_waits_unwatched() {
        loom::model(|| {
            let shared = Arc::new((Watch::new(), AtomicUsize::new(0)));
            let parker = Arc::new(Parker::new());
            let waker = Sleeper(Arc::clone(&parker));
            let reactor = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (watch, waiting) = &*shared;
                    for _ in 0..2 {
                        waiting.fetch_add(1, Relaxed);
                        // As in `Sleep::unpark`.
                        fence(SeqCst);
                        watch.tell(|_| waiting.load(Relaxed) > 0, &waker);
                    }
                })
            };
            let (watch, waiting) = &*shared;
            let mut seen = 0;
            while seen < 2 {
                if watch.try_sleep(false, |_| waiting.load(Relaxed) > 0) {
                    parker.park();
                    watch.wakes();
                }
                seen += waiting.swap(0, Relaxed);
            }
            reactor.join().unwrap();
        });
    }
}

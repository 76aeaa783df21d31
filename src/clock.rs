//! The clock of the hot path: nanoseconds since the server's start, in one word.
//!
//! Arithmetic with `Instant` is done on two words with carries, and a worker needs three differences a reading; here
//! one of them is left. (The raw clock through rustix costs still less, but crashes under valgrind.) Deadlines,
//! which are rare, stay with `Instant`.

use std::time::{Duration, Instant};

/// Nanoseconds since a server's start.
pub(crate) type Nanos = u64;

/// Tells the time since a server started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Clock {
        Clock { epoch: Instant::now() }
    }

    /// The start.
    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// The time since the start.
    pub(crate) fn now(&self) -> Nanos {
        let elapsed = self.epoch.elapsed();
        // Not `as_nanos`, which computes in 128 bits. This overflows after 584 years.
        elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
    }
}

/// `duration` in nanoseconds; saturates after 584 years.
pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

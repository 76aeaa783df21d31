//! The clock of the hot path: nanoseconds since the server's start, in one word.
//!
//! Arithmetic with `Instant` is done on two words with carries and checks; here a reading is a multiplication, and a
//! difference a subtraction. Deadlines, which are rare, stay with `Instant`.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since a server's start.
pub(crate) type Nanos = u64;

/// Tells the time since a server started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: Instant,
    /// The same moment by the system's clock.
    zero: Nanos,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Clock {
        Clock { epoch: Instant::now(), zero: monotonic() }
    }

    /// The start.
    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// The time since the start.
    pub(crate) fn now(&self) -> Nanos {
        monotonic() - self.zero
    }

    /// The instant at which the time since the start was `at`.
    pub(crate) fn instant(&self, at: Nanos) -> Instant {
        self.epoch + Duration::from_nanos(at)
    }
}

/// The system's clock that never goes back: zero at its boot, and it overflows 584 years later.
fn monotonic() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// `duration` in nanoseconds; saturates after 584 years.
pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

//! The clock of the hot path: nanoseconds since the server's start, in one word.
//!
//! Arithmetic with `Instant` is done on two words with carries and checks; here a reading is a multiplication, and a
//! difference a subtraction. Deadlines, which are rare, stay with `Instant`.
//!
//! A later reading may be the smaller one: on some machines the system's clock steps back by microseconds, from one CPU to
//! another. So every difference of two readings saturates. Held by `pool::tests::a_clock_that_steps_back_*`.

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
    /// The system's clock; another one in tests.
    read: fn() -> Nanos,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Clock {
        Clock::reading(monotonic)
    }

    /// The same by another clock than the system's.
    pub(crate) fn reading(read: fn() -> Nanos) -> Clock {
        Clock { epoch: Instant::now(), zero: read(), read }
    }

    /// The start.
    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// The time since the start. Not always later than the time before.
    pub(crate) fn now(&self) -> Nanos {
        (self.read)().saturating_sub(self.zero)
    }

    /// The instant at which the time since the start was `at`.
    pub(crate) fn instant(&self, at: Nanos) -> Instant {
        self.epoch + Duration::from_nanos(at)
    }
}

/// The system's clock that is never set: zero at its boot, and it overflows 584 years later.
fn monotonic() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// `duration` in nanoseconds; saturates after 584 years.
pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_reading_before_the_start_is_the_start() {
        static NOW: AtomicU64 = AtomicU64::new(1_000);
        let clock = Clock::reading(|| NOW.load(Relaxed));
        NOW.store(400, Relaxed);
        assert_eq!(clock.now(), 0);
        assert_eq!(clock.instant(clock.now()), clock.epoch());
        NOW.store(1_500, Relaxed);
        assert_eq!(clock.now(), 500);
    }
}

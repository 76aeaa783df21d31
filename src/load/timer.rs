//! Wakes the event loop at a moment finer than the milliseconds that its own timeout counts in.
//!
//! Linux has `timerfd` for it, which is also cheaper: it is set once for a moment, where a timeout is set and taken back by the
//! system for every sleep. Elsewhere the loop's timeout has to do, and the lateness that comes of it is measured and reported
//! as any other.

#[cfg(target_os = "linux")]
mod imp {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::Duration;

    use mio::unix::SourceFd;
    use mio::{Interest, Registry, Token};
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };

    /// A timer that the event loop sees as readable.
    #[derive(Debug)]
    pub(crate) struct Timer {
        fd: OwnedFd,
        /// When it goes off, in nanoseconds since the start of the run. What lies in the past may have.
        at: u64,
    }

    impl Timer {
        pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
            let fd =
                timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
            Ok(Self { fd, at: 0 })
        }

        /// The next poll returns at `at`, or soon if that is past; what the poll's own timeout must be for it.
        pub(crate) fn wake_at(&mut self, at: u64, now: u64) -> io::Result<Option<Duration>> {
            if self.at == at && at > now {
                return Ok(None);
            }
            self.at = at;
            let delay = Duration::from_nanos(at.saturating_sub(now));
            let never = Timespec { tv_sec: 0, tv_nsec: 0 };
            let tv_sec = i64::try_from(delay.as_secs()).unwrap_or(i64::MAX);
            let it_value = Timespec { tv_sec, tv_nsec: i64::from(delay.subsec_nanos()).max(1) };
            let spec = Itimerspec { it_interval: never, it_value };
            // Setting it anew also takes back an expiry that nobody has read.
            timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &spec)?;
            Ok(None)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::io;
    use std::time::Duration;

    use mio::{Registry, Token};

    /// The poll's own timeout.
    #[derive(Debug)]
    pub(crate) struct Timer;

    impl Timer {
        pub(crate) fn new(_: &Registry, _: Token) -> io::Result<Self> {
            Ok(Self)
        }

        /// What the poll's own timeout must be so that it returns at `at`.
        pub(crate) fn wake_at(&mut self, at: u64, now: u64) -> io::Result<Option<Duration>> {
            Ok(Some(Duration::from_nanos(at.saturating_sub(now))))
        }
    }
}

pub(crate) use imp::Timer;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Duration;

    use mio::{Events, Poll, Token};

    use super::Timer;

    #[test]
    fn timer_goes_off_when_it_is_set_and_again_when_that_moment_is_past() {
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
        let mut timer = Timer::new(poll.registry(), Token(7)).unwrap();
        let at = 1_000_000;
        // It is set at that moment for the first time; then for one that is there, and for one that is past.
        for (at, now) in [(at, 0), (at, at), (at, at + 1), (2 * at, at)] {
            assert_eq!(timer.wake_at(at, now).unwrap(), None, "the timer is enough");
            poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
            assert!(events.iter().any(|event| event.token() == Token(7)), "{at} {now}");
        }
    }
}

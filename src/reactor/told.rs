//! Which ends of connections are told of as warnings: of each reason one within a second, as a busy server has thousands. What was left
//! out is told a second later, so that it is never forgotten.

use crate::clock::Nanos;
use crate::reason::CloseReason;

/// At most one warning of a reason within this time, in nanoseconds.
const INTERVAL: Nanos = 1_000_000_000;

/// Of one reason.
#[derive(Clone, Copy, Debug, Default)]
struct Of {
    name: &'static str,
    last: Option<Nanos>,
    left_out: u64,
}

#[derive(Debug, Default)]
pub(super) struct Told {
    reasons: [Of; CloseReason::COUNT],
    /// When something that was left out is to be told.
    due: Option<Nanos>,
}

impl Told {
    /// Whether this is to be a warning. With it, how many of its reason were left out since the last.
    pub(super) fn warns_of(&mut self, reason: CloseReason, now: Nanos) -> Option<u64> {
        let of = &mut self.reasons[reason as usize];
        if of.last.is_some_and(|at| now.saturating_sub(at) < INTERVAL) {
            of.left_out += 1;
            self.due.get_or_insert(now + INTERVAL);
            return None;
        }
        (of.name, of.last) = (reason.as_str(), Some(now));
        Some(std::mem::take(&mut of.left_out))
    }

    /// When [`tell`](Self::tell) is to be called.
    pub(super) fn due(&self) -> Option<Nanos> {
        self.due
    }

    /// Takes out what was left out, by reason.
    pub(super) fn take(&mut self, now: Nanos) -> impl Iterator<Item = (&'static str, u64)> {
        self.due = None;
        let left_out = self.reasons.iter_mut().filter(|of| of.left_out > 0);
        left_out.map(move |of| {
            of.last = Some(now);
            (of.name, std::mem::take(&mut of.left_out))
        })
    }

    /// Tells what was left out, all of it.
    pub(super) fn tell(&mut self, now: Nanos) {
        for (reason, left_out) in self.take(now) {
            tracing::warn!(
                reason,
                left_out,
                "connections that ended or were rejected were left out of the log"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_reason_within_a_second_and_the_others_counted_later() {
        let mut told = Told::default();
        assert_eq!(told.warns_of(CloseReason::Full, 5), Some(0));
        assert_eq!(told.due(), None);
        assert_eq!((told.warns_of(CloseReason::Full, 6), told.warns_of(CloseReason::Full, 7)), (None, None));
        assert_eq!(told.warns_of(CloseReason::Panic, 7), Some(0));
        assert_eq!(told.due(), Some(6 + INTERVAL));
        assert_eq!(told.take(6 + INTERVAL).collect::<Vec<_>>(), [("full", 2)]);
        assert_eq!((told.due(), told.take(7 + INTERVAL).count()), (None, 0));
        assert_eq!(told.warns_of(CloseReason::Full, 7 + INTERVAL), None, "it was told of just now");
        assert_eq!(told.warns_of(CloseReason::Full, 7 + 2 * INTERVAL), Some(1));
    }
}

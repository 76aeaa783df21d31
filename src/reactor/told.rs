//! How often the log is told: [`Rate`], once within a second; and, with it, which ends of connections are warnings, of each reason one, as
//! a busy server has thousands. What was left out of these is told a second later, so that it is never forgotten.

use crate::clock::Nanos;
use crate::reason::CloseReason;

/// At most one warning of a kind within this time, in nanoseconds.
const INTERVAL: Nanos = 1_000_000_000;

/// Of one kind of warning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    last: Option<Nanos>,
    left_out: u64,
}

impl Rate {
    /// Whether one may be told of at `now`; how many were left out since the last.
    pub(super) fn admit(&mut self, now: Nanos) -> Option<u64> {
        if self.last.is_some_and(|at| now.saturating_sub(at) < INTERVAL) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

/// The ends of connections.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// With the name of the reason, once it was told.
    reasons: [(&'static str, Rate); CloseReason::COUNT],
    /// When something that was left out is to be told.
    due: Option<Nanos>,
}

impl Told {
    /// Whether this is to be a warning. With it, how many of its reason were left out since the last.
    pub(super) fn warns_of(&mut self, reason: CloseReason, now: Nanos) -> Option<u64> {
        let (name, rate) = &mut self.reasons[reason as usize];
        *name = reason.as_str();
        let admitted = rate.admit(now);
        if admitted.is_none() {
            self.due.get_or_insert(now + INTERVAL);
        }
        admitted
    }

    /// When [`tell`](Self::tell) is to be called.
    pub(super) fn due(&self) -> Option<Nanos> {
        self.due
    }

    /// Takes out what was left out, by reason.
    pub(super) fn take(&mut self, now: Nanos) -> impl Iterator<Item = (&'static str, u64)> {
        self.due = None;
        let left_out = self.reasons.iter_mut().filter(|(_, rate)| rate.left_out > 0);
        left_out.map(move |(name, rate)| {
            (*name, std::mem::replace(rate, Rate { last: Some(now), left_out: 0 }).left_out)
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

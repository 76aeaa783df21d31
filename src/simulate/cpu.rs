//! Cores that runnable workers share evenly (processor sharing).
//!
//! A clock of its own, in which each runnable worker advances at the same pace, makes each event cheap: a worker that needs
//! `w` of a CPU is done when that clock has advanced by `w`, whatever comes and goes meanwhile.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::clock::Nanos;

#[derive(Debug)]
pub(super) struct Cpu {
    cores: f64,
    /// What every worker that is runnable has got since the start, in nanoseconds.
    shared: f64,
    /// CPU time used since the start, in nanoseconds.
    used: f64,
    updated: Nanos,
    /// When each runnable worker is done, by the shared clock. The bits of floats that are not negative order like them.
    ends: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Cpu {
    pub(super) fn new(cores: usize) -> Cpu {
        Cpu { cores: cores.max(1) as f64, shared: 0.0, used: 0.0, updated: 0, ends: BinaryHeap::new() }
    }

    /// From `now` on there are so many cores.
    pub(super) fn set_cores(&mut self, now: Nanos, cores: usize) {
        self.advance(now);
        self.cores = cores.max(1) as f64;
    }

    pub(super) fn runnable(&self) -> usize {
        self.ends.len()
    }

    /// CPU time used until `now`, in nanoseconds.
    pub(super) fn used(&mut self, now: Nanos) -> f64 {
        self.advance(now);
        self.used
    }

    /// A worker becomes runnable, for `work` of a CPU.
    pub(super) fn begin(&mut self, now: Nanos, worker: usize, work: Nanos) {
        self.advance(now);
        self.ends.push(Reverse(((self.shared + work as f64).to_bits(), worker)));
    }

    /// When the next one is done, if none comes or goes before.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; saturates")]
    pub(super) fn next_end(&self) -> Option<Nanos> {
        let Reverse((end, _)) = self.ends.peek()?;
        let left = (f64::from_bits(*end) - self.shared).max(0.0) / self.pace();
        Some(self.updated + left.ceil() as Nanos)
    }

    /// One that is done at `now`.
    pub(super) fn pop_ended(&mut self, now: Nanos) -> Option<usize> {
        self.advance(now);
        let Reverse((end, worker)) = *self.ends.peek()?;
        // Less than a nanosecond is left by rounding.
        if f64::from_bits(end) > self.shared + 1.0 {
            return None;
        }
        self.ends.pop();
        Some(worker)
    }

    fn advance(&mut self, now: Nanos) {
        if !self.ends.is_empty() {
            let advanced = now.saturating_sub(self.updated) as f64 * self.pace();
            self.shared += advanced;
            self.used += advanced * self.ends.len() as f64;
        }
        self.updated = now;
    }

    fn pace(&self) -> f64 {
        (self.cores / self.ends.len() as f64).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_on_two_cores_take_half_as_long_again() {
        let mut cpu = Cpu::new(2);
        for worker in 0..3 {
            cpu.begin(0, worker, 1_000);
        }
        assert_eq!(cpu.next_end(), Some(1_500));
        for worker in 0..3 {
            assert_eq!(cpu.pop_ended(1_500), Some(worker));
        }
        assert_eq!(cpu.next_end(), None);
    }

    #[test]
    fn who_comes_late_slows_the_others_from_then_on() {
        let mut cpu = Cpu::new(1);
        cpu.begin(0, 1, 1_000);
        cpu.begin(500, 2, 1_000);
        assert_eq!(cpu.next_end(), Some(1_500), "500 alone, then 500 at half the pace");
        assert_eq!(cpu.pop_ended(1_500), Some(1));
        assert_eq!(cpu.next_end(), Some(2_000));
        assert!((cpu.used(1_800) - 1_800.0).abs() < 1.0, "one core, always in use");
    }
}

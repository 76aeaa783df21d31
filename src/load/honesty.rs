//! What the generator says about itself: how late it was, what it cost, and whether its figures can be trusted.
//!
//! A thread that is always running, or waiting for a core, sets the pace itself: what it then reports is about itself.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

use super::histogram::Latencies;

/// Share of the time at which a thread counts as never idle.
const NEVER_IDLE: f64 = 0.95;
/// Requests of the open loop may be sent so late without a word, in nanoseconds.
const LATE: u64 = 1_000_000;
/// A thread that did not run for so long, in nanoseconds, was stopped: latencies hold that time, and say nothing of the server.
const ABSENT_NANOS: u64 = 500_000_000;
/// A lateness above this share of the latency it is part of spoils it.
const LATE_SHARE: f64 = 0.25;

/// What a thread has used up to now.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// On a core, user and system together.
    pub(crate) cpu_seconds: f64,
    /// Ready to run, but waiting for a core.
    pub(crate) waited_seconds: f64,
}

impl Usage {
    /// Of the calling thread.
    pub(crate) fn of_thread() -> Self {
        Self { cpu_seconds: seconds(ClockId::ThreadCPUTime), waited_seconds: waited().unwrap_or(0.0) }
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            waited_seconds: self.waited_seconds - before.waited_seconds,
        }
    }
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The second field of `schedstat`: nanoseconds on a run queue.
fn waited() -> Option<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: f64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(nanoseconds / 1e9)
}

/// What is known of the generator when the run is over.
#[derive(Debug)]
pub(crate) struct Generator {
    /// Of each thread, in the measured part.
    pub(crate) threads: Vec<Usage>,
    /// Length of the measured part.
    pub(crate) seconds: f64,
    /// How late the generator itself was.
    pub(crate) lateness: Latencies,
    /// The longest time between two turns of a thread's loop, less what it may sleep, in nanoseconds.
    pub(crate) absent: u64,
    /// Whether requests had a time at which they were due.
    pub(crate) open_loop: bool,
    /// The 99th percentile of the measured latency, in nanoseconds.
    pub(crate) p99: Option<u64>,
}

impl Generator {
    /// Why the figures say more about the generator than about the server; empty when they do not.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        // In less than this a share says nothing.
        if self.seconds >= 0.2 {
            for (number, usage) in self.threads.iter().enumerate() {
                let (running, waiting) =
                    (usage.cpu_seconds / self.seconds, usage.waited_seconds / self.seconds);
                if running + waiting >= NEVER_IDLE {
                    reasons.push(format!(
                        "generator thread {number} was never idle ({:.0} % running, {:.0} % waiting for a core): it set the \
                         pace, not the server; give it cores or --threads, or lower the load",
                        running * 100.0,
                        waiting * 100.0
                    ));
                }
            }
        }
        if self.absent > ABSENT_NANOS {
            reasons.push(format!(
                "the generator did not run for {:.1} s: stopped, or without a core",
                self.absent as f64 / 1e9
            ));
        }
        let (late, p99) = (self.lateness.percentile(99.0).unwrap_or(0), self.p99.unwrap_or(0));
        if self.open_loop && late > LATE && late as f64 > p99 as f64 * LATE_SHARE {
            reasons.push(format!(
                "the generator sent its requests up to {:.1} ms late (p99), against a latency of {:.1} ms",
                late as f64 / 1e6,
                p99 as f64 / 1e6
            ));
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator(cpu_seconds: f64, late: u64, open_loop: bool) -> Generator {
        let mut lateness = Latencies::new();
        lateness.record_n(late, 10_000);
        let threads = vec![Usage { cpu_seconds, waited_seconds: 0.1 }];
        Generator { threads, seconds: 1.0, lateness, absent: 0, open_loop, p99: Some(4_000_000) }
    }

    #[test]
    fn idle_and_punctual_is_valid() {
        assert_eq!(generator(0.5, 100_000, true).reasons(), Vec::<String>::new());
    }

    #[test]
    fn never_idle_is_invalid() {
        let reasons = generator(0.88, 0, false).reasons();
        assert!(reasons.len() == 1 && reasons[0].contains("never idle"), "{reasons:?}");
    }

    #[test]
    fn late_requests_are_invalid_in_the_open_loop_only() {
        let reasons = generator(0.1, 2_000_000, true).reasons();
        assert!(reasons.len() == 1 && reasons[0].contains("late"), "{reasons:?}");
        assert!(generator(0.1, 2_000_000, false).reasons().is_empty());
    }

    #[test]
    fn cpu_of_this_thread_grows() {
        let before = Usage::of_thread();
        let mut sum = 0_u64;
        while Usage::of_thread().since(before).cpu_seconds < 0.002 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(sum > 0);
    }
}

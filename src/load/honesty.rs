//! What the generator says about itself: how late it was, what it cost, and whether its figures can be trusted.
//!
//! A thread that is always running, or waiting for a core, sets the pace itself: what it then reports is about itself.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

use super::histogram::Latencies;

/// In less than this a share of the time says nothing: a process that starts is busy at first.
const SHORTEST_SECONDS: f64 = 0.05;
/// Share of the time at which a thread counts as never idle.
const NEVER_IDLE: f64 = 0.95;
/// Replies that come while their thread is never idle are measured by the generator's own pace. A share of them above this
/// spoils the percentiles that people ask for.
const BUSY_SHARE: f64 = 0.05;
/// Requests of the open loop may be sent so late without a word: what it takes to wake up, which no latency is told without.
const LATE_NANOS: u64 = 20_000;
/// A thread that did not run for so long at a time, in nanoseconds, was stopped: latencies hold that time, and say nothing of
/// the server.
const ABSENT_NANOS: u64 = 500_000_000;
/// The same of shorter times in all, as a share of the measured part: the percentiles that people ask for begin there, and
/// the waits for a core of a machine with other work stay below it.
const ABSENT_SHARE: f64 = 0.05;
/// A shorter time, in nanoseconds, is an ordinary wait for a core: what that does to requests, lateness tells.
const SHORTEST_ABSENT_NANOS: u64 = 10_000_000;
/// And so much in all, in nanoseconds, is a longer wait or two, which a short run may have.
const LEAST_ABSENT_NANOS: u64 = 50_000_000;
/// Where lateness is held against latency: at the first of these that has enough samples of both.
const COMPARED: [f64; 3] = [99.0, 90.0, 50.0];
/// A lateness above this share of the latency it is part of spoils it.
const LATE_SHARE: f64 = 0.25;

/// What a thread has used up to now.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// On a core, user and system together.
    pub(crate) cpu_seconds: f64,
    /// Ready to run, but waiting for a core; `None` where the system does not tell.
    pub(crate) waited_seconds: Option<f64>,
}

impl Usage {
    /// Of the calling thread.
    pub(crate) fn of_thread() -> Self {
        Self { cpu_seconds: seconds(ClockId::ThreadCPUTime), waited_seconds: waited() }
    }

    /// What the calling thread has used of a core, in nanoseconds: cheaper than all of it.
    pub(crate) fn nanoseconds_on_a_core() -> u64 {
        super::whole(seconds(ClockId::ThreadCPUTime) * 1e9)
    }

    /// Whether a thread that used so much in `nanoseconds` had no time to spare.
    pub(crate) fn is_never_idle(self, nanoseconds: u64) -> bool {
        self.cpu_seconds + self.waited_seconds.unwrap_or(0.0) >= NEVER_IDLE * nanoseconds as f64 / 1e9
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            waited_seconds: self.waited_seconds.zip(before.waited_seconds).map(|(now, before)| now - before),
        }
    }
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The second field of `schedstat`: nanoseconds on a run queue. A kernel may be without it.
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
    /// Replies in the measured part, and those of them that came while their thread was never idle.
    pub(crate) right: u64,
    pub(crate) right_while_busy: u64,
    /// Length of the measured part.
    pub(crate) seconds: f64,
    /// How late the generator itself was.
    pub(crate) lateness: Latencies,
    /// For how long a thread did not run though it should have.
    pub(crate) absence: Absence,
    /// Whether requests had a time at which they were due.
    pub(crate) open_loop: bool,
    /// The measured latency at each percentile of [`COMPARED`], in nanoseconds.
    pub(crate) latency: [Option<u64>; COMPARED.len()],
}

/// What lateness is held against.
pub(crate) fn compared(latencies: &Latencies) -> [Option<u64>; COMPARED.len()] {
    COMPARED.map(|percentile| latencies.percentile(percentile))
}

/// Times in which a thread neither ran nor slept as long as it meant to: it was stopped, or without a core. In nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Absence {
    /// The longest, of the whole run.
    pub(crate) longest: u64,
    /// All together, in the measured part.
    pub(crate) sum: u64,
}

impl Absence {
    /// Takes down one that ended at `now`; what is measured begins at `measure_from`.
    pub(crate) fn add(&mut self, absent: u64, now: u64, measure_from: u64) {
        if absent < SHORTEST_ABSENT_NANOS {
            return;
        }
        self.longest = self.longest.max(absent);
        self.sum += absent.min(now.saturating_sub(measure_from));
    }

    /// Of two threads, the one that was away for longer.
    pub(crate) fn worse(self, other: Self) -> Self {
        Self { longest: self.longest.max(other.longest), sum: self.sum.max(other.sum) }
    }
}

impl Generator {
    /// Why the figures say more about the generator than about the server, [lateness](Self::lateness_reason) aside; empty
    /// when they do not.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.seconds >= SHORTEST_SECONDS {
            for (number, usage) in self.threads.iter().enumerate() {
                let (running, waiting) =
                    (usage.cpu_seconds / self.seconds, usage.waited_seconds.unwrap_or(0.0) / self.seconds);
                if running + waiting >= NEVER_IDLE {
                    reasons.push(format!(
                        "generator thread {number} was never idle ({:.0} % running, {:.0} % waiting for a core): it set the \
                         pace, not the server; give it cores or --threads, or lower the load",
                        running * 100.0,
                        waiting * 100.0
                    ));
                }
            }
            let busy = self.right_while_busy as f64 / self.right.max(1) as f64;
            if reasons.is_empty() && busy > BUSY_SHARE {
                reasons.push(format!(
                    "{:.0} % of the replies came while a generator thread was never idle: in these bursts it set the pace, not \
                     the server; give it cores or --threads, or lower the load",
                    busy * 100.0
                ));
            }
        }
        let Absence { longest, sum } = self.absence;
        if sum > LEAST_ABSENT_NANOS && sum as f64 > self.seconds * 1e9 * ABSENT_SHARE {
            reasons.push(format!(
                "the generator did not run for {:.2} s of {:.2} s: stopped, or without a core",
                sum as f64 / 1e9,
                self.seconds
            ));
        } else if longest > ABSENT_NANOS {
            reasons.push(format!(
                "the generator did not run for {:.1} s: stopped, or without a core",
                longest as f64 / 1e9
            ));
        }
        reasons
    }

    /// Whether requests were sent so late that it spoils their latency, which holds that time: it was shorter, not longer.
    pub(crate) fn lateness_reason(&self) -> Option<String> {
        let both = |(percentile, latency): (f64, Option<u64>)| {
            Some((percentile, self.lateness.percentile(percentile)?, latency?))
        };
        let (percentile, late, took) = COMPARED.into_iter().zip(self.latency).find_map(both)?;
        let is_late = self.open_loop && late > LATE_NANOS && late as f64 > took as f64 * LATE_SHARE;
        is_late.then(|| {
            let [late, took] =
                [late, took].map(|nanoseconds| crate::report::microseconds(nanoseconds as f64 / 1e3));
            format!(
                "the generator sent its requests up to {late} late (p{percentile}), against a latency of {took}"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator(cpu_seconds: f64, late: u64, open_loop: bool) -> Generator {
        let mut lateness = Latencies::new();
        lateness.record_n(late, 10_000);
        let threads = vec![Usage { cpu_seconds, waited_seconds: Some(0.1) }];
        let (right, right_while_busy, latency) = (10_000, 0, [Some(4_000_000), None, None]);
        let (seconds, absence) = (1.0, Absence::default());
        Generator { threads, right, right_while_busy, seconds, lateness, absence, open_loop, latency }
    }

    #[test]
    fn idle_and_punctual_is_valid() {
        let generator = generator(0.5, 100_000, true);
        assert_eq!((generator.reasons(), generator.lateness_reason()), (vec![], None));
    }

    #[test]
    fn never_idle_is_invalid() {
        let reasons = generator(0.88, 0, false).reasons();
        assert!(reasons.len() == 1 && reasons[0].contains("never idle"), "{reasons:?}");
    }

    #[test]
    fn both_running_and_waiting_count_and_from_when_the_measured_part_began() {
        let usage = Usage { cpu_seconds: 3.0, waited_seconds: Some(2.0) };
        let since = usage.since(Usage { cpu_seconds: 1.0, waited_seconds: Some(0.5) });
        assert_eq!((since.cpu_seconds, since.waited_seconds), (2.0, Some(1.5)));
        for (seconds, valid) in [(0.5, false), (0.6, true), (0.06, false), (0.04, true)] {
            let threads = vec![Usage { cpu_seconds: 0.4, waited_seconds: Some(0.1) }];
            let generator = Generator { threads, seconds, ..generator(0.0, 0, false) };
            assert_eq!(generator.reasons().is_empty(), valid, "{seconds} s");
        }
    }

    #[test]
    fn wait_that_is_not_known_is_none() {
        let (known, unknown) = (Some(2.0), None);
        for (now, before) in [(known, unknown), (unknown, known), (unknown, unknown)] {
            let [now, before] =
                [now, before].map(|waited_seconds| Usage { cpu_seconds: 1.0, waited_seconds });
            assert_eq!(now.since(before).waited_seconds, None);
        }
        // What it is known to have computed still counts.
        let usage = |cpu_seconds| Usage { cpu_seconds, waited_seconds: None };
        for (cpu_seconds, valid) in [(0.94, true), (0.96, false)] {
            assert_eq!(usage(cpu_seconds).is_never_idle(1_000_000_000), !valid);
            let generator = Generator { threads: vec![usage(cpu_seconds)], ..generator(0.0, 0, false) };
            assert_eq!(generator.reasons().is_empty(), valid);
        }
    }

    #[test]
    fn late_requests_are_invalid_in_the_open_loop_only() {
        let reason = generator(0.1, 2_000_000, true).lateness_reason();
        assert!(reason.is_some_and(|reason| reason.contains("2.00 ms late")));
        assert_eq!(generator(0.1, 2_000_000, false).lateness_reason(), None);
    }

    #[test]
    fn lateness_is_held_against_the_latency_that_it_is_part_of() {
        for (late, p99, valid) in [
            (400_000, 900_000, false),
            (200_000, 900_000, true),
            (60_000, 100_000, false),
            (10_000, 30_000, true),
            (2_000_000, 20_000_000, true),
        ] {
            let generator = Generator { latency: [Some(p99), None, None], ..generator(0.1, late, true) };
            assert_eq!(generator.lateness_reason().is_none(), valid, "{late} of {p99}");
        }
    }

    #[test]
    fn where_there_are_too_few_samples_a_lower_percentile_is_compared() {
        // A hundred samples tell the 90th percentile and a thousand the 99th.
        for (samples, latency, told) in [
            (1000, [Some(9_000_000), Some(1), Some(1)], None),
            (999, [Some(9_000_000), Some(4_000_000), Some(1)], Some("(p90), against a latency of 4.00 ms")),
            (999, [Some(1), Some(9_000_000), Some(1)], None),
            (999, [None, None, Some(3_000_000)], Some("2.00 ms late (p50)")),
            (19, [Some(1); 3], None),
            (1000, [None; 3], None),
        ] {
            let mut lateness = Latencies::new();
            lateness.record_n(2_000_000, samples);
            let reason = Generator { lateness, latency, ..generator(0.1, 0, true) }.lateness_reason();
            assert_eq!(reason.is_some(), told.is_some(), "{samples} {latency:?}: {reason:?}");
            assert!(reason.is_none_or(|reason| reason.contains(told.unwrap())), "{samples} {latency:?}");
        }
        let mut latencies = Latencies::new();
        latencies.record_n(5, 100);
        assert_eq!(compared(&latencies).map(|latency| latency.is_some()), [false, true, true]);
    }

    #[test]
    fn bursts_do_not_hide_behind_idle_time() {
        for (right_while_busy, valid) in [(0, true), (500, true), (600, false), (10_000, false)] {
            let generator = Generator { right_while_busy, ..generator(0.1, 0, false) };
            let reasons = generator.reasons();
            assert_eq!(reasons.is_empty(), valid, "{right_while_busy}: {reasons:?}");
            assert!(valid || reasons[0].contains("bursts"), "{reasons:?}");
        }
        let usage = Usage { cpu_seconds: 0.06, waited_seconds: Some(0.036) };
        assert!(usage.is_never_idle(100_000_000) && !usage.is_never_idle(110_000_000));
    }

    #[test]
    fn thread_that_was_stopped_makes_a_run_invalid() {
        // In a minute, in a second and in a fifth of it.
        for (longest, sum, seconds, valid) in [
            (500_000_000, 0, 60.0, true),
            (600_000_000, 0, 60.0, false),
            (40_000_000, 2_900_000_000, 60.0, true),
            (40_000_000, 3_100_000_000, 60.0, false),
            (20_000_000, 60_000_000, 1.0, false),
            (20_000_000, 50_000_000, 0.2, true),
            (20_000_000, 60_000_000, 1.2, true),
            (20_000_000, 51_000_000, 0.2, false),
        ] {
            let absence = Absence { longest, sum };
            let reasons = Generator { absence, seconds, ..generator(0.01, 0, false) }.reasons();
            assert_eq!(reasons.is_empty(), valid, "{longest} {sum} {seconds}: {reasons:?}");
        }
    }

    #[test]
    fn absence_counts_from_where_the_measured_part_begins() {
        let mut absence = Absence::default();
        let ms = 1_000_000;
        for (absent, now) in [(70, 90), (50, 130), (10, 180), (9, 190)] {
            absence.add(absent * ms, now * ms, 100 * ms);
        }
        assert_eq!((absence.longest, absence.sum), (70 * ms, 40 * ms));
        let worse = absence.worse(Absence { longest: 5, sum: 80 * ms });
        assert_eq!((worse.longest, worse.sum), (70 * ms, 80 * ms));
    }

    #[test]
    fn share_of_the_latency_that_lateness_may_be_is_at_most_a_quarter() {
        let mut late = generator(0.1, 200_000, true);
        let took = 4 * late.lateness.percentile(99.0).unwrap();
        for (took, valid) in [(took, true), (took - 4, false)] {
            late.latency = [Some(took), None, None];
            assert_eq!(late.lateness_reason().is_none(), valid, "{took}");
        }
    }

    #[test]
    fn times_are_those_of_the_system_in_seconds() {
        let monotonic = || crate::load::monotonic() as f64 / 1e9;
        let (before, now, after) = (monotonic(), seconds(ClockId::Monotonic), monotonic());
        assert!(before - 1e-6 < now && now < after + 1e-6, "{before} {now} {after}");
        let told = || {
            let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
            Some(text.split(' ').nth(1)?.parse::<u64>().ok()? as f64 / 1e9)
        };
        let (before, now, after) = (told(), waited(), told());
        assert!(
            before <= now && now <= after && now.is_some() == after.is_some(),
            "{before:?} {now:?} {after:?}"
        );
    }

    #[test]
    fn usage_is_that_of_this_thread() {
        // Another thread computes meanwhile; what it uses is not counted here.
        let before = Usage::of_thread();
        let theirs = std::thread::spawn(|| {
            let before = Usage::of_thread();
            let mut sum = 0_u64;
            while Usage::of_thread().since(before).cpu_seconds < 0.05 {
                sum = std::hint::black_box(sum + 1);
            }
            Usage::of_thread().since(before).cpu_seconds
        });
        let theirs = theirs.join().unwrap();
        let ours = Usage::of_thread().since(before).cpu_seconds;
        assert!(ours < theirs / 2.0, "{ours} s here, {theirs} s there");
        while Usage::of_thread().since(before).cpu_seconds < ours + 0.002 {}
        let on_a_core = || Usage::of_thread().cpu_seconds * 1e9;
        let (before, now, after) = (on_a_core(), Usage::nanoseconds_on_a_core() as f64, on_a_core());
        assert!(before <= now + 1.0 && now <= after, "{before} {now} {after}");
    }
}

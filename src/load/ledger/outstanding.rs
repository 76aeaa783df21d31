//! Requests that wait for their replies, in the order in which those must come.
//!
//! Those that were sent at once share an entry, so that the cost of a pipelined request is that of its bytes. No I/O and no clock
//! here: what is kept of a request is its number, and when it was due and sent.

use std::collections::VecDeque;

use super::Asked;

/// Requests with numbers that follow each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Run {
    /// Whether `number` is one of it.
    pub(super) fn has(self, number: u64, step: u64) -> bool {
        number.checked_sub(self.first).is_some_and(|ahead| ahead % step == 0 && ahead / step < self.count)
    }
}

/// Requests in the order of their replies. Those that were sent at once share an entry, so that the cost of a pipelined
/// request is that of its bytes. The first entry lies here and not in the queue: mostly it is the only one, and a thousand
/// connections have a thousand queues, none of which is in the cache.
#[derive(Debug)]
pub(super) struct Outstanding {
    /// Empty only if all is.
    first: (Asked, Run),
    rest: VecDeque<(Asked, Run)>,
    pub(super) len: usize,
}

impl Outstanding {
    pub(super) fn new() -> Self {
        Self { first: (Asked { due: 0, sent: 0 }, Run::default()), rest: VecDeque::new(), len: 0 }
    }

    pub(super) fn push(&mut self, asked: Asked, run: Run, step: u64) {
        self.len += usize::try_from(run.count).unwrap_or(usize::MAX);
        if self.first.1.count == 0 {
            self.first = (asked, run);
            return;
        }
        let (last, before) = self.rest.back_mut().unwrap_or(&mut self.first);
        if *last == asked && before.first + before.count * step == run.first {
            before.count += run.count;
        } else {
            self.rest.push_back((asked, run));
        }
    }

    pub(super) fn front(&self) -> Option<(Asked, Run)> {
        (self.len > 0).then_some(self.first)
    }

    /// Takes `count` from the front run, which is not shorter.
    pub(super) fn take(&mut self, count: u64, step: u64) {
        let run = &mut self.first.1;
        run.first += count * step;
        run.count -= count;
        self.len -= usize::try_from(count).unwrap_or(usize::MAX);
        if run.count == 0
            && let Some(next) = self.rest.pop_front()
        {
            self.first = next;
        }
    }

    /// Whether a request is here. Numbers only grow.
    pub(super) fn contains(&self, number: u64, step: u64) -> bool {
        let at = self.rest.partition_point(|(_, run)| run.first <= number);
        let run = if at == 0 { self.first.1 } else { self.rest[at - 1].1 };
        run.has(number, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 3;

    #[test]
    fn runs_are_joined_only_where_times_and_numbers_go_on() {
        let (early, late) = (Asked { due: 1, sent: 2 }, Asked { due: 1, sent: 3 });
        let mut outstanding = Outstanding::new();
        for (asked, first, count) in
            [(early, 3, 2), (early, 9, 1), (early, 18, 2), (late, 24, 1), (late, 30, 1)]
        {
            outstanding.push(asked, Run { first, count }, STEP);
        }
        let there = (0..60).filter(|&number| outstanding.contains(number, STEP));
        assert_eq!(there.collect::<Vec<_>>(), [3, 6, 9, 18, 21, 24, 30]);
        let mut runs = Vec::new();
        while let Some((asked, run)) = outstanding.front() {
            runs.push((asked, run.first, run.count));
            outstanding.take(run.count, STEP);
        }
        assert_eq!(runs, [(early, 3, 3), (early, 18, 2), (late, 24, 1), (late, 30, 1)]);
        assert_eq!(outstanding.len, 0);
    }
}

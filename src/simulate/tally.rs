//! Keeps the figures of a run.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::{MAX_KEPT_DECISIONS, MAX_POINTS, Point, Rule, Run, StreamRun, Times};
use crate::clock::{Nanos, nanos};
use crate::controller::Decision;

/// The pool at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) at: Nanos,
    pub(super) workers: usize,
    /// Workers whose thread is there.
    pub(super) started: usize,
    /// Weighed, and not above the pool's maximum.
    pub(super) demand: usize,
    pub(super) waiting: usize,
    pub(super) min: usize,
}

#[derive(Debug)]
pub(super) struct Tally {
    last: Now,
    window: Nanos,
    /// Demand within the window, falling: the front is the highest.
    highest: VecDeque<(Nanos, usize)>,
    /// Areas over time, in worker-nanoseconds.
    demand: u128,
    unmet: u128,
    unneeded: u128,
    workers: u128,
    peak: usize,
    step: Nanos,
    series: Vec<Point>,
    decisions: Vec<Decision>,
    resizes: u64,
    turns: u64,
    grew_last: Option<bool>,
    threads_started: u64,
    streams: Vec<StreamTally>,
}

#[derive(Debug)]
struct StreamTally {
    arrived: u64,
    finished: u64,
    wait: Histogram<u64>,
    latency: Histogram<u64>,
}

impl Tally {
    pub(super) fn new(streams: usize, duration: Duration, window: Duration, start: Now) -> Tally {
        let histogram = || Histogram::new(3).expect("three digits are within what a histogram can do");
        let stream = || StreamTally { arrived: 0, finished: 0, wait: histogram(), latency: histogram() };
        Tally {
            last: start,
            window: nanos(window),
            highest: VecDeque::new(),
            demand: 0,
            unmet: 0,
            unneeded: 0,
            workers: 0,
            peak: start.workers,
            step: nanos(duration).div_ceil(MAX_POINTS as u64).max(1),
            series: vec![Point { t: 0.0, workers: start.workers, ..Point::default() }],
            decisions: Vec::new(),
            resizes: 0,
            turns: 0,
            grew_last: None,
            threads_started: 0,
            streams: (0..streams).map(|_| stream()).collect(),
        }
    }

    pub(super) fn arrived(&mut self, stream: usize) {
        self.streams[stream].arrived += 1;
    }

    pub(super) fn waited(&mut self, stream: usize, wait: Nanos) {
        record(&mut self.streams[stream].wait, wait);
    }

    pub(super) fn finished(&mut self, stream: usize, latency: Nanos) {
        self.streams[stream].finished += 1;
        record(&mut self.streams[stream].latency, latency);
    }

    pub(super) fn started_threads(&mut self, count: usize) {
        self.threads_started += count as u64;
    }

    pub(super) fn resized(&mut self, decision: Decision) {
        let grew = decision.to > decision.from;
        self.resizes += 1;
        self.turns += u64::from(self.grew_last.is_some_and(|before| before != grew));
        self.grew_last = Some(grew);
        if self.decisions.len() < MAX_KEPT_DECISIONS {
            self.decisions.push(decision);
        }
    }

    /// The pool has been as at the last call until now, and is so from now on.
    pub(super) fn observe(&mut self, now: Now) {
        let before = std::mem::replace(&mut self.last, now);
        let time = u128::from(now.at.saturating_sub(before.at));
        if time > 0 {
            while self.highest.front().is_some_and(|(until, _)| until.saturating_add(self.window) < before.at)
            {
                self.highest.pop_front();
            }
            let needed =
                self.highest.front().map_or(0, |(_, demand)| *demand).max(before.demand).max(before.min);
            self.demand += time * before.demand as u128;
            self.unmet += time * before.demand.saturating_sub(before.started) as u128;
            self.unneeded += time * before.workers.saturating_sub(needed) as u128;
            self.workers += time * before.workers as u128;
            while self.highest.back().is_some_and(|(_, demand)| *demand <= before.demand) {
                self.highest.pop_back();
            }
            self.highest.push_back((now.at, before.demand));
        }
        self.peak = self.peak.max(now.workers);
        let place = usize::try_from(now.at / self.step).unwrap_or(usize::MAX);
        while self.series.len() <= place.min(MAX_POINTS - 1) {
            let t = Duration::from_nanos(self.series.len() as u64 * self.step).as_secs_f64();
            let Now { workers, demand, waiting, .. } = before;
            self.series.push(Point { t, workers, demand, waiting });
        }
        if let Some(point) = self.series.last_mut() {
            point.workers = now.workers;
            point.demand = point.demand.max(now.demand);
            point.waiting = point.waiting.max(now.waiting);
        }
    }

    pub(super) fn run(self, rule: Rule) -> Run {
        let share = |area: u128| area as f64 / self.demand.max(1) as f64;
        let mut wait = Histogram::new(3).expect("three digits are within what a histogram can do");
        for stream in &self.streams {
            wait.add(&stream.wait).expect("it grows");
        }
        Run {
            rule,
            resizes: self.resizes,
            turns: self.turns,
            threads_started: self.threads_started,
            peak_workers: self.peak,
            mean_workers: self.workers as f64 / self.last.at.max(1) as f64,
            last_workers: self.last.workers,
            unmet: share(self.unmet),
            unneeded: share(self.unneeded),
            wait: times(&wait),
            streams: self
                .streams
                .iter()
                .map(|stream| StreamRun {
                    arrived: stream.arrived,
                    finished: stream.finished,
                    wait: times(&stream.wait),
                    latency: times(&stream.latency),
                })
                .collect(),
            decisions: self.decisions,
            series: self.series,
        }
    }
}

fn record(histogram: &mut Histogram<u64>, value: Nanos) {
    histogram.record(value).expect("it grows to any value");
}

fn times(histogram: &Histogram<u64>) -> Times {
    let quantile = |quantile| Duration::from_nanos(histogram.value_at_quantile(quantile));
    Times { p50: quantile(0.5), p99: quantile(0.99), max: Duration::from_nanos(histogram.max()) }
}

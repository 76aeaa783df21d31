//! What happened over time, in rows of equal length. When there are too many they are joined two by two, so that a run of
//! any length is drawn with the same effort.

use super::histogram::{Latencies, Sparse, merge};
use super::worker::{ROW_NANOS, Row};

/// More rows than a chart has use for.
const MOST_ROWS: usize = 600;

/// One row, of all threads together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Point {
    pub(crate) sent: u64,
    pub(crate) right: u64,
    pub(crate) errors: u64,
    pub(crate) offered: u64,
    pub(crate) connections: u64,
    pub(crate) latencies: Sparse,
}

impl Point {
    fn add(&mut self, other: &Point) {
        self.sent += other.sent;
        self.right += other.right;
        self.errors += other.errors;
        self.offered += other.offered;
        // Each thread adds its own; of joined rows the mean is taken when they are read.
        self.connections += other.connections;
        if !other.latencies.is_empty() {
            self.latencies = merge(&self.latencies, &other.latencies);
        }
    }
}

/// The rows, and how many of the generator's make one of them.
#[derive(Debug)]
pub(crate) struct Series {
    points: Vec<Point>,
    joined: u64,
}

impl Series {
    pub(crate) fn new() -> Self {
        Self { points: Vec::new(), joined: 1 }
    }

    pub(crate) fn add(&mut self, row: Row) {
        loop {
            let at = usize::try_from(row.index / self.joined).unwrap_or(usize::MAX);
            if at < MOST_ROWS {
                if self.points.len() <= at {
                    self.points.resize(at + 1, Point::default());
                }
                let point = &mut self.points[at];
                if point.latencies.is_empty() {
                    // Mostly the only one of its row.
                    let latencies = row.point.latencies;
                    point.add(&Point { latencies: Sparse::new(), ..row.point });
                    point.latencies = latencies;
                } else {
                    point.add(&row.point);
                }
                return;
            }
            self.join();
        }
    }

    fn join(&mut self) {
        self.joined *= 2;
        self.points = self
            .points
            .chunks(2)
            .map(|pair| {
                let mut joined = pair[0].clone();
                pair[1..].iter().for_each(|other| joined.add(other));
                joined
            })
            .collect();
    }

    /// Seconds that one row covers.
    pub(crate) fn step(&self) -> f64 {
        self.joined as f64 * ROW_NANOS as f64 / 1e9
    }

    pub(crate) fn points(&self) -> &[Point] {
        &self.points
    }

    /// Connections in a row, of all threads.
    pub(crate) fn connections(&self, point: &Point) -> u64 {
        point.connections / self.joined
    }

    /// Every latency of the run.
    pub(crate) fn histogram(&self) -> Sparse {
        let mut all = Latencies::new();
        for point in &self.points {
            all.add(&point.latencies);
        }
        all.sparse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_keep_their_sums() {
        let mut series = Series::new();
        // Of two threads, of which the second has no replies.
        for index in 0..5000 {
            for latencies in [vec![(1000, 2)], Vec::new()] {
                let point = Point { sent: 3, right: 2, errors: 1, offered: 4, connections: 7, latencies };
                series.add(Row { index, point });
            }
        }
        assert!(series.points().len() <= MOST_ROWS);
        let sum = |of: fn(&Point) -> u64| series.points().iter().map(of).sum::<u64>();
        let sums = [sum(|row| row.sent), sum(|row| row.right), sum(|row| row.errors), sum(|row| row.offered)];
        assert_eq!(sums, [30_000, 20_000, 10_000, 40_000]);
        let replies: u64 = series.histogram().iter().map(|&(_, count)| count).sum();
        assert_eq!(replies, 10_000);
        assert!((series.step() - 1.6).abs() < 1e-9);
        assert_eq!(series.connections(&series.points()[3]), 14);
    }

    #[test]
    fn rows_are_joined_in_pairs_once_there_are_too_many() {
        let mut series = Series::new();
        let add = |series: &mut Series, index: u64| {
            let point = Point { sent: index, latencies: vec![(index, 1)], ..Point::default() };
            series.add(Row { index, point });
        };
        (0..MOST_ROWS as u64).for_each(|index| add(&mut series, index));
        assert_eq!(series.points().len(), MOST_ROWS);
        assert!((series.step() - 0.1).abs() < 1e-9);
        assert_eq!((series.points()[599].sent, &series.points()[599].latencies), (599, &vec![(599, 1)]));
        add(&mut series, MOST_ROWS as u64);
        assert!((series.step() - 0.2).abs() < 1e-9);
        let row = |at: usize| (series.points()[at].sent, series.points()[at].latencies.len());
        assert_eq!((row(0), row(1), row(299), row(300)), ((1, 2), (5, 2), (1197, 2), (600, 1)));
        assert_eq!(series.points().len(), 301);
    }
}

//! Medians, and how sure they are.
//!
//! The interval of a median is the exact one from the binomial distribution: it assumes nothing about how the values
//! are spread, only that rounds are independent. Of `n` values each lies below the true median with probability a half,
//! so the k-th smallest and the k-th largest enclose it with a probability that can be counted. The narrowest pair that
//! encloses it with at least 95 % is taken; with fewer than six values there is none.

use std::fmt;
use std::io::Result;

use serde::Serialize;

/// Least probability that an interval encloses the true median.
const CONFIDENCE: f64 = 0.95;

/// A median and the interval that encloses the true one with at least 95 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    /// Lower and upper end; none with fewer than six values.
    pub(crate) interval: Option<(f64, f64)>,
    /// How many there were.
    pub(crate) values: usize,
}

impl Estimate {
    /// The estimate from `values`, of which NaN are none; none from no values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len() % 2 == 1 { upper } else { (sorted[middle - 1] + upper) / 2.0 };
        let interval = rank(sorted.len()).map(|rank| (sorted[rank - 1], sorted[sorted.len() - rank]));
        Some(Estimate { median, interval, values: sorted.len() })
    }

    /// The estimate of the ratio of `ours` to `theirs`, round by round; rounds in which either is missing do not count.
    pub(crate) fn of_ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
        Self::of(&ratios.filter(|ratio| ratio.is_finite()).collect::<Vec<_>>())
    }
}

/// The median; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    Estimate::of(values).map_or(f64::NAN, |estimate| estimate.median)
}

/// One figure of all rounds.
pub(crate) fn column<const FIGURES: usize>(rounds: &[[f64; FIGURES]], figure: usize) -> Vec<f64> {
    rounds.iter().map(|figures| figures[figure]).collect()
}

/// Measures each way once a round. Who begins rotates, and what drifts reaches all alike.
pub(crate) fn in_turns<T, const WAYS: usize>(
    rounds: usize,
    ways: [&mut dyn FnMut() -> Result<T>; WAYS],
) -> Result<[Vec<T>; WAYS]> {
    let mut figures = [const { Vec::new() }; WAYS];
    for turn in 0..rounds * WAYS {
        let which = (turn / WAYS + turn) % WAYS;
        figures[which].push(ways[which]()?);
    }
    Ok(figures)
}

/// As a ratio: `1.05 [1.02, 1.09]`.
impl fmt::Display for Estimate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:.2}", self.median)?;
        match self.interval {
            Some((low, high)) => write!(out, " [{low:.2}, {high:.2}]"),
            None => Ok(()),
        }
    }
}

/// The highest rank k such that the k-th smallest and k-th largest of `n` values enclose the median surely enough.
fn rank(n: usize) -> Option<usize> {
    // Probability that exactly `below` of the values lie below the median: C(n, below) / 2^n.
    let mut exactly = 0.5_f64.powi(i32::try_from(n).ok()?);
    let mut outside = 0.0;
    let mut rank = None;
    for below in 0..n / 2 {
        outside += 2.0 * exactly;
        if 1.0 - outside < CONFIDENCE {
            break;
        }
        rank = Some(below + 1);
        exactly *= (n - below) as f64 / (below + 1) as f64;
    }
    rank
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_binomial_table() {
        // Conover, Practical Nonparametric Statistics: coverage 96.9 % at 6, 98.4 % at 7, 96.1 % at 9, 95.9 % at 20.
        let ranks = [5, 6, 7, 8, 9, 12, 15, 20].map(rank);
        assert_eq!(ranks, [None, Some(1), Some(1), Some(1), Some(2), Some(3), Some(4), Some(6)]);
    }

    #[test]
    fn interval_of_seven_is_from_least_to_greatest() {
        let estimate = Estimate::of(&[3.0, 1.0, 7.0, 5.0, 2.0, 6.0, 4.0]).unwrap();
        assert_eq!(estimate, Estimate { median: 4.0, interval: Some((1.0, 7.0)), values: 7 });
    }

    #[test]
    fn interval_of_nine_leaves_one_outlier_on_either_side() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 900.0]).unwrap();
        assert_eq!((estimate.median, estimate.interval), (5.0, Some((2.0, 8.0))));
    }

    #[test]
    fn median_of_even_count_is_between_the_middle_two() {
        assert_eq!(Estimate::of(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Estimate::of(&[]), None);
    }

    #[test]
    fn ratio_is_taken_within_rounds_and_skips_what_is_missing() {
        let ours = [1.0, f64::NAN, 9.0, 4.0];
        let theirs = [2.0, 1.0, 3.0, f64::NAN];
        assert_eq!(Estimate::of_ratios(&ours, &theirs).unwrap().median, 1.75);
    }

    #[test]
    fn who_begins_rotates() {
        let order = std::cell::RefCell::new(String::new());
        let way = |name: char, figure: usize| {
            order.borrow_mut().push(name);
            Ok(figure)
        };
        let figures = in_turns(2, [&mut || way('a', 1), &mut || way('b', 2), &mut || way('c', 3)]).unwrap();
        assert_eq!((figures, order.take()), ([vec![1, 1], vec![2, 2], vec![3, 3]], "abcbca".to_owned()));
    }
}

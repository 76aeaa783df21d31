//! Going past arrivals without looking at each: a schedule that nobody can keep up with ends in time.

use super::Arrivals;

impl Arrivals {
    /// Goes past all that are due before `seconds`, and tells how many: but for those next to it they are counted by the area
    /// under the curve, not one by one, which at random is the mean of how many there would be.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; saturates")]
    pub fn skip_until(&mut self, seconds: f64) -> u64 {
        let mut skipped = 0;
        // One too few: where exactly the last ones fall is up to the rounding of floats.
        let between = (self.area_until(seconds) - self.next_area).floor() - 1.0;
        if self.next < seconds && between > 0.0 {
            self.next_area += between;
            skipped = between as u64;
            self.locate();
        }
        while self.next < seconds {
            skipped += 1;
            self.advance();
        }
        skipped
    }

    /// The area under the curve from the start to `seconds`, which lie not before the present stage.
    fn area_until(&self, seconds: f64) -> f64 {
        let (mut area, mut left) = (self.area_before, seconds - self.stage_start);
        let later = self.curve.stages.iter().cycle().skip(self.stage);
        let prelude = self.prelude.as_ref();
        let mut passes_are_skipped = false;
        for (at, stage) in prelude.into_iter().chain(later).enumerate() {
            let is_pass = prelude.is_none() || at > 0;
            if is_pass && !passes_are_skipped {
                let passes = (left / self.curve.seconds).floor().max(0.0);
                area += passes * self.pass_area;
                left -= passes * self.curve.seconds;
                passes_are_skipped = true;
            }
            if left < stage.seconds {
                let slope = (stage.to - stage.from) / stage.seconds;
                return area + left.max(0.0) * (stage.from + slope / 2.0 * left.max(0.0));
            }
            area += stage.area();
            left -= stage.seconds;
        }
        area
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Curve;

    fn due(arrivals: &mut Arrivals, until: f64) -> u64 {
        let mut count = 0;
        while arrivals.peek() < until {
            count += 1;
            arrivals.advance();
        }
        count
    }

    #[test]
    fn skipping_counts_what_going_one_by_one_does() {
        for text in
            ["hold:1000@1s", "ramp:0..40@2s,hold:3@1s", "onoff:0..100x2@4s", "hold:7@300ms,ramp:9..0@1s"]
        {
            for (warm_up, begin) in [(0.0, 0.0), (0.7, 0.3), (0.7, 1.1), (0.0, 5.05)] {
                let curve: Curve = text.parse().unwrap();
                for until in (0..60).map(|step| begin + f64::from(step) * 0.377) {
                    let (mut one_by_one, mut skipping) = (
                        Arrivals::new(curve.clone(), warm_up, None),
                        Arrivals::new(curve.clone(), warm_up, None),
                    );
                    due(&mut one_by_one, begin);
                    due(&mut skipping, begin);
                    let count = due(&mut one_by_one, until);
                    assert_eq!(skipping.skip_until(until), count, "{text} from {begin} until {until}");
                    let (one, other) = (one_by_one.peek(), skipping.peek());
                    assert!((one - other).abs() < 1e-6, "{text} until {until}: {one} and {other}");
                }
            }
        }
        let random = || Some(fastrand::Rng::with_seed(1));
        let skipped = Arrivals::new(Curve::constant(1e7), 0.0, random()).skip_until(1e6);
        assert!((skipped as f64 / 1e13 - 1.0).abs() < 1e-6, "{skipped}");
        assert_eq!(Arrivals::new(Curve::constant(1e-300), 0.0, None).skip_until(1e9), 0);
    }
}

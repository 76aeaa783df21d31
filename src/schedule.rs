//! When requests are due and how many clients there should be, as a function of time. No clock here.
//!
//! A [`Curve`] is a value over time in straight pieces. [`Arrivals`] come from its integral: the n-th request is due when the
//! area under the rate reaches n (constant), or the sum of n exponential steps (Poisson), which stays exact while the
//! rate ramps or is zero. The load generator and the simulation take their load from here.

mod skip;

use std::str::FromStr;
use std::time::Duration;

use crate::config::MAX_DURATION;

/// The highest rate of requests, in requests a second: some ten times what one machine can send, and low enough that each one's
/// moment is still told in whole nanoseconds.
pub const MAX_RATE: f64 = 1e7;

/// One straight piece of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stage {
    from: f64,
    to: f64,
    seconds: f64,
    /// Holds one whole number from `from` to `to`, which [`Curve::drawn`] chooses.
    random: bool,
}

impl Stage {
    fn new(from: f64, to: f64, seconds: f64) -> Stage {
        Stage { from, to, seconds, random: false }
    }

    fn area(&self) -> f64 {
        (self.from + self.to) / 2.0 * self.seconds
    }

    fn at(&self, seconds: f64) -> f64 {
        let share = if self.random { 0.5 } else { seconds / self.seconds };
        self.from + (self.to - self.from) * share
    }
}

/// A value over time, in stages; it starts again when the last one is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    stages: Vec<Stage>,
    /// When each stage begins.
    starts: Vec<f64>,
    seconds: f64,
}

impl Curve {
    /// The same value for ever.
    pub fn constant(value: f64) -> Self {
        Self::of(vec![Stage::new(value, value, 1.0)])
    }

    fn of(stages: Vec<Stage>) -> Self {
        let mut seconds = 0.0;
        let begin = |stage: &Stage| {
            let start = seconds;
            seconds += stage.seconds;
            start
        };
        Self { starts: stages.iter().map(begin).collect(), stages, seconds }
    }

    /// The stage that is played at a moment of the first pass.
    fn stage_at(&self, seconds: f64) -> usize {
        self.starts.partition_point(|&start| start <= seconds).max(1) - 1
    }

    /// The area under one pass.
    fn area(&self) -> f64 {
        self.stages.iter().map(Stage::area).sum()
    }

    /// The curve with the values of its random stages chosen by `random`. Before that they have the middle of their range.
    pub fn drawn(mut self, random: &mut fastrand::Rng) -> Self {
        for stage in self.stages.iter_mut().filter(|stage| stage.random) {
            let value = (stage.from + random.f64() * (stage.to - stage.from + 1.0)).floor().min(stage.to);
            *stage = Stage::new(value, value, stage.seconds);
        }
        self
    }

    /// How long one pass takes.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// The highest value at any time.
    pub fn highest(&self) -> f64 {
        self.stages.iter().fold(0.0, |highest, stage| highest.max(stage.from).max(stage.to))
    }

    /// The value at `seconds` after the start.
    pub fn at(&self, seconds: f64) -> f64 {
        let seconds = seconds % self.seconds;
        let stage = self.stage_at(seconds);
        self.stages[stage].at(seconds - self.starts[stage])
    }

    /// The next moment after `seconds` at which the value, rounded to a whole number, becomes another one. `None`: it
    /// stays for at least a whole pass.
    pub fn next_change(&self, seconds: f64) -> Option<f64> {
        let now = self.at(seconds).round();
        let pass = (seconds / self.seconds).floor() * self.seconds;
        let first = self.stage_at(seconds - pass);
        let mut start = pass + self.starts[first];
        // The rest of the present pass, and one more.
        for stage in self.stages[first..].iter().chain(&self.stages) {
            let end = start + stage.seconds;
            if end > seconds {
                if start > seconds && stage.from.round() != now {
                    return Some(start);
                }
                let slope = (stage.to - stage.from) / stage.seconds;
                let edge = now + 0.5_f64.copysign(slope);
                let crossing = start + (edge - stage.from) / slope;
                if slope != 0.0 && crossing < end {
                    // Just behind the edge: on which side of it `at` puts a moment so near is up to the rounding of floats.
                    return Some(crossing.max(seconds) + 1e-9);
                }
            }
            start = end;
        }
        None
    }

    /// A share of this curve, for one of several threads.
    pub fn scaled(&self, factor: f64) -> Self {
        let scale = |stage: &Stage| Stage { from: stage.from * factor, to: stage.to * factor, ..*stage };
        Self::of(self.stages.iter().map(scale).collect())
    }
}

/// What a shape changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The number of connections.
    Connections,
    /// Requests a second.
    Rate,
}

/// A curve of connections or of rate, written as in `rate=ramp:100..5000@10s,hold:5000@5s`.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// What it changes.
    pub subject: Subject,
    /// How.
    pub curve: Curve,
    text: String,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Curve {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut stages = Vec::new();
        for stage in text.split(',') {
            add_stage(stage.trim(), &mut stages)?;
        }
        let curve = Curve::of(stages);
        if curve.seconds > MAX_DURATION.as_secs_f64() {
            return Err("all stages together take at most 365days".to_owned());
        }
        Ok(curve)
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (subject, stages) =
            text.split_once('=').ok_or("a shape starts with `rate=` or `connections=`".to_owned())?;
        let subject = match subject.trim() {
            "rate" => Subject::Rate,
            "connections" => Subject::Connections,
            other => return Err(format!("a shape is of `rate` or `connections`, not of `{other}`")),
        };
        let curve: Curve = stages.parse()?;
        if curve.highest() == 0.0 {
            return Err("this shape is zero all the time".to_owned());
        }
        if subject == Subject::Rate && curve.highest() > MAX_RATE {
            return Err(format!("a rate is at most {MAX_RATE} a second"));
        }
        Ok(Self { subject, curve, text: text.to_owned() })
    }
}

/// `KIND:FROM[..TO][xTIMES]@DURATION`
fn add_stage(text: &str, stages: &mut Vec<Stage>) -> Result<(), String> {
    let bad = |what: &str| format!("in `{text}`: {what}");
    let (kind, rest) = text.split_once(':').ok_or_else(|| bad("a stage is KIND:VALUES@DURATION"))?;
    let (values, length) = rest.split_once('@').ok_or_else(|| bad("`@DURATION` is missing"))?;
    let length =
        humantime::parse_duration(length).map_err(|_| bad("the duration is not like `500ms` or `10s`"))?;
    if length < Duration::from_millis(1) {
        return Err(bad("a stage takes at least 1ms"));
    }
    let (range, times) = match values.split_once('x') {
        Some((range, times)) => {
            let times = times.parse::<u32>().ok().filter(|times| (1..=100_000).contains(times));
            (range, Some(times.ok_or_else(|| bad("what follows `x` is a count from 1 to 100000"))?))
        }
        None => (values, None),
    };
    let number = |text: &str| {
        let value = text.parse::<f64>().ok().filter(|value| (0.0..=1e9).contains(value));
        value.ok_or_else(|| bad("a value is a number from 0 to 1000000000"))
    };
    let (from, to) = match range.split_once("..") {
        Some((from, to)) => (number(from)?, number(to)?),
        None => (number(range)?, number(range)?),
    };
    let (count, total) = (times.unwrap_or(1), length.as_secs_f64());
    let each = total / f64::from(count);
    let mut push = |from, to, seconds| stages.push(Stage::new(from, to, seconds));
    match kind {
        "hold" if from == to && times.is_none() => push(from, to, total),
        "hold" => return Err(bad("hold takes one value")),
        "ramp" if times.is_none() => push(from, to, total),
        "ramp" => return Err(bad("ramp takes no count; sawtooth does")),
        "step" => {
            // xN: N levels, the first at FROM, the last at TO; by default two.
            let levels = times.unwrap_or(2).max(2);
            for level in 0..levels {
                let value = from + (to - from) * f64::from(level) / f64::from(levels - 1);
                push(value, value, total / f64::from(levels));
            }
        }
        "sawtooth" => (0..count).for_each(|_| push(from, to, each)),
        "onoff" => {
            for _ in 0..count {
                push(to, to, each / 2.0);
                push(from, from, each / 2.0);
            }
        }
        "random" => {
            let stage = Stage { from, to, seconds: each, random: true };
            (0..count).for_each(|_| stages.push(stage));
        }
        _ => return Err(bad("the kinds are hold, ramp, step, sawtooth, onoff and random")),
    }
    Ok(())
}

/// The moments at which requests are due.
#[derive(Debug)]
pub struct Arrivals {
    curve: Curve,
    /// What is played once before the curve, for no time where there is no warm-up.
    prelude: Option<Stage>,
    random: Option<fastrand::Rng>,
    /// The area under one pass of the curve.
    pass_area: f64,
    /// The stage that the next request falls in, when it began, and the area under the curve up to there.
    stage: usize,
    stage_start: f64,
    area_before: f64,
    /// The area at which the next request is due.
    next_area: f64,
    next: f64,
}

impl Arrivals {
    /// With a source of chance the arrivals are a Poisson process, else evenly spaced. For the first `warm_up` seconds the
    /// rate is the one that the curve begins with, or its highest where it begins with zero; then the curve starts.
    pub fn new(curve: Curve, warm_up: f64, random: Option<fastrand::Rng>) -> Self {
        Self::part(curve, warm_up, random, 0, 1)
    }

    /// The arrivals of one of `parts` threads, the curve being its part of the whole. Evenly spaced arrivals of all threads
    /// together are evenly spaced.
    pub fn part(curve: Curve, warm_up: f64, random: Option<fastrand::Rng>, part: u32, parts: u32) -> Self {
        let first = curve.stages.first().map_or(0.0, |stage| stage.from);
        let rate = if first > 0.0 { first } else { curve.highest() };
        let mut arrivals = Self {
            curve,
            prelude: Some(Stage::new(rate, rate, warm_up)),
            random,
            pass_area: 0.0,
            stage: 0,
            stage_start: 0.0,
            area_before: 0.0,
            next_area: 0.0,
            next: 0.0,
        };
        arrivals.pass_area = arrivals.curve.area();
        if arrivals.random.is_none() {
            arrivals.next_area = f64::from(part + 1) / f64::from(parts) - 1.0;
        }
        arrivals.advance();
        arrivals
    }

    /// Seconds after the start at which the next request is due; infinite where none ever is.
    pub fn peek(&self) -> f64 {
        self.next
    }

    /// Goes on to the request after that.
    pub fn advance(&mut self) {
        self.next_area += match &mut self.random {
            Some(random) => -(1.0 - random.f64()).ln(),
            None => 1.0,
        };
        self.locate();
    }

    /// Finds the moment at which the area is that of the next request.
    fn locate(&mut self) {
        loop {
            if self.stage == 0 && self.prelude.is_none() {
                if self.pass_area <= 0.0 {
                    self.next = f64::INFINITY;
                    return;
                }
                // Not stage by stage through passes in which nothing is due. What is due at the end of one is due in it.
                let passes = (((self.next_area - self.area_before) / self.pass_area).ceil() - 1.0).max(0.0);
                self.area_before += passes * self.pass_area;
                self.stage_start += passes * self.curve.seconds;
            }
            let stage = self.prelude.unwrap_or(self.curve.stages[self.stage]);
            let area = stage.area();
            let wanted = self.next_area - self.area_before;
            if wanted <= area {
                self.next = self.stage_start + time_to_area(stage, wanted);
                return;
            }
            self.area_before += area;
            self.stage_start += stage.seconds;
            if self.prelude.take().is_none() {
                self.stage = (self.stage + 1) % self.curve.stages.len();
            }
        }
    }
}

/// How long into the stage the area under it reaches `area`.
fn time_to_area(stage: Stage, area: f64) -> f64 {
    // from·t + slope/2·t² = area, in the form that also holds while the slope is zero or tiny.
    let slope = (stage.to - stage.from) / stage.seconds;
    let root = (stage.from * stage.from + 2.0 * slope * area).max(0.0).sqrt();
    if stage.from + root > 0.0 { 2.0 * area / (stage.from + root) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Shape {
        text.parse().unwrap()
    }

    fn due(arrivals: &mut Arrivals, until: f64) -> Vec<f64> {
        let mut all = Vec::new();
        while arrivals.peek() < until {
            all.push(arrivals.peek());
            arrivals.advance();
        }
        all
    }

    #[test]
    fn constant_rate_is_evenly_spaced() {
        let all = due(&mut Arrivals::new(Curve::constant(1000.0), 0.0, None), 10.0005);
        assert_eq!(all.len(), 10_000);
        assert!(all.windows(2).all(|pair| (pair[1] - pair[0] - 0.001).abs() < 1e-9));
    }

    #[test]
    fn ramp_offers_the_area_under_it() {
        let mut arrivals = Arrivals::new(shape("rate=ramp:0..1000@10s").curve, 0.0, None);
        let all = due(&mut arrivals, 10.0);
        assert!((4998..=5000).contains(&all.len()), "{}", all.len());
        let first_half = all.iter().filter(|&&at| at < 5.0).count();
        assert!((1249..=1251).contains(&first_half), "a quarter comes in the first half: {first_half}");
    }

    #[test]
    fn shape_starts_when_the_warm_up_is_over() {
        let mut arrivals = Arrivals::new(shape("rate=onoff:0..100x1@2s").curve, 0.5, None);
        let all = due(&mut arrivals, 2.499);
        assert!((148..=150).contains(&all.len()) && all.iter().all(|&at| at <= 1.5 + 1e-9), "{all:?}");
        // The rate that it begins with, or its highest; longer than a pass, which is no reason to leave any of it out.
        for (text, rate) in [("ramp:8..16@1s", 8.0), ("ramp:0..16@1s", 16.0)] {
            let mut arrivals = Arrivals::new(text.parse().unwrap(), 4.0, None);
            let all = due(&mut arrivals, 4.0 + 1e-9);
            let is_even = |(n, at): (u32, &f64)| (at * rate - f64::from(n)).abs() < 1e-6;
            assert!(all.len() as f64 == 4.0 * rate && (1..).zip(&all).all(is_even), "{text}: {all:?}");
        }
    }

    #[test]
    fn what_is_due_at_the_end_of_a_stage_does_not_wait_for_the_silence_behind_it() {
        let mut arrivals = Arrivals::new("hold:4@1s,hold:0@1h".parse().unwrap(), 0.0, None);
        assert_eq!(due(&mut arrivals, 3601.5), [0.25, 0.5, 0.75, 1.0, 3601.25]);
        assert_eq!(time_to_area(Stage::new(0.0, 4.0, 1.0), 0.0), 0.0);
        let mut arrivals = Arrivals::new("hold:0.5@1s,hold:0@1s".parse().unwrap(), 0.0, None);
        assert_eq!(due(&mut arrivals, 7.0), [3.0]);
    }

    #[test]
    fn every_whole_value_of_a_ramp_is_a_change() {
        for (from, to) in [(0.0, 10_000.0), (9_999.0, 7.0), (0.0, 64.0)] {
            let curve: Curve = format!("hold:{from}@1s,ramp:{from}..{to}@30s,hold:{to}@1s").parse().unwrap();
            let (mut seconds, mut seen) = (0.0, vec![from]);
            while let Some(next) = curve.next_change(seconds).filter(|next| *next < curve.seconds()) {
                // In whole nanoseconds, as the simulator counts.
                seconds = ((next * 1e9).floor() / 1e9).max(seconds + 1e-9);
                let value = curve.at(seconds).round();
                if seen.last() != Some(&value) {
                    seen.push(value);
                }
            }
            let (low, high) = (seen.iter().copied().fold(f64::MAX, f64::min), curve.highest());
            assert_eq!(seen.len() as f64, high - low + 1.0, "{from}..{to}");
        }
    }

    #[test]
    fn nothing_is_ever_due_where_chance_drew_only_zeros() {
        let zero: Curve = "random:0..1x3@3s".parse().unwrap();
        let drawn = (0..100).map(|seed| zero.clone().drawn(&mut fastrand::Rng::with_seed(seed)));
        let zeros: Vec<Curve> = drawn.filter(|curve| curve.highest() == 0.0).collect();
        assert!(!zeros.is_empty());
        for curve in zeros {
            let mut arrivals = Arrivals::new(curve, 0.5, None);
            arrivals.advance();
            assert_eq!(arrivals.peek(), f64::INFINITY);
        }
    }

    #[test]
    fn parts_of_threads_make_up_an_even_whole() {
        let curve = shape("rate=ramp:0..40@2s,hold:40@2s").curve;
        let whole = due(&mut Arrivals::new(curve.clone(), 0.0, None), 4.0);
        let part = |part| due(&mut Arrivals::part(curve.scaled(0.25), 0.0, None, part, 4), 4.0);
        let mut parts: Vec<f64> = (0..4).flat_map(part).collect();
        parts.sort_by(f64::total_cmp);
        assert_eq!(parts.len(), whole.len());
        assert!(parts.iter().zip(&whole).all(|(one, other)| (one - other).abs() < 1e-6), "{parts:?}");
    }

    #[test]
    fn seldom_arrivals_of_many_stages_take_no_time() {
        // A pass of 20 000 stages holds a fifth of a request: stage by stage that is 100 000 steps for each.
        let mut arrivals = Arrivals::new(shape("rate=onoff:0..0.002x10000@200s").curve, 0.0, None);
        for n in 1..10_000 {
            assert!(
                (arrivals.peek() / (f64::from(n) * 1000.0) - 1.0).abs() < 0.2,
                "{n}: {}",
                arrivals.peek()
            );
            arrivals.advance();
        }
        // Two steps for each stage, were they counted from the beginning: 800 million.
        let curve = shape("connections=random:1..9x20000@200s").curve.drawn(&mut fastrand::Rng::with_seed(1));
        let (mut at, mut changes) = (0.0, 0);
        while let Some(next) = curve.next_change(at).filter(|&next| next < 200.0) {
            at = next.max(at + 1e-9);
            changes += 1;
        }
        assert!((15_000..20_000).contains(&changes), "{changes}");
    }

    #[test]
    fn random_levels_are_all_whole_numbers_from_one_end_to_the_other() {
        let mut random = fastrand::Rng::with_seed(7);
        let curve = shape("rate=random:10..20x2000@2000s").curve.drawn(&mut random);
        let levels: Vec<f64> = (0..2000).map(|at| curve.at(f64::from(at) + 0.5)).collect();
        for level in 10..=20 {
            let count = levels.iter().filter(|drawn| **drawn == f64::from(level)).count();
            assert!((100..300).contains(&count), "{level}: {count} of 2000");
        }
        assert!(levels.iter().all(|level| (10.0..=20.0).contains(level) && level.fract() == 0.0));
    }

    #[test]
    fn stage_begins_where_the_one_before_has_ended() {
        let curve = shape("rate=hold:1@1s,hold:5@1s").curve;
        assert_eq!([0.0, 0.999, 1.0, 1.999].map(|seconds| curve.at(seconds)), [1.0, 1.0, 5.0, 5.0]);
    }

    #[test]
    fn next_change_is_where_a_look_at_every_moment_finds_it_in_any_pass() {
        for text in
            ["ramp:0..3@3s,hold:7@1s,ramp:4..1@2s", "hold:2@1s,hold:2@2s,hold:5@500ms", "ramp:5..0@4s"]
        {
            let curve = shape(&format!("connections={text}")).curve;
            // Beside the edges, on which side of one a moment is is up to the rounding of floats.
            for at in (0..140).map(|tenth| f64::from(tenth) * 0.1 + 0.037) {
                let value = curve.at(at).round();
                let found = (1..10_000).map(|step| at + f64::from(step) * 0.001);
                let found = found.into_iter().find(|later| curve.at(*later).round() != value);
                let next = curve.next_change(at);
                let is_same = next.zip(found).is_some_and(|(next, found)| (next - found).abs() <= 0.0011);
                assert!(is_same, "{text} at {at}: {next:?}, found {found:?}");
                assert!(next.is_some_and(|next| curve.at(next).round() != value), "{text} at {at}: {next:?}");
            }
        }
        let touches = shape("connections=ramp:0..2.5@1s,hold:2@1s").curve;
        assert_eq!(touches.next_change(0.9), Some(2.0), "it comes to 2.5, but is 2 from there");
        assert_eq!(shape("connections=hold:2@1s,hold:2@2s").curve.next_change(0.5), None);
    }

    #[test]
    fn nothing_is_due_while_the_rate_is_zero() {
        let mut arrivals = Arrivals::new(shape("rate=onoff:0..100x2@4s").curve, 0.0, None);
        let all = due(&mut arrivals, 3.999);
        assert!(all.iter().all(|at| at % 2.0 <= 1.0 + 1e-9), "{all:?}");
        assert!((198..=200).contains(&all.len()), "{}", all.len());
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_spread_of_an_exponential() {
        let mut arrivals = Arrivals::new(Curve::constant(1000.0), 0.0, Some(fastrand::Rng::with_seed(1)));
        let all = due(&mut arrivals, 100.0);
        let gaps: Vec<f64> = all.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 1000.0 - 1.0).abs() < 0.02, "mean {mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "spread {}", variance.sqrt());
    }

    #[test]
    fn shapes_are_played_in_stages_and_again() {
        let curve = shape("connections=step:10..40x4@4s, ramp:40..0@2s,hold:5@1s").curve;
        assert_eq!(curve.seconds(), 7.0);
        assert_eq!([0.5, 1.5, 2.5, 3.5].map(|at| curve.at(at)), [10.0, 20.0, 30.0, 40.0]);
        assert_eq!([5.0, 6.5, 7.5].map(|at| curve.at(at)), [20.0, 5.0, 10.0]);
        let saw = shape("rate=sawtooth:0..100x2@2s").curve;
        assert_eq!([0.5, 1.5].map(|at| saw.at(at)), [50.0, 50.0]);
    }

    #[test]
    fn bad_shapes_are_refused_by_name() {
        for (text, part) in [
            ("hold:5@1s", "rate="),
            ("speed=hold:5@1s", "`speed`"),
            ("rate=hold:5", "@DURATION"),
            ("rate=hold:1..5@1s", "one value"),
            ("rate=wave:1..5@1s", "kinds"),
            ("rate=ramp:1..5@soon", "duration"),
            ("rate=ramp:-1..5@1s", "number"),
            ("rate=sawtooth:1..5x0@1s", "count"),
            ("rate=hold:0@1s", "zero"),
            ("rate=hold:1@999us", "at least"),
            ("rate=ramp:1..5x2@1s", "no count"),
        ] {
            let error = text.parse::<Shape>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(shape("rate=hold:1@1ms").to_string(), "rate=hold:1@1ms");
    }
}

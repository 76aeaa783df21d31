//! Conditions on what a server says about itself: `pool_saturation<0.9,queue_wait_seconds.p99<20ms`.

use serde_json::Value;

use super::stats::sum;
use crate::cli::Failure;
use crate::load::asserts::{Assert, Asserted};

/// A number of `/stats.json`, by its name; of one in an object with a point between.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fact(String);

impl Asserted for Fact {
    fn named(name: &str) -> Result<Self, String> {
        let is_name = |part: &str| part.starts_with(|first: char| first.is_ascii_alphabetic());
        match name.split('.').all(is_name) {
            true => Ok(Fact(name.to_owned())),
            false => Err(format!("`{name}` is no name of a number")),
        }
    }

    /// What is measured in seconds is, but for how often.
    fn is_time(&self) -> bool {
        let (first, last) = (self.0.split('.').next(), self.0.rsplit('.').next());
        first.is_some_and(|first| first.ends_with("_seconds")) && last != Some("count")
    }
}

impl Fact {
    /// Its value, in microseconds if it is a time; `None`: there is no such number.
    fn value(&self, stats: &Value) -> Option<f64> {
        let value = self.0.split('.').try_fold(stats, |value, part| value.get(part))?;
        let number = match value {
            Value::Number(number) => number.as_f64()?,
            Value::Bool(is) => f64::from(u8::from(*is)),
            // Of counts by reason, kind or service. Of times the sum would mean nothing.
            Value::Object(_) if !self.is_time() => sum(value),
            _ => return None,
        };
        Some(if self.is_time() { number * 1e6 } else { number })
    }
}

/// A line for each of `asserts` that does not hold.
///
/// # Errors
/// One of them is of no number that there is.
pub(super) fn broken<'a>(
    stats: &str,
    asserts: impl Iterator<Item = &'a Assert<Fact>>,
) -> Result<String, Failure> {
    let stats: Value = serde_json::from_str(stats)
        .map_err(|error| Failure::failed(format!("/stats.json is not as it should be: {error}")))?;
    let mut lines = String::new();
    for assert in asserts {
        let Some(value) = assert.subject.value(&stats) else {
            return Err(Failure::usage(format!(
                "--check: `{}` is no number in /stats.json",
                assert.subject.0
            )));
        };
        if !assert.holds(Some(value)) {
            lines += &format!("{} does not hold: it is {}\n", assert.text, assert.show(Some(value)));
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::asserts::Asserts;

    const STATS: &str = r#"{"ready": true, "pool_saturation": 0.5, "requests_total": {"a": {"x": 1, "y": 2}, "b": {"x": 4}},
        "queue_wait_seconds": {"count": 7, "p99": 0.02}, "uptime_seconds": 90, "state": "serving"}"#;

    fn check(conditions: &str) -> Result<String, String> {
        let asserts: Asserts<Fact> = conditions.parse()?;
        broken(STATS, asserts.0.iter()).map_err(|failure| failure.message)
    }

    #[test]
    fn conditions_hold_or_are_named_with_the_value() {
        for held in [
            "ready=1,pool_saturation<0.9",
            "requests_total=7, requests_total.a=3",
            "requests_total.b.x>=4",
            "queue_wait_seconds.p99<=20ms,queue_wait_seconds.count=7",
            "uptime_seconds>1m",
        ] {
            assert_eq!(check(held).as_deref(), Ok(""), "{held}");
        }
        let expected =
            "pool_saturation>0.5 does not hold: it is 0.5\nuptime_seconds<1s does not hold: it is 90.0 s\n";
        assert_eq!(check("pool_saturation>0.5,ready=1,uptime_seconds<1s").as_deref(), Ok(expected));
    }

    #[test]
    fn what_is_no_number_is_named() {
        for name in ["beauty", "state", "queue_wait_seconds", "requests_total.c", "ready.x"] {
            let conditions =
                if name.contains("seconds") { format!("{name}<1s") } else { format!("{name}<1") };
            let error = check(&conditions).unwrap_err();
            assert!(error.contains(&format!("`{name}` is no number")), "{name}: {error}");
        }
        for wrong in ["<1", "a..b<1", "uptime_seconds<1", "ready"] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}

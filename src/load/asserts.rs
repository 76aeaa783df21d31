//! What must be fulfilled: `p99<20ms,lost=0`, of a run; and of a server, of which others are asked the same way.

use std::str::FromStr;
use std::time::Duration;

/// What can be compared.
pub(crate) trait Asserted: Sized {
    /// What this name stands for.
    ///
    /// # Errors
    /// Nothing; says so.
    fn named(name: &str) -> Result<Self, String>;

    /// Whether it is a length of time, in microseconds; else it is a number.
    fn is_time(&self) -> bool;
}

/// What is compared of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Microseconds; percentiles are given in hundredths of a per cent.
    Percentile(u32),
    Mean,
    Max,
    /// Requests answered a second.
    Rate,
    /// CPU of the generator, in microseconds for each reply.
    GeneratorCpu,
    /// A count of the ledger.
    Count(Count),
}

/// The counts that can be asserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Offered,
    Unsent,
    Sent,
    Right,
    Wrong,
    Reordered,
    Duplicated,
    Lost,
    Unread,
    Unasked,
    Opened,
    Refused,
    NotLetIn,
    Reset,
    ClosedEarly,
    /// Everything that is wrong, of requests and connections.
    Errors,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Assert<S = Subject> {
    pub(crate) text: String,
    pub(crate) subject: S,
    relation: Relation,
    limit: f64,
}

/// The comparisons of one `--assert`, or `--check`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asserts<S = Subject>(pub(crate) Vec<Assert<S>>);

impl<S: Asserted> FromStr for Asserts<S> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(|one| one.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl<S: Asserted> FromStr for Assert<S> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text.find(['<', '>', '=']).ok_or_else(|| format!("`{text}` has none of < <= = >= >"))?;
        let (name, rest) = (text[..at].trim(), &text[at..]);
        let (relation, limit) = [
            ("<=", Relation::LessOrEqual),
            (">=", Relation::GreaterOrEqual),
            ("==", Relation::Equal),
            ("<", Relation::Less),
            (">", Relation::Greater),
            ("=", Relation::Equal),
        ]
        .iter()
        .find_map(|&(sign, relation)| rest.strip_prefix(sign).map(|limit| (relation, limit.trim())))
        .expect("the search above found one of the signs");
        let subject = S::named(name)?;
        let bad = || {
            format!(
                "`{limit}` in `{text}` is not {}",
                if subject.is_time() { "like `20ms`, of at most 365days" } else { "a number" }
            )
        };
        let limit = if subject.is_time() {
            let length =
                humantime::parse_duration(limit).ok().filter(|length| *length <= tidemill::MAX_DURATION);
            let length = length.ok_or_else(bad)?;
            length.as_secs_f64() * 1e6
        } else {
            limit.parse::<f64>().ok().filter(|limit| limit.is_finite()).ok_or_else(bad)?
        };
        Ok(Self { text: text.to_owned(), subject, relation, limit })
    }
}

fn subject(name: &str) -> Result<Subject, String> {
    let count = match name {
        "mean" => return Ok(Subject::Mean),
        "max" => return Ok(Subject::Max),
        "rate" => return Ok(Subject::Rate),
        "generator_cpu" => return Ok(Subject::GeneratorCpu),
        "offered" => Count::Offered,
        "unsent" => Count::Unsent,
        "sent" => Count::Sent,
        "right" => Count::Right,
        "wrong" => Count::Wrong,
        "reordered" => Count::Reordered,
        "duplicated" => Count::Duplicated,
        "lost" => Count::Lost,
        "unread" => Count::Unread,
        "unasked" => Count::Unasked,
        "opened" => Count::Opened,
        "refused" => Count::Refused,
        "not_let_in" => Count::NotLetIn,
        "reset" => Count::Reset,
        "closed_early" => Count::ClosedEarly,
        "errors" => Count::Errors,
        _ => {
            return percentile(name)
                .map(Subject::Percentile)
                .ok_or_else(|| format!("`{name}` cannot be asserted"));
        }
    };
    Ok(Subject::Count(count))
}

/// `p50`, `p99`, `p99.9` and, as people write it, `p999`, in hundredths of a per cent.
fn percentile(name: &str) -> Option<u32> {
    let digits = name.strip_prefix('p')?;
    let (whole, part) = digits.split_once('.').or_else(|| digits.split_at_checked(digits.len().min(2)))?;
    let numeric = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !name.contains('.') && digits.len() > 2 && !digits.starts_with('9') {
        return None;
    }
    if whole.len() > 2 || part.len() > 2 || !numeric(whole) || !numeric(part) {
        return None;
    }
    let hundredths: u32 = format!("{part:0<2}").parse().ok()?;
    Some(whole.parse::<u32>().ok()? * 100 + hundredths)
}

impl Asserted for Subject {
    fn named(name: &str) -> Result<Self, String> {
        subject(name)
    }

    fn is_time(&self) -> bool {
        matches!(self, Self::Percentile(_) | Self::Mean | Self::Max | Self::GeneratorCpu)
    }
}

impl Subject {
    /// Whether an overloaded generator spoils it.
    pub(crate) fn is_measured(self) -> bool {
        !matches!(self, Self::Count(_))
    }
}

impl<S: Asserted> Assert<S> {
    /// Whether `value` (microseconds for times) is as it must be; an unknown value is not.
    pub(crate) fn holds(&self, value: Option<f64>) -> bool {
        value.is_some_and(|value| match self.relation {
            Relation::Less => value < self.limit,
            Relation::LessOrEqual => value <= self.limit,
            Relation::Equal => value == self.limit,
            Relation::GreaterOrEqual => value >= self.limit,
            Relation::Greater => value > self.limit,
        })
    }

    /// `value` as it is shown.
    pub(crate) fn show(&self, value: Option<f64>) -> String {
        match value {
            None => "too few samples".to_owned(),
            Some(value) if self.subject.is_time() => crate::report::microseconds(value),
            Some(value) => crate::report::number(value),
        }
    }
}

impl Assert {
    /// Whether a latency that is measured as longer than it was can only break it: an upper bound that holds, does.
    pub(crate) fn is_upper_bound_of_time(&self) -> bool {
        self.subject.is_time() && matches!(self.relation, Relation::Less | Relation::LessOrEqual)
    }

    /// The longest time that it allows, if it is an upper bound of a latency.
    pub(crate) fn most_time(&self) -> Option<Duration> {
        let is_latency = self.is_upper_bound_of_time() && self.subject != Subject::GeneratorCpu;
        is_latency.then(|| Duration::try_from_secs_f64(self.limit / 1e6).unwrap_or(Duration::MAX))
    }

    /// Of how many requests one lies beyond the percentile.
    pub(crate) fn samples_needed(&self) -> f64 {
        match self.subject {
            Subject::Percentile(hundredths) => 1.0 / (1.0 - f64::from(hundredths) / 1e4),
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Assert {
        text.parse().unwrap()
    }

    #[test]
    fn each_relation_holds_and_fails() {
        for (text, yes, no) in [
            ("lost=0", 0.0, 1.0),
            ("lost == 0", 0.0, 1.0),
            ("rate>1000", 1001.0, 1000.0),
            ("rate>=1000", 1000.0, 999.0),
            ("p99<20ms", 19_999.0, 20_000.0),
            ("p99.9 <= 20ms", 20_000.0, 20_001.0),
            ("max<1s", 999_999.0, 1e6),
        ] {
            let assert = one(text);
            assert!(assert.holds(Some(yes)) && !assert.holds(Some(no)) && !assert.holds(None), "{text}");
        }
    }

    #[test]
    fn percentiles_are_read_in_both_ways_of_writing() {
        for (name, hundredths) in
            [("p5", 500), ("p50", 5000), ("p99", 9900), ("p99.9", 9990), ("p999", 9990), ("p99.99", 9999)]
        {
            assert_eq!(one(&format!("{name}<1s")).subject, Subject::Percentile(hundredths), "{name}");
        }
    }

    #[test]
    fn lists_are_split_and_mistakes_are_named() {
        assert_eq!("p99<20ms, lost=0".parse::<Asserts>().unwrap().0.len(), 2);
        for (text, part) in [
            ("lost", "none of"),
            ("p99<fast", "`fast`"),
            ("p99<20", "`20`"),
            ("lost=none", "`none`"),
            ("beauty>1", "`beauty`"),
            ("p100<1s", "`p100`"),
            ("p<1s", "`p`"),
            ("p.5<1s", "`p.5`"),
            ("p123<1s", "`p123`"),
            ("p9x<1s", "`p9x`"),
            ("p9é<1s", "`p9é`"),
            ("p+5<1s", "`p+5`"),
            ("p99.+5<1s", "`p99.+5`"),
            ("p99.x<1s", "`p99.x`"),
            ("p99.999<1s", "`p99.999`"),
            ("", "none of"),
            ("lost=0,,wrong=0", "none of"),
        ] {
            let error = text.parse::<Asserts>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_an_assert_is_about_decides_what_may_spoil_it_and_how_long_a_step_is() {
        let ms = |count| Some(Duration::from_millis(count));
        for (text, is_measured, is_upper_bound, most, samples, shown) in [
            ("p99<20ms", true, true, ms(20), 100.0, "1.50 ms"),
            ("p50<=2ms", true, true, ms(2), 2.0, "1.50 ms"),
            ("p99.9>1s", true, false, None, 1000.0, "1.50 ms"),
            ("mean<1ms", true, true, ms(1), 1.0, "1.50 ms"),
            ("max=1s", true, false, None, 1.0, "1.50 ms"),
            ("generator_cpu<5us", true, true, None, 1.0, "1.50 ms"),
            ("rate<9", true, false, None, 1.0, "1 500"),
            ("lost<9", false, false, None, 1.0, "1 500"),
        ] {
            let assert = one(text);
            assert_eq!(assert.subject.is_measured(), is_measured, "{text}");
            assert_eq!(
                (assert.is_upper_bound_of_time(), assert.most_time()),
                (is_upper_bound, most),
                "{text}"
            );
            assert!(
                (assert.samples_needed() / samples - 1.0).abs() < 1e-9,
                "{text}: {}",
                assert.samples_needed()
            );
            assert_eq!(
                (assert.show(Some(1500.0)).as_str(), assert.show(None).as_str()),
                (shown, "too few samples")
            );
        }
    }
}

//! What comes to a simulated pool, and how long it takes.

use std::str::FromStr;
use std::time::Duration;

use crate::config::MAX_DURATION;
use crate::schedule::{Curve, MAX_RATE};

/// Most clients of a stream: as many as the load generator has connections. Each costs memory.
const MAX_CLIENTS: f64 = 1e6;

/// Streams of requests that come at the same time.
///
/// Written as streams joined by ` + `, each a load and what one of its requests costs, such as
/// `rate=ramp:0..1280@30s block=50ms + clients=hold:4@30s cpu=2ms`:
///
/// - `clients=STAGES`: so many clients, each of which sends its next request when it has the reply to the one before;
/// - `rate=STAGES`: requests per second, whether replies come or not; evenly spaced, or at random with `poisson`;
/// - `burst=COUNT@TIME,…`: so many at once, each time;
/// - `cpu=DUR`: needs a CPU for so long; `block=DUR`: then blocks for so long; one of them at least;
/// - `exponential`: those are means of an exponential distribution and not the same for every request.
///
/// The stages are those of [`Curve`]: `hold:V@DUR`, `ramp:A..B@DUR`, `step:A..BxN@DUR`, `sawtooth:A..BxN@DUR`,
/// `onoff:A..BxN@DUR`, `random:A..BxN@DUR`, joined by commas. The name of one of [`NAMED`] is a workload too.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// What comes.
    pub streams: Vec<Stream>,
}

/// One kind of request and when it comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// When.
    pub load: Load,
    /// What it costs.
    pub service: Service,
}

/// When requests come.
#[derive(Clone, Debug, PartialEq)]
pub enum Load {
    /// Clients that send their next request when they have the reply to the one before.
    Clients(Curve),
    /// Requests a second.
    Rate {
        /// How many.
        curve: Curve,
        /// At random (a Poisson process), not evenly spaced.
        poisson: bool,
    },
    /// So many at once.
    Bursts(Vec<(Duration, u32)>),
}

/// What one request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// First it needs a CPU for so long.
    pub cpu: Duration,
    /// Then it blocks for so long.
    pub block: Duration,
    /// Both are means of an exponential distribution.
    pub exponential: bool,
}

/// Workloads with a name, and what each is for. With 2 to 64 workers, tolerance 2 and a keep-alive of 5 s they are rows of
/// the server's scorecard.
pub const NAMED: [(&str, &str, &str); 11] = [
    (
        "step",
        "burst=64@1s,64@4s block=50ms + burst=1@16s cpu=1us",
        "64 at once, the same again, then nothing",
    ),
    (
        "trickle",
        "burst=64@1s block=50ms + rate=hold:20@40s block=1ms",
        "a burst, then a trickle that must not keep the workers",
    ),
    ("ramp", "clients=ramp:0..64@30s,ramp:64..0@30s block=50ms", "slowly up and slowly down"),
    ("sawtooth", "clients=sawtooth:4..48x30@60s block=50ms", "up and down faster than the keep-alive"),
    ("onoff", "clients=onoff:0..64x30@60s block=50ms", "full load every other second"),
    ("noise", "clients=random:14..18x1200@60s block=50ms", "demand that varies within the tolerance"),
    ("waves", "clients=random:10..22x1200@60s block=50ms", "demand that varies by more than the tolerance"),
    ("cpu", "rate=hold:3000@10s poisson cpu=1ms", "half as much again as two cores can do"),
    (
        "mixed",
        "burst=40@1s block=1s + rate=hold:200@5s block=1ms",
        "40 that block for a second beside short ones",
    ),
    (
        "stuck",
        "burst=1@1s block=1h + burst=3@2s,8@4s block=1ms + burst=1@6s block=1ms",
        "one that never ends, then some more",
    ),
    ("flood", "clients=hold:1000@5s cpu=20us", "trivial requests from a thousand connections"),
];

impl Workload {
    /// How long one pass takes: the longest stream.
    pub fn duration(&self) -> Duration {
        let of = |stream: &Stream| match &stream.load {
            Load::Clients(curve) | Load::Rate { curve, .. } => Duration::from_secs_f64(curve.seconds()),
            Load::Bursts(bursts) => {
                // A burst that is the last thing to happen has a second to be worked off.
                let last = bursts.iter().map(|burst| burst.0).max().unwrap_or_default();
                last.saturating_add(Duration::from_secs(1))
            }
        };
        self.streams.iter().map(of).max().unwrap_or_default()
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = NAMED.iter().find(|(name, ..)| *name == text.trim());
        if named.is_none() && !text.contains('=') {
            let names: Vec<_> = NAMED.iter().map(|(name, ..)| *name).collect();
            return Err(format!("`{text}` is none of {} and has no `=`", names.join(", ")));
        }
        let text = named.map_or(text, |(_, text, _)| text);
        let streams = text.split(" + ").map(str::parse).collect::<Result<_, _>>()?;
        Ok(Workload { streams })
    }
}

impl FromStr for Stream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |what: &str| format!("in `{}`: {what}", text.trim());
        let (mut load, mut poisson) = (None, false);
        let mut service = Service { cpu: Duration::ZERO, block: Duration::ZERO, exponential: false };
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let duration = || {
                let duration = humantime::parse_duration(value).ok().filter(|value| *value <= MAX_DURATION);
                duration
                    .ok_or_else(|| bad(&format!("`{word}` has no duration like `5ms`, of at most 365days")))
            };
            let loads = match key {
                "clients" => Load::Clients(value.parse()?),
                "rate" => Load::Rate { curve: value.parse()?, poisson: false },
                "burst" => Load::Bursts(bursts(value).map_err(|what| bad(&what))?),
                "cpu" => {
                    service.cpu = duration()?;
                    continue;
                }
                "block" => {
                    service.block = duration()?;
                    continue;
                }
                "exponential" if value.is_empty() => {
                    service.exponential = true;
                    continue;
                }
                "poisson" if value.is_empty() => {
                    poisson = true;
                    continue;
                }
                _ => {
                    return Err(bad(&format!(
                        "`{word}` is none of clients= rate= burst= cpu= block= poisson exponential"
                    )));
                }
            };
            if load.replace(loads).is_some() {
                return Err(bad("one load a stream; streams are joined by ` + `"));
            }
        }
        let mut load = load.ok_or_else(|| bad("clients=, rate= or burst= is missing"))?;
        match &mut load {
            Load::Rate { poisson: random, .. } => *random = poisson,
            _ if poisson => return Err(bad("only a rate can be poisson")),
            _ => {}
        }
        let (highest, most) = match &load {
            Load::Clients(curve) => (curve.highest(), MAX_CLIENTS),
            Load::Rate { curve, .. } => (curve.highest(), MAX_RATE),
            Load::Bursts(_) => (1.0, 1.0),
        };
        if highest == 0.0 {
            return Err(bad("the load is zero all the time"));
        }
        if highest > most {
            return Err(bad(&format!("the load is at most {most}")));
        }
        if service.cpu.saturating_add(service.block) < Duration::from_nanos(100) {
            return Err(bad("a request takes 100ns at least: say cpu= or block="));
        }
        Ok(Stream { load, service })
    }
}

/// `COUNT@TIME,…`
fn bursts(text: &str) -> Result<Vec<(Duration, u32)>, String> {
    let one = |text: &str| {
        let (count, at) = text.split_once('@')?;
        let count = count.parse().ok().filter(|count| (1..=1_000_000).contains(count))?;
        let at = humantime::parse_duration(at).ok().filter(|at| *at <= MAX_DURATION)?;
        Some((at, count))
    };
    text.split(',').map(|text| one(text).ok_or_else(|| format!("`{text}` is not like `64@1s`"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_workload_can_be_read() {
        for (name, ..) in NAMED {
            let workload: Workload = name.parse().unwrap();
            assert!(workload.duration() > Duration::from_secs(1), "{name}");
        }
    }

    #[test]
    fn bad_workloads_are_refused_by_name() {
        for (text, part) in [
            ("steps", "step, trickle"),
            ("rate=hold:5@1s", "cpu= or block="),
            ("cpu=1ms", "clients=, rate= or burst="),
            ("rate=hold:5@1s cpu=soon", "`cpu=soon`"),
            ("rate=hold:0@1s cpu=1ms", "zero"),
            ("burst=0@1s cpu=1ms", "`0@1s`"),
            ("clients=hold:1@1s poisson cpu=1ms", "poisson"),
            ("clients=hold:1@1s rate=hold:1@1s cpu=1ms", "one load"),
            ("rate=hold:5@1s cpu=1ms speed=2", "`speed=2`"),
            ("rate=wave:5@1s cpu=1ms", "kinds"),
        ] {
            let error = text.parse::<Workload>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

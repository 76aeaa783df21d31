//! One measurement: a server started, flooded and stopped, with its CPU time over the middle of the measured part.
//!
//! CPU per request is the server's CPU time per second over its replies per second. Both are rates, so the window in
//! which the CPU is read need not agree with the generator's to the millisecond; it only has to lie inside.

use std::io::Result;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::flood;
use crate::machine::{CpuClock, machine_time, softirq_threads};
use crate::neighbours::{self, Beside};
use crate::report::load::{Latency, Verdict};
use crate::server::ServerSpec;
use crate::workload::{Pace, Workload};

/// Share of the measured part that is left out at either end of the window in which CPU time is read.
const MARGIN: f64 = 0.1;

/// CPU time of others, in CPUs, above which a measurement is repeated. A quiet machine shows less than a tenth of it.
pub(crate) const DISTURBED: f64 = 0.05;

/// A figure that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    Rate,
    /// Of the server alone.
    Cpu,
    P50,
    P99,
    P999,
}

impl Metric {
    /// In the order of the tables.
    pub(crate) const ALL: [Metric; 5] = [Metric::Rate, Metric::Cpu, Metric::P50, Metric::P99, Metric::P999];

    /// At the head of a column.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Metric::Rate => "requests/s",
            Metric::Cpu => "CPU µs",
            Metric::P50 => "p50 µs",
            Metric::P99 => "p99 µs",
            Metric::P999 => "p99.9 µs",
        }
    }
}

/// What one measurement found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) requests_per_second: f64,
    /// Of the server.
    pub(crate) cpu_us_per_request: f64,
    /// None with too few samples.
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    /// CPUs that the load generator was busy on.
    pub(crate) generator_cpus: f64,
    /// CPUs that neither server nor generator was busy on, but somebody.
    pub(crate) other_cpus: f64,
    /// CPUs that the host took.
    pub(crate) stolen_cpus: f64,
    /// Why the generator says that it did not keep up.
    pub(crate) generator_complaints: Vec<String>,
    /// Measurements thrown away before this one because a neighbour disturbed them.
    pub(crate) repeated: u32,
}

impl Run {
    /// One of its figures; NaN with too few samples.
    pub(crate) fn value(&self, metric: Metric) -> f64 {
        let value = match metric {
            Metric::Rate => Some(self.requests_per_second),
            Metric::Cpu => Some(self.cpu_us_per_request),
            Metric::P50 => self.p50_us,
            Metric::P99 => self.p99_us,
            Metric::P999 => self.p999_us,
        };
        value.unwrap_or(f64::NAN)
    }

    /// CPUs that were not the benchmark's.
    pub(crate) fn disturbance(&self) -> f64 {
        self.other_cpus + self.stolen_cpus
    }

    /// Whether nobody else took CPU time meanwhile, and a generator that goes by the clock kept up.
    pub(crate) fn is_clean(&self, pace: Pace) -> bool {
        // A closed loop on a machine that server and generator share keeps the generator waiting for a CPU: that is no
        // fault of a neighbour's and would be the same the next time.
        let kept_up = pace == Pace::Closed || self.generator_complaints.is_empty();
        self.disturbance() <= DISTURBED && kept_up
    }
}

/// The clocks that a measurement reads.
struct Clocks {
    began: Instant,
    server: CpuClock,
    generator: CpuClock,
    softirq: Vec<CpuClock>,
}

/// What they show at one moment: time, CPU time of server, generator and softirq threads, and of the machine: busy, stolen.
type Reading = [Duration; 6];

impl Clocks {
    fn read(&self) -> Result<Reading> {
        let softirq = self.softirq.iter().map(CpuClock::read).sum::<Result<_>>()?;
        let (at, (busy, stolen)) = (self.began.elapsed(), machine_time()?);
        Ok([at, self.server.read()?, self.generator.read()?, softirq, busy, stolen])
    }
}

/// How each measurement is made, and how many are.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Settings {
    /// Measurements of each server under each workload.
    pub(crate) rounds: usize,
    /// Flooded before the measured part.
    pub(crate) warmup_seconds: f64,
    pub(crate) seconds: f64,
    /// Most measurements for one that counts.
    pub(crate) tries: u32,
    pub(crate) generator_threads: u32,
}

/// Measures `spec` once under `workload`, by the generator of `tidemill`; blocks for warm-up and measured part and what start
/// and stop take.
pub(crate) fn measure(
    spec: &ServerSpec,
    workload: &Workload,
    tidemill: &str,
    Settings { warmup_seconds, seconds, generator_threads, .. }: Settings,
    rate: Option<f64>,
) -> Result<Run> {
    let wrapper = workload.wrapper()?;
    let mut server = spec.start(&workload.server_options(), &wrapper)?;
    let neighbours = neighbours::start(workload.beside, server.address)?;
    let options = format!(
        "--threads {generator_threads} --warm-up {:.0}ms --duration {:.0}ms {} {}",
        warmup_seconds * 1e3,
        seconds * 1e3,
        workload.load_options(rate),
        spec.asks
    );
    let began = Instant::now();
    let running = flood::start(&wrapper, tidemill, server.address, &options)?;
    let clocks = Clocks {
        began,
        server: CpuClock::of(server.pid())?,
        generator: CpuClock::of(running.id())?,
        softirq: softirq_threads()?,
    };
    let read_at = |share: f64| {
        let moment = Duration::from_secs_f64(warmup_seconds + seconds * share);
        thread::sleep(moment.saturating_sub(began.elapsed()));
        clocks.read()
    };
    let (first, last) = (read_at(MARGIN)?, read_at(1.0 - MARGIN)?);
    let report = flood::verified(running)?;
    drop(neighbours);
    // What flooders have left in its receive queues would take a graceful stop long.
    if !matches!(workload.beside, Beside::Flooders(_)) {
        server.stop()?;
    }
    let complaints = if report.verdict == Verdict::Invalid { report.generator.reasons } else { Vec::new() };
    let Latency { p50, p99, p999, .. } = report.latency_us;
    let run = of_window(&first, &last, report.requests_per_second);
    Ok(Run { p50_us: p50, p99_us: p99, p999_us: p999, generator_complaints: complaints, ..run })
}

/// What the clocks say, without latencies.
fn of_window(first: &Reading, last: &Reading, requests_per_second: f64) -> Run {
    let spent: [f64; 6] = std::array::from_fn(|part| last[part].saturating_sub(first[part]).as_secs_f64());
    let elapsed = spent[0];
    let [_, server, generator, softirq, busy, stolen] = spent.map(|seconds| seconds / elapsed);
    Run {
        requests_per_second,
        cpu_us_per_request: server * 1e6 / requests_per_second,
        p50_us: None,
        p99_us: None,
        p999_us: None,
        generator_cpus: generator,
        other_cpus: (busy - server - generator - softirq).max(0.0),
        stolen_cpus: stolen,
        generator_complaints: Vec::new(),
        repeated: 0,
    }
}

/// Measures until a measurement is clean, `tries` times at most; then the least disturbed one counts.
pub(crate) fn measure_quietly(
    tries: u32,
    pace: Pace,
    mut attempt: impl FnMut() -> Result<Run>,
) -> Result<Run> {
    let mut best = attempt()?;
    for repeated in 1..tries.max(1) {
        if best.is_clean(pace) {
            break;
        }
        let again = attempt()?;
        if again.is_clean(pace) || again.disturbance() < best.disturbance() {
            best = again;
        }
        best.repeated = repeated;
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_per_request_and_the_share_of_others_come_from_the_same_window() {
        let reading = |milliseconds: [u64; 6]| milliseconds.map(Duration::from_millis);
        let (first, last) = ([0, 100, 200, 0, 1000, 0], [2000, 1300, 2000, 100, 4200, 20]);
        let run = of_window(&reading(first), &reading(last), 100_000.0);
        assert!((run.cpu_us_per_request - 6.0).abs() < 1e-9, "{run:?}");
        assert!((run.generator_cpus - 0.9).abs() < 1e-9, "{run:?}");
        assert!((run.other_cpus - 0.05).abs() < 1e-9, "{run:?}");
        assert!((run.stolen_cpus - 0.01).abs() < 1e-9, "{run:?}");
        assert!(!run.is_clean(Pace::Closed));
    }

    fn disturbed_by(other_cpus: f64) -> Run {
        let (first, last) = ([Duration::ZERO; 6], [1, 0, 0, 0, 0, 0].map(Duration::from_secs));
        Run { other_cpus, ..of_window(&first, &last, 1.0) }
    }

    #[test]
    fn disturbed_measurement_is_repeated_until_one_is_clean() {
        let mut found = [0.5, 0.3, 0.01, 0.0].into_iter().map(disturbed_by);
        let run = measure_quietly(4, Pace::Closed, || Ok(found.next().unwrap())).unwrap();
        assert_eq!((run.other_cpus, run.repeated), (0.01, 2));
    }

    #[test]
    fn least_disturbed_counts_when_none_is_clean() {
        let mut found = [0.5, 0.3, 0.4].into_iter().map(disturbed_by);
        let run = measure_quietly(3, Pace::Closed, || Ok(found.next().unwrap())).unwrap();
        assert_eq!((run.other_cpus, run.repeated), (0.3, 2));
    }

    #[test]
    fn generator_that_goes_by_the_clock_has_to_keep_up() {
        let run = Run { generator_complaints: vec!["late".to_owned()], ..disturbed_by(0.0) };
        assert!(!run.is_clean(Pace::HalfLoad));
        assert!(run.is_clean(Pace::Closed));
    }
}

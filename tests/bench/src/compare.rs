//! Runs servers in turn under the same loads and compares them; `scripts/bench.sh` builds what it needs.

use std::io::{Error, ErrorKind, Result, Write, stdout};
use std::time::{Duration, SystemTime};

use clap::Parser;

use crate::machine::Machine;
use crate::measure::{Metric, Run, Settings, measure, measure_quietly};
use crate::neighbours::Beside;
use crate::outputs::Outputs;
use crate::results::{FLOOR, Measured, Results, Row};
use crate::server::{OURS, ServerSpec};
use crate::stats::median;
use crate::workload::{Pace, RECONNECTS, WORKLOADS, Workload};

/// Times that the reference's capacity is measured before the load that is half of it.
const CALIBRATIONS: usize = 3;

/// Compares tidemill with other servers: requests per second, CPU time, latency
#[derive(Debug, Parser)]
#[command(bin_name = "scripts/bench.sh", version)]
pub(crate) struct Args {
    /// Workloads to measure [default: all but those for --scaling alone]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = Workload::named)]
    workloads: Vec<&'static Workload>,
    /// Measures one request at a time on one connection to 10 000, tidemill, tokio and the floor
    #[arg(long, conflicts_with = "workloads")]
    scaling: bool,
    /// Servers to measure [default: those that a workload is meant for]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    servers: Vec<String>,
    /// Another server, as NAME=COMMAND with {port} in it; measured under every workload
    #[arg(long = "server", value_name = "NAME=COMMAND", value_parser = ServerSpec::parse)]
    more: Vec<ServerSpec>,
    /// The server that the others are compared with
    #[arg(long, value_name = "NAME", default_value = "tokio")]
    reference: String,
    /// Measurements of each server under each workload [default: 7]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// The measured part of each [default: 2s]
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Flooded before the measured part
    #[arg(long, value_name = "DUR", default_value = "300ms", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Most measurements for one that counts, where a neighbour disturbs them
    #[arg(long, value_name = "N", default_value = "4")]
    tries: u32,
    /// For a look: three short rounds of tidemill, the reference and the floor, disturbed or not
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    outputs: Outputs,
    /// The binary to measure, which also generates the load
    #[arg(long, value_name = "PATH")]
    tidemill: String,
    /// Threads that generate the load
    #[arg(long, value_name = "N", default_value = "1")]
    generator_threads: u32,
}

struct Bench {
    args: Args,
    servers: Vec<ServerSpec>,
    settings: Settings,
}

pub(crate) fn run(args: Args) -> Result<bool> {
    let bench = Bench::new(args)?;
    let mut results = Results {
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        command: command(),
        machine: Machine::this(),
        reference: bench.args.reference.clone(),
        settings: bench.settings,
        workloads: bench.plan()?,
    };
    // Rounds outermost: what drifts over the minutes of a benchmark reaches all workloads alike.
    for round in 0..bench.settings.rounds {
        for measured in &mut results.workloads {
            bench.round(round, measured)?;
        }
    }
    stdout().write_all(results.text().as_bytes())?;
    bench.args.outputs.write(&results.to_json()?, &results.page(), &results.markdown())?;
    Ok(true)
}

impl Bench {
    fn new(args: Args) -> Result<Self> {
        let mut servers = ServerSpec::known(&args.tidemill)?;
        servers.extend(args.more.iter().cloned());
        if let Some(name) =
            args.servers.iter().chain([&args.reference]).find(|name| spec(&servers, name).is_none())
        {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no server {name}")));
        }
        let usual = Duration::from_millis(if args.quick { 500 } else { 2000 });
        let settings = Settings {
            rounds: args.rounds.unwrap_or(if args.quick { 3 } else { 7 }).max(1),
            warmup_seconds: args.warm_up.as_secs_f64(),
            seconds: args.duration.unwrap_or(usual).as_secs_f64(),
            generator_threads: args.generator_threads,
            tries: if args.quick { 1 } else { args.tries },
        };
        Ok(Bench { args, servers, settings })
    }

    /// Which servers are measured under which workloads; nothing measured yet but the half load's rate.
    fn plan(&self) -> Result<Vec<Measured>> {
        let usual = WORKLOADS.iter().filter(|workload| match self.args.scaling {
            true => workload.is_point_of_scaling(),
            false => workload.usual,
        });
        let workloads: Vec<&'static Workload> =
            if self.args.workloads.is_empty() { usual.collect() } else { self.args.workloads.clone() };
        let plan = |workload: &'static Workload| {
            let rate = match workload.pace {
                Pace::Closed => None,
                Pace::Reconnect => Some(RECONNECTS),
                Pace::HalfLoad => Some(self.half_load(workload)?),
            };
            let names = self.names(workload);
            let servers = names.into_iter().map(|name| Row { name, runs: Vec::new() }).collect();
            Ok(Measured { workload, rate, servers })
        };
        workloads.into_iter().map(plan).collect()
    }

    fn names(&self, workload: &Workload) -> Vec<String> {
        if !self.args.servers.is_empty() {
            return self.args.servers.clone();
        }
        let few = |name: &str| [OURS, FLOOR, &self.args.reference].contains(&name);
        let usual =
            workload.servers.iter().filter(|name| !(self.args.quick || self.args.scaling) || few(name));
        let mut names: Vec<String> = usual.map(|name| (*name).to_owned()).collect();
        names.extend(self.args.more.iter().map(|spec| spec.name.clone()));
        names
    }

    /// Half of what the reference can take from as many connections.
    fn half_load(&self, workload: &Workload) -> Result<f64> {
        let flat_out = Workload { pace: Pace::Closed, ..workload.clone() };
        let measure = |_| Ok(self.measure(&flat_out, &self.args.reference, None)?.requests_per_second);
        let rates = (0..CALIBRATIONS).map(measure).collect::<Result<Vec<f64>>>()?;
        Ok((median(&rates) / 2.0 / 100.0).round() * 100.0)
    }

    fn round(&self, round: usize, measured: &mut Measured) -> Result<()> {
        let count = measured.servers.len();
        for turn in 0..count {
            let row = &mut measured.servers[(round + turn) % count];
            let run = self.measure(measured.workload, &row.name, measured.rate)?;
            let Settings { rounds, .. } = self.settings;
            let [rate, cpu, p99] = [Metric::Rate, Metric::Cpu, Metric::P99].map(|metric| run.value(metric));
            eprintln!(
                "round {}/{rounds} {:10} {:15} {rate:7.0}/s, CPU {cpu:5.2} µs, p99 {p99:6.0} µs{}",
                round + 1,
                measured.workload.name,
                row.name,
                if run.is_clean(measured.workload.pace) { "" } else { ", disturbed" },
            );
            row.runs.push(run);
        }
        Ok(())
    }

    fn measure(&self, workload: &Workload, name: &str, rate: Option<f64>) -> Result<Run> {
        let spec = spec(&self.servers, name).ok_or(ErrorKind::NotFound)?;
        let named = |error: Error| Error::new(error.kind(), format!("{} {name}: {error}", workload.name));
        // Neighbours that the workload wants are no disturbance that another try would be spared.
        let tries = if workload.beside == Beside::Nobody { self.settings.tries } else { 1 };
        let attempt = || measure(spec, workload, &self.args.tidemill, self.settings, rate);
        measure_quietly(tries, workload.pace, attempt).map_err(named)
    }
}

/// The last server of that name: one from the command line hides one that is known.
fn spec<'a>(servers: &'a [ServerSpec], name: &str) -> Option<&'a ServerSpec> {
    servers.iter().rev().find(|spec| spec.name == name)
}

/// How this program was called, as its script, which says `compare --tidemill PATH` before what it was told.
fn command() -> String {
    let words: Vec<String> =
        ["scripts/bench.sh".to_owned()].into_iter().chain(std::env::args().skip(4)).collect();
    words.join(" ")
}

//! `tidemill simulate`: arguments, the runs, and what is shown and written of them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tidemill::controller::Policy;
use tidemill::simulate::{self, Machine, Rule, Run, Setup, Workload};
use tidemill::{Config, MAX_WORKERS};

use super::files::Later;
use super::{Failure, duration, print};
use crate::report::simulation;

/// Longest time to simulate.
const MAX_SIMULATED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Plays the pool's rule against a workload in simulated time: exact, and an hour of load in about a second.
///
/// WORKLOAD is one of step, trickle, ramp, sawtooth, onoff, noise, waves, cpu, mixed, stuck and flood, or streams joined by ` + `,
/// each a load and what one of its requests costs:
///
/// `clients=STAGES`, each sends its next request when it has the reply to the one before; `rate=STAGES`, requests per second (at
/// random with `poisson`); `burst=COUNT@TIME,..`; then `cpu=DUR` and `block=DUR`, which with `exponential` are means.
///
/// Stages: `hold:V@DUR`, `ramp:A..B@DUR`, `step:A..BxN@DUR`, `sawtooth:A..BxN@DUR`, `onoff:A..BxN@DUR`, `random:A..BxN@DUR`.
///
/// Example: tidemill simulate 'clients=ramp:0..64@30s,hold:64@30s block=50ms + rate=hold:100@60s cpu=1ms' --rule all
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SimulateArgs {
    /// A name, or a description of what comes
    workload: String,

    /// Least workers [default: 4]
    #[arg(long, value_name = "N", env = "MIN_THREADS", value_parser = workers)]
    min_threads: Option<usize>,

    /// Most workers [default: 32]
    #[arg(long, value_name = "N", env = "MAX_THREADS", value_parser = workers)]
    max_threads: Option<usize>,

    /// Workers that the pool may differ from demand by without being resized
    #[arg(long, value_name = "N", env = "TOLERANCE", default_value_t = Config::default().tolerance, value_parser = tolerance)]
    tolerance: usize,

    /// The pool shrinks to the highest demand within this time
    #[arg(long, value_name = "DUR", value_parser = duration::positive, default_value = "5s")]
    keep_alive: Duration,

    /// CPUs to simulate [default: those that this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    cores: Option<u32>,

    /// How long to simulate; a shorter workload starts again [default: one pass]
    #[arg(short, long, value_name = "DUR", value_parser = duration::positive)]
    duration: Option<Duration>,

    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Whose rule decides: tidemill, jdk, tokio, dotnet, php-fpm, squid, roadrunner, assignment (see `simulate::Rule` in the
    /// crate's docs for their sources), or `all`; several are run one after the other and compared
    #[arg(long, value_name = "RULES", value_delimiter = ',', default_value = "tidemill")]
    rule: Vec<Rules>,

    /// Write a page with demand, workers and each decision
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone)]
struct Rules(Vec<Rule>);

impl std::str::FromStr for Rules {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" { Ok(Rules(Rule::ALL.to_vec())) } else { text.parse().map(|rule| Rules(vec![rule])) }
    }
}

fn tolerance(text: &str) -> Result<usize, String> {
    let tolerance = text.parse().ok().filter(|tolerance| *tolerance <= MAX_WORKERS);
    tolerance.ok_or_else(|| format!("it is a number from 0 to {MAX_WORKERS}"))
}

fn workers(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MAX_WORKERS).contains(count));
    count.ok_or_else(|| format!("it is a number from 1 to {MAX_WORKERS}"))
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Document<'a> {
    tidemill: &'static str,
    workload: &'a str,
    min_threads: usize,
    max_threads: usize,
    tolerance: usize,
    keep_alive_seconds: f64,
    cores: usize,
    seed: u64,
    seconds: f64,
    runs: &'a [Run],
}

pub(crate) fn run(args: &SimulateArgs) -> Result<ExitCode, Failure> {
    let unreadable = |error| Failure::usage(format!("the workload cannot be read: {error}"));
    let workload: Workload = args.workload.parse().map_err(unreadable)?;
    let (min_threads, max_threads) = super::pool_bounds(args.min_threads, args.max_threads);
    if min_threads > max_threads {
        return Err(Failure::usage(format!(
            "--min-threads is {min_threads}, but must be at most --max-threads, which is {max_threads}"
        )));
    }
    let duration = args.duration.unwrap_or_else(|| workload.duration());
    if duration > MAX_SIMULATED {
        return Err(Failure::usage("--duration must be at most 7days"));
    }
    let policy = Policy::new(min_threads, max_threads, args.tolerance, args.keep_alive);
    let cores = args.cores.map_or_else(available_cores, |cores| cores as usize);
    let machine = Machine { cores, ..Machine::default() };
    let mut rules: Vec<Rule> = Vec::new();
    for rule in args.rule.iter().flat_map(|rules| &rules.0) {
        if !rules.contains(rule) {
            rules.push(*rule);
        }
    }
    // A path that cannot be written to is better known before an hour is simulated than after it.
    let file = args.report.as_deref().map(Later::open).transpose()?;
    let setup = |rule| Setup { rule, machine, seed: args.seed, ..Setup::new(policy, duration) };
    let runs: Vec<Run> = rules.into_iter().map(|rule| simulate::run(&setup(rule), &workload)).collect();

    let pool = format!(
        "min {min_threads}, max {max_threads}, tolerance {}, keep-alive {}, {cores} cores, {}",
        args.tolerance,
        humantime::format_duration(args.keep_alive),
        humantime::format_duration(duration),
    );
    let text = if args.json {
        let document = Document {
            tidemill: env!("CARGO_PKG_VERSION"),
            workload: &args.workload,
            min_threads,
            max_threads,
            tolerance: args.tolerance,
            keep_alive_seconds: args.keep_alive.as_secs_f64(),
            cores,
            seed: args.seed,
            seconds: duration.as_secs_f64(),
            runs: &runs,
        };
        serde_json::to_string(&document)? + "\n"
    } else {
        format!("{}\n{pool}\n\n{}", args.workload, simulation::text(&runs))
    };
    let printed = print(&text);
    if let Some(file) = file {
        file.write(&simulation::page(&args.workload, &pool, &runs).html()?)?;
    }
    printed?;
    Ok(ExitCode::SUCCESS)
}

fn available_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

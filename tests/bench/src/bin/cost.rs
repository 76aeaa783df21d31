//! What a request, a connection and idling cost, in figures that do not drift with the machine's load;
//! `scripts/cost.sh` builds what it needs.

#![allow(clippy::print_stderr, reason = "a program that tells how far it is")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{Error, ErrorKind, Result, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use clap::{Parser, ValueEnum};
use serde::Serialize;
use serde_json::json;
use tidemill_bench::flood::{Amount, Flood};
use tidemill_bench::idle::{Idle, observe};
use tidemill_bench::machine::{Machine, Switches, raise_file_limit};
use tidemill_bench::server::ServerSpec;
use tidemill_bench::syscalls::{Counter, Counting, Counts};
use tidemill_bench::workload::Workload;

/// Requests of two runs whose difference is what the requests between them take: starting, connecting and stopping are
/// the same in both.
#[derive(Clone, Copy)]
struct Runs {
    few: u64,
    many: u64,
}

/// Enough to be in the steady state for seconds at one connection; times the requests pipelined.
const COUNTED: Runs = Runs { few: 20_000, many: 220_000 };

/// How long a flood may take.
const FLOOD_TIMEOUT: Duration = Duration::from_secs(60);

/// System calls per request that the table would show as 0.0000.
const NEGLIGIBLE: f64 = 0.000_05;

/// Under valgrind everything takes fifty times as long.
const EMULATED: Runs = Runs { few: 4_000, many: 24_000 };

impl Runs {
    fn per_request(self, few: u64, many: u64) -> f64 {
        (many as f64 - few as f64) / (self.many - self.few) as f64
    }
}

/// Counts what servers need for a request, for an idle connection, and for nothing at all
#[derive(Debug, Parser)]
#[command(name = "scripts/cost.sh", version)]
struct Args {
    /// Servers to look at
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "tidemill,tokio,floor")]
    servers: Vec<String>,
    /// Another server, as NAME=COMMAND with {port} in it
    #[arg(long = "server", value_name = "NAME=COMMAND", value_parser = ServerSpec::parse)]
    more: Vec<ServerSpec>,
    /// Loads under which requests are looked at
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "1x1,64x1,1000x1,64x16")]
    #[arg(value_parser = Workload::named)]
    workloads: Vec<&'static Workload>,
    /// What to count
    #[arg(long, value_delimiter = ',', default_value = "calls,instructions,idle")]
    only: Vec<Part>,
    /// Connections that are open while nothing happens
    #[arg(long, value_name = "N", default_value = "10000")]
    connections: usize,
    /// How long nothing happens
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = humantime::parse_duration)]
    rest: Duration,
    /// Counts system calls with strace although perf works
    #[arg(long)]
    strace: bool,
    /// Writes all figures
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The binary to look at, which also generates the load
    #[arg(long, value_name = "PATH", default_value = "target/release/tidemill")]
    tidemill: PathBuf,
    /// Another binary to generate the load
    #[arg(long, value_name = "PATH")]
    generator: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// System calls and context switches per request
    Calls,
    /// User instructions per request
    Instructions,
    /// Memory per idle connection, wake-ups when idle
    Idle,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cost: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What one request of one workload costs one server.
#[derive(Debug, Default, Serialize)]
struct PerRequest {
    /// System calls by name.
    calls: BTreeMap<String, f64>,
    /// The server's threads went to sleep, or had to give way.
    context_switches: Option<f64>,
    /// User instructions, under valgrind.
    instructions: Option<f64>,
}

/// A server's figures.
#[derive(Debug, Serialize)]
struct Costs {
    server: String,
    /// By name of the workload.
    per_request: BTreeMap<&'static str, PerRequest>,
    idle: Option<Idle>,
}

struct Cost<'a> {
    args: &'a Args,
    flood: Flood,
    counter: Option<Counter>,
    has_valgrind: bool,
    /// A folder for what tools write.
    scratch: PathBuf,
}

fn run(args: &Args) -> Result<()> {
    raise_file_limit()?;
    let mut servers = ServerSpec::known(&args.tidemill)?;
    servers.retain(|spec| args.servers.contains(&spec.name));
    servers.extend(args.more.iter().cloned());
    if let Some(name) = args.servers.iter().find(|name| !servers.iter().any(|spec| spec.name == **name)) {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no server {name}")));
    }
    let scratch = std::env::temp_dir().join(format!("tidemill-cost-{}", std::process::id()));
    fs::create_dir(&scratch)?;
    let cost = Cost {
        args,
        flood: Flood {
            tidemill: args.generator.as_ref().unwrap_or(&args.tidemill).clone(),
            threads: 1,
            warmup: Duration::ZERO,
            duration: FLOOD_TIMEOUT,
        },
        counter: if args.strace { Some(Counter::Strace) } else { Counter::available() },
        has_valgrind: Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_ok(),
        scratch: scratch.clone(),
    };
    let costs: Result<Vec<Costs>> = servers.iter().map(|spec| cost.of(spec)).collect();
    fs::remove_dir_all(scratch)?;
    let table = Table { costs: costs?, workloads: &args.workloads, notes: cost.notes() };
    write!(stdout(), "{table}")?;
    if let Some(path) = &args.json {
        fs::write(path, format!("{:#}\n", table.to_json()))?;
    }
    Ok(())
}

impl Cost<'_> {
    fn of(&self, spec: &ServerSpec) -> Result<Costs> {
        let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", spec.name));
        let wants = |part| self.args.only.contains(&part);
        let mut per_request = BTreeMap::new();
        let looks_at_requests = wants(Part::Calls) || wants(Part::Instructions);
        for workload in self.args.workloads.iter().filter(|_| looks_at_requests) {
            eprintln!("{} {}", spec.name, workload.name);
            let mut found = PerRequest::default();
            if wants(Part::Calls) {
                self.count_calls(spec, workload, &mut found).map_err(named)?;
            }
            if wants(Part::Instructions) && self.has_valgrind {
                found.instructions = Some(self.instructions(spec, workload).map_err(named)?);
            }
            per_request.insert(workload.name, found);
        }
        let idle = if wants(Part::Idle) {
            eprintln!("{} idle", spec.name);
            let server = spec.start(&[], &[])?;
            let idle = observe(&server, self.args.connections, self.args.rest).map_err(named)?;
            server.stop()?;
            Some(idle)
        } else {
            None
        };
        Ok(Costs { server: spec.name.clone(), per_request, idle })
    }

    /// Counts calls and context switches during two floods of one server.
    fn count_calls(&self, spec: &ServerSpec, workload: &Workload, found: &mut PerRequest) -> Result<()> {
        let wrapper = workload.wrapper()?;
        let server = spec.start(&workload.server_options(), &wrapper)?;
        let scale = u64::from(workload.pipeline);
        let runs = Runs { few: scale * COUNTED.few, many: scale * COUNTED.many };
        let count = |requests| -> Result<Counts> {
            let counting =
                self.counter.map(|counter| counter.attach(server.pid(), &self.scratch)).transpose()?;
            let mut words = counting.as_ref().map(|counting| counting.wrapper().to_vec()).unwrap_or_default();
            words.extend(wrapper.iter().cloned());
            let before = Switches::of(server.pid())?;
            let amount = Amount::Requests(requests);
            self.flood.start(server.address, workload, amount, None, &words)?.report()?;
            let switches = Switches::of(server.pid())?.since(before).total();
            let counts = counting.map(Counting::finish).transpose()?.unwrap_or_default();
            Ok(Counts { switches: counts.switches.or(Some(switches)), ..counts })
        };
        let (few, many) = (count(runs.few)?, count(runs.many)?);
        server.stop()?;
        let each = |(name, many): (String, u64)| {
            let few = few.calls.get(&name).copied().unwrap_or_default();
            (name, runs.per_request(few, many))
        };
        found.calls = many.calls.into_iter().map(each).filter(|(_, count)| *count >= NEGLIGIBLE).collect();
        found.context_switches =
            few.switches.zip(many.switches).map(|(few, many)| runs.per_request(few, many));
        Ok(())
    }

    fn instructions(&self, spec: &ServerSpec, workload: &Workload) -> Result<f64> {
        let few = self.instructions_of(spec, workload, EMULATED.few)?;
        let many = self.instructions_of(spec, workload, EMULATED.many)?;
        Ok(EMULATED.per_request(few, many))
    }

    /// User instructions from start to stop of a server that answered so many requests.
    fn instructions_of(&self, spec: &ServerSpec, workload: &Workload, requests: u64) -> Result<u64> {
        let file = self.scratch.join("callgrind");
        let wrapper = [
            "valgrind",
            "--quiet",
            "--tool=callgrind",
            // Threads take turns; without this the same one may get them all.
            "--fair-sched=yes",
            &format!("--callgrind-out-file={}", file.display()),
        ]
        .map(str::to_owned);
        let server = spec.start(&workload.server_options(), &wrapper)?;
        let running = self.flood.start(server.address, workload, Amount::Requests(requests), None, &[])?;
        running.report()?;
        server.stop()?;
        total_instructions(&file)
    }

    fn notes(&self) -> Vec<&'static str> {
        let counter = match self.counter {
            Some(Counter::Perf) => "System calls: perf, on the kernel's trace points.",
            Some(Counter::Strace) => {
                "System calls: strace, which slows the server; more requests share a call than without it."
            }
            None => "System calls: neither perf nor strace works here.",
        };
        let valgrind = if self.has_valgrind {
            "Instructions: of user space, callgrind, the difference of two runs; threads take turns under it."
        } else {
            "Instructions: there is no valgrind here."
        };
        let memory = "Memory: heap and stacks that are resident, per connection.";
        let wants = |part| self.args.only.contains(&part);
        let notes = [(Part::Calls, counter), (Part::Instructions, valgrind), (Part::Idle, memory)];
        notes.into_iter().filter(|(part, _)| wants(*part)).map(|(_, note)| note).collect()
    }
}

/// The sum at the end of callgrind's file.
fn total_instructions(file: &Path) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let sum =
        |line: &str| line.strip_prefix("totals: ").or(line.strip_prefix("summary: "))?.trim().parse().ok();
    text.lines().rev().find_map(sum).ok_or_else(|| Error::other("callgrind wrote no sum"))
}

/// All figures: a block of rows for each workload, a column for each server.
struct Table<'a> {
    costs: Vec<Costs>,
    workloads: &'a [&'static Workload],
    notes: Vec<&'static str>,
}

impl Table<'_> {
    fn to_json(&self) -> serde_json::Value {
        json!({
            "date": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            "machine": Machine::this(),
            "servers": self.costs,
            "notes": self.notes,
        })
    }

    /// One row, unless no server has the figure.
    fn row(
        &self,
        out: &mut String,
        name: &str,
        digits: usize,
        figure: impl Fn(&Costs) -> Option<f64>,
    ) -> fmt::Result {
        let figures: Vec<Option<f64>> = self.costs.iter().map(figure).collect();
        if figures.iter().all(Option::is_none) {
            return Ok(());
        }
        write!(out, "  {name:38}")?;
        for figure in figures {
            match figure {
                Some(figure) => write!(out, "{figure:>16.digits$}")?,
                None => write!(out, "{:>16}", "-")?,
            }
        }
        writeln!(out)
    }

    fn requests(&self, out: &mut String, workload: &'static Workload) -> fmt::Result {
        if self.costs.iter().all(|costs| costs.per_request.is_empty()) {
            return Ok(());
        }
        writeln!(out, "{}: {}, per request", workload.name, workload.about)?;
        let of = |costs: &Costs, figure: fn(&PerRequest) -> Option<f64>| {
            costs.per_request.get(workload.name).and_then(figure)
        };
        self.row(out, "user instructions", 0, |costs| of(costs, |found| found.instructions))?;
        self.row(out, "context switches", 4, |costs| of(costs, |found| found.context_switches))?;
        let sum = |found: &PerRequest| (!found.calls.is_empty()).then(|| found.calls.values().sum());
        self.row(out, "system calls", 4, |costs| of(costs, sum))?;
        let found = || self.costs.iter().filter_map(|costs| costs.per_request.get(workload.name));
        let names: BTreeSet<&String> = found().flat_map(|found| found.calls.keys()).collect();
        for name in names {
            let calls = |costs: &Costs| costs.per_request.get(workload.name)?.calls.get(name).copied();
            self.row(out, &format!("  {name}"), 4, calls)?;
        }
        writeln!(out)
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        write!(text, "{:40}", "")?;
        self.costs.iter().try_for_each(|costs| write!(text, "{:>16}", costs.server))?;
        writeln!(text)?;
        for workload in self.workloads {
            self.requests(&mut text, workload)?;
        }
        if let Some(idle) = self.costs.iter().find_map(|costs| costs.idle) {
            writeln!(text, "{} idle connections", idle.connections)?;
            let of = |figure: fn(&Idle) -> f64| move |costs: &Costs| costs.idle.as_ref().map(figure);
            self.row(&mut text, "resident bytes each, just connected", 0, of(|idle| idle.fresh_bytes))?;
            self.row(&mut text, "resident bytes each, after a reply", 0, of(|idle| idle.used_bytes))?;
            self.row(&mut text, "context switches per second", 1, of(|idle| idle.switches_per_second))?;
            writeln!(text)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(text, "{note}"))?;
        out.write_str(&text)
    }
}

//! `tidemill load`: arguments, the run, and what is shown and written of it.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::load::asserts::Asserts;
use crate::load::merge::merge_runs;
use crate::load::progress::Bar;
use crate::load::result::summarize;
use crate::load::{self, Interrupts, Plan, Tail};
use crate::report::load::{LoadReport, Verdict};
use crate::report::load_page;
use crate::report::server_stats::ServerStats;
use tidemill::protocol::Advertise;
use tidemill::schedule::{Curve, Shape, Subject};

use super::{USAGE, fail};

const FAILED: u8 = 1;
/// Without -n, -d or --shape a run takes this long.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// Descriptors that a run needs beside one for each connection: standard streams, polls, timers, files.
const SPARE_DESCRIPTORS: usize = 32;

/// Floods a HELO server and judges every reply.
///
/// Every request carries a text of its own, and every reply is compared byte for byte with what it must be. Without --rate the
/// loop is closed: a reply makes room for the next request. With it the loop is open: requests are due at fixed moments, and
/// latency counts from there, however late they could be sent.
///
/// Exit status: 0 when every reply was right and every assert holds, 1 when not, or when the run was not possible, 2 for wrong usage.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The server, as HOST:PORT
    #[arg(
        value_name = "HOST:PORT",
        required_unless_present = "merge",
        default_value = "",
        hide_default_value = true
    )]
    target: String,

    /// Connections to keep open
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,

    /// Requests to send in all, warm-up not counted [default: no limit]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,

    /// How long to send, warm-up not counted [default: 10s, or one pass of the shape, unless -n is given]
    #[arg(short, long, value_name = "DUR", value_parser = positive)]
    duration: Option<Duration>,

    /// Requests outstanding on each connection at most
    #[arg(short = 'P', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pipeline: u32,

    /// Open loop: requests that become due each second, over all connections [default: closed loop]
    #[arg(short, long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,

    /// Open loop: requests come at random (a Poisson process), not evenly spaced
    #[arg(long)]
    poisson: bool,

    /// Rate or connections over time: `rate=` or `connections=`, then stages KIND:FROM..TO@DUR separated by commas
    ///
    /// The kinds: `hold:50@5s`; `ramp:0..1000@10s`; `step:100..400x4@8s` (4 levels); `sawtooth:0..500x3@9s` (3 teeth);
    /// `onoff:0..2000x5@10s` (5 times TO, then FROM); `random:10..20x40@10s` (40 whole numbers from FROM to TO, by --seed). With -d longer than all stages together they start again.
    #[arg(long, value_name = "SHAPE")]
    shape: Option<Shape>,

    /// Open a new connection for every request; latency counts from the start of connecting
    #[arg(long)]
    reconnect: bool,

    /// Send for this long first, without counting it in rate and latency (wrong replies count at any time)
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = humantime::parse_duration)]
    warm_up: Duration,

    /// Threads that send
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,

    /// A connection that owes a reply and is silent for this long is given up, and its requests are lost
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = positive)]
    timeout: Duration,

    /// The server is going to stop gracefully: what it never read is no loss if its replies are a clean prefix
    #[arg(long)]
    expect_stop: bool,

    /// The IP address in the replies [default: the server's]
    #[arg(long, value_name = "IP")]
    advertise_ip: Option<IpAddr>,

    /// The port in the replies [default: the server's]
    #[arg(long, value_name = "PORT")]
    advertise_port: Option<u16>,

    /// The student id in the replies
    #[arg(long, value_name = "TEXT", default_value = "16336617", env = "STUDENT_ID")]
    student_id: String,

    /// Seed of everything random: the run's tag in the requests, and --poisson [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// What the run must fulfil, such as 'p99<20ms,lost=0'; may be given more than once
    ///
    /// Times: p50, p99, p99.9 and so on, mean, max, generator_cpu (for each reply). Numbers: rate (replies a second), sent, right, wrong,
    /// reordered, duplicated, lost, unread, unasked, opened, refused, reset, closed_early, errors (all of these).
    /// Relations: < <= = >= >
    #[arg(long, value_name = "ASSERTS")]
    assert: Vec<Asserts>,

    /// Write one JSON document with everything to standard output, instead of the table
    #[arg(long)]
    json: bool,

    /// Write a page with charts to this file; it is complete in itself and works without network
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Draw the server's own statistics into the report: what `tidemill serve --stats-every` printed meanwhile
    #[arg(long, value_name = "FILE", requires = "report")]
    stats: Option<PathBuf>,

    /// Draw another run under this one in the report: a document that --json wrote
    #[arg(long, value_name = "OTHER.json", requires = "report")]
    compare: Option<PathBuf>,

    /// Instead of sending, add up the documents that --json wrote of runs at the same time; give it once for each
    #[arg(long, value_name = "RUN.json", conflicts_with = "target")]
    merge: Vec<PathBuf>,
}

fn positive(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("it must be more than 0".to_owned()) } else { Ok(duration) }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.001..=1e8).contains(rate));
    rate.ok_or_else(|| "it must be a number from 0.001 to 100000000".to_owned())
}

/// Runs the subcommand.
pub(crate) fn run(args: &LoadArgs) -> ExitCode {
    // A file that cannot be read is better known before the run than after it.
    let other = match args.compare.as_deref().map(document).transpose() {
        Ok(other) => other,
        Err(message) => return fail(FAILED, &message),
    };
    let report = if args.merge.is_empty() {
        match plan(args) {
            Ok(plan) => flood(args, &plan),
            Err((status, message)) => return fail(status, &message),
        }
    } else {
        merged(&args.merge)
    };
    match report.and_then(|report| finish(args, &report, other.as_ref())) {
        Ok(status) => status,
        Err(message) => fail(FAILED, &message),
    }
}

/// Reads what `--json` wrote.
fn document(path: &Path) -> Result<LoadReport, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text)
        .map_err(|error| format!("{}: not what --json writes: {error}", path.display()))
}

fn merged(paths: &[PathBuf]) -> Result<LoadReport, String> {
    let mut reports = paths.iter().map(|path| document(path));
    let mut sum = reports.next().ok_or("nothing to merge")??;
    for report in reports {
        merge_runs(&mut sum, &report?);
    }
    Ok(sum)
}

fn plan(args: &LoadArgs) -> Result<Plan, (u8, String)> {
    let addresses = resolve(&args.target)?;
    let usage = |message: &str| Err((USAGE, message.to_owned()));
    let shape_of = |subject| args.shape.as_ref().filter(|shape| shape.subject == subject);
    if args.rate.is_some() && shape_of(Subject::Rate).is_some() {
        return usage("--rate cannot be used with a --shape of the rate");
    }
    let mut random = args.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
    let mut drawn = |shape: &Shape| shape.curve.clone().drawn(&mut random);
    let rate = shape_of(Subject::Rate).map(&mut drawn).or(args.rate.map(Curve::constant));
    if args.poisson && rate.is_none() {
        return usage("--poisson needs --rate or a --shape of the rate");
    }
    if args.reconnect && args.pipeline > 1 {
        return usage("--reconnect cannot be used with --pipeline");
    }
    let connection_curve = shape_of(Subject::Connections).map(&mut drawn);
    let connections = connection_curve
        .as_ref()
        .map_or(u64::from(args.connections), |curve| crate::load::whole(curve.highest().ceil()));
    let connections = usize::try_from(connections).ok().filter(|&connections| connections <= 1_000_000);
    let Some(connections) = connections else { return usage("--shape takes up to 1000000 connections") };
    let shape_length = args.shape.as_ref().map(|shape| Duration::from_secs_f64(shape.curve.seconds()));
    let default_duration = shape_length.or_else(|| args.requests.is_none().then_some(DEFAULT_DURATION));
    Ok(Plan {
        target: args.target.clone(),
        addresses,
        tail: Tail {
            advertise: Advertise { ip: args.advertise_ip, port: args.advertise_port },
            student_id: args.student_id.clone(),
        },
        connections,
        pipeline: args.pipeline as usize,
        requests: args.requests,
        duration: args.duration.or(default_duration),
        warm_up: args.warm_up,
        rate,
        poisson: args.poisson,
        connection_curve,
        reconnect: args.reconnect,
        threads: args.threads,
        timeout: args.timeout,
        expect_stop: args.expect_stop,
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
    })
}

/// All addresses of the target, in the order in which to try them.
fn resolve(target: &str) -> Result<Vec<SocketAddr>, (u8, String)> {
    if !target.contains(':') {
        return Err((USAGE, format!("`{target}` is not HOST:PORT")));
    }
    let addresses = target.to_socket_addrs().map_err(|error| {
        let status = if error.kind() == io::ErrorKind::InvalidInput { USAGE } else { FAILED };
        (status, format!("{target}: {error}"))
    })?;
    // `localhost` means the IPv4 address where there is one: that is where a server listens by default.
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    if addresses.is_empty() {
        return Err((FAILED, format!("{target}: no address")));
    }
    Ok(addresses)
}

fn flood(args: &LoadArgs, plan: &Plan) -> Result<LoadReport, String> {
    let interrupts = Interrupts::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The first ends the run, the second also the wait for what is outstanding; then one more ends the program.
        let enough = Arc::clone(&interrupts.enough);
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(FAILED), enough)
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupts.came)))
            .map_err(|error| format!("cannot handle signals: {error}"))?;
    }
    let needed = plan.connections + SPARE_DESCRIPTORS;
    let limit = super::files::raise_limit(needed);
    if limit < needed {
        return Err(format!(
            "{needed} file descriptors are needed, and the limit is {limit}: raise `ulimit -n`"
        ));
    }
    let bar = Bar::new();
    let mut told = false;
    let outcome = load::run(plan, &interrupts, &mut |progress| {
        bar.show(progress);
        if interrupts.any() && !std::mem::replace(&mut told, true) {
            bar.say("tidemill: interrupted: waiting for the replies that are on their way; again, and it ends at once");
        }
    });
    bar.clear();
    interrupts.run_is_over();
    let outcome = outcome.map_err(|fatal| format!("{}: {fatal}", args.target))?;
    let asserts: Vec<_> = args.assert.iter().flat_map(|asserts| asserts.0.iter().cloned()).collect();
    Ok(summarize(plan, args.shape.as_ref().map(Shape::to_string), &outcome, &asserts))
}

fn finish(args: &LoadArgs, report: &LoadReport, other: Option<&LoadReport>) -> Result<ExitCode, String> {
    if let Some(path) = &args.report {
        let html = page(args, report, other)?;
        fs::write(path, html).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let text = if args.json {
        serde_json::to_string(report).map_err(|error| format!("cannot write JSON: {error}"))? + "\n"
    } else {
        report.text()
    };
    io::stdout().lock().write_all(text.as_bytes()).map_err(|error| format!("cannot write: {error}"))?;
    Ok(match report.verdict {
        Verdict::Ok | Verdict::Invalid => ExitCode::SUCCESS,
        Verdict::Failed => ExitCode::from(FAILED),
    })
}

fn page(args: &LoadArgs, report: &LoadReport, other: Option<&LoadReport>) -> Result<String, String> {
    let measured_from = report.started_unix_seconds + report.warm_up_seconds;
    let server = match &args.stats {
        None => None,
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Some(ServerStats::read(&text, measured_from).within(0.0, report.seconds))
        }
    };
    let page = load_page::page(report, other, server.as_ref());
    page.html().map_err(|error| format!("cannot write the report: {error}"))
}

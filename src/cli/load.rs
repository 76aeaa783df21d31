//! `tidemill load`: arguments, the run, and what is shown and written of it.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::load::asserts::{Assert, Asserts};
use crate::load::find::find;
use crate::load::merge::{merge_runs, objection};
use crate::load::progress::Progress;
use crate::load::protocol::{Protocol, Tail};
use crate::load::result::{judge, summarize};
use crate::load::{self, Interrupts, Plan, Polling};
use crate::report::load::{LoadReport, Verdict};
use crate::report::load_page;
use crate::report::server_stats::ServerStats;
use tidemill::protocol::Advertise;
use tidemill::schedule::{Curve, MAX_RATE, Shape, Subject};

use super::bar::Bar;
use super::files::{Later, Source};
use super::{FAILED, Failure, duration, print};

/// Without -n, -d or --shape a run takes this long.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// Options that say how to send. Not --student-id: the environment may have set it for others.
const OF_SENDING: [&str; 21] = [
    "target",
    "connections",
    "requests",
    "duration",
    "pipeline",
    "rate",
    "poisson",
    "shape",
    "reconnect",
    "warm_up",
    "threads",
    "timeout",
    "expect_stop",
    "advertise_ip",
    "advertise_port",
    "request",
    "expect",
    "expect_lines",
    "greeting",
    "seed",
    "find",
];

/// Descriptors that a run needs beside one for each connection and what its threads wait with: standard streams, files.
const SPARE_DESCRIPTORS: usize = 32;

/// Floods a server and judges every reply: one of HELO, or with --request and --expect one of any line protocol.
///
/// Every request carries a text of its own, and every reply is compared byte for byte with what it must be. Without --rate the
/// loop is closed: a reply makes room for the next request. With it the loop is open: requests are due at fixed moments, and
/// latency counts from there, however late they could be sent.
///
/// CTRL-C ends a run early, with the account of what was done; again, and replies that are on their way are not waited for.
///
/// Of an option that is given twice the last one counts, but for --assert and --merge, which add up.
///
/// Exit status: 0 when every reply was right and every assert holds, 1 when not, when --find has no answer, or when the run was not
/// possible, 2 for wrong usage.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
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
    #[arg(short, long, value_name = "DUR", value_parser = duration::positive)]
    duration: Option<Duration>,

    /// Requests outstanding on each connection at most
    #[arg(short = 'P', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pipeline: u32,

    /// Open loop: requests that become due each second, over all connections, 0.001 to 10000000 [default: closed loop]
    ///
    /// Latency counts from when a request was due, also where it waited for a connection: there is no coordinated omission.
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

    /// Open a new connection for every request; latency counts from the start of connecting, with --rate from when it was due
    #[arg(long)]
    reconnect: bool,

    /// Send for this long first, without counting it in rate and latency (wrong replies count at any time)
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = duration::parse)]
    warm_up: Duration,

    /// Threads that send
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,

    /// A connection on which no request is answered for this long is given up, and its requests are lost
    ///
    /// Whatever the server does, a run ends within its duration, this, and a second.
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = duration::positive)]
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

    /// Flood another line protocol than HELO: what a request is, such as 'SET k{n} v{n}'
    ///
    /// {n} is the request's number, which no other request of the run has. A request ends in \n; for \r\n write \r at its end. Other
    /// escapes: \n, \t, \\, \xNN, and \{ for a brace that begins no number.
    #[arg(long, value_name = "TEXT", requires = "expect", conflicts_with_all = ["advertise_ip", "advertise_port"])]
    request: Option<String>,

    /// What the reply must be, such as '+OK' or '250 *'
    ///
    /// {n} is the number of the request, {line} the request itself, * at the end of a line the rest of that line (\* is a star). A reply of
    /// several lines is written with \n. Ends of lines may be \n or \r\n. With {n} or {line} in it every reply is known
    /// to be that of its request; without, replies are matched in their order. A line of more than 4 MiB is wrong.
    #[arg(long, value_name = "TEXT", requires = "request")]
    expect: Option<String>,

    /// Lines in a reply; those that --expect does not have may be anything [default: as many as --expect has]
    #[arg(long, value_name = "N", requires = "expect", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    expect_lines: Option<u32>,

    /// What the server says first on each connection, as in --expect, such as '220 *'; requests are sent after it
    #[arg(long, value_name = "TEXT", requires = "request")]
    greeting: Option<String>,

    /// Seed of everything random: the run's tag in the requests, and --poisson [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// What the run must fulfil, such as 'p99<20ms,lost=0'; may be given more than once
    ///
    /// Times: p50, p99, p99.9 and so on, mean, max, generator_cpu (for each reply). Numbers, of the measured part: rate (replies a
    /// second), offered, unsent, sent, right; of the whole run, with the warm-up: unread, opened, wrong, reordered, duplicated, lost,
    /// unasked, refused, not_let_in, reset, closed_early, errors (all of these from wrong on). Relations: < <= = >= >
    #[arg(long, value_name = "ASSERTS")]
    assert: Vec<Asserts>,

    /// Look for the highest rate that keeps this, such as 'p99<20ms': about a minute of open loops of 3 s (or -d) each, from --rate on
    ///
    /// The answer is an interval of 2 %: up to its lower end it holds, at its upper end it does not, twice. Where the
    /// generator itself does not keep up, or the search is interrupted, there is no answer, and the exit status is 1. It does not go
    /// down to rates at which a step has too few requests within 10 s (or -d), such as 120 a second for p99. Where the server takes so
    /// little that a percentile is too rare to be known in the time, such as p99.9 below 800 a second, that is said at once, and which
    /// -d is long enough.
    #[arg(long, value_name = "ASSERTS", conflicts_with_all = ["shape", "requests", "assert", "expect_stop"])]
    find: Option<Asserts>,

    /// Write one JSON document with everything to standard output, instead of the table
    #[arg(long)]
    json: bool,

    /// Write a page with charts to this file; it is complete in itself and works without network
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,

    /// Draw the server's own statistics into the report: what `tidemill serve --stats-every` printed meanwhile, in a file or
    /// through a pipe, which is not waited for; the first 256 MiB
    #[arg(long, value_name = "FILE", requires = "report")]
    stats: Option<PathBuf>,

    /// Draw another run under this one in the report: a document that --json wrote
    #[arg(long, value_name = "OTHER.json", requires = "report")]
    compare: Option<PathBuf>,

    /// Instead of sending, add up the documents that --json wrote of runs at the same time; give it once for each
    #[arg(long, value_name = "RUN.json", conflicts_with_all = OF_SENDING)]
    merge: Vec<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.001..=MAX_RATE).contains(rate));
    rate.ok_or_else(|| format!("it must be a number from 0.001 to {MAX_RATE}"))
}

/// Runs the subcommand.
pub(crate) fn run(args: &LoadArgs) -> Result<ExitCode, Failure> {
    // Files that cannot be read or written are better known before the run than after it.
    let other = args.compare.as_deref().map(document).transpose()?;
    let stats = args.stats.as_deref().map(Source::open).transpose()?;
    let page = args.report.as_deref().map(Later::open).transpose()?;
    let asserts: Vec<_> = args.assert.iter().flat_map(|asserts| asserts.0.iter().cloned()).collect();
    let report = if args.merge.is_empty() {
        flood(args, plan(args)?, &asserts)?
    } else {
        merged(&args.merge, &asserts)?
    };
    // Whatever becomes of the page, the result is known.
    let printed = print(&if args.json { report.json()? } else { report.text() });
    if let Some(page) = page {
        // Without them there is a page all the same.
        let said = stats.as_ref().map(Source::text).transpose();
        let text = said.as_ref().map_or(None, Option::as_deref);
        page.write(&html(&report, other.as_ref(), text)?)?;
        said?;
    }
    printed?;
    let has_answer = args.find.is_none() || report.find.is_none_or(|find| find.rate.is_some());
    Ok(match report.verdict {
        Verdict::Ok | Verdict::Invalid if has_answer => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILED),
    })
}

/// Reads what `--json` wrote.
fn document(path: &Path) -> Result<LoadReport, Failure> {
    let text = fs::read_to_string(path).map_err(|error| Failure::of_file(path, error))?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::of_file(path, format!("not what --json writes: {error}")))
}

fn merged(paths: &[PathBuf], asserts: &[Assert]) -> Result<LoadReport, Failure> {
    let reports = paths.iter().map(|path| document(path)).collect::<Result<Vec<_>, _>>()?;
    if let Some((place, why)) = objection(&reports) {
        return Err(Failure::of_file(&paths[place], why));
    }
    let mut reports = reports.into_iter();
    let mut sum = reports.next().ok_or_else(|| Failure::usage("nothing to merge"))?;
    reports.for_each(|report| merge_runs(&mut sum, &report));
    judge(&mut sum, asserts);
    Ok(sum)
}

fn plan(args: &LoadArgs) -> Result<Plan, Failure> {
    let addresses = resolve(&args.target)?;
    let usage = |message: &str| Err(Failure::usage(message));
    let shape_of = |subject| args.shape.as_ref().filter(|shape| shape.subject == subject);
    if args.rate.is_some() && shape_of(Subject::Rate).is_some() {
        return usage("--rate cannot be used with a --shape of the rate");
    }
    let mut random = args.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
    let mut drawn = |shape: &Shape| shape.curve.clone().drawn(&mut random);
    let rate = shape_of(Subject::Rate).map(&mut drawn).or(args.rate.map(Curve::constant));
    if args.poisson && rate.is_none() && args.find.is_none() {
        return usage("--poisson needs --rate or a --shape of the rate");
    }
    if args.find.as_ref().is_some_and(|find| find.0.iter().all(|assert| assert.most_time().is_none())) {
        return usage("--find needs a latency with an upper bound, such as p99<20ms");
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
    let default_duration =
        shape_length.or_else(|| (args.requests.is_none() && args.find.is_none()).then_some(DEFAULT_DURATION));
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let advertise = Advertise { ip: args.advertise_ip, port: args.advertise_port };
    let tail = Tail { advertise, student_id: args.student_id.clone() };
    let protocol = match (&args.request, &args.expect) {
        (Some(request), Some(expect)) => {
            let lines = args.expect_lines.map(|lines| lines as usize);
            Protocol::custom(request, expect, lines, args.greeting.as_deref()).map_err(Failure::usage)?
        }
        _ => Protocol::helo(load::tag(seed), tail, addresses[0]),
    };
    Ok(Plan {
        target: args.target.clone(),
        addresses,
        protocol,
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
        seed,
    })
}

/// All addresses of the target, in the order in which to try them.
pub(super) fn resolve(target: &str) -> Result<Vec<SocketAddr>, Failure> {
    if !target.contains(':') {
        return Err(Failure::usage(format!("`{target}` is not HOST:PORT")));
    }
    let addresses = target.to_socket_addrs().map_err(|error| {
        let message = format!("{target}: {error}");
        if error.kind() == io::ErrorKind::InvalidInput {
            Failure::usage(message)
        } else {
            Failure::failed(message)
        }
    })?;
    // `localhost` means the IPv4 address where there is one: that is where a server listens by default.
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    if addresses.is_empty() {
        return Err(Failure::failed(format!("{target}: no address")));
    }
    Ok(addresses)
}

fn flood(args: &LoadArgs, plan: Plan, asserts: &[Assert]) -> Result<LoadReport, Failure> {
    let interrupts = Interrupts::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The first ends the run, the second also the wait for what is outstanding; then one more ends the program.
        let enough = Arc::clone(&interrupts.enough);
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(FAILED), enough)
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupts.came)))
            .map_err(|error| Failure::failed(format!("cannot handle signals: {error}")))?;
    }
    let needed = plan.connections + plan.threads() as usize * Polling::DESCRIPTORS + SPARE_DESCRIPTORS;
    let limit = super::files::raise_limit(needed);
    if limit < needed {
        return Err(Failure::failed(format!(
            "{needed} file descriptors are needed, and the limit is {limit}: raise `ulimit -n`"
        )));
    }
    let bar = Bar::new();
    let mut told = false;
    let mut watch = |progress: &Progress| {
        bar.show(progress);
        if interrupts.any() && !std::mem::replace(&mut told, true) {
            bar.say("tidemill: interrupted: waiting for the replies that are on their way; again, and it ends at once");
        }
    };
    let report = match &args.find {
        None => load::run(&plan, &interrupts, &mut watch)
            .map(|outcome| summarize(&plan, args.shape.as_ref().map(Shape::to_string), &outcome, asserts)),
        Some(wanted) => find(plan, &wanted.0, &interrupts, &mut watch, &mut |step| bar.tell(&step.text())),
    };
    bar.clear();
    interrupts.run_is_over();
    report.map_err(|error| Failure::failed(format!("cannot send: {error}")))
}

/// The page, with what the server said meanwhile.
fn html(report: &LoadReport, other: Option<&LoadReport>, stats: Option<&str>) -> Result<String, Failure> {
    let measured_from = report.started_unix_seconds + report.warm_up_seconds;
    let server = stats.map(|text| ServerStats::read(text, measured_from).within(0.0, report.seconds));
    let page = load_page::page(report, other, server.as_ref());
    page.html().map_err(|error| Failure::failed(format!("cannot write the report: {error}")))
}

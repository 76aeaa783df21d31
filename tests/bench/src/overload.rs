//! Overload: an open loop at 1, 2, 5 and 10 times what the server can do, by clients that give up after a time.
//!
//! Every request has a connection of its own (`tidemill load --reconnect`), opened when it is due whatever became of the others,
//! and closed when its client gives up. Goodput is the rate of right replies. It must be at least 95 % of its peak at every
//! rate, with `--queue-timeout` at half the clients' patience; then the load falls to a half, and a second later all must be as if
//! nothing had been.

use std::io::Result;
use std::thread;
use std::time::Duration;

use clap::Parser;

use crate::flood;
use crate::report::load::{LoadReport, Point};
use crate::server::{Server, serve};

/// Workers, and how long each blocks for a request: a capacity of 100 a second, whatever the machine.
const WORKERS: u32 = 4;
const DELAY_MILLIS: u32 = 40;
const CAPACITY: f64 = WORKERS as f64 * 1000.0 / DELAY_MILLIS as f64;
/// What is offered, in capacities.
const FACTORS: [f64; 4] = [1.0, 2.0, 5.0, 10.0];
/// Load after the overload, in capacities, and for how long.
const AFTERWARDS: f64 = 0.5;
const AFTERWARDS_SECONDS: f64 = 3.0;
/// Begin of each run that does not count, while queues fill.
const WARM_UP_SECONDS: f64 = 1.0;
/// A reply later than this is not what a server gives that has nothing else to do.
const NORMAL_MICROS: f64 = 4.0 * 1000.0 * DELAY_MILLIS as f64;
const GOAL: f64 = 0.95;
const RECOVERY_GOAL_SECONDS: f64 = 1.0;

/// Measures goodput beyond capacity
#[derive(Debug, Parser)]
#[command(bin_name = "scripts/overload.sh")]
pub(crate) struct Args {
    /// The program
    #[arg(long, value_name = "FILE")]
    tidemill: String,
    /// How long each rate is offered
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "6s")]
    duration: Duration,
    /// How long clients wait for a reply; the server's --queue-timeout is half of it
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "500ms")]
    patience: Duration,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    println!("capacity {CAPACITY}/s; clients give up after {:?}; {:?} a rate", args.patience, args.duration);
    let mut holds = true;
    for queue_timeout in [Some(args.patience / 2), None] {
        let name = queue_timeout.map_or("off".to_owned(), |timeout| format!("{}ms", timeout.as_millis()));
        println!("\n--queue-timeout {name}");
        println!(
            "| offered | goodput/s | of peak | told busy | gave up | wrong | slowest | normal again after |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
        let mut rows = Vec::new();
        for factor in FACTORS {
            let mut server = start(args, &name)?;
            let report = offer(args, &server, factor)?;
            // Its last statistics are 50 ms old.
            thread::sleep(Duration::from_millis(200));
            let busy = server.figure("/requests_late_total");
            if queue_timeout.is_some() {
                // Else it has work left for long, which nobody waits for.
                holds &= server.stop()?.success();
            }
            rows.push(Row::new(factor, &report, busy, args.duration.as_secs_f64()));
        }
        let peak = rows.iter().map(|row| row.goodput).fold(0.0, f64::max);
        for row in &rows {
            row.show(peak);
            let recovers = row.recovered.is_some_and(|after| after <= RECOVERY_GOAL_SECONDS);
            holds &= row.wrong == 0.0 && (queue_timeout.is_none() || row.goodput >= GOAL * peak && recovers);
        }
    }
    Ok(holds)
}

fn start(args: &Args, queue_timeout: &str) -> Result<Server> {
    let options = format!(
        "--log-level off --stats-every 50ms --min-threads {WORKERS} --max-threads {WORKERS} \
         --handler-delay {DELAY_MILLIS}ms --queue-timeout {queue_timeout}"
    );
    Server::start(&mut serve(&args.tidemill, &options))
}

/// Offers so many times its capacity, and then what it can do easily. It fails, because not every reply is right.
fn offer(args: &Args, server: &Server, factor: f64) -> Result<LoadReport> {
    let (rate, afterwards, seconds) = (factor * CAPACITY, AFTERWARDS * CAPACITY, args.duration.as_secs_f64());
    // A connection for each request of the run: none waits for another, and their failures are not taken for the end.
    let connections = rate * seconds + afterwards * AFTERWARDS_SECONDS;
    let options = format!(
        "--reconnect --shape rate=hold:{rate}@{seconds}s,hold:{afterwards}@{AFTERWARDS_SECONDS}s -c {connections:.0} --timeout {}ms",
        args.patience.as_millis()
    );
    flood::report(flood::start(&[], &args.tidemill, server.address, &options)?)
}

/// What came of one rate.
struct Row {
    factor: f64,
    goodput: f64,
    busy: f64,
    gave_up: u64,
    wrong: f64,
    slowest_micros: f64,
    /// When something went wrong, or was slow, for the last time after the overload, in seconds. `None`: until the end.
    recovered: Option<f64>,
}

impl Row {
    fn new(factor: f64, report: &LoadReport, busy: f64, overload_seconds: f64) -> Row {
        let during = report.series.iter().filter(|row| row.t >= WARM_UP_SECONDS && row.t < overload_seconds);
        let slowest = |row: &Point| row.max_us.unwrap_or_default();
        let right: u64 = during.clone().map(|row| row.right).sum();
        let afterwards = report.series.iter().filter(|row| row.t >= overload_seconds);
        let odd = afterwards.filter(|row| row.errors > 0 || slowest(row) > NORMAL_MICROS);
        let last = odd.map(|row| row.t - overload_seconds + report.series_step_seconds).fold(0.0, f64::max);
        Row {
            factor,
            goodput: right as f64 / (overload_seconds - WARM_UP_SECONDS),
            busy,
            gave_up: report.total.lost,
            wrong: report.total.wrong as f64 - busy,
            slowest_micros: during.map(slowest).fold(0.0, f64::max),
            recovered: Some(last).filter(|last| *last < AFTERWARDS_SECONDS - NORMAL_MICROS / 1e6),
        }
    }

    fn show(&self, peak: f64) {
        let Row { factor, goodput, busy, gave_up, wrong, slowest_micros, recovered } = self;
        let again = recovered.map_or("never".to_owned(), |after| format!("{:.0} ms", after * 1e3));
        let (of_peak, slowest) = (goodput / peak * 100.0, slowest_micros / 1e3);
        println!(
            "| {factor} × | {goodput:.1} | {of_peak:.1} % | {busy} | {gave_up} | {wrong} | {slowest:.0} ms | {again} |"
        );
    }
}

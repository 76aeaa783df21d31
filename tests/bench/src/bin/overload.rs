//! Overload: an open loop at 1, 2, 5 and 10 times what the server can do, by clients that give up after a time.
//!
//! Every request has a connection of its own, sent when it is due whatever became of the others. Goodput is the rate of right
//! replies that came before the client gave up. It must be at least 95 % of its peak at every rate, with `--queue-timeout` at
//! half the clients' patience; then the load falls to a half, and a second later all must be as if nothing had been.

use std::io::Result;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use tidemill_bench::server::ServerSpec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time;

/// Workers, and how long each blocks for a request: a capacity of 100 a second, whatever the machine.
const WORKERS: u32 = 4;
const DELAY: Duration = Duration::from_millis(40);
const CAPACITY: f64 = WORKERS as f64 * 1000.0 / 40.0;
/// What is offered, in capacities.
const FACTORS: [f64; 4] = [1.0, 2.0, 5.0, 10.0];
/// Load after the overload, in capacities.
const AFTERWARDS: f64 = 0.5;
const AFTERWARDS_FOR: Duration = Duration::from_secs(3);
/// Begin of each run that does not count, while queues fill.
const WARM_UP: Duration = Duration::from_secs(1);
/// A reply later than this is not what a server gives that has nothing else to do.
const NORMAL: Duration = Duration::from_millis(4 * 40);
const GOAL: f64 = 0.95;
const RECOVERY_GOAL: Duration = Duration::from_secs(1);

/// Goodput beyond capacity.
#[derive(Debug, Parser)]
struct Args {
    /// The program
    #[arg(long, value_name = "FILE")]
    tidemill: PathBuf,
    /// How long each rate is offered
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "6s")]
    duration: Duration,
    /// How long clients wait for a reply; the server's --queue-timeout is half of it
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "500ms")]
    patience: Duration,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Right,
    Busy,
    GaveUp,
    Wrong,
}

/// When a request was due, counted from the start of its run, how it ended, and after how long.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    due: Duration,
    end: End,
    took: Duration,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("overload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    println!("capacity {CAPACITY}/s; clients give up after {:?}; {:?} a rate", args.patience, args.duration);
    let mut holds = true;
    for queue_timeout in [Some(args.patience / 2), None] {
        let name = queue_timeout.map_or("off".to_owned(), |timeout| format!("{}ms", timeout.as_millis()));
        println!("\n--queue-timeout {name}");
        println!(
            "| offered | goodput/s | of peak | busy/s | gave up/s | wrong | p50 | p99 | normal again after |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
        let mut rows = Vec::new();
        for factor in FACTORS {
            let server = start(args, &name)?;
            let phases = [(factor * CAPACITY, args.duration), (AFTERWARDS * CAPACITY, AFTERWARDS_FOR)];
            let outcomes = offer(&runtime, server.address, args.patience, &phases);
            if queue_timeout.is_some() {
                holds &= server.stop()?.success();
            }
            // Else it has work left for long, which nobody waits for.
            rows.push(Row::new(factor, &outcomes, args.duration));
        }
        let peak = rows.iter().map(|row| row.goodput).fold(0.0, f64::max);
        for row in &rows {
            row.show(peak);
            let recovers = row.recovered.is_some_and(|after| after <= RECOVERY_GOAL);
            holds &= row.wrong == 0 && (queue_timeout.is_none() || row.goodput >= GOAL * peak && recovers);
        }
    }
    Ok(holds)
}

fn start(args: &Args, queue_timeout: &str) -> Result<tidemill_bench::server::Server> {
    let command = [
        args.tidemill.display().to_string(),
        "serve".to_owned(),
        "{port}".to_owned(),
        format!("--min-threads={WORKERS}"),
        format!("--max-threads={WORKERS}"),
        format!("--handler-delay={}ms", DELAY.as_millis()),
        format!("--queue-timeout={queue_timeout}"),
        "--log-level=off".to_owned(),
    ];
    let spec = ServerSpec { name: "tidemill".to_owned(), command: command.to_vec(), announces: true };
    spec.start(&[], &[])
}

/// Offers so many requests a second for so long, evenly spaced, one phase right after the other, and waits for the last.
fn offer(
    runtime: &Runtime,
    server: SocketAddr,
    patience: Duration,
    phases: &[(f64, Duration)],
) -> Vec<Outcome> {
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    runtime.block_on(async {
        let (start, mut requests, mut begin) = (Instant::now(), Vec::new(), Duration::ZERO);
        for (rate, duration) in phases {
            for number in 0.. {
                let within = Duration::from_secs_f64(f64::from(number) / rate);
                if within >= *duration {
                    break;
                }
                let due = begin + within;
                time::sleep_until((start + due).into()).await;
                let outcomes = Arc::clone(&outcomes);
                requests.push(tokio::spawn(async move {
                    // From when it was due: who is late in sending has waited already.
                    let left = (start + due + patience).saturating_duration_since(Instant::now());
                    let end = time::timeout(left, ask(server)).await;
                    let end = end.map_or(End::GaveUp, |end| end.unwrap_or(End::Wrong));
                    let took = start.elapsed().saturating_sub(due);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(Outcome { due, end, took });
                }));
            }
            begin += *duration;
        }
        for request in requests {
            drop(request.await);
        }
    });
    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *outcomes)
}

/// One request on a connection of its own, which a client that gives up closes as any program does.
async fn ask(server: SocketAddr) -> Result<End> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(b"HELO x\n").await?;
    let right = format!("HELO x\nIP:{}\nPort:{}\nStudentID:16336617\n", server.ip(), server.port());
    let mut got = Vec::new();
    while !right.as_bytes().eq(&got) {
        if got.starts_with(b"ERROR busy") && got.ends_with(b"\n") {
            return Ok(End::Busy);
        }
        if stream.read_buf(&mut got).await? == 0 {
            return Ok(End::Wrong);
        }
    }
    Ok(End::Right)
}

/// What came of one rate.
struct Row {
    factor: f64,
    goodput: f64,
    busy: f64,
    gave_up: f64,
    wrong: usize,
    p50: Duration,
    p99: Duration,
    /// When the last request was due, counted from the end of the overload, that was not answered as if nothing had been.
    /// `None`: they still were not at the end.
    recovered: Option<Duration>,
}

impl Row {
    fn new(factor: f64, outcomes: &[Outcome], duration: Duration) -> Row {
        let counted = |it: &&Outcome| it.due >= WARM_UP && it.due < duration;
        let rate = |end| {
            let count = outcomes.iter().filter(counted).filter(|it| it.end == end).count();
            count as f64 / duration.saturating_sub(WARM_UP).as_secs_f64()
        };
        let right = outcomes.iter().filter(counted).filter(|it| it.end == End::Right);
        let mut took: Vec<Duration> = right.map(|it| it.took).collect();
        took.sort_unstable();
        let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or_default();
        let afterwards = outcomes.iter().filter(|it| it.due >= duration);
        let last = afterwards
            .filter(|it| it.end != End::Right || it.took > NORMAL)
            .map(|it| it.due - duration)
            .max();
        Row {
            factor,
            goodput: rate(End::Right),
            busy: rate(End::Busy),
            gave_up: rate(End::GaveUp),
            wrong: outcomes.iter().filter(|it| it.end == End::Wrong).count(),
            p50: at(50),
            p99: at(99),
            recovered: Some(last.unwrap_or_default()).filter(|last| *last < AFTERWARDS_FOR - NORMAL),
        }
    }

    fn show(&self, peak: f64) {
        let Row { factor, goodput, busy, gave_up, wrong, p50, p99, recovered } = self;
        let again = recovered.map_or("never".to_owned(), |after| format!("{} ms", after.as_millis()));
        let (p50, p99) = (p50.as_millis(), p99.as_millis());
        let of_peak = goodput / peak * 100.0;
        println!(
            "| {factor} × | {goodput:.1} | {of_peak:.1} % | {busy:.1} | {gave_up:.1} | {wrong} | {p50} ms | {p99} ms | {again} |"
        );
    }
}

//! The rows with the server in a process of its own: over loopback (layer L), or as the system sees it.

use std::io::{Error, Result};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Uid;
use procfs::ProcResult;
use procfs::process::{Process, all_processes};
use tidemill::client::Client;

use super::lab::Lab;
use super::rows::{Effort, KEEP_ALIVE, LIMITS, MS, ms, short_ones, trickle_to};
use super::score::{Check, Goal, Row, quantile, row};
use crate::flood::{self, load};
use crate::machine::{CpuClock, signed, switches};
use crate::report::load::LoadReport;
use crate::server::{Server, serve};
use crate::wait::wait_for;

/// A user without privileges, for the process whose threads are refused.
const NOBODY: u32 = 65_534;
/// What takes a server longer has failed.
const PATIENCE: Duration = KEEP_ALIVE.saturating_mul(4);

/// How to start the real server, which says what it does all the time.
fn served(tidemill: &str, options: &str) -> Command {
    const ALWAYS: &str = "--min-threads 2 --max-threads 64 --tolerance 2 --log-level off --stats-every 50ms";
    serve(tidemill, &format!("{ALWAYS} {options}"))
}

fn workers(server: &Server) -> f64 {
    server.figure("/pool_threads")
}

fn grown(server: &Server) -> f64 {
    server.figure("/pool_resizes_total/grow")
}

/// What was sent and not answered, or wrongly.
fn lost(report: &LoadReport) -> f64 {
    (report.total.sent - report.total.right) as f64
}

pub(crate) fn step(effort: Effort<'_>) -> Result<Row> {
    let served = Server::start(&mut served(effort.tidemill, "--handler-delay 50ms --keep-alive 300ms"))?;
    let mut last = Vec::new();
    for _ in 0..effort.rounds(20, 5) {
        wait_for("the pool comes down", PATIENCE, || workers(&served) == 2.0)?;
        let report = load(effort.tidemill, served.address, "-c 64 -n 64")?;
        last.push(report.latency_us.max / 1e3 - 50.0);
    }
    let checks = vec![
        Check::time("slowest of 64 beyond its 50 ms, p50", quantile(&mut last, 0.5), 5.0),
        Check::time("slowest of 64 beyond its 50 ms, p99", quantile(&mut last, 0.99), 15.0),
    ];
    Ok(row("step: idle → 64 at once", checks))
}

pub(crate) fn flood(effort: Effort<'_>) -> Result<Row> {
    let served = Server::start(&mut served(effort.tidemill, ""))?;
    let options = format!("-c 1000 -P 16 -d {}s", effort.seconds(8, 2).as_secs());
    let report = load(effort.tidemill, served.address, &options)?;
    thread::sleep(200 * MS);
    let checks = vec![
        Check::count("times the pool grew", grown(&served), Goal::AtMost(0.0)),
        Check::count("replies missing or wrong", lost(&report), Goal::AtMost(0.0)),
    ];
    Ok(row("trivial flood, 1000 connections, pipelined", checks))
}

/// A lab in a process of its own, which says what it does all the time.
fn lab() -> Result<Server> {
    let served = Server::start(Command::new(std::env::current_exe()?).arg("lab"))?;
    wait_for("the first statistics", PATIENCE, || !workers(&served).is_nan())?;
    Ok(served)
}

/// What that process does.
pub(crate) fn lab_child() -> Result<bool> {
    let lab = Lab::start(LIMITS)?;
    println!("listening on {}", lab.address());
    loop {
        thread::sleep(50 * MS);
        println!("{}", serde_json::to_value(lab.handle().stats())?);
    }
}

pub(crate) fn trickle(effort: Effort<'_>) -> Result<Row> {
    let served = lab()?;
    trickle_to(effort, served.address, || workers(&served))
}

pub(crate) fn mixed(effort: Effort<'_>) -> Result<Row> {
    let mut latencies = Vec::new();
    for _ in 0..effort.rounds(10, 3) {
        latencies.extend(short_ones(effort, lab()?.address)?);
    }
    let slowest = quantile(&mut latencies, 1.0);
    let checks = vec![Check::time("the slowest of the short ones, of all rounds", slowest, 10.0)];
    Ok(row("40 requests of 1 s that block, beside 200/s of 1 ms", checks))
}

pub(crate) fn refused(effort: Effort<'_>) -> Result<Row> {
    let mut command = served(effort.tidemill, "--handler-delay 50ms");
    if Uid::effective().is_root() {
        // Root may have any number of threads.
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut served = Server::start(command.stderr(Stdio::piped()))?;
    let pid = signed(served.pid())?;
    let limit = threads_beside(pid)? + 3;
    limit_threads(pid, limit)?;

    wait_for("the first statistics", PATIENCE, || !workers(&served).is_nan())?;
    let (address, seconds) = (served.address, 3.0);
    let before = served.figure("/pool_threads_refused_total");
    let limited = load(effort.tidemill, address, &format!("-c 64 -d {seconds}s"))?;
    thread::sleep(200 * MS);
    let tries = (served.figure("/pool_threads_refused_total") - before) / seconds;
    let few = workers(&served);

    let again = flood::start(&[], effort.tidemill, address, "-c 64 -d 4s")?;
    thread::sleep(Duration::from_secs(1));
    let (_, hard) = getrlimit(Resource::RLIMIT_NPROC)?;
    limit_threads(pid, hard)?;
    let back = wait_for("the pool grows again", PATIENCE, || workers(&served) >= 60.0)?;
    let lost = lost(&limited) + lost(&flood::verified(again)?);
    let failed = !served.stop()?.success();
    let panics = served.errors().iter().filter(|line| line.contains("panicked")).count();
    let checks = vec![
        Check::count("workers while threads were refused", few, Goal::AtMost(6.0)),
        Check::count("tries a second", tries, Goal::AtMost(10.0)),
        Check::count("was refused at all, tries a second", tries, Goal::AtLeast(0.3)),
        Check::count("replies missing or wrong", lost, Goal::AtMost(0.0)),
        Check::count("panics", panics as f64, Goal::AtMost(0.0)),
        Check::count("stops that dropped something", f64::from(failed), Goal::AtMost(0.0)),
        Check::time("back at 60 workers when allowed", ms(back), 1000.0),
    ];
    Ok(row("the system refuses threads", checks))
}

/// Threads that the user of process `pid` has.
fn threads_beside(pid: i32) -> Result<u64> {
    let uid = Process::new(pid).and_then(|process| process.uid()).map_err(Error::other)?;
    // One that ends meanwhile has none.
    let all = all_processes().map_err(Error::other)?.filter_map(|process| process.ok()?.status().ok());
    Ok(all.filter(|status| status.ruid == uid).map(|status| status.threads).sum())
}

/// Sets how many threads the user of process `pid` may have, for this process.
fn limit_threads(pid: i32, limit: u64) -> Result<()> {
    let mut command = Command::new("prlimit");
    if Uid::effective().is_root() {
        // A user may do this to its own processes; root needs a capability that containers lack.
        command.uid(NOBODY).gid(NOBODY);
    }
    let status = command.args([format!("--pid={pid}"), format!("--nproc={limit}:")]).status()?;
    if status.success() { Ok(()) } else { Err(Error::other("prlimit failed")) }
}

pub(crate) fn idle(effort: Effort<'_>) -> Result<Row> {
    let served = Server::start(&mut serve(effort.tidemill, "--min-threads 2 --log-level off"))?;
    // It has served somebody before.
    let mut client = Client::connect(served.address, PATIENCE)?;
    client.helo(b"x")?;
    thread::sleep(Duration::from_secs(1));
    let pid = served.pid();
    let clock = CpuClock::of(pid)?;
    let (used, before) = (clock.read()?, switches(pid)?);
    thread::sleep(effort.seconds(60, 10));
    let used = clock.read()? - used;
    let switched = switches(pid)?.saturating_sub(before);
    let checks = vec![
        Check::count("wake-ups that the kernel counts", switched as f64, Goal::AtMost(0.0)),
        Check::count("CPU time in ms", ms(used), Goal::AtMost(0.0)),
    ];
    Ok(row("idle at min", checks))
}

/// Threads started and let go in each cycle of [`churn`]: from the minimum to the maximum of every row.
const AT_ONCE: usize = LIMITS.max_threads - LIMITS.min_threads;

pub(crate) fn churn(effort: Effort<'_>) -> Result<Row> {
    let cycles = effort.rounds(100_000, 10_000).div_ceil(AT_ONCE);
    let small = LIMITS.threads(LIMITS.min_threads, LIMITS.min_threads);
    let large = LIMITS.threads(LIMITS.max_threads, LIMITS.max_threads);
    let own = || -> ProcResult<[u64; 3]> {
        let process = Process::myself()?;
        let status = process.status()?;
        Ok([status.threads, process.fd_count()? as u64, status.vmrss.unwrap_or_default()])
    };
    let own = || own().map_err(Error::other);
    // The loop, the tuner and two workers.
    let expected = own()?[0] + 4;
    let lab = Lab::start(small)?;
    let (mut first, mut worst) = (None, [0; 3]);
    for _ in 0..cycles {
        for limits in [large, small] {
            let workers = limits.min_threads;
            lab.handle().set_pool_limits(limits).map_err(Error::other)?;
            lab.wait_for_workers(workers..=workers, 6 * KEEP_ALIVE)?;
        }
        // Threads that end are still counted for a moment. One that does not end shows below.
        wait_for("they end", KEEP_ALIVE, || own().is_ok_and(|[threads, ..]| threads <= expected)).ok();
        let now = own()?;
        let first = *first.get_or_insert(now);
        for ((worst, now), first) in worst.iter_mut().zip(now).zip(first) {
            *worst = (*worst).max(now.saturating_sub(first));
        }
    }
    let resizes = lab.handle().stats().pool_resizes_total;
    let off: u64 = [resizes.grow, resizes.shrink].map(|resizes| resizes.abs_diff(cycles as u64)).iter().sum();
    let [threads, descriptors, kilobytes] = worst.map(|worst| worst as f64);
    let checks = vec![
        Check::count("threads more than after the first cycle", threads, Goal::AtMost(0.0)),
        Check::count("descriptors more", descriptors, Goal::AtMost(0.0)),
        Check::count("resizes miscounted", off as f64, Goal::AtMost(0.0)),
        Check::count("MiB of resident memory more", kilobytes / 1024.0, Goal::AtMost(2.0)),
    ];
    Ok(row("100 000 threads started and let go", checks))
}

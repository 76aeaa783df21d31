//! The rows with the server in a process of its own: over loopback (layer L), or as the system sees it.

use std::collections::HashMap;
use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::Uid;
use procfs::ProcResult;
use procfs::process::{Process, all_processes};
use serde_json::Value;
use tidemill::{Address, Handler, Helo, Kind, Reply, Request, Server as Tidemill};
use tidemill_bench::machine::{CpuClock, signed, switches};
use tidemill_bench::server::Server;

use crate::lab::Lab;
use crate::rows::{Effort, KEEP_ALIVE, LIMITS};
use crate::score::{Check, Goal, Row, quantile};

const MS: Duration = Duration::from_millis(1);
/// A user without privileges, for the process whose threads are refused.
const NOBODY: u32 = 65_534;

/// How to start the real server, which says what it does all the time.
fn served(tidemill: &Path, options: &str) -> Command {
    let mut command = Command::new(tidemill);
    command.args(["serve", "0", "--min-threads", "2", "--max-threads", "64", "--tolerance", "2"]);
    command.args(["--log-level", "off", "--stats-every", "50ms"]).args(options.split_whitespace());
    command
}

fn workers(server: &Server) -> f64 {
    server.figure("/pool_threads")
}

fn grown(server: &Server) -> f64 {
    server.figure("/pool_resizes_total/grow")
}

fn wait_for(server: &Server, what: &str, holds: impl Fn(&Server) -> bool) -> Result<Duration> {
    let begun = Instant::now();
    while !holds(server) {
        if begun.elapsed() > 4 * KEEP_ALIVE {
            return Err(Error::other(format!("it does not happen: {what}")));
        }
        thread::sleep(5 * MS);
    }
    Ok(begun.elapsed())
}

/// Runs `tidemill load` and returns its document.
fn load(tidemill: &Path, address: SocketAddr, options: &str) -> Result<Value> {
    let output = Command::new(tidemill)
        .args(["load", &address.to_string(), "--json"])
        .args(options.split_whitespace())
        .stderr(Stdio::piped())
        .output()?;
    if !output.status.success() {
        return Err(Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(Error::other)
}

fn number(document: &Value, path: &str) -> f64 {
    document.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

fn over_loopback(number: u32, workload: &'static str, checks: Vec<Check>) -> Row {
    Row { number, workload, layer: 'L', checks, series: Vec::new() }
}

pub(crate) fn step(tidemill: &Path, effort: Effort) -> Result<Row> {
    let served = Server::start(&mut served(tidemill, "--handler-delay 50ms --keep-alive 300ms"))?;
    let mut last = Vec::new();
    for _ in 0..if effort.quick { 5 } else { 20 } {
        wait_for(&served, "the pool comes down", |served| workers(served) == 2.0)?;
        let document = load(tidemill, served.address, "-c 64 -n 64")?;
        last.push(number(&document, "/latency_us/max") / 1e3 - 50.0);
    }
    let checks = vec![
        Check::time("slowest of 64 beyond its 50 ms, p50", quantile(&mut last, 0.5), 5.0),
        Check::time("slowest of 64 beyond its 50 ms, p99", quantile(&mut last, 0.99), 15.0),
    ];
    Ok(over_loopback(1, "step: idle → 64 at once", checks))
}

pub(crate) fn flood(tidemill: &Path, effort: Effort) -> Result<Row> {
    let served = Server::start(&mut served(tidemill, ""))?;
    let seconds = if effort.quick { 2 } else { 8 };
    let document = load(tidemill, served.address, &format!("-c 1000 -P 16 -d {seconds}s"))?;
    thread::sleep(200 * MS);
    let wrong = number(&document, "/total/sent") - number(&document, "/total/right");
    let checks = vec![
        Check::count("times the pool grew", grown(&served), Goal::AtMost(0.0)),
        Check::count("replies missing or wrong", wrong, Goal::AtMost(0.0)),
    ];
    Ok(over_loopback(20, "trivial flood, 1000 connections, pipelined", checks))
}

/// The HELO service on two addresses that are slow by different times, in a child process of its own.
pub(crate) fn serve_two(first: Duration, second: Duration) -> Result<()> {
    struct TwoDelays {
        helo: Helo,
        delays: Arc<Mutex<HashMap<Address, Duration>>>,
    }
    impl Handler for TwoDelays {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            let delay =
                self.delays.lock().unwrap_or_else(PoisonError::into_inner).get(request.local_addr()).copied();
            thread::sleep(delay.unwrap_or_default());
            self.helo.handle(request, reply);
        }
        fn classify(&self, line: &[u8]) -> Kind {
            self.helo.classify(line)
        }
    }
    let delays = Arc::new(Mutex::new(HashMap::new()));
    let server = Tidemill::builder(TwoDelays { helo: Helo::new(), delays: Arc::clone(&delays) })
        .pool_limits(LIMITS)
        .listen(([127, 0, 0, 1], 0).into())
        .listen(([127, 0, 0, 1], 0).into())
        .start()
        .map_err(Error::other)?;
    let handle = server.handle();
    let addresses = handle.local_addrs().to_vec();
    delays
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(addresses.iter().cloned().zip([first, second]));
    println!("listening on {}", addresses[0]);
    loop {
        thread::sleep(50 * MS);
        let mut stats = serde_json::to_value(handle.stats()).map_err(Error::other)?;
        stats["second"] = addresses[1].to_string().into();
        println!("{stats}");
    }
}

/// A server by [`serve_two`], and its second address.
fn two(first: &str, second: &str) -> Result<(Server, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe()?);
    let served = Server::start(command.args(["--serve-two", first, second]))?;
    wait_for(&served, "the first statistics", |served| !workers(served).is_nan())?;
    let last = served.statistics();
    let other = last.pointer("/second").and_then(Value::as_str).and_then(|address| address.parse().ok());
    Ok((served, other.ok_or_else(|| Error::other("the second address is not told"))?))
}

pub(crate) fn trickle(tidemill: &Path, effort: Effort) -> Result<Row> {
    let (served, second) = two("50ms", "1ms")?;
    let seconds = if effort.quick { 8 } else { 36 };
    let begun = Instant::now();
    load(tidemill, served.address, "-c 64 -n 64")?;
    let mut most = 0.0;
    let mut trickle = Command::new(tidemill)
        .args(["load", &second.to_string(), "-c", "4", "--rate", "20", "-d", &format!("{seconds}s")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    while trickle.try_wait()?.is_none() {
        if begun.elapsed() > KEEP_ALIVE + Duration::from_secs(1) {
            most = workers(&served).max(most);
        }
        thread::sleep(20 * MS);
    }
    if !trickle.wait()?.success() || most < 2.0 {
        return Err(Error::other("the trickle ended early"));
    }
    let checks = vec![Check::count("most workers from 1 s after the window", most, Goal::AtMost(4.0))];
    Ok(over_loopback(4, "64 at once, then 20/s of 1 ms", checks))
}

pub(crate) fn mixed(tidemill: &Path, effort: Effort) -> Result<Row> {
    let mut slowest = Vec::new();
    for _ in 0..if effort.quick { 3 } else { 10 } {
        let (served, second) = two("1s", "1ms")?;
        let (address, path) = (served.address, tidemill.to_owned());
        let long = thread::spawn(move || {
            thread::sleep(100 * MS);
            load(&path, address, "-c 40 -n 40")
        });
        // Nearly all of them have the long ones beside them.
        let document = load(tidemill, second, "-c 10 --rate 200 -d 1100ms")?;
        long.join().map_err(|_| Error::other("a load panicked"))??;
        slowest.push(number(&document, "/latency_us/max") / 1e3);
    }
    let checks =
        vec![Check::time("the slowest of the short ones, of all rounds", quantile(&mut slowest, 1.0), 10.0)];
    Ok(over_loopback(13, "40 requests of 1 s that block, beside 200/s of 1 ms", checks))
}

pub(crate) fn refused(tidemill: &Path, _: Effort) -> Result<Row> {
    let mut command = served(tidemill, "--handler-delay 50ms");
    if Uid::effective().is_root() {
        // Root may have any number of threads.
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut served = Server::start(command.stderr(Stdio::piped()))?;
    let pid = signed(served.pid())?;
    let limit = threads_beside(pid)? + 3;
    limit_threads(pid, limit)?;

    wait_for(&served, "the first statistics", |served| !workers(served).is_nan())?;
    let (address, seconds) = (served.address, 3.0);
    let before = served.figure("/pool_threads_refused_total");
    let document = load(tidemill, address, &format!("-c 64 -d {seconds}s"))?;
    thread::sleep(200 * MS);
    let tries = (served.figure("/pool_threads_refused_total") - before) / seconds;
    let lost = number(&document, "/total/sent") - number(&document, "/total/right");
    let limited = workers(&served);

    let path = tidemill.to_owned();
    let again = thread::spawn(move || load(&path, address, "-c 64 -d 4s"));
    thread::sleep(Duration::from_secs(1));
    let (_, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_NPROC)?;
    limit_threads(pid, hard)?;
    let back = wait_for(&served, "the pool grows again", |served| workers(served) >= 60.0)?;
    let document = again.join().map_err(|_| Error::other("a load panicked"))??;
    let lost = lost + number(&document, "/total/sent") - number(&document, "/total/right");
    let failed = !served.stop()?.success();
    let panics = served.errors().iter().filter(|line| line.contains("panicked")).count();
    let checks = vec![
        Check::count("workers while threads were refused", limited, Goal::AtMost(6.0)),
        Check::count("tries a second", tries, Goal::AtMost(10.0)),
        Check::count("was refused at all, tries a second", tries, Goal::AtLeast(0.3)),
        Check::count("replies missing or wrong", lost, Goal::AtMost(0.0)),
        Check::count("panics", panics as f64, Goal::AtMost(0.0)),
        Check::count("stops that dropped something", f64::from(failed), Goal::AtMost(0.0)),
        Check::time("back at 60 workers when allowed", back.as_secs_f64() * 1e3, 1000.0),
    ];
    Ok(over_loopback(15, "the system refuses threads", checks))
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

pub(crate) fn idle(tidemill: &Path, effort: Effort) -> Result<Row> {
    let mut command = Command::new(tidemill);
    let served = Server::start(command.args(["serve", "0", "--min-threads", "2", "--log-level", "off"]))?;
    // It has served somebody before.
    let mut stream = TcpStream::connect(served.address)?;
    stream.write_all(b"HELO x\n")?;
    stream.read_exact(&mut [0; 10])?;
    thread::sleep(Duration::from_secs(1));
    let pid = served.pid();
    let clock = CpuClock::of(pid)?;
    let (used, before) = (clock.read()?, switches(pid)?);
    thread::sleep(Duration::from_secs(if effort.quick { 10 } else { 60 }));
    let used = clock.read()? - used;
    let switched = switches(pid)?.saturating_sub(before);
    let checks = vec![
        Check::count("wake-ups that the kernel counts", switched as f64, Goal::AtMost(0.0)),
        Check::count("CPU time in ms", used.as_secs_f64() * 1e3, Goal::AtMost(0.0)),
    ];
    Ok(over_loopback(17, "idle at min", checks))
}

/// Threads started and let go in each cycle of [`churn`]: from the minimum to the maximum of every row.
const AT_ONCE: usize = LIMITS.max_threads - LIMITS.min_threads;

/// What the child of [`churn`] does: threads started and let go, in cycles.
pub(crate) fn churn_child(threads: u64) -> Result<()> {
    let small = LIMITS.threads(LIMITS.min_threads, LIMITS.min_threads);
    let large = LIMITS.threads(LIMITS.max_threads, LIMITS.max_threads);
    let lab = Lab::start(small)?;
    let own = || -> ProcResult<[u64; 3]> {
        let process = Process::myself()?;
        let status = process.status()?;
        Ok([status.threads, process.fd_count()? as u64, status.vmrss.unwrap_or_default()])
    };
    let own = || own().map_err(Error::other);
    let (mut first, mut worst) = (None, [0; 3]);
    for _ in 0..threads.div_ceil(AT_ONCE as u64) {
        for limits in [large, small] {
            let workers = limits.min_threads;
            lab.handle().set_pool_limits(limits).map_err(Error::other)?;
            lab.wait_for_workers(workers..=workers, 6 * KEEP_ALIVE)
                .ok_or_else(|| Error::other("not obeyed"))?;
        }
        // Threads that end are still counted for a moment.
        let begun = Instant::now();
        let expected = first.map_or(5, |first: [u64; 3]| first[0]);
        while own()?[0] > expected && begun.elapsed() < KEEP_ALIVE {
            thread::sleep(MS);
        }
        let now = own()?;
        let first = *first.get_or_insert(now);
        for ((worst, now), first) in worst.iter_mut().zip(now).zip(first) {
            *worst = (*worst).max(now.saturating_sub(first));
        }
    }
    let resizes = lab.handle().stats().pool_resizes_total;
    println!(
        "{}",
        serde_json::json!({"threads": worst[0], "descriptors": worst[1], "kib": worst[2], "grow": resizes.grow, "shrink": resizes.shrink})
    );
    Ok(())
}

pub(crate) fn churn(effort: Effort) -> Result<Row> {
    let threads: u64 = if effort.quick { 10_000 } else { 100_000 };
    let output = Command::new(std::env::current_exe()?).args(["--churn", &threads.to_string()]).output()?;
    if !output.status.success() {
        return Err(Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let document: Value = serde_json::from_slice(&output.stdout).map_err(Error::other)?;
    let cycles = (threads as f64 / AT_ONCE as f64).ceil();
    let off = (number(&document, "/grow") - cycles).abs() + (number(&document, "/shrink") - cycles).abs();
    let checks = vec![
        Check::count(
            "threads more than after the first cycle",
            number(&document, "/threads"),
            Goal::AtMost(0.0),
        ),
        Check::count("descriptors more", number(&document, "/descriptors"), Goal::AtMost(0.0)),
        Check::count("resizes miscounted", off, Goal::AtMost(0.0)),
        Check::count("MiB of resident memory more", number(&document, "/kib") / 1024.0, Goal::AtMost(2.0)),
    ];
    Ok(Row { layer: 'R', ..over_loopback(18, "100 000 threads started and let go", checks) })
}

/// Lets this process have as many threads and descriptors as the system allows at all.
pub(crate) fn raise_limits() -> Result<()> {
    tidemill_bench::machine::raise_file_limit()?;
    let (_, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_NPROC)?;
    setrlimit(Resource::RLIMIT_NPROC, hard, hard)?;
    Ok(())
}

//! Rows 21 to 27: tolerance as inertia, what is not known, cores that come and go, a lost worker, and a burst against tokio's.

use std::fs;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use procfs::process::Process;

use super::lab::{Client, Crowd, EPOCH, Kind, Lab};
use super::peer::Peer;
use super::rows::{
    Effort, KEEP_ALIVE, LIMITS, MS, SLEEP, grown, last_begun, ms, resizes_since, up_and_down, uptime,
};
use super::score::{Check, Goal, Row, quantile, row};
use crate::flood::load;
use crate::stats::{in_turns, median};
use crate::wait::wait_for;

pub(crate) fn slow_ramp(effort: Effort<'_>) -> Result<Row> {
    let (lab, series, unmet, unneeded) = up_and_down(effort, 1)?;
    let resizes = lab.handle().stats().pool_resizes_total;
    let most = 63.0 / (LIMITS.tolerance as f64 + 1.0) + 2.0;
    let checks = vec![
        Check::count("times it grew", resizes.grow as f64, Goal::AtMost(most)),
        Check::count("times it shrank", resizes.shrink as f64, Goal::AtMost(most)),
        Check::count("demand not met, by area", unmet, Goal::AtMost(0.05)),
        Check::count("supply not needed, by area", unneeded, Goal::AtMost(0.15)),
    ];
    Ok(Row { series, ..row("ramp 1 → 64 → 1 of requests that block", checks) })
}

pub(crate) fn inside_the_band(effort: Effort<'_>) -> Result<Row> {
    let lab = Lab::start(LIMITS.threads(4, LIMITS.max_threads).tolerance(8))?;
    // Known is how long they take.
    Client::connect(lab.address())?.ask(Kind::Sleep, 20_000)?;
    let report = load(effort.tidemill, lab.address(), "-c 10 -d 5s --request s:20000 --expect ok")?;
    let resizes = lab.handle().stats().pool_resizes_total;
    let checks = vec![
        Check::count("resizes", (resizes.grow + resizes.shrink) as f64, Goal::AtMost(0.0)),
        Check::time("the slowest request", report.latency_us.max / 1e3, 100.0),
    ];
    Ok(row("min 4, tolerance 8, 10 clients of 20 ms", checks))
}

pub(crate) fn tolerance_above_all(effort: Effort<'_>) -> Result<Row> {
    let lab = Lab::start(LIMITS.tolerance(1000))?;
    let curve = format!("hold:40@{}s", effort.seconds(3, 2).as_secs());
    let crowd = Crowd::start(lab.address(), &curve, Kind::Sleep, 5_000)?;
    thread::sleep(200 * MS);
    lab.notes.take_calls();
    crowd.finish()?;
    let mut waits: Vec<f64> = lab.notes.take_calls().iter().map(|call| ms(call.wait())).collect();
    let resizes = lab.handle().stats().pool_resizes_total;
    let checks = vec![
        Check::count("resizes", (resizes.grow + resizes.shrink) as f64, Goal::AtMost(3.0)),
        // Not for a worker: what is left is the way to one.
        Check::time("queue wait from 200 ms on, p99", quantile(&mut waits, 0.99), 2.0),
    ];
    Ok(row("min 2, tolerance 1000, 40 clients of 5 ms", checks))
}

pub(crate) fn nothing_known(effort: Effort<'_>) -> Result<Row> {
    let lab = Lab::start(LIMITS)?;
    let curve = format!("hold:0@1s,hold:48@{}s", effort.seconds(8, 4).as_secs());
    let crowd = Crowd::start(lab.address(), &curve, Kind::Burn, 1_000)?;
    wait_for("all are let in", KEEP_ALIVE, || lab.handle().stats().connections == 48)?;
    // What tells who is blocked cannot be opened.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
    let played = crowd.play(&lab);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    let most = played?.0.iter().map(|(.., workers)| *workers).fold(0.0, f64::max);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let checks = vec![Check::count("most workers", most, Goal::AtMost(cores as f64 + 3.0 + 2.0))];
    Ok(row("CPU-bound, and no descriptors left to look at threads", checks))
}

/// Lets this process, all its threads, run on these CPUs only.
fn set_cpus(list: &str) -> Result<()> {
    let pid = std::process::id().to_string();
    let done = Command::new("taskset").args(["--all-tasks", "--cpu-list", "--pid", list, &pid]).output()?;
    if done.status.success() { Ok(()) } else { Err(Error::other("taskset failed")) }
}

/// A control group of this process's own, whose quota of CPU time can be set. Left when dropped.
struct Quota {
    group: PathBuf,
    /// Where this process was before.
    root: PathBuf,
    version: u32,
}

impl Quota {
    fn new() -> Result<Quota> {
        let mut why = Error::other("none is mounted");
        let groups = Process::myself().and_then(|own| own.cgroups()).map_err(Error::other)?;
        for group in groups {
            let (version, mount) = match &group.controllers[..] {
                [] => (2, "/sys/fs/cgroup"),
                names if names.iter().any(|name| name == "cpu") => (1, "/sys/fs/cgroup/cpu"),
                _ => continue,
            };
            let root = Path::new(mount).join(group.pathname.trim_start_matches('/'));
            let group = root.join(format!("tidemill-row-{}", std::process::id()));
            let quota = Quota { group, root, version };
            match fs::create_dir(&quota.group)
                .and_then(|()| quota.set(None))
                .and_then(|()| enter(&quota.group))
            {
                Ok(()) => return Ok(quota),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// CPUs' worth of time, or as much as there is.
    fn set(&self, cpus: Option<u32>) -> Result<()> {
        const PERIOD: u32 = 100_000;
        let quota = cpus.map(|cpus| (cpus * PERIOD).to_string());
        match self.version {
            1 => fs::write(self.group.join("cpu.cfs_quota_us"), quota.as_deref().unwrap_or("-1")),
            _ => fs::write(
                self.group.join("cpu.max"),
                format!("{} {PERIOD}", quota.as_deref().unwrap_or("max")),
            ),
        }
    }
}

/// Moves this process, all its threads, into a control group.
fn enter(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}

impl Drop for Quota {
    fn drop(&mut self) {
        // Nothing is left to be done where this fails.
        drop(enter(&self.root));
        drop(fs::remove_dir(&self.group));
    }
}

pub(crate) fn cores_come_and_go(_: Effort<'_>) -> Result<Row> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Err(Error::other("this machine has but one CPU"));
    }
    let lab = Lab::start(LIMITS)?;
    let shown = || usize::try_from(lab.handle().stats().pool_cores).unwrap_or_default();
    // Longer than all that follows, unless that fails.
    let crowd = Crowd::start(lab.address(), "hold:48@12s", Kind::Burn, 1_000)?;
    let noticed =
        |wanted: usize| wait_for("it is noticed", KEEP_ALIVE, || shown() == wanted).map_or(f64::INFINITY, ms);
    let before = shown();
    set_cpus("0")?;
    let taken = noticed(1);
    set_cpus(&format!("0-{}", cores - 1))?;
    let given = noticed(cores);
    let mut checks = vec![
        Check::count("cores at the start", before as f64, Goal::AtLeast(cores as f64)),
        Check::time("all but one taken away by affinity, noticed after", taken, 1100.0),
        Check::time("given back, noticed after", given, 1100.0),
    ];
    match Quota::new() {
        Ok(quota) => {
            quota.set(Some(1))?;
            let taken = noticed(1);
            quota.set(None)?;
            let given = noticed(cores);
            checks.push(Check::time("all but one taken away by quota, noticed after", taken, 1100.0));
            checks.push(Check::time("given back, noticed after", given, 1100.0));
        }
        Err(why) => checks.push(Check::skipped(format!("by quota: no control group for it here, {why}"))),
    }
    crowd.finish()?;
    Ok(row("cores taken away and given back", checks))
}

pub(crate) fn lost_inside_the_band(effort: Effort<'_>) -> Result<Row> {
    let mut replaced = Vec::new();
    for _ in 0..effort.rounds(30, 8) {
        let lab = Lab::start(LIMITS)?;
        let mut stuck = Client::connect(lab.address())?;
        let crowd = Crowd::start(lab.address(), "hold:16@400ms", Kind::Burn, 200)?;
        thread::sleep(100 * MS);
        let before = grown(&lab);
        lab.notes.take_calls();
        // The decision's time is the server's, that of calls is not.
        let (epoch, started) = (EPOCH.elapsed(), uptime(&lab));
        stuck.send(Kind::Block, 0)?;
        // Where it is not, no decision is found.
        wait_for("it is replaced", KEEP_ALIVE, || grown(&lab) > before).ok();
        let at = resizes_since(&lab, started).first().map(|decision| decision.at);
        // The worker is lost from when it is called; before, the request waited behind the others.
        let called = lab.notes.take_calls().into_iter().find(|call| call.kind == Kind::Block);
        let lost = called.map_or(started, |call| started + call.begun.saturating_sub(epoch));
        crowd.finish()?;
        lab.release();
        stuck.receive()?;
        replaced.push(at.map_or(f64::INFINITY, |at| ms(at.saturating_sub(lost))));
    }
    let checks = vec![
        Check::time("replaced, p50", quantile(&mut replaced, 0.5), 3.0),
        Check::time("replaced, the slowest", quantile(&mut replaced, 1.0), 10.0),
    ];
    Ok(row("one worker lost to a sleep inside the band, others busy", checks))
}

/// The same five ways, in turns: the same 64 requests by the same clients to our server and to a tokio server, each warm and
/// new; and 64 closures that are given to tokio's pool without any server, which spares them sockets and a hand-over.
pub(crate) fn against_tokio(effort: Effort<'_>) -> Result<Row> {
    let keep_alive = 300 * MS;
    let (ours, theirs) = (Lab::start(LIMITS.keep_alive(keep_alive))?, Peer::start(keep_alive)?);
    let bare = Peer::start(keep_alive)?;
    let mut clients = Client::connect_many(ours.address(), 64)?;
    let mut their_clients = Client::connect_many(theirs.address, 64)?;
    let ways: [&mut dyn FnMut() -> Result<f64>; 5] = [
        &mut || {
            ours.wait_for_workers(2..=2, KEEP_ALIVE)?;
            thread::sleep(keep_alive);
            last_begun(&mut clients, &ours.notes)
        },
        &mut || {
            thread::sleep(2 * keep_alive);
            last_begun(&mut their_clients, &theirs.notes)
        },
        &mut || {
            let new = Lab::start(LIMITS)?;
            last_begun(&mut Client::connect_many(new.address(), 64)?, &new.notes)
        },
        &mut || {
            let new = Peer::start(keep_alive)?;
            last_begun(&mut Client::connect_many(new.address, 64)?, &new.notes)
        },
        &mut || bare.last_of_closures(64, SLEEP),
    ];
    let figures = in_turns(effort.rounds(30, 10), ways)?;
    let check = |our: usize, their: usize, what: &str| {
        // The first round of all knows nothing yet.
        let (ours, theirs) = (&figures[our][1..], &figures[their][1..]);
        let what = format!("{what}: {:.2} ms to {:.2}", median(ours), median(theirs));
        Check::ratio(what, ours, theirs, Goal::AtMost(1.0))
    };
    let checks = vec![
        check(0, 1, "last of 64 started, to a tokio server's"),
        check(2, 3, "the same, both new"),
        check(0, 4, "to spawn_blocking without a server"),
    ];
    Ok(row("burst of 64 against tokio's spawn_blocking", checks))
}

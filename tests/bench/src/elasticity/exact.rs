//! Rows 21 to 27: tolerance as inertia, what is not known, cores that come and go, a lost worker, and a burst against tokio's.

use std::fs::File;
use std::io::{Error, Result};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Client, Crowd, Kind, Lab, burst, collect};
use crate::rows::{
    Effort, KEEP_ALIVE, LIMITS, MS, SLEEP, areas, grown, ms, play, resizes_since, row, thinned, uptime, whole,
};
use crate::score::{Check, Goal, Row, quantile};

pub(crate) fn slow_ramp(effort: Effort) -> Result<Row> {
    let lab = Lab::start(LIMITS)?;
    let crowd = Crowd::start(lab.address(), 64, Kind::Sleep, SLEEP, Duration::ZERO)?;
    let half = effort.seconds(30, 10).as_secs_f64();
    let length = Duration::from_secs_f64(2.0 * half) + KEEP_ALIVE + Duration::from_secs(1);
    let series = play(&lab, &crowd, length, |t| whole(1.0 + 63.0 * (1.0 - (t / half - 1.0).abs()).max(0.0)));
    crowd.finish()?;
    let (unmet, unneeded) = areas(&series);
    let resizes = lab.handle().stats().pool_resizes_total;
    let most = 63.0 / (LIMITS.tolerance as f64 + 1.0) + 2.0;
    let checks = vec![
        Check::count("times it grew", resizes.grow as f64, Goal::AtMost(most)),
        Check::count("times it shrank", resizes.shrink as f64, Goal::AtMost(most)),
        Check::count("demand not met, by area", unmet, Goal::AtMost(0.05)),
        Check::count("supply not needed, by area", unneeded, Goal::AtMost(0.15)),
    ];
    Ok(Row { series: thinned(&series), ..row(21, "ramp 1 → 64 → 1 of requests that block", checks) })
}

pub(crate) fn inside_the_band(effort: Effort) -> Result<Row> {
    let lab = Lab::start(LIMITS.threads(4, LIMITS.max_threads).tolerance(8))?;
    // Known is how long they take.
    Client::connect(lab.address())?.ask(Kind::Sleep, 20_000)?;
    let crowd = Crowd::start(lab.address(), 10, Kind::Sleep, 20_000, Duration::ZERO)?;
    crowd.set_active(10);
    thread::sleep(effort.seconds(5, 5));
    let slowest = crowd.take_latencies().into_iter().max().map_or(f64::NAN, ms);
    crowd.finish()?;
    let resizes = lab.handle().stats().pool_resizes_total;
    let checks = vec![
        Check::count("resizes", (resizes.grow + resizes.shrink) as f64, Goal::AtMost(0.0)),
        Check::time("the slowest request", slowest, 100.0),
    ];
    Ok(row(22, "min 4, tolerance 8, 10 clients of 20 ms", checks))
}

pub(crate) fn tolerance_above_all(effort: Effort) -> Result<Row> {
    let lab = Lab::start(LIMITS.tolerance(1000))?;
    let crowd = Crowd::start(lab.address(), 40, Kind::Sleep, 5_000, Duration::ZERO)?;
    crowd.set_active(40);
    thread::sleep(200 * MS);
    lab.take_calls();
    thread::sleep(effort.seconds(3, 2));
    let mut waits: Vec<f64> = lab.take_calls().iter().map(|call| ms(call.wait())).collect();
    crowd.finish()?;
    let resizes = lab.handle().stats().pool_resizes_total;
    let checks = vec![
        Check::count("resizes", (resizes.grow + resizes.shrink) as f64, Goal::AtMost(3.0)),
        // Not for a worker: what is left is the way to one.
        Check::time("queue wait from 200 ms on, p99", quantile(&mut waits, 0.99), 2.0),
    ];
    Ok(row(23, "min 2, tolerance 1000, 40 clients of 5 ms", checks))
}

pub(crate) fn nothing_known(effort: Effort) -> Result<Row> {
    let lab = Lab::start(LIMITS)?;
    let crowd = Crowd::start(lab.address(), 48, Kind::Burn, 1_000, Duration::ZERO)?;
    // Every descriptor that there is: what tells who is blocked cannot be opened.
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    crowd.set_active(48);
    let mut most = 0;
    let begun = Instant::now();
    while begun.elapsed() < effort.seconds(8, 4) {
        most = most.max(lab.workers());
        thread::sleep(10 * MS);
    }
    crowd.finish()?;
    drop(taken);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let checks = vec![Check::count("most workers", most as f64, Goal::AtMost(cores as f64 + 3.0 + 2.0))];
    Ok(row(24, "CPU-bound, and no descriptors left to look at threads", checks))
}

/// Lets this process, all its threads, run on these CPUs only.
fn set_cpus(list: &str) -> Result<()> {
    let pid = std::process::id().to_string();
    let done = Command::new("taskset").args(["--all-tasks", "--cpu-list", "--pid", list, &pid]).output()?;
    if done.status.success() { Ok(()) } else { Err(Error::other("taskset failed")) }
}

pub(crate) fn cores_come_and_go(_: Effort) -> Result<Row> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Err(Error::other("this machine has but one CPU"));
    }
    let lab = Lab::start(LIMITS)?;
    let shown = || usize::try_from(lab.handle().stats().pool_cores).unwrap_or_default();
    let crowd = Crowd::start(lab.address(), 48, Kind::Burn, 1_000, Duration::ZERO)?;
    crowd.set_active(48);
    let wait_for = |wanted: usize| -> f64 {
        let begun = Instant::now();
        while shown() != wanted && begun.elapsed() < KEEP_ALIVE {
            thread::sleep(MS);
        }
        if shown() == wanted { ms(begun.elapsed()) } else { f64::INFINITY }
    };
    let before = shown();
    set_cpus("0")?;
    let taken = wait_for(1);
    set_cpus(&format!("0-{}", cores - 1))?;
    let given = wait_for(cores);
    crowd.finish()?;
    let checks = vec![
        Check::count("cores at the start", before as f64, Goal::AtLeast(cores as f64)),
        Check::time("all but one taken away, noticed after", taken, 1100.0),
        Check::time("given back, noticed after", given, 1100.0),
    ];
    Ok(row(25, "cores taken away and given back by affinity", checks))
}

pub(crate) fn lost_inside_the_band(effort: Effort) -> Result<Row> {
    let mut replaced = Vec::new();
    for _ in 0..effort.rounds(30, 8) {
        let lab = Lab::start(LIMITS)?;
        let crowd = Crowd::start(lab.address(), 16, Kind::Burn, 200, Duration::ZERO)?;
        let mut stuck = Client::connect(lab.address())?;
        crowd.set_active(16);
        thread::sleep(100 * MS);
        let before = grown(&lab);
        lab.take_calls();
        stuck.send(Kind::Block, 0)?;
        // It is lost when it is called, which the decision's time is compared with.
        let begun = uptime(&lab);
        let deadline = Instant::now() + KEEP_ALIVE;
        while grown(&lab) == before && Instant::now() < deadline {
            thread::sleep(MS / 10);
        }
        let at = resizes_since(&lab, begun).first().map(|decision| decision.at);
        crowd.finish()?;
        lab.release();
        stuck.receive()?;
        replaced.push(at.map_or(f64::INFINITY, |at| ms(at.saturating_sub(begun))));
    }
    let checks = vec![
        Check::time("replaced, p50", quantile(&mut replaced, 0.5), 3.0),
        Check::time("replaced, the slowest", quantile(&mut replaced, 1.0), 10.0),
    ];
    Ok(row(26, "one worker lost to a sleep inside the band, others busy", checks))
}

/// When the last of 64 closures that tokio blocks on began.
fn tokio_burst(runtime: &tokio::runtime::Runtime) -> Result<f64> {
    let begins: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let begun = Instant::now();
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let begins = Arc::clone(&begins);
            runtime.spawn_blocking(move || {
                begins.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                thread::sleep(Duration::from_micros(SLEEP));
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(task).map_err(Error::other)?;
    }
    let begins = begins.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(begins.iter().max().map_or(f64::NAN, |last| ms(last.saturating_duration_since(begun))))
}

fn our_burst(lab: &Lab, clients: &mut [Client]) -> Result<f64> {
    lab.take_calls();
    let begun = burst(clients, Kind::Sleep, SLEEP)?;
    collect(clients)?;
    Ok(lab.take_calls().last().map_or(f64::NAN, |call| ms(call.begun.saturating_sub(begun))))
}

pub(crate) fn against_tokio(effort: Effort) -> Result<Row> {
    let keep_alive = 300 * MS;
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_keep_alive(keep_alive).build()
    };
    let (warm_tokio, warm) = (runtime()?, Lab::start(LIMITS.keep_alive(keep_alive))?);
    let mut clients = Client::connect_many(warm.address(), 64)?;
    let (mut ours, mut fresh) = (Vec::new(), Vec::new());
    let mut theirs = Vec::new();
    for number in 0..effort.rounds(30, 10) {
        warm.wait_for_workers(2, KEEP_ALIVE).ok_or_else(|| Error::other("the pool does not come down"))?;
        thread::sleep(keep_alive);
        let new_server = || -> Result<f64> {
            let lab = Lab::start(LIMITS)?;
            let mut clients = Client::connect_many(lab.address(), 64)?;
            our_burst(&lab, &mut clients)
        };
        let (our, their, new) = if number % 2 == 0 {
            let our = our_burst(&warm, &mut clients)?;
            (our, tokio_burst(&warm_tokio)?, new_server()?)
        } else {
            let their = tokio_burst(&warm_tokio)?;
            let new = new_server()?;
            (our_burst(&warm, &mut clients)?, their, new)
        };
        // The first of all knows nothing yet.
        if number > 0 {
            ours.push(our);
        }
        fresh.push(new);
        theirs.push(their);
    }
    let their = quantile(&mut theirs, 0.5);
    let (our, new) = (quantile(&mut ours, 0.5), quantile(&mut fresh, 0.5));
    let checks = vec![
        Check::count("last of 64 started, p50 in ms", our, Goal::AtMost(their)),
        Check::count("the same on a new server", new, Goal::AtMost(their)),
    ];
    Ok(row(27, "burst of 64 against tokio's spawn_blocking", checks))
}

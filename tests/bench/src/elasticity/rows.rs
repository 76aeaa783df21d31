//! The rows of the scorecard with real threads in one process (layer R).

use std::collections::HashSet;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use tidemill::{Decision, PoolLimits};

use super::lab::{Call, Client, Crowd, EPOCH, Kind, Lab, Notes, burst, collect};
use super::score::{Check, Goal, Moment, Row, Series, quantile, row};
use crate::flood::{self, load};
use crate::stats::{column, in_turns, median};

pub(crate) const MS: Duration = Duration::from_millis(1);
/// The handler sleeps so many microseconds unless a row says otherwise.
pub(crate) const SLEEP: u64 = 50_000;
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The limits of every row unless it says otherwise.
pub(crate) const LIMITS: PoolLimits = PoolLimits::new(2, 64).tolerance(2).keep_alive(KEEP_ALIVE);

/// How long the rows take, and the program that they flood with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort<'a> {
    pub(crate) quick: bool,
    pub(crate) tidemill: &'a str,
}

impl Effort<'_> {
    pub(crate) fn seconds(self, full: u64, quick: u64) -> Duration {
        Duration::from_secs(if self.quick { quick } else { full })
    }

    pub(crate) fn rounds(self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub(crate) fn grown(lab: &Lab) -> f64 {
    lab.handle().stats().pool_resizes_total.grow as f64
}

pub(crate) fn resizes_since(lab: &Lab, start: Duration) -> Vec<Decision> {
    lab.handle().decisions().into_iter().filter(|decision| decision.at >= start).collect()
}

/// How often the pool's size changed its direction.
fn turns(decisions: &[Decision]) -> f64 {
    let grew = |decision: &Decision| decision.to > decision.from;
    decisions.windows(2).filter(|pair| grew(&pair[0]) != grew(&pair[1])).count() as f64
}

/// The server's time now.
pub(crate) fn uptime(lab: &Lab) -> Duration {
    Duration::from_secs_f64(lab.handle().stats().uptime_seconds)
}

fn waits(calls: &[Call]) -> Vec<f64> {
    calls.iter().map(|call| ms(call.wait())).collect()
}

/// A request each at once. How many ms after the first was sent the last of them began.
pub(crate) fn last_begun(clients: &mut [Client], notes: &Notes) -> Result<f64> {
    notes.take_calls();
    let begun = burst(clients, Kind::Sleep, SLEEP)?;
    collect(clients)?;
    Ok(notes.take_calls().last().map_or(f64::NAN, |call| ms(call.begun.saturating_sub(begun))))
}

pub(crate) fn step(effort: Effort<'_>) -> Result<Row> {
    let lab = Lab::start(LIMITS.keep_alive(300 * MS))?;
    let mut clients = Client::connect_many(lab.address(), 64)?;
    let (mut known, mut first, mut last) = (HashSet::new(), Vec::new(), Vec::new());
    for _ in 0..effort.rounds(40, 10) {
        lab.wait_for_workers(2..=2, KEEP_ALIVE)?;
        // Idle: the threads of the burst before have ended, not only left the pool.
        thread::sleep(50 * MS);
        let begun = burst(&mut clients, Kind::Sleep, SLEEP)?;
        collect(&mut clients)?;
        let calls = lab.notes.take_calls();
        if known.is_empty() {
            // The two that were there from the start.
            known.extend(calls.iter().take(2).map(|call| call.thread));
        }
        let new = calls.iter().find(|call| !known.contains(&call.thread));
        let new = new.ok_or_else(|| Error::other("no worker was started"))?;
        first.push(ms(new.begun.saturating_sub(begun)));
        known.extend(calls.iter().map(|call| call.thread));
        last.push(calls.last().map_or(f64::NAN, |call| ms(call.begun.saturating_sub(begun))));
    }
    // Nothing is known yet of how long a request takes.
    let mut unknown = Vec::new();
    for _ in 0..effort.rounds(20, 5) {
        let new = Lab::start(LIMITS)?;
        unknown.push(last_begun(&mut Client::connect_many(new.address(), 64)?, &new.notes)?);
    }
    let smaller = Lab::start(LIMITS)?;
    last_begun(&mut Client::connect_many(smaller.address(), 20)?, &smaller.notes)?;
    let most = smaller.handle().decisions().iter().map(|decision| decision.to).max().unwrap_or(2);
    let checks = vec![
        Check::time("first new worker at work, p50", quantile(&mut first, 0.5), 1.0),
        Check::time("last request started, p50", quantile(&mut last, 0.5), 5.0),
        Check::time("last request started, p99", quantile(&mut last, 0.99), 15.0),
        Check::time("last request started on a new server, p50", quantile(&mut unknown, 0.5), 5.0),
        Check::time("last request started on a new server, p99", quantile(&mut unknown, 0.99), 15.0),
        Check::count("most workers for a burst of 20", most as f64, Goal::AtMost(20.0)),
    ];
    Ok(row("step: idle → 64 at once", checks))
}

pub(crate) fn again(effort: Effort<'_>) -> Result<Row> {
    let lab = Lab::start(LIMITS)?;
    let mut clients = Client::connect_many(lab.address(), 64)?;
    last_begun(&mut clients, &lab.notes)?;
    let (before, mut last) = (grown(&lab), Vec::new());
    for _ in 0..effort.rounds(40, 10) {
        thread::sleep(100 * MS);
        last.push(last_begun(&mut clients, &lab.notes)?);
    }
    let checks = vec![
        Check::time("last request started, p50", quantile(&mut last, 0.5), 1.5),
        Check::time("last request started, p90", quantile(&mut last, 0.9), 1.5),
        Check::count("times the pool grew", grown(&lab) - before, Goal::AtMost(0.0)),
    ];
    Ok(row("the same again within the window", checks))
}

pub(crate) fn down(_: Effort<'_>) -> Result<Row> {
    let lab = Lab::start(LIMITS)?;
    last_begun(&mut Client::connect_many(lab.address(), 64)?, &lab.notes)?;
    let took = lab.wait_for_workers(2..=2, 3 * KEEP_ALIVE).map_or(f64::INFINITY, ms);
    let checks = vec![Check::time("at min after the last request", took, ms(KEEP_ALIVE) + 500.0)];
    Ok(row("step down 64 → 0, no traffic", checks))
}

pub(crate) fn trickle(effort: Effort<'_>) -> Result<Row> {
    let lab = Lab::start(LIMITS)?;
    trickle_to(effort, lab.address(), || lab.workers() as f64)
}

/// The row with the lab that is there, in whatever process.
pub(crate) fn trickle_to(effort: Effort<'_>, address: SocketAddr, workers: impl Fn() -> f64) -> Result<Row> {
    let (begun, length) = (Instant::now(), effort.seconds(36, 12));
    load(effort.tidemill, address, "-c 64 -n 64 --request s:50000 --expect ok")?;
    let options = format!("-c 4 --rate 20 -d {}s --request s:1000 --expect ok", length.as_secs());
    let trickle = flood::start(&[], effort.tidemill, address, &options)?;
    let (mut most, mut series): (f64, Series) = (0.0, Vec::new());
    while begun.elapsed() < length {
        let workers = workers();
        if begun.elapsed() > KEEP_ALIVE + Duration::from_secs(1) {
            most = most.max(workers);
        }
        series.push((begun.elapsed().as_secs_f64(), 1.0, workers));
        thread::sleep(50 * MS);
    }
    flood::verified(trickle)?;
    let checks = vec![Check::count("most workers from 1 s after the window", most, Goal::AtMost(4.0))];
    Ok(Row { series, ..row("64 at once, then 20/s of 1 ms", checks) })
}

/// Every tenth point is enough to draw.
pub(crate) fn thinned(series: &[Moment]) -> Series {
    series.iter().step_by(10).copied().collect()
}

/// As many clients as 64 and as few as `least` at the ends of a ramp up and down. What becomes of the pool, and the shares of
/// [`areas`].
pub(crate) fn up_and_down(effort: Effort<'_>, least: u32) -> Result<(Lab, Series, f64, f64)> {
    let lab = Lab::start(LIMITS)?;
    let half = effort.seconds(30, 10).as_secs();
    let curve = format!("ramp:{least}..64@{half}s,ramp:64..{least}@{half}s,hold:{least}@6s");
    let (series, _) = Crowd::start(lab.address(), &curve, Kind::Sleep, SLEEP)?.play(&lab)?;
    let (unmet, unneeded) = areas(&series);
    Ok((lab, thinned(&series), unmet, unneeded))
}

pub(crate) fn ramp(effort: Effort<'_>) -> Result<Row> {
    let (lab, series, unmet, unneeded) = up_and_down(effort, 0)?;
    let checks = vec![
        Check::count("demand not met, by area", unmet, Goal::AtMost(0.02)),
        Check::count("supply not needed, by area", unneeded, Goal::AtMost(0.15)),
        Check::count("changes of direction", turns(&lab.handle().decisions()), Goal::AtMost(1.0)),
    ];
    Ok(Row { series, ..row("ramp 0 → 64 → 0", checks) })
}

/// Demand that was not met, and supply beyond the highest demand of the window before, as shares of the demand.
pub(crate) fn areas(series: &[Moment]) -> (f64, f64) {
    let window = KEEP_ALIVE.as_secs_f64() * 17.0 / 16.0;
    let (mut demand, mut unmet, mut unneeded) = (0.0, 0.0, 0.0);
    for (at, (t, clients, workers)) in series.iter().enumerate() {
        let recent = series[..=at].iter().rev().take_while(|(earlier, ..)| t - earlier <= window);
        let needed = recent.map(|(_, clients, _)| *clients).fold(2.0, f64::max);
        demand += clients;
        unmet += (clients - workers).max(0.0);
        unneeded += (workers - needed).max(0.0);
    }
    (unmet / demand, unneeded / demand)
}

pub(crate) fn sawtooth(effort: Effort<'_>) -> Result<Row> {
    // All at the same time, so that what disturbs one disturbs all.
    let labs = [LIMITS, LIMITS.tolerance(0), LIMITS.threads(64, 64)].map(Lab::start);
    let [lab, intolerant, fixed] = labs;
    let (lab, intolerant, fixed) = (lab?, intolerant?, fixed?);
    let length = effort.seconds(8, 2).as_secs();
    let curve = format!("sawtooth:4..48x{}@{length}s", length / 2);
    let crowd = |lab: &Lab| Crowd::start(lab.address(), &curve, Kind::Sleep, SLEEP);
    let waits_p99 = |lab: &Lab| quantile(&mut waits(&lab.notes.take_calls()), 0.99);
    let (mut rounds, mut series) = (Vec::new(), Vec::new());
    for number in 0..effort.rounds(8, 7) {
        let crowds = [&lab, &intolerant, &fixed].map(crowd);
        let [crowd, with_intolerant, with_fixed] = crowds;
        let (with_intolerant, with_fixed) = (with_intolerant?, with_fixed?);
        let (part, mut ours) = crowd?.play(&lab)?;
        with_intolerant.finish()?;
        let mut theirs = with_fixed.finish()?;
        let from = number as f64 * length as f64;
        series.extend(part.into_iter().map(|(t, clients, workers)| (from + t, clients, workers)));
        let p99s = [&mut ours, &mut theirs].map(|latencies| quantile(latencies, 0.99));
        rounds.push([p99s[0], p99s[1], waits_p99(&intolerant), waits_p99(&fixed)]);
    }
    // The first window grows the pool.
    let values = |figure| column(&rounds[1..], figure);
    let turned = turns(&lab.handle().decisions());
    let checks = vec![
        Check::count("changes of direction", turned, Goal::AtMost(2.0)),
        // Where the top of a tooth is within the tolerance of the pool, which stays as it is then, some requests wait for a worker
        // that gets free: that is what tolerance asks for, so it must be little of what a request takes.
        Check::ratio("p99 of replies to a fixed pool of 64", &values(0), &values(1), Goal::AtMost(1.1)),
        // Without it none waits for the pool.
        Check::ratio("p99 queue wait to that, at tolerance 0", &values(2), &values(3), Goal::AtMost(1.1)),
    ];
    Ok(Row { series: thinned(&series), ..row("sawtooth 4 ↔ 48, period 2 s", checks) })
}

pub(crate) fn on_off(effort: Effort<'_>) -> Result<Row> {
    let lab = Lab::start(LIMITS)?;
    let begun = uptime(&lab);
    let seconds = effort.seconds(60, 12).as_secs();
    let curve = format!("onoff:0..64x{}@{seconds}s", seconds / 2);
    let (series, _) = Crowd::start(lab.address(), &curve, Kind::Sleep, SLEEP)?.play(&lab)?;
    let later = resizes_since(&lab, begun + Duration::from_secs(2));
    let grew = later.iter().filter(|decision| decision.to > decision.from).count();
    let checks = vec![Check::count("times it grew after the first cycle", grew as f64, Goal::AtMost(0.0))];
    Ok(Row { series: thinned(&series), ..row("on/off 64, 1 s on, 1 s off", checks) })
}

/// Resizes after the first second while the number of clients is another one of `range` every 50 ms.
fn noise(effort: Effort<'_>, range: &str) -> Result<(f64, Series)> {
    let lab = Lab::start(LIMITS)?;
    let begun = uptime(&lab);
    let seconds = effort.seconds(60, 10).as_secs();
    let curve = format!("random:{range}x{}@{seconds}s", 20 * seconds);
    let (series, _) = Crowd::start(lab.address(), &curve, Kind::Sleep, SLEEP)?.play(&lab)?;
    let late = resizes_since(&lab, begun + Duration::from_secs(1)).len() as f64;
    Ok((late, thinned(&series)))
}

pub(crate) fn within(effort: Effort<'_>) -> Result<Row> {
    let (resizes, series) = noise(effort, "14..18")?;
    let checks = vec![Check::count("resizes after the first second", resizes, Goal::AtMost(0.0))];
    Ok(Row { series, ..row("demand 16 ± 2, another every 50 ms", checks) })
}

pub(crate) fn beyond(effort: Effort<'_>) -> Result<Row> {
    let (resizes, series) = noise(effort, "10..22")?;
    let checks = vec![Check::count("resizes a minute", resizes, Goal::AtMost(6.0))];
    Ok(Row { series, ..row("demand 16 ± 6", checks) })
}

pub(crate) fn stranded(_: Effort<'_>) -> Result<Row> {
    let mut slowest: f64 = 0.0;
    for more in 1..=8 {
        let lab = Lab::start(LIMITS.threads(1, LIMITS.max_threads).tolerance(8))?;
        let mut stuck = Client::connect(lab.address())?;
        stuck.send(Kind::Block, 0)?;
        while lab.notes.take_calls().is_empty() {
            thread::sleep(MS);
        }
        let mut clients = Client::connect_many(lab.address(), more)?;
        let begun = burst(&mut clients, Kind::Sleep, 1_000)?;
        collect(&mut clients)?;
        slowest = slowest.max(ms(EPOCH.elapsed().saturating_sub(begun)));
        lab.release();
        stuck.receive()?;
    }
    let checks = vec![Check::time("the slowest reply, of 1 to 8 more", slowest, 10.0)];
    Ok(row("min 1, tolerance 8: one that never ends, then 1 to 8 more", checks))
}

pub(crate) fn nested(effort: Effort<'_>) -> Result<Row> {
    let mut slowest: f64 = 0.0;
    for _ in 0..effort.rounds(10, 3) {
        let lab = Lab::start(LIMITS)?;
        let begun = Instant::now();
        Client::connect(lab.address())?.ask(Kind::Nest, 31)?;
        slowest = slowest.max(ms(begun.elapsed()));
    }
    let checks = vec![Check::time("the slowest of all rounds", slowest, 32.0 * 5.0)];
    Ok(row("the handler calls its own server, 32 deep", checks))
}

/// What a round of a flood of all labs at the same time, so that what disturbs one disturbs all, found of each: throughput, p99 in ms, and the
/// workers near its end.
fn round<const LABS: usize>(
    effort: Effort<'_>,
    labs: [&Lab; LABS],
    clients: usize,
    length: Duration,
    asks: &str,
) -> Result<[[f64; 3]; LABS]> {
    let options = format!("-c {clients} -d {}s --request {asks} --expect ok", length.as_secs());
    let floods = labs.map(|lab| flood::start(&[], effort.tidemill, lab.address(), &options));
    thread::sleep(length.mul_f64(0.9));
    let workers = labs.map(|lab| lab.workers() as f64);
    let mut found = [[0.0; 3]; LABS];
    for ((found, flood), workers) in found.iter_mut().zip(floods).zip(workers) {
        let report = flood::verified(flood?)?;
        *found = [report.requests_per_second, quantile(&mut flood::latencies(&report), 0.99), workers];
    }
    Ok(found)
}

pub(crate) fn for_the_cpu(effort: Effort<'_>) -> Result<Row> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let limits = std::iter::once(LIMITS).chain((cores..=cores + 2).map(|fixed| LIMITS.threads(fixed, fixed)));
    let labs: Vec<Lab> = limits.map(Lab::start).collect::<Result<_>>()?;
    let mut figures = vec![Vec::new(); labs.len()];
    for _ in 0..effort.rounds(9, 6) {
        for (lab, figures) in labs.iter().zip(&mut figures) {
            figures.extend(round(effort, [lab], 48, effort.seconds(3, 1), "c:1000")?);
        }
    }
    let values = |which: usize, figure: usize| column(&figures[which], figure);
    let median = |which: usize, figure: usize| median(&values(which, figure));
    let fixed = || 1..figures.len();
    let fastest = fixed().max_by(|a, b| median(*a, 0).total_cmp(&median(*b, 0))).unwrap_or(1);
    let smoothest = fixed().min_by(|a, b| median(*a, 1).total_cmp(&median(*b, 1))).unwrap_or(1);
    let mean = values(0, 2).iter().sum::<f64>() / figures[0].len() as f64;
    let named = |what: &str, which: usize| format!("{what} to the best fixed size ({})", cores + which - 1);
    let checks = vec![
        Check::count("workers at the end of each round, mean", mean, Goal::AtMost(cores as f64 + 3.0)),
        Check::ratio(named("throughput", fastest), &values(0, 0), &values(fastest, 0), Goal::AtLeast(0.97)),
        Check::ratio(named("p99", smoothest), &values(0, 1), &values(smoothest, 1), Goal::AtMost(1.15)),
    ];
    Ok(row("CPU-bound: 1 ms of work, 1.5 × capacity", checks))
}

/// How many ms each of 200 requests a second of 1 ms takes that has 40 of 1 s beside it, in a second.
pub(crate) fn short_ones(effort: Effort<'_>, lab: SocketAddr) -> Result<Vec<f64>> {
    let short = "-c 10 --rate 200 --warm-up 100ms -d 1s --request s:1000 --expect ok";
    let short = flood::start(&[], effort.tidemill, lab, short)?;
    thread::sleep(100 * MS);
    load(effort.tidemill, lab, "-c 40 -n 40 --request s:1000000 --expect ok")?;
    Ok(flood::latencies(&flood::verified(short)?))
}

pub(crate) fn mixed(effort: Effort<'_>) -> Result<Row> {
    let mut latencies = Vec::new();
    for _ in 0..effort.rounds(5, 2) {
        latencies.extend(short_ones(effort, Lab::start(LIMITS)?.address())?);
    }
    let checks = vec![Check::time("p99 of the short ones", quantile(&mut latencies, 0.99), 10.0)];
    Ok(row("40 requests of 1 s that block, beside 200/s of 1 ms", checks))
}

pub(crate) fn lost_worker(effort: Effort<'_>) -> Result<Row> {
    let labs = [Lab::start(LIMITS)?, Lab::start(LIMITS)?];
    let mut stuck = Client::connect(labs[0].address())?;
    stuck.send(Kind::Block, 0)?;
    let flood = |lab| Ok(round(effort, [lab], 48, effort.seconds(3, 1), "c:1000")?[0][0]);
    let ways: [&mut dyn FnMut() -> Result<f64>; 2] = [&mut || flood(&labs[0]), &mut || flood(&labs[1])];
    let [with, without] = in_turns(effort.rounds(9, 6), ways)?;
    labs[0].release();
    stuck.receive()?;
    let checks = vec![Check::ratio("throughput to that without", &with, &without, Goal::AtLeast(0.98))];
    Ok(row("CPU-bound with one worker lost to a sleep", checks))
}

pub(crate) fn live_change(_: Effort<'_>) -> Result<Row> {
    let lab = Lab::start(LIMITS)?;
    // Longer than all that follows, unless that fails.
    let crowd = Crowd::start(lab.address(), "hold:40@3s", Kind::Sleep, SLEEP)?;
    // The last of them may be inside the tolerance.
    let all = 40 - LIMITS.tolerance..=40;
    lab.wait_for_workers(all.clone(), KEEP_ALIVE)?;
    let (mut up, mut down): (f64, f64) = (0.0, 0.0);
    // Below the present size; back; a minimum above demand; far below again, with a tolerance above all.
    let changes = [(2, 10, 2, 10..=10), (2, 64, 2, all), (50, 64, 2, 50..=50), (2, 3, 30, 3..=3)];
    for (min, max, tolerance, expected) in changes {
        let limits = LIMITS.threads(min, max).tolerance(tolerance);
        let grows = *expected.start() > lab.workers();
        lab.handle().set_pool_limits(limits).map_err(Error::other)?;
        let took = lab.wait_for_workers(expected, KEEP_ALIVE).map_or(f64::INFINITY, ms);
        if grows {
            up = up.max(took);
        } else {
            down = down.max(took);
        }
        thread::sleep(300 * MS);
    }
    let answered = crowd.finish()?.len();
    let stats = lab.handle().stats();
    let lost = stats.requests() as f64 - answered as f64;
    let checks = vec![
        Check::time("up", up, 50.0),
        Check::time("down, as requests of 50 ms finish", down, 100.0),
        Check::count("requests without reply", lost, Goal::AtMost(0.0)),
    ];
    Ok(row("min, max and tolerance changed under load", checks))
}

pub(crate) fn steady(effort: Effort<'_>) -> Result<Row> {
    let (lab, fixed) = (Lab::start(LIMITS)?, Lab::start(LIMITS.threads(32, 32))?);
    let measure = |_| round(effort, [&lab, &fixed], 32, effort.seconds(4, 1), "s:50000");
    let rounds = (0..effort.rounds(10, 7)).map(measure).collect::<Result<Vec<_>>>()?;
    // The first window grows the pool.
    let values = |lab: usize, figure: usize| -> Vec<f64> {
        rounds[1..].iter().map(|round| round[lab][figure]).collect()
    };
    let checks = vec![
        Check::ratio("throughput to a fixed pool of 32", &values(0, 0), &values(1, 0), Goal::AtLeast(0.98)),
        Check::ratio("p99 to a fixed pool of 32", &values(0, 1), &values(1, 1), Goal::AtMost(1.1)),
    ];
    Ok(row("steady load at half capacity", checks))
}

pub(crate) fn flood(effort: Effort<'_>) -> Result<Row> {
    let lab = Lab::start(LIMITS)?;
    let seconds = effort.seconds(5, 2).as_secs();
    let options = format!("-c 1000 -P 16 -d {seconds}s --request x --expect ok");
    let report = load(effort.tidemill, lab.address(), &options)?;
    let checks = vec![
        Check::count("times the pool grew", grown(&lab), Goal::AtMost(0.0)),
        Check::count("replies right", report.total.right as f64, Goal::AtLeast(1.0)),
    ];
    Ok(row("trivial flood, 1000 connections, pipelined", checks))
}

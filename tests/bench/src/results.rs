//! All that a benchmark found, and its tables and JSON.

use std::fmt::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::measure::{DISTURBED, Metric, Run};
use crate::scaling;
use crate::stats::Estimate;
use crate::target::{Judged, TARGETS};
use crate::workload::{Pace, Workload};

/// A whole benchmark.
#[derive(Clone, Debug)]
pub struct Results {
    /// When it began, in UTC.
    pub date: String,
    /// How it was called.
    pub command: String,
    /// What it ran on.
    pub machine: Machine,
    /// The server that the others are compared with.
    pub reference: String,
    /// How it was measured.
    pub settings: Settings,
    /// In the order of the tables.
    pub workloads: Vec<Measured>,
}

/// How a benchmark was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Settings {
    /// Measurements of each server under each workload.
    pub rounds: usize,
    /// Seconds that were flooded before each measurement.
    pub warmup_seconds: f64,
    /// Seconds that each measurement took.
    pub seconds: f64,
    /// Most measurements for one that counts.
    pub tries: u32,
    /// Threads that sent.
    pub generator_threads: u32,
}

/// One workload's measurements.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The workload.
    pub workload: &'static Workload,
    /// Requests per second that were sent, where the clock set the pace.
    pub rate: Option<f64>,
    /// Its servers.
    pub servers: Vec<Row>,
}

/// One server's measurements under one workload.
#[derive(Clone, Debug)]
pub struct Row {
    /// The server's name.
    pub name: String,
    /// One for each round.
    pub runs: Vec<Run>,
}

impl Row {
    /// One figure of all rounds.
    pub fn values(&self, metric: Metric) -> Vec<Option<f64>> {
        self.runs.iter().map(|run| run.value(metric)).collect()
    }

    /// The median of a figure.
    pub fn estimate(&self, metric: Metric) -> Option<Estimate> {
        Estimate::of(&self.values(metric).into_iter().flatten().collect::<Vec<_>>())
    }
}

impl Measured {
    /// The measurements of the server called `name`.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.servers.iter().find(|row| row.name == name)
    }

    /// What `ours` is of `theirs`, paired by rounds.
    pub fn ratio(&self, ours: &str, theirs: &str, metric: Metric) -> Option<Estimate> {
        Estimate::of_ratios(&self.row(ours)?.values(metric), &self.row(theirs)?.values(metric))
    }

    /// What the rate of `ours` is of the best that the workload allows.
    pub fn share_of_ideal(&self, ours: &str) -> Option<Estimate> {
        let ideal = self.workload.ideal_rate()?;
        let rates = self.row(ours)?.values(Metric::Rate);
        Estimate::of_ratios(&rates, &vec![Some(ideal); rates.len()])
    }

    /// Measurements that were thrown away for a neighbour's sake, and those that count although disturbed.
    fn disturbances(&self) -> (u32, usize) {
        let runs = || self.servers.iter().flat_map(|row| &row.runs);
        (runs().map(|run| run.repeated).sum(), runs().filter(|run| run.disturbance() > DISTURBED).count())
    }

    /// The pairs that the table compares: each server with the reference, and ours with the floor.
    pub fn pairs<'a>(&'a self, reference: &'a str) -> Vec<(&'a str, &'a str)> {
        let names = || self.servers.iter().map(|row| row.name.as_str());
        let against =
            |other: &'a str| names().filter(move |name| *name != other).map(move |name| (name, other));
        let floor = names().find(|name| *name == "floor" && *name != reference);
        let to_floor = floor.into_iter().flat_map(against).filter(|(name, _)| name.starts_with("tidemill"));
        let measured = names().find(|name| *name == reference);
        measured.into_iter().flat_map(against).chain(to_floor).collect()
    }
}

impl Results {
    /// The measurements of the workload called `name`.
    pub fn measured(&self, name: &str) -> Option<&Measured> {
        self.workloads.iter().find(|measured| measured.workload.name == name)
    }

    /// The targets that these results can judge.
    pub fn judged(&self) -> Vec<Judged> {
        TARGETS.iter().filter_map(|target| target.judge(self)).collect()
    }

    /// What the figures mean and how they came about, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let Settings { rounds, warmup_seconds, seconds, tries, generator_threads } = self.settings;
        vec![
            format!(
                "Medians of {rounds} rounds of {seconds} s after {warmup_seconds} s of warm-up; the servers take turns \
                 within each round, and who begins rotates."
            ),
            "A ratio is taken within each round, then the median of the ratios; in brackets the exact binomial \
             interval that holds the true median with at least 95 %, from six rounds up."
                .to_owned(),
            "CPU is the server's CPU time, user and system, per reply. Every reply was verified.".to_owned(),
            format!(
                "{generator_threads} thread(s) of the generator share the machine with the server, so requests/s is what \
                 both together can do; CPU is the server's alone."
            ),
            format!(
                "A measurement is disturbed when others used more than {DISTURBED} CPUs meanwhile or the host took as \
                 much; it is repeated, {tries} tries in all, then the least disturbed one counts."
            ),
        ]
    }

    /// Everything, for programs.
    pub fn to_json(&self) -> Value {
        let estimates = |find: &dyn Fn(Metric) -> Option<Estimate>| -> Value {
            Metric::ALL.iter().map(|metric| (metric.key().to_owned(), json!(find(*metric)))).collect()
        };
        let server = |measured: &Measured, row: &Row| {
            let against: Value = measured
                .servers
                .iter()
                .filter(|other| other.name != row.name)
                .map(|other| {
                    let ratios = estimates(&|metric| measured.ratio(&row.name, &other.name, metric));
                    (other.name.clone(), ratios)
                })
                .collect();
            json!({
                "name": row.name,
                "median": estimates(&|metric| row.estimate(metric)),
                "against": against,
                "share_of_ideal": measured.share_of_ideal(&row.name),
                "runs": row.runs,
            })
        };
        let workloads: Vec<Value> = self
            .workloads
            .iter()
            .map(|measured| {
                let servers: Vec<Value> = measured.servers.iter().map(|row| server(measured, row)).collect();
                json!({
                    "name": measured.workload.name,
                    "about": measured.workload.about,
                    "connections": measured.workload.connections,
                    "pipeline": measured.workload.pipeline,
                    "rate": measured.rate,
                    "servers": servers,
                })
            })
            .collect();
        json!({
            "date": self.date,
            "command": self.command,
            "machine": self.machine,
            "reference": self.reference,
            "settings": self.settings,
            "notes": self.notes(),
            "workloads": workloads,
            "targets": self.judged(),
        })
    }
}

/// `1.05 [1.02, 1.09]`, or `-` where nothing is known.
pub fn show_ratio(estimate: Option<Estimate>) -> String {
    match estimate {
        None => "-".to_owned(),
        Some(Estimate { median, interval: None, .. }) => format!("{median:.2}"),
        Some(Estimate { median, interval: Some((low, high)), .. }) => {
            format!("{median:.2} [{low:.2}, {high:.2}]")
        }
    }
}

/// A figure with as many digits as it deserves.
pub fn show_value(metric: Metric, estimate: Option<Estimate>) -> String {
    match (metric, estimate) {
        (_, None) => "-".to_owned(),
        (Metric::Cpu, Some(value)) => format!("{:.2}", value.median),
        (_, Some(value)) => format!("{:.0}", value.median),
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.workload.name, self.workload.about)?;
        if let Some(rate) = self.rate {
            write!(out, ", {rate:.0} a second")?;
        }
        write!(out, "\n{:26}", "")?;
        Metric::ALL.iter().try_for_each(|metric| write!(out, "{:>19}", metric.name()))?;
        for row in &self.servers {
            write!(out, "\n  {:24}", row.name)?;
            for metric in Metric::ALL {
                write!(out, "{:>19}", show_value(metric, row.estimate(metric)))?;
            }
        }
        Ok(())
    }
}

/// The tables of a workload, as [`Results`] prints them.
fn write_measured(out: &mut String, measured: &Measured, reference: &str) -> fmt::Result {
    writeln!(out, "{measured}")?;
    for (ours, theirs) in measured.pairs(reference) {
        write!(out, "  {:24}", format!("{ours} / {theirs}"))?;
        for metric in Metric::ALL {
            write!(out, "{:>19}", show_ratio(measured.ratio(ours, theirs, metric)))?;
        }
        writeln!(out)?;
    }
    if measured.workload.ideal_rate().is_some() {
        for row in &measured.servers {
            let share = show_ratio(measured.share_of_ideal(&row.name));
            writeln!(out, "  {:24}{share:>19}", format!("{} / ideal", row.name))?;
        }
    }
    let (repeated, disturbed) = measured.disturbances();
    if repeated > 0 || disturbed > 0 {
        writeln!(out, "  {repeated} measurements repeated, {disturbed} that count were disturbed")?;
    }
    let complaints = |row: &Row| row.runs.iter().filter(|run| !run.generator_complaints.is_empty()).count();
    for row in &measured.servers {
        let late = complaints(row);
        if late > 0 && measured.workload.pace != Pace::Closed {
            writeln!(out, "  {}: the generator did not keep up in {late} measurements that count", row.name)?;
        }
    }
    writeln!(out)
}

impl fmt::Display for Results {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { processor, cpus, kernel } = &self.machine;
        let mut text = String::new();
        writeln!(text, "{}  {}\n{cpus} CPUs, {processor}, {kernel}\n", self.date, self.command)?;
        for measured in &self.workloads {
            write_measured(&mut text, measured, &self.reference)?;
        }
        scaling::write_text(&mut text, self)?;
        let judged = self.judged();
        if !judged.is_empty() {
            writeln!(text, "Targets")?;
            judged.iter().try_for_each(|judged| writeln!(text, "  {judged}"))?;
            writeln!(text)?;
        }
        self.notes().iter().try_for_each(|note| writeln!(text, "{note}"))?;
        out.write_str(&text)
    }
}

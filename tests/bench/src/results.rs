//! All that a benchmark found, as tables, and as text, Markdown, JSON and a page made of them.

use std::fmt::Write as _;
use std::io::Result;

use serde::Serialize;
use serde_json::{Value, json};

use crate::goal::Verdict;
use crate::machine::Machine;
use crate::measure::{DISTURBED, Metric, Run};
use crate::report::page::{self, Page, Table, Tone};
use crate::report::table;
use crate::server::OURS;
use crate::stats::Estimate;
use crate::target::{Judged, TARGETS};
use crate::workload::{Pace, Workload};

/// The server that shows what the kernel itself does.
pub const FLOOR: &str = "floor";

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
    fn values(&self, metric: Metric) -> Vec<Option<f64>> {
        self.runs.iter().map(|run| run.value(metric)).collect()
    }

    fn estimate(&self, metric: Metric) -> Option<Estimate> {
        Estimate::of(&self.values(metric).into_iter().flatten().collect::<Vec<_>>())
    }
}

impl Measured {
    fn row(&self, name: &str) -> Option<&Row> {
        self.servers.iter().find(|row| row.name == name)
    }

    fn estimate(&self, name: &str, metric: Metric) -> Option<Estimate> {
        self.row(name)?.estimate(metric)
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

    /// The pairs that the table compares: each server with the reference, and ours with the floor.
    fn pairs<'a>(&'a self, reference: &'a str) -> Vec<(&'a str, &'a str)> {
        let names = || self.servers.iter().map(|row| row.name.as_str());
        let against =
            |other: &'a str| names().filter(move |name| *name != other).map(move |name| (name, other));
        let floor = names().find(|name| *name == FLOOR && *name != reference);
        let to_floor = floor.into_iter().flat_map(against).filter(|(name, _)| name.starts_with(OURS));
        let measured = names().find(|name| *name == reference);
        measured.into_iter().flat_map(against).chain(to_floor).collect()
    }

    /// Every server's figures, and how they compare.
    fn table(&self, reference: &str) -> Table {
        let figures = |name: String, figure: &dyn Fn(Metric) -> String| {
            [name].into_iter().chain(Metric::ALL.map(figure)).collect::<Vec<_>>()
        };
        let mut rows: Vec<_> = self
            .servers
            .iter()
            .map(|row| figures(row.name.clone(), &|metric| show_value(metric, row.estimate(metric))))
            .collect();
        rows.extend(self.pairs(reference).into_iter().map(|(ours, theirs)| {
            figures(format!("{ours} / {theirs}"), &|metric| show_ratio(self.ratio(ours, theirs, metric)))
        }));
        let ideal = self.servers.iter().filter(|_| self.workload.ideal_rate().is_some());
        rows.extend(
            ideal
                .map(|row| vec![format!("{} / ideal", row.name), show_ratio(self.share_of_ideal(&row.name))]),
        );
        let rate = self.rate.map(|rate| format!(", {rate:.0} a second")).unwrap_or_default();
        Table {
            title: format!("{}: {}{rate}", self.workload.name, self.workload.about),
            head: figures(String::new(), &|metric| metric.name().to_owned()),
            rows,
            wide: true,
        }
    }

    /// What was wrong with the measurements.
    fn reservations(&self) -> Vec<String> {
        let mut said = Vec::new();
        let runs = || self.servers.iter().flat_map(|row| &row.runs);
        let repeated: u32 = runs().map(|run| run.repeated).sum();
        let disturbed = runs().filter(|run| run.disturbance() > DISTURBED).count();
        if repeated > 0 || disturbed > 0 {
            said.push(format!("{repeated} measurements repeated, {disturbed} that count were disturbed"));
        }
        let late = |row: &Row| row.runs.iter().filter(|run| !run.generator_complaints.is_empty()).count();
        let late = self.servers.iter().map(|row| (row, late(row)));
        said.extend(late.filter(|(_, late)| *late > 0 && self.workload.pace != Pace::Closed).map(
            |(row, late)| {
                format!("{}: the generator did not keep up in {late} measurements that count", row.name)
            },
        ));
        said
    }
}

impl Results {
    /// The measurements of the workload called `name`.
    pub fn measured(&self, name: &str) -> Option<&Measured> {
        self.workloads.iter().find(|measured| measured.workload.name == name)
    }

    fn judged(&self) -> Vec<Judged> {
        TARGETS.iter().filter_map(|target| target.judge(self)).collect()
    }

    fn described(&self) -> String {
        format!("{}  {}\n{}", self.date, self.command, self.machine.described())
    }

    /// What the figures mean and how they came about, a sentence each.
    fn notes(&self) -> Vec<String> {
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

    /// How CPU time per request depends on the number of connections, if there were several.
    fn scaling(&self) -> Option<Table> {
        let mut points: Vec<&Measured> =
            self.workloads.iter().filter(|measured| measured.workload.is_point_of_scaling()).collect();
        points.sort_by_key(|measured| measured.workload.connections);
        let first = points.first().filter(|_| points.len() > 2)?;
        let everywhere = |name: &&str| points.iter().all(|measured| measured.row(name).is_some());
        let servers: Vec<&str> =
            first.servers.iter().map(|row| row.name.as_str()).filter(everywhere).collect();
        let row = |measured: &&Measured| {
            let cpu = |name: &&str| show_value(Metric::Cpu, measured.estimate(name, Metric::Cpu));
            let mut row = vec![measured.workload.connections.to_string()];
            row.extend(servers.iter().map(cpu));
            row.push(show_ratio(measured.ratio(OURS, FLOOR, Metric::Cpu)));
            row
        };
        let mut head = vec!["connections".to_owned()];
        head.extend(servers.iter().map(|name| format!("{name}, CPU µs")));
        head.push(format!("{OURS} / {FLOOR}"));
        Some(Table {
            title: "CPU time per request by connections".to_owned(),
            head,
            rows: points.iter().map(row).collect(),
            wide: true,
        })
    }

    fn targets(&self) -> Table {
        let row = |judged: Judged| {
            let target = judged.target;
            let ratio = show_ratio(Some(judged.ratio));
            let metric = target.metric.name().to_owned();
            let goal = target.goal.to_string();
            vec![
                target.workload.to_owned(),
                metric,
                target.pair(),
                goal,
                ratio,
                judged.verdict.name().to_owned(),
            ]
        };
        let head = ["load", "figure", "of", "goal", "measured", ""].map(str::to_owned).to_vec();
        Table {
            title: "Targets".to_owned(),
            head,
            rows: self.judged().into_iter().map(row).collect(),
            wide: true,
        }
    }

    /// Ours against the reference and the floor, a line for each workload, with the targets that were missed.
    fn summary(&self) -> Table {
        let reference = self.reference.as_str();
        let judged = self.judged();
        let cell = |measured: &Measured, other: &str, metric: Metric| {
            let shown = show_ratio(measured.ratio(OURS, other, metric));
            let failed = judged.iter().find(|Judged { target, verdict, .. }| {
                let same =
                    (target.workload, target.server, target.against) == (measured.workload.name, OURS, other);
                same && target.metric == metric && *verdict == Verdict::Failed
            });
            failed.map_or(shown.clone(), |failed| format!("{shown}, goal {} missed", failed.target.goal))
        };
        let row = |measured: &Measured| {
            let mut row = vec![measured.workload.name.to_owned()];
            row.extend(
                [Metric::Rate, Metric::Cpu, Metric::P99].map(|metric| cell(measured, reference, metric)),
            );
            row.push(cell(measured, FLOOR, Metric::Cpu));
            row
        };
        let ours = format!("{OURS} / {reference}");
        let floor = format!("CPU, {OURS} / {FLOOR}");
        Table {
            title: ours.clone(),
            head: vec![ours, "requests/s".to_owned(), "CPU per request".to_owned(), "p99".to_owned(), floor],
            rows: self.workloads.iter().map(row).collect(),
            wide: true,
        }
    }

    fn tables(&self) -> impl Iterator<Item = Table> {
        let workloads = self.workloads.iter().map(|measured| measured.table(&self.reference));
        workloads.chain(self.scaling()).chain([self.targets()]).filter(|table| !table.rows.is_empty())
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = self.described() + "\n\n";
        for Table { title, head, rows, .. } in self.tables() {
            let lines: Vec<_> = [head].into_iter().chain(rows).collect();
            writeln!(out, "{title}\n{}", table::text(&lines)).expect("a string takes all that is written");
        }
        let reservations = self.workloads.iter().flat_map(|measured| {
            measured.reservations().into_iter().map(|said| format!("{}: {said}", measured.workload.name))
        });
        out + &reservations.chain(self.notes()).map(|line| line + "\n").collect::<String>()
    }

    /// The small tables for BENCHMARKS.md and the README.
    pub fn markdown(&self) -> String {
        let date = self.date.split('T').next().unwrap_or_default();
        let mut out = format!("{date}, {}: `{}`\n", self.machine.described(), self.command);
        for Table { head, rows, .. } in [self.summary()].into_iter().chain(self.scaling()) {
            let rule = vec!["---".to_owned(); head.len()];
            for row in [head, rule].into_iter().chain(rows) {
                out += &format!("\n| {} |", row.join(" | "));
            }
            out.push('\n');
        }
        out
    }

    /// A page with all tables.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn page(&self) -> Result<String> {
        let judged = self.judged();
        let count = |verdict| judged.iter().filter(|judged| judged.verdict == verdict).count();
        let failed = count(Verdict::Failed);
        let text = format!(
            "{} targets met, {} missed, {failed} failed",
            count(Verdict::Met),
            count(Verdict::Missed)
        );
        let tone = if failed == 0 { Tone::Good } else { Tone::Bad };
        let page = Page {
            title: "tidemill compared".to_owned(),
            subtitle: self.notes().join(" "),
            footer: self.described(),
            verdict: (!judged.is_empty()).then_some(page::Verdict { text, tone, reasons: Vec::new() }),
            tables: [self.summary()].into_iter().chain(self.tables()).collect(),
            ..Page::default()
        };
        Ok(page.html()?)
    }

    /// Everything, for programs.
    pub fn to_json(&self) -> Value {
        let estimates = |find: &dyn Fn(Metric) -> Option<Estimate>| -> Value {
            Metric::ALL.iter().map(|metric| (metric.key().to_owned(), json!(find(*metric)))).collect()
        };
        let server = |measured: &Measured, row: &Row| {
            let others = measured.servers.iter().filter(|other| other.name != row.name);
            let against = others.map(|other| {
                let ratios = estimates(&|metric| measured.ratio(&row.name, &other.name, metric));
                (other.name.clone(), ratios)
            });
            json!({
                "name": row.name,
                "median": estimates(&|metric| row.estimate(metric)),
                "against": against.collect::<Value>(),
                "share_of_ideal": measured.share_of_ideal(&row.name),
                "runs": row.runs,
            })
        };
        let workload = |measured: &Measured| {
            json!({
                "name": measured.workload.name,
                "about": measured.workload.about,
                "connections": measured.workload.connections,
                "pipeline": measured.workload.pipeline,
                "rate": measured.rate,
                "servers": measured.servers.iter().map(|row| server(measured, row)).collect::<Vec<_>>(),
            })
        };
        json!({
            "date": self.date,
            "command": self.command,
            "machine": self.machine,
            "reference": self.reference,
            "settings": self.settings,
            "notes": self.notes(),
            "workloads": self.workloads.iter().map(workload).collect::<Vec<_>>(),
            "targets": self.judged(),
        })
    }
}

/// `1.05 [1.02, 1.09]`, or `-` where nothing is known.
fn show_ratio(estimate: Option<Estimate>) -> String {
    match estimate {
        None => "-".to_owned(),
        Some(Estimate { median, interval: None, .. }) => format!("{median:.2}"),
        Some(Estimate { median, interval: Some((low, high)), .. }) => {
            format!("{median:.2} [{low:.2}, {high:.2}]")
        }
    }
}

/// A figure with as many digits as it deserves.
fn show_value(metric: Metric, estimate: Option<Estimate>) -> String {
    match (metric, estimate) {
        (_, None) => "-".to_owned(),
        (Metric::Cpu, Some(value)) => format!("{:.2}", value.median),
        (_, Some(value)) => format!("{:.0}", value.median),
    }
}

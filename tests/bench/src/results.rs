//! All that a benchmark found, as tables, and as text, Markdown, JSON and a page made of them.

use std::fmt::Write as _;
use std::io::Result;

use serde::Serialize;
use serde_json::{Value, json};

use crate::goal::{Verdict, summary};
use crate::machine::Machine;
use crate::measure::{DISTURBED, Metric, Run, Settings};
use crate::outputs::{self, table};
use crate::report;
use crate::report::page::{Page, Table};
use crate::server::OURS;
use crate::stats::Estimate;
use crate::target::{Judged, TARGETS};
use crate::workload::{Pace, Workload};

/// The server that shows what the kernel itself does.
pub(crate) const FLOOR: &str = "floor";

/// A whole benchmark, as it is kept in JSON.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Results {
    /// When it began, in UTC.
    pub(crate) date: String,
    pub(crate) command: String,
    pub(crate) machine: Machine,
    /// The server that the others are compared with.
    pub(crate) reference: String,
    pub(crate) settings: Settings,
    pub(crate) workloads: Vec<Measured>,
}

/// One workload's measurements.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    #[serde(flatten)]
    pub(crate) workload: &'static Workload,
    /// Requests per second that were sent, where the clock set the pace.
    pub(crate) rate: Option<f64>,
    pub(crate) servers: Vec<Row>,
}

/// One server's measurements under one workload.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// One for each round.
    pub(crate) runs: Vec<Run>,
}

impl Row {
    /// NaN where a run had too few samples.
    fn values(&self, metric: Metric) -> Vec<f64> {
        self.runs.iter().map(|run| run.value(metric)).collect()
    }
}

impl Measured {
    fn row(&self, name: &str) -> Option<&Row> {
        self.servers.iter().find(|row| row.name == name)
    }

    fn estimate(&self, name: &str, metric: Metric) -> Option<Estimate> {
        Estimate::of(&self.row(name)?.values(metric))
    }

    /// What `ours` is of `theirs`, paired by rounds.
    pub(crate) fn ratio(&self, ours: &str, theirs: &str, metric: Metric) -> Option<Estimate> {
        Estimate::of_ratios(&self.row(ours)?.values(metric), &self.row(theirs)?.values(metric))
    }

    /// What the rate of `ours` is of the best that the workload allows.
    pub(crate) fn share_of_ideal(&self, ours: &str) -> Option<Estimate> {
        let ideal = self.workload.ideal_rate()?;
        let rates = self.row(ours)?.values(Metric::Rate);
        Estimate::of_ratios(&rates, &vec![ideal; rates.len()])
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
            .map(|row| {
                figures(row.name.clone(), &|metric| show_value(metric, self.estimate(&row.name, metric)))
            })
            .collect();
        rows.extend(self.pairs(reference).into_iter().map(|(ours, theirs)| {
            figures(format!("{ours} / {theirs}"), &|metric| show_ratio(self.ratio(ours, theirs, metric)))
        }));
        if self.workload.ideal_rate().is_some() {
            let share = |name: &str| show_ratio(self.share_of_ideal(name));
            rows.extend(
                self.servers.iter().map(|row| vec![format!("{} / ideal", row.name), share(&row.name)]),
            );
        }
        let rate = self.rate.map(|rate| format!(", {rate:.0} a second")).unwrap_or_default();
        let title = format!("{}: {}{rate}", self.workload.name, self.workload.about);
        table(title, figures(String::new(), &|metric| metric.name().to_owned()), rows)
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
        for Row { name, runs } in self.servers.iter().filter(|_| self.workload.pace != Pace::Closed) {
            let late = runs.iter().filter(|run| !run.generator_complaints.is_empty()).count();
            if late > 0 {
                said.push(format!("{name}: the generator did not keep up in {late} measurements that count"));
            }
        }
        said
    }
}

impl Results {
    /// The measurements of the workload called `name`.
    pub(crate) fn measured(&self, name: &str) -> Option<&Measured> {
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
        let title = "CPU time per request by connections".to_owned();
        Some(table(title, head, points.iter().map(row)))
    }

    fn targets(&self) -> Table {
        let row = |Judged { target, ratio, verdict }: Judged| {
            let pair = format!("{} / {}", target.server, target.against);
            let cells = [target.workload, target.metric.name(), &pair, &target.goal.to_string()];
            let cells = cells.into_iter().map(str::to_owned);
            cells.chain([show_ratio(Some(ratio)), verdict.name().to_owned()]).collect()
        };
        let head = ["load", "figure", "of", "goal", "measured", ""];
        table("Targets", head, self.judged().into_iter().map(row))
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
        let head = [&ours, "requests/s", "CPU per request", "p99", &floor];
        table(ours.as_str(), head, self.workloads.iter().map(row))
    }

    fn tables(&self) -> impl Iterator<Item = Table> {
        let workloads = self.workloads.iter().map(|measured| measured.table(&self.reference));
        workloads.chain(self.scaling()).chain([self.targets()]).filter(|table| !table.rows.is_empty())
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut out = self.described() + "\n\n";
        for Table { title, head, rows, .. } in self.tables() {
            let lines: Vec<_> = [head].into_iter().chain(rows).collect();
            writeln!(out, "{title}\n{}", report::table::text(&lines))
                .expect("a string takes all that is written");
        }
        let reservations = self.workloads.iter().flat_map(|measured| {
            measured.reservations().into_iter().map(|said| format!("{}: {said}", measured.workload.name))
        });
        out + &reservations.chain(self.notes()).map(|line| line + "\n").collect::<String>()
    }

    /// The small tables for BENCHMARKS.md and the README.
    pub(crate) fn markdown(&self) -> String {
        let date = self.date.split('T').next().unwrap_or_default();
        let mut out = format!("{date}, {}: `{}`\n", self.machine.described(), self.command);
        for table in [self.summary()].into_iter().chain(self.scaling()) {
            out += &format!("\n{}", outputs::markdown(&table));
        }
        out
    }

    /// A page with all tables.
    pub(crate) fn page(&self) -> Page {
        let judged = self.judged();
        let verdict = summary(judged.iter().map(|judged| judged.verdict), Vec::new());
        Page {
            title: "tidemill compared".to_owned(),
            subtitle: self.notes().join(" "),
            footer: self.described(),
            verdict: (!judged.is_empty()).then_some(verdict),
            tables: [self.summary()].into_iter().chain(self.tables()).collect(),
            ..Page::default()
        }
    }

    /// Everything, for programs.
    pub(crate) fn to_json(&self) -> Result<Value> {
        let mut all = serde_json::to_value(self)?;
        all["notes"] = json!(self.notes());
        all["tables"] = json!(self.tables().collect::<Vec<_>>());
        all["targets"] = json!(self.judged());
        Ok(all)
    }
}

/// A ratio, or `-` where nothing is known.
fn show_ratio(estimate: Option<Estimate>) -> String {
    estimate.map_or("-".to_owned(), |ratio| ratio.to_string())
}

/// A figure with as many digits as it deserves.
fn show_value(metric: Metric, estimate: Option<Estimate>) -> String {
    match (metric, estimate) {
        (_, None) => "-".to_owned(),
        (Metric::Cpu, Some(value)) => format!("{:.2}", value.median),
        (_, Some(value)) => format!("{:.0}", value.median),
    }
}

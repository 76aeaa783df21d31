//! The small table for the README and BENCHMARKS.md.

use std::fmt::{self, Write};

use crate::machine::Machine;
use crate::measure::Metric;
use crate::results::{Measured, Results, show_ratio};
use crate::scaling;
use crate::server::OURS;
use crate::target::{Against, Verdict};

/// Ours against the reference and the floor, a line for each workload, with the targets that were missed.
pub fn render(results: &Results) -> String {
    let mut out = String::new();
    write(&mut out, results).expect("a string takes all that is written");
    out
}

fn write(out: &mut String, results: &Results) -> fmt::Result {
    let Machine { processor, cpus, kernel } = &results.machine;
    let reference = results.reference.as_str();
    let date = results.date.split('T').next().unwrap_or_default();
    writeln!(out, "{date}, {cpus} CPUs, {processor}, {kernel}: `{}`\n", results.command)?;
    writeln!(out, "| {OURS} / {reference} | requests/s | CPU per request | p99 | CPU, {OURS} / floor |")?;
    writeln!(out, "| --- | --- | --- | --- | --- |")?;
    for measured in &results.workloads {
        write!(out, "| {} |", measured.workload.name)?;
        for metric in [Metric::Rate, Metric::Cpu, Metric::P99] {
            write!(out, " {} |", cell(results, measured, reference, metric))?;
        }
        writeln!(out, " {} |", cell(results, measured, "floor", Metric::Cpu))?;
    }
    scaling::write_markdown(out, results)
}

/// A ratio, and its goal where it was missed.
fn cell(results: &Results, measured: &Measured, other: &str, metric: Metric) -> String {
    let shown = show_ratio(measured.ratio(OURS, other, metric));
    let missed = results.judged().into_iter().find(|judged| {
        let target = &judged.target;
        let same =
            target.workload == measured.workload.name && target.metric == metric && target.server == OURS;
        let against = matches!(target.against, Against::Server(name) if name == other);
        same && against && judged.verdict == Verdict::Missed
    });
    missed.map_or(shown.clone(), |missed| format!("{shown}, goal {} missed", missed.target.goal))
}

//! How CPU time per request depends on the number of connections.

use std::fmt::{self, Write};

use crate::measure::Metric;
use crate::neighbours::Beside;
use crate::results::{Measured, Results, show_ratio, show_value};
use crate::server::OURS;
use crate::workload::{Pace, Workload};

/// The server that shows what the kernel itself does.
const FLOOR: &str = "floor";

/// Size of the picture and of the room for its labels, in CSS pixels.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 40.0;
const RIGHT: f64 = 80.0;
const BOTTOM: f64 = 24.0;
/// What is above this many times the last value is cut off: a single connection costs many times a thousandth.
const TALLEST: f64 = 2.5;

/// Whether `workload` differs from others of its kind by its connections only.
pub fn counts(workload: &Workload) -> bool {
    workload.pace == Pace::Closed
        && workload.pipeline == 1
        && workload.handler_delay.is_zero()
        && !workload.one_cpu
        && workload.beside == Beside::Nobody
}

/// What was measured, by connections; empty if there are too few to compare.
fn points(results: &Results) -> Vec<&Measured> {
    let mut points: Vec<&Measured> =
        results.workloads.iter().filter(|measured| counts(measured.workload)).collect();
    points.sort_by_key(|measured| measured.workload.connections);
    if points.len() < 3 { Vec::new() } else { points }
}

/// Servers that were measured at every point.
fn servers<'a>(points: &[&'a Measured]) -> Vec<&'a str> {
    let everywhere = |name: &&str| points.iter().all(|measured| measured.row(name).is_some());
    let first = points.first().map(|measured| measured.servers.iter());
    first.into_iter().flatten().map(|row| row.name.as_str()).filter(everywhere).collect()
}

/// The table as text; nothing if there are too few numbers of connections.
pub fn write_text(out: &mut String, results: &Results) -> fmt::Result {
    let points = points(results);
    if points.is_empty() {
        return Ok(());
    }
    let servers = servers(&points);
    write!(out, "CPU µs per request\n{:>12}", "connections")?;
    servers.iter().try_for_each(|name| write!(out, "{name:>12}"))?;
    writeln!(out, "{:>24}", format!("{OURS} / {FLOOR}"))?;
    for measured in points {
        write!(out, "{:>12}", measured.workload.connections)?;
        for name in &servers {
            write!(out, "{:>12}", cpu(measured, name))?;
        }
        writeln!(out, "{:>24}", show_ratio(measured.ratio(OURS, FLOOR, Metric::Cpu)))?;
    }
    writeln!(out)
}

/// The same in Markdown.
pub fn write_markdown(out: &mut String, results: &Results) -> fmt::Result {
    let points = points(results);
    if points.is_empty() {
        return Ok(());
    }
    let servers = servers(&points);
    write!(out, "\n| connections |")?;
    servers.iter().try_for_each(|name| write!(out, " {name}, CPU µs |"))?;
    writeln!(out, " {OURS} / {FLOOR} |\n| --- |{}", " --- |".repeat(servers.len() + 1))?;
    for measured in points {
        write!(out, "| {} |", measured.workload.connections)?;
        servers.iter().try_for_each(|name| write!(out, " {} |", cpu(measured, name)))?;
        writeln!(out, " {} |", show_ratio(measured.ratio(OURS, FLOOR, Metric::Cpu)))?;
    }
    Ok(())
}

fn cpu(measured: &Measured, name: &str) -> String {
    show_value(Metric::Cpu, median(measured, name))
}

fn median(measured: &Measured, name: &str) -> Option<crate::stats::Estimate> {
    measured.row(name).and_then(|row| row.estimate(Metric::Cpu))
}

/// A line for each server over the logarithm of the connections.
pub fn write_picture(out: &mut String, results: &Results) -> fmt::Result {
    let points = points(results);
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Ok(()) };
    let log = |measured: &Measured| f64::from(measured.workload.connections).log10();
    let span = (log(last) - log(first)).max(1.0);
    let x = |measured: &Measured| LEFT + (log(measured) - log(first)) / span * (WIDTH - LEFT - RIGHT);
    let servers = servers(&points);
    let value = |measured: &Measured, name: &str| median(measured, name).map_or(0.0, |cpu| cpu.median);
    let top = servers.iter().map(|name| value(last, name)).fold(1.0, f64::max) * TALLEST;
    let y = |value: f64| (HEIGHT - BOTTOM) * (1.0 - (value / top).min(1.0));
    writeln!(
        out,
        "<h2>Connections</h2>\n<p>CPU per request in µs; what is above the picture stands in the table</p>"
    )?;
    writeln!(out, "<svg width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">")?;
    for line in 0..4 {
        let at = top / 4.0 * f64::from(line);
        let height = y(at);
        writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{height:.1}\" y2=\"{height:.1}\" stroke=\"var(--line)\"/>",
            WIDTH - RIGHT
        )?;
        writeln!(out, "<text x=\"0\" y=\"{:.1}\">{at:.0}</text>", height + 4.0)?;
    }
    for measured in &points {
        let connections = measured.workload.connections;
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{HEIGHT}\" text-anchor=\"middle\">{connections}</text>",
            x(measured)
        )?;
    }
    for name in servers {
        let places =
            points.iter().map(|measured| format!("{:.1},{:.1}", x(measured), y(value(measured, name))));
        let places = places.collect::<Vec<_>>().join(" ");
        let colour = match name {
            OURS => "ours",
            FLOOR => "ink",
            _ => "other",
        };
        writeln!(
            out,
            "<polyline points=\"{places}\" fill=\"none\" stroke=\"var(--{colour})\" stroke-width=\"2\"><title>{name}</title></polyline>"
        )?;
    }
    writeln!(
        out,
        "</svg>\n<p>{OURS} in colour, {FLOOR} in the colour of the text, the others grey</p>\n<pre>"
    )?;
    write_text(out, results)?;
    writeln!(out, "</pre>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::WORKLOADS;

    #[test]
    fn from_one_connection_to_ten_thousand() {
        let mut connections: Vec<u32> =
            WORKLOADS.iter().filter(|it| counts(it)).map(|it| it.connections).collect();
        connections.sort_unstable();
        assert_eq!(connections, [1, 4, 16, 64, 256, 1000, 4000, 9900]);
    }
}

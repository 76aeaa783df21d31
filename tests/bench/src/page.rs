//! A page with the results as pictures: one file, no script, nothing loaded from elsewhere.

use std::fmt::{self, Write};

use crate::measure::Metric;
use crate::results::{Measured, Results, Row, show_ratio, show_value};
use crate::scaling;
use crate::target::{Judged, Verdict};

/// What bars and dots are drawn of.
const DRAWN: [Metric; 3] = [Metric::Rate, Metric::Cpu, Metric::P99];

/// Height of a server's line in a picture, and of all other measures, in CSS pixels.
const LINE: usize = 24;
const LABEL: usize = 120;
const BAR: f64 = 190.0;
const VALUE: usize = 80;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #69707a; --line: #d8dde3; --paper: #fff; --other: #a9b4c0;
  --ours: #0b7285; --good: #2b8a3e; --bad: #c92a2a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #98a2ad; --line: #363c44; --paper: #16191d;
  --other: #5b6672; --ours: #3bc9db; --good: #69db7c; --bad: #ff8787; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 78rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin: 2.5rem 0 0; } p { margin: .2rem 0 .8rem; color: var(--soft); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } figcaption { font-weight: 600; }
svg { display: block; } svg text { font-size: 12px; fill: var(--ink); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: .6rem; }
th, td { text-align: right; padding: .2rem .8rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--soft); font-weight: 500; }
.met { color: var(--good); } .missed { color: var(--bad); font-weight: 600; } .unsure { color: var(--soft); }
";

/// The page, as HTML.
pub fn render(results: &Results) -> String {
    let mut page = String::new();
    write_page(&mut page, results).expect("a string takes all that is written");
    page
}

fn write_page(out: &mut String, results: &Results) -> fmt::Result {
    let (date, machine) = (&results.date, &results.machine);
    write!(out, "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n")?;
    writeln!(
        out,
        "<meta name=\"viewport\" content=\"width=device-width\">\n<title>tidemill: benchmark</title>"
    )?;
    writeln!(out, "<style>{STYLE}</style>\n<h1>tidemill compared</h1>")?;
    let (processor, kernel) = (escape(&machine.processor), escape(&machine.kernel));
    writeln!(out, "<p>{date}, {} CPUs, {processor}, {kernel}<br>", machine.cpus)?;
    writeln!(out, "<code>{}</code></p>", escape(&results.command))?;
    write_targets(out, &results.judged())?;
    scaling::write_picture(out, results)?;
    for measured in &results.workloads {
        write_workload(out, measured, &results.reference)?;
    }
    writeln!(out, "<h2>How it was measured</h2>")?;
    results.notes().iter().try_for_each(|note| writeln!(out, "<p>{}</p>", escape(note)))?;
    writeln!(out, "</html>")
}

fn write_targets(out: &mut String, judged: &[Judged]) -> fmt::Result {
    if judged.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>Targets</h2>\n<div class=\"wide\"><table>")?;
    writeln!(out, "<tr><th>load<th>figure<th>of<th>goal<th>measured<th>verdict")?;
    for judged in judged {
        let (target, ratio) = (&judged.target, show_ratio(Some(judged.ratio)));
        let class = match judged.verdict {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::WithinNoise | Verdict::TooFewRounds => "unsure",
        };
        let (workload, metric, goal) = (target.workload, target.metric.name(), target.goal);
        let (pair, verdict) = (target.pair(), judged.verdict.name());
        writeln!(
            out,
            "<tr><td>{workload}<td>{metric}<td>{pair}<td>{goal}<td>{ratio}<td class=\"{class}\">{verdict}"
        )?;
    }
    writeln!(out, "</table></div>")
}

fn write_workload(out: &mut String, measured: &Measured, reference: &str) -> fmt::Result {
    let workload = measured.workload;
    writeln!(out, "<h2>{}</h2>\n<p>{}</p>\n<div class=\"pictures\">", workload.name, escape(workload.about))?;
    DRAWN.iter().try_for_each(|metric| write_picture(out, measured, *metric))?;
    writeln!(out, "</div>\n<div class=\"wide\"><table>")?;
    write!(out, "<tr><th>server")?;
    Metric::ALL.iter().try_for_each(|metric| write!(out, "<th>{}", metric.name()))?;
    writeln!(out)?;
    for row in &measured.servers {
        write!(out, "<tr><td>{}", escape(&row.name))?;
        for metric in Metric::ALL {
            write!(out, "<td>{}", show_value(metric, row.estimate(metric)))?;
        }
        writeln!(out)?;
    }
    for (ours, theirs) in measured.pairs(reference) {
        write!(out, "<tr><td>{} / {}", escape(ours), escape(theirs))?;
        for metric in Metric::ALL {
            write!(out, "<td>{}", show_ratio(measured.ratio(ours, theirs, metric)))?;
        }
        writeln!(out)?;
    }
    writeln!(out, "</table></div>")
}

/// A bar up to the median for each server, and a dot for each measurement.
fn write_picture(out: &mut String, measured: &Measured, metric: Metric) -> fmt::Result {
    let values = |row: &Row| row.values(metric).into_iter().flatten().collect::<Vec<f64>>();
    let most = measured.servers.iter().flat_map(values).fold(0.0, f64::max);
    if most <= 0.0 {
        return Ok(());
    }
    let (width, height) = (LABEL as f64 + BAR + VALUE as f64, LINE * measured.servers.len());
    let better = if metric == Metric::Rate { "more is better" } else { "less is better" };
    writeln!(out, "<figure><figcaption>{}, {better}</figcaption>", metric.name())?;
    writeln!(out, "<svg width=\"{width}\" height=\"{height}\" role=\"img\">")?;
    for (line, row) in measured.servers.iter().enumerate() {
        let (top, middle) = (line * LINE, line * LINE + LINE / 2);
        let estimate = row.estimate(metric);
        let length = estimate.map_or(0.0, |estimate| estimate.median / most * BAR);
        let colour = if row.name.starts_with("tidemill") { "ours" } else { "other" };
        let (name, bar_top, text) = (escape(&row.name), top + 4, middle + 4);
        writeln!(out, "<text x=\"0\" y=\"{text}\">{name}</text>")?;
        writeln!(
            out,
            "<rect x=\"{LABEL}\" y=\"{bar_top}\" width=\"{length:.1}\" height=\"{}\" fill=\"var(--{colour})\"/>",
            LINE - 8
        )?;
        for value in values(row) {
            let x = LABEL as f64 + value / most * BAR;
            writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{middle}\" r=\"2\" fill=\"var(--ink)\" fill-opacity=\".5\"/>"
            )?;
        }
        let x = LABEL as f64 + BAR + 6.0;
        writeln!(out, "<text x=\"{x}\" y=\"{text}\">{}</text>", show_value(metric, estimate))?;
    }
    writeln!(out, "</svg></figure>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_command_line_cannot_break_the_page() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}

//! The elasticity scorecard: does the pool follow the load? Prints a table, JSON, and a page with plots.

mod exact;
mod lab;
pub(crate) mod outside;
mod peer;
mod picture;
mod rows;
mod score;

use std::io::{self, Result};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Parser;
use rows::Effort;
use score::{Check, Row, Verdict};
use serde_json::json;

use crate::goal::summary;
use crate::machine::Machine;
use crate::outputs::{self, Outputs, table};
use crate::report::page::{self, Axis, Chart, Color, Line, Page, Tone, Unit};

/// Measures how the pool follows the load, row by row, and says where a goal is missed.
///
/// Exit status: 1 where a count fails, a time is beyond three times its goal, or the 95 % interval of a ratio lies wholly beyond
/// its goal; 2 for wrong usage.
#[derive(Debug, Parser)]
#[command(bin_name = "scripts/elasticity.sh")]
pub(crate) struct Options {
    /// The program that generates the load, and is measured over loopback
    #[arg(long, value_name = "PROGRAM")]
    tidemill: String,

    /// Only these rows, by number
    #[arg(long, value_name = "ROWS", value_delimiter = ',')]
    rows: Vec<u32>,

    /// Shorter rows and fewer rounds: a look
    #[arg(long)]
    quick: bool,

    #[command(flatten)]
    outputs: Outputs,

    /// Draw demand and workers of four rows, as the README has them
    #[arg(long, value_name = "FILE.svg")]
    picture: Option<PathBuf>,
}

/// What measures a row, by its number. R: real threads in this process; L: the server in a process of its own, over loopback or
/// as the system sees it.
type Measure = fn(Effort<'_>) -> Result<Row>;

const ROWS: [(u32, char, Measure); 31] = [
    (1, 'R', rows::step),
    (1, 'L', outside::step),
    (2, 'R', rows::again),
    (3, 'R', rows::down),
    (4, 'R', rows::trickle),
    (4, 'L', outside::trickle),
    (5, 'R', rows::ramp),
    (6, 'R', rows::sawtooth),
    (7, 'R', rows::on_off),
    (8, 'R', rows::within),
    (9, 'R', rows::beyond),
    (10, 'R', rows::stranded),
    (11, 'R', rows::nested),
    (12, 'R', rows::for_the_cpu),
    (13, 'R', rows::mixed),
    (13, 'L', outside::mixed),
    (14, 'R', rows::lost_worker),
    (15, 'L', outside::refused),
    (16, 'R', rows::live_change),
    (17, 'L', outside::idle),
    (18, 'R', outside::churn),
    (19, 'R', rows::steady),
    (20, 'R', rows::flood),
    (20, 'L', outside::flood),
    (21, 'R', exact::slow_ramp),
    (22, 'R', exact::inside_the_band),
    (23, 'R', exact::tolerance_above_all),
    (24, 'R', exact::nothing_known),
    (25, 'R', exact::cores_come_and_go),
    (26, 'R', exact::lost_inside_the_band),
    (27, 'R', exact::against_tokio),
];

pub(crate) fn run(options: &Options) -> Result<bool> {
    let effort = Effort { quick: options.quick, tidemill: &options.tidemill };
    let (mut results, mut broken) = (Vec::new(), Vec::new());
    for (number, layer, measure) in ROWS {
        if !options.rows.is_empty() && !options.rows.contains(&number) {
            continue;
        }
        match measure(effort) {
            Ok(row) => {
                let row = Row { number, layer, ..row };
                print(&row);
                results.push(row);
            }
            Err(error) => {
                println!("{number:>3} {layer}  FAILED: {error}");
                broken.push(format!("row {number} {layer}: {error}"));
            }
        }
    }
    let verdicts = results.iter().flat_map(|row| &row.checks).map(|check| check.verdict);
    let verdict = summary(verdicts, broken.clone());
    println!("\n{}", verdict.text);
    let is_good = verdict.tone == Tone::Good;
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let machine = Machine::this();
    let document =
        json!({"date": date, "machine": machine, "quick": options.quick, "rows": results, "broken": broken});
    let footer = format!("{date}, {}", machine.described());
    options.outputs.write(&document, &draw(&results, verdict, footer), &markdown(&results))?;
    if let Some(path) = &options.picture {
        picture::write(path, &results).map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(is_good)
}

fn print(row: &Row) {
    println!("{:>3} {}  {}", row.number, row.layer, row.workload);
    for check in &row.checks {
        let (value, goal) = (check.shown(), check.goal_shown());
        println!("         {:<48} {value:>28}   {goal:>12}   {}", check.what, check.verdict.name());
    }
}

/// A line for each row: its figures, and each goal behind it.
fn markdown(results: &[Row]) -> String {
    let figure = |check: &Check| {
        let missed = match check.verdict {
            Verdict::Met => String::new(),
            verdict => format!(" **{}**", verdict.name()),
        };
        format!("{}: {} ({}){missed}", check.what, check.shown(), check.goal_shown())
    };
    let line = |row: &Row| {
        let figures = row.checks.iter().map(figure).collect::<Vec<_>>().join("<br>");
        vec![row.number.to_string(), row.workload.to_owned(), row.layer.to_string(), figures]
    };
    outputs::markdown(&table("", ["#", "workload", "", "measured (goal)"], results.iter().map(line)))
}

fn draw(results: &[Row], verdict: page::Verdict, footer: String) -> Page {
    let cells = |row: &Row| {
        let cell = |check: &Check| {
            let (number, layer) = (row.number.to_string(), row.layer.to_string());
            let (goal, result) = (check.goal_shown(), check.shown());
            let words = [&number, &layer, row.workload, &check.what, &goal, &result, check.verdict.name()];
            words.map(str::to_owned).to_vec()
        };
        row.checks.iter().map(cell).collect::<Vec<_>>()
    };
    let chart = |row: &Row| {
        let x: Vec<f64> = row.series.iter().map(|point| point.0).collect();
        let y =
            |pick: fn(&(f64, f64, f64)) -> f64| row.series.iter().map(|point| Some(pick(point))).collect();
        Chart {
            title: format!("Row {}: {}", row.number, row.workload),
            help: "Requests under way at a time, and the workers that the pool had.".to_owned(),
            axis: Axis::Time,
            unit: Unit::Count,
            logarithmic: false,
            lines: vec![
                Line::new("workers", Color::Blue, x.clone(), y(|point| point.2)).stepped().filled(),
                Line::new("demand", Color::Orange, x, y(|point| point.1)).stepped(),
            ],
            markers: Vec::new(),
        }
    };
    let head = ["row", "layer", "workload", "figure", "goal", "result", ""];
    Page {
        title: "Elasticity scorecard".to_owned(),
        subtitle: "min 2, max 64, tolerance 2, keep-alive 5 s, a handler that sleeps 50 ms unless said. \
                   R: real threads in one process; L: another process over loopback."
            .to_owned(),
        footer,
        verdict: Some(verdict),
        figures: Vec::new(),
        charts: results.iter().filter(|row| !row.series.is_empty()).map(chart).collect(),
        tables: vec![table("All rows", head, results.iter().flat_map(cells))],
    }
}

//! The elasticity scorecard: does the pool follow the load? Prints a table, JSON, and a page with plots.

mod exact;
mod lab;
mod outside;
#[path = "../../../../src/report/page.rs"]
#[expect(dead_code, reason = "the program's own skeleton of pages, of which this page needs a part")]
mod page;
mod peer;
mod picture;
mod rows;
mod score;

use std::fs;
use std::io::{self, Result, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use page::{Axis, Chart, Color, Line, Page, Table, Tone, Unit};
use rows::Effort;
use score::{Row, Verdict};
use serde_json::json;
use tidemill_bench::machine::Machine;

/// Measures how the pool follows the load, row by row, and says where a goal is missed.
///
/// Exit status: 1 where a count fails, a time is beyond three times its goal, or the 95 % interval of a ratio lies wholly beyond
/// its goal; 2 for wrong usage.
#[derive(Debug, Parser)]
struct Options {
    /// The program to measure over loopback
    #[arg(long, value_name = "PROGRAM")]
    tidemill: Option<PathBuf>,

    /// Only these rows, by number
    #[arg(long, value_name = "ROWS", value_delimiter = ',')]
    rows: Vec<u32>,

    /// Shorter rows and fewer rounds: a look
    #[arg(long)]
    quick: bool,

    /// Write all figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write a page with the plots
    #[arg(long, value_name = "FILE.html")]
    page: Option<PathBuf>,

    /// Write the table as Markdown, as SCORECARD.md has it
    #[arg(long, value_name = "FILE.md")]
    markdown: Option<PathBuf>,

    /// Draw demand and workers of four rows, as the README has them
    #[arg(long, value_name = "FILE.svg")]
    picture: Option<PathBuf>,

    #[arg(long, hide = true, num_args = 2, value_parser = humantime::parse_duration)]
    serve_two: Vec<Duration>,

    #[arg(long, hide = true)]
    churn: Option<u64>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match (&options.serve_two[..], options.churn) {
        ([first, second], _) => outside::serve_two(*first, *second).map(|()| true),
        (_, Some(threads)) => outside::churn_child(threads).map(|()| true),
        _ => run(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("elasticity: {error}");
            ExitCode::FAILURE
        }
    }
}

type Inside = fn(Effort) -> Result<Row>;
type Outside = fn(&Path, Effort) -> Result<Row>;

/// Rows in this process, in order.
const INSIDE: [(u32, Inside); 25] = [
    (1, rows::step),
    (2, rows::again),
    (3, rows::down),
    (4, rows::trickle),
    (5, rows::ramp),
    (6, rows::sawtooth),
    (7, rows::on_off),
    (8, rows::within),
    (9, rows::beyond),
    (10, rows::stranded),
    (11, rows::nested),
    (12, rows::for_the_cpu),
    (13, rows::mixed),
    (14, rows::lost_worker),
    (16, rows::live_change),
    (18, outside::churn),
    (19, rows::steady),
    (20, rows::flood),
    (21, exact::slow_ramp),
    (22, exact::inside_the_band),
    (23, exact::tolerance_above_all),
    (24, exact::nothing_known),
    (25, exact::cores_come_and_go),
    (26, exact::lost_inside_the_band),
    (27, exact::against_tokio),
];

/// Rows with the server in a process of its own.
const OUTSIDE: [(u32, Outside); 6] = [
    (1, outside::step),
    (4, outside::trickle),
    (13, outside::mixed),
    (15, outside::refused),
    (17, outside::idle),
    (20, outside::flood),
];

fn run(options: &Options) -> Result<bool> {
    outside::raise_limits()?;
    let effort = Effort { quick: options.quick };
    let wanted = |number: u32| options.rows.is_empty() || options.rows.contains(&number);
    let mut results = Vec::new();
    let mut broken = Vec::new();
    for number in 1..=27 {
        let inside = INSIDE.iter().filter(|row| row.0 == number && wanted(number));
        let inside = inside.map(|row| (row.1)(effort));
        let outside = OUTSIDE.iter().filter(|row| row.0 == number && wanted(number));
        let outside = outside.filter_map(|row| Some((row.1)(options.tidemill.as_deref()?, effort)));
        for result in inside.chain(outside) {
            match result {
                Ok(row) => {
                    print(&row)?;
                    results.push(row);
                }
                Err(error) => {
                    println!("{number:>3}     FAILED: {error}");
                    broken.push(format!("row {number}: {error}"));
                }
            }
        }
    }
    let checks = || results.iter().flat_map(|row| &row.checks);
    let count = |verdict| checks().filter(|check| check.verdict == verdict).count();
    let failed = count(Verdict::Failed) + broken.len();
    let summary = format!("{} met, {} missed, {failed} failed", count(Verdict::Met), count(Verdict::Missed));
    println!("\n{summary}");
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let machine = Machine::this();
    if let Some(path) = &options.json {
        let document = json!({"date": date, "machine": machine, "quick": options.quick, "rows": results, "broken": broken});
        fs::write(path, serde_json::to_string_pretty(&document)? + "\n")?;
    }
    if let Some(path) = &options.page {
        fs::write(
            path,
            draw(&results, &broken, &summary, failed, &format!("{date}, {}", machine.described())).html()?,
        )?;
    }
    if let Some(path) = &options.markdown {
        fs::write(path, markdown(&results))?;
    }
    if let Some(path) = &options.picture {
        picture::write(path, &results).map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(failed == 0)
}

fn print(row: &Row) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{:>3} {}  {}", row.number, row.layer, row.workload)?;
    for check in &row.checks {
        let (value, goal) = (check.shown(), check.goal_shown());
        writeln!(out, "         {:<48} {value:>28}   {goal:>12}   {}", check.what, check.verdict.name())?;
    }
    out.flush()
}

/// A line for each row: its figures, and each goal behind it.
fn markdown(results: &[Row]) -> String {
    let mut text = "| # | workload | | measured (goal) |\n|---|---|---|---|\n".to_owned();
    for row in results {
        let figure = |check: &score::Check| {
            let missed = match check.verdict {
                Verdict::Met => String::new(),
                verdict => format!(" **{}**", verdict.name()),
            };
            format!("{}: {} ({}){missed}", check.what, check.shown(), check.goal_shown())
        };
        let figures: Vec<String> = row.checks.iter().map(figure).collect();
        text +=
            &format!("| {} | {} | {} | {} |\n", row.number, row.workload, row.layer, figures.join("<br>"));
    }
    text
}

fn draw(results: &[Row], broken: &[String], summary: &str, failed: usize, footer: &str) -> Page {
    let head = ["row", "layer", "workload", "figure", "goal", "result", ""].map(str::to_owned).to_vec();
    let cells = |row: &Row| {
        let cell = |check: &score::Check| {
            let number = row.number.to_string();
            let (layer, workload) = (row.layer.to_string(), row.workload.to_owned());
            vec![
                number,
                layer,
                workload,
                check.what.clone(),
                check.goal_shown(),
                check.shown(),
                check.verdict.name().to_owned(),
            ]
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
    Page {
        title: "Elasticity scorecard".to_owned(),
        subtitle: "min 2, max 64, tolerance 2, keep-alive 5 s, a handler that sleeps 50 ms unless said. \
                   R: real threads in one process; L: another process over loopback."
            .to_owned(),
        footer: footer.to_owned(),
        verdict: Some(page::Verdict {
            text: summary.to_owned(),
            tone: if failed == 0 { Tone::Good } else { Tone::Bad },
            reasons: broken.to_vec(),
        }),
        figures: Vec::new(),
        charts: results.iter().filter(|row| !row.series.is_empty()).map(chart).collect(),
        tables: vec![Table {
            title: "All rows".to_owned(),
            head,
            rows: results.iter().flat_map(cells).collect(),
            wide: true,
        }],
    }
}

//! The benchmarks, and the servers that are compared with.
//!
//! Peers: `peers` (each as a server of its own), `service` (lines to replies), `reactor` (a mio loop).
//! Measuring: `compare` (requests/s, CPU and latency beside others, against the targets), `elasticity` (the
//! scorecard), `overload`, `programs`, `fanout`. They share [`server`] (what is started), `flood` (the load generator, which is
//! `tidemill load`), `machine` (what the kernel counts), `stats` (medians, turns), `goal` (what a figure has to be), `outputs`
//! (tables, files) and `report`, which is the program's own.

/// As the standard one, but that nobody reads on (`… | head`) is no failure: what is measured still goes to the files.
macro_rules! println {
    () => { $crate::outputs::tell(std::format_args!("")) };
    ($($words:tt)+) => { $crate::outputs::tell(std::format_args!($($words)+)) };
}

mod compare;
mod elasticity;
mod fanout;
mod flood;
mod gateways;
mod goal;
mod machine;
mod measure;
mod neighbours;
mod outputs;
mod overload;
mod peers;
mod programs;
mod reactor;
#[path = "../../../src/report/mod.rs"]
#[expect(dead_code, reason = "the program's own, of which the benchmark needs a part")]
mod report;
mod results;
pub mod server;
mod service;
mod stats;
mod target;
mod wait;
mod workload;

use std::io::Result;
use std::process::ExitCode;

use clap::Parser;

/// Takes the program's arguments, `bench` aside. Returns whether every goal that has to hold does.
type Measure = fn(Vec<String>) -> Result<bool>;

const PROGRAMS: [(&str, Measure); 11] = [
    ("compare", |words| compare::run(Parser::parse_from(words))),
    ("elasticity", |words| elasticity::run(&Parser::parse_from(words))),
    ("overload", |words| overload::run(&Parser::parse_from(words))),
    ("programs", |words| programs::run(&Parser::parse_from(words))),
    ("fanout", |words| fanout::run(&Parser::parse_from(words))),
    ("peer-floor", |words| peers::floor::run(&Parser::parse_from(words))),
    ("peer-channel", |words| peers::channel::run(&Parser::parse_from(words))),
    ("peer-tokio", |words| peers::tokio::run(&Parser::parse_from(words))),
    // What they start of themselves, as processes of their own.
    ("lab", |_| elasticity::outside::lab_child()),
    ("serve-fanout", |words| fanout::serve(&words[1..])),
    ("flooders", |words| neighbours::flood(&words[1..])),
];

/// What the program does.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let name = words.first().map_or("", String::as_str);
    let Some((_, measure)) = PROGRAMS.iter().find(|program| program.0 == name) else {
        eprintln!("bench: there is no {name:?}; the scripts say what there is");
        return ExitCode::from(2);
    };
    match machine::raise_limits().and_then(|()| measure(words.clone())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

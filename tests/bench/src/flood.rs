//! The load generator, `tidemill load --json`, and what it reports. It ends by itself, whatever the server does.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::report::load::{LoadReport, Verdict};

/// Starts it, by the words of another program if there are any; `options` are words with blanks between them.
pub(crate) fn start(by: &[String], tidemill: &str, target: SocketAddr, options: &str) -> Result<Child> {
    let words: Vec<&str> = by.iter().map(String::as_str).chain([tidemill, "load", "--json"]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(target.to_string()).args(options.split_whitespace());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
}

/// Waits for the end of a run. Its report says whether it was any good.
pub(crate) fn report(running: Child) -> Result<LoadReport> {
    let ended = running.wait_with_output()?;
    let said = |error| {
        let text = String::from_utf8_lossy(&ended.stdout);
        Error::other(format!("load ended with {}, report {text:?}: {error}", ended.status))
    };
    serde_json::from_slice(&ended.stdout).map_err(said)
}

/// Waits for the end of a run. An error also if any reply was wrong, came twice or out of order, or was lost: then nothing
/// that was measured counts.
pub(crate) fn verified(running: Child) -> Result<LoadReport> {
    let report = report(running)?;
    match report.verdict {
        Verdict::Failed => {
            Err(Error::other(format!("replies were not what they must be: {:?}", report.problems)))
        }
        _ => Ok(report),
    }
}

/// How many ms each reply took that counts, in order.
pub(crate) fn latencies(report: &LoadReport) -> Vec<f64> {
    let seen = report.histogram_ns.iter();
    seen.flat_map(|(nanos, count)| (0..*count).map(|_| *nanos as f64 / 1e6)).collect()
}

/// Floods, and waits for the end.
pub(crate) fn load(tidemill: &str, target: SocketAddr, options: &str) -> Result<LoadReport> {
    verified(start(&[], tidemill, target, options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_without_a_report_does_not_count() {
        let error = load("echo", "127.0.0.1:9".parse().unwrap(), "-c 1").unwrap_err();
        assert!(error.to_string().starts_with("load ended with"), "{error}");
    }
}

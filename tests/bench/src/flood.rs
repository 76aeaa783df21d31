//! One run of the load generator, `tidemill load --json`, and what it reports.

use std::io::{Error, Read, Result};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::server::wait_until;
use crate::workload::{Pace, Workload};

/// What the generator may take beyond warm-up and measured part: connecting, and waiting for the last replies.
const GRACE: Duration = Duration::from_secs(15);

/// How the generator is called.
#[derive(Clone, Debug)]
pub struct Flood {
    /// The program that has the command `load`.
    pub tidemill: PathBuf,
    /// Threads that send.
    pub threads: u32,
    /// Sent before the measured part begins.
    pub warmup: Duration,
    /// The measured part.
    pub duration: Duration,
}

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// For the time of the [`Flood`].
    Time,
    /// So many requests, with no warm-up.
    Requests(u64),
}

/// A generator that runs.
#[derive(Debug)]
pub struct Running {
    process: Child,
    deadline: Instant,
}

/// What the generator reports, as far as it is used here.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Counts of requests, the warm-up's too.
    pub requests: Requests,
    /// Right replies per second of the measured part.
    pub requests_per_second: f64,
    /// Latency of the measured part.
    pub latency_us: Latency,
    /// What is known of the generator itself.
    pub generator: Generator,
    /// `ok`, `failed`, or `invalid` where the generator could not do what was asked.
    pub verdict: String,
}

/// What became of requests.
#[derive(Clone, Debug, Deserialize)]
pub struct Requests {
    /// Replies that were what they had to be.
    pub right: u64,
    /// Replies that were not.
    pub wrong: u64,
    /// Replies that came before an earlier one.
    #[serde(default)]
    pub reordered: u64,
    /// Replies that came twice.
    #[serde(default)]
    pub duplicated: u64,
    /// Replies that never came.
    pub lost: u64,
}

/// Percentiles in microseconds; none with too few samples.
#[derive(Clone, Debug, Deserialize)]
pub struct Latency {
    /// Half of the requests took no longer.
    pub p50: Option<f64>,
    /// One of a hundred took longer.
    pub p99: Option<f64>,
    /// One of a thousand took longer.
    pub p999: Option<f64>,
}

/// What is known of the generator itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Generator {
    /// Whether it kept up, so that the figures are the server's.
    pub valid: bool,
    /// Why it did not.
    #[serde(default)]
    pub reasons: Vec<String>,
}

impl Flood {
    /// Starts flooding `target`. `rate` is for workloads that are paced by the clock.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start(
        &self,
        target: SocketAddr,
        workload: &Workload,
        amount: Amount,
        rate: Option<f64>,
        wrapper: &[String],
    ) -> Result<Running> {
        let mut words = wrapper.to_vec();
        words.push(self.tidemill.display().to_string());
        words.extend(self.arguments(target, workload, amount, rate));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
        let deadline = Instant::now() + self.warmup + self.duration + GRACE;
        Ok(Running { process: command.spawn()?, deadline })
    }

    fn arguments(
        &self,
        target: SocketAddr,
        workload: &Workload,
        amount: Amount,
        rate: Option<f64>,
    ) -> Vec<String> {
        let seconds = |duration: Duration| format!("{}ms", duration.as_millis());
        let mut words = vec!["load".to_owned(), target.to_string(), "--json".to_owned()];
        let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
        option("--connections", workload.connections.to_string());
        option("--pipeline", workload.pipeline.to_string());
        option("--threads", self.threads.to_string());
        match amount {
            Amount::Time => {
                option("--warm-up", seconds(self.warmup));
                option("--duration", seconds(self.duration));
            }
            Amount::Requests(requests) => {
                option("--warm-up", "0ms".to_owned());
                option("--requests", requests.to_string());
            }
        }
        if let Some(rate) = rate {
            option("--rate", format!("{rate:.0}"));
        }
        if workload.pace == Pace::Reconnect {
            words.push("--reconnect".to_owned());
        }
        words
    }
}

impl Running {
    /// The generator's process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits for the end of the run, a few seconds beyond its duration at most.
    ///
    /// # Errors
    /// If the report cannot be had, or if any reply was wrong, came twice or out of order, or was lost: then nothing
    /// that was measured counts.
    pub fn report(mut self) -> Result<Report> {
        let stdout = self.process.stdout.take().expect("it is piped");
        // Read aside, because a generator that hangs keeps the pipe open.
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            std::io::BufReader::new(stdout).read_to_string(&mut text).map(|_| text)
        });
        let status = wait_until(&mut self.process, self.deadline)
            .map_err(|error| Error::new(error.kind(), format!("the load generator did not end: {error}")))?;
        let text =
            reading.join().map_err(|_| Error::other("reading the load generator's report panicked"))??;
        let report: Report = serde_json::from_str(&text)
            .map_err(|error| Error::other(format!("load ended with {status}, report {text:?}: {error}")))?;
        report.check()?;
        Ok(report)
    }
}

impl Report {
    fn check(&self) -> Result<()> {
        let Requests { wrong, reordered, duplicated, lost, right } = self.requests;
        if wrong + reordered + duplicated + lost > 0 || right == 0 || self.verdict == "failed" {
            return Err(Error::other(format!("replies were not what they must be: {self:?}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"target": "127.0.0.1:8000", "seconds": 5.0,
        "requests": {"sent":10,"right":10,"wrong":0,"reordered":0,"duplicated":0,"lost":0},
        "connections": {"opened":1,"refused":0,"reset":0,"closed_early":0},
        "requests_per_second": 2.5,
        "latency_us": {"count":10,"mean":5.0,"p50":4.5,"p90":8,"p99":9.5,"p999":null,"max":10},
        "generator": {"cpu_seconds":0.1,"lateness_us":{"p50":null,"p99":null,"max":1},"valid":true,"reasons":[]},
        "asserts": [], "verdict": "ok", "series": []}"#;

    fn parse(report: &str) -> Report {
        serde_json::from_str(report).unwrap()
    }

    #[test]
    fn report_is_read_and_what_is_not_known_is_none() {
        let report = parse(REPORT);
        report.check().unwrap();
        assert_eq!((report.requests_per_second, report.latency_us.p50), (2.5, Some(4.5)));
        assert_eq!(report.latency_us.p999, None);
    }

    #[test]
    fn any_reply_that_is_not_right_is_an_error() {
        for fault in ["wrong", "reordered", "duplicated", "lost"] {
            let report = parse(&REPORT.replace(&format!("\"{fault}\":0"), &format!("\"{fault}\":1")));
            assert!(report.check().is_err(), "{fault}");
        }
        assert!(parse(&REPORT.replace("\"right\":10", "\"right\":0")).check().is_err());
        assert!(parse(&REPORT.replace("\"ok\"", "\"failed\"")).check().is_err());
    }

    #[test]
    fn arguments_follow_the_workload() {
        let flood = Flood {
            tidemill: "tidemill".into(),
            threads: 1,
            warmup: Duration::from_millis(300),
            duration: Duration::from_secs(2),
        };
        let words = |name, amount, rate| {
            let workload = Workload::find(name).unwrap();
            flood.arguments("127.0.0.1:9".parse().unwrap(), workload, amount, rate).join(" ")
        };
        let plain = words("64x16", Amount::Time, None);
        assert!(
            plain.ends_with("--connections 64 --pipeline 16 --threads 1 --warm-up 300ms --duration 2000ms"),
            "{plain}"
        );
        assert!(words("half-load", Amount::Time, Some(1234.5)).ends_with("--rate 1234"));
        assert!(words("reconnect", Amount::Requests(7), None).ends_with("--requests 7 --reconnect"));
    }
}

//! One run of the load generator, `tidemill load --json`, and what it reports.

use std::io::{Error, Read, Result};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::report::load::{LoadReport, Verdict};
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

/// A generator that runs.
#[derive(Debug)]
pub(crate) struct Running {
    process: Child,
    deadline: Instant,
}

impl Flood {
    /// Starts flooding `target`. `rate` is for workloads that are paced by the clock, `asks` what is not HELO.
    pub(crate) fn start(
        &self,
        target: SocketAddr,
        workload: &Workload,
        rate: Option<f64>,
        asks: &[&str],
        wrapper: &[String],
    ) -> Result<Running> {
        let mut words = wrapper.to_vec();
        words.push(self.tidemill.display().to_string());
        words.extend(self.arguments(target, workload, rate));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(asks).stdin(Stdio::null()).stdout(Stdio::piped());
        let deadline = Instant::now() + self.warmup + self.duration + GRACE;
        Ok(Running { process: command.spawn()?, deadline })
    }

    fn arguments(&self, target: SocketAddr, workload: &Workload, rate: Option<f64>) -> Vec<String> {
        let milliseconds = |duration: Duration| format!("{}ms", duration.as_millis());
        let mut words = vec!["load".to_owned(), target.to_string(), "--json".to_owned()];
        let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
        option("--connections", workload.connections.to_string());
        option("--pipeline", workload.pipeline.to_string());
        option("--threads", self.threads.to_string());
        option("--warm-up", milliseconds(self.warmup));
        option("--duration", milliseconds(self.duration));
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
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits for the end of the run, a few seconds beyond its duration at most. An error if the report cannot be had, or if
    /// any reply was wrong, came twice or out of order, or was lost: then nothing that was measured counts.
    pub(crate) fn report(mut self) -> Result<LoadReport> {
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
        let report: LoadReport = serde_json::from_str(&text)
            .map_err(|error| Error::other(format!("load ended with {status}, report {text:?}: {error}")))?;
        if report.verdict == Verdict::Failed {
            return Err(Error::other(format!("replies were not what they must be: {:?}", report.problems)));
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_follow_the_workload() {
        let flood = Flood {
            tidemill: "tidemill".into(),
            threads: 1,
            warmup: Duration::from_millis(300),
            duration: Duration::from_secs(2),
        };
        let words = |name, rate| {
            let workload = Workload::named(name).unwrap();
            flood.arguments("127.0.0.1:9".parse().unwrap(), workload, rate).join(" ")
        };
        let plain = words("64x16", None);
        assert!(
            plain.ends_with("--connections 64 --pipeline 16 --threads 1 --warm-up 300ms --duration 2000ms"),
            "{plain}"
        );
        assert!(words("half-load", Some(1234.5)).ends_with("--rate 1234"));
        assert!(words("reconnect", None).ends_with("--duration 2000ms --reconnect"));
    }

    /// A generator that reports what was wrong, or nothing at all.
    #[test]
    fn run_that_failed_does_not_count() {
        let flood = |tidemill: &str| {
            let (warmup, duration) = (Duration::ZERO, Duration::ZERO);
            let flood = Flood { tidemill: tidemill.into(), threads: 1, warmup, duration };
            let workload = Workload::named("64x1").unwrap();
            flood
                .start("127.0.0.1:9".parse().unwrap(), workload, None, &[], &[])
                .unwrap()
                .report()
                .unwrap_err()
        };
        let error = flood("echo").to_string();
        assert!(error.starts_with("load ended with"), "{error}");
    }
}

//! `tidemill load` against servers that are wrong in one way each, and what it says of itself.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::support::wrong_server::{Fault, WrongServer};
use crate::support::{DEADLINE, Ended, eventually, freeze, program, scratch, serve, skipped};

mod accounts;
mod ends;
mod limits;
mod usage;
mod verdicts;

/// Long enough for a reply on a machine that does other work as well; nothing waits for it.
const PATIENT: &str = "20s";

/// Waited for where a reply never comes, and long enough for the others on a machine that does other work as well.
const IMPATIENT: &str = "3s";

fn tool(target: &str, arguments: &[&str]) -> Ended {
    Ended::of(program().arg("load").arg(target).args(arguments))
}

/// What a run said, and its exit status.
struct Run {
    json: Value,
    status: i32,
}

impl Run {
    fn new(target: &str, arguments: &[&str]) -> Self {
        Self::of(&tool(target, &[arguments, &["--json"]].concat()))
    }

    #[track_caller]
    fn of(ended: &Ended) -> Self {
        let status = ended.status.code().unwrap_or_else(|| panic!("it does not end: {ended:?}"));
        let json = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        Self { json, status }
    }

    fn count(&self, group: &str, name: &str) -> u64 {
        self.json[group][name].as_u64().unwrap_or_else(|| panic!("{group}.{name} in {}", self.json))
    }

    /// Everything of the ledger that is not zero, sorted by name, and that the sums are right.
    fn errors(&self) -> Vec<(String, u64)> {
        let count = |name| self.count("requests", name);
        let settled = count("right") + count("wrong") + count("reordered") + count("lost") + count("unread");
        assert_eq!(count("sent"), settled, "{}", self.json);
        for group in ["requests", "total"] {
            let count = |name| self.count(group, name);
            assert_eq!(count("offered"), count("sent") + count("unsent"), "{group}: {}", self.json);
        }
        // Rows and latencies are of the measured part, to the request.
        let rows = self.json["series"].as_array().unwrap();
        let in_rows = |what: &str| rows.iter().filter_map(|row| row[what].as_u64()).sum::<u64>();
        let offered = if self.json["options"]["rate"].is_null() { 0 } else { count("offered") };
        assert_eq!((in_rows("sent"), in_rows("offered")), (count("sent"), offered), "{}", self.json);
        let answered = (in_rows("right"), self.count("latency_us", "count"));
        assert_eq!(answered, (count("right"), count("right")), "{}", self.json);
        let mut errors = Vec::new();
        for (group, names) in [
            ("requests", &["wrong", "reordered", "duplicated", "lost", "unread", "unasked", "unsent"][..]),
            ("connections", &["refused", "reset", "closed_early"][..]),
        ] {
            let some = names.iter().map(|&name| (name.to_owned(), self.count(group, name)));
            errors.extend(some.filter(|&(_, count)| count > 0));
        }
        errors
    }

    fn example(&self, kind: &str) -> String {
        let examples = self.json["examples"].as_array().unwrap();
        examples.iter().find(|example| example["kind"] == kind).map_or_else(String::new, Value::to_string)
    }

    fn microseconds(&self, percentile: &str) -> f64 {
        self.json["latency_us"][percentile]
            .as_f64()
            .unwrap_or_else(|| panic!("{percentile} in {}", self.json))
    }
}

/// The closed loop and the open loop, each with several requests outstanding on one connection.
fn both_loops(fault: Fault, timeout: &str, check: impl Fn(&Run, &str)) {
    let closed = ["-c", "1", "-P", "4", "-n", "40", "--timeout", timeout];
    let open = [&closed[..], &["-r", "4000"]].concat();
    for (arguments, name) in [(&closed[..], "closed"), (&open[..], "open")] {
        let server = WrongServer::start(fault);
        check(&Run::new(&server.address(), arguments), name);
    }
}

/// Expects exactly these errors, an example of the first, and exit status 1.
fn expect(fault: Fault, timeout: &str, errors: &[(&str, u64)]) {
    expect_of(fault, timeout, errors, "HELO");
}

/// The same, with a word of the example.
fn expect_of(fault: Fault, timeout: &str, errors: &[(&str, u64)], word: &str) {
    both_loops(fault, timeout, |run, name| {
        let expected: Vec<_> = errors.iter().map(|&(kind, count)| (kind.to_owned(), count)).collect();
        assert_eq!(run.errors(), expected, "{name} loop: {}", run.json);
        assert!(run.example(errors[0].0).contains(word), "{name} loop: {}", run.json["examples"]);
        assert_eq!((run.status, &run.json["verdict"]), (1, &Value::from("failed")), "{name} loop");
        assert_eq!(run.count("requests", "sent"), 40, "{name} loop");
    });
}

/// A run that goes on beside the test.
struct Flood {
    child: Child,
    /// What it says on standard error.
    words: BufReader<ChildStderr>,
}

impl Flood {
    fn start(target: &str, arguments: &[&str]) -> Self {
        let mut command = program();
        command.args(["load", target, "--json"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let words = BufReader::new(child.stderr.take().unwrap());
        Self { child, words }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end.
    #[track_caller]
    fn end(self) -> Run {
        self.end_within(DEADLINE)
    }

    #[track_caller]
    fn end_within(mut self, patience: Duration) -> Run {
        let mut stdout = self.child.stdout.take().unwrap();
        let reader = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < patience, "the run does not end");
            thread::sleep(Duration::from_millis(1));
        };
        Run::of(&Ended { status, stdout: reader.join().unwrap(), stderr: String::new() })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // It has ended, unless the test fails.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A file that is gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(scratch("load").join(name))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

//! The real binary as a child process, and the waiting that tests do: for a condition, with a deadline.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take. Generous: a loaded machine is no reason to fail.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tidemill");

/// A `tidemill serve` of its own, killed when dropped.
pub(crate) struct ServerProcess {
    child: Child,
    pub(crate) address: SocketAddr,
    stdout: Lines,
    stderr: Lines,
}

impl ServerProcess {
    /// `tidemill serve 0` with more arguments.
    pub(crate) fn start(arguments: &[&str]) -> ServerProcess {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "0"]).args(arguments);
        Self::spawn(command)
    }

    /// Any command that ends up as a server on standard output's address.
    pub(crate) fn spawn(mut command: Command) -> ServerProcess {
        for variable in ["MIN_THREADS", "MAX_THREADS", "TOLERANCE", "STUDENT_ID"] {
            if !command.get_envs().any(|(name, _)| name == variable) {
                command.env_remove(variable);
            }
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = Lines::read(child.stdout.take().expect("it is piped"));
        let stderr = Lines::read(child.stderr.take().expect("it is piped"));
        let line = stdout.wait_for(|line| line.starts_with("listening on "));
        let address: SocketAddr = line["listening on ".len()..].parse().expect("an address");
        ServerProcess { child, address, stdout, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("the server runs");
    }

    /// Waits for a line of the log that holds `text`.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        self.stderr.wait_for(|line| line.contains(text))
    }

    /// Waits for a line of JSON on standard output that satisfies `condition`.
    pub(crate) fn wait_for_stats(&self, condition: impl Fn(&Value) -> bool) -> Value {
        let line = self.stdout.wait_for(|line| json(line).is_some_and(|stats| condition(&stats)));
        json(&line).expect("it was parsed before")
    }

    /// Every line of JSON on standard output so far.
    pub(crate) fn stats_lines(&self) -> Vec<Value> {
        self.stdout.all().iter().filter_map(|line| json(line)).collect()
    }

    /// The statistics now, by way of SIGUSR1.
    pub(crate) fn stats(&self) -> Value {
        let before = self.stderr.all().iter().filter(|line| line.contains(" statistics ")).count();
        self.signal(Signal::USR1);
        let mut seen = 0;
        let line = self.stderr.wait_for(|line| {
            seen += usize::from(line.contains(" statistics "));
            seen > before && line.contains(" statistics ")
        });
        stats_in(&line)
    }

    /// Polls the statistics until they satisfy `condition`.
    pub(crate) fn wait_until(&self, mut condition: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        until(|| {
            last = self.stats();
            condition(&last)
        });
        last
    }

    /// Waits until replies wait for a peer that does not read: some are pending, no worker runs, and many looks see the same.
    pub(crate) fn wait_until_it_stands(&self) {
        let (mut before, mut same) = (0, 0);
        self.wait_until(|stats| {
            let read = number(stats, "read_bytes_total");
            let stands = std::mem::replace(&mut before, read) == read;
            let waits = number(stats, "requests_pending") > 0 && number(stats, "pool_busy") == 0;
            same = if stands && waits { same + 1 } else { 0 };
            same == 20
        });
    }

    /// Waits for the end, and returns the status and the final statistics.
    pub(crate) fn wait(mut self) -> (ExitStatus, Value, Vec<String>) {
        let mut status = None;
        until(|| {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        let log = self.stderr.finish();
        let last = log.iter().rev().find(|line| line.contains("stats={")).map(|line| stats_in(line));
        (status.expect("it has ended"), last.unwrap_or(Value::Null), log)
    }

    /// Stops it gracefully and checks that nothing was lost.
    pub(crate) fn stop(self) -> Value {
        self.signal(Signal::TERM);
        let (status, stats, log) = self.wait();
        assert_eq!(status.code(), Some(0), "{log:#?}");
        stats
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn json(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}

/// The statistics in a line of the log.
pub(crate) fn stats_in(line: &str) -> Value {
    let start = line.find("stats=").expect("a line with statistics") + "stats=".len();
    let mut documents = serde_json::Deserializer::from_str(&line[start..]).into_iter();
    documents.next().expect("a document").expect("JSON")
}

/// One number of the statistics, by its path: `closed.eof`.
pub(crate) fn number(stats: &Value, path: &str) -> u64 {
    let value = path.split('.').fold(stats, |value, key| &value[key]);
    value.as_u64().unwrap_or_else(|| panic!("no {path} in {stats}"))
}

/// Checks that the counters add up.
pub(crate) fn assert_adds_up(stats: &Value) {
    let sum = |path: &str| {
        let members = path.split('.').fold(stats, |value, key| &value[key]).as_object().expect("an object");
        members.values().map(|value| value.as_u64().expect("a count")).sum::<u64>()
    };
    let closed = sum("connections_closed_total") + sum("connections_rejected_total");
    assert_eq!(number(stats, "connections_accepted_total"), number(stats, "connections") + closed, "{stats}");
    let ended = ["replies_total", "requests_silent_total", "requests_pending", "requests_dropped_total"];
    let ended: u64 = ended.iter().map(|name| number(stats, name)).sum();
    assert_eq!(sum("requests_total"), ended, "{stats}");
}

/// Waits until `condition` holds.
pub(crate) fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not happen within {DEADLINE:?}");
        thread::yield_now();
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// The lines of a pipe, read by a thread of their own so that the writer is never held up.
struct Lines {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    read: Mutex<Read>,
    news: Condvar,
}

#[derive(Default)]
struct Read {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn read(pipe: impl io::Read + Send + 'static) -> Lines {
        let shared = Arc::new(Shared::default());
        let reader = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    shared.read.lock().unwrap().lines.push(line);
                    shared.news.notify_all();
                }
                shared.read.lock().unwrap().ended = true;
                shared.news.notify_all();
            }
        });
        Lines { shared, reader: Some(reader) }
    }

    fn wait_for(&self, mut matches: impl FnMut(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut read = self.shared.read.lock().unwrap();
        let mut looked_at = 0;
        loop {
            for line in &read.lines[looked_at..] {
                if matches(line) {
                    return line.clone();
                }
            }
            looked_at = read.lines.len();
            let rest = deadline.saturating_duration_since(Instant::now());
            assert!(!rest.is_zero() && !read.ended, "the line did not come; there were {:#?}", read.lines);
            read = self.shared.news.wait_timeout(read, rest).unwrap().0;
        }
    }

    fn all(&self) -> Vec<String> {
        self.shared.read.lock().unwrap().lines.clone()
    }

    /// All lines, once the writer has closed.
    fn finish(&mut self) -> Vec<String> {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.all()
    }
}

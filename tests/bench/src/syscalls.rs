//! System calls of a running server, by name.
//!
//! perf counts them in the kernel and changes next to nothing. Where it is missing, strace does, which stops the server
//! at each of them: slower, so that more lines come with each read, and the counts per request are lower than they are.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::server::wait_until;

/// The calls that perf counts one by one; all others are told as `others`.
const NAMES: &[&str] = &[
    "accept4",
    "clone3",
    "close",
    "clock_nanosleep",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "exit",
    "futex",
    "getsockname",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "poll",
    "read",
    "readv",
    "recvfrom",
    "sched_yield",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "write",
    "writev",
];

/// What counts all calls for perf.
const ALL: &str = "raw_syscalls:sys_enter";

/// Switches between threads, which perf counts too, and of threads that end meanwhile, which /proc forgets.
const SWITCHES: &str = "context-switches";

/// How long strace may take to attach, and to write its table.
const STRACE_TIMEOUT: Duration = Duration::from_secs(5);

/// What counts the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// `perf stat` on the kernel's trace points.
    Perf,
    /// `strace -c`.
    Strace,
}

impl Counter {
    /// The best that works here.
    pub fn available() -> Option<Self> {
        let works = |words: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status()
        };
        let is_success = |words: &[&str]| works(words).is_ok_and(|status| status.success());
        if is_success(&["perf", "stat", "-e", ALL, "true"]) {
            Some(Counter::Perf)
        } else if is_success(&["strace", "-c", "-o", "/dev/null", "true"]) {
            Some(Counter::Strace)
        } else {
            None
        }
    }

    /// Begins to count the calls of process `pid`, new threads included. What is to be counted must then be run through
    /// [`Counting::wrapper`]. Blocks until the process is watched.
    ///
    /// # Errors
    /// If the tool cannot be run or does not attach.
    pub fn attach(self, pid: u32, scratch: &Path) -> Result<Counting> {
        let file = scratch.join("syscalls");
        let out = file.display().to_string();
        match self {
            // perf counts for as long as the program runs that it starts.
            Counter::Perf => {
                let single = NAMES.iter().map(|name| format!("syscalls:sys_enter_{name}"));
                let events: Vec<String> =
                    [ALL, SWITCHES].map(str::to_owned).into_iter().chain(single).collect();
                let (events, pid) = (events.join(","), pid.to_string());
                let words = ["perf", "stat", "-x,", "-e", &events, "-p", &pid, "-o", &out, "--"];
                Ok(Counting { wrapper: words.map(str::to_owned).to_vec(), strace: None, file })
            }
            Counter::Strace => {
                let strace = Command::new("strace")
                    .args(["-c", "-f", "-p", &pid.to_string(), "-o", &out])
                    .stderr(Stdio::null())
                    .spawn()?;
                let counting = Counting { wrapper: Vec::new(), strace: Some(strace), file };
                let deadline = Instant::now() + STRACE_TIMEOUT;
                while !is_traced(pid)? {
                    if Instant::now() > deadline {
                        return Err(Error::new(ErrorKind::TimedOut, "strace does not attach"));
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(counting)
            }
        }
    }
}

/// Whether every thread of process `pid` has a tracer.
fn is_traced(pid: u32) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        if status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() == "0")) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// System calls by name.
    pub calls: BTreeMap<String, u64>,
    /// Context switches, if the tool counts them.
    pub switches: Option<u64>,
}

/// A process whose calls are counted.
#[derive(Debug)]
pub struct Counting {
    wrapper: Vec<String>,
    strace: Option<Child>,
    file: PathBuf,
}

impl Counting {
    /// What goes before the program during whose run the calls are to be counted.
    pub fn wrapper(&self) -> &[String] {
        &self.wrapper
    }

    /// The counts; that program must have ended.
    ///
    /// # Errors
    /// If the tool says nothing that is understood.
    pub fn finish(mut self) -> Result<Counts> {
        let Some(mut strace) = self.strace.take() else {
            return parse_perf(&fs::read_to_string(&self.file)?);
        };
        let pid = i32::try_from(strace.id()).map_err(|_| ErrorKind::InvalidData)?;
        kill(Pid::from_raw(pid), Signal::SIGINT)?;
        wait_until(&mut strace, Instant::now() + STRACE_TIMEOUT)?;
        parse_strace(&fs::read_to_string(&self.file)?)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Some(strace) = &mut self.strace {
            // Left behind by an error: its counts do not matter, and neither does why it had ended.
            let _ = strace.kill();
            let _ = strace.wait();
        }
    }
}

/// Counts from `perf stat -x,`: `count,unit,event,…`.
fn parse_perf(text: &str) -> Result<Counts> {
    let (mut calls, mut all, mut switches) = (BTreeMap::new(), None, None);
    for line in text.lines() {
        let mut fields = line.split(',');
        let (Some(count), Some(event)) = (fields.next(), fields.nth(1)) else { continue };
        // Events that this kernel does not have are `<not supported>`, or missing.
        let Ok(count) = count.parse::<u64>() else { continue };
        // A modifier such as `:u` may follow.
        if event.starts_with(ALL) {
            all = Some(count);
        } else if event.starts_with(SWITCHES) {
            switches = Some(count);
        } else if let Some((_, name)) = event.split_once("sys_enter_") {
            calls.insert(name.to_owned(), count);
        }
    }
    let all = all.ok_or_else(|| Error::other(format!("perf said {text:?}")))?;
    calls.insert("others".to_owned(), all.saturating_sub(calls.values().sum()));
    calls.retain(|_, count| *count > 0);
    Ok(Counts { calls, switches })
}

/// Counts from the table of `strace -c`: share, seconds, microseconds a call, calls, errors if any, name.
fn parse_strace(text: &str) -> Result<Counts> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let name = *fields.last()?;
        Some((name.to_owned(), fields.get(3)?.parse().ok()?))
    };
    let rows = text.lines().skip_while(|line| !line.starts_with("---")).skip(1);
    let calls: BTreeMap<String, u64> =
        rows.take_while(|line| !line.starts_with("---")).filter_map(row).collect();
    if calls.is_empty() {
        return Err(Error::other(format!("strace said {text:?}")));
    }
    Ok(Counts { calls, switches: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_perf_are_read_and_what_is_not_named_is_others() {
        let text = "# started on Sun\n\n100,,raw_syscalls:sys_enter,1,100.00,,\n\
                    7,,context-switches,1,100.00,,\n60,,syscalls:sys_enter_sendto,1,100.00,,\n\
                    0,,syscalls:sys_enter_read,1,100.00,,\n<not supported>,,syscalls:sys_enter_poll,0,100.00,,\n";
        let counts = parse_perf(text).unwrap();
        assert_eq!(counts.calls, BTreeMap::from([("sendto".to_owned(), 60), ("others".to_owned(), 40)]));
        assert_eq!(counts.switches, Some(7));
        assert!(parse_perf("# nothing").is_err());
    }

    #[test]
    fn counts_of_strace_are_read_with_and_without_errors() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n\
                    ------ ----------- ----------- --------- --------- ----------------\n \
                    60.00    0.000600           1       300        12 recvfrom\n \
                    40.00    0.000400           1       288           sendto\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    100.00    0.001000           1       588        12 total\n";
        let counts = parse_strace(text).unwrap();
        assert_eq!(counts.calls, BTreeMap::from([("recvfrom".to_owned(), 300), ("sendto".to_owned(), 288)]));
    }
}

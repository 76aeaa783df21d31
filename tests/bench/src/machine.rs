//! What the kernel knows of processes and of the machine: CPU time, context switches, resident memory.
//!
//! CPU time of a process comes from its CPU clock, which counts the scheduler's nanoseconds; `utime` and `stime` in
//! /proc have a resolution of 10 ms.

use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde::Serialize;

/// CPU time of all tasks, exact, where cgroup v1 is mounted.
const CPUACCT: &str = "/sys/fs/cgroup/cpuacct/cpuacct.usage";

/// A tick of the counters in /proc/stat, the same on every Linux that user space can see.
const TICK: Duration = Duration::from_millis(10);

/// The CPU clock of a process: of all its threads, those that have ended too.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// The clock of process `pid`.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).map_err(|_| ErrorKind::InvalidInput)?;
        Ok(CpuClock(ClockId::pid_cpu_clock_id(Pid::from_raw(pid))?))
    }

    /// CPU time, user and system, since the process began.
    ///
    /// # Errors
    /// If the process has ended and was waited for.
    pub fn read(&self) -> Result<Duration> {
        Ok(self.0.now()?.into())
    }
}

/// CPU time of the whole machine since it booted.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineTime {
    /// Spent by any process or by the kernel.
    pub busy: Duration,
    /// Taken by the host for other guests.
    pub stolen: Duration,
}

impl MachineTime {
    /// The time now.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn now() -> Result<Self> {
        let mut time = parse_stat(&fs::read_to_string("/proc/stat")?)?;
        if let Ok(usage) = fs::read_to_string(CPUACCT) {
            time.busy = Duration::from_nanos(usage.trim().parse().map_err(|_| ErrorKind::InvalidData)?);
        }
        Ok(time)
    }
}

/// Busy and stolen time from the first line of /proc/stat.
fn parse_stat(stat: &str) -> Result<MachineTime> {
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u32> = line.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = fields[..] else {
        return Err(Error::new(ErrorKind::InvalidData, "/proc/stat: too few fields"));
    };
    Ok(MachineTime { busy: (user + nice + system + irq + softirq) * TICK, stolen: stolen * TICK })
}

/// The kernel's threads that deliver packets when the sender does not: their work belongs to the benchmark.
///
/// # Errors
/// If /proc cannot be read.
pub fn softirq_threads() -> Result<Vec<CpuClock>> {
    let mut clocks = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("ksoftirqd/") {
            clocks.push(CpuClock::of(pid)?);
        }
    }
    Ok(clocks)
}

/// Context switches of all living threads of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Switches {
    /// The thread went to sleep.
    pub voluntary: u64,
    /// The thread was made to give way.
    pub involuntary: u64,
}

impl Switches {
    /// The switches of process `pid` so far.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn of(pid: u32) -> Result<Self> {
        let mut sum = Switches::default();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread that ends meanwhile has no file any more.
            let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
            sum.voluntary += field(&status, "voluntary_ctxt_switches:")?;
            sum.involuntary += field(&status, "nonvoluntary_ctxt_switches:")?;
        }
        Ok(sum)
    }

    /// Those that came after `earlier`; none where threads that ended took more along.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Switches {
            voluntary: self.voluntary.saturating_sub(earlier.voluntary),
            involuntary: self.involuntary.saturating_sub(earlier.involuntary),
        }
    }

    /// Of both kinds.
    pub fn total(self) -> u64 {
        self.voluntary + self.involuntary
    }
}

/// Resident memory of process `pid` that no file backs, in bytes: heap and stacks.
///
/// # Errors
/// If the process has ended, or the kernel has no `smaps_rollup`.
pub fn anonymous_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    Ok(field(&fs::read_to_string(path)?, "Anonymous:")? * 1024)
}

/// The first number behind `name` at the front of a line.
fn field(text: &str, name: &str) -> Result<u64> {
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| Error::new(ErrorKind::InvalidData, format!("no field {name}")))
}

/// Lets this process and those it starts open as many files as the system allows them.
///
/// # Errors
/// If the system refuses; the limit is unchanged then.
pub fn raise_file_limit() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// What the figures were measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Name and release of the kernel.
    pub kernel: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read(Path::new("/proc/cpuinfo"));
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            processor: model.map_or("unknown", |(_, name)| name).to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            kernel: format!("Linux {}", read(Path::new("/proc/sys/kernel/osrelease")).trim_end()),
        }
    }
}

/// The lowest CPU that this process may use.
///
/// # Errors
/// If /proc cannot be read.
pub fn first_cpu() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let first = list.trim().split([',', '-']).next().and_then(|cpu| cpu.parse().ok());
    first.ok_or_else(|| ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_and_stolen_are_told_from_idle() {
        let time = parse_stat("cpu  4660 1 1739 346672 227 2 28 9 0 0\ncpu0 1 2 3\n").unwrap();
        assert_eq!((time.busy, time.stolen), (6430 * TICK, 9 * TICK));
        assert!(parse_stat("cpu 1 2 3").is_err());
    }

    #[test]
    fn cpu_clock_of_this_process_advances_with_work() {
        let clock = CpuClock::of(std::process::id()).unwrap();
        let before = clock.read().unwrap();
        while clock.read().unwrap() < before + Duration::from_millis(2) {}
        assert!(CpuClock::of(u32::MAX).is_err());
    }

    #[test]
    fn own_switches_and_memory_can_be_read() {
        let pid = std::process::id();
        std::thread::sleep(Duration::from_millis(1));
        assert!(Switches::of(pid).unwrap().voluntary > 0);
        assert!(anonymous_bytes(pid).unwrap() > 4096);
        assert!(first_cpu().is_ok());
    }
}

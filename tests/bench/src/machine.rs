//! What the kernel knows of processes and of the machine: CPU time, context switches.
//!
//! CPU time of a process comes from its CPU clock, which counts the scheduler's nanoseconds; what /proc has is counted in
//! ticks of 10 ms.

use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::ClockId;
use nix::unistd::Pid;
use procfs::process::{Process, all_processes};
use procfs::{CpuInfo, Current, CurrentSI, KernelStats};
use serde::Serialize;

/// CPU time of all tasks, exact, where cgroup v1 is mounted.
const CPUACCT: &str = "/sys/fs/cgroup/cpuacct/cpuacct.usage";

/// The number of a process, as the system calls want it.
pub(crate) fn signed(pid: u32) -> Result<i32> {
    Ok(i32::try_from(pid).map_err(|_| ErrorKind::InvalidInput)?)
}

/// The CPU clock of a process: of all its threads, those that have ended too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuClock(ClockId);

impl CpuClock {
    /// The clock of process `pid`.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Ok(CpuClock(ClockId::pid_cpu_clock_id(Pid::from_raw(signed(pid)?))?))
    }

    /// CPU time, user and system, since the process began.
    pub(crate) fn read(&self) -> Result<Duration> {
        Ok(self.0.now()?.into())
    }
}

/// CPU time of the whole machine since it booted: spent by any process or by the kernel, and taken by the host for other guests.
pub(crate) fn machine_time() -> Result<(Duration, Duration)> {
    let total = KernelStats::current().map_err(Error::other)?.total;
    let interrupts = total.irq_duration().unwrap_or_default() + total.softirq_duration().unwrap_or_default();
    let mut busy = total.user_duration() + total.nice_duration() + total.system_duration() + interrupts;
    if let Ok(usage) = fs::read_to_string(CPUACCT) {
        busy = Duration::from_nanos(usage.trim().parse().map_err(|_| ErrorKind::InvalidData)?);
    }
    Ok((busy, total.steal_duration().unwrap_or_default()))
}

/// The kernel's threads that deliver packets when the sender does not: their work belongs to the benchmark.
pub(crate) fn softirq_threads() -> Result<Vec<CpuClock>> {
    // One that ends meanwhile is none of them.
    let all = all_processes().map_err(Error::other)?.filter_map(|process| process.ok()?.stat().ok());
    all.filter(|stat| stat.comm.starts_with("ksoftirqd/"))
        .map(|stat| CpuClock::of(stat.pid.unsigned_abs()))
        .collect()
}

/// Context switches of all living threads of process `pid` so far.
pub(crate) fn switches(pid: u32) -> Result<u64> {
    let tasks = Process::new(signed(pid)?).and_then(|process| process.tasks()).map_err(Error::other)?;
    // A thread that ends meanwhile has no status any more.
    let status = tasks.filter_map(|task| task.ok()?.status().ok());
    let of_thread = |counts: [Option<u64>; 2]| counts.into_iter().flatten().sum::<u64>();
    Ok(status
        .map(|status| of_thread([status.voluntary_ctxt_switches, status.nonvoluntary_ctxt_switches]))
        .sum())
}

/// Lets this process and those it starts have as many files and threads as the system allows at all.
pub(crate) fn raise_limits() -> Result<()> {
    for resource in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_NPROC] {
        let (_, most) = getrlimit(resource)?;
        setrlimit(resource, most, most)?;
    }
    Ok(())
}

/// What the figures were measured on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    /// That this process may use.
    pub(crate) cpus: usize,
    pub(crate) kernel: String,
}

impl Machine {
    /// This machine.
    pub(crate) fn this() -> Self {
        let info = CpuInfo::current().ok();
        let model = info.as_ref().and_then(|info| info.model_name(0));
        let kernel = nix::sys::utsname::uname();
        let kernel = kernel.map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
        Machine {
            processor: model.unwrap_or("unknown").to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            kernel: format!("Linux {kernel}"),
        }
    }

    /// In one line.
    pub(crate) fn described(&self) -> String {
        format!("{} CPUs, {}, {}", self.cpus, self.processor, self.kernel)
    }
}

/// The lowest CPU that this process may use.
pub(crate) fn first_cpu() -> Result<u32> {
    let status = Process::myself().and_then(|own| own.status()).map_err(Error::other)?;
    let ranges = status.cpus_allowed_list.unwrap_or_default();
    ranges.first().map(|(first, _)| *first).ok_or_else(|| ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_clock_of_this_process_advances_with_work() {
        let clock = CpuClock::of(std::process::id()).unwrap();
        let before = (clock.read().unwrap(), machine_time().unwrap().0);
        while clock.read().unwrap() < before.0 + Duration::from_millis(25) {}
        assert!(machine_time().unwrap().0 > before.1, "a tick of the machine's clock is 10 ms");
        assert!(CpuClock::of(u32::MAX).is_err());
    }

    #[test]
    fn own_switches_can_be_read() {
        let pid = std::process::id();
        let before = switches(pid).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(switches(pid).unwrap() > before);
        assert!(first_cpu().is_ok());
    }
}

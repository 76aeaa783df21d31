//! What is counted of programs, and how it is shown.

use std::fs;

/// A snapshot of the programs of a [`Programs`](super::Programs).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProgramsStats {
    /// Whether programs stay where they are started. While they do not, requests are refused: a server behind a balancer is not
    /// ready.
    pub available: bool,
    /// Programs that wait for a request.
    pub ready: u64,
    /// Programs ever started.
    pub started_total: u64,
    /// Programs that ended, by cause.
    pub ended_total: ProgramEnds,
    /// Programs that run, those that start or are to end among them.
    pub running: u64,
    /// Memory that their processes occupy, without their children; of many, the oldest stand for all. 0 where the system does not say.
    pub resident_bytes: u64,
}

/// Programs that ended, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProgramEnds {
    /// By themselves, whatever they did before.
    pub died: u64,
    /// They had not replied in time.
    pub timed_out: u64,
    /// They wrote something that was no reply, or closed their input or output and lived on.
    pub broke_framing: u64,
    /// They had served as many requests, or lived as long, as they may.
    pub replaced: u64,
    /// Nobody needed them any more.
    pub surplus: u64,
}

/// One program that runs.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProgramStats {
    /// Counted from 1 over all that were started. The program has it as `TIDEMILL_PROGRAM`.
    pub number: u64,
    /// Of its process.
    pub pid: u32,
    /// Since it was started.
    pub age_seconds: f64,
    /// Requests that it has served.
    pub requests: u64,
    /// Memory that its process occupies, without its children. 0 where the system does not say.
    pub resident_bytes: u64,
    /// It waits for a request.
    pub ready: bool,
}

/// By `statm`, in pages.
pub(super) fn resident_bytes(id: u32) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{id}/statm"))
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

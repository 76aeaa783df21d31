//! One snapshot as text, for what is no terminal; and how values are written in both.

use std::fmt::Write;

use tidemill::Address;

use super::stats::{Programs, Stats, Times};
use crate::report;

/// Decisions of a snapshot.
const DECISIONS: usize = 5;

/// A length of time as people say it.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        0.0 => "0".to_owned(),
        ..120.0 => report::microseconds(seconds * 1e6),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.0} h", seconds / 3600.0),
        _ => format!("{:.0} d", seconds / 86400.0),
    }
}

/// A size as people say it.
pub(super) fn bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        ..1024.0 => format!("{bytes} B"),
        ..1_048_576.0 => format!("{:.1} KiB", bytes / 1024.0),
        ..1_073_741_824.0 => format!("{:.1} MiB", bytes / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes / 1_073_741_824.0),
    }
}

pub(super) fn count(value: u64) -> String {
    report::number(value as f64)
}

/// What is there now, and how it came to be.
pub(super) fn snapshot(stats: &Stats, address: &Address) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<12} {what}");
    };
    let Stats { version, pid, state, uptime_seconds, .. } = stats;
    line("tidemill", format!("{version} at {address}, process {pid}, up for {}", seconds(*uptime_seconds)));
    let state = [Some(state.clone()), stats.not_ready()];
    line("state", state.into_iter().flatten().collect::<Vec<_>>().join(", "));
    line(
        "connections",
        format!(
            "{}, {} accepted, {} rejected, {} held",
            count(stats.connections),
            count(stats.connections_accepted_total),
            report::number(stats.rejected()),
            bytes(stats.held_bytes)
        ),
    );
    line(
        "requests",
        format!(
            "{}, {} replied, {} pending, {} dropped",
            report::number(stats.requests()),
            count(stats.replies_total),
            count(stats.requests_pending),
            count(stats.requests_dropped_total)
        ),
    );
    line("pool", stats.pool_line());
    line("wait", times(&stats.queue_wait_seconds));
    line("service", times(&stats.service_seconds));
    for sums in stats.programs.iter().flat_map(Programs::lines) {
        line("programs", sums);
    }
    for stuck in &stats.stuck {
        let age = seconds(stuck.age_seconds);
        line("stuck", format!("{} for {age}, peer {}", stuck.worker, stuck.peer()));
    }
    for decided in stats.decisions.iter().rev().take(DECISIONS) {
        line("decision", format!("{} ago: {}", stats.ago(decided), decided.words));
    }
    text
}

fn times(times: &Times) -> String {
    let Times { count: number, p50, p90, p99, max } = times;
    let [p50, p90, p99, max] = [p50, p90, p99, max].map(|value| seconds(*value));
    format!("p50 {p50}, p90 {p90}, p99 {p99}, max {max}, of {}", count(*number))
}

//! What `/stats.json` and `/connections.json` say, as far as it is shown.

use serde::Deserialize;
use serde_json::Value;

use super::text::{bytes, count, seconds};

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Stats {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) state: String,
    pub(super) ready: bool,
    pub(super) reason: Option<String>,
    pub(super) uptime_seconds: f64,
    pub(super) connections: u64,
    pub(super) connections_accepted_total: u64,
    connections_rejected_total: Value,
    requests_total: Value,
    pub(super) replies_total: u64,
    pub(super) requests_pending: u64,
    pub(super) requests_dropped_total: u64,
    pub(super) queue_wait_seconds: Times,
    pub(super) service_seconds: Times,
    pub(super) pool_threads: u64,
    pub(super) pool_busy: u64,
    pub(super) pool_waiting: u64,
    pub(super) pool_min: u64,
    pub(super) pool_max: u64,
    pub(super) pool_demand: u64,
    pub(super) pool_saturation: f64,
    pub(super) pool_cores: u64,
    pub(super) held_bytes: u64,
    pub(super) buckets: Buckets,
    pub(super) stuck: Vec<Stuck>,
    pub(super) decisions: Vec<Decided>,
    /// Where programs serve.
    pub(super) programs: Option<Programs>,
}

/// The programs that serve.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Programs {
    running: u64,
    ready: u64,
    resident_bytes: u64,
    started_total: u64,
    ended_total: Ends,
}

/// Those that ended, by cause.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Ends {
    died: u64,
    timed_out: u64,
    broke_framing: u64,
    replaced: u64,
    surplus: u64,
}

impl Programs {
    /// Those that run, and those that were.
    pub(super) fn lines(&self) -> [String; 2] {
        let Programs { running, ready, started_total, ended_total: ends, .. } = self;
        [
            format!("{running} run, {ready} ready, {} of memory", bytes(self.resident_bytes)),
            format!(
                "{started_total} started; ended: {} by themselves, {} too late, {} for what they wrote, {} replaced, {} not needed",
                ends.died, ends.timed_out, ends.broke_framing, ends.replaced, ends.surplus
            ),
        ]
    }
}

/// A distribution since the start, in seconds.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Times {
    pub(super) count: u64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// How many times since the start are no longer than each bound, and the last of all.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Buckets {
    pub(super) bounds: Vec<f64>,
    pub(super) queue_wait_seconds: Vec<u64>,
    pub(super) service_seconds: Vec<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Stuck {
    pub(super) worker: String,
    pub(super) age_seconds: f64,
    pub(super) peer: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Decided {
    pub(super) t: f64,
    pub(super) words: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Connection {
    pub(super) peer: String,
    pub(super) age_seconds: f64,
    pub(super) state: String,
    pub(super) held_bytes: u64,
}

impl Stuck {
    /// Whose request it has.
    pub(super) fn peer(&self) -> &str {
        self.peer.as_deref().unwrap_or("gone")
    }
}

impl Stats {
    /// # Errors
    /// One line: it is not what a server of this make says.
    pub(super) fn parse(text: &str) -> Result<Stats, String> {
        serde_json::from_str(text).map_err(|error| format!("/stats.json is not as it should be: {error}"))
    }

    /// Lines accepted, of all services and kinds.
    pub(super) fn requests(&self) -> f64 {
        sum(&self.requests_total)
    }

    /// The pool in one line.
    pub(super) fn pool_line(&self) -> String {
        format!(
            "{} of {} workers busy, {} to {} allowed, demand {} ({:.0} %), {} jobs waiting, {} cores",
            self.pool_busy,
            self.pool_threads,
            self.pool_min,
            self.pool_max,
            self.pool_demand,
            self.pool_saturation * 100.0,
            count(self.pool_waiting),
            self.pool_cores
        )
    }

    /// Why it is not ready, if it is not.
    pub(super) fn not_ready(&self) -> Option<String> {
        self.reason.as_ref().map(|reason| format!("not ready: {reason}"))
    }

    /// How long ago that was decided.
    pub(super) fn ago(&self, decided: &Decided) -> String {
        seconds((self.uptime_seconds - decided.t).max(0.0))
    }

    /// Connections turned away, for all reasons.
    pub(super) fn rejected(&self) -> f64 {
        sum(&self.connections_rejected_total)
    }
}

/// A number, or the sum of all in an object.
pub(super) fn sum(value: &Value) -> f64 {
    match value {
        Value::Object(fields) => fields.values().map(sum).sum(),
        value => value.as_f64().unwrap_or_default(),
    }
}

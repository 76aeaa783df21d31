//! What `/stats.json` and `/connections.json` say, as far as it is shown.

use serde::Deserialize;
use serde_json::Value;

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
pub(super) struct Connections {
    pub(super) connections: Vec<Connection>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Connection {
    pub(super) peer: String,
    pub(super) age_seconds: f64,
    pub(super) state: String,
    pub(super) held_bytes: u64,
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

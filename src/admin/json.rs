//! The statistics, and the connections that hold most, as JSON: what the page, `tidemill top` and scripts read.

use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use crate::address::Address;
use crate::controller::Decision;
use crate::mail::Holder;
use crate::metrics::Stats;
use crate::overview::Overview;
use crate::pool::OldJob;
use crate::sync::lock_std;
use crate::timings::Buckets;

/// Decisions that are told, the last ones: a pool that changes its size all the time takes one every few milliseconds.
const MAX_DECISIONS: usize = 64;

pub(super) const CONTENT_TYPE: &str = "application/json";

#[derive(Serialize)]
struct Now<'a> {
    version: &'static str,
    pid: u32,
    unix_seconds: f64,
    state: &'static str,
    ready: bool,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(flatten)]
    stats: &'a Stats,
    buckets: Histograms,
    stuck: Vec<StuckRow>,
    /// The oldest first.
    decisions: Vec<Decided>,
    /// What the embedder tells besides.
    #[serde(flatten)]
    details: Option<HashMap<String, Value>>,
}

/// How many times are no longer than each bound, and the last of all: who looks twice has the percentiles of the time between.
#[derive(Serialize)]
struct Histograms {
    /// In seconds.
    bounds: Vec<f64>,
    queue_wait_seconds: Vec<u64>,
    service_seconds: Vec<u64>,
}

impl Histograms {
    fn of(overview: &Overview) -> Histograms {
        let (queue_wait, service) = overview.hub.timings.histograms();
        let counts = |buckets: &Buckets| {
            let up_to = buckets.up_to.iter().map(|(_, count)| *count);
            up_to.chain([buckets.count]).collect()
        };
        Histograms {
            bounds: queue_wait.up_to.iter().map(|(bound, _)| *bound).collect(),
            queue_wait_seconds: counts(&queue_wait),
            service_seconds: counts(&service),
        }
    }
}

/// A handler that has not returned for long.
#[derive(Serialize)]
struct StuckRow {
    worker: String,
    age_seconds: f64,
    /// `null`: its connection is gone.
    peer: Option<String>,
}

/// A decision, with its reason in words.
#[derive(Serialize)]
struct Decided {
    #[serde(flatten)]
    decision: Decision,
    words: String,
}

/// `/stats.json`. `peers`: of those who are `stuck`.
pub(super) fn stats(overview: &Overview, stuck: Vec<OldJob>, peers: Vec<Option<Address>>) -> Vec<u8> {
    let reason = overview.not_ready();
    let row = |(stuck, peer): (OldJob, Option<Address>)| StuckRow {
        worker: stuck.worker,
        age_seconds: stuck.age.as_secs_f64(),
        peer: peer.map(|peer| peer.to_string()),
    };
    let decided = |decision: Decision| Decided { words: decision.to_string(), decision };
    let mut decisions = overview.decisions();
    decisions.drain(..decisions.len().saturating_sub(MAX_DECISIONS));
    let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    json(&Now {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        unix_seconds,
        state: overview.state().as_str(),
        ready: reason.is_none(),
        reason,
        stats: &overview.stats(),
        buckets: Histograms::of(overview),
        stuck: stuck.into_iter().zip(peers).map(row).collect(),
        decisions: decisions.into_iter().map(decided).collect(),
        details: details(overview),
    })
}

/// What somebody else says is left out where it is no JSON.
fn details(overview: &Overview) -> Option<HashMap<String, Value>> {
    let (name, details) =
        lock_std(&overview.details).as_ref().map(|(name, details)| (name.clone(), Arc::clone(&details.0)))?;
    // Unwind safety: nothing of it is used any more.
    let said = panic::catch_unwind(AssertUnwindSafe(|| details())).ok()?;
    Some(HashMap::from([(name, serde_json::from_str(&said).ok()?)]))
}

#[derive(Serialize)]
struct ConnectionRow<'a> {
    peer: String,
    service: &'a str,
    age_seconds: f64,
    state: &'static str,
    held_bytes: usize,
}

/// `/connections.json`: a list.
pub(super) fn connections(overview: &Overview, most: Vec<Holder>) -> Vec<u8> {
    let row = |holder: Holder| ConnectionRow {
        peer: holder.peer.to_string(),
        service: overview.service_names.get(holder.service as usize).map_or("", String::as_str),
        age_seconds: Duration::from_nanos(holder.age_nanos).as_secs_f64(),
        state: holder.state,
        held_bytes: holder.held_bytes,
    };
    json(&most.into_iter().map(row).collect::<Vec<_>>())
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Plain numbers and text: it cannot fail.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

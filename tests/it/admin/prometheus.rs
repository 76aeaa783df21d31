//! `/metrics`: names of the contract, sums that hold in every scrape, and Prometheus itself, where it is installed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use tidemill::Helo;

use super::{admin_of, admin_of_program, get, try_get};
use crate::examples::missing;
use crate::support::{
    DEADLINE, Peer, Serving, assert_json_adds_up, configure, eventually, in_parallel, resolved, scratch,
    serve,
};

/// Values by name with labels, as they are written.
fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let answer = get(address, "/metrics");
    assert_eq!(answer.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
    let values = lines.map(|line| line.rsplit_once(' ').unwrap());
    values.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

/// The sum of a metric over its labels.
#[track_caller]
fn sum(metrics: &BTreeMap<String, f64>, name: &str) -> f64 {
    let of_it = metrics.iter().filter(|(key, _)| key.split('{').next() == Some(name));
    let values: Vec<f64> = of_it.map(|(_, value)| *value).collect();
    assert!(!values.is_empty(), "{name}");
    values.iter().sum()
}

#[track_caller]
fn assert_adds_up(metrics: &BTreeMap<String, f64>) {
    let sum = |name: &str| sum(metrics, &format!("tidemill_{name}"));
    assert_eq!(
        sum("connections_accepted_total"),
        sum("connections") + sum("connections_closed_total") + sum("connections_rejected_total"),
        "{metrics:?}"
    );
    assert_eq!(
        sum("requests_total"),
        sum("replies_total")
            + sum("requests_silent_total")
            + sum("requests_pending")
            + sum("requests_dropped_total"),
        "{metrics:?}"
    );
    for name in ["queue_wait_seconds", "service_seconds"] {
        let buckets = |(key, value): (&String, &f64)| {
            let bound = key.strip_prefix(&format!("tidemill_{name}_bucket{{le=\""))?.strip_suffix("\"}")?;
            Some((bound.replace("+Inf", "inf").parse::<f64>().unwrap(), *value))
        };
        let mut buckets: Vec<(f64, f64)> = metrics.iter().filter_map(buckets).collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert!(buckets.is_sorted_by_key(|(_, count)| *count), "{name}: {buckets:?}");
        assert_eq!(buckets.last().unwrap().1, sum(&format!("{name}_count")), "{name}");
        assert_eq!((buckets[0].0, buckets[buckets.len() - 2].0), (1e-6, 100.0), "{name}");
    }
}

#[test]
fn every_metric_of_the_contract_is_there() {
    let server = configure(Helo::new(), |config| config.admin = Some("127.0.0.1:0".parse().unwrap()));
    Peer::connect(resolved(server.local_addr())).ask("x");
    let metrics = scrape(admin_of(&server));
    assert_adds_up(&metrics);
    for name in [
        "connections",
        "connections_accepted_total",
        "connections_rejected_total{reason=\"full\"}",
        "connections_closed_total{reason=\"eof\"}",
        "requests_total{service=\"helo\",kind=\"request\"}",
        "requests_total{service=\"helo\",kind=\"stop\"}",
        "requests_total{service=\"helo\",kind=\"ignored\"}",
        "replies_total",
        "requests_dropped_total",
        "requests_silent_total",
        "pushed_total",
        "requests_pending",
        "queue_wait_seconds_bucket{le=\"0.001\"}",
        "service_seconds_bucket{le=\"0.000001\"}",
        "service_seconds_sum",
        "pool_threads",
        "pool_busy",
        "pool_min",
        "pool_max",
        "pool_demand",
        "pool_saturation",
        "pool_cores",
        "pool_resizes_total{direction=\"grow\"}",
        "pool_resizes_total{direction=\"shrink\"}",
        "handler_panics_total",
        "held_bytes",
        "read_bytes_total",
        "written_bytes_total",
        "wakeups_total",
    ] {
        assert!(metrics.contains_key(&format!("tidemill_{name}")), "{name} in {metrics:#?}");
    }
    assert_eq!(metrics["tidemill_service_seconds_count"], 1.0);
    assert_eq!(metrics["tidemill_ready"], 1.0);
    assert!(!metrics.keys().any(|name| name.contains("admin")), "{metrics:?}");
}

/// A time counts in the bucket that it belongs to.
#[test]
fn times_are_in_their_buckets() {
    let serving = serve("--admin 0 --handler-delay 30ms");
    let mut peer = serving.connect();
    (0..4).for_each(|_| peer.ask("x"));
    let metrics = scrape(admin_of_program(&serving));
    let up_to = |bound: &str| metrics[&format!("tidemill_service_seconds_bucket{{le=\"{bound}\"}}")];
    assert_eq!((up_to("0.025"), up_to("10")), (0.0, 4.0), "{metrics:?}");
    let sum = metrics["tidemill_service_seconds_sum"];
    assert!(sum >= 4.0 * 0.03, "{sum}");
}

#[test]
fn the_sums_hold_in_every_scrape_of_a_flood() {
    let serving = serve("--admin 0 --max-connections 12 --max-pending 300 --max-line 50 --kill-from none");
    let admin = admin_of_program(&serving);
    let (scrapes, begun) = (AtomicUsize::new(0), Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            while scrapes.fetch_add(1, Relaxed) < 20 {
                let metrics = scrape(admin);
                assert_adds_up(&metrics);
                assert!(
                    metrics["tidemill_connections"] <= 12.0 && metrics["tidemill_requests_pending"] <= 300.0
                );
                assert_json_adds_up(&get(admin, "/stats.json").json());
            }
        });
        // Clients of every kind, for as long as it is looked at: some are turned away.
        in_parallel(32, |mut number| {
            while scrapes.load(Relaxed) < 20 && begun.elapsed() < DEADLINE {
                number += 1;
                let mut peer = serving.connect();
                match number % 4 {
                    0 => drop(peer.exchange(&b"HELO pipelined\nother\n".repeat(200))),
                    1 => {
                        peer.send_what_goes(&b"HELO gone\n".repeat(50));
                        peer.reset();
                    }
                    2 => {
                        peer.send_what_goes(&[b'x'; 100]);
                        drop(peer.rest());
                    }
                    _ => peer.send_what_goes(&b"HELO gone\n".repeat(50)),
                }
            }
        });
    });
    serving.stop().assert_clean();
}

#[test]
fn promtool_finds_nothing_to_say() {
    let serving = serve("--admin 0");
    serving.connect().ask("x");
    let metrics = get(admin_of_program(&serving), "/metrics").body;
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut promtool) = command.spawn() else { return missing("promtool is not installed") };
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let ended = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.is_empty(), "{}: {said}", ended.status);
}

#[test]
fn prometheus_scrapes_it() {
    if Command::new("prometheus")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err()
    {
        return missing("prometheus is not installed");
    }
    let serving = serve("--admin 0");
    serving.connect().ask("x");
    let admin = admin_of_program(&serving);
    let directory = scratch("prometheus");
    let config = directory.join("prometheus.yml");
    let targets = format!(
        "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: tidemill\n    static_configs:\n      - targets: ['{admin}']\n"
    );
    fs::write(&config, targets).unwrap();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
    command.arg("--web.listen-address=127.0.0.1:0").stdin(Stdio::null());
    let prometheus = Serving::launch(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let value = |query: &str| {
        let answer = try_get(prometheus.address, &format!("/api/v1/query?query={query}"))?;
        let json: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
        json["data"]["result"][0]["value"][1].as_str()?.parse::<f64>().ok()
    };
    eventually("it has scraped", || value("up") == Some(1.0) && value("tidemill_replies_total") == Some(1.0));
    assert_eq!(value("tidemill_service_seconds_count"), Some(1.0));
    assert!(value("histogram_quantile(0.99,tidemill_service_seconds_bucket)").is_some_and(|p99| p99 > 0.0));
    // Its connection, if it is kept, is no client either.
    eventually("no client is there", || value("tidemill_connections") == Some(0.0));
}

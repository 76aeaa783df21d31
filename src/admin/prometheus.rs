//! The statistics in Prometheus' text form, version 0.0.4: names as in the contract, and fixed buckets.

use std::fmt::{Display, Write};

use crate::metrics::Stats;
use crate::overview::Overview;
use crate::timings::Buckets;

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of one moment.
pub(super) fn text(overview: &Overview) -> String {
    let stats = overview.stats();
    let (queue_wait, service) = overview.hub.timings.histograms();
    let mut page = Page { text: String::with_capacity(16 << 10) };
    page.server(overview, &stats);
    page.connections(&stats);
    page.requests(&stats);
    page.histogram(
        "queue_wait_seconds",
        "Time from a request's arrival to the call of its handler.",
        &queue_wait,
    );
    page.histogram("service_seconds", "Time that the handler took for a request.", &service);
    page.pool(&stats);
    page.io(&stats);
    page.text
}

struct Page {
    text: String,
}

impl Page {
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "# HELP tidemill_{name} {help}\n# TYPE tidemill_{name} {kind}\n");
    }

    fn value(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.text, "tidemill_{name} {value}"),
            labels => writeln!(self.text, "tidemill_{name}{{{labels}}} {value}"),
        };
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.begin(name, "gauge", help);
        self.value(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.begin(name, "counter", help);
        self.value(name, "", value);
    }

    fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.begin(name, "counter", help);
        for (of, value) in values {
            self.value(name, &format!("{label}=\"{of}\""), value);
        }
    }

    fn server(&mut self, overview: &Overview, stats: &Stats) {
        self.begin("build_info", "gauge", "The version that runs, as a label.");
        self.value("build_info", concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""), 1);
        self.gauge("uptime_seconds", "Seconds since the server started.", stats.uptime_seconds);
        let ready = u8::from(overview.not_ready().is_none());
        self.gauge("ready", "Whether new clients are to be sent here: what /readyz says.", ready);
    }

    fn connections(&mut self, stats: &Stats) {
        self.gauge("connections", "Connections that are open.", stats.connections);
        self.counter(
            "connections_accepted_total",
            "Connections ever accepted.",
            stats.connections_accepted_total,
        );
        let rejected = stats.connections_rejected_total.by_reason();
        self.counters("connections_rejected_total", "Connections turned away.", "reason", rejected);
        let closed = stats.connections_closed_total.by_reason();
        self.counters("connections_closed_total", "Connections that ended.", "reason", closed);
        self.gauge("held_bytes", "Bytes that connections hold, by capacity.", stats.held_bytes);
    }

    fn requests(&mut self, stats: &Stats) {
        self.begin("requests_total", "counter", "Lines accepted.");
        for (service, requests) in &stats.requests_total {
            let service = service.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            for (kind, count) in
                [("request", requests.request), ("stop", requests.stop), ("ignored", requests.ignored)]
            {
                self.value("requests_total", &format!("service=\"{service}\",kind=\"{kind}\""), count);
            }
        }
        self.counter("replies_total", "Replies written to their end.", stats.replies_total);
        self.counter(
            "requests_silent_total",
            "Requests that have no reply by nature.",
            stats.requests_silent_total,
        );
        self.gauge("requests_pending", "Requests whose reply is not written yet.", stats.requests_pending);
        self.counter(
            "requests_dropped_total",
            "Requests that will never have a reply.",
            stats.requests_dropped_total,
        );
        let late = "Requests that were not run as they had waited too long.";
        self.counter("requests_late_total", late, stats.requests_late_total);
        let stuck =
            "Requests whose clients were told that they took too long, and whose handlers have not returned.";
        self.gauge("requests_stuck", stuck, stats.requests_stuck);
        self.counter("pushed_total", "Pushes taken in, one for each connection.", stats.pushed_total);
        self.counter("handler_panics_total", "Handlers that panicked.", stats.handler_panics_total);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Buckets) {
        self.begin(name, "histogram", help);
        for (bound, count) in &histogram.up_to {
            self.value(&format!("{name}_bucket"), &format!("le=\"{bound}\""), count);
        }
        self.value(&format!("{name}_bucket"), "le=\"+Inf\"", histogram.count);
        self.value(&format!("{name}_sum"), "", histogram.sum_seconds);
        self.value(&format!("{name}_count"), "", histogram.count);
    }

    fn pool(&mut self, stats: &Stats) {
        self.gauge("pool_threads", "Workers that run or are being started.", stats.pool_threads);
        self.gauge("pool_busy", "Workers that run a job.", stats.pool_busy);
        self.gauge("pool_waiting", "Jobs that wait for a worker.", stats.pool_waiting);
        self.gauge("pool_min", "Least workers at any time.", stats.pool_min);
        self.gauge("pool_max", "Most workers at any time.", stats.pool_max);
        self.gauge("pool_demand", "Workers wanted for the present work.", stats.pool_demand);
        self.gauge("pool_saturation", "Demand as a share of the most workers.", stats.pool_saturation);
        self.gauge("pool_cores", "CPUs that the process may use.", stats.pool_cores);
        let resizes = [("grow", stats.pool_resizes_total.grow), ("shrink", stats.pool_resizes_total.shrink)];
        self.counters("pool_resizes_total", "Resizes of the pool.", "direction", resizes);
        let refused = "Threads that the system refused to start.";
        self.counter("pool_threads_refused_total", refused, stats.pool_threads_refused_total);
    }

    fn io(&mut self, stats: &Stats) {
        self.counter("read_bytes_total", "Bytes read from sockets of clients.", stats.read_bytes_total);
        self.counter(
            "written_bytes_total",
            "Bytes written to sockets of clients.",
            stats.written_bytes_total,
        );
        self.counter("wakeups_total", "Times that the event loop was woken.", stats.wakeups_total);
        self.counter("accept_errors_total", "Errors of the listening sockets.", stats.accept_errors_total);
        let stale = "Jobs that came back after their connection had gone.";
        self.counter("stale_replies_total", stale, stats.stale_replies_total);
        let overruns =
            "Times that requests handled on the event loop held it up for longer than a millisecond.";
        self.counter("inline_overruns_total", overruns, stats.inline_overruns_total);
    }
}

//! What a server says about itself: the lines of `tidemill serve --stats-every`, brought to the time axis of a run.
//!
//! Lines that are not JSON (such as `listening on …`) are skipped, and so are fields that are missing.

use serde_json::Value;

use super::page::{Axis, Chart, Color, Line, Marker, Unit};

/// The server's own view over time.
#[derive(Debug, Default)]
pub(crate) struct ServerStats {
    t: Vec<f64>,
    samples: Vec<Value>,
    decisions: Vec<(f64, Value)>,
}

impl ServerStats {
    /// Reads the lines; time 0 is `start`, in Unix seconds.
    pub(crate) fn read(text: &str, start: f64) -> Self {
        let mut stats = Self::default();
        for line in text.lines() {
            let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(line) else { continue };
            let number = |name: &str| fields.get(name).and_then(Value::as_f64);
            let Some(now) = ["unix_seconds", "time", "t"].into_iter().find_map(number) else { continue };
            // Decisions count from the start of the server.
            let server_start = number("uptime_seconds").map_or(now, |uptime| now - uptime);
            let decisions = fields.get("decisions").and_then(Value::as_array);
            for decision in decisions.into_iter().flatten() {
                if let Some(at) = decision.get("t").and_then(Value::as_f64) {
                    let at = if at > 1e9 { at } else { server_start + at };
                    stats.decisions.push((at - start, decision.clone()));
                }
            }
            stats.t.push(now - start);
            stats.samples.push(Value::Object(fields));
        }
        stats
    }

    /// Only what falls into the run, with a little around it.
    pub(crate) fn within(mut self, from: f64, to: f64) -> Self {
        let inside = |t: f64| t >= from - 0.5 && t <= to + 0.5;
        let mut keep = self.t.iter().map(|&t| inside(t)).collect::<Vec<_>>().into_iter();
        self.samples.retain(|_| keep.next().unwrap_or(false));
        self.t.retain(|&t| inside(t));
        self.decisions.retain(|&(t, _)| inside(t));
        self
    }

    fn line(&self, name: &str, field: &str, color: Color) -> Option<Line> {
        let y: Vec<_> = self.samples.iter().map(|sample| sample.get(field).and_then(Value::as_f64)).collect();
        y.iter().any(Option::is_some).then(|| Line::new(name, color, self.t.clone(), y).stepped())
    }

    fn markers(&self) -> Vec<Marker> {
        let marker = |(t, decision): &(f64, Value)| {
            let field = |name: &str| decision.get(name).and_then(Value::as_f64);
            let (from, to) = (field("from")?, field("to")?);
            let reason =
                decision.get("reason").and_then(Value::as_str).unwrap_or("no reason given").replace('_', " ");
            let known = |name: &str| field(name).map(|value| format!("{name} {value}"));
            let facts: Vec<_> =
                ["demand", "waiting", "busy", "blocked"].into_iter().filter_map(known).collect();
            let text = format!("{from} → {to} workers at {t:.3} s\n{reason}\n{}", facts.join(" · "));
            let color = if to > from { Color::Green } else { Color::Orange };
            Some(Marker { x: *t, text, color })
        };
        self.decisions.iter().filter_map(marker).collect()
    }

    /// The pool, and the requests that wait for it; nothing where the server said nothing.
    pub(crate) fn charts(&self) -> Vec<Chart> {
        let pool = [
            self.line("workers", "pool_threads", Color::Blue).map(Line::filled),
            self.line("demand", "pool_demand", Color::Orange),
            self.line("busy", "pool_busy", Color::Green),
        ];
        let queue = [self.line("requests accepted and not yet answered", "requests_pending", Color::Violet)];
        let chart = |title: &str, help: &str, lines: Vec<Line>, markers| Chart {
            title: title.to_owned(),
            help: help.to_owned(),
            axis: Axis::Time,
            unit: Unit::Count,
            logarithmic: false,
            lines,
            markers,
        };
        let mut charts = Vec::new();
        let lines: Vec<_> = pool.into_iter().flatten().collect();
        if !lines.is_empty() {
            let help = "The server's own statistics. Each triangle is a resize (green grows, orange shrinks): point at it for the reason.";
            charts.push(chart("The pool", help, lines, self.markers()));
        }
        let lines: Vec<_> = queue.into_iter().flatten().map(Line::filled).collect();
        if !lines.is_empty() {
            charts.push(chart(
                "The server's queue",
                "Requests in the server, by its own count.",
                lines,
                Vec::new(),
            ));
        }
        charts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "listening on 127.0.0.1:8000\n\
        {\"unix_seconds\":1000010.0,\"uptime_seconds\":10.0,\"pool_threads\":4,\"pool_busy\":1,\"decisions\":[]}\n\
        {\"unix_seconds\":1000011.0,\"uptime_seconds\":11.0,\"pool_threads\":9,\"requests_pending\":3,\
        \"decisions\":[{\"t\":10.5,\"demand\":9,\"waiting\":5,\"busy\":4,\"blocked\":null,\"from\":4,\"to\":9,\"reason\":\"queue_stuck\"}]}\n\
        {\"cut off";

    #[test]
    fn lines_and_decisions_come_to_the_time_of_the_run() {
        let stats = ServerStats::read(LINES, 1_000_009.0);
        assert_eq!(stats.t, [1.0, 2.0]);
        let charts = stats.charts();
        assert_eq!(charts.len(), 2);
        assert_eq!(charts[0].lines.len(), 2, "no line for what the server did not say");
        let marker = &charts[0].markers[0];
        assert!((marker.x - 1.5).abs() < 1e-6, "{}", marker.x);
        assert!(marker.text.contains("4 → 9") && marker.text.contains("queue stuck"), "{}", marker.text);
    }

    #[test]
    fn what_is_outside_the_run_is_left_out() {
        let stats = ServerStats::read(LINES, 1_000_009.0).within(1.8, 5.0);
        assert_eq!((stats.t.len(), stats.samples.len(), stats.decisions.len()), (1, 1, 1));
        assert!(ServerStats::read(LINES, 0.0).within(0.0, 5.0).charts().is_empty());
    }
}

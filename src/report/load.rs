//! The document of a load run, and the text that a terminal shows of it.
//!
//! Other tools read the fields: they keep their names and meanings. Latencies are in microseconds, `null` where there were
//! too few samples to tell.

use serde::{Deserialize, Serialize};

use super::{microseconds, number, table};

/// Everything that is known of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LoadReport {
    pub(crate) tidemill: String,
    pub(crate) target: String,
    /// When the run started, warm-up included.
    pub(crate) started_unix_seconds: f64,
    pub(crate) warm_up_seconds: f64,
    /// Of the measured part.
    pub(crate) seconds: f64,
    pub(crate) options: Options,
    /// Of the measured part.
    pub(crate) requests: Requests,
    /// Of the whole run, with the warm-up.
    pub(crate) total: Requests,
    pub(crate) connections: Connections,
    pub(crate) requests_per_second: f64,
    pub(crate) latency_us: Latency,
    pub(crate) generator: Generator,
    pub(crate) asserts: Vec<Assert>,
    pub(crate) verdict: Verdict,
    /// Why the verdict is what it is.
    pub(crate) problems: Vec<String>,
    pub(crate) ended_early: Option<String>,
    pub(crate) examples: Vec<Example>,
    pub(crate) series_step_seconds: f64,
    pub(crate) series: Vec<Point>,
    /// Latencies in nanoseconds and how often each was seen: histograms of several runs can be added.
    pub(crate) histogram_ns: Vec<(u64, u64)>,
    /// The search of which this run is the best step.
    #[serde(default)]
    pub(crate) find: Option<Find>,
}

/// A search for the highest rate that keeps what is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Find {
    pub(crate) text: String,
    /// The answer, in requests a second; `null` where there is none.
    pub(crate) rate: Option<f64>,
    /// The highest rate at which it held, and the lowest at which it did not, by the server's fault.
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
    pub(crate) steps: Vec<FindStep>,
}

/// A run at one rate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FindStep {
    pub(crate) rate: f64,
    pub(crate) seconds: f64,
    /// Of each thing that is asked for.
    pub(crate) values: Vec<String>,
    pub(crate) p99_us: Option<f64>,
    /// `holds`, `fails` or `says nothing`.
    pub(crate) said: String,
    pub(crate) why: String,
}

impl FindStep {
    /// The step, in one line.
    pub(crate) fn text(&self) -> String {
        format!("  {}/s: {}, {}", number(self.rate.round()), self.values.join(", "), self.said)
    }
}

impl Find {
    /// The answer, in one line.
    pub(crate) fn answer(&self) -> String {
        let rate = |rate: f64| number(rate.round());
        match (self.rate, self.low, self.high) {
            (Some(low), _, Some(high)) => {
                format!("{} holds up to {}/s, and no longer at {}/s", self.text, rate(low), rate(high))
            }
            (_, Some(low), Some(high)) => {
                format!("{} holds at {}/s and not at {}/s", self.text, rate(low), rate(high))
            }
            (_, Some(low), None) => {
                format!("{} holds at {}/s; what is above is not known", self.text, rate(low))
            }
            (_, None, Some(high)) => format!("{} does not hold at {}/s", self.text, rate(high)),
            (..) => format!("{}: no rate at which it holds is known", self.text),
        }
    }

    /// A row for each step.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let row = |step: &FindStep| {
            vec![
                format!("{}/s", number(step.rate.round())),
                format!("{:.1} s", step.seconds),
                step.values.join(", "),
                step.said.clone(),
                if step.said == "holds" { String::new() } else { step.why.clone() },
            ]
        };
        self.steps.iter().map(row).collect()
    }
}

/// What was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Options {
    pub(crate) connections: u64,
    pub(crate) pipeline: u64,
    pub(crate) threads: u64,
    /// `closed`, `constant` or `poisson`.
    pub(crate) loop_kind: String,
    pub(crate) rate: Option<f64>,
    pub(crate) shape: Option<String>,
    pub(crate) reconnect: bool,
    pub(crate) expect_stop: bool,
    pub(crate) timeout_seconds: f64,
}

/// What became of the requests: `offered = sent + unsent`, and `sent = right + wrong + reordered + lost + unread`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Requests {
    /// Became due.
    #[serde(default)]
    pub(crate) offered: u64,
    pub(crate) sent: u64,
    pub(crate) right: u64,
    pub(crate) wrong: u64,
    pub(crate) reordered: u64,
    /// Replies beyond the first to one request; not part of the sum.
    pub(crate) duplicated: u64,
    pub(crate) lost: u64,
    /// Outstanding when the server stopped as expected, after a clean prefix of the replies.
    #[serde(default)]
    pub(crate) unread: u64,
    /// Pieces of the stream that answer no request; not part of the sum.
    #[serde(default)]
    pub(crate) unasked: u64,
    /// Due, but never sent: no connection had room, or was let in, before the run ended.
    #[serde(default)]
    pub(crate) unsent: u64,
}

impl Requests {
    pub(crate) fn add(&mut self, other: &Self) {
        self.offered += other.offered;
        self.sent += other.sent;
        self.right += other.right;
        self.wrong += other.wrong;
        self.reordered += other.reordered;
        self.duplicated += other.duplicated;
        self.lost += other.lost;
        self.unread += other.unread;
        self.unasked += other.unasked;
        self.unsent += other.unsent;
    }

    pub(crate) fn errors(&self) -> u64 {
        self.wrong + self.reordered + self.lost + self.duplicated + self.unasked
    }

    /// Whether every request has been accounted for, once.
    pub(crate) fn adds_up(&self) -> bool {
        let settled = self.right + self.wrong + self.reordered + self.lost + self.unread;
        self.offered == self.sent + self.unsent && self.sent == settled
    }
}

/// What became of the connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connections {
    pub(crate) opened: u64,
    pub(crate) refused: u64,
    pub(crate) reset: u64,
    pub(crate) closed_early: u64,
    /// Ended by a server that was expected to stop, with nothing out of order.
    #[serde(default)]
    pub(crate) stopped: u64,
    /// Still open at the end of a run in which the server was expected to stop.
    #[serde(default)]
    pub(crate) not_stopped: u64,
    /// Still waiting to be let in when the time was over.
    #[serde(default)]
    pub(crate) not_let_in: u64,
}

impl Connections {
    pub(crate) fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.refused += other.refused;
        self.reset += other.reset;
        self.closed_early += other.closed_early;
        self.stopped += other.stopped;
        self.not_stopped += other.not_stopped;
        self.not_let_in += other.not_let_in;
    }

    pub(crate) fn errors(&self) -> u64 {
        self.refused + self.reset + self.closed_early + self.not_let_in
    }
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) p50: Option<f64>,
    pub(crate) p90: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) p999: Option<f64>,
    pub(crate) max: f64,
}

/// What the generator says about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Generator {
    pub(crate) cpu_seconds: f64,
    /// CPU for each request answered, in microseconds.
    pub(crate) cpu_us_per_request: Option<f64>,
    /// Share of the measured part that the busiest thread was running, and ready but waiting for a core.
    pub(crate) busiest_running: f64,
    pub(crate) busiest_waiting: f64,
    /// The system tells how long a thread waits for a core; else that is 0 and unknown.
    #[serde(default = "yes")]
    pub(crate) is_waiting_known: bool,
    pub(crate) lateness_us: Lateness,
    pub(crate) valid: bool,
    /// Latencies hold the generator's own lateness, and nothing else is wrong with them.
    #[serde(default)]
    pub(crate) only_late: bool,
    pub(crate) reasons: Vec<String>,
}

fn yes() -> bool {
    true
}

/// How late the generator was, in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Lateness {
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) max: f64,
}

/// One thing that the run had to fulfil.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Assert {
    pub(crate) text: String,
    pub(crate) holds: bool,
    pub(crate) value: String,
    /// There were too few samples to tell.
    #[serde(default)]
    pub(crate) too_few: bool,
}

/// How the run is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Every reply was right, and every assert holds.
    Ok,
    /// Something was wrong, or an assert does not hold.
    Failed,
    /// Nothing was wrong, but the generator was the bottleneck: latency and rate are its own.
    Invalid,
}

impl Verdict {
    pub(crate) fn worse(self, other: Self) -> Self {
        match (self, other) {
            (Self::Failed, _) | (_, Self::Failed) => Self::Failed,
            (Self::Invalid, _) | (_, Self::Invalid) => Self::Invalid,
            (Self::Ok, Self::Ok) => Self::Ok,
        }
    }
}

/// The first error of its kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Example {
    pub(crate) kind: String,
    /// Since the measured part began; negative in the warm-up.
    pub(crate) t: f64,
    pub(crate) connection: u32,
    pub(crate) request: String,
    pub(crate) expected: String,
    pub(crate) got: String,
}

/// One row of the series.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Point {
    /// Start of the row, in seconds since the measured part began.
    pub(crate) t: f64,
    pub(crate) sent: u64,
    pub(crate) right: u64,
    pub(crate) errors: u64,
    /// Requests that became due (open loop). What is due while a million wait counts where it is taken in, or given up at the end.
    #[serde(default)]
    pub(crate) offered: Option<u64>,
    /// Of this row or, where it has too few samples, of up to ten rows that end with it.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    /// The slowest reply.
    #[serde(default)]
    pub(crate) max_us: Option<f64>,
    pub(crate) connections: u64,
}

fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "too few samples".to_owned(), microseconds)
}

fn count(value: u64) -> String {
    number(value as f64)
}

impl LoadReport {
    /// The document, as one line.
    pub(crate) fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|json| json + "\n")
    }

    /// What was run, in one line.
    pub(crate) fn subtitle(&self) -> String {
        let options = &self.options;
        let mut parts = vec![match (options.connections, self.connections.opened) {
            (wanted, opened) if opened < wanted => {
                format!("{} of {} connections", count(opened), count(wanted))
            }
            (1, _) => "1 connection".to_owned(),
            (wanted, _) => format!("{} connections", count(wanted)),
        }];
        if options.pipeline > 1 {
            parts.push(format!("{} requests pipelined", options.pipeline));
        }
        match (&options.shape, options.rate) {
            (Some(shape), _) => parts.push(shape.clone()),
            (None, Some(rate)) => parts.push(format!("{} requests/s", number(rate))),
            (None, None) => {}
        }
        parts.push(match options.loop_kind.as_str() {
            "closed" => "closed loop".to_owned(),
            kind => format!("open loop, {kind}"),
        });
        if options.reconnect {
            parts.push("a connection for each request".to_owned());
        }
        parts.push(format!("{:.1} s", self.seconds));
        parts.join(" · ")
    }

    /// Rows of name and value: the ledger.
    pub(crate) fn ledger_rows(&self) -> Vec<Vec<String>> {
        let (requests, connections) = (&self.requests, &self.connections);
        let mut rows = vec![
            vec!["sent".to_owned(), count(requests.sent)],
            vec!["right".to_owned(), count(requests.right)],
            vec!["wrong".to_owned(), count(requests.wrong)],
            vec!["reordered".to_owned(), count(requests.reordered)],
            vec!["duplicated".to_owned(), count(requests.duplicated)],
            vec!["lost".to_owned(), count(requests.lost)],
        ];
        let mut seldom = |name: &str, value: u64| {
            if value > 0 {
                rows.push(vec![name.to_owned(), count(value)]);
            }
        };
        seldom("unasked", requests.unasked);
        seldom("never sent", requests.unsent);
        seldom("never read by the server", requests.unread);
        seldom("connections refused", connections.refused);
        seldom("connections never let in", connections.not_let_in);
        seldom("connections reset", connections.reset);
        seldom("connections closed early", connections.closed_early);
        seldom("connections stopped by the server", connections.stopped);
        seldom("connections not stopped by it", connections.not_stopped);
        rows
    }

    /// Rows of name and value: latencies.
    pub(crate) fn latency_rows(&self) -> Vec<Vec<String>> {
        let latency = &self.latency_us;
        vec![
            vec!["p50".to_owned(), maybe(latency.p50)],
            vec!["p90".to_owned(), maybe(latency.p90)],
            vec!["p99".to_owned(), maybe(latency.p99)],
            vec!["p99.9".to_owned(), maybe(latency.p999)],
            vec![
                "max".to_owned(),
                if latency.count > 0 { microseconds(latency.max) } else { "–".to_owned() },
            ],
            vec![
                "mean".to_owned(),
                if latency.count > 0 { microseconds(latency.mean) } else { "–".to_owned() },
            ],
        ]
    }

    /// Rows of name and value: the generator.
    pub(crate) fn generator_rows(&self) -> Vec<Vec<String>> {
        let generator = &self.generator;
        let share = |share: f64| format!("{:.0} %", share * 100.0);
        vec![
            vec![
                "CPU per request".to_owned(),
                generator.cpu_us_per_request.map_or("–".to_owned(), microseconds),
            ],
            vec!["busiest thread running".to_owned(), share(generator.busiest_running)],
            vec![
                "… waiting for a core".to_owned(),
                if generator.is_waiting_known {
                    share(generator.busiest_waiting)
                } else {
                    "not known".to_owned()
                },
            ],
            vec!["own lateness, p99".to_owned(), maybe(generator.lateness_us.p99)],
            vec!["own lateness, max".to_owned(), microseconds(generator.lateness_us.max)],
        ]
    }

    /// Why the verdict is what it is, and that the run was cut short, where that is no reason.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let is_told = |why: &&String| self.problems.iter().any(|problem| problem.contains(*why));
        // What was to stop has.
        let cut_short = self.ended_early.as_ref().filter(|why| !is_told(why) && !self.options.expect_stop);
        let cut_short = cut_short.map(|why| format!("ended early: {why}"));
        self.problems.iter().cloned().chain(cut_short).collect()
    }

    /// What a terminal shows at the end.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        if let Some(find) = &self.find {
            out.push_str(&format!("{}\n", table::text(&find.rows())));
            out.push_str(&format!("  {}\n\n", find.answer()));
        }
        out.push_str(&format!("{} — {}\n\n", self.target, self.subtitle()));
        let latency = &self.latency_us;
        out.push_str(&table::text(&[
            ["requests/s", "p50", "p90", "p99", "p99.9", "max"].map(str::to_owned).to_vec(),
            vec![
                number(self.requests_per_second.round()),
                maybe(latency.p50),
                maybe(latency.p90),
                maybe(latency.p99),
                maybe(latency.p999),
                if latency.count > 0 { microseconds(latency.max) } else { "–".to_owned() },
            ],
        ]));
        out.push('\n');
        let ledger = self.ledger_rows();
        let (names, values) = ledger.iter().map(|row| (row[0].clone(), row[1].clone())).unzip();
        out.push_str(&table::text(&[names, values]));
        let generator = &self.generator;
        out.push_str(&format!(
            "\n  generator: {} CPU per request, {:.0} % of a core{}, own lateness p99 {}\n",
            generator.cpu_us_per_request.map_or("–".to_owned(), microseconds),
            generator.busiest_running * 100.0,
            if generator.is_waiting_known { "" } else { " (its waiting for a core is not known here)" },
            maybe(generator.lateness_us.p99),
        ));
        for example in &self.examples {
            out.push_str(&format!(
                "\n  first {}, at {:.3} s, connection {}\n",
                example.kind, example.t, example.connection
            ));
            for (name, text) in
                [("asked", &example.request), ("must be", &example.expected), ("was", &example.got)]
            {
                if !text.is_empty() {
                    out.push_str(&format!("    {name:<8}{text}\n"));
                }
            }
        }
        if !self.asserts.is_empty() {
            out.push('\n');
        }
        for assert in &self.asserts {
            let mark = if assert.holds { "holds" } else { "FAILS" };
            out.push_str(&format!("  {mark}  {}  ({})\n", assert.text, assert.value));
        }
        out.push('\n');
        out.push_str(match self.verdict {
            Verdict::Ok => "OK: every reply was right\n",
            Verdict::Failed => "FAILED\n",
            Verdict::Invalid => {
                "INVALID: every reply was right, but rate and latency are the generator's own\n"
            }
        });
        for reason in self.reasons() {
            out.push_str(&format!("  {reason}\n"));
        }
        out
    }
}

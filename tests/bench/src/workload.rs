//! What the servers are flooded with.

use std::io;
use std::time::Duration;

use serde::Serialize;

use crate::machine::first_cpu;
use crate::neighbours::Beside;

/// How long the handler of the blocking workload blocks.
const BLOCK: Duration = Duration::from_millis(5);

/// Workers of the blocking workload.
const BLOCKED_WORKERS: u32 = 32;

/// When the load generator sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Each connection as soon as it has its replies.
    Closed,
    /// By the clock, with a new connection for each request.
    Reconnect,
    /// By the clock, half as many requests per second as the reference can take.
    HalfLoad,
}

/// New connections per second of the workload that opens one for each request. Flat out, the client's closed ones fill
/// the ports in a second or two, and what is measured is how the kernel looks for a free one.
pub(crate) const RECONNECTS: f64 = 2000.0;

/// One kind of load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// The sentence above its table.
    pub(crate) about: &'static str,
    pub(crate) connections: u32,
    pub(crate) pipeline: u32,
    #[serde(skip)]
    pub(crate) pace: Pace,
    #[serde(skip)]
    pub(crate) handler_delay: Duration,
    /// Server and load generator share one CPU.
    #[serde(skip)]
    pub(crate) one_cpu: bool,
    #[serde(skip)]
    pub(crate) beside: Beside,
    /// Measured unless others are asked for.
    #[serde(skip)]
    pub(crate) servers: &'static [&'static str],
    /// Measured unless others are asked for.
    #[serde(skip)]
    pub(crate) usual: bool,
}

/// So many connections, each with so many requests on their way, against every server.
const fn flat_out(connections: u32, pipeline: u32, name: &'static str, about: &'static str) -> Workload {
    Workload {
        name,
        about,
        connections,
        pipeline,
        pace: Pace::Closed,
        handler_delay: Duration::ZERO,
        one_cpu: false,
        beside: Beside::Nobody,
        servers: &["tidemill", "inline", "tokio", "floor", "channel"],
        usual: true,
    }
}

/// Only for the question how cost scales with the number of connections.
const fn point(connections: u32, name: &'static str, about: &'static str) -> Workload {
    Workload { usual: false, ..flat_out(connections, 1, name, about) }
}

/// Beside two processes that use all the CPU they get.
const fn beside_loops(pipeline: u32, name: &'static str, about: &'static str) -> Workload {
    let servers = &["tidemill", "inline", "tokio", "floor"];
    Workload { beside: Beside::Loops(2), servers, ..flat_out(64, pipeline, name, about) }
}

/// One client with one request at a time. Others than ours answer it seldom or never.
const fn polite(line: &'static str, name: &'static str, about: &'static str) -> Workload {
    Workload { beside: Beside::Flooders(line), servers: &["tidemill"], ..flat_out(1, 1, name, about) }
}

/// All workloads, in the order of the tables.
pub(crate) const WORKLOADS: &[Workload] = &[
    Workload {
        one_cpu: true,
        ..flat_out(1, 1, "1x1", "one connection, one request at a time, server and client on one CPU")
    },
    Workload {
        servers: &["tidemill", "inline", "tokio", "floor", "channel", "tidemill-max4", "tidemill-max64"],
        ..flat_out(64, 1, "64x1", "64 connections, one request at a time")
    },
    flat_out(1000, 1, "1000x1", "1000 connections, one request at a time"),
    flat_out(64, 16, "64x16", "64 connections, 16 requests pipelined"),
    flat_out(1000, 16, "1000x16", "1000 connections, 16 requests pipelined"),
    Workload { pace: Pace::Reconnect, ..flat_out(64, 1, "reconnect", "a new connection for each request") },
    Workload {
        pace: Pace::HalfLoad,
        ..flat_out(64, 1, "half-load", "by the clock, at half of the rate that the reference reached")
    },
    Workload {
        handler_delay: BLOCK,
        servers: &["tidemill", "tokio", "channel"],
        ..flat_out(64, 1, "blocking", "32 workers that block 5 ms: ideal are 6400 requests a second")
    },
    beside_loops(1, "loops-64x1", "64 connections, one request at a time, beside two endless loops"),
    beside_loops(16, "loops-64x16", "64 connections, 16 requests pipelined, beside two endless loops"),
    polite("\n", "polite-empty", "one polite client beside 500 that send empty lines without a pause"),
    polite("unknown\n", "polite-unknown", "one polite client beside 500 that send unknown lines"),
    polite("HELO flood\n", "polite-helo", "one polite client beside 500 that send requests without a pause"),
    point(1, "free-1x1", "one connection, one request at a time, on any CPU"),
    point(4, "4x1", "4 connections, one request at a time"),
    point(16, "16x1", "16 connections, one request at a time"),
    point(256, "256x1", "256 connections, one request at a time"),
    point(4000, "4000x1", "4000 connections, one request at a time"),
    point(9900, "10000x1", "nearly 10 000 connections, one request at a time"),
];

impl Workload {
    /// The workload called `name`, for arguments of a program; or the names that there are.
    pub(crate) fn named(name: &str) -> Result<&'static Workload, String> {
        let names = || WORKLOADS.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
        let found = WORKLOADS.iter().find(|workload| workload.name == name);
        found.ok_or_else(|| format!("there are {}", names()))
    }

    /// Whether it differs from others of its kind by its connections only.
    pub(crate) fn is_point_of_scaling(&self) -> bool {
        let is_plain = self.handler_delay.is_zero() && !self.one_cpu && self.beside == Beside::Nobody;
        is_plain && self.pace == Pace::Closed && self.pipeline == 1
    }

    /// What a server must be told for this workload, beyond its port.
    pub(crate) fn server_options(&self) -> Vec<String> {
        let delay = humantime::format_duration(self.handler_delay);
        (!self.handler_delay.is_zero()).then(|| format!("--handler-delay={delay}")).into_iter().collect()
    }

    /// What the load generator must be told. `rate` is for workloads that are paced by the clock.
    pub(crate) fn load_options(&self, rate: Option<f64>) -> String {
        let mut options = format!("--connections {} --pipeline {}", self.connections, self.pipeline);
        options.extend(rate.map(|rate| format!(" --rate {rate:.0}")));
        if self.pace == Pace::Reconnect {
            options += " --reconnect";
        }
        options
    }

    /// What goes before the commands of server and generator: it puts both on one CPU, where the workload wants that.
    pub(crate) fn wrapper(&self) -> io::Result<Vec<String>> {
        if !self.one_cpu {
            return Ok(Vec::new());
        }
        Ok(vec!["taskset".to_owned(), "--cpu-list".to_owned(), first_cpu()?.to_string()])
    }

    /// Requests per second that no server can pass, where the handler sets that limit.
    pub(crate) fn ideal_rate(&self) -> Option<f64> {
        let delay = self.handler_delay.as_secs_f64();
        (delay > 0.0).then(|| f64::from(BLOCKED_WORKERS.min(self.connections)) / delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for workload in WORKLOADS {
            assert_eq!(Workload::named(workload.name).unwrap().about, workload.about);
        }
        assert!(Workload::named("1x2").unwrap_err().contains("64x16, "));
    }

    #[test]
    fn ideal_is_set_by_workers_and_delay() {
        let blocking = Workload::named("blocking").unwrap();
        assert_eq!(blocking.ideal_rate(), Some(6400.0));
        assert_eq!(blocking.server_options(), ["--handler-delay=5ms"]);
        let plain = Workload::named("64x16").unwrap();
        assert_eq!((plain.ideal_rate(), plain.server_options().len()), (None, 0));
        assert_eq!(plain.load_options(None), "--connections 64 --pipeline 16");
        let reconnect = Workload::named("reconnect").unwrap().load_options(Some(12.3));
        assert!(reconnect.ends_with(" --rate 12 --reconnect"), "{reconnect}");
    }

    #[test]
    fn scaling_goes_from_one_connection_to_ten_thousand() {
        let points = WORKLOADS.iter().filter(|it| it.is_point_of_scaling());
        let mut connections: Vec<u32> = points.map(|it| it.connections).collect();
        connections.sort_unstable();
        assert_eq!(connections, [1, 4, 16, 64, 256, 1000, 4000, 9900]);
    }
}

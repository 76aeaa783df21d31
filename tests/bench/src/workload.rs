//! What the servers are flooded with.

use std::io;
use std::time::Duration;

use crate::machine::first_cpu;
use crate::neighbours::Beside;

/// How long the handler of the blocking workload blocks.
pub const BLOCK: Duration = Duration::from_millis(5);

/// Workers of the blocking workload.
pub const BLOCKED_WORKERS: u32 = 32;

/// When the load generator sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each connection as soon as it has its replies.
    Closed,
    /// By the clock, with a new connection for each request.
    Reconnect,
    /// By the clock, half as many requests per second as the reference can take.
    HalfLoad,
}

/// New connections per second of the workload that opens one for each request. Flat out, the client's closed ones fill
/// the ports in a second or two, and what is measured is how the kernel looks for a free one.
pub const RECONNECTS: f64 = 2000.0;

/// One kind of load.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What it is called in tables and on the command line.
    pub name: &'static str,
    /// The sentence above its table.
    pub about: &'static str,
    /// Connections open at the same time.
    pub connections: u32,
    /// Requests on their way on each connection.
    pub pipeline: u32,
    /// When requests are sent.
    pub pace: Pace,
    /// How long the handler blocks for each request.
    pub handler_delay: Duration,
    /// Server and load generator share one CPU.
    pub one_cpu: bool,
    /// What goes on meanwhile.
    pub beside: Beside,
    /// Servers that are measured unless others are asked for.
    pub servers: &'static [&'static str],
    /// Measured unless others are asked for.
    pub usual: bool,
}

const ALL: &[&str] = &["tidemill", "tokio", "floor", "channel", "threads"];

const PLAIN: Workload = Workload {
    name: "",
    about: "",
    connections: 64,
    pipeline: 1,
    pace: Pace::Closed,
    handler_delay: Duration::ZERO,
    one_cpu: false,
    beside: Beside::Nobody,
    servers: ALL,
    usual: true,
};

/// All workloads, in the order of the tables.
pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "1x1",
        about: "one connection, one request at a time, server and client on one CPU",
        connections: 1,
        one_cpu: true,
        ..PLAIN
    },
    Workload {
        name: "64x1",
        about: "64 connections, one request at a time",
        servers: &["tidemill", "tokio", "floor", "channel", "threads", "tidemill-max4", "tidemill-max64"],
        ..PLAIN
    },
    Workload { name: "1000x1", about: "1000 connections, one request at a time", connections: 1000, ..PLAIN },
    Workload { name: "64x16", about: "64 connections, 16 requests pipelined", pipeline: 16, ..PLAIN },
    Workload {
        name: "1000x16",
        about: "1000 connections, 16 requests pipelined",
        connections: 1000,
        pipeline: 16,
        ..PLAIN
    },
    Workload {
        name: "reconnect",
        about: "a new connection for each request",
        pace: Pace::Reconnect,
        ..PLAIN
    },
    Workload {
        name: "half-load",
        about: "64 connections, requests by the clock at half of the rate that the reference reached",
        pace: Pace::HalfLoad,
        ..PLAIN
    },
    Workload {
        name: "blocking",
        about: "64 connections, a handler that blocks 5 ms, 32 workers: 6400 requests a second are ideal",
        handler_delay: BLOCK,
        servers: &["tidemill", "tokio", "channel"],
        ..PLAIN
    },
    Workload {
        name: "loops-64x1",
        about: "64 connections, one request at a time, beside two endless loops",
        beside: Beside::Loops(2),
        servers: &["tidemill", "tokio", "floor"],
        ..PLAIN
    },
    Workload {
        name: "loops-64x16",
        about: "64 connections, 16 requests pipelined, beside two endless loops",
        pipeline: 16,
        beside: Beside::Loops(2),
        servers: &["tidemill", "tokio", "floor"],
        ..PLAIN
    },
    Workload {
        name: "polite-empty",
        about: "one polite client beside 500 that send empty lines without a pause",
        connections: 1,
        beside: Beside::Flooders("\n"),
        // Others answer the polite one seldom or never.
        servers: &["tidemill"],
        ..PLAIN
    },
    Workload {
        name: "polite-unknown",
        about: "one polite client beside 500 that send lines which are no requests without a pause",
        connections: 1,
        beside: Beside::Flooders("unknown\n"),
        // Others answer the polite one seldom or never.
        servers: &["tidemill"],
        ..PLAIN
    },
    Workload {
        name: "polite-helo",
        about: "one polite client beside 500 that send requests without a pause",
        connections: 1,
        beside: Beside::Flooders("HELO flood\n"),
        // Others answer the polite one seldom or never.
        servers: &["tidemill"],
        ..PLAIN
    },
    Workload {
        name: "free-1x1",
        about: "one connection, one request at a time, on any CPU",
        connections: 1,
        usual: false,
        ..PLAIN
    },
    Workload {
        name: "4x1",
        about: "4 connections, one request at a time",
        connections: 4,
        usual: false,
        ..PLAIN
    },
    Workload {
        name: "16x1",
        about: "16 connections, one request at a time",
        connections: 16,
        usual: false,
        ..PLAIN
    },
    Workload {
        name: "256x1",
        about: "256 connections, one request at a time",
        connections: 256,
        usual: false,
        ..PLAIN
    },
    Workload {
        name: "4000x1",
        about: "4000 connections, one request at a time",
        connections: 4000,
        usual: false,
        ..PLAIN
    },
    Workload {
        name: "10000x1",
        about: "10 000 connections, one request at a time",
        connections: 9_900,
        usual: false,
        ..PLAIN
    },
];

impl Workload {
    /// The workload called `name`.
    pub fn find(name: &str) -> Option<&'static Workload> {
        WORKLOADS.iter().find(|workload| workload.name == name)
    }

    /// The workload called `name`, for arguments of a program.
    ///
    /// # Errors
    /// The names that there are.
    pub fn named(name: &str) -> Result<&'static Workload, String> {
        Self::find(name).ok_or_else(|| {
            let names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
            format!("there are {}", names.join(", "))
        })
    }

    /// What a server must be told for this workload, beyond its port.
    pub fn server_options(&self) -> Vec<String> {
        if self.handler_delay.is_zero() {
            return Vec::new();
        }
        let delay = humantime::format_duration(self.handler_delay).to_string();
        vec!["--handler-delay".to_owned(), delay]
    }

    /// What goes before the commands of server and generator: it puts both on one CPU, where the workload wants that.
    ///
    /// # Errors
    /// If it cannot be told which CPUs this process may use.
    pub fn wrapper(&self) -> io::Result<Vec<String>> {
        if !self.one_cpu {
            return Ok(Vec::new());
        }
        Ok(vec!["taskset".to_owned(), "--cpu-list".to_owned(), first_cpu()?.to_string()])
    }

    /// Requests per second that no server can pass, where the handler sets that limit.
    pub fn ideal_rate(&self) -> Option<f64> {
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
            assert_eq!(Workload::find(workload.name).unwrap().about, workload.about);
        }
    }

    #[test]
    fn ideal_is_set_by_workers_and_delay() {
        let blocking = Workload::find("blocking").unwrap();
        assert_eq!(blocking.ideal_rate(), Some(6400.0));
        assert_eq!(blocking.server_options(), ["--handler-delay", "5ms"]);
        assert_eq!(Workload::find("64x1").unwrap().ideal_rate(), None);
    }
}

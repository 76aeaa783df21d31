//! The options of `tidemill serve`, and its errors in their words.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tidemill::{Address, Config, Helo, IpNet, MAX_DURATION, ProxyFrom, StopFrom};

use crate::cli::{admin_address, size};

/// Serve clients until told to stop.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct ServeArgs {
    /// TCP port to listen on; 0 picks a free one, for all --bind
    #[arg(value_name = "PORT", default_value_t = 8000)]
    pub(super) port: u16,
    /// Address to listen on, IPv4 or IPv6; may be given more than once. `::` serves both families, unless 0.0.0.0 is given
    /// too [default: 127.0.0.1; with --assignment 0.0.0.0]
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1", hide_default_value = true)]
    #[arg(default_value_if("assignment", "true", "0.0.0.0"))]
    pub(super) bind: Vec<IpAddr>,
    /// Unix socket to listen on besides; may be given more than once. A file left behind by a server that is gone is replaced
    #[arg(long, value_name = "PATH")]
    pub(super) unix: Vec<PathBuf>,
    /// Mode of the Unix sockets' files, octal
    #[arg(long, value_name = "MODE", value_parser = mode, default_value = "0600")]
    pub(super) unix_mode: u32,
    /// Least workers at any time [default: 4, or --max-threads if that is less]
    #[arg(long, value_name = "N", env = "MIN_THREADS")]
    pub(super) min_threads: Option<usize>,
    /// Most workers at any time [default: 32, or --min-threads if that is more]
    #[arg(long, value_name = "N", env = "MAX_THREADS")]
    pub(super) max_threads: Option<usize>,
    /// No resize while demand and pool differ by this many threads or less, except when waiting work makes no progress
    #[arg(long, value_name = "N", env = "TOLERANCE", default_value_t = Config::default().tolerance)]
    pub(super) tolerance: usize,
    /// The pool shrinks to the highest demand seen within this window
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "5s")]
    pub(super) keep_alive: Duration,
    /// The student's number in each reply
    #[arg(long, value_name = "TEXT", env = "STUDENT_ID", default_value = Helo::STUDENT_ID, value_parser = one_line)]
    pub(super) student_id: String,
    /// The IP address in each reply [default: the one that the client reached]
    #[arg(long, value_name = "IP")]
    pub(super) advertise_ip: Option<IpAddr>,
    /// The port in each reply [default: the one that the client reached]
    #[arg(long, value_name = "PORT")]
    pub(super) advertise_port: Option<u16>,
    /// Make the handler block that long for each request: to see and to test the pool at work
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(super) handler_delay: Duration,
    /// Answer on the event loop instead of on workers, as nothing here blocks: less CPU for each request
    #[arg(long, conflicts_with = "handler_delay")]
    pub(super) inline: bool,
    /// Defaults for clients on other machines: --bind 0.0.0.0 --kill-from any
    #[arg(long, overrides_with = "assignment")]
    pub(super) assignment: bool,
    /// Who may stop the service with KILL_SERVICE: any, none, loopback, or networks in CIDR form, separated by commas
    /// [default: loopback; with --assignment any]
    #[arg(long, value_name = "LIST", value_parser = stop_from, default_value = "loopback", hide_default_value = true)]
    #[arg(default_value_if("assignment", "true", "any"))]
    pub(super) kill_from: StopFrom,
    /// Proxies, which must begin with a PROXY protocol header, v1 or v2, and count as the client that it names: none, any,
    /// loopback, unix (Unix sockets), or networks in CIDR form, separated by commas
    #[arg(long, value_name = "LIST", value_parser = proxy_from, default_value = "none")]
    pub(super) proxy_from: ProxyFrom,
    /// Most connections at a time; one more is told "ERROR server full" and closed. Lowered to what the limit of open
    /// files permits
    #[arg(long, value_name = "N", default_value_t = Config::default().max_connections)]
    pub(super) max_connections: usize,
    /// Most connections at a time from one IPv4 address or one IPv6 /64
    #[arg(long, value_name = "N", value_parser = limit, default_value = "off")]
    pub(super) max_connections_per_peer: Limit,
    /// Longest line in bytes (or as 64KiB, 1MiB) without its terminator; for a longer one the connection is closed
    #[arg(long, value_name = "BYTES", value_parser = size::parse, default_value_t = Config::default().max_line_bytes)]
    pub(super) max_line: usize,
    /// Most requests that wait for a worker or are with one; at the limit the server stops reading
    #[arg(long, value_name = "N", default_value_t = Config::default().max_pending)]
    pub(super) max_pending: usize,
    /// Bytes of requests and replies that are held for all connections together; above it the connections that hold most are
    /// closed
    #[arg(long, value_name = "BYTES", value_parser = size::parse, default_value = "256MiB")]
    pub(super) max_memory: usize,
    /// The kernel's part of the replies that a client does not read; `system`: as the kernel tunes it
    #[arg(long, value_name = "BYTES|system", value_parser = send_buffer, default_value = "128KiB")]
    pub(super) send_buffer: SendBuffer,
    /// How long the rest of a line may take once its first byte came; `off`: for ever
    #[arg(long, value_name = "DUR", value_parser = timeout, default_value = "30s")]
    pub(super) line_timeout: Timeout,
    /// How long a connection may have nothing outstanding
    #[arg(long, value_name = "DUR", value_parser = timeout, default_value = "off")]
    pub(super) idle_timeout: Timeout,
    /// How long a client may take none of the replies that wait for it
    #[arg(long, value_name = "DUR", value_parser = timeout, default_value = "30s")]
    pub(super) write_timeout: Timeout,
    /// A request that has waited longer for a worker is not run, and answered with "ERROR busy"
    #[arg(long, value_name = "DUR", value_parser = timeout, default_value = "off")]
    pub(super) queue_timeout: Timeout,
    /// A request that a worker takes longer for is told so, and its connection closed; the handler runs on
    #[arg(long, value_name = "DUR", value_parser = timeout, default_value = "off")]
    pub(super) request_timeout: Timeout,
    /// Stack of each worker in bytes (or as 64KiB, 1MiB): address space, resident only as far as a request's handling
    /// uses it
    #[arg(long, value_name = "BYTES", value_parser = size::parse, default_value = "2MiB")]
    pub(super) thread_stack: usize,
    /// How long a graceful stop may take before what is left is dropped
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "8s")]
    pub(super) drain_timeout: Duration,
    /// After SIGTERM go on serving and accepting that long, but not ready, before the stop begins: for a load balancer that needs
    /// time to see it. Once more SIGTERM, SIGINT or KILL_SERVICE end it
    #[arg(long, value_name = "DUR", value_parser = delay, default_value = "0s")]
    pub(super) drain_delay: Duration,
    /// Let several processes listen on the port, each with this option
    #[arg(long)]
    pub(super) reuse_port: bool,
    /// How long a new process may take to become ready after SIGUSR2, until it is ended and this one goes on
    #[arg(long, value_name = "DUR", value_parser = some_time, default_value = "10s")]
    pub(super) upgrade_timeout: Duration,
    /// Print the statistics as one JSON line on standard output each time
    #[arg(long, value_name = "DUR", value_parser = period, default_value = "off")]
    pub(super) stats_every: Timeout,
    /// Hand requests to programs that run this command, which read lines on standard input and write lines on standard output;
    /// split into words as a shell does, and run without one
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["inline", "handler_delay"])]
    pub(super) exec: Option<String>,
    #[command(flatten)]
    pub(super) programs: super::exec::ExecArgs,
    /// Tell about the server by HTTP there: /metrics, /stats.json, /readyz, and a live page at /. A port alone is one of
    /// 127.0.0.1; a Unix socket is for the same user only [default: off]
    #[arg(long, value_name = "[ADDR:]PORT|unix:PATH", value_parser = admin_address)]
    pub(super) admin: Option<Address>,
    /// Answer HAProxy's agent-check there: state, and a weight from the pool's headroom [default: off]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) agent: Option<SocketAddr>,
    /// Log requests that take longer, from when they are read until they are handled, with what there was to do; at most ten
    /// within a second
    #[arg(long, value_name = "DUR", value_parser = timeout, default_value = "off")]
    pub(super) slow_log: Timeout,
    /// Form of the log lines on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
    /// Least severe level that is logged
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t = LogLevel::Info)]
    pub(super) log_level: LogLevel,
    /// Read options from this file besides, in TOML: their names are the keys, `port` that of PORT. Flags win over the
    /// environment, which wins over the file. Read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Print the value of each option and where it comes from, and exit: with status 0, or 2 if one is wrong
    #[arg(long)]
    pub(super) check: bool,
}

/// A time limit that may be off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeout(pub(super) Option<Duration>);

/// A number that may be off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit(pub(super) Option<usize>);

/// A size that may be left to the system.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendBuffer(pub(super) Option<usize>);

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

pub(super) fn timeout(text: &str) -> Result<Timeout, humantime::DurationError> {
    match text {
        "off" => Ok(Timeout(None)),
        text => humantime::parse_duration(text).map(|timeout| Timeout(Some(timeout))),
    }
}

fn period(text: &str) -> Result<Timeout, String> {
    match timeout(text) {
        Ok(Timeout(Some(Duration::ZERO))) => Err("must be longer".to_owned()),
        period => period.map_err(|error| error.to_string()),
    }
}

fn some_time(text: &str) -> Result<Duration, String> {
    match delay(text) {
        Ok(Duration::ZERO) => Err("must be longer".to_owned()),
        time => time,
    }
}

fn delay(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(delay) if delay > MAX_DURATION => Err("must be at most a year".to_owned()),
        delay => delay.map_err(|error| error.to_string()),
    }
}

pub(super) fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "off" => Ok(Limit(None)),
        text => text.parse().map(|limit| Limit(Some(limit))).map_err(|_| "it is a number, or off".to_owned()),
    }
}

fn send_buffer(text: &str) -> Result<SendBuffer, String> {
    match text {
        "system" => Ok(SendBuffer(None)),
        text => size::parse(text).map(|bytes| SendBuffer(Some(bytes))),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).map_err(|_| "must be octal, such as 0660".to_owned())
}

fn one_line(text: &str) -> Result<String, String> {
    if text.contains(['\n', '\r']) {
        return Err("must be one line".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn stop_from(list: &str) -> Result<StopFrom, String> {
    match list {
        "any" => return Ok(StopFrom::Any),
        "none" => return Ok(StopFrom::None),
        "loopback" => return Ok(StopFrom::Loopback),
        _ => {}
    }
    let network = |text: &str| {
        network(text).ok_or_else(|| match text {
            "any" | "none" => format!("'{text}' stands alone"),
            "loopback" => "'loopback' stands alone; in a list it is 127.0.0.0/8,::1".to_owned(),
            _ => format!("'{text}' is not any, none, loopback, an address, or a network such as 10.0.0.0/8"),
        })
    };
    list.split(',').map(str::trim).map(network).collect::<Result<_, _>>().map(StopFrom::Networks)
}

/// A network, or one of a single address.
fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

pub(super) fn proxy_from(list: &str) -> Result<ProxyFrom, String> {
    const EVERYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];
    const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
    let mut proxies = ProxyFrom::default();
    let known = |networks: [&'static str; 2]| networks.into_iter().filter_map(network);
    for text in list.split(',').map(str::trim) {
        match text {
            "none" if list == "none" => {}
            "unix" => proxies.unix = true,
            "any" => {
                proxies.unix = true;
                proxies.networks.extend(known(EVERYWHERE));
            }
            "loopback" => proxies.networks.extend(known(LOOPBACK)),
            text => proxies.networks.push(network(text).ok_or_else(|| {
                format!(
                    "'{text}' is not any, none, loopback, unix, an address, or a network such as 10.0.0.0/8"
                )
            })?),
        }
    }
    Ok(proxies)
}

/// The option for a setting of the library.
pub(super) fn option_of(setting: &str) -> String {
    setting.trim_end_matches("_bytes").replace('_', "-")
}

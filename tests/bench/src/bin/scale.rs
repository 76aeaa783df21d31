//! For scale: what servers that everybody knows need for a line of their own protocol, beside ours for one of its own.
//!
//! `scripts/bench.sh scale` runs it. The load generator speaks HELO only, so a small closed loop of its own floods here;
//! its figures compare with each other, not with those of the benchmark.

#![allow(clippy::print_stderr, reason = "a program that says why it failed")]

use std::io::{Error, ErrorKind, Read, Result, Write, stdout};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use tidemill_bench::machine::{CpuClock, raise_file_limit};
use tidemill_bench::server::ServerSpec;
use tidemill_bench::stats::Estimate;

/// Flooded before each measurement.
const WARMUP: Duration = Duration::from_millis(300);

/// A server that is silent for this long has lost a reply.
const PATIENCE: Duration = Duration::from_secs(5);

/// CPU time per request of servers that everybody knows, each asked in its own protocol
#[derive(Debug, Parser)]
#[command(name = "scripts/bench.sh scale", version)]
struct Args {
    /// Connections
    #[arg(short, long, value_name = "N", default_value = "64")]
    connections: usize,
    /// Requests on their way on each
    #[arg(short = 'P', long, value_name = "N", default_value = "1")]
    pipeline: usize,
    /// Measurements of each server
    #[arg(long, value_name = "N", default_value = "7")]
    rounds: usize,
    /// The measured part of each
    #[arg(long, value_name = "DUR", default_value = "1s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// The binary to measure
    #[arg(long, value_name = "PATH", default_value = "target/release/tidemill")]
    tidemill: PathBuf,
}

/// A server and what it is asked.
struct Asked {
    spec: ServerSpec,
    request: &'static str,
    /// What the reply must be on a port; none where the first one says it.
    reply: fn(u16) -> Option<String>,
    rates: Vec<f64>,
    cpu_us: Vec<f64>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    raise_file_limit()?;
    let mut servers = servers(args)?;
    for round in 0..args.rounds {
        for turn in 0..servers.len() {
            let at = (round + turn) % servers.len();
            let server = &mut servers[at];
            let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", server.spec.name));
            let (rate, cpu_us) = measure(args, server).map_err(named)?;
            server.rates.push(rate);
            server.cpu_us.push(cpu_us);
        }
    }
    let mut out = stdout().lock();
    let (connections, pipeline) = (args.connections, args.pipeline);
    writeln!(
        out,
        "{connections} connections, {pipeline} requests on their way on each, {} rounds",
        args.rounds
    )?;
    writeln!(out, "{:16}{:12}{:>14}{:>10}", "", "asked", "requests/s", "CPU µs")?;
    for server in &servers {
        let median = |values: &[f64]| Estimate::of(values).map_or(f64::NAN, |estimate| estimate.median);
        let (rate, cpu_us) = (median(&server.rates), median(&server.cpu_us));
        writeln!(out, "{:16}{:12}{rate:>14.0}{cpu_us:>10.2}", server.spec.name, server.request.trim_end())?;
    }
    Ok(())
}

/// Ours, the peers, and those of the others that are installed.
fn servers(args: &Args) -> Result<Vec<Asked>> {
    let asked = |spec, request, reply| Asked { spec, request, reply, rates: Vec::new(), cpu_us: Vec::new() };
    let helo = |port| Some(format!("HELO scale\nIP:127.0.0.1\nPort:{port}\nStudentID:16336617\n"));
    let known = ServerSpec::known(&args.tidemill)?;
    let compared =
        known.into_iter().filter(|spec| ["tidemill", "tokio", "floor"].contains(&spec.name.as_str()));
    let mut servers: Vec<Asked> = compared.map(|spec| asked(spec, "HELO scale\n", helo)).collect();
    let installed = |words: &[&str]| -> Option<ServerSpec> {
        let version = Command::new(words[0]).arg("--version").stdout(Stdio::null()).status();
        version.ok().filter(|status| status.success()).map(|_| ServerSpec {
            name: words[0].to_owned(),
            command: words.iter().map(|word| (*word).to_owned()).collect(),
            announces: false,
        })
    };
    if let Some(redis) = installed(&["redis-server", "--bind", "127.0.0.1", "--port", "{port}", "--save", ""])
    {
        servers.push(asked(redis, "PING\r\n", |_| Some("+PONG\r\n".to_owned())));
    }
    let memcached =
        ["memcached", "-l", "127.0.0.1", "-p", "{port}", "-U", "0", "-t", "2", "-c", "12000", "-u", "nobody"];
    if let Some(memcached) = installed(&memcached) {
        servers.push(asked(memcached, "version\r\n", |_| None));
    }
    Ok(servers)
}

/// Requests per second, and CPU time per request in microseconds.
fn measure(args: &Args, asked: &Asked) -> Result<(f64, f64)> {
    let server = asked.spec.start(&[], &[])?;
    let clock = CpuClock::of(server.pid())?;
    let reply = match (asked.reply)(server.address.port()) {
        Some(reply) => reply.into_bytes(),
        None => first_reply(server.address, asked.request)?,
    };
    let mut flood = Flood::start(
        server.address,
        args.connections,
        asked.request.repeat(args.pipeline),
        reply.repeat(args.pipeline),
    )?;
    flood.run(WARMUP)?;
    let (start, before) = (Instant::now(), clock.read()?);
    let replies = flood.run(args.duration)? * args.pipeline;
    let (elapsed, used) = (start.elapsed().as_secs_f64(), clock.read()? - before);
    drop(flood);
    server.stop()?;
    Ok((replies as f64 / elapsed, used.as_secs_f64() * 1e6 / replies as f64))
}

/// What a server answers whose reply depends on its version.
fn first_reply(address: SocketAddr, request: &str) -> Result<Vec<u8>> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut reply = Vec::new();
    while reply.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        reply.push(byte[0]);
    }
    Ok(reply)
}

/// Connections in a closed loop: each sends a batch of requests as soon as it has all replies to the last.
struct Flood {
    poll: Poll,
    connections: Vec<(TcpStream, usize)>,
    requests: Vec<u8>,
    replies: Vec<u8>,
}

impl Flood {
    fn start(address: SocketAddr, connections: usize, requests: String, replies: Vec<u8>) -> Result<Self> {
        let (poll, requests) = (Poll::new()?, requests.into_bytes());
        let connect = |id| {
            let mut stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.write_all(&requests)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(id), Interest::READABLE)?;
            Ok((stream, 0))
        };
        let connections: Result<Vec<_>> = (0..connections).map(connect).collect();
        Ok(Flood { connections: connections?, poll, requests, replies })
    }

    /// Floods for `duration` and counts the batches that were answered.
    fn run(&mut self, duration: Duration) -> Result<usize> {
        let mut events = Events::with_capacity(1024);
        let end = Instant::now() + duration;
        let mut answered = 0;
        while Instant::now() < end {
            self.poll.poll(&mut events, Some(PATIENCE))?;
            if events.is_empty() {
                return Err(ErrorKind::TimedOut.into());
            }
            for event in &events {
                let (stream, received) = &mut self.connections[event.token().0];
                answered += advance(stream, received, &self.requests, &self.replies)?;
            }
        }
        Ok(answered)
    }
}

/// Takes what one read brings, and sends the next batch when this one's replies are complete. Whole replies of a batch
/// come before the next is sent, so a short read is all there is.
fn advance(stream: &mut TcpStream, received: &mut usize, requests: &[u8], replies: &[u8]) -> Result<usize> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error),
        };
        if replies.get(*received..*received + read) != Some(&buffer[..read]) {
            return Err(Error::new(ErrorKind::InvalidData, "a reply was not what it must be"));
        }
        *received += read;
        if *received == replies.len() {
            *received = 0;
            // A batch is far smaller than the socket's buffer, which is empty now.
            let written = stream.write(requests)?;
            return if written == requests.len() { Ok(1) } else { Err(ErrorKind::WriteZero.into()) };
        }
        if read < buffer.len() {
            return Ok(0);
        }
    }
}

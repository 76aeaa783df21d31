//! `tidemill client`: one request by hand, or a connection joined to standard input and output (`pipe`).

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use tidemill::client::Client;

use super::{Failure, duration, pipe};

/// Send one request and print its reply.
#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// H sends HELO and prints the reply; K sends KILL_SERVICE and waits for the close
    #[arg(value_enum, ignore_case = true, required_unless_present = "pipe")]
    request: Option<RequestKind>,
    /// The server's IP address
    #[arg(required_unless_present = "pipe")]
    ip: Option<IpAddr>,
    /// The server's TCP port
    #[arg(required_unless_present = "pipe")]
    port: Option<u16>,
    /// The text of the HELO
    #[arg(default_value = "IMPRESSIVE_TEST")]
    text: String,
    /// Join standard input and output to a connection, both ways at once, until both have ended
    #[arg(long, value_name = "HOST:PORT|unix:PATH", conflicts_with = "request")]
    pipe: Option<String>,
    /// How long all of it may take; with --pipe, to connect
    #[arg(long, value_name = "DUR", value_parser = duration::positive, default_value = "5s")]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "UPPER")]
enum RequestKind {
    H,
    K,
}

/// Exit status 0 when the reply came, or the server closed after `KILL_SERVICE`; else 1.
pub(crate) fn run(args: &ClientArgs) -> Result<ExitCode, Failure> {
    if args.text.contains('\n') {
        return Err(Failure::usage("TEXT must be one line"));
    }
    if let Some(address) = &args.pipe {
        return pipe::run(address, args.timeout);
    }
    let (Some(request), Some(ip), Some(port)) = (args.request, args.ip, args.port) else {
        return Err(Failure::usage("H or K, IP and PORT are needed, or --pipe"));
    };
    let address = SocketAddr::new(ip, port);
    let failure = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let timeout = humantime::format_duration(args.timeout);
            Failure::failed(format!("{address}: no reply within {timeout}"))
        }
        _ => Failure::failed(format!("{address}: {error}")),
    };
    exchange(request, args, address).map(|()| ExitCode::SUCCESS).map_err(failure)
}

fn exchange(request: RequestKind, args: &ClientArgs, address: SocketAddr) -> io::Result<()> {
    let started = Instant::now();
    let mut client = Client::connect(address, args.timeout)?;
    let left = || args.timeout.saturating_sub(started.elapsed());
    client.set_timeout(left());
    match request {
        RequestKind::H => {
            let reply = client.helo(args.text.as_bytes())?;
            match io::stdout().lock().write_all(&reply) {
                // The reader has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                written => written,
            }
        }
        RequestKind::K => {
            client.send(b"KILL_SERVICE\n")?;
            client.set_timeout(left());
            let said = client.read_to_end()?;
            if said.is_empty() {
                return Ok(());
            }
            // Only a refusal says anything.
            Err(io::Error::other(String::from_utf8_lossy(&said).trim_end().to_owned()))
        }
    }
}

//! `tidemill client`: one request by hand.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tidemill::client::Client;

use super::{USAGE, fail};

/// Send one request and print its reply.
#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// H sends HELO and prints the reply; K sends KILL_SERVICE and waits for the close
    #[arg(value_enum, ignore_case = true)]
    request: RequestKind,
    /// The server's IP address
    ip: IpAddr,
    /// The server's TCP port
    port: u16,
    /// The text of the HELO
    #[arg(default_value = "IMPRESSIVE_TEST")]
    text: String,
    /// How long to wait for the connection, and for each part of the reply
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration, default_value = "5s")]
    timeout: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "UPPER")]
enum RequestKind {
    H,
    K,
}

/// Exit status 0 when the reply came, or the server closed after `KILL_SERVICE`; else 1.
pub(crate) fn run(args: &ClientArgs) -> ExitCode {
    if args.timeout.is_zero() {
        return fail(USAGE, "--timeout is 0s, but must be longer");
    }
    if args.text.contains('\n') {
        return fail(USAGE, "TEXT must be one line");
    }
    let address = SocketAddr::new(args.ip, args.port);
    match exchange(args, address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            fail(1, &format!("{address}: no reply within {}", humantime::format_duration(args.timeout)))
        }
        Err(error) => fail(1, &format!("{address}: {error}")),
    }
}

fn exchange(args: &ClientArgs, address: SocketAddr) -> io::Result<()> {
    let mut client = Client::connect(address, args.timeout)?;
    match args.request {
        RequestKind::H => {
            let reply = client.helo(args.text.as_bytes())?;
            io::stdout().lock().write_all(&reply)
        }
        RequestKind::K => {
            client.send(b"KILL_SERVICE\n")?;
            let said = client.read_to_end()?;
            if said.is_empty() {
                return Ok(());
            }
            // Only a refusal says anything.
            Err(io::Error::other(String::from_utf8_lossy(&said).trim_end().to_owned()))
        }
    }
}

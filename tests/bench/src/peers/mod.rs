//! Servers to compare with, and what every one does before it serves: arguments, the listener, and the line that says it is ready.

pub(crate) mod channel;
pub(crate) mod floor;
pub(crate) mod tokio;

use std::io::Result;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use clap::Parser;
use socket2::{Domain, Protocol, Socket, Type};

/// The listen backlog asked for; the system cuts it to its own limit.
const LISTEN_BACKLOG: i32 = 65_535;

/// Arguments of a peer.
#[derive(Clone, Debug, Parser)]
#[command(about = "A server to compare with; answers HELO lines on 127.0.0.1", version)]
pub(crate) struct Args {
    /// Port to listen on; 0 picks a free one
    pub(crate) port: u16,
    /// How long the handler blocks for each request
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) handler_delay: Duration,
}

impl Args {
    /// Threads that run the handler: the fixed pool's, or tokio's for blocking work.
    pub(crate) fn workers(&self) -> usize {
        if self.handler_delay.is_zero() { 2 } else { 32 }
    }

    /// A listener on the port asked for, with the longest backlog there is.
    pub(crate) fn listen(&self) -> Result<TcpListener> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)).into())?;
        socket.listen(LISTEN_BACKLOG)?;
        Ok(socket.into())
    }
}

/// Prints the line that tells whoever started this peer that clients can connect.
pub(crate) fn announce(listener: &TcpListener) -> Result<()> {
    println!("listening on {}", listener.local_addr()?);
    Ok(())
}

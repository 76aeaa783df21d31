//! Peer: a thread for each connection, blocking I/O.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use clap::Parser;
use tidemill_bench::peer::{self, Args};
use tidemill_bench::service::{Input, Service};

/// Stack of a connection's thread: it needs little, and there may be 10 000.
const STACK_BYTES: usize = 64 * 1024;

fn main() -> Result<()> {
    let args = Args::parse();
    let listener = args.listen()?;
    peer::announce(&listener)?;
    for stream in listener.incoming() {
        let (stream, delay) = (stream?, args.handler_delay);
        let started = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // A connection that fails ends; the client sees that, and nobody else needs to.
            let _ = serve(stream, delay);
        });
        // Without a thread the connection was dropped with the closure, which is all that can be done for it.
        drop(started);
    }
    Ok(())
}

fn serve(mut stream: TcpStream, delay: Duration) -> Result<()> {
    stream.set_nodelay(true)?;
    let service = Service::new(stream.local_addr()?, delay);
    let (mut input, mut replies) = (Input::new(), Vec::new());
    loop {
        let read = match stream.read(input.space()) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            input.closed(&service, &mut replies);
            return stream.write_all(&replies);
        }
        input.received(read, &service, &mut replies)?;
        stream.write_all(&replies)?;
        replies.clear();
    }
}

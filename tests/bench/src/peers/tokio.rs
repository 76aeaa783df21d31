//! Peer: tokio with two workers and a task for each connection, as somebody who knows tokio writes it.
//!
//! All lines of a read are answered with one write, buffers are reused, nothing is allocated for a request, and the
//! accepting task runs on the workers too. A handler that blocks goes through `spawn_blocking`, with the connection's
//! state moved there and back.

use std::io::Result;
use std::net::SocketAddr;
use std::time::Duration;

use crate::peers::{self, Args};
use crate::service::{Answer, Service, check_line};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::task::spawn_blocking;

pub(crate) const WORKERS: usize = 2;

/// First capacity of a connection's receive buffer: a few dozen lines in one read.
const INPUT_BYTES: usize = 4096;

/// Pause after an accept that failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

pub(crate) fn run(args: &Args) -> Result<bool> {
    let listener = args.listen()?;
    listener.set_nonblocking(true)?;
    peers::announce(&listener)?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(args.workers())
        .enable_io()
        .enable_time()
        .build()?;
    runtime
        .block_on(async {
            let (listener, delay) = (TcpListener::from_std(listener)?, args.handler_delay);
            let service = move |local| Service::new(local, delay);
            tokio::spawn(accept(listener, service, !delay.is_zero())).await?
        })
        .map(|()| true)
}

/// Serves whoever connects by what `service` makes for a connection, which may say that its handler `blocks`.
pub(crate) async fn accept<A: Answer>(
    listener: TcpListener,
    service: impl Fn(SocketAddr) -> A,
    blocks: bool,
) -> Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service(stream.local_addr()?);
                drop(tokio::spawn(serve(stream, service, blocks)));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve(mut stream: TcpStream, service: impl Answer, blocks: bool) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut state = State { service, input: Vec::with_capacity(INPUT_BYTES), replies: Vec::new() };
    let mut open = true;
    while open {
        open = stream.read_buf(&mut state.input).await? > 0;
        if blocks {
            state = spawn_blocking(move || state.answer(open).map(|()| state)).await??;
        } else {
            state.answer(open)?;
        }
        if !state.replies.is_empty() {
            stream.write_all(&state.replies).await?;
            state.replies.clear();
        }
    }
    Ok(())
}

/// What of a connection the handler needs.
struct State<A> {
    service: A,
    /// What was read and not yet answered.
    input: Vec<u8>,
    replies: Vec<u8>,
}

impl<A: Answer> State<A> {
    /// Answers what a read brought; where the client has closed its side, that ends its last line.
    fn answer(&mut self, open: bool) -> Result<()> {
        let used = self.service.answer(&self.input, &mut self.replies);
        self.input.drain(..used);
        if !open {
            self.service.answer_line(&self.input, &mut self.replies);
        }
        check_line(&self.input)
    }
}

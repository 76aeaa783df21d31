//! A tokio server that does what the lab's does: each request through `spawn_blocking`, noted by the same code.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::spawn_blocking;

use super::lab::{EPOCH, Notes};
use super::rows::ms;

/// As many as the tokio server of the benchmark has.
const WORKERS: usize = 2;

pub(crate) struct Peer {
    runtime: Runtime,
    address: SocketAddr,
    notes: Arc<Notes>,
}

impl Peer {
    /// A server whose threads for blocking work end when they had nothing to do for `keep_alive`.
    pub(crate) fn start(keep_alive: Duration) -> Result<Peer> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_keep_alive(keep_alive)
            .enable_io()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let (address, notes) = (listener.local_addr()?, Notes::new());
        runtime.spawn(accept(listener, Arc::clone(&notes)));
        Ok(Peer { runtime, address, notes })
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its handler notes.
    pub(crate) fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Has `count` closures sleep for so many microseconds, without the server. When the last of them began, in ms.
    pub(crate) fn last_of_closures(&self, count: usize, sleep: u64) -> Result<f64> {
        self.notes.take_calls();
        let line: Arc<[u8]> = format!("s:{sleep}").into_bytes().into();
        let begun = EPOCH.elapsed();
        let tasks: Vec<_> = (0..count)
            .map(|_| {
                let (notes, line) = (Arc::clone(&self.notes), Arc::clone(&line));
                self.runtime.spawn_blocking(move || notes.handle(&line, None))
            })
            .collect();
        for task in tasks {
            self.runtime.block_on(task).map_err(Error::other)?;
        }
        let last = self.notes.take_calls().last().map(|call| call.begun);
        Ok(last.map_or(f64::NAN, |last| ms(last.saturating_sub(begun))))
    }
}

async fn accept(listener: TcpListener, notes: Arc<Notes>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        drop(tokio::spawn(serve(stream, Arc::clone(&notes))));
    }
}

async fn serve(stream: TcpStream, notes: Arc<Notes>) -> Result<()> {
    stream.set_nodelay(true)?;
    let local = Some(stream.local_addr()?);
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line).await? > 0 {
        let notes = Arc::clone(&notes);
        line = spawn_blocking(move || {
            notes.handle(line.trim_ascii_end(), local);
            line
        })
        .await?;
        line.clear();
        stream.write_all(b"ok\n").await?;
    }
    Ok(())
}

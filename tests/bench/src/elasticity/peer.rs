//! The tokio server of the benchmark, with a handler that does what the lab's does: each request through `spawn_blocking`, noted by
//! the same code.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use super::lab::{EPOCH, Notes};
use super::rows::ms;
use crate::peers::tokio::{WORKERS, accept};
use crate::service::Answer;

pub(crate) struct Peer {
    runtime: Runtime,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// What its handler notes.
    pub(crate) notes: Arc<Notes>,
}

impl Peer {
    /// A server whose threads for blocking work end when they had nothing to do for `keep_alive`.
    pub(crate) fn start(keep_alive: Duration) -> Result<Peer> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_keep_alive(keep_alive)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let (address, notes) = (listener.local_addr()?, Notes::new());
        let its = Arc::clone(&notes);
        runtime.spawn(accept(listener, move |local| Noted(Arc::clone(&its), local), true));
        Ok(Peer { runtime, address, notes })
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

/// What its handler does on a connection that reached this address.
struct Noted(Arc<Notes>, SocketAddr);

impl Answer for Noted {
    fn answer_line(&self, line: &[u8], replies: &mut Vec<u8>) {
        // The client has closed its side.
        if !line.is_empty() {
            self.0.handle(line, Some(self.1));
            replies.extend_from_slice(b"ok\n");
        }
    }
}

//! One frame that a peer sent, as its handler sees it.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use super::connection::Connection;
use crate::address::Address;

/// One frame, by default a line, that a peer sent.
#[derive(Debug)]
pub struct Request<'a> {
    frame: &'a [u8],
    connection: &'a Connection<'a>,
    waits: &'a Waits,
}

/// What a handler says that it waits for. Written by the handler, read by the tuner. Relaxed: a statistic.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// Calls of [`Request::blocking`] under way.
    blocks: AtomicUsize,
    /// The process of [`Request::awaiting`]; 0: none.
    process: AtomicU32,
}

impl Waits {
    /// It waits for something other than a CPU.
    pub(crate) fn blocks(&self) -> bool {
        self.blocks.load(Relaxed) > 0
    }

    /// It waits for this process.
    pub(crate) fn process(&self) -> Option<u32> {
        Some(self.process.load(Relaxed)).filter(|process| *process > 0)
    }
}

impl<'a> Request<'a> {
    pub(crate) fn new(frame: &'a [u8], connection: &'a Connection<'a>, waits: &'a Waits) -> Self {
        Request { frame, connection, waits }
    }

    /// The content of the frame, without terminator or length.
    pub fn frame(&self) -> &'a [u8] {
        self.frame
    }

    /// The same where frames are lines: the line without its terminator. Any bytes but `\n`.
    pub fn line(&self) -> &'a [u8] {
        self.frame
    }

    /// The connection that it came on.
    pub fn connection(&self) -> &'a Connection<'a> {
        self.connection
    }

    /// The address that the peer reached: the accepted socket's local address.
    pub fn local_addr(&self) -> &'a Address {
        self.connection.local_addr()
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> &'a Address {
        self.connection.peer_addr()
    }

    /// Runs `work` and tells the pool meanwhile that this worker waits for something other than a CPU.
    ///
    /// It is never needed where `/proc` can be read: there the pool looks which workers are blocked before it grows. This spares
    /// it the look. Where `/proc` cannot be read it sets waiting apart from computing; there a handler should declare either
    /// all that blocks or nothing, as what it leaves out counts as computing. Blocks for as long as `work` does.
    ///
    /// # Panics
    /// As `work` does.
    ///
    /// # Examples
    /// ```
    /// use std::{fs, path::Path};
    /// use tidemill::{Reply, Request};
    ///
    /// fn handle(request: &Request<'_>, reply: &mut Reply<'_>) {
    ///     let name = String::from_utf8_lossy(request.line());
    ///     let file = request.blocking(|| fs::read(Path::new("/srv").join(&*name)));
    ///     reply.push(&file.unwrap_or_default());
    /// }
    /// ```
    pub fn blocking<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Declared<'a>(&'a AtomicUsize);
        impl Drop for Declared<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        // A count: a handler may nest these, and have threads of its own that do it side by side.
        self.waits.blocks.fetch_add(1, Relaxed);
        let _declared = Declared(&self.waits.blocks);
        work()
    }

    /// Runs `work` and tells the pool meanwhile that this worker waits for another process to do it: it is as blocked as that is, so
    /// that no workers are added for processes that have the CPUs busy already. What counts is the first thread of the process of this
    /// number, where `/proc` can be read. Blocks for as long as `work` does.
    ///
    /// # Panics
    /// As `work` does.
    pub fn awaiting<R>(&self, process: u32, work: impl FnOnce() -> R) -> R {
        struct Declared<'a>(&'a AtomicU32, u32);
        impl Drop for Declared<'_> {
            fn drop(&mut self) {
                self.0.store(self.1, Relaxed);
            }
        }
        let before = self.waits.process.swap(process, Relaxed);
        let _declared = Declared(&self.waits.process, before);
        work()
    }
}

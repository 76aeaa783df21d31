//! The [`Handler`] trait: what a server does with a line. Closures are handlers; panics are caught here.
//!
//! [`Handler::handle`] runs on a worker and may block; [`Handler::classify`] runs on the reactor and must not.

use std::any::Any;
use std::fmt;
use std::io;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::address::Address;

/// What a line is, told by [`Handler::classify`] when its turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A request: goes to a worker.
    Request,
    /// A request to stop the server, if this peer may ([`Config::stop_from`](crate::Config::stop_from)); else the peer is
    /// told so and its connection is closed. See [`Handler::stop_line`] for one that does not wait for its turn.
    Stop,
    /// Neither. It is counted and has no reply; no worker sees it.
    Ignored,
}

/// What a peer may be told when its connection is ended by the server. Its text is what it is told by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Farewell {
    /// A line is longer than the limit.
    LineTooLong {
        /// [`Config::max_line_bytes`](crate::Config::max_line_bytes)
        limit: usize,
    },
    /// There are as many connections as there may be.
    Full {
        /// [`Config::max_connections`](crate::Config::max_connections)
        limit: usize,
    },
    /// The peer's address has as many connections as it may have.
    PeerFull {
        /// [`Config::max_connections_per_peer`](crate::Config::max_connections_per_peer)
        limit: usize,
    },
    /// The rest of a line did not come in time.
    LineTimeout {
        /// [`Config::line_timeout`](crate::Config::line_timeout)
        limit: Duration,
    },
    /// The handler did not return in time.
    RequestTimeout {
        /// [`Config::request_timeout`](crate::Config::request_timeout)
        limit: Duration,
    },
    /// The peer asked to stop the server, and may not.
    StopRefused,
    /// The handler panicked.
    Panic,
}

impl fmt::Display for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Farewell::LineTooLong { limit } => write!(f, "ERROR line too long (limit {limit} bytes)"),
            Farewell::Full { limit } => write!(f, "ERROR server full (limit {limit} connections)"),
            Farewell::PeerFull { limit } => {
                write!(f, "ERROR too many connections from your address (limit {limit})")
            }
            Farewell::LineTimeout { limit } => write!(f, "ERROR line not completed within {limit:?}"),
            Farewell::RequestTimeout { limit } => write!(f, "ERROR request not completed within {limit:?}"),
            Farewell::StopRefused => write!(f, "ERROR stop refused"),
            Farewell::Panic => write!(f, "ERROR internal error"),
        }
    }
}

/// The service behind a server: turns a line into a reply.
///
/// Lines of one connection are handled one after another and their replies keep that order; lines of different
/// connections are handled side by side, so a handler is shared by all workers.
///
/// A closure that takes a [`Request`] and a [`Reply`] is a handler.
///
/// # Examples
/// ```
/// use tidemill::{Handler, Kind, Reply, Request};
///
/// struct Upper;
///
/// impl Handler for Upper {
///     fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
///         reply.push(&request.line().to_ascii_uppercase());
///         reply.push(b"\n");
///     }
///
///     fn classify(&self, line: &[u8]) -> Kind {
///         if line == b"quit server" { Kind::Stop } else { Kind::Request }
///     }
///
///     fn name(&self) -> &str {
///         "upper"
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// Handles one line and writes its reply, which is sent as it is: a reply that is to end in a newline brings it.
    /// Nothing written means no reply.
    ///
    /// Runs on a worker, and may block for as long as it likes: the pool grows when workers are held up.
    ///
    /// # Panics
    /// A panic costs this request and its connection: what was written for it is discarded, replies before it are
    /// sent, then `ERROR internal error`, and the connection is closed. The worker and the server go on.
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>);

    /// Tells what a line is. By default every line is a request.
    ///
    /// Runs on the reactor thread, once for every line: it holds up all connections while it runs, so
    /// it must only look. A panic costs the connection, as in [`handle`](Self::handle).
    fn classify(&self, line: &[u8]) -> Kind {
        let _ = line;
        Kind::Request
    }

    /// A line that is [`Kind::Stop`] wherever it stands in the stream. It is acted on as soon as it has been read, also
    /// where lines before it still wait for workers that are stuck. By default there is none. Asked once, at the start.
    fn stop_line(&self) -> Option<&[u8]> {
        None
    }

    /// What a peer is told last, line ending included, when the server ends its connection for a reason of its own. By
    /// default the text of `farewell` and a line feed; `None` tells nothing. Runs on the reactor thread, as
    /// [`classify`](Self::classify) does; after a panic nothing is told.
    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        Some(format!("{farewell}\n").into_bytes())
    }

    /// What a peer is told, line ending included, in place of the reply to a request that has `waited` for a worker longer than
    /// [`Config::queue_timeout`](crate::Config::queue_timeout) and is not run. Runs on a worker.
    fn busy_line(&self, waited: Duration) -> Vec<u8> {
        format!("ERROR busy (waited {waited:?})\n").into_bytes()
    }

    /// The service's name in the statistics: a short word, the same at every call. Asked once, at the start.
    fn name(&self) -> &str {
        "service"
    }
}

impl<F> Handler for F
where
    F: Fn(&Request<'_>, &mut Reply<'_>) + Send + Sync + 'static,
{
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        self(request, reply);
    }
}

/// One line that a peer sent.
#[derive(Debug)]
pub struct Request<'a> {
    line: &'a [u8],
    local: &'a Address,
    peer: &'a Address,
    /// Calls of [`blocking`](Self::blocking) under way. Written by the handler, read by the tuner. Relaxed: a statistic.
    blocks: &'a AtomicUsize,
}

impl<'a> Request<'a> {
    pub(crate) fn new(
        line: &'a [u8],
        local: &'a Address,
        peer: &'a Address,
        blocks: &'a AtomicUsize,
    ) -> Self {
        Request { line, local, peer, blocks }
    }

    /// The line without its terminator. Any bytes but `\n`.
    pub fn line(&self) -> &'a [u8] {
        self.line
    }

    /// The address that the peer reached: the accepted socket's local address.
    pub fn local_addr(&self) -> &'a Address {
        self.local
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> &'a Address {
        self.peer
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
        self.blocks.fetch_add(1, Relaxed);
        let _declared = Declared(self.blocks);
        work()
    }
}

/// Where a handler writes its reply.
///
/// Also an [`io::Write`] that never fails, for `write!`.
#[derive(Debug)]
pub struct Reply<'a> {
    bytes: &'a mut Vec<u8>,
    close: bool,
}

impl Reply<'_> {
    /// Adds `bytes` to the reply.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        self.bytes
    }

    /// Closes the connection once this reply and those before it are sent. Lines behind this one that the peer had
    /// sent already are dropped.
    pub fn close(&mut self) {
        self.close = true;
    }
}

impl io::Write for Reply<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a call of a handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handled {
    Replied,
    Silent,
    /// Replied or not, the connection is to be closed.
    Close,
    Panicked,
}

/// Asks `handler` what a line is. `None`: it panicked.
pub(crate) fn classify(handler: &dyn Handler, line: &[u8]) -> Option<Kind> {
    // Unwind safety: it only had a shared reference to bytes.
    panic::catch_unwind(AssertUnwindSafe(|| handler.classify(line))).map_err(discard).ok()
}

/// Asks `handler` for its last line. After a panic there is none.
pub(crate) fn last_line(handler: &dyn Handler, farewell: &Farewell) -> Option<Vec<u8>> {
    // Unwind safety: it only had a shared reference to a plain value.
    panic::catch_unwind(AssertUnwindSafe(|| handler.last_line(farewell))).map_err(discard).ok().flatten()
}

/// Asks `handler` for what is told in place of a reply that comes too late. After a panic there is none.
pub(crate) fn busy_line(handler: &dyn Handler, waited: Duration) -> Option<Vec<u8>> {
    // Unwind safety: as above.
    panic::catch_unwind(AssertUnwindSafe(|| handler.busy_line(waited))).map_err(discard).ok()
}

/// Calls `handler`, which appends to `replies`. After a panic `replies` is as before.
pub(crate) fn call(handler: &dyn Handler, request: &Request<'_>, replies: &mut Vec<u8>) -> Handled {
    let before = replies.len();
    // Unwind safety: after a panic the only value of ours that it could have left half written is cut back.
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        let mut reply = Reply { bytes: replies, close: false };
        handler.handle(request, &mut reply);
        reply.close
    }));
    match outcome {
        Ok(true) => Handled::Close,
        Ok(false) if replies.len() > before => Handled::Replied,
        Ok(false) => Handled::Silent,
        Err(value) => {
            discard(value);
            replies.truncate(before);
            Handled::Panicked
        }
    }
}

/// Drops the value of a panic. It is the handler's, so its drop may panic in turn; the value of that is leaked.
fn discard(value: Box<dyn Any + Send>) {
    if let Err(again) = panic::catch_unwind(AssertUnwindSafe(|| drop(value))) {
        mem::forget(again);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_handler_leaves_earlier_replies_untouched() {
        let (address, blocks) = (Address::from(([127, 0, 0, 1], 1)), AtomicUsize::new(0));
        let request = Request::new(b"x", &address, &address, &blocks);
        let mut replies = b"earlier\n".to_vec();
        let handler = |_: &Request<'_>, reply: &mut Reply<'_>| {
            reply.push(b"half of a");
            panic!("on purpose");
        };
        assert_eq!(call(&handler, &request, &mut replies), Handled::Panicked);
        assert_eq!(replies, b"earlier\n");
    }

    #[test]
    fn what_is_declared_ends_with_the_work_however_it_ends() {
        let (address, blocks) = (Address::from(([127, 0, 0, 1], 1)), AtomicUsize::new(0));
        let request = Request::new(b"x", &address, &address, &blocks);
        let inner = request.blocking(|| {
            request.blocking(|| ());
            blocks.load(Relaxed)
        });
        assert_eq!(inner, 1, "the outer one goes on");
        assert_eq!(blocks.load(Relaxed), 0);
        panic::catch_unwind(AssertUnwindSafe(|| request.blocking(|| panic!("on purpose")))).unwrap_err();
        assert_eq!(blocks.load(Relaxed), 0);
    }
}

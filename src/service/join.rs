//! Connections that are joined to something else, such as a program: bytes then flow both ways, and nobody here looks at them.

use std::any::Any;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::connection::Connection;
use super::erased;
use crate::mail::{Ends, JoinTo, Mail, Post};
use crate::slots::{ConnId, Slots};

/// What a service's connections are joined to. See [`Service::joins`](crate::Service::joins).
pub trait Join: Send + Sync + 'static {
    /// A connection has opened: `joining` joins it, now or later, from any thread. Nothing is read of it before.
    ///
    /// Runs on the event loop: it holds up all connections, so it must not block. After a panic the connection is closed.
    fn join(&self, connection: &Connection<'_>, joining: Joining);
}

/// A connection that waits to be joined. Dropped, it closes it.
///
/// # Examples
/// ```
/// use std::io;
/// use tidemill::{Connection, Join, Joining, Reply, Request, Server, Service};
///
/// /// Sends everything back, through a pipe.
/// struct Echo;
///
/// impl Join for Echo {
///     fn join(&self, _: &Connection<'_>, joining: Joining) {
///         match io::pipe() {
///             Ok((output, input)) => joining.with(input, output, ()),
///             Err(_) => joining.refuse(b"ERROR no pipe\n"),
///         }
///     }
/// }
///
/// impl Service for Echo {
///     type State = ();
///     type Worker = ();
///     fn start_worker(&self) {}
///     fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) {}
///     fn handle(&self, _: &mut (), _: &mut (), _: &Request<'_>, _: &mut Reply<'_>) {}
///     fn joins(&self) -> Option<&dyn Join> {
///         Some(self)
///     }
/// }
///
/// let server = Server::builder(Echo).listen("127.0.0.1:0".parse()?).start()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a connection that is not joined is closed"]
pub struct Joining {
    connection: ConnId,
    slots: Arc<Slots>,
    post: Arc<dyn Post>,
    /// What has not been said yet is said when it is dropped.
    said: bool,
}

impl Joining {
    pub(crate) fn new(connection: ConnId, slots: &Arc<Slots>, post: &Arc<dyn Post>) -> Joining {
        Joining { connection, slots: Arc::clone(slots), post: Arc::clone(post), said: false }
    }

    /// Whether the connection is still there: one that has gone need not be joined.
    pub fn is_there(&self) -> bool {
        self.slots.has(self.connection)
    }

    /// Joins the connection: what its peer sends is written to `input`, what is read from `output` is sent to it, as it comes, and each end is
    /// passed on. Both are pipes, or what can be waited for as they are, two of them, and become non-blocking. What the other side does
    /// not take is held back: 16 KiB each way, and what the kernel holds.
    ///
    /// `guard` is dropped when the connection has ended, or at once if it has ended meanwhile: on the event loop, so that its drop must not
    /// block. What it panics with is discarded.
    pub fn with(mut self, input: impl Into<OwnedFd>, output: impl Into<OwnedFd>, guard: impl Any + Send) {
        let ends = Ends {
            input: input.into(),
            output: output.into(),
            guard: Box::new(Guard(Some(Box::new(guard)))),
        };
        self.say(Ok(ends));
    }

    /// Tells the peer `line`, line ending included, and closes the connection.
    pub fn refuse(mut self, line: &[u8]) {
        self.say(Err(line.to_vec()));
    }

    fn say(&mut self, to: Result<Ends, Vec<u8>>) {
        self.said = true;
        self.post.post(Mail::Join(Box::new(JoinTo { connection: self.connection, to })));
    }
}

/// What is dropped when a connection has ended: the service's, so that its drop may panic.
struct Guard(Option<Box<dyn Any + Send>>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(guard) = self.0.take() {
            erased::drop_value(guard);
        }
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if !self.said {
            self.say(Err(Vec::new()));
        }
    }
}

impl fmt::Debug for Joining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joining").field("connection", &self.connection).finish_non_exhaustive()
    }
}

//! Bytes to a connection that it did not ask for: pushed from any thread, between its replies, never inside one.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::connection::ConnectionId;
use crate::config::ServiceId;
use crate::mail::{Mail, Post, Push};
use crate::slots::{ConnId, Refused, Slots};

/// How long until the event loop, which was behind, is asked again: some hundred pushes.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// Pushes bytes to one connection, from any thread. Cheap to clone; it keeps nothing of the connection alive.
///
/// Pushed bytes leave in the order in which they were pushed, and in order with replies: a reply is given when its handler
/// returns, or with [`Reply::flush`](crate::Reply#method.flush). So what a request pushes to its own connection stands behind the
/// replies to those before it, and before its own, unless it flushes that first; the one exception is the very first pusher of a
/// listener ([`Connection::pusher`](crate::Connection::pusher)). Pushed bytes never stand inside a reply that was
/// begun. They are no replies in the statistics.
///
/// # Examples
/// ```
/// use std::sync::Mutex;
/// use tidemill::{Pusher, Reply, Request, Server};
///
/// // Every line goes to everybody who has ever said one.
/// let all: Mutex<Vec<Pusher>> = Mutex::default();
/// let service = move |request: &Request<'_>, _: &mut Reply<'_>| {
///     let mut all = all.lock().unwrap();
///     if !all.iter().any(|pusher| pusher.id() == request.connection().id()) {
///         all.push(request.connection().pusher());
///     }
///     let line = [request.line(), b"\n"].concat();
///     // Who has gone, or does not read.
///     all.retain(|pusher| pusher.blocking_push(&line[..]).is_ok());
/// };
/// let server = Server::builder(service).listen("127.0.0.1:0".parse()?).start()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Pusher {
    id: ConnId,
    service: ServiceId,
    slots: Arc<Slots>,
    post: Arc<dyn Post>,
}

/// Why bytes were not pushed. They are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PushError {
    /// The connection has ended.
    Gone,
    /// The peer does not read: what waits for it is above [`Config::high_watermark_bytes`](crate::Config::high_watermark_bytes).
    /// It may be tried again later, left out, or the connection closed.
    Full,
    /// So much is on its way to the connection already that the event loop has not taken in: the watermark. Of its peer nothing is
    /// known. [`Pusher::blocking_push`] and [`Group::blocking_push`] wait for the loop.
    Busy,
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PushError::Gone => "the connection has ended",
            PushError::Full => "the peer does not read what waits for it",
            PushError::Busy => "the event loop has not taken in what was pushed before",
        })
    }
}

impl Error for PushError {}

impl From<Refused> for PushError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Gone => PushError::Gone,
            Refused::Full => PushError::Full,
            Refused::Busy => PushError::Busy,
        }
    }
}

impl Pusher {
    pub(crate) fn new(id: ConnId, service: ServiceId, slots: Arc<Slots>, post: Arc<dyn Post>) -> Pusher {
        Pusher { id, service, slots, post }
    }

    /// The connection's name.
    pub fn id(&self) -> ConnectionId {
        ConnectionId(self.id)
    }

    /// Pushes `bytes`, which are sent as they are. Does not block. Taken is not sent: of what was taken the peer gets nothing if
    /// its connection ends before.
    ///
    /// # Errors
    /// [`PushError`]; nothing was taken then. One push of any length is taken while less than the watermark waits.
    pub fn push(&self, bytes: impl Into<Arc<[u8]>>) -> Result<(), PushError> {
        let bytes = bytes.into();
        self.post(bytes.len())?;
        self.send(bytes, false);
        Ok(())
    }

    /// The same, but where the event loop is behind it blocks until it has caught up: whoever pushes faster than the loop writes is
    /// slowed down to that, and nobody who reads loses anything. For handlers on workers, and other threads. A lock that is taken
    /// on the event loop must not be held meanwhile.
    ///
    /// # Errors
    /// As [`push`](Self::push); [`PushError::Busy`] only on the event loop itself, which cannot wait for itself, and once it has ended.
    pub fn blocking_push(&self, bytes: impl Into<Arc<[u8]>>) -> Result<(), PushError> {
        let bytes = bytes.into();
        loop {
            match self.push(Arc::clone(&bytes)) {
                Err(PushError::Busy) if self.post.takes_in() => thread::sleep(BUSY_PAUSE),
                pushed => return pushed,
            }
        }
    }

    /// Closes the connection behind what was given before: as [`Reply::close`](crate::Reply::close), from any thread. What has
    /// gone out to a handler is answered first; what was read behind it is dropped, and so is what is pushed
    /// later.
    ///
    /// Does not block, and the peer gets all that waits for it first. One that does not read is gone, and gives its place to another,
    /// after [`Config::write_timeout`](crate::Config::write_timeout): never if that is `None`.
    pub fn close(&self) {
        if self.post(0) != Err(Refused::Gone) {
            self.send(Arc::default(), true);
        }
    }

    /// Whether the connection is open, as far as is known.
    pub fn is_open(&self) -> bool {
        self.slots.has(self.id)
    }

    /// So many bytes are about to be pushed.
    fn post(&self, bytes: usize) -> Result<(), Refused> {
        self.slots.post(self.id, self.service, bytes)
    }

    fn send(&self, bytes: Arc<[u8]>, close: bool) {
        self.post.post(Mail::Push(Box::new(Push { bytes, to: vec![self.id], given: 0, close })));
    }
}

impl fmt::Debug for Pusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pusher").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// Connections of one server that get the same bytes: one copy of them, and one wake-up, however many they are.
///
/// A plain value: who shares one between threads puts a lock around it, and holds it while pushing where all are to see the
/// same order.
///
/// # Examples
/// ```
/// use std::sync::Mutex;
/// use tidemill::{Group, Reply, Request, Server};
///
/// // Whoever says `join` hears every line from then on.
/// let group = Mutex::<Group>::default();
/// let service = move |request: &Request<'_>, _: &mut Reply<'_>| {
///     let mut group = group.lock().unwrap();
///     if request.line() == b"join" {
///         group.insert(request.connection().pusher());
///         return;
///     }
///     for (member, _) in group.blocking_push([request.line(), b"\n"].concat()) {
///         // It has gone, or does not read.
///         group.remove(member);
///     }
/// };
/// let server = Server::builder(service).listen("127.0.0.1:0".parse()?).start()?;
/// # use std::io::{Read, Write};
/// # let mut client = std::net::TcpStream::connect(server.local_addr())?;
/// # client.write_all(b"join\nhello\n")?;
/// # let mut heard = [0; 6];
/// # client.read_exact(&mut heard)?;
/// # assert_eq!(&heard, b"hello\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Group {
    members: BTreeMap<ConnectionId, Pusher>,
}

impl Group {
    /// Without members.
    pub fn new() -> Group {
        Group::default()
    }

    /// Adds a connection. `false`: it is a member already.
    ///
    /// # Panics
    /// If it is of another server than the members: names mean nothing there.
    pub fn insert(&mut self, pusher: Pusher) -> bool {
        let is_known = |other: &Pusher| Arc::ptr_eq(&other.slots, &pusher.slots);
        assert!(self.members.values().next().is_none_or(is_known), "a group is of one server");
        self.members.insert(pusher.id(), pusher).is_none()
    }

    /// Takes a connection out. `None`: it is no member.
    pub fn remove(&mut self, id: ConnectionId) -> Option<Pusher> {
        self.members.remove(&id)
    }

    /// Whether a connection is a member.
    pub fn contains(&self, id: ConnectionId) -> bool {
        self.members.contains_key(&id)
    }

    /// How many members there are, those included whose connections have ended and who were not taken out.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Pushes `bytes` to every member. Returns those that did not take it, with the reason. Does not block; the others have it
    /// as by [`Pusher::push`], in the same order relative to everything else that is pushed.
    pub fn push(&self, bytes: impl Into<Arc<[u8]>>) -> Vec<(ConnectionId, PushError)> {
        let bytes = bytes.into();
        let (mut to, mut refused) = (Vec::with_capacity(self.members.len()), Vec::new());
        for pusher in self.members.values() {
            match pusher.post(bytes.len()) {
                Ok(()) => to.push(pusher.id),
                Err(reason) => refused.push((pusher.id(), reason.into())),
            }
        }
        if let Some(pusher) = self.members.values().next().filter(|_| !to.is_empty()) {
            pusher.post.post(Mail::Push(Box::new(Push { bytes, to, given: 0, close: false })));
        }
        refused
    }

    /// The same, but where the event loop is behind it blocks until it has caught up, as [`Pusher::blocking_push`] does: who is returned
    /// has gone or does not read.
    pub fn blocking_push(&self, bytes: impl Into<Arc<[u8]>>) -> Vec<(ConnectionId, PushError)> {
        let bytes = bytes.into();
        let mut refused = self.push(Arc::clone(&bytes));
        refused.retain_mut(|(id, reason)| {
            let Some(pusher) = self.members.get(id).filter(|_| *reason == PushError::Busy) else {
                return true;
            };
            let pushed = pusher.blocking_push(Arc::clone(&bytes));
            pushed.inspect_err(|error| *reason = *error).is_err()
        });
        refused
    }
}

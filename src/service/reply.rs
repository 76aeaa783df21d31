//! Where a handler writes its reply: at once, in pieces, or later.

use std::fmt;
use std::io::{self, Read};
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use super::connection::Connection;
use crate::job::{Handled, Replies};
use crate::mail::{Completion, Mail, Piece, Post};
use crate::slots::ConnId;

/// Where a handler writes its reply.
///
/// Also an [`io::Write`], for `write!`: writing never fails, and holds what was written until the handler returns or
/// [flushes](Self::flush). `io::copy` never flushes, so it holds all; [`copy_from`](Self::copy_from) copies in pieces, so that a reply of
/// any length needs the memory of two.
#[derive(Debug)]
pub struct Reply<'a> {
    to: Replies<'a>,
    connection: &'a Connection<'a>,
    /// Where in the buffer this reply begins.
    pub(super) start: usize,
    /// Pieces of it went ahead.
    flushed: bool,
    pub(super) close: bool,
    deferred: bool,
    mode: Mode,
}

/// Bytes of a piece that is copied: so many that the visit of the event loop for each is hardly felt, and no more than the default of
/// [`Config::high_watermark_bytes`](crate::Config::high_watermark_bytes).
const PIECE_BYTES: usize = 32 << 10;

/// What a reply may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is written on a worker, which may wait for the peer.
    Worker,
    /// It is written on the event loop.
    Loop,
    /// It is no reply, but what a peer is greeted with.
    Greeting,
}

impl<'a> Reply<'a> {
    pub(super) fn new(to: Replies<'a>, connection: &'a Connection<'a>, mode: Mode) -> Self {
        let start = to.bytes.len();
        Reply { to, connection, start, flushed: false, close: false, deferred: false, mode }
    }

    /// Adds `bytes` to the reply. Does not block; what is not flushed is held in memory.
    #[inline(always)]
    pub fn push(&mut self, bytes: &[u8]) {
        self.to.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        self.to.bytes
    }

    /// Closes the connection once this reply and those before it are sent. Requests behind this one that the peer had
    /// sent already are dropped.
    pub fn close(&mut self) {
        self.close = true;
    }

    /// Takes the reply along, to be given later, from any thread, also before the handler has returned. What is written here until
    /// the handler returns, before this or after, is its begin.
    ///
    /// The connection's later requests wait for it; no worker does, and the event loop does not either, where the request is one of
    /// [`Kind::Inline`](crate::Kind::Inline). It is pending in the statistics, and a stop waits for it until its deadline;
    /// [`Config::request_timeout`](crate::Config::request_timeout) limits how long it may take.
    ///
    /// # Panics
    /// If it was taken along before, or this is the greeting.
    pub fn defer(&mut self) -> Deferred {
        assert!(!self.deferred, "a reply can be taken along once");
        assert!(self.mode != Mode::Greeting, "there is no reply to take along: this is a greeting");
        self.deferred = true;
        Deferred {
            connection: self.connection.id().0,
            post: Arc::clone(self.connection.post),
            reply: Vec::new(),
            close: false,
            given: false,
        }
    }

    /// Sends what was written so far. Blocks until the event loop has it and, where the peer leaves more unread than
    /// [`Config::high_watermark_bytes`](crate::Config::high_watermark_bytes), until less than a quarter of that is left: so long
    /// replies are written in pieces of, say, 32 KiB, and flushed after each.
    ///
    /// A worker that waits here does nothing else: [`Config::max_threads`](crate::Config::max_threads) peers that read slowly occupy
    /// all of them, each until it has read, or has taken nothing for
    /// [`Config::write_timeout`](crate::Config::write_timeout) and is closed; without that, for ever.
    ///
    /// What is pushed to the connection meanwhile waits for the end of this reply. After a panic the
    /// peer has what was flushed and the end of the stream, with no word between. On
    /// the event loop, and while greeting, this does nothing: the reply is sent when the handler returns.
    ///
    /// # Errors
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the connection has ended: nothing that is written reaches the peer any more.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.mode != Mode::Worker || self.to.bytes.is_empty() {
            return Ok(());
        }
        let (go_on, may_go_on) = sync_channel(1);
        *self.to.sent_ahead += self.to.ends.len();
        let piece = Piece {
            connection: self.connection.id().0,
            bytes: mem::take(self.to.bytes),
            ends: mem::take(self.to.ends),
            go_on,
        };
        self.flushed |= piece.ends.last().copied().unwrap_or(0) < piece.bytes.len();
        self.start = 0;
        self.connection.post.post(Mail::Piece(Box::new(piece)));
        may_go_on.recv().map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Adds what `reader` has up to its end, in pieces of 32 KiB each of which is [flushed](Self::flush), so that no more than two of
    /// them are held: a file, or the output of a program. Returns how many bytes that were.
    ///
    /// Blocks a worker as reading and flushing do. A piece is sent when it is full, or the reader at its end. On the event loop and
    /// while greeting nothing is flushed: there all of it is held.
    ///
    /// # Errors
    /// Those of `reader`, after which a part of the reply is sent or written: [close](Self::close) the connection, unless the
    /// protocol can say so. Those of [`flush`](Self::flush), where there is nothing more to do.
    ///
    /// # Examples
    /// ```
    /// use std::fs::File;
    /// use tidemill::{Reply, Request};
    ///
    /// let services = |_: &Request<'_>, reply: &mut Reply<'_>| {
    ///     if File::open("/etc/services").and_then(|file| reply.copy_from(file)).is_err() {
    ///         reply.close();
    ///     }
    /// };
    /// # let _server = tidemill::Server::builder(services);
    /// ```
    pub fn copy_from(&mut self, mut reader: impl Read) -> io::Result<u64> {
        let mut copied = 0;
        loop {
            self.to.bytes.reserve(PIECE_BYTES);
            match reader.by_ref().take(PIECE_BYTES as u64).read_to_end(self.to.bytes)? {
                0 => return Ok(copied),
                piece => copied += piece as u64,
            }
            self.flush()?;
        }
    }

    /// What the handler did, which has returned.
    #[inline(always)]
    pub(super) fn handled(&self) -> Handled {
        match (self.deferred, self.close) {
            (true, close) => Handled::Deferred { close },
            (false, true) => Handled::Close { replied: self.is_written() },
            (false, false) if self.is_written() => Handled::Replied,
            (false, false) => Handled::Silent,
        }
    }

    /// Whether anything was written.
    fn is_written(&self) -> bool {
        self.flushed || self.to.bytes.len() > self.start
    }
}

impl io::Write for Reply<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Reply::flush(self)
    }
}

/// A reply that is given later, from any thread: taken along by [`Reply::defer`].
///
/// Also an [`io::Write`] that never fails: all of it is held until then, so what is long is better
/// [flushed](Reply::flush) by a handler. Dropped without [`send`](Self::send) it costs its connection what a panic of the handler
/// does.
///
/// # Examples
/// ```
/// use std::sync::mpsc;
/// use std::thread;
/// use tidemill::{Deferred, Reply, Request, Server};
///
/// // One thread that answers for everybody, in its own time.
/// let (questions, to_answer) = mpsc::channel::<(Vec<u8>, Deferred)>();
/// thread::spawn(move || {
///     for (question, mut answer) in to_answer {
///         answer.push(&question.to_ascii_uppercase());
///         answer.push(b"\n");
///         answer.send();
///     }
/// });
/// let service = move |request: &Request<'_>, reply: &mut Reply<'_>| {
///     questions.send((request.line().to_vec(), reply.defer())).unwrap();
/// };
/// let server = Server::builder(service).listen("127.0.0.1:0".parse()?).start()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a reply that is dropped is a failure, and costs its connection"]
pub struct Deferred {
    connection: ConnId,
    post: Arc<dyn Post>,
    reply: Vec<u8>,
    close: bool,
    given: bool,
}

impl Deferred {
    /// Adds `bytes` to the reply.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reply.extend_from_slice(bytes);
    }

    /// Closes the connection once the reply is sent, as [`Reply::close`] does.
    pub fn close(&mut self) {
        self.close = true;
    }

    /// Gives the reply. Does not block. A reply of no bytes is none; if the connection has ended meanwhile, nobody gets it.
    pub fn send(mut self) {
        self.given = true;
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        let reply = self.given.then(|| mem::take(&mut self.reply));
        let completion = Completion { connection: self.connection, reply, close: self.close };
        self.post.post(Mail::Completion(Box::new(completion)));
    }
}

impl io::Write for Deferred {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred").field("connection", &self.connection).finish_non_exhaustive()
    }
}

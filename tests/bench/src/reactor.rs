//! A single-threaded mio loop, written for least cost: edge-triggered, registered once, one shared read buffer, buffers
//! of a connection's own only while something is left over.
//!
//! What becomes of the lines that were read is up to a [`Work`]: the peer `floor` answers them on the spot, the peer
//! `channel` hands them to other threads and pauses the connection meanwhile.

use std::io::{ErrorKind, Read, Result};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

use crate::service::{check_line, complete_lines, flush};

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// Most events of one poll.
const EVENTS: usize = 1024;

/// The shared read buffer: sixteen pipelined lines fill a small part of it.
const READ_BYTES: usize = 64 * 1024;

/// What becomes of lines that a connection brought.
pub(crate) trait Work {
    /// Takes complete lines of connection `id`. Either appends the replies and says `true`, or says `false` and gives
    /// them later, by [`collect`](Self::collect); until then the connection is not read.
    fn take(&mut self, id: usize, lines: &[u8], replies: &mut Vec<u8>) -> bool;

    /// The next connection whose replies came from elsewhere.
    fn collect(&mut self) -> Option<(usize, Vec<u8>)> {
        None
    }
}

/// The loop and its connections.
#[derive(Debug)]
pub(crate) struct Reactor {
    poll: Poll,
    listener: TcpListener,
    connections: Slab<Connection>,
    scratch: Scratch,
}

/// Buffers that are empty between connections.
#[derive(Debug)]
struct Scratch {
    read: Vec<u8>,
    replies: Vec<u8>,
}

impl Reactor {
    /// A loop that accepts from `listener`.
    pub(crate) fn new(listener: std::net::TcpListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let scratch = Scratch { read: vec![0; READ_BYTES], replies: Vec::new() };
        Ok(Reactor { poll, listener, connections: Slab::new(), scratch })
    }

    /// What other threads wake the loop with when they have replies.
    pub(crate) fn waker(&self) -> Result<Waker> {
        Waker::new(self.poll.registry(), WAKER)
    }

    /// Serves for ever.
    pub(crate) fn run(mut self, mut work: impl Work) -> Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    WAKER => self.collect(&mut work),
                    Token(id) => {
                        if let Some(connection) = self.connections.get_mut(id) {
                            connection.readable |= event.is_readable() || event.is_error();
                            connection.hung_up |= event.is_read_closed() || event.is_error();
                            self.advance(id, &mut work);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        // Any error but an empty queue concerns one connection, or passes; the next arrival tries again.
        while let Ok((mut stream, _)) = self.listener.accept() {
            stream.set_nodelay(true)?;
            let entry = self.connections.vacant_entry();
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(entry.key()), both)?;
            entry.insert(Connection {
                stream,
                rest: Vec::new(),
                output: Vec::new(),
                readable: false,
                hung_up: false,
                out: false,
            });
        }
        Ok(())
    }

    fn collect(&mut self, work: &mut impl Work) {
        while let Some((id, replies)) = work.collect() {
            let connection = &mut self.connections[id];
            connection.out = false;
            connection.output = replies;
            self.advance(id, work);
        }
    }

    /// Does for a connection what can be done now, and closes it when it has ended.
    fn advance(&mut self, id: usize, work: &mut impl Work) {
        if let Ok(false) | Err(_) = self.connections[id].advance(id, work, &mut self.scratch) {
            // The slot must stay while its lines are out, or their replies reach whoever has it next.
            if !self.connections[id].out {
                self.connections.remove(id);
            }
        }
        self.scratch.replies.clear();
    }
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// The front of a line whose end has not come.
    rest: Vec<u8>,
    /// Replies that the socket has not taken yet; while there are any, nothing is read.
    output: Vec<u8>,
    /// There may be something to read: an edge has said so, and no short read since.
    readable: bool,
    /// The peer has closed its side: a short read is not the end of what there is.
    hung_up: bool,
    /// Its lines are with another thread.
    out: bool,
}

impl Connection {
    /// Whether the connection goes on.
    fn advance(&mut self, id: usize, work: &mut impl Work, scratch: &mut Scratch) -> Result<bool> {
        flush(&mut self.stream, &mut self.output)?;
        while self.readable && !self.out && self.output.is_empty() {
            let read = match self.stream.read(&mut scratch.read) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                if self.rest.is_empty() {
                    return Ok(false);
                }
                // The close ends the last line as a terminator would; the next read says 0 again.
                self.lines(id, b"\n", work, &mut scratch.replies)?;
            } else {
                self.readable = self.hung_up || read == scratch.read.len();
                self.lines(id, &scratch.read[..read], work, &mut scratch.replies)?;
            }
            flush(&mut self.stream, &mut scratch.replies)?;
            self.output.append(&mut scratch.replies);
        }
        if self.output.is_empty() {
            self.output = Vec::new();
        }
        Ok(true)
    }

    /// Passes on the complete lines of what was left over and what was `read`, and keeps the rest.
    fn lines(&mut self, id: usize, read: &[u8], work: &mut impl Work, replies: &mut Vec<u8>) -> Result<()> {
        let joined;
        let input = if self.rest.is_empty() {
            read
        } else {
            self.rest.extend_from_slice(read);
            joined = std::mem::take(&mut self.rest);
            &joined
        };
        let (lines, rest) = input.split_at(complete_lines(input));
        check_line(rest)?;
        if !lines.is_empty() {
            self.out = !work.take(id, lines, replies);
        }
        self.rest.extend_from_slice(rest);
        Ok(())
    }
}

//! Connections that are joined to something else, such as a program: bytes flow both ways, and are not looked at.
//!
//! What the peer sends goes to `input`, what comes from `output` goes to the peer, each within its share of the turn. What the
//! other side does not take waits here, and nothing more is read for it: that is the back-pressure. Each end is passed on; when
//! both have ended, the connection does.

use std::any::Any;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;

use super::serve::read_raw;
use super::table::Entry;
use super::{Reactor, budget};
use crate::connection::{Connection, Phase, Role};
use crate::mail::{Ends, JoinTo};
use crate::reason::CloseReason;
use crate::service::{self, Joining};
use crate::slots::ConnId;

/// Bytes that are read at once of either side: what waits here at the most where the other side takes no more.
const CHUNK_BYTES: usize = 16 << 10;
/// Tokens from here on are of ends: the slot of their connection, behind the first of its kind. All slots are below this.
pub(super) const TOKENS: usize = 3 << 29;
const INPUTS: usize = TOKENS;
const OUTPUTS: usize = 2 * TOKENS;

/// What a connection is joined to.
pub(super) struct Joint {
    /// Where its bytes go; `None` once that end is closed.
    input: Option<OwnedFd>,
    /// It may take bytes.
    takes: bool,
    /// Where bytes for it come from; `None` once their end was read.
    output: Option<OwnedFd>,
    /// It may have bytes.
    gives: bool,
    /// What was read of the peer, and `input` has not taken.
    waiting: Vec<u8>,
    /// The peer was told the end.
    told_end: bool,
    /// Dropped with it.
    _guard: Box<dyn Any + Send>,
}

impl Joint {
    /// Bytes that it holds, by capacity.
    pub(super) fn held_bytes(&self) -> usize {
        size_of::<Joint>() + self.waiting.capacity()
    }

    /// Whether anything can be done for it without an event.
    pub(super) fn goes_on(&self, connection: &Connection) -> bool {
        let down = self.output.is_some() && self.gives && connection.outbound().is_none();
        let up = match self.waiting.is_empty() {
            true => connection.is_readable() && connection.drain_left() != Some(0),
            false => self.takes,
        };
        down || up
    }

    /// Closes `input`: its reader sees the end.
    fn end_input(&mut self, registry: &Registry) {
        close(self.input.take(), registry);
        self.waiting = Vec::new();
    }

    /// Closes both ends.
    fn part(mut self, registry: &Registry) {
        self.end_input(registry);
        close(self.output.take(), registry);
    }

    /// Writes what waits for `input`, as far as it takes it.
    fn write_waiting(&mut self, registry: &Registry) {
        // Where there is no input any more it is thrown away.
        if !self.waiting.is_empty() && (self.takes || self.input.is_none()) {
            let waiting = std::mem::take(&mut self.waiting);
            self.write(&waiting, registry);
        }
    }

    /// Writes `bytes`, before which nothing waits. What is not taken waits from now on; where nobody takes it any more, it is thrown away.
    fn write(&mut self, bytes: &[u8], registry: &Registry) {
        let mut written = 0;
        while let (Some(input), true) = (&self.input, self.takes)
            && written < bytes.len()
        {
            match rustix::io::write(input, &bytes[written..]) {
                Ok(count) => written += count,
                Err(Errno::AGAIN) => self.takes = false,
                Err(Errno::INTR) => {}
                // Nobody reads it any more.
                Err(_) => return self.end_input(registry),
            }
        }
        if self.input.is_some() && written < bytes.len() {
            self.waiting = bytes[written..].to_vec();
        }
    }
}

/// Not by closing alone: while a program is started its process has copies for a moment, and events of the end would go on to come, under
/// a slot that may be another's by then.
fn close(end: Option<OwnedFd>, registry: &Registry) {
    if let Some(end) = end {
        // It is registered, unless that failed.
        registry.deregister(&mut SourceFd(&end.as_raw_fd())).unwrap_or_default();
    }
}

impl Reactor {
    /// A connection is joined to nothing any more.
    pub(super) fn part(&mut self, id: ConnId) {
        if let Some(joint) = self.joints.remove(&id) {
            joint.part(self.poll.registry());
        }
    }

    /// A connection has opened whose service joins it.
    pub(super) fn join(&mut self, id: ConnId) {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        connection.role = Role::Joined;
        let service = &*self.services[connection.service() as usize].service;
        let job = connection.new_job(id, &mut self.free, self.turn_at);
        let post = self.inline.post();
        service::join(
            service,
            &service::Connection::new(&job.origin, post),
            Joining::new(id, self.free.slots(), post),
        );
        self.free.put(job, &mut self.litter);
    }

    /// What a connection is joined to is here, or what its peer is told instead.
    pub(super) fn take_joint(&mut self, JoinTo { connection: id, to }: JoinTo, now: Instant) {
        self.budget.visit();
        let Some(Entry { connection, .. }) = self.table.get(id) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        let joined = to.and_then(|ends| self.watch(id, ends));
        match joined {
            Ok(joint) => drop(self.joints.insert(id, joint)),
            Err(line) => {
                if !line.is_empty() && !self.write_pushed(id, &line) {
                    return;
                }
                let Some(Entry { connection, .. }) = self.table.get(id) else { return };
                connection.phase = Phase::Closing(CloseReason::Handler);
            }
        }
        self.serve(id, now);
    }

    /// Asks for the events of both ends.
    ///
    /// # Errors
    /// They cannot be watched: what the peer is told, which is nothing.
    fn watch(&mut self, id: ConnId, ends: Ends) -> Result<Joint, Vec<u8>> {
        let Ends { input, output, guard } = ends;
        let slot = id.slot as usize;
        let watched = [(&input, INPUTS, Interest::WRITABLE), (&output, OUTPUTS, Interest::READABLE)]
            .into_iter()
            .try_for_each(|(end, tokens, interest)| {
                rustix::io::ioctl_fionbio(end, true)?;
                let registry = self.poll.registry();
                registry.register(&mut SourceFd(&end.as_raw_fd()), Token(tokens + slot), interest)
            });
        let joint = Joint {
            input: Some(input),
            takes: true,
            output: Some(output),
            gives: true,
            waiting: Vec::new(),
            told_end: false,
            _guard: guard,
        };
        match watched {
            Ok(()) => Ok(joint),
            Err(error) => {
                joint.part(self.poll.registry());
                self.warn("cannot watch what a connection is joined to", &error);
                Err(Vec::new())
            }
        }
    }

    /// Remembers what an event says of an end.
    pub(super) fn note_joint(&mut self, token: usize, event: &Event) {
        let (slot, is_input) = match token.checked_sub(OUTPUTS) {
            Some(slot) => (slot, false),
            None => (token - INPUTS, true),
        };
        let Some(id) = self.table.id_of(slot) else { return };
        let Some(joint) = self.joints.get_mut(&id) else { return };
        match is_input {
            // Its reader has closed it: what waits is for nobody.
            true if event.is_error() => joint.end_input(self.poll.registry()),
            true => joint.takes = true,
            false => joint.gives = true,
        }
        self.list(id);
    }

    /// Moves bytes both ways. `false`: the connection is gone.
    pub(super) fn serve_joined(&mut self, id: ConnId) -> bool {
        let Some(Entry { connection, .. }) = self.table.get(id) else { return false };
        if connection.phase != Phase::Open {
            // Nothing more is for it, nor from it.
            self.part(id);
            return self.write_waiting(id);
        }
        if connection.is_broken() {
            self.close(id, CloseReason::Reset);
            return false;
        }
        self.write_waiting(id) && self.bring_output(id) && self.bring_input(id)
    }

    /// Sends the peer what there is for it, while it takes that. `false`: the connection is gone.
    fn bring_output(&mut self, id: ConnId) -> bool {
        let mut share = budget::READ_BYTES;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut is_there = true;
        while is_there && share > 0 {
            let Some(Entry { connection, .. }) = self.table.get(id) else { break };
            let Some(joint) = self.joints.get_mut(&id).filter(|joint| joint.gives) else { break };
            let Some(output) = joint.output.as_ref().filter(|_| connection.outbound().is_none()) else {
                break;
            };
            match rustix::io::read(output, &mut buffer[..CHUNK_BYTES]) {
                Err(Errno::AGAIN) => joint.gives = false,
                Err(Errno::INTR) => {}
                // A terminal whose other side is closed says so by an error.
                Ok(0) | Err(_) => close(joint.output.take(), self.poll.registry()),
                Ok(read) => {
                    share = share.saturating_sub(read);
                    self.budget.bytes(read);
                    is_there = self.write_pushed(id, &buffer[..read]);
                }
            }
        }
        self.buffer = buffer;
        is_there
    }

    /// Takes what the peer has sent to where it goes, while that takes it. `false`: the connection is gone.
    fn bring_input(&mut self, id: ConnId) -> bool {
        let mut share = budget::READ_BYTES;
        loop {
            let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return false };
            // Before it is joined nothing is read.
            let Some(joint) = self.joints.get_mut(&id) else { return true };
            if connection.inbound().is_some() {
                // What had come behind the header of a proxy.
                joint.waiting.extend_from_slice(connection.inbound_mut().rest());
                drop(connection.discard_input());
            }
            joint.write_waiting(self.poll.registry());
            let left = connection.drain_left().unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            if !joint.waiting.is_empty() {
                return true;
            }
            if connection.has_ended() || left == 0 {
                joint.end_input(self.poll.registry());
                return true;
            }
            if share == 0 || !connection.is_readable() {
                return true;
            }
            let Ok(read) = read_raw(stream, connection, &mut self.buffer[..left]) else {
                self.close(id, CloseReason::Reset);
                return false;
            };
            share = share.saturating_sub(read);
            self.counters.read_bytes += read as u64;
            self.budget.bytes(read);
            // Read also where nobody takes it any more, so that the peer's end is seen.
            joint.write(&self.buffer[..read], self.poll.registry());
        }
    }

    /// Passes on the end of what comes for the peer; where both have ended, the connection is over.
    pub(super) fn end_if_parted(&mut self, id: ConnId) {
        let is_draining = self.drain.is_some();
        let Some(Entry { stream, connection, .. }) = self.table.get(id) else { return };
        let Some(joint) = self.joints.get_mut(&id) else { return };
        if joint.output.is_some() || connection.outbound().is_some() {
            return;
        }
        if joint.input.is_none() {
            connection.phase = Phase::Closing(match () {
                () if connection.has_ended() => CloseReason::Eof,
                () if is_draining => CloseReason::Stopping,
                () => CloseReason::Handler,
            });
            self.part(id);
        } else if !std::mem::replace(&mut joint.told_end, true) && stream.end().is_err() {
            self.close(id, CloseReason::Reset);
        }
    }
}

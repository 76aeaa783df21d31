//! Replies that are given later or in pieces, and what is pushed: what a connection keeps of them.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::{Buffers, Connection};
use crate::clock::Nanos;
use crate::mail::Completion;

impl Connection {
    /// Whether a reply that is given later is waited for.
    pub(crate) fn awaits_reply(&self) -> bool {
        self.buffers.as_deref().is_some_and(|buffers| buffers.awaits.is_some())
    }

    /// The reply to the last request is given later: it is waited for since `now`. `close`: nothing comes behind it.
    pub(crate) fn await_reply(&mut self, now: Nanos, close: bool) {
        self.buffers.get_or_insert_default().awaits = Some((now, close));
    }

    /// It is not waited for any longer. Tells whether it was, and whether nothing is to come behind it.
    pub(crate) fn end_await(&mut self) -> Option<bool> {
        let awaits = self.buffers.as_mut()?.awaits.take();
        self.tidy();
        awaits.map(|(_, close)| close)
    }

    /// A reply is here that is of the job that is out.
    pub(crate) fn keep_completion(&mut self, completion: Box<Completion>) {
        self.buffers.get_or_insert_default().completion = Some(completion);
    }

    /// Takes out that reply.
    pub(crate) fn take_completion(&mut self) -> Option<Box<Completion>> {
        let completion = self.buffers.as_mut()?.completion.take();
        self.tidy();
        completion
    }

    /// A handler waits until the peer has read.
    pub(crate) fn keep_writer(&mut self, writer: SyncSender<()>) {
        self.buffers.get_or_insert_default().writer = Some(writer);
    }

    /// Takes out the handler that waits, if the peer has read enough: all, where pushed bytes that wait for the end of the reply
    /// are too many to be below the watermark.
    pub(crate) fn take_writer(&mut self) -> Option<SyncSender<()>> {
        let may_go_on = |buffers: &&mut Box<Buffers>| !buffers.choked || buffers.outbound.is_empty();
        let writer = self.buffers.as_mut().filter(may_go_on)?.writer.take();
        self.tidy();
        writer
    }

    /// The handler that waits, if one does, is given up: it is told that the connection has ended.
    pub(crate) fn drop_writer(&mut self) {
        if let Some(buffers) = &mut self.buffers {
            buffers.writer = None;
        }
        self.tidy();
    }

    /// Whether pushed bytes have to wait.
    pub(crate) fn parks_pushes(&self) -> bool {
        self.mid_reply || self.opening
    }

    /// Keeps pushed bytes until the reply that has begun has ended.
    pub(crate) fn park(&mut self, bytes: Arc<[u8]>, watermarks: (usize, usize)) {
        let buffers = self.buffers.get_or_insert_default();
        buffers.parked_bytes += bytes.len() + size_of::<Arc<[u8]>>();
        buffers.parked.push_back(bytes);
        self.keep_watermarks(watermarks);
    }

    /// Takes out the first of the bytes that were kept.
    pub(crate) fn take_parked(&mut self) -> Option<Arc<[u8]>> {
        let buffers = self.buffers.as_mut()?;
        let bytes = buffers.parked.pop_front()?;
        buffers.parked_bytes -= bytes.len() + size_of::<Arc<[u8]>>();
        self.tidy();
        Some(bytes)
    }
}

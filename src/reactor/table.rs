//! The slab of connections, and who may be in it.
//!
//! Slots are reused, so everything that outlives a turn names a connection by slot and generation.

#[cfg(feature = "admin")]
use std::ops::Range;
use std::sync::Arc;

use slab::Slab;

use super::socket::Stream;
use crate::connection::Connection;
use crate::slots::{ConnId, Slots};

/// A connection and its socket.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) stream: Stream,
    generation: u32,
    pub(super) connection: Connection,
}

/// All connections of the reactor.
#[derive(Debug)]
pub(super) struct Table {
    slab: Slab<Entry>,
    slots: Arc<Slots>,
    /// Given to the next connection. Wraps after four billion; a job is not out that long.
    next_generation: u32,
}

impl Table {
    /// Without connections. `slots` is what others are told of them.
    pub(super) fn new(slots: Arc<Slots>) -> Table {
        Table { slab: Slab::new(), slots, next_generation: 0 }
    }

    pub(super) fn insert(&mut self, stream: Stream, connection: Connection) -> ConnId {
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let slot = self.slab.insert(Entry { stream, generation, connection });
        let id = ConnId { slot: u32::try_from(slot).expect("max_connections is below 2^30"), generation };
        self.slots.set(id);
        id
    }

    /// Gives the connection of this name another one, so that what is under way to the old name finds nothing.
    pub(super) fn rename(&mut self, id: ConnId) -> ConnId {
        let generation = self.next_generation;
        let Some(entry) = self.get(id) else { return id };
        entry.generation = generation;
        self.next_generation = generation.wrapping_add(1);
        let id = ConnId { generation, ..id };
        self.slots.set(id);
        id
    }

    /// The connection of this name, if it is still there.
    pub(super) fn get(&mut self, id: ConnId) -> Option<&mut Entry> {
        self.slab.get_mut(id.slot as usize).filter(|entry| entry.generation == id.generation)
    }

    /// The present connection in `slot`, and its name.
    pub(super) fn at(&mut self, slot: usize) -> Option<(ConnId, &mut Entry)> {
        let entry = self.slab.get_mut(slot)?;
        Some((ConnId { slot: u32::try_from(slot).ok()?, generation: entry.generation }, entry))
    }

    /// The name of the present connection in `slot`.
    pub(super) fn id_of(&self, slot: usize) -> Option<ConnId> {
        let entry = self.slab.get(slot)?;
        Some(ConnId { slot: u32::try_from(slot).ok()?, generation: entry.generation })
    }

    pub(super) fn remove(&mut self, id: ConnId) -> Option<Entry> {
        self.get(id)?;
        self.slots.clear(id);
        Some(self.slab.remove(id.slot as usize))
    }

    /// The connections in these slots.
    #[cfg(feature = "admin")]
    pub(super) fn entries(&self, slots: Range<usize>) -> impl Iterator<Item = (ConnId, &Entry)> {
        slots.filter_map(|slot| Some((self.id_of(slot)?, self.slab.get(slot)?)))
    }

    /// Behind the last slot that ever was in use.
    #[cfg(feature = "admin")]
    pub(super) fn end(&self) -> usize {
        self.slab.capacity()
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn ids(&self) -> Vec<ConnId> {
        self.slab.iter().filter_map(|(slot, _)| self.id_of(slot)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use mio::net::TcpStream;

    use super::*;
    use crate::address::Address;
    use crate::connection::Role;
    use crate::job::Endpoint;

    #[test]
    fn a_name_from_before_the_slot_was_reused_finds_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let address = Address::from(([127, 0, 0, 1], 1));
            let connection =
                Connection::new(Endpoint::new(address.clone(), 0), &address, false, Role::Requests, 0);
            (Stream::Tcp(stream), connection)
        };
        let mut table = Table::new(Slots::new([]));
        let (stream, connection) = connect();
        let old = table.insert(stream, connection);
        assert!(table.remove(old).is_some());
        let (stream, connection) = connect();
        let new = table.insert(stream, connection);
        assert_eq!(new.slot, old.slot);
        assert!(table.get(old).is_none() && table.remove(old).is_none());
        assert!(table.get(new).is_some());
    }

    /// Not a promise, but what an idle connection costs is a product feature.
    #[test]
    fn an_idle_connection_is_small() {
        // mio's debug builds carry a selector's number in each socket.
        let debug = if cfg!(debug_assertions) { 16 } else { 0 };
        assert!(size_of::<Entry>() <= 112 + debug, "{}", size_of::<Entry>());
    }
}

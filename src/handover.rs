//! Listening sockets that go from one server to the next, which takes its place: in another process, as a rule.
//!
//! The sockets are the same ones in both, so the door never closes: whoever connects is accepted by either. What must not
//! happen is that one of them shuts the door behind the other, by a socket filter or by removing a socket's file. So a server
//! has its listeners [`Lent`] from when the next may have them until they are its own, and shuts no door meanwhile. Not in
//! here: how sockets get to another process. Held by the tests of `tests/it/given.rs`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::address::Address;

/// An open listening socket of a server, for the server that takes its place.
///
/// Made by [`ServerHandle::listeners`](crate::ServerHandle::listeners), or of its parts where it comes from another process;
/// taken by [`Builder::inherit`](crate::Builder::inherit).
#[derive(Debug)]
pub struct Listener {
    service: String,
    address: Option<Address>,
    socket: OwnedFd,
    file: Option<FileId>,
}

/// The device and the number of a file.
pub(crate) type FileId = (u64, u64);

impl Listener {
    /// One of the service of this name. `address`: where it was told to listen, with port 0 if that was asked for; `None` if the
    /// socket was [given](crate::Builder::listener) to the server.
    pub fn new(service: impl Into<String>, address: Option<Address>, socket: impl Into<OwnedFd>) -> Listener {
        Listener { service: service.into(), address, socket: socket.into(), file: None }
    }

    /// The same with the file of its Unix socket, by device and number: whoever takes over takes care of the file that has these, and of
    /// no other that stands in its place by then. Without, of none.
    #[must_use]
    pub fn with_file(self, device: u64, number: u64) -> Listener {
        Listener { file: Some((device, number)), ..self }
    }

    /// The device and the number of its Unix socket's file, if that is the server's.
    pub fn file(&self) -> Option<(u64, u64)> {
        self.file
    }

    /// The name of the service that listens there.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Where the service was told to listen, with port 0 if that was asked for. `None`: the socket was given to the server.
    pub fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket that is open already, and which file is its.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) socket: OwnedFd,
    pub(crate) file: Option<FileId>,
}

impl From<Listener> for Found {
    fn from(listener: Listener) -> Found {
        Found { socket: listener.socket, file: listener.file }
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> OwnedFd {
        listener.socket
    }
}

/// Whether a server's listeners are another's, so that it shuts no door. Shared by all who would.
///
/// Written by who hands over or takes over, read by the reactor when a stop begins. `SeqCst`, as is the level of the stop
/// (`StopLevel`): who lends looks for a stop behind it, and the reactor, which has seen a stop, looks for this; one of them sees
/// the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lent {
    /// The next server may have all of them.
    out: Arc<AtomicBool>,
    /// Those that were inherited are still the server's before.
    inherited: Arc<AtomicBool>,
}

impl Lent {
    pub(crate) fn new(inherited: bool) -> Lent {
        Lent { out: Arc::default(), inherited: Arc::new(AtomicBool::new(inherited)) }
    }

    pub(crate) fn set_out(&self, out: bool) {
        self.out.store(out, SeqCst);
    }

    /// All are this server's own.
    pub(crate) fn end(&self) {
        self.set_out(false);
        self.inherited.store(false, SeqCst);
    }

    /// Whether some are another's.
    pub(crate) fn is_set(&self) -> bool {
        self.is_of_another(true)
    }

    /// Whether one is another's that was inherited, or was not.
    pub(crate) fn is_of_another(&self, inherited: bool) -> bool {
        self.out.load(SeqCst) || inherited && self.inherited.load(SeqCst)
    }
}

/// What a server finds open already when it binds its listeners.
#[derive(Debug)]
pub(crate) struct Inherited {
    listeners: Vec<Listener>,
    /// For each of them, whether an address was found for it.
    used: Vec<bool>,
}

impl Inherited {
    pub(crate) fn new(listeners: Vec<Listener>) -> Inherited {
        Inherited { used: vec![false; listeners.len()], listeners }
    }

    /// No address was found for any of them.
    pub(crate) fn begin(&mut self) {
        self.used.fill(false);
    }

    /// The one of a service that was told to listen at `address`, once more, if there is one; else one for the same address whose
    /// service is none of these `names`, as where another is served from now on. Each is given once.
    pub(crate) fn find(
        &mut self,
        service: &str,
        address: &Address,
        names: &[String],
    ) -> Option<io::Result<Found>> {
        let first = |fits: &dyn Fn(&String) -> bool| {
            (0..self.listeners.len()).find(|number| {
                let listener = &self.listeners[*number];
                !self.used[*number] && listener.address() == Some(address) && fits(&listener.service)
            })
        };
        let number = first(&|name| name == service).or_else(|| first(&|name| !names.contains(name)))?;
        self.used[number] = true;
        let listener = &self.listeners[number];
        Some(listener.socket.try_clone().map(|socket| Found { socket, file: listener.file }))
    }

    /// Those for which no address was found.
    pub(crate) fn into_unused(self) -> impl Iterator<Item = Listener> {
        self.listeners.into_iter().zip(self.used).filter(|(_, used)| !used).map(|(listener, _)| listener)
    }
}

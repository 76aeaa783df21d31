//! The kinds of sockets: what is accepted, what is listened on. A further kind is a variant in each.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::{RecvFlags, recv};
use socket2::{Domain, SockRef, Type};

use crate::address::Address;
use crate::handover::{FileId, Found, Lent};
use crate::socket;

/// An accepted socket.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// The local address, where it is not that of the listener.
    pub(super) fn local_addr(&self) -> io::Result<Address> {
        match self {
            Stream::Tcp(stream) => stream.local_addr().map(Address::Tcp),
            Stream::Unix(_) => Ok(Address::Unix(PathBuf::new())),
        }
    }

    /// Ends our side of the stream.
    pub(super) fn end(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// Copies what is in the receive queue, and leaves it there. 0: the end of the stream.
    pub(super) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self, buffer, RecvFlags::PEEK).map(|(read, _)| read)?)
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Stream::Tcp(stream) => stream,
            Stream::Unix(stream) => stream,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        socket::read(self, buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        socket::write(self, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.source().register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.source().reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().deregister(registry)
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum ListenSocket {
    Tcp(TcpListener),
    /// With the file to be removed when it is closed, where that is ours.
    Unix(UnixListener, Option<SocketFile>),
}

/// The file of a Unix socket. As long as the socket is open its number is nobody else's.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    id: FileId,
    /// Whether the file is another's for now.
    lent: Lent,
    is_inherited: bool,
}

impl SocketFile {
    /// The one that a socket was just bound to.
    pub(super) fn at(path: &Path, lent: &Lent, is_inherited: bool) -> io::Result<SocketFile> {
        let file = fs::symlink_metadata(path)?;
        let (id, lent) = ((file.dev(), file.ino()), lent.clone());
        Ok(SocketFile { path: path.to_owned(), id, lent, is_inherited })
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    /// Removes it, unless it is another's or has gone: whoever listens there next has another file of the same name.
    pub(super) fn remove(&self) -> io::Result<()> {
        if self.lent.is_of_another(self.is_inherited) {
            return Ok(());
        }
        let file = fs::symlink_metadata(&self.path)?;
        if (file.dev(), file.ino()) != self.id {
            return Ok(());
        }
        fs::remove_file(&self.path)
    }
}

impl ListenSocket {
    /// One that listens already. Its file, if it has one, is not ours.
    ///
    /// # Errors
    /// It is no listening stream socket of TCP or of the file system's kind, or the system refused.
    pub(crate) fn open(socket: OwnedFd) -> io::Result<ListenSocket> {
        let known = SockRef::from(&socket);
        if known.r#type()? != Type::STREAM || !known.is_listener()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no listening stream socket"));
        }
        known.set_nonblocking(true)?;
        match known.domain()? {
            Domain::IPV4 | Domain::IPV6 => Ok(ListenSocket::Tcp(TcpListener::from_std(socket.into()))),
            Domain::UNIX => Ok(ListenSocket::Unix(UnixListener::from_std(socket.into()), None)),
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "it is neither TCP nor a Unix socket")),
        }
    }

    /// The same, of a server whose place this one takes: its file is ours, unless it is `lent` or another one stands in its place.
    pub(crate) fn inherited(found: Found, lent: &Lent) -> io::Result<ListenSocket> {
        let mut socket = ListenSocket::open(found.socket)?;
        if let (Address::Unix(path), ListenSocket::Unix(_, file)) = (socket.local_addr()?, &mut socket) {
            let there = SocketFile::at(&path, lent, true).ok();
            *file = there.filter(|there| found.file == Some(there.id));
        }
        Ok(socket)
    }

    pub(crate) fn local_addr(&self) -> io::Result<Address> {
        match self {
            ListenSocket::Tcp(socket) => socket.local_addr().map(Address::Tcp),
            ListenSocket::Unix(_, Some(file)) => Ok(Address::Unix(file.path.clone())),
            ListenSocket::Unix(socket, None) => {
                let address = socket.local_addr()?;
                // One of the abstract kind has a name and no path.
                Ok(Address::Unix(address.as_pathname().map(Path::to_owned).unwrap_or_default()))
            }
        }
    }

    /// Accepts a connection, and tells where it comes from.
    pub(super) fn accept(&self) -> io::Result<(Stream, Address)> {
        match self {
            ListenSocket::Tcp(socket) => {
                socket.accept().map(|(stream, peer)| (Stream::Tcp(stream), Address::Tcp(peer)))
            }
            ListenSocket::Unix(socket, _) => {
                socket.accept().map(|(stream, _)| (Stream::Unix(stream), Address::Unix(PathBuf::new())))
            }
        }
    }

    pub(super) fn source(&mut self) -> &mut dyn Source {
        match self {
            ListenSocket::Tcp(socket) => socket,
            ListenSocket::Unix(socket, _) => socket,
        }
    }
}

impl AsFd for ListenSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ListenSocket::Tcp(socket) => socket.as_fd(),
            ListenSocket::Unix(socket, _) => socket.as_fd(),
        }
    }
}

impl Drop for ListenSocket {
    fn drop(&mut self) {
        if let ListenSocket::Unix(_, Some(file)) = self {
            // The stop may have removed it before.
            drop(file.remove());
        }
    }
}

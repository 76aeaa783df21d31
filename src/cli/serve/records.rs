//! What the two processes of an upgrade, and the one that starts the new one, say to each other: records through a socket pair, each
//! with a descriptor or without.
//!
//! Not in here: who says what when (`upgrade`, `starter`). The version in [`HEADER`] changes with what is said.

use std::ffi::OsString;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt,
};
use tidemill::{Address, Listener};

/// What the records are, and in which version. Behind it stands how many there are.
const HEADER: &[u8] = b"tidemill listeners 2 ";
/// The longest record, in bytes: a service's name and an address, of which the system takes a path of 108.
const MAX_RECORD_BYTES: usize = 4096;

/// A deadline for what never takes long: a year.
pub(super) fn far() -> Instant {
    Instant::now() + tidemill::MAX_DURATION
}

/// Sends the listeners: a header, and a record and a descriptor for each.
pub(super) fn send_listeners(pair: &OwnedFd, listeners: &[Listener], deadline: Instant) -> io::Result<()> {
    let header = [HEADER, listeners.len().to_string().as_bytes()].concat();
    send(pair, &header, None, deadline)?;
    listeners.iter().try_for_each(|listener| {
        let record = record(listener.service(), listener.file(), listener.address());
        send(pair, &record, Some(listener.as_fd()), deadline)
    })
}

/// Receives what [`send_listeners`] sends.
pub(super) fn receive_listeners(pair: &OwnedFd) -> io::Result<Vec<Listener>> {
    let broken = || {
        io::Error::new(ErrorKind::InvalidData, "the process before this one speaks another upgrade protocol")
    };
    let header = receive(pair, far())?.0;
    let count = header.strip_prefix(HEADER).and_then(|count| str::from_utf8(count).ok()?.parse().ok());
    (0..count.ok_or_else(broken)?)
        .map(|_: usize| {
            let (record, socket) = receive(pair, far())?;
            let (service, file, address) = parse(&record).ok_or_else(broken)?;
            let one = Listener::new(service, address, socket.ok_or_else(broken)?);
            Ok(file.into_iter().fold(one, |one, (device, number)| one.with_file(device, number)))
        })
        .collect()
}

/// The name of a listener's service, device and number of its file, and its address.
type Record = (String, Option<(u64, u64)>, Option<Address>);

/// What is said of a listener: the name of its service, behind a NUL device and number of its file, if it has one, and behind another its
/// address; nothing if it was given.
fn record(service: &str, file: Option<(u64, u64)>, address: Option<&Address>) -> Vec<u8> {
    let file = file.map(|(device, number)| format!("{device}:{number}")).unwrap_or_default();
    let mut record = format!("{service}\0{file}\0").into_bytes();
    match address {
        // A path may be any bytes.
        Some(Address::Unix(path)) => {
            record.extend(b"unix:");
            record.extend(path.as_os_str().as_bytes());
        }
        Some(address) => record.extend(address.to_string().as_bytes()),
        None => {}
    }
    record
}

fn parse(record: &[u8]) -> Option<Record> {
    let mut parts = record.splitn(3, |byte| *byte == 0);
    let service = str::from_utf8(parts.next()?).ok()?;
    let file = match str::from_utf8(parts.next()?).ok()? {
        "" => None,
        file => {
            let (device, number) = file.split_once(':')?;
            Some((device.parse().ok()?, number.parse().ok()?))
        }
    };
    let address = parts.next()?;
    let address = match address.strip_prefix(b"unix:") {
        Some(path) => Some(Address::Unix(PathBuf::from(OsString::from_vec(path.to_vec())))),
        None if address.is_empty() => None,
        None => Some(str::from_utf8(address).ok()?.parse().ok()?),
    };
    Some((service.to_owned(), file, address))
}

/// Sends one record, and a descriptor with it.
pub(super) fn send(
    pair: &impl AsFd,
    record: &[u8],
    socket: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> io::Result<()> {
    sockopt::set_socket_timeout(pair, sockopt::Timeout::Send, Some(left(deadline)?))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if socket.is_some() && !control.push(SendAncillaryMessage::ScmRights(socket.as_slice())) {
        return Err(ErrorKind::OutOfMemory.into());
    }
    retry_on_intr(|| sendmsg(pair, &[IoSlice::new(record)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one record, and the descriptor that came with it.
///
/// # Errors
/// [`ErrorKind::UnexpectedEof`] at the end of the stream; what the system says, [`ErrorKind::WouldBlock`] at the deadline.
pub(super) fn receive(pair: &OwnedFd, deadline: Instant) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    sockopt::set_socket_timeout(pair, sockopt::Timeout::Recv, Some(left(deadline)?))?;
    let mut record = vec![0; MAX_RECORD_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // A timeout keeps the system from going on by itself behind a signal.
    let received = retry_on_intr(|| {
        recvmsg(pair, &mut [IoSliceMut::new(&mut record)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    record.truncate(received.bytes);
    let mut sockets = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    let socket = sockets.next();
    Ok((record, socket))
}

/// The time until then. What is over is refused: to the system no time at all means for ever.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn what_is_said_of_a_listener_is_understood() {
        let path = Path::new(OsStr::from_bytes(b"/run/\xff\n/socket"));
        let addresses = [
            Some("127.0.0.1:0".parse().unwrap()),
            Some("[::1]:80".parse().unwrap()),
            Some(Address::Unix(path.to_owned())),
            None,
        ];
        for address in addresses {
            for file in [None, Some((1, u64::MAX))] {
                let said = record("helo", file, address.as_ref());
                assert_eq!(parse(&said), Some(("helo".to_owned(), file, address.clone())));
            }
        }
        for broken in [&b"helo"[..], b"helo\0", b"helo\0\0nowhere", b"helo\x001\0", b"helo\x001:x\0"] {
            assert_eq!(parse(broken), None);
        }
    }

    #[test]
    fn listeners_go_through_a_pair_and_are_the_same_sockets() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let listeners = [Listener::new("helo", Some(address.into()), socket), {
            let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
            Listener::new("admin", None, socket)
        }];
        send_listeners(&ours, &listeners, far()).unwrap();
        let received = receive_listeners(&theirs).unwrap();
        let names: Vec<_> = received.iter().map(|one| (one.service(), one.address())).collect();
        assert_eq!(names, [("helo", Some(&address.into())), ("admin", None)]);
        let socket = std::net::TcpListener::from(OwnedFd::from(received.into_iter().next().unwrap()));
        assert_eq!(socket.local_addr().unwrap(), address);
        drop(theirs);
        assert_eq!(receive(&ours, far()).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nobody_is_waited_for_beyond_the_deadline() {
        let (ours, _theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(receive(&ours, soon).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(receive(&ours, soon).unwrap_err().kind(), ErrorKind::TimedOut);
        // More listeners than there is room for in the pair, to a process that does not read.
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let many: Vec<_> =
            (0..2000).map(|_| Listener::new("x".repeat(1000), None, socket.try_clone().unwrap())).collect();
        let soon = Instant::now() + Duration::from_millis(10);
        let error = send_listeners(&ours, &many, soon).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error:?}");
    }
}

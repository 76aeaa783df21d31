//! Reading and writing of sockets, by the bare system calls: for the library, and for the program's load tool.
//!
//! The C library's are points where a thread may be cancelled: in a process of several threads it marks each begin and end of one by
//! a locked instruction. Without, a lone connection's request on the event loop costs about a tenth less CPU (`tests/bench/BENCHMARKS.md`);
//! from 64 connections on nothing is told from noise.

use std::io;
use std::os::fd::AsFd;

use rustix::net::{RecvFlags, SendFlags, recv, send};

/// No signal where the peer has gone. Elsewhere the sockets of the standard library and of mio have it as an option.
#[cfg(any(target_os = "linux", target_os = "android"))]
const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const SEND_FLAGS: SendFlags = SendFlags::empty();

/// Like `Read::read`. 0: the end of the stream.
#[inline]
pub(crate) fn read(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket, buffer, RecvFlags::empty()).map(|(read, _)| read)?)
}

/// Like `Write::write`.
#[inline]
pub(crate) fn write(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(socket, bytes, SEND_FLAGS)?)
}

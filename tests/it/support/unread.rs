//! A pipe whose reader stands still.

use std::fs::OpenOptions;
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::os::fd::AsRawFd;
use std::process::Stdio;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;

/// A pipe that nobody reads yet.
#[derive(Debug)]
pub(crate) struct Unread {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Unread {
    /// There is room in it: 64 KiB, as a rule.
    pub(crate) fn empty() -> Unread {
        let (reader, writer) = pipe().unwrap();
        Unread { reader, writer }
    }

    /// There is no room in it. What it is filled with goes before the first line when somebody reads.
    pub(crate) fn full() -> Unread {
        let unread = Unread::empty();
        // Another open file of the same pipe: whether it blocks must not be passed on.
        let mut writer = OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{}", unread.writer.as_raw_fd()))
            .unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        while writer.write_all(&[0; 4096]).is_ok() {}
        unread
    }

    /// Who writes to it is not held up where it is full, but told so.
    pub(crate) fn nonblocking(self) -> Unread {
        ioctl_fionbio(&self.writer, true).unwrap();
        self
    }

    /// The end to write to, for a child.
    pub(crate) fn end(&self) -> Stdio {
        self.writer.try_clone().unwrap().into()
    }

    /// Whether nothing more goes in.
    pub(crate) fn is_full(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.writer, PollFlags::OUT)], Some(&now)).unwrap() == 0
    }

    /// The end to read, which comes to its end with the last child that writes to it.
    pub(crate) fn into_reader(self) -> PipeReader {
        self.reader
    }
}

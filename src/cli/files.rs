//! Files of the program: what it reads and writes at its end, and how many it may have open, which is not the library's to change.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::{Errno, read};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Failure;

/// For one read.
const READ_BYTES: usize = 64 << 10;

/// A file that is written at the end. It is opened at the beginning, so that a path that cannot be written to is known then.
#[derive(Debug)]
pub(super) struct Later {
    path: PathBuf,
    file: File,
    /// It was not there before, and nothing has been written.
    is_ours_and_empty: bool,
}

impl Later {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let created = OpenOptions::new().write(true).create_new(true).open(path);
        let (file, is_ours_and_empty) = match created {
            Ok(file) => (file, true),
            // What stands there stays until there is something better.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let file = OpenOptions::new().write(true).open(path);
                (file.map_err(|error| Failure::of_file(path, error))?, false)
            }
            Err(error) => return Err(Failure::of_file(path, error)),
        };
        Ok(Self { path: path.to_owned(), file, is_ours_and_empty })
    }

    pub(super) fn write(mut self, text: &str) -> Result<(), Failure> {
        let is_file = self.file.metadata().is_ok_and(|file| file.is_file());
        let emptied = if is_file { self.file.set_len(0) } else { Ok(()) };
        let written = emptied.and_then(|()| self.file.write_all(text.as_bytes()));
        self.is_ours_and_empty = false;
        written.map_err(|error| Failure::of_file(&self.path, error))
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        if self.is_ours_and_empty {
            // It stays empty, then.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Bytes of a [`Source`] that are taken at most: what lies beyond is not looked at. An hour of statistics every 50 ms has a hundred MiB.
const MAX_SOURCE_BYTES: usize = 256 << 20;

/// A file that is read at the end. It is opened at the beginning, so that one that cannot be read is known then. What is no file, such as a
/// pipe, is read meanwhile: its writer does not wait for us, and we not for it.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    shared: Arc<Shared>,
    is_file: bool,
}

#[derive(Debug)]
struct Shared {
    file: OwnedFd,
    bytes: Mutex<Vec<u8>>,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        // A pipe without a writer is open at once.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(path, flags, Mode::empty()).map_err(|error| Failure::of_file(path, error))?;
        let kind = fstat(&file).map_err(|error| Failure::of_file(path, error))?;
        let kind = FileType::from_raw_mode(kind.st_mode);
        if kind == FileType::Directory {
            return Err(Failure::of_file(path, Errno::ISDIR));
        }
        let is_file = kind == FileType::RegularFile;
        let shared = Arc::new(Shared { file, bytes: Mutex::default() });
        if !is_file {
            let reader = Arc::clone(&shared);
            // It ends with the program, if its writer does not.
            let spawned = thread::Builder::new().name("source".to_owned()).spawn(move || reader.follow());
            spawned.map_err(|error| Failure::of_file(path, error))?;
        }
        Ok(Self { path: path.to_owned(), shared, is_file })
    }

    /// What has come by now, as text.
    pub(super) fn text(&self) -> Result<String, Failure> {
        let took = if self.is_file { self.shared.take_some() } else { self.shared.take() };
        took.map_err(|error| Failure::of_file(&self.path, error))?;
        Ok(String::from_utf8_lossy(&self.shared.lock()).into_owned())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // Bytes are as usable after a panic.
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self) {
        loop {
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], None) {
                Err(Errno::INTR) => {}
                Ok(_) if matches!(self.take(), Ok(true)) => {}
                // Its end, or an error that whoever asks for the text meets too.
                _ => return,
            }
        }
    }

    /// Takes what is there of a pipe, and tells whether more may come. Not by reading alone: a pipe that has had no writer yet
    /// says that this is its end.
    fn take(&self) -> Result<bool, Errno> {
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&none)) {
                Ok(0) => return Ok(true),
                Ok(_) if !self.take_some()? => return Ok(false),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes some of what is there, of a file all. False: that was the end.
    fn take_some(&self) -> Result<bool, Errno> {
        let mut bytes = self.lock();
        let mut part = vec![0; READ_BYTES];
        loop {
            let most = part.len().min(MAX_SOURCE_BYTES.saturating_sub(bytes.len()));
            match read(&self.file, &mut part[..most]) {
                Ok(0) => return Ok(false),
                Ok(count) => bytes.extend_from_slice(&part[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Descriptors in use at the start where the system does not tell: the standard streams, signals, and some that were
/// inherited.
const ASSUMED_IN_USE: usize = 16;

/// Raises the limit of open files to `wanted`, or as far as the system lets us. Returns what it is then.
pub(crate) fn raise_limit(wanted: usize) -> usize {
    let as_usize =
        |limit: Option<u64>| limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let limit = getrlimit(Resource::Nofile);
    if as_usize(limit.current) < wanted {
        // Above the hard limit only a privileged process may go; where it is refused, the hard limit is what is left.
        let asked = u64::try_from(wanted).ok();
        let maximum = limit.maximum.zip(asked).map(|(maximum, asked)| maximum.max(asked));
        if setrlimit(Resource::Nofile, Rlimit { current: asked, maximum }).is_err() {
            // Refused again, it stays as it is, which the caller sees.
            let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
        }
    }
    as_usize(getrlimit(Resource::Nofile).current)
}

/// How many of the descriptors below `limit` are in use now, those that were inherited among them.
pub(crate) fn in_use_below(limit: usize) -> usize {
    let listed = ["/proc/self/fd", "/dev/fd"].into_iter().find_map(|directory| fs::read_dir(directory).ok());
    let Some(listed) = listed else { return ASSUMED_IN_USE };
    let numbers = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<usize>().ok());
    // One of them is that of the list itself.
    numbers.filter(|number| *number < limit).count().saturating_sub(1)
}

//! Files of the program: what it writes at its end, and how many it may have open, which is not the library's to change.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Failure;

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

/// Finds out whether a file that is read at the end can be read. One that is no file (a pipe) is only read once.
pub(super) fn check_readable(path: &Path) -> Result<(), Failure> {
    let readable =
        fs::metadata(path).and_then(|file| if file.is_file() { File::open(path).map(drop) } else { Ok(()) });
    readable.map_err(|error| Failure::of_file(path, error))
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

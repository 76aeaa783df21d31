//! The limit of open files, which is the process's and so the program's to change, not the library's.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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

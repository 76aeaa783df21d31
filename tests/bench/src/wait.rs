//! Waiting for something that others do.

use std::io::{Error, ErrorKind, Result};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked whether it has happened.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Waits until `holds`, for `limit` at most. Returns how long it took.
///
/// # Errors
/// It has not happened: `what`.
pub(crate) fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Result<Duration> {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > limit {
            return Err(Error::new(ErrorKind::TimedOut, format!("it does not happen: {what}")));
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(begun.elapsed())
}

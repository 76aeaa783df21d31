//! Lengths of time as the tools take them: `250ms`, `10s`, `5m`; none is beyond what a deadline can be reckoned with.

use std::time::Duration;

use tidemill::MAX_DURATION;

/// Reads a length of time, up to [`MAX_DURATION`].
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration > MAX_DURATION { Err("it must be at most 365days".to_owned()) } else { Ok(duration) }
}

/// The same, and more than nothing.
///
/// # Errors
/// What is wrong with it.
pub(super) fn positive(text: &str) -> Result<Duration, String> {
    let duration = parse(text)?;
    if duration.is_zero() { Err("it must be more than 0".to_owned()) } else { Ok(duration) }
}

//! What can go wrong when a server starts, changes its limits, or is waited for.

use std::fmt;
use std::io;

use crate::address::Address;

/// Why a server could not start, take a new setting, or be waited for.
///
/// What a peer does wrong is never an `Error`: it is answered, counted and logged. Variants but [`Setting`](Self::Setting) may
/// grow by fields, so they are matched with `..`.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of range. Nothing was changed or started.
    Setting {
        /// The field of [`Config`](crate::Config), which is also the option's name with `_` for `-`.
        name: &'static str,
        /// The value that was refused.
        value: String,
        /// What it must be.
        must: String,
    },
    /// A listener could not be bound, for instance because the port is in use.
    #[non_exhaustive]
    Bind {
        /// The address asked for.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// A socket that was [given](crate::Builder::listener) cannot be listened on.
    #[non_exhaustive]
    Listener {
        /// What is wrong with it.
        source: io::Error,
    },
    /// The system refused the poll instance, its waker or a registration.
    #[non_exhaustive]
    Poll {
        /// What the system said.
        source: io::Error,
    },
    /// The system refused to start a thread that the server cannot do without.
    #[non_exhaustive]
    Thread {
        /// Which one.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// [`wait`](crate::ServerHandle::wait) was called by a handler of the same server, which would wait for itself.
    WaitInHandler,
    /// The system refused to wait for events any more, so the server ended. What was pending is dropped.
    #[non_exhaustive]
    PollFailed {
        /// What the system said.
        source: io::Error,
    },
    /// The reactor ended by a panic, which is a bug in this crate. Its connections are gone.
    ReactorPanicked,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Setting { name, value, must } => write!(f, "{name} is {value}, but must be {must}"),
            Error::Bind { address, source } => write!(f, "cannot listen on {address}: {source}"),
            Error::Listener { source } => write!(f, "cannot listen on a socket that was given: {source}"),
            Error::Poll { source } => write!(f, "cannot set up polling: {source}"),
            Error::Thread { name, source } => write!(f, "cannot start the {name} thread: {source}"),
            Error::WaitInHandler => write!(f, "a handler cannot wait for the end of its own server"),
            Error::PollFailed { source } => write!(f, "waiting for events failed: {source}"),
            Error::ReactorPanicked => write!(f, "the reactor panicked"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Bind { source, .. }
            | Error::Listener { source }
            | Error::Poll { source }
            | Error::Thread { source, .. }
            | Error::PollFailed { source } => Some(source),
            Error::Setting { .. } | Error::WaitInHandler | Error::ReactorPanicked => None,
        }
    }
}

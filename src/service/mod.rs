//! What a listener speaks: how bytes become frames, what a frame is, what is done with it, and its limits and words.
//!
//! A server has one service or more; listeners, connections and jobs carry the index of theirs. The reactor asks what a frame
//! is and what a peer is told at the end, the workers call the handler. [`Helo`] is one of them, and the core knows of none.

mod connection;
mod cut;
mod erased;
mod handler;
mod join;
mod push;
mod reply;
mod request;
mod traits;
mod words;
mod workers;

use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Once};
use std::time::Duration;

use memchr::memmem::Finder;

use crate::clock::Nanos;
pub(crate) use crate::config::ServiceId;
use crate::config::ServiceSettings;
use crate::framing::{Found, Framing, Lines};
use crate::job::{MAX_JOB_LINES, Session};
use crate::slots::MS;
pub use connection::{Connection, ConnectionId};
pub(crate) use cut::{Cut, End, LoopWorker, Taken, Told};
pub(crate) use erased::{Erased, WorkerState, classify, close, drop_value, handle, join, last_line, open};
pub use handler::Handler;
pub use join::{Join, Joining};
pub use push::{Group, PushError, Pusher};
pub(crate) use reply::Mode;
pub use reply::{Deferred, Reply};
pub use request::Request;
pub(crate) use request::Waits;
pub use traits::Service;
pub use words::{Farewell, Kind, Place};
pub(crate) use workers::WorkerStates;

/// Bytes that a framing of the user's own may ask for beyond its limit: lengths and terminators.
const MAX_OVERHEAD_BYTES: usize = 64 << 10;

/// One service of a server, with everything that is set for it.
pub(crate) struct Served {
    /// The label in the statistics.
    pub(crate) name: String,
    pub(crate) service: Arc<dyn Erased>,
    /// Connections have a session.
    pub(crate) has_sessions: bool,
    /// Connections are joined to something else, and nothing of them is handled.
    pub(crate) joins: bool,
    /// Where sessions are opened and closed.
    pub(crate) place: Place,
    /// It was told that the server stops.
    stops: Once,
    /// Frames are lines, always: it need not be asked.
    only_lines: bool,
    /// A line that means a stop wherever it stands, so that it is looked for ahead of what waits.
    stop_line: Option<Finder<'static>>,
    limits: Limits,
}

/// What is asked of the settings on the way of each request, by workers too, and may change meanwhile. Written by the reactor,
/// between two turns. Relaxed: nothing else is read because of it.
#[derive(Debug, Default)]
struct Limits {
    max_line_bytes: AtomicUsize,
    /// [`NEVER`]: none.
    queue_timeout: AtomicU64,
    times_handlers: AtomicBool,
    /// [`NEVER`]: none is.
    slow: AtomicU64,
}

/// No request waits or takes so long.
const NEVER: Nanos = Nanos::MAX;

impl Served {
    /// `service` as it is set.
    pub(crate) fn new(service: Arc<dyn Erased>, settings: &ServiceSettings) -> Served {
        let served = Served {
            name: service.name().to_owned(),
            has_sessions: service.has_sessions() && service.joins().is_none(),
            joins: service.joins().is_some(),
            place: service.place(),
            only_lines: !service.has_sessions() && service.framing(None).is_none(),
            stops: Once::new(),
            stop_line: service.stop_line().map(|line| Finder::new(line).into_owned()),
            limits: Limits::default(),
            service,
        };
        served.obey(settings);
        served
    }

    /// The server stops, or ends without: it is told so, the first time.
    pub(crate) fn stop(&self) {
        self.stops.call_once(|| erased::stopping(&*self.service));
    }

    /// It is set like this from now on.
    pub(crate) fn obey(&self, settings: &ServiceSettings) {
        let Limits { max_line_bytes, queue_timeout, times_handlers, slow } = &self.limits;
        max_line_bytes.store(settings.max_line_bytes, Relaxed);
        queue_timeout.store(settings.queue_timeout.unwrap_or(NEVER), Relaxed);
        times_handlers.store(settings.timeouts.request.is_some(), Relaxed);
        slow.store(settings.slow.unwrap_or(NEVER), Relaxed);
    }

    fn lines(&self) -> Lines {
        Lines::new(self.limits.max_line_bytes.load(Relaxed))
    }

    /// How a connection's bytes become frames now. `None`: the service panicked.
    #[inline]
    pub(crate) fn framing<'a>(&'a self, session: Option<&'a Session>) -> Option<Cutter<'a>> {
        match self.only_lines {
            true => Some(Cutter { lines: self.lines(), custom: None }),
            false => self.ask_for_framing(session),
        }
    }

    fn ask_for_framing<'a>(&'a self, session: Option<&'a Session>) -> Option<Cutter<'a>> {
        // Unwind safety: it only had shared references.
        let custom = panic::catch_unwind(AssertUnwindSafe(|| self.service.framing(session)));
        let custom = custom.map_err(erased::discard).ok()?;
        Some(Cutter { lines: self.lines(), custom })
    }

    /// Most content bytes of a frame of a connection.
    pub(crate) fn max_frame_bytes(&self, session: Option<&Session>) -> usize {
        let framing = self.knows_framing(session).then(|| self.framing(session)).flatten();
        framing.and_then(|framing| framing.max_bytes()).unwrap_or_else(|| self.lines().max_bytes())
    }

    /// Whether it can be told how a connection's bytes become frames: not while its state is elsewhere.
    pub(crate) fn knows_framing(&self, session: Option<&Session>) -> bool {
        session.is_some() || !self.has_sessions
    }

    /// Whether a request that has waited for so long is not to be run.
    pub(crate) fn is_late(&self, waited: Nanos) -> bool {
        waited > self.limits.queue_timeout.load(Relaxed)
    }

    /// Whether requests may only wait for a time.
    pub(crate) fn limits_waiting(&self) -> bool {
        self.limits.queue_timeout.load(Relaxed) != NEVER
    }

    /// Workers tell when they take a request.
    pub(crate) fn times_handlers(&self) -> bool {
        self.limits.times_handlers.load(Relaxed)
    }

    /// A request is slow that takes so long from when it was read until it was handled.
    pub(crate) fn slow(&self) -> Option<Nanos> {
        Some(self.limits.slow.load(Relaxed)).filter(|limit| *limit != NEVER)
    }

    /// Most requests in a job: where handlers are timed but one, so that the replies before it are not held up with it.
    pub(crate) fn max_job_lines(&self) -> usize {
        if self.times_handlers() { 1 } else { MAX_JOB_LINES }
    }

    /// Writes what is told in place of the reply to a request that is late, if the service says anything.
    pub(crate) fn answer_late(&self, waited: Nanos, replies: &mut Vec<u8>) {
        // To the millisecond, as a person reads it.
        let line = erased::busy_line(&*self.service, Duration::from_millis(waited / MS));
        replies.extend_from_slice(&line);
    }

    /// Whether the stop line stands in `bytes`, which begins with a frame, where its end is beyond `from`.
    pub(crate) fn asks_for_stop(&self, bytes: &[u8], from: usize, ended: bool) -> bool {
        // Elsewhere it may stand inside of another frame, or of what becomes one by a request before it.
        let Some(line) = self.stop_line.as_ref().filter(|_| !self.has_sessions) else { return false };
        let is_lines = self.framing(None).is_some_and(|framing| framing.custom.is_none());
        is_lines && Lines::contain(bytes, from, ended, line)
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// The framing of a connection as it is now: lines, or one of the service's own, which is not trusted.
pub(crate) struct Cutter<'a> {
    lines: Lines,
    custom: Option<&'a dyn Framing>,
}

impl Cutter<'_> {
    /// See [`Framing::next`]. `None`: the service's framing panicked, or said what cannot be.
    #[inline]
    pub(crate) fn next(&self, bytes: &[u8], scanned: usize, ended: bool) -> Option<Found> {
        match self.custom {
            None => Some(self.lines.next(bytes, scanned, ended)),
            Some(framing) => next_of(framing, bytes, scanned, ended),
        }
    }

    /// Most content bytes of a frame. `None`: the service's framing panicked.
    fn max_bytes(&self) -> Option<usize> {
        let Some(framing) = self.custom else { return Some(self.lines.max_bytes()) };
        // Unwind safety: it only had shared references.
        panic::catch_unwind(AssertUnwindSafe(|| framing.max_bytes())).map_err(erased::discard).ok()
    }
}

/// The next frame by a framing of somebody else's.
fn next_of(framing: &dyn Framing, bytes: &[u8], scanned: usize, ended: bool) -> Option<Found> {
    // Unwind safety: it only had shared references.
    let next = || (framing.next(bytes, scanned, ended), framing.max_bytes());
    let (found, max_bytes) = panic::catch_unwind(AssertUnwindSafe(next)).map_err(erased::discard).ok()?;
    match &found {
        Found::Frame { content, consumed } => {
            let fits = content.start <= content.end && content.end <= *consumed;
            if !fits || !(1..=bytes.len()).contains(consumed) {
                // A panic says so by itself.
                tracing::error!(
                    ?content,
                    consumed,
                    shown = bytes.len(),
                    "a framing found a frame of no bytes, or beyond what it takes up or was shown"
                );
                return None;
            }
            Some(found)
        }
        // It would ask for more for ever.
        Found::More { .. } if bytes.len() > max_bytes.saturating_add(MAX_OVERHEAD_BYTES) => {
            Some(Found::TooLong)
        }
        Found::More { scanned } => Some(Found::More { scanned: (*scanned).min(bytes.len()) }),
        Found::TooLong => Some(found),
    }
}

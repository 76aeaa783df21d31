//! What a listener speaks: how bytes become frames, what a frame is, what is done with it, and its limits and words.
//!
//! A server has one service or more; listeners, connections and jobs carry the index of theirs. The reactor asks what a frame
//! is and what a peer is told at the end, the workers call the handler. [`Helo`] is one of them, and the core knows of none.

mod handler;
mod helo;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use memchr::memmem::Finder;

use crate::address::Address;
use crate::clock::Nanos;
use crate::config::StopFrom;
use crate::framing::{Found, Framing, Lines};
use crate::job::MS;
pub use handler::{Farewell, Handler, Kind, Reply, Request};
pub(crate) use handler::{Handled, call, classify, last_line};
pub use helo::{Delay, Helo};

/// Which of the server's services.
pub(crate) type ServiceId = u16;

/// One service of a server, with everything that is set for it.
pub(crate) struct Service {
    /// The label in the statistics.
    pub(crate) name: String,
    pub(crate) handler: Arc<dyn Handler>,
    framing: Lines,
    /// A line that means a stop wherever it stands, so that it is looked for ahead of what waits.
    stop_line: Option<Finder<'static>>,
    stop_from: StopFrom,
    /// A request that has waited longer than that is not run, in nanoseconds; the maximum: it always is.
    queue_timeout: Nanos,
    /// Workers tell when they take a request.
    pub(crate) times_handlers: bool,
}

impl Service {
    /// A service of lines.
    pub(crate) fn of_lines(handler: Arc<dyn Handler>, max_line_bytes: usize, stop_from: StopFrom) -> Service {
        Service {
            queue_timeout: Nanos::MAX,
            times_handlers: false,
            name: handler.name().to_owned(),
            framing: Lines::new(max_line_bytes),
            stop_line: handler.stop_line().map(|line| Finder::new(line).into_owned()),
            stop_from,
            handler,
        }
    }

    /// See [`Framing::next`]: how this service's bytes become frames.
    pub(crate) fn next_frame(&self, bytes: &[u8], scanned: usize, ended: bool) -> Found {
        self.framing.next(bytes, scanned, ended)
    }

    /// Most content bytes of a frame.
    pub(crate) fn max_frame_bytes(&self) -> usize {
        self.framing.max_bytes()
    }

    /// The same with limits of time for its requests: to wait for a worker, and whether they are timed when one has them.
    pub(crate) fn with_timeouts(self, queue: Option<Nanos>, times_handlers: bool) -> Service {
        Service { queue_timeout: queue.unwrap_or(Nanos::MAX), times_handlers, ..self }
    }

    /// Whether a request that has waited for so long is not to be run.
    pub(crate) fn is_late(&self, waited: Nanos) -> bool {
        waited > self.queue_timeout
    }

    /// Writes what is told in place of the reply to a request that is late. `false`: nothing is.
    pub(crate) fn answer_late(&self, waited: Nanos, replies: &mut Vec<u8>) -> bool {
        // To the millisecond, as a person reads it.
        let line = handler::busy_line(&*self.handler, Duration::from_millis(waited / MS)).unwrap_or_default();
        replies.extend_from_slice(&line);
        !line.is_empty()
    }

    /// Whether a peer at `address` may stop the server.
    pub(crate) fn may_stop(&self, address: &Address) -> bool {
        self.stop_from.allows(address)
    }

    /// Whether the stop line stands in `bytes`, which begins with a frame, where its end is beyond `from`.
    pub(crate) fn asks_for_stop(&self, bytes: &[u8], from: usize, ended: bool) -> bool {
        self.stop_line.as_ref().is_some_and(|line| Lines::contain(bytes, from, ended, line))
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("name", &self.name)
            .field("framing", &self.framing)
            .finish_non_exhaustive()
    }
}

//! Bytes in, frames out.
//!
//! A framing is asked for one frame at a time, of bytes that it does not own: so a connection's share of a turn can end
//! behind any frame, and what is read ahead can be looked at without being consumed. How the bytes were cut into reads makes
//! no difference (`framing_props::lines_are_independent_of_chunking`). No I/O, no clock, no state.

mod lines;

use std::fmt;
use std::ops::Range;

pub use lines::Lines;

/// What a [`Framing`] finds at the begin of the bytes that it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// A whole frame.
    Frame {
        /// Where its content lies in the bytes, without terminators or lengths.
        content: Range<usize>,
        /// How many bytes it takes up: the next frame begins behind them. At least 1.
        consumed: usize,
    },
    /// The frame is not complete.
    More {
        /// So many bytes need not be looked at again for the end of this frame.
        scanned: usize,
    },
    /// The frame has more bytes than its limit allows. What follows is not looked at.
    TooLong,
}

/// How bytes become requests.
///
/// # Panics
/// A framing must not panic: it runs on the event loop. If it does, the connection is closed as after a panic of its handler.
pub trait Framing: Send + Sync + 'static {
    /// Looks for the frame at the begin of `bytes`, which is not empty.
    ///
    /// Of the first `scanned` bytes an earlier call has said that they need not be looked at again; they are still the same.
    /// `ended`: no byte will follow. A rest that is no whole frame may count as one then; if it does not, it is dropped.
    ///
    /// It must find the same frames however the bytes come, and [`Found::TooLong`] before more than its limit and a few
    /// bytes have come, as everything up to there is held in memory.
    fn next(&self, bytes: &[u8], scanned: usize, ended: bool) -> Found;

    /// Most content bytes of a frame: what one connection may make the server hold.
    fn max_bytes(&self) -> usize;
}

impl fmt::Debug for dyn Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Framing(max {} bytes)", self.max_bytes())
    }
}

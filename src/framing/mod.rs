//! Bytes in, frames out.
//!
//! A framing is asked for one frame at a time, of bytes that it does not own: so a connection's share of a turn can end
//! behind any frame, and what is read ahead can be looked at without being consumed. How the bytes were cut into reads makes
//! no difference (`framing_props::lines_are_independent_of_chunking`, and [`verify`] for all). No I/O, no clock, no state.
//!
//! A service that wants other frames than lines says so in [`Service::framing`](crate::Service::framing), also differently from one
//! request to the next.

mod fixed;
mod length;
mod lines;
pub(crate) mod proxy;
mod terminated;
mod verify;

use std::fmt;
use std::ops::Range;

pub use fixed::Fixed;
pub use length::{Endian, LengthPrefixed};
pub use lines::Lines;
pub use terminated::Terminated;
#[cfg(any(test, fuzzing))]
pub(crate) use verify::frames;
pub use verify::verify;

/// What a [`Framing`] finds at the begin of the bytes that it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// A whole frame.
    Frame {
        /// Where its content lies in what it takes up, without terminators or lengths.
        content: Range<usize>,
        /// How many bytes it takes up: the next frame begins behind them. At least 1.
        consumed: usize,
    },
    /// The frame is not complete.
    More {
        /// So many bytes need not be looked at again for the end of this frame: all that are there, but for what may be the begin of a
        /// terminator, and never fewer than before. Else a frame that comes in small pieces is looked at in the square of its length.
        scanned: usize,
    },
    /// The frame has more bytes than its limit allows. What follows is not looked at.
    TooLong,
}

/// How bytes become requests. [`verify`] tests one of your own.
///
/// It runs on the event loop, so it must only look, at each byte a few times at the most.
///
/// # Panics
/// A framing must not panic. If it does, or finds a frame beyond the bytes that it was shown or one of no bytes, the connection is
/// closed as after a panic of its handler, and the log says so.
///
/// # Examples
/// Netstrings: a length in decimal digits, a colon, the content, a comma.
/// ```
/// use tidemill::framing::{Found, Framing, verify};
///
/// struct Netstrings {
///     max_bytes: usize,
/// }
///
/// impl Framing for Netstrings {
///     fn next(&self, bytes: &[u8], _: usize, _: bool) -> Found {
///         // Behind the length nothing is looked for.
///         let more = Found::More { scanned: bytes.len() };
///         let Some(colon) = bytes.iter().take(10).position(|byte| *byte == b':') else {
///             return if bytes.len() < 10 { more } else { Found::TooLong };
///         };
///         // What is no length is a frame too: the handler says so and closes.
///         let digits = std::str::from_utf8(&bytes[..colon]).unwrap_or_default();
///         let Ok(length) = digits.parse::<usize>() else { return Found::Frame { content: 0..colon, consumed: colon + 1 } };
///         if length > self.max_bytes {
///             return Found::TooLong;
///         }
///         let end = colon + 1 + length;
///         if bytes.len() <= end { more } else { Found::Frame { content: colon + 1..end, consumed: end + 1 } }
///     }
///
///     fn max_bytes(&self) -> usize {
///         self.max_bytes
///     }
/// }
///
/// let (frames, too_long) = verify(&Netstrings { max_bytes: 5 }, b"3:abc,0:,5:a:b,c,6:");
/// assert_eq!(frames, [&b"abc"[..], b"", b"a:b,c"]);
/// assert!(too_long);
/// ```
pub trait Framing: Send + Sync + 'static {
    /// Looks for the frame at the begin of `bytes`, which is not empty.
    ///
    /// Of the first `scanned` bytes an earlier call has said that they need not be looked at again; they are still the same.
    /// `ended`: no byte will follow. A rest that is no whole frame may count as one then; if it does not, it is dropped.
    ///
    /// It must find the same frames however the bytes come, and [`Found::TooLong`] once more than its limit and what a length or a
    /// terminator takes have come, as everything up to there is held in memory. A server ends a connection at 64 KiB above the
    /// limit, [`verify`] fails at 256 bytes.
    ///
    /// `scanned` is all that is kept between two calls. A framing for which an end depends on what stands before it, as within quotes,
    /// has to look at everything again: in the square of the length where a frame comes in small pieces, so let its limit be some KiB.
    fn next(&self, bytes: &[u8], scanned: usize, ended: bool) -> Found;

    /// Most content bytes of a frame: what one connection may make the server hold. It is held as it comes, and counts for
    /// [`Config::max_memory_bytes`](crate::Config::max_memory_bytes); `max_line_bytes` is for lines only.
    fn max_bytes(&self) -> usize;
}

impl fmt::Debug for dyn Framing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Framing(max {} bytes)", self.max_bytes())
    }
}

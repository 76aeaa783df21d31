//! Frames of one length.

use super::{Found, Framing};

/// Frames of a fixed count of bytes: records, or the body that a request before it has announced. What is left of one at the end of
/// the stream is dropped.
///
/// # Examples
/// ```
/// use tidemill::framing::{Fixed, Found, Framing};
///
/// assert_eq!(Fixed::new(3).next(b"abcd", 0, false), Found::Frame { content: 0..3, consumed: 3 });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    bytes: usize,
}

impl Fixed {
    /// Frames of `bytes` bytes. That is the limit, too: where a peer has announced it, look at the number first.
    ///
    /// # Panics
    /// If that is 0: a frame takes up something, or it would be found again and again. A body of no bytes needs no frame.
    pub const fn new(bytes: usize) -> Fixed {
        assert!(bytes > 0, "a frame has at least one byte");
        Fixed { bytes }
    }
}

impl Framing for Fixed {
    fn next(&self, bytes: &[u8], _: usize, _: bool) -> Found {
        match bytes.len() >= self.bytes {
            true => Found::Frame { content: 0..self.bytes, consumed: self.bytes },
            false => Found::More { scanned: bytes.len() },
        }
    }

    fn max_bytes(&self) -> usize {
        self.bytes
    }
}

//! Frames that end in a sequence of bytes.

use memchr::memmem::Finder;

use super::{Found, Framing};

/// Frames that end in a terminator of one byte or more. What is left of one at the end of the stream is dropped.
///
/// # Examples
/// ```
/// use tidemill::framing::{Found, Framing, Terminated};
///
/// let framing = Terminated::new(b"\r\n\r\n", 1024);
/// assert_eq!(framing.next(b"a: b\r\n\r\nrest", 0, false), Found::Frame { content: 0..4, consumed: 8 });
/// assert_eq!(framing.next(b"a: b\r\n\r", 0, false), Found::More { scanned: 4 });
/// ```
#[derive(Clone, Debug)]
pub struct Terminated {
    terminator: Finder<'static>,
    max_bytes: usize,
}

impl Terminated {
    /// Frames of up to `max_bytes` bytes before `terminator`.
    ///
    /// # Panics
    /// If `terminator` is empty.
    pub fn new(terminator: &[u8], max_bytes: usize) -> Terminated {
        assert!(!terminator.is_empty(), "a terminator has at least one byte");
        Terminated { terminator: Finder::new(terminator).into_owned(), max_bytes }
    }
}

impl Framing for Terminated {
    fn next(&self, bytes: &[u8], scanned: usize, _: bool) -> Found {
        let len = self.terminator.needle().len();
        match self.terminator.find(&bytes[scanned..]).map(|at| scanned + at) {
            Some(end) if end <= self.max_bytes => Found::Frame { content: 0..end, consumed: end + len },
            Some(_) => Found::TooLong,
            None => {
                // The terminator may have begun in the last bytes.
                let scanned = (bytes.len() + 1).saturating_sub(len);
                if scanned > self.max_bytes { Found::TooLong } else { Found::More { scanned } }
            }
        }
    }

    fn max_bytes(&self) -> usize {
        self.max_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_does_not_count_the_terminator_nor_what_may_become_one() {
        let framing = Terminated::new(b"--", 3);
        for (bytes, found) in [
            (&b"abc--"[..], Found::Frame { content: 0..3, consumed: 5 }),
            (b"abcd--", Found::TooLong),
            (b"abc-", Found::More { scanned: 3 }),
            (b"abcd", Found::More { scanned: 3 }),
            (b"abcde", Found::TooLong),
            (b"--", Found::Frame { content: 0..0, consumed: 2 }),
            (b"-", Found::More { scanned: 0 }),
        ] {
            assert_eq!(framing.next(bytes, 0, false), found, "{}", bytes.escape_ascii());
        }
    }
}

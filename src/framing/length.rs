//! Frames that begin with their length.

use super::{Found, Framing};

/// How a length is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Endian {
    /// The most significant byte first, as in most protocols of networks.
    Big,
    /// The least significant byte first.
    Little,
}

/// Frames of a length that is written before them, in 1, 2, 4 or 8 bytes; it counts the content only. What is left of a frame at
/// the end of the stream is dropped.
///
/// # Examples
/// ```
/// use tidemill::framing::{Endian, Found, Framing, LengthPrefixed};
///
/// let framing = LengthPrefixed::new(2, Endian::Big, 1024);
/// assert_eq!(framing.next(b"\0\x03abc\0", 0, false), Found::Frame { content: 2..5, consumed: 5 });
/// assert_eq!(framing.next(b"\0\x03ab", 0, false), Found::More { scanned: 4 });
/// assert_eq!(framing.next(b"\xff\xff", 0, false), Found::TooLong);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LengthPrefixed {
    prefix_bytes: usize,
    endian: Endian,
    max_bytes: usize,
}

impl LengthPrefixed {
    /// Frames of up to `max_bytes` behind a length of `prefix_bytes`.
    ///
    /// # Panics
    /// If `prefix_bytes` is not 1, 2, 4 or 8.
    pub const fn new(prefix_bytes: usize, endian: Endian, max_bytes: usize) -> LengthPrefixed {
        assert!(matches!(prefix_bytes, 1 | 2 | 4 | 8), "a length has 1, 2, 4 or 8 bytes");
        LengthPrefixed { prefix_bytes, endian, max_bytes }
    }

    fn length(&self, prefix: &[u8]) -> u64 {
        let join = |length: u64, byte: &u8| length << 8 | u64::from(*byte);
        match self.endian {
            Endian::Big => prefix.iter().fold(0, join),
            Endian::Little => prefix.iter().rev().fold(0, join),
        }
    }
}

impl Framing for LengthPrefixed {
    fn next(&self, bytes: &[u8], _: usize, _: bool) -> Found {
        let more = Found::More { scanned: bytes.len() };
        let Some(prefix) = bytes.get(..self.prefix_bytes) else { return more };
        let Ok(length) = usize::try_from(self.length(prefix)) else { return Found::TooLong };
        if length > self.max_bytes {
            return Found::TooLong;
        }
        // Within the limit, which memory has room for.
        match self.prefix_bytes.checked_add(length) {
            Some(end) if end <= bytes.len() => {
                Found::Frame { content: self.prefix_bytes..end, consumed: end }
            }
            _ => more,
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
    fn every_width_and_order_is_read_as_it_is_written() {
        for (width, endian, prefix) in [
            (1, Endian::Big, &[3][..]),
            (2, Endian::Big, &[0, 3]),
            (2, Endian::Little, &[3, 0]),
            (4, Endian::Big, &[0, 0, 0, 3]),
            (4, Endian::Little, &[3, 0, 0, 0]),
            (8, Endian::Big, &[0, 0, 0, 0, 0, 0, 0, 3]),
            (8, Endian::Little, &[3, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            let framing = LengthPrefixed::new(width, endian, 3);
            let bytes = [prefix, b"abcd"].concat();
            let frame = Found::Frame { content: width..width + 3, consumed: width + 3 };
            assert_eq!(framing.next(&bytes, 0, false), frame, "{width} {endian:?}");
            let shorter = LengthPrefixed::new(width, endian, 2);
            assert_eq!(shorter.next(prefix, 0, false), Found::TooLong, "{width} {endian:?}");
        }
        for (endian, prefix) in [(Endian::Big, [1, 3]), (Endian::Little, [3, 1])] {
            let bytes = [&prefix[..], &[b'x'; 0x103]].concat();
            let frame = Found::Frame { content: 2..0x105, consumed: 0x105 };
            assert_eq!(LengthPrefixed::new(2, endian, 1 << 10).next(&bytes, 0, false), frame, "{endian:?}");
        }
    }

    #[test]
    fn the_largest_length_of_all_does_not_overflow() {
        let framing = LengthPrefixed::new(8, Endian::Big, usize::MAX);
        assert!(matches!(framing.next(&[0xff; 8], 0, false), Found::More { .. } | Found::TooLong));
    }

    #[test]
    fn an_empty_frame_takes_up_its_length() {
        let framing = LengthPrefixed::new(1, Endian::Big, 3);
        assert_eq!(framing.next(&[0, 1], 0, false), Found::Frame { content: 1..1, consumed: 1 });
    }
}

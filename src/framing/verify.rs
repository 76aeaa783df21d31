//! A test for framings, those of users too.

use super::{Found, Framing};

/// Asks `framing` for the frames of `bytes` in every way in which they may come, and fails where that makes a difference or a rule of
/// [`Framing`] is broken. For the tests of who writes one.
///
/// Whole, one byte at a time, and cut in two at every place; with and without the end of the stream behind it. Returns the frames'
/// contents, and whether the last one found was too long. Takes time in the square of the length, so some hundred bytes are a
/// good test; give it inputs with frames at the limit, above it, empty ones, and halves of terminators.
///
/// # Panics
/// With what is wrong: frames that depend on the cuts, a frame outside the bytes, one of no bytes, one above the limit, more
/// looked at than there is, or a frame that grows without end.
///
/// # Examples
/// ```
/// use tidemill::framing::{Lines, verify};
///
/// let (frames, too_long) = verify(&Lines::new(5), b"one\ntwo\r\nthree\nseven!\n");
/// assert_eq!(frames, [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
/// assert!(too_long);
/// ```
pub fn verify(framing: &dyn Framing, bytes: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut whole = (Vec::new(), false);
    for ended in [true, false] {
        whole = frames(framing, &[bytes], ended);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(frames(framing, &single, ended), whole, "one byte at a time, ended: {ended}");
        for cut in 1..bytes.len() {
            let parts = [&bytes[..cut], &bytes[cut..]];
            assert_eq!(frames(framing, &parts, ended), whole, "cut at {cut}, ended: {ended}");
        }
    }
    whole
}

/// The frames where the bytes come in `parts`, and whether the last one found was too long.
pub(crate) fn frames(framing: &dyn Framing, parts: &[&[u8]], ended: bool) -> (Vec<Vec<u8>>, bool) {
    let (mut found, mut here, mut scanned) = (Vec::new(), Vec::new(), 0);
    for (part, bytes) in parts.iter().enumerate() {
        here.extend_from_slice(bytes);
        let ended = ended && part + 1 == parts.len();
        while !here.is_empty() {
            match framing.next(&here, scanned, ended) {
                Found::Frame { content, consumed } => {
                    assert!(consumed > 0, "a frame of no bytes would be found again and again");
                    assert!(
                        consumed <= here.len() && content.end <= here.len(),
                        "a frame beyond what has come"
                    );
                    assert!(content.len() <= framing.max_bytes(), "a frame above the limit");
                    found.push(here[content].to_vec());
                    here.drain(..consumed);
                    scanned = 0;
                }
                Found::More { scanned: looked_at } => {
                    assert!(looked_at <= here.len(), "more was looked at than there is");
                    assert!(looked_at >= scanned, "what was looked at is to be looked at again");
                    scanned = looked_at;
                    break;
                }
                Found::TooLong => return (found, true),
            }
        }
    }
    (found, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::{Endian, Fixed, LengthPrefixed, Lines, Terminated};

    #[test]
    fn all_framings_are_independent_of_how_bytes_are_cut() {
        let bytes = b"\x01a\0\0\x03\nab\r\n--cd-\r--\r\n\r\n\r\0\0\x02--\n\x02\xff\xfflast";
        for framing in [
            &Lines::new(6) as &dyn Framing,
            &Lines::new(100),
            &Fixed::new(1),
            &Fixed::new(7),
            &LengthPrefixed::new(1, Endian::Big, 60),
            &LengthPrefixed::new(2, Endian::Little, 10),
            &LengthPrefixed::new(8, Endian::Big, 10),
            &Terminated::new(b"--", 12),
            &Terminated::new(b"\r\n\r\n", 100),
            &Terminated::new(b"\r\n\r\n", 3),
            &Terminated::new(b"\n", 9),
        ] {
            verify(framing, bytes);
        }
    }

    /// Takes what there is for a frame.
    struct Greedy;

    impl Framing for Greedy {
        fn next(&self, bytes: &[u8], _: usize, _: bool) -> Found {
            Found::Frame { content: 0..bytes.len(), consumed: bytes.len() }
        }

        fn max_bytes(&self) -> usize {
            100
        }
    }

    #[test]
    #[should_panic(expected = "one byte at a time")]
    fn one_that_depends_on_them_is_found_out() {
        verify(&Greedy, b"ab");
    }
}

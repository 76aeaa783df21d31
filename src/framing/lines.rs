//! Lines: what ends in `\n`, with or without a `\r` before it.

use super::{Found, Framing};

/// Lines that end in `\n`; one `\r` before it belongs to the terminator. A last line without terminator counts at the end of
/// the stream, where a `\r` at its end is content.
///
/// # Examples
/// ```
/// use tidemill::framing::{Found, Framing, Lines};
///
/// let lines = Lines::new(1024);
/// let bytes = b"HELO a\r\nHELO b";
/// assert_eq!(lines.next(bytes, 0, false), Found::Frame { content: 0..6, consumed: 8 });
/// assert_eq!(lines.next(&bytes[8..], 0, false), Found::More { scanned: 6 });
/// assert_eq!(lines.next(&bytes[8..], 6, true), Found::Frame { content: 0..6, consumed: 6 });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    max_bytes: usize,
}

impl Lines {
    /// Lines of up to `max_bytes` bytes, terminator not counted.
    pub fn new(max_bytes: usize) -> Lines {
        Lines { max_bytes }
    }

    /// Whether `line` stands among the lines of `bytes`, which begins with one. Only a line whose end is beyond `from` is
    /// looked for; the others were looked at before.
    pub(crate) fn contain(bytes: &[u8], from: usize, ended: bool, line: &memchr::memmem::Finder<'_>) -> bool {
        let len = line.needle().len();
        // It may have begun before, terminator included.
        let begin = from.saturating_sub(len + 1);
        line.find_iter(&bytes[begin..]).map(|at| begin + at).any(|at| {
            let begins = at == 0 || bytes[at - 1] == b'\n';
            let ends = match &bytes[at + len..] {
                [b'\n', ..] | [b'\r', b'\n', ..] => true,
                rest => rest.is_empty() && ended,
            };
            begins && ends
        })
    }
}

impl Framing for Lines {
    #[inline]
    fn next(&self, bytes: &[u8], scanned: usize, ended: bool) -> Found {
        let (content, consumed) = match memchr::memchr(b'\n', &bytes[scanned..]) {
            Some(end) => {
                let end = scanned + end;
                let cr = end > 0 && bytes[end - 1] == b'\r';
                (end - usize::from(cr), end + 1)
            }
            None if ended => (bytes.len(), bytes.len()),
            None => {
                // One byte above the limit is fine only as the `\r` of a terminator whose `\n` is still to come.
                let cr = bytes.last() == Some(&b'\r');
                return match bytes.len() - usize::from(cr) > self.max_bytes {
                    true => Found::TooLong,
                    false => Found::More { scanned: bytes.len() },
                };
            }
        };
        if content > self.max_bytes {
            return Found::TooLong;
        }
        Found::Frame { content: 0..content, consumed }
    }

    fn max_bytes(&self) -> usize {
        self.max_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of `bytes`, and whether one was too long.
    fn lines(mut bytes: &[u8], ended: bool, max: usize) -> (Vec<&[u8]>, bool) {
        let mut lines = Vec::new();
        while !bytes.is_empty() {
            match Lines::new(max).next(bytes, 0, ended) {
                Found::Frame { content, consumed } => {
                    lines.push(&bytes[content]);
                    bytes = &bytes[consumed..];
                }
                Found::More { .. } => break,
                Found::TooLong => return (lines, true),
            }
        }
        (lines, false)
    }

    #[test]
    fn both_terminators_end_a_line_and_only_one_cr_belongs_to_them() {
        let bytes = b"a\nb\r\nc\r\r\n\r\n\nlast";
        assert_eq!(lines(bytes, true, 10), (vec![&b"a"[..], b"b", b"c\r", b"", b"", b"last"], false));
        assert_eq!(lines(bytes, false, 10).0.len(), 5, "the last one may go on");
    }

    #[test]
    fn a_line_may_be_cut_anywhere_even_before_its_newline() {
        let bytes = b"ab\r\n";
        let mut scanned = 0;
        for len in 1..bytes.len() {
            assert_eq!(Lines::new(10).next(&bytes[..len], scanned, false), Found::More { scanned: len });
            scanned = len;
        }
        assert_eq!(Lines::new(10).next(bytes, scanned, false), Found::Frame { content: 0..2, consumed: 4 });
    }

    #[test]
    fn the_limit_counts_the_line_without_its_terminator() {
        for (bytes, ended, expected) in [
            (&b"abcd\n"[..], false, (vec![&b"abcd"[..]], false)),
            (b"abcd\r\n", false, (vec![b"abcd"], false)),
            (b"abcd", true, (vec![b"abcd"], false)),
            (b"ok\nabcde\n", false, (vec![b"ok"], true)),
            (b"abcde", false, (vec![], true)),
            (b"abcd\r", false, (vec![], false)),
            (b"abcd\r", true, (vec![], true)),
            (b"abcd\rx\n", false, (vec![], true)),
        ] {
            assert_eq!(lines(bytes, ended, 4), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn no_limit_at_all_does_not_overflow() {
        assert_eq!(lines(b"a\r\nb", true, usize::MAX), (vec![&b"a"[..], b"b"], false));
        assert_eq!(lines(b"a\r", false, usize::MAX), (vec![], false));
    }

    #[test]
    fn a_line_is_found_only_where_it_is_whole() {
        let stop = memchr::memmem::Finder::new(b"STOP");
        let contain = |bytes: &[u8], ended| Lines::contain(bytes, 0, ended, &stop);
        for bytes in [&b"STOP\n"[..], b"STOP\r\n", b"x\nSTOP\ny", b"\r\nSTOP\r\n", b"xSTOP\nSTOP\n"] {
            assert!(contain(bytes, false), "{}", bytes.escape_ascii());
        }
        for bytes in [&b"STOP"[..], b"STOP\r", b"xSTOP\n", b"STOPx\n", b"STO\nP\n", b"STOP\rx\n", b"x STOP"] {
            assert!(!contain(bytes, false), "{}", bytes.escape_ascii());
        }
        assert!(contain(b"x\nSTOP", true) && !contain(b"STOP\r", true));
        for cut in 0..=b"HELO\nSTOP\r\nHELO\n".len() {
            // In two reads, with the first looked at before the second comes.
            let bytes = b"HELO\nSTOP\r\nHELO\n";
            let found = contain(&bytes[..cut], false) || Lines::contain(bytes, cut, false, &stop);
            assert!(found, "cut at {cut}");
        }
    }
}

//! Bytes in, lines out.
//!
//! A line ends in `\n`; one `\r` before it belongs to the terminator. How the bytes were cut into reads makes no
//! difference (held by `framing_props::lines_are_independent_of_chunking`). No I/O, no clock; the only state is the
//! line that has begun and not ended, which never holds more than the limit and one byte.

use std::ops::ControlFlow;

/// A line longer than the limit was met. What follows it in the stream is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineTooLong;

/// Cuts a stream of bytes into lines.
///
/// An empty framer allocates nothing, so an idle connection needs none.
#[derive(Debug, Default)]
pub struct LineFramer {
    /// The begin of a line whose terminator has not come: no `\n` in it, at most `max + 1` bytes.
    partial: Vec<u8>,
}

impl LineFramer {
    /// Hands each line that `chunk` completes to `each`, without its terminator, in order.
    ///
    /// `each` may break off: what is behind that line in `chunk` is then discarded, and its value is returned.
    ///
    /// # Errors
    /// [`LineTooLong`] when a line has more than `max` bytes, terminator not counted, whether it is complete or not. All
    /// lines before it have been handed out by then.
    pub fn feed<B>(
        &mut self,
        mut chunk: &[u8],
        max: usize,
        mut each: impl FnMut(&[u8]) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, LineTooLong> {
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            let (head, rest) = (&chunk[..end], &chunk[end + 1..]);
            let flow = if self.partial.is_empty() {
                each(bounded(head, max)?)
            } else {
                // Checked before it is copied: a peer must not make the buffer grow past the limit.
                if self.partial.len() + head.len() > max + 1 {
                    return Err(LineTooLong);
                }
                self.partial.extend_from_slice(head);
                let flow = each(bounded(&self.partial, max)?);
                self.partial.clear();
                flow
            };
            if flow.is_break() {
                return Ok(flow);
            }
            chunk = rest;
        }
        if self.partial.len() + chunk.len() > max + 1 {
            return Err(LineTooLong);
        }
        self.partial.extend_from_slice(chunk);
        // One byte above the limit is fine only as the `\r` of a terminator whose `\n` is still to come.
        if self.partial.len() > max && self.partial.last() != Some(&b'\r') {
            return Err(LineTooLong);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Ends the stream: a last line without terminator counts, and is returned. The framer is empty afterwards.
    ///
    /// A `\r` at its end is content here, since no terminator follows it.
    ///
    /// # Errors
    /// [`LineTooLong`] as for [`feed`](Self::feed).
    pub fn finish(&mut self, max: usize) -> Result<Option<Vec<u8>>, LineTooLong> {
        let last = std::mem::take(&mut self.partial);
        match last.len() {
            0 => Ok(None),
            len if len > max => Err(LineTooLong),
            _ => Ok(Some(last)),
        }
    }

    /// Whether no line has begun.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }
}

/// `line` without the `\r` of its terminator, if it is within the limit.
fn bounded(line: &[u8], max: usize) -> Result<&[u8], LineTooLong> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > max { Err(LineTooLong) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(framer: &mut LineFramer, chunk: &[u8], max: usize) -> (Vec<Vec<u8>>, Result<(), LineTooLong>) {
        let mut lines = Vec::new();
        let result = framer.feed(chunk, max, |line| {
            lines.push(line.to_vec());
            ControlFlow::<()>::Continue(())
        });
        (lines, result.map(drop))
    }

    fn all(chunks: &[&[u8]], max: usize) -> (Vec<Vec<u8>>, Result<(), LineTooLong>) {
        let mut framer = LineFramer::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            let (more, result) = feed(&mut framer, chunk, max);
            lines.extend(more);
            if result.is_err() {
                return (lines, result);
            }
        }
        match framer.finish(max) {
            Ok(last) => lines.extend(last),
            Err(too_long) => return (lines, Err(too_long)),
        }
        (lines, Ok(()))
    }

    #[test]
    fn both_terminators_end_a_line_and_only_one_cr_belongs_to_them() {
        let (lines, result) = all(&[b"a\nb\r\nc\r\r\n\r\n\nlast"], 10);
        assert_eq!(lines, [&b"a"[..], b"b", b"c\r", b"", b"", b"last"]);
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn a_line_may_be_cut_anywhere_even_before_its_newline() {
        for cut in 0..=7 {
            let (left, right) = b"ab\r\ncd\n".split_at(cut);
            assert_eq!(all(&[left, right], 10).0, [b"ab", b"cd"], "cut at {cut}");
        }
    }

    #[test]
    fn the_limit_counts_the_line_without_its_terminator() {
        assert_eq!(all(&[b"abcd\n"], 4), (vec![b"abcd".to_vec()], Ok(())));
        assert_eq!(all(&[b"abcd\r\n"], 4), (vec![b"abcd".to_vec()], Ok(())));
        assert_eq!(all(&[b"abcd\r", b"\n"], 4), (vec![b"abcd".to_vec()], Ok(())));
        assert_eq!(all(&[b"ok\nabcde\n"], 4), (vec![b"ok".to_vec()], Err(LineTooLong)));
        assert_eq!(all(&[b"abcde"], 4), (vec![], Err(LineTooLong)));
        assert_eq!(all(&[b"abcd\r"], 4), (vec![], Err(LineTooLong)), "at the end a CR is content");
        assert_eq!(all(&[b"abcd\r", b"x\n"], 4), (vec![], Err(LineTooLong)));
        assert_eq!(all(&[b"ab", b"cde\n"], 4), (vec![], Err(LineTooLong)));
    }

    #[test]
    fn what_is_held_never_exceeds_the_limit_by_more_than_one() {
        let mut framer = LineFramer::default();
        assert_eq!(feed(&mut framer, &[b'x'; 100_000], 4).1, Err(LineTooLong));
        assert!(framer.partial.capacity() < 16, "{}", framer.partial.capacity());
    }

    #[test]
    fn breaking_off_discards_what_follows() {
        let mut framer = LineFramer::default();
        let mut seen = 0;
        let flow = framer.feed(b"a\nb\nc\n", 10, |line| {
            seen += 1;
            if line == b"b" { ControlFlow::Break("stop") } else { ControlFlow::Continue(()) }
        });
        assert_eq!((flow, seen), (Ok(ControlFlow::Break("stop")), 2));
    }
}

//! What a reply must be, how bytes compare with it, and whose reply they are.

use memchr::memchr;

use super::MAX_LINE_BYTES;
use super::template::{Digits, Template};

/// A reply: lines, of which some may go on as they like.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) template: Template,
    /// Of each line in the template, whether anything may follow on it.
    open: Vec<bool>,
    /// Where each line ends in the template's bytes.
    ends: Vec<usize>,
    /// Lines that follow and may be anything.
    free_lines: usize,
    /// Every byte is known, the ends of lines too.
    exact: bool,
}

/// How bytes compare with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// So many of them are it.
    Whole(usize),
    /// They are the start of it.
    Start,
    No,
}

/// Whose reply the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Of the request with this number.
    Of(u64),
    /// Not enough of them to tell.
    Unfinished,
    Unknown,
}

impl Reply {
    pub(super) fn new(
        parts: Vec<Vec<u8>>,
        digits: Digits,
        open: Vec<bool>,
        free_lines: usize,
        exact: bool,
    ) -> Self {
        let template = Template::new(parts, digits);
        let mut reply = Self { template, open, ends: Vec::new(), free_lines, exact };
        reply.find_ends();
        reply
    }

    fn find_ends(&mut self) {
        self.ends.clear();
        self.ends.extend(memchr::memchr_iter(b'\n', &self.template.bytes));
    }

    /// Has other bytes behind the number in place `at`.
    pub(super) fn replace_part(&mut self, at: usize, part: Vec<u8>) {
        self.template.replace_part(at, part);
        self.find_ends();
    }

    pub(super) fn write(&mut self, number: u64) {
        if self.template.write(number) {
            self.find_ends();
        }
    }

    /// The length of `count` replies in a row, if `bytes` begin with exactly those and one comparison tells.
    pub(super) fn compare_row(&mut self, bytes: &[u8], first: u64, step: u64, count: usize) -> Option<usize> {
        let is_row = self.exact && self.template.is_row_prefix_of(bytes, first, step, count);
        is_row.then(|| count * self.template.bytes.len())
    }

    #[inline]
    pub(super) fn compare(&mut self, bytes: &[u8], number: u64) -> Match {
        if self.exact && self.template.is_prefix_of(bytes, number) == Some(true) {
            return Match::Whole(self.template.bytes.len());
        }
        self.compare_written(bytes, number)
    }

    /// Apart from the above, so that this is small enough to be taken into the one place where every reply passes.
    #[inline(never)]
    fn compare_written(&mut self, bytes: &[u8], number: u64) -> Match {
        self.write(number);
        let full = &self.template.bytes;
        if self.exact {
            return match bytes.get(..full.len()) {
                Some(reply) if reply == full => Match::Whole(full.len()),
                None if full.starts_with(bytes) => Match::Start,
                _ => Match::No,
            };
        }
        let (mut at, mut from) = (0, 0);
        for (&end, &open) in self.ends.iter().zip(&self.open) {
            let expected = &full[from..end];
            from = end + 1;
            let rest = &bytes[at..];
            match Line::of(rest) {
                Line::Ends(end) if agrees(&rest[..end], expected, open) => at += end + 1,
                Line::Unfinished if may_become(rest, expected, open) => return Match::Start,
                _ => return Match::No,
            }
        }
        for _ in 0..self.free_lines {
            match Line::of(&bytes[at..]) {
                Line::Ends(end) => at += end + 1,
                Line::Unfinished => return Match::Start,
                Line::TooLong => return Match::No,
            }
        }
        Match::Whole(at)
    }

    /// The number that stands in the reply at the front of `bytes`, if they are such a reply up to there.
    pub(super) fn identify(&self, bytes: &[u8]) -> Identity {
        let Some(prefix) = self.template.parts.first().filter(|_| self.template.parts.len() > 1) else {
            return Identity::Unknown;
        };
        let (mut at, mut from) = (0, 0);
        let lines = prefix.iter().filter(|&&byte| byte == b'\n').count();
        for (expected, &open) in prefix.split(|&byte| byte == b'\n').take(lines).zip(&self.open) {
            from += expected.len() + 1;
            let rest = &bytes[at..];
            match Line::of(rest) {
                Line::Ends(end) if agrees(&rest[..end], expected, open) => at += end + 1,
                Line::Unfinished if may_become(rest, expected, open) => return Identity::Unfinished,
                _ => return Identity::Unknown,
            }
        }
        let (rest, prefix) = (&bytes[at..], &prefix[from..]);
        let Some(rest) = rest.strip_prefix(prefix) else {
            return if prefix.starts_with(rest) { Identity::Unfinished } else { Identity::Unknown };
        };
        match self.template.digits {
            Digits::Hex => {
                let digits = &rest[..rest.len().min(16)];
                let lower = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
                match std::str::from_utf8(digits) {
                    Ok(text) if lower && digits.len() == 16 => {
                        u64::from_str_radix(text, 16).map_or(Identity::Unknown, Identity::Of)
                    }
                    Ok(_) if lower => Identity::Unfinished,
                    _ => Identity::Unknown,
                }
            }
            Digits::Decimal => {
                let len = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                if len == rest.len() && len < 20 {
                    return Identity::Unfinished;
                }
                let text = std::str::from_utf8(&rest[..len]).unwrap_or_default();
                // As it is written, and in no other way.
                let plain = text == "0" || !text.starts_with('0');
                text.parse().ok().filter(|_| plain).map_or(Identity::Unknown, Identity::Of)
            }
        }
    }

    pub(super) fn shown(&self) -> Vec<u8> {
        let (mut shown, mut from) = (Vec::new(), 0);
        for (&end, &open) in self.ends.iter().zip(&self.open) {
            shown.extend_from_slice(&self.template.bytes[from..end]);
            shown.extend_from_slice(if open { b"*\n" } else { b"\n" });
            from = end + 1;
        }
        shown.extend(b"*\n".repeat(self.free_lines));
        shown
    }

    pub(super) fn lines(&self) -> usize {
        self.open.len() + self.free_lines
    }
}

/// The first line of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// Where its `\n` is.
    Ends(usize),
    Unfinished,
    /// Of more than [`MAX_LINE_BYTES`]. Where it ends is not looked for.
    TooLong,
}

impl Line {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        // No further than that, or it would depend on how the bytes were cut.
        match memchr(b'\n', &bytes[..bytes.len().min(MAX_LINE_BYTES + 1)]) {
            Some(end) => Self::Ends(end),
            None if bytes.len() > MAX_LINE_BYTES => Self::TooLong,
            None => Self::Unfinished,
        }
    }
}

/// Whether a line, less the `\r` of its end, is what it must be.
fn agrees(line: &[u8], expected: &[u8], open: bool) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if open { line.starts_with(expected) } else { line == expected }
}

/// Whether bytes without an end of line can still become such a line.
fn may_become(bytes: &[u8], expected: &[u8], open: bool) -> bool {
    match bytes.strip_prefix(expected) {
        Some(_) if open => true,
        Some(rest) => rest.is_empty() || rest == b"\r",
        None => expected.starts_with(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_too_long_as_soon_as_that_many_bytes_have_no_end() {
        let bytes = |at: usize, len: usize| {
            let mut bytes = vec![b'x'; len];
            bytes.get_mut(at).into_iter().for_each(|byte| *byte = b'\n');
            bytes
        };
        let most = MAX_LINE_BYTES;
        // Where the end of the line stands, of how many bytes.
        for (at, len, expected) in [
            (0, 1, "Ends(0)"),
            (most, most + 1, "Ends(most)"),
            (most, most + 9, "Ends(most)"),
            (most + 1, most, "Unfinished"),
            (most + 1, most + 1, "TooLong"),
            (most + 1, most + 9, "TooLong"),
        ] {
            let got = match Line::of(&bytes(at, len)) {
                Line::Ends(0) => "Ends(0)",
                Line::Ends(end) if end == most => "Ends(most)",
                Line::Ends(_) => "Ends",
                Line::Unfinished => "Unfinished",
                Line::TooLong => "TooLong",
            };
            assert_eq!(got, expected, "an end at {at} of {len}");
        }
    }
}

//! Where a request and a reply end: after a line, after some lines, or after a line that says so.
//!
//! Requests are cut by the event loop as any [`Framing`] does, replies by the worker that reads them, both by [`Extent::find`].

use std::fmt;
use std::str::FromStr;

use memchr::{memchr, memchr_iter, memrchr};

use crate::framing::{Found, Framing};

/// Most lines that a request or a reply can be said to have: the number of a slip of the finger is refused.
const MAX_LINES: usize = 1_000_000;

/// Where a request of a client, or a reply of a program, ends. Written as `line`, `lines:N`, `until:TEXT` or `none`, and parsed from
/// the same.
///
/// # Examples
/// ```
/// use tidemill::exec::Extent;
///
/// // Postfix's policy protocol: attributes, and an empty line behind them.
/// assert_eq!("until:".parse(), Ok(Extent::Until(String::new())));
/// assert_eq!("lines:2".parse(), Ok(Extent::Lines(2)));
/// assert!("lines:0".parse::<Extent>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extent {
    /// It is one line.
    Line,
    /// It has so many lines, at least 1.
    Lines(usize),
    /// It ends with the first line that is this text, which belongs to it.
    Until(String),
    /// There is none. For replies only.
    None,
}

/// How far a request or a reply was looked through.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Where the line begins whose end was not found yet.
    pub(super) line: usize,
    /// Up to where its end was looked for.
    scanned: usize,
    /// Lines before it.
    lines: usize,
}

impl Extent {
    /// The end of what begins with `bytes`, behind its last line's terminator. `at` says how far it was looked at, and is kept.
    pub(super) fn find(&self, bytes: &[u8], at: &mut Progress) -> Option<usize> {
        while let Some(end) = memchr(b'\n', &bytes[at.scanned..]).map(|end| at.scanned + end) {
            let line = without_cr(&bytes[at.line..end]);
            at.lines += 1;
            (at.line, at.scanned) = (end + 1, end + 1);
            if self.is_last(line, at.lines) {
                return Some(end + 1);
            }
        }
        at.scanned = bytes.len();
        None
    }

    /// Whether the line of this number, counted from 1, is the last.
    fn is_last(&self, line: &[u8], number: usize) -> bool {
        match self {
            Extent::Line | Extent::None => true,
            Extent::Lines(lines) => number >= *lines,
            Extent::Until(text) => line == text.as_bytes(),
        }
    }
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

impl FromStr for Extent {
    type Err = String;

    fn from_str(text: &str) -> Result<Extent, String> {
        let lines = |number: &str| number.parse().ok().filter(|lines| (1..=MAX_LINES).contains(lines));
        match text.split_once(':') {
            None if text == "line" => Ok(Extent::Line),
            None if text == "none" => Ok(Extent::None),
            Some(("lines", number)) => lines(number)
                .map(Extent::Lines)
                .ok_or_else(|| format!("lines:N needs an N of 1 to {MAX_LINES}")),
            Some(("until", end)) if !end.contains(['\n', '\r']) => Ok(Extent::Until(end.to_owned())),
            Some(("until", _)) => Err("the TEXT of until:TEXT must be one line".to_owned()),
            _ => Err("must be line, lines:N or until:TEXT".to_owned()),
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Extent::Line => f.write_str("line"),
            Extent::Lines(lines) => write!(f, "lines:{lines}"),
            Extent::Until(text) => write!(f, "until:{text}"),
            Extent::None => f.write_str("none"),
        }
    }
}

/// Requests of several lines. Their content has all of them, less the terminator of the last. What is left of one at the end of
/// the stream is dropped.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) extent: Extent,
    pub(super) max_bytes: usize,
}

impl Framing for Requests {
    fn next(&self, bytes: &[u8], scanned: usize, ended: bool) -> Found {
        // Only the last call's progress in bytes is kept; where its last line begins, and the lines before, are told from them quickly.
        let before = &bytes[..scanned];
        let line = memrchr(b'\n', before).map_or(0, |end| end + 1);
        let lines = match self.extent {
            Extent::Lines(_) => memchr_iter(b'\n', before).count(),
            _ => 0,
        };
        let mut at = Progress { line, scanned, lines };
        if let Some(end) = self.extent.find(bytes, &mut at) {
            let content = without_cr(&bytes[..end - 1]).len();
            return if content > self.max_bytes {
                Found::TooLong
            } else {
                Found::Frame { content: 0..content, consumed: end }
            };
        }
        let rest = &bytes[at.line..];
        if ended && !rest.is_empty() && self.extent.is_last(rest, at.lines + 1) {
            return if bytes.len() > self.max_bytes {
                Found::TooLong
            } else {
                Found::Frame { content: 0..bytes.len(), consumed: bytes.len() }
            };
        }
        // The last byte may belong to a terminator.
        if bytes.len() - usize::from(bytes.last() == Some(&b'\r')) > self.max_bytes {
            return Found::TooLong;
        }
        Found::More { scanned: bytes.len() }
    }

    fn max_bytes(&self) -> usize {
        self.max_bytes
    }
}

/// Writes a request as programs get it: each line ends in a line feed, whatever the client ended it with.
pub(super) fn write_lines(content: &[u8], to: &mut Vec<u8>) {
    let mut rest = content;
    while let Some(end) = memchr(b'\n', rest) {
        to.extend_from_slice(without_cr(&rest[..end]));
        to.push(b'\n');
        rest = &rest[end + 1..];
    }
    to.extend_from_slice(rest);
    to.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::verify;

    #[test]
    fn requests_are_independent_of_how_bytes_are_cut() {
        let bytes = b"a=1\r\nb=2\n\r\n\nc\nEND\r\nd\r\r\n\nEND \nEN\nEND";
        for (extent, max_bytes) in [
            (Extent::Line, 100),
            (Extent::Lines(1), 4),
            (Extent::Lines(2), 100),
            (Extent::Lines(3), 7),
            (Extent::Until(String::new()), 100),
            (Extent::Until(String::new()), 8),
            (Extent::Until("END".to_owned()), 100),
            (Extent::Lines(3), 70_000),
            (Extent::Until("END".to_owned()), 70_000),
        ] {
            verify(&Requests { extent, max_bytes }, bytes);
        }
    }

    #[test]
    fn a_request_ends_where_its_extent_says() {
        let frames = |extent: &str, bytes: &[u8]| {
            let requests = Requests { extent: extent.parse().unwrap(), max_bytes: 9 };
            let (frames, too_long) = verify(&requests, bytes);
            (frames.iter().map(|frame| frame.escape_ascii().to_string()).collect::<Vec<_>>(), too_long)
        };
        let of = |frames: &[&str], too_long| (frames.iter().map(|it| (*it).to_owned()).collect(), too_long);
        assert_eq!(frames("until:", b"a\r\nb\n\n\nc\n"), of(&["a\\r\\nb\\n", ""], false));
        assert_eq!(frames("until:.", b".a\n.\r\n..\n.\n"), of(&[".a\\n.", "..\\n."], false));
        assert_eq!(frames("lines:2", b"a\nb\r\nc\nd\n"), of(&["a\\nb", "c\\nd"], false));
        assert_eq!(frames("lines:2", b"a\nb\nc\n"), of(&["a\\nb"], false));
        assert_eq!(frames("lines:2", b"1234\n6789\r\n1234\n67890\n"), of(&["1234\\n6789"], true));
    }

    #[test]
    fn programs_get_line_feeds() {
        for (content, written) in [
            (&b""[..], &b"\n"[..]),
            (b"a", b"a\n"),
            (b"a\r\nb\r\n", b"a\nb\n\n"),
            (b"\ra\n\nb", b"\ra\n\nb\n"),
        ] {
            let mut to = Vec::new();
            write_lines(content, &mut to);
            assert_eq!(to, written, "{}", content.escape_ascii());
        }
    }

    #[test]
    fn an_extent_is_written_as_it_is_parsed() {
        for text in ["line", "lines:1", "lines:1000000", "until:", "until:.", "until:a:b c", "none"] {
            assert_eq!(text.parse::<Extent>().map(|extent| extent.to_string()).as_deref(), Ok(text));
        }
        for text in
            ["", "lines", "lines:", "lines:0", "lines:-1", "lines:1000001", "until", "until:a\nb", "word:3"]
        {
            text.parse::<Extent>().unwrap_err();
        }
    }
}

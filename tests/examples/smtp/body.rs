//! How the bytes behind `DATA` become pieces of a message.
//!
//! Only CRLF ends a line here: with a line feed alone, what one server takes for one message another takes for two.

use memchr::memmem;
use tidemill::framing::{Found, Framing};

/// Bytes of a message that are handled together, and so most that a line of it may have.
const MAX_PIECE_BYTES: usize = 64 << 10;

/// Cuts a message into pieces that begin and end with lines. The last one ends with the dot.
pub(crate) struct Body;

impl Framing for Body {
    fn next(&self, bytes: &[u8], scanned: usize, _: bool) -> Found {
        let piece = &bytes[..bytes.len().min(MAX_PIECE_BYTES)];
        let frame = |end| Found::Frame { content: 0..end, consumed: end };
        if piece.starts_with(b".\r\n") {
            return frame(3);
        }
        // The end may have begun in the last four of them.
        let from = scanned.saturating_sub(4);
        match memmem::find(&piece[from..], b"\r\n.\r\n") {
            Some(at) => frame(from + at + 5),
            None if piece.len() < MAX_PIECE_BYTES => Found::More { scanned: piece.len() },
            None => memmem::rfind(piece, b"\r\n").map_or(Found::TooLong, |at| frame(at + 2)),
        }
    }

    fn max_bytes(&self) -> usize {
        MAX_PIECE_BYTES
    }
}

/// Whether the message ends with this piece.
pub(crate) fn is_last(piece: &[u8]) -> bool {
    piece == b".\r\n" || piece.ends_with(b"\r\n.\r\n")
}

/// The text of a piece: a dot at the begin of a line was put there by the client.
pub(crate) fn text(piece: &[u8]) -> Vec<u8> {
    let piece = if is_last(piece) { &piece[..piece.len() - 3] } else { piece };
    let (mut text, mut from) = (Vec::with_capacity(piece.len()), usize::from(piece.starts_with(b".")));
    for at in memmem::find_iter(piece, b"\r\n.") {
        text.extend_from_slice(&piece[from..at + 2]);
        from = at + 3;
    }
    text.extend_from_slice(&piece[from..]);
    text
}

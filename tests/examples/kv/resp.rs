//! How Redis clients write requests: an array of bulk strings, or a line of words (an inline command).

use tidemill::framing::{Found, Framing};

/// Bytes of the words of one request at the most: values of megabytes, while a few clients do not fill the memory.
const MAX_WORDS_BYTES: usize = 16 << 20;
/// Words at the most. Each read passes over those that are there until all are: for so many it takes microseconds.
const MAX_WORDS: usize = 1024;
/// Bytes of an inline command at the most, its newline included: as in Redis.
const MAX_INLINE_BYTES: usize = 64 << 10;
/// Bytes of a length and its line end at the most: more than any has.
const MAX_LENGTH_BYTES: usize = 24;

/// Why bytes begin no request, and after how many of them that is known, whatever follows.
pub(crate) type Malformed = (&'static str, usize);

/// Requests are frames. So is the begin of what is none: its handler tells why, and closes.
pub(crate) struct Resp;

impl Framing for Resp {
    fn next(&self, bytes: &[u8], scanned: usize, _: bool) -> Found {
        match words(bytes, scanned, |_| ()) {
            Ok(None) => Found::More { scanned: bytes.len() },
            Ok(Some(end)) | Err((_, end)) => Found::Frame { content: 0..end, consumed: end },
        }
    }

    fn max_bytes(&self) -> usize {
        // Each word has a sign, a length and a line end, and all of them have a sign and a length.
        MAX_WORDS_BYTES + (MAX_WORDS + 1) * (MAX_LENGTH_BYTES + 3)
    }
}

/// Gives each word of the request at the begin of `bytes`, and tells where the request ends. `None`: it is not complete. An
/// inline command does not end among the bytes that were `scanned` before.
pub(crate) fn words<'a>(
    bytes: &'a [u8],
    scanned: usize,
    mut give: impl FnMut(&'a [u8]),
) -> Result<Option<usize>, Malformed> {
    if bytes[0] != b'*' {
        let line = &bytes[..bytes.len().min(MAX_INLINE_BYTES)];
        let Some(end) = memchr::memchr(b'\n', &line[scanned..]) else {
            let full = line.len() == MAX_INLINE_BYTES;
            return if full { Err(("too big inline request", line.len())) } else { Ok(None) };
        };
        line[..scanned + end].split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).for_each(give);
        return Ok(Some(scanned + end + 1));
    }
    let Some((count, mut at)) = length(bytes, 1, MAX_WORDS, "invalid multibulk length")? else {
        return Ok(None);
    };
    let mut room = MAX_WORDS_BYTES;
    for _ in 0..count {
        match bytes.get(at) {
            Some(b'$') => (),
            Some(_) => return Err(("expected '$'", at + 1)),
            None => return Ok(None),
        }
        let Some((len, begin)) = length(bytes, at + 1, room, "invalid bulk length")? else {
            return Ok(None);
        };
        let end = begin + len;
        match bytes.get(end..end + 2) {
            Some(b"\r\n") => give(&bytes[begin..end]),
            Some(_) => return Err(("expected a line end behind a bulk", end + 2)),
            None => return Ok(None),
        }
        (room, at) = (room - len, end + 2);
    }
    Ok(Some(at))
}

/// The length that is written at `begin`, and where its line ends. `None`: it is not complete.
fn length(
    bytes: &[u8],
    begin: usize,
    most: usize,
    why: &'static str,
) -> Result<Option<(usize, usize)>, Malformed> {
    let line = &bytes[begin..bytes.len().min(begin + MAX_LENGTH_BYTES)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        return if line.len() < MAX_LENGTH_BYTES { Ok(None) } else { Err((why, begin + line.len())) };
    };
    let number = str::from_utf8(&line[..end]).ok().and_then(|text| text.strip_suffix('\r')?.parse().ok());
    let end = begin + end + 1;
    number.filter(|number| *number <= most).map(|number| Some((number, end))).ok_or((why, end))
}

//! How bytes become requests of several lines.
//!
//! A frame is a whole request, or what came of one up to the line that does not fit: so `HELO` and `KILL_SERVICE` count where a
//! request begins and nowhere else. A line fits if it has its field's name; values are looked at when the request is whole.

use tidemill::framing::{Found, Framing, Lines};

/// Most bytes of a request, without the line ending or empty line that ends it: as many as a line may have by default.
const MAX_REQUEST_BYTES: usize = 64 << 10;

/// The fields of each request, in their order.
const FORMS: [&[&str]; 4] = [
    &["JOIN_CHATROOM", "CLIENT_IP", "PORT", "CLIENT_NAME"],
    &["LEAVE_CHATROOM", "JOIN_ID", "CLIENT_NAME"],
    &["CHAT", "JOIN_ID", "CLIENT_NAME", "MESSAGE"],
    &["DISCONNECT", "PORT", "CLIENT_NAME"],
];

/// What a request has instead of being done: a code and a description.
pub(crate) type Fault = (u8, &'static str);
pub(crate) const MALFORMED: Fault = (1, "malformed request");

/// The value of a field, if `line` is this one.
fn value<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

/// The fields of the request that `frame` begins with.
fn form(frame: &[u8]) -> &'static [&'static str] {
    FORMS.into_iter().find(|form| value(frame, form[0]).is_some()).unwrap_or_default()
}

/// Which request a frame is, and the values of its fields. The last one of CHAT is all lines of the text, as they came.
pub(crate) fn fields(frame: &[u8]) -> Result<(&'static str, [&[u8]; 4]), Fault> {
    let form = form(frame);
    let mut values = [&b""[..]; 4];
    let mut lines = frame.splitn(form.len(), |byte| *byte == b'\n');
    for (at, name) in form.iter().enumerate() {
        let line = lines.next().ok_or(MALFORMED)?;
        // That of the last line is gone, or belongs to the text.
        let line = line.strip_suffix(b"\r").filter(|_| at + 1 < form.len()).unwrap_or(line);
        values[at] = value(line, name).ok_or(MALFORMED)?;
    }
    Ok((form.first().ok_or((4, "unknown request"))?, values))
}

/// Cuts requests.
pub(crate) struct Requests;

impl Framing for Requests {
    fn next(&self, bytes: &[u8], scanned: usize, ended: bool) -> Found {
        let is_long = bytes.len() > MAX_REQUEST_BYTES + b"\r\n".len();
        let more = if is_long { Found::TooLong } else { Found::More { scanned: bytes.len() } };
        if !ended && memchr::memchr(b'\n', &bytes[scanned..]).is_none() {
            return more;
        }
        let (mut fields, mut at) = (form(bytes).iter(), 0);
        let mut end = loop {
            // A last line without its ending counts, if there is one.
            let line = Lines::new(usize::MAX).next(&bytes[at..], 0, ended && at < bytes.len());
            let Found::Frame { content, consumed } = line else { return more };
            let (line, end) = (&bytes[at..][..content.end], at + content.end);
            at += consumed;
            match fields.next() {
                Some(&"MESSAGE") if value(line, "MESSAGE").is_some() => break None,
                Some(name) if value(line, name).is_some() && fields.len() > 0 => {}
                _ => break Some(end),
            }
        };
        if end.is_none() {
            // The text, up to an empty line.
            let from = at.max(scanned);
            let is_empty = |at: &usize| bytes[..*at].ends_with(b"\n") || bytes[..*at].ends_with(b"\n\r");
            let mut line_ends = memchr::memchr_iter(b'\n', &bytes[from..]).map(|end| from + end);
            let Some(last) = line_ends.find(is_empty) else { return more };
            (end, at) = (Some(last - usize::from(bytes[last - 1] == b'\r')), last + 1);
        }
        match end {
            Some(end) if end <= MAX_REQUEST_BYTES => Found::Frame { content: 0..end, consumed: at },
            _ => Found::TooLong,
        }
    }

    fn max_bytes(&self) -> usize {
        MAX_REQUEST_BYTES
    }
}

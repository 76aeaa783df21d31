//! As much of HTTP/1.1 as it takes to be asked by GET and HEAD: where a request ends, what it asks for, and how an answer begins.
//!
//! Requests have no body here: one that announces a body is refused, and the connection closed, as what follows could be taken for
//! a request. Pure: no I/O, no clock.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::config::MAX_HEAD_BYTES;
use crate::framing::{Found, Framing};

/// Most header fields of a request: browsers send some fifteen.
const MAX_FIELDS: usize = 64;

/// Cuts bytes into heads of requests. What is none is a frame without content, behind which the connection is closed.
#[derive(Debug)]
pub(super) struct Heads;

impl Framing for Heads {
    fn next(&self, bytes: &[u8], _: usize, _: bool) -> Found {
        let shown = &bytes[..bytes.len().min(MAX_HEAD_BYTES)];
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        match httparse::Request::new(&mut fields).parse(shown) {
            Ok(httparse::Status::Complete(end)) => Found::Frame { content: 0..end, consumed: end },
            // The parser looks at all of it again, which of so few bytes it may.
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => {
                Found::More { scanned: bytes.len() }
            }
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Found::TooLong,
            Err(_) => Found::Frame { content: 0..0, consumed: 1 },
        }
    }

    fn max_bytes(&self) -> usize {
        MAX_HEAD_BYTES
    }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked<'a> {
    pub(super) path: &'a str,
    /// Behind the question mark; empty where there is none.
    pub(super) query: &'a str,
    /// Only the head of the answer is wanted.
    pub(super) head_only: bool,
    /// The connection is to be closed behind the answer.
    pub(super) close: bool,
}

/// How an answer begins, or why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    Timeout,
    /// The name that it was reached by is not the server's.
    Misdirected,
    TooLong,
    Failed,
    Unavailable,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::Timeout => "408 Request Timeout",
            Status::Misdirected => "421 Misdirected Request",
            Status::TooLong => "431 Request Header Fields Too Large",
            Status::Failed => "500 Internal Server Error",
            Status::Unavailable => "503 Service Unavailable",
        }
    }
}

/// Reads a head that [`Heads`] has found. `by_any_name`: whatever name the server was reached by.
///
/// # Errors
/// How it is refused; the connection is to be closed.
pub(super) fn read(head: &[u8], by_any_name: bool) -> Result<Asked<'_>, Status> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    if !request.parse(head).is_ok_and(|status| status.is_complete()) {
        return Err(Status::BadRequest);
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Status::BadRequest);
    };
    let head_only = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(Status::MethodNotAllowed),
    };
    let (mut hosts, mut is_ours, mut close) = (0, true, minor == 0);
    for field in request.headers.iter() {
        let is = |name| field.name.eq_ignore_ascii_case(name);
        let has = |word: &[u8]| {
            field.value.split(|byte| *byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(word))
        };
        if is("host") {
            hosts += 1;
            is_ours &= is_local(field.value);
        } else if is("connection") {
            close = has(b"close") || close && !has(b"keep-alive");
        } else if is("transfer-encoding") || is("content-length") && field.value != b"0" {
            return Err(Status::BadRequest);
        }
    }
    if hosts > 1 || hosts == 0 && minor > 0 {
        return Err(Status::BadRequest);
    }
    // In the form for proxies the host stands before the path.
    let path = match target.strip_prefix("http://") {
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            is_ours &= is_local(host.as_bytes());
            path
        }
        None => target,
    };
    if !(is_ours || by_any_name) {
        return Err(Status::Misdirected);
    }
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    Ok(Asked { path: if path.is_empty() { "/" } else { path }, query, head_only, close })
}

/// Whether that is what a server on the loopback interface is reached by: an address, `localhost` or a name within that, with a port or
/// without. Any other name is somebody else's, who may let it stand for 127.0.0.1 to have a browser here ask for his page (DNS
/// rebinding). None at all is nobody's.
fn is_local(host: &[u8]) -> bool {
    let Ok(host) = str::from_utf8(host) else { return false };
    let host = host.trim();
    if let Some(bracketed) = host.strip_prefix('[') {
        return bracketed.split_once(']').is_some_and(|(ip, _)| ip.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.split(':').next().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name.is_empty() || name == "localhost" || name.ends_with(".localhost") || name.parse::<Ipv4Addr>().is_ok()
}

/// What an answer consists of.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// A line of text.
    pub(super) fn text(status: Status, text: &str) -> Answer {
        Answer { status, content_type: "text/plain; charset=utf-8", body: format!("{text}\n").into_bytes() }
    }

    /// The status as a line of text.
    pub(super) fn refusal(status: Status) -> Answer {
        match status {
            Status::Misdirected => Answer::text(
                status,
                "Misdirected Request: on the loopback interface this is answered by the name localhost or by address only",
            ),
            status => Answer::text(status, &status.as_str()[4..]),
        }
    }

    /// As it goes over the wire.
    pub(super) fn bytes(&self, head_only: bool, close: bool) -> Vec<u8> {
        let Answer { status, content_type, body } = self;
        let mut bytes = format!(
            "HTTP/1.1 {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n",
            status.as_str(),
            body.len()
        )
        .into_bytes();
        if *status == Status::MethodNotAllowed {
            bytes.extend_from_slice(b"Allow: GET, HEAD\r\n");
        }
        if content_type.starts_with("text/html") {
            // The page loads nothing from anywhere else.
            bytes.extend_from_slice(
                b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                  connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n",
            );
        }
        if close {
            bytes.extend_from_slice(b"Connection: close\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        if !head_only {
            bytes.extend_from_slice(body);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::verify;

    #[test]
    fn heads_are_found_however_they_come() {
        let (frames, too_long) = verify(
            &Heads,
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\nHEAD /x?y=1 HTTP/1.0\n\nGET / HTTP/1.1\r\n",
        );
        assert_eq!(frames, [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"\r\nHEAD /x?y=1 HTTP/1.0\n\n"]);
        assert!(!too_long);
    }

    #[test]
    fn rubbish_is_a_frame_without_content_as_soon_as_it_is_known() {
        for rubbish in [
            &b"\x16\x03\x01\x02\x00"[..],
            b"GET /\x00 HTTP/1.1\r\n",
            b"GET / HTTQ",
            b"GET / HTTP/1.1\r\nno field\r\n",
        ] {
            let found = Heads.next(rubbish, 0, false);
            assert_eq!(found, Found::Frame { content: 0..0, consumed: 1 }, "{}", rubbish.escape_ascii());
        }
    }

    #[test]
    fn a_head_of_8_kib_is_taken_and_one_more_byte_is_too_long() {
        let head = |bytes: usize| {
            let mut head = b"GET / HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
            head.resize(bytes - 4, b'x');
            head.extend_from_slice(b"\r\n\r\n");
            head
        };
        let bytes = MAX_HEAD_BYTES;
        assert_eq!(Heads.next(&head(bytes), 0, false), Found::Frame { content: 0..bytes, consumed: bytes });
        assert_eq!(Heads.next(&head(bytes + 1), 0, false), Found::TooLong);
        let fields = "X: y\r\n".repeat(MAX_FIELDS + 1);
        assert_eq!(Heads.next(format!("GET / HTTP/1.1\r\n{fields}").as_bytes(), 0, false), Found::TooLong);
    }

    #[test]
    fn what_is_asked_for_is_read_or_refused() {
        let asked = |path, query, head_only, close| Ok(Asked { path, query, head_only, close });
        for (head, expected) in [
            ("GET /a?b=1 HTTP/1.1\r\nHost: h\r\n\r\n", asked("/a", "b=1", false, false)),
            ("HEAD /a HTTP/1.1\r\nhost: h\r\nConnection: x, Close\r\n\r\n", asked("/a", "", true, true)),
            ("GET http://h:1/a HTTP/1.1\r\nHost: h\r\n\r\n", asked("/a", "", false, false)),
            ("GET http://h?q HTTP/1.1\r\nHost: h\r\n\r\n", asked("/", "q", false, false)),
            ("GET / HTTP/1.0\r\n\r\n", asked("/", "", false, true)),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", asked("/", "", false, false)),
            ("GET / HTTP/1.1\r\n\r\n", Err(Status::BadRequest)),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Err(Status::BadRequest)),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", asked("/", "", false, false)),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", Err(Status::BadRequest)),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Err(Status::BadRequest)),
            ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", Err(Status::MethodNotAllowed)),
            ("", Err(Status::BadRequest)),
        ] {
            assert_eq!(read(head.as_bytes(), true), expected, "{head}");
        }
    }
    #[test]
    fn on_the_loopback_interface_no_name_of_others_is_answered() {
        let refused = |line: &str, host: &str| {
            let head = format!("GET {line} HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert!(read(head.as_bytes(), true).is_ok(), "{head}");
            read(head.as_bytes(), false) == Err(Status::Misdirected)
        };
        let ours = [
            "localhost",
            "LocalHost:9100",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1",
            "127.0.0.1:9100",
            "10.0.0.7",
        ];
        for host in ours.into_iter().chain(["[::1]", "[::1]:9100", "[::ffff:127.0.0.1]:9100", ""]) {
            assert!(!refused("/", host), "{host}");
        }
        let theirs = [
            "evil.example",
            "evil.example:9100",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
        ];
        for host in theirs.into_iter().chain([
            "127.0.0.1@evil",
            "[evil]",
            "[::1",
            "\u{e9}",
            "localhost, evil",
            "tidemill.default.svc:9100",
        ]) {
            assert!(refused("/", host), "{host}");
        }
        assert!(refused("http://evil.example/", "localhost") && !refused("http://localhost:1/", "localhost"));
        assert!(read(b"GET / HTTP/1.0\r\n\r\n", false).is_ok(), "as health checks ask that name no host");
    }
}

//! The HELO protocol: a line to what it asks for, a result to reply bytes. No I/O.

use std::net::IpAddr;

use crate::address::Address;
use crate::service::Kind;

const HELO: &[u8] = b"HELO ";
pub(crate) const KILL: &[u8] = b"KILL_SERVICE";

/// Tells what a line of the HELO protocol is.
#[inline]
pub fn classify(line: &[u8]) -> Kind {
    if line.starts_with(HELO) {
        Kind::Request
    } else if line == KILL {
        Kind::Stop
    } else {
        Kind::Ignored
    }
}

/// The text of a `HELO` line without its trailing white space, or `None` for any other line.
#[inline]
pub fn helo_text(line: &[u8]) -> Option<&[u8]> {
    line.strip_prefix(HELO).map(trim_end)
}

/// Appends the reply to `HELO text`; `tail` is from [`render_tail`].
#[inline(always)]
pub fn render_helo(text: &[u8], tail: &[u8], reply: &mut Vec<u8>) {
    reply.reserve(HELO.len() + text.len() + tail.len());
    reply.extend_from_slice(HELO);
    reply.extend_from_slice(text);
    reply.extend_from_slice(tail);
}

/// What a server tells clients instead of the address that they reached, where it is known to them by another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advertise {
    /// Instead of the IP address.
    pub ip: Option<IpAddr>,
    /// Instead of the port.
    pub port: Option<u16>,
}

/// What follows the text in each reply: `\nIP:<ip>\nPort:<port>\nStudentID:<id>\n`.
///
/// An IPv4 address mapped into IPv6, as a socket on `::` has it, is written as the IPv4 address that the client reached; a
/// Unix socket has `IP:unix` and `Port:0`.
pub fn render_tail(local: &Address, advertise: Advertise, student_id: &str) -> Vec<u8> {
    let ip = advertise.ip.or_else(|| local.ip()).map_or_else(|| "unix".to_owned(), |ip| ip.to_string());
    let port = advertise.port.unwrap_or_else(|| local.port());
    format!("\nIP:{ip}\nPort:{port}\nStudentID:{student_id}\n").into_bytes()
}

/// White space is space, `\t`, `\r`, `\x0b` and `\x0c`; `u8::is_ascii_whitespace` leaves `\x0b` out.
fn trim_end(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t' | b'\r' | b'\x0b' | b'\x0c'] = text {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helo_is_matched_exactly() {
        for line in [&b"HELO "[..], b"HELO x", b"HELO  x", b"HELO KILL_SERVICE"] {
            assert_eq!(classify(line), Kind::Request, "{}", line.escape_ascii());
        }
        for line in [&b""[..], b"HELO", b"helo x", b" HELO x", b"HELO\tx", b"Helo x"] {
            assert_eq!(classify(line), Kind::Ignored, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn kill_service_is_the_whole_line() {
        assert_eq!(classify(b"KILL_SERVICE"), Kind::Stop);
        for line in [&b"KILL_SERVICE "[..], b" KILL_SERVICE", b"KILL_SERVICES", b"kill_service"] {
            assert_eq!(classify(line), Kind::Ignored, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn text_keeps_leading_blanks_and_loses_trailing_white_space() {
        assert_eq!(helo_text(b"HELO   a \t b \t\r\x0b\x0c"), Some(&b"  a \t b"[..]));
        assert_eq!(helo_text(b"HELO "), Some(&b""[..]));
        assert_eq!(helo_text(b"HELO    "), Some(&b""[..]));
        assert_eq!(helo_text(b"HELO \xff\x00\x85\xa0"), Some(&b"\xff\x00\x85\xa0"[..]));
        assert_eq!(helo_text(b"HELO"), None);
    }

    #[test]
    fn the_tail_names_the_address_that_was_reached() {
        let known_as = |local: &str, ip: Option<&str>, port: Option<u16>| {
            let advertise = Advertise { ip: ip.map(|ip| ip.parse().unwrap()), port };
            String::from_utf8(render_tail(&local.parse().unwrap(), advertise, "16336617")).unwrap()
        };
        let tail = |local: &str, ip: Option<&str>| known_as(local, ip, None);
        assert_eq!(tail("10.0.0.7:8000", None), "\nIP:10.0.0.7\nPort:8000\nStudentID:16336617\n");
        assert_eq!(tail("[::1]:80", None), "\nIP:::1\nPort:80\nStudentID:16336617\n");
        assert_eq!(tail("[::ffff:10.0.0.7]:80", None), "\nIP:10.0.0.7\nPort:80\nStudentID:16336617\n");
        assert_eq!(tail("10.0.0.7:80", Some("1.2.3.4")), "\nIP:1.2.3.4\nPort:80\nStudentID:16336617\n");
        assert_eq!(known_as("10.0.0.7:80", None, Some(9)), "\nIP:10.0.0.7\nPort:9\nStudentID:16336617\n");
    }
}

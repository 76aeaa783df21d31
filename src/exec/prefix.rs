//! What goes before each request: a text with places for what is known of the client and of the request.

use crate::address::Address;
use crate::service::Request;

/// A parsed template.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefix(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Peer,
    PeerIp,
    Connection,
    Request,
}

impl Prefix {
    /// `{peer}`, `{peer_ip}`, `{connection}` and `{request}` are places, `{{` and `}}` are braces.
    ///
    /// # Errors
    /// What it must be.
    pub(super) fn parse(template: &str) -> Result<Prefix, String> {
        let (mut parts, mut text, mut rest) = (Vec::new(), String::new(), template);
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            text.push_str(before);
            if let Some(behind) = from.strip_prefix("{{").or_else(|| from.strip_prefix("}}")) {
                text.push_str(&from[..1]);
                rest = behind;
                continue;
            }
            let place = from.strip_prefix('{').and_then(|from| from.split_once('}'));
            let (part, behind) = match place {
                Some(("peer", behind)) => (Part::Peer, behind),
                Some(("peer_ip", behind)) => (Part::PeerIp, behind),
                Some(("connection", behind)) => (Part::Connection, behind),
                Some(("request", behind)) => (Part::Request, behind),
                _ => {
                    return Err(
                        "a text with {peer}, {peer_ip}, {connection} and {request}, where {{ and }} are braces".to_owned()
                    );
                }
            };
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text)));
            }
            parts.push(part);
            rest = behind;
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Prefix(parts))
    }

    /// Writes it for `request`, which is the one of this `number`.
    pub(super) fn write(&self, request: &Request<'_>, number: impl FnOnce() -> u64, to: &mut Vec<u8>) {
        let mut number = Some(number);
        let mut known = 0;
        for part in &self.0 {
            match part {
                Part::Text(text) => to.extend_from_slice(text.as_bytes()),
                Part::Peer => write_value(&request.peer_addr().to_string(), to),
                Part::PeerIp => write_value(&peer_ip(request.peer_addr()), to),
                Part::Connection => write_value(&request.connection().id().to_string(), to),
                Part::Request => {
                    known = number.take().map_or(known, |number| number());
                    write_value(&known.to_string(), to);
                }
            }
        }
    }
}

fn peer_ip(address: &Address) -> String {
    match address {
        Address::Unix(_) => "unix".to_owned(),
        // The name of who has none.
        _ => address.ip().map_or_else(|| address.to_string(), |ip| ip.to_string()),
    }
}

/// A value in which no control character is left: one would end the line, or do something to a terminal.
fn write_value(value: &str, to: &mut Vec<u8>) {
    let plain: String = value.chars().map(|char| if char.is_control() { '?' } else { char }).collect();
    to.extend_from_slice(plain.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_texts_and_places() {
        let parts = |template| Prefix::parse(template).map(|prefix| prefix.0);
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(parts(""), Ok(vec![]));
        assert_eq!(
            parts("{peer_ip} {{{request}}}\t"),
            Ok(vec![Part::PeerIp, text(" {"), Part::Request, text("}\t")])
        );
        assert_eq!(parts("{peer}{connection}"), Ok(vec![Part::Peer, Part::Connection]));
        for wrong in ["{", "}", "{}", "{user}", "{peer", "peer}", "{peer }"] {
            parts(wrong).unwrap_err();
        }
    }

    #[test]
    fn no_control_character_of_a_value_is_written() {
        let mut written = Vec::new();
        write_value("unix:/tmp/a\nb\r\0\u{85}c", &mut written);
        assert_eq!(written, b"unix:/tmp/a?b???c");
    }
}

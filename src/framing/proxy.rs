//! The header of the PROXY protocol, with which a load balancer tells for whom it connects: version 1, a line, and version 2, bytes.
//!
//! It is the first frame of a connection from a peer that is said to send one (`Config::proxy_from`); what is behind it is framed
//! as the service says. Strict where a mistake could be taken for somebody else's address: whatever is not exactly a header
//! is none, as soon as that can be told. Pure, and fuzzed (`fuzzing::proxy`).
//!
//! Own code, as the crate for it (`ppp`) leaves out what the contract asks for: it verifies no checksum, tells no limit, and
//! allocates for each header.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::str::FromStr;

/// Longest header that is accepted, in bytes. Addresses take 52 at the most; the rest is for what balancers add, of which the
/// longest is a client's certificate name.
pub(crate) const MAX_HEADER_BYTES: usize = 4 << 10;
/// Longest line of version 1 with its end, in bytes, by the protocol.
const MAX_LINE_BYTES: usize = 107;
/// What version 1 begins with.
const V1: &[u8] = b"PROXY ";
/// What version 2 begins with.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of version 2 before the addresses: the above, version and command, family and transport, and a length of two bytes.
const V2_FIXED_BYTES: usize = 16;
/// A record of version 2 with a checksum over all of the header: its type and the length of its value.
const CRC32C: u8 = 3;
const CRC32C_BYTES: usize = 4;

/// What stands at the begin of the bytes of a connection that has to begin with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// It may be one, but is not complete.
    More,
    /// A whole one, of `consumed` bytes.
    Whole {
        consumed: usize,
        /// `None`: it names nobody, as the balancer speaks for itself or does not know.
        from_to: Option<FromTo>,
    },
    /// It is none, or not a good one.
    Bad,
}

/// Where the client comes from, and the address that it reached at the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FromTo {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

impl Header {
    /// Looks for a header at the begin of `bytes`.
    pub(crate) fn read(bytes: &[u8]) -> Header {
        let begins = |signature: &[u8]| {
            let len = bytes.len().min(signature.len());
            bytes[..len] == signature[..len]
        };
        if begins(V1) {
            read_v1(bytes)
        } else if begins(V2) {
            read_v2(bytes).unwrap_or(Header::Bad)
        } else {
            Header::Bad
        }
    }
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n`
fn read_v1(bytes: &[u8]) -> Header {
    let bytes = &bytes[..bytes.len().min(MAX_LINE_BYTES)];
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return if bytes.len() < MAX_LINE_BYTES { Header::More } else { Header::Bad };
    };
    let line = bytes[..end].strip_prefix(V1).and_then(|line| line.strip_suffix(b"\r"));
    let Some(line) = line.and_then(|line| std::str::from_utf8(line).ok()) else { return Header::Bad };
    let whole = |from_to| Header::Whole { consumed: end + 1, from_to };
    let mut words = line.split(' ');
    match words.next() {
        Some("UNKNOWN") => whole(None),
        Some("TCP4") => from_to::<Ipv4Addr>(words).map_or(Header::Bad, |from_to| whole(Some(from_to))),
        Some("TCP6") => from_to::<Ipv6Addr>(words).map_or(Header::Bad, |from_to| whole(Some(from_to))),
        _ => Header::Bad,
    }
}

/// The four words behind the family, and no other.
fn from_to<'a, Ip>(mut words: impl Iterator<Item = &'a str>) -> Option<FromTo>
where
    Ip: FromStr,
    SocketAddr: From<(Ip, u16)>,
{
    let from: Ip = words.next()?.parse().ok()?;
    let to: Ip = words.next()?.parse().ok()?;
    let (from_port, to_port) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then(|| FromTo { from: (from, from_port).into(), to: (to, to_port).into() })
}

/// Decimal, without sign or leading zeros.
fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (digits && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok()).flatten()
}

/// `None`: it is bad.
fn read_v2(bytes: &[u8]) -> Option<Header> {
    if bytes.len() < V2_FIXED_BYTES {
        // What is known of it has to be good.
        let command = bytes.get(V2.len()).is_none_or(|byte| matches!(byte, 0x20 | 0x21));
        return command.then_some(Header::More);
    }
    let (command, family) = (bytes[12], bytes[13]);
    let consumed = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if !matches!(command, 0x20 | 0x21) || consumed > MAX_HEADER_BYTES {
        return None;
    }
    let Some(header) = bytes.get(..consumed) else { return Some(Header::More) };
    let body = &header[V2_FIXED_BYTES..];
    if command == 0x20 {
        // The balancer asks for itself, as for its health checks: the rest means nothing.
        return Some(Header::Whole { consumed, from_to: None });
    }
    let (from_to, records) = match family {
        // Nothing is known, not even how long what is not known would be.
        0x00 | 0x01 => (None, None),
        0x11 => {
            let (addresses, records) = body.split_first_chunk::<12>()?;
            let [a, b, c, d, e, f, g, h, from @ .., to0, to1] = *addresses;
            let from = SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes(from));
            let to = SocketAddrV4::new(Ipv4Addr::new(e, f, g, h), u16::from_be_bytes([to0, to1]));
            (Some(FromTo { from: from.into(), to: to.into() }), Some(records))
        }
        0x21 => {
            let (from, rest) = body.split_first_chunk::<16>()?;
            let (to, rest) = rest.split_first_chunk::<16>()?;
            let ([from0, from1, to0, to1], records) = rest.split_first_chunk::<4>()?;
            let address =
                |ip: [u8; 16], port| SocketAddrV6::new(Ipv6Addr::from(ip), u16::from_be_bytes(port), 0, 0);
            let (from, to) = (address(*from, [*from0, *from1]), address(*to, [*to0, *to1]));
            (Some(FromTo { from: from.into(), to: to.into() }), Some(records))
        }
        // A Unix socket at the balancer: its path means nothing here, and it is not one of ours.
        0x31 => (None, Some(body.split_first_chunk::<216>()?.1)),
        _ => return None,
    };
    let is_sound = records.is_none_or(|records| are_sound(records, header));
    is_sound.then_some(Header::Whole { consumed, from_to })
}

/// Whether the records at the end of `header` are whole, and its checksum right, if it has one.
fn are_sound(mut records: &[u8], header: &[u8]) -> bool {
    while let Some(([kind, len0, len1], rest)) = records.split_first_chunk::<3>() {
        let len = usize::from(u16::from_be_bytes([*len0, *len1]));
        let Some((value, behind)) = rest.split_at_checked(len) else { return false };
        if *kind == CRC32C {
            let at = header.len() - rest.len();
            let told = value.first_chunk::<CRC32C_BYTES>().filter(|_| len == CRC32C_BYTES);
            // Of the header as it is while the checksum is not there yet.
            let behind = &header[at + len..];
            if told.is_none_or(|told| {
                crc32c([&header[..at], &[0; CRC32C_BYTES], behind]) != u32::from_be_bytes(*told)
            }) {
                return false;
            }
        }
        records = behind;
    }
    records.is_empty()
}

/// The checksum of Castagnoli, bit by bit: a header is short, and few have one.
fn crc32c<const N: usize>(parts: [&[u8]; N]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let bytes = parts.into_iter().flatten();
    !bytes.fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (REVERSED_POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(consumed: usize, from_to: Option<(&str, &str)>) -> Header {
        let from_to =
            from_to.map(|(from, to)| FromTo { from: from.parse().unwrap(), to: to.parse().unwrap() });
        Header::Whole { consumed, from_to }
    }

    /// A header of version 2.
    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &len, body].concat()
    }

    const ADDRESSES: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 4, 1, 0xbb];

    fn with_checksum() -> Vec<u8> {
        let mut header =
            v2(0x21, 0x11, &[&ADDRESSES[..], &[4, 0, 1, b'x', CRC32C, 0, 4, 0, 0, 0, 0]].concat());
        let crc = crc32c([&header]).to_be_bytes();
        let at = header.len() - CRC32C_BYTES;
        header[at..].copy_from_slice(&crc);
        header
    }

    #[test]
    fn the_line_of_version_1_names_both_sides() {
        for (line, from_to) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", Some(("192.0.2.1:56324", "192.0.2.2:443"))),
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n",
                Some(("255.255.255.255:65535", "255.255.255.255:0")),
            ),
            ("PROXY TCP6 2001:db8::1 ::1 1 2\r\n", Some(("[2001:db8::1]:1", "[::1]:2"))),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN anything at all\r\n", None),
        ] {
            let bytes = [line.as_bytes(), b"HELO x\n"].concat();
            assert_eq!(Header::read(&bytes), whole(line.len(), from_to), "{line}");
            for len in 0..line.len() {
                assert_eq!(Header::read(&bytes[..len]), Header::More, "{line} cut at {len}");
            }
        }
    }

    #[test]
    fn what_is_not_exactly_a_line_of_version_1_is_none() {
        for line in [
            "HELO x\n",
            "proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UNKNOWN\n",
            "PROXY\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(Header::read(line.as_bytes()), Header::Bad, "{line}");
        }
        let long = |len: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(len - 16));
        assert_eq!(Header::read(long(MAX_LINE_BYTES).as_bytes()), whole(MAX_LINE_BYTES, None));
        assert_eq!(Header::read(long(MAX_LINE_BYTES + 1).as_bytes()), Header::Bad);
        assert_eq!(
            Header::read(&long(MAX_LINE_BYTES + 1).as_bytes()[..MAX_LINE_BYTES]),
            Header::Bad,
            "before its end has come"
        );
    }

    #[test]
    fn version_2_names_both_sides_or_nobody() {
        let v4 = Some(("192.0.2.1:56324", "192.0.2.2:443"));
        let mut six = [0; 36];
        (six[0], six[15], six[31], six[33], six[35]) = (0x20, 1, 2, 3, 4);
        for (header, from_to) in [
            (v2(0x21, 0x11, &ADDRESSES), v4),
            (v2(0x21, 0x11, &[&ADDRESSES[..], &[4, 0, 1, b'x', 0xee, 0, 0]].concat()), v4),
            (with_checksum(), v4),
            (v2(0x21, 0x21, &six), Some(("[2000::1]:3", "[::2]:4"))),
            (v2(0x21, 0x31, &[0; 216]), None),
            (v2(0x21, 0x00, b""), None),
            (v2(0x21, 0x00, b"whatever"), None),
            (v2(0x20, 0x00, b""), None),
            (v2(0x20, 0x11, &ADDRESSES), None),
            (v2(0x20, 0xff, b"whatever"), None),
            (v2(0x20, 0x00, &[0; MAX_HEADER_BYTES - V2_FIXED_BYTES]), None),
        ] {
            let bytes = [&header[..], b"HELO x\n"].concat();
            assert_eq!(Header::read(&bytes), whole(header.len(), from_to), "{}", header.escape_ascii());
            for len in 0..header.len() {
                assert_eq!(
                    Header::read(&bytes[..len]),
                    Header::More,
                    "{} cut at {len}",
                    header.escape_ascii()
                );
            }
        }
    }

    #[test]
    fn what_is_not_exactly_version_2_is_none() {
        let mut wrong_sum = with_checksum();
        *wrong_sum.last_mut().unwrap() ^= 1;
        let mut wrong_address = with_checksum();
        wrong_address[V2_FIXED_BYTES] ^= 1;
        for header in [
            v2(0x11, 0x11, &ADDRESSES),
            v2(0x22, 0x11, &ADDRESSES),
            v2(0x21, 0x12, &ADDRESSES),
            v2(0x21, 0x22, &[0; 36]),
            v2(0x21, 0x41, &ADDRESSES),
            v2(0x21, 0x13, &ADDRESSES),
            v2(0x21, 0x11, &ADDRESSES[..11]),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x21, 0x31, &[0; 215]),
            v2(0x21, 0x11, &[&ADDRESSES[..], &[4, 0]].concat()),
            v2(0x21, 0x11, &[&ADDRESSES[..], &[4, 0, 2, b'x']].concat()),
            v2(0x21, 0x11, &[&ADDRESSES[..], &[CRC32C, 0, 3, 0, 0, 0]].concat()),
            v2(0x20, 0x00, &[0; MAX_HEADER_BYTES - V2_FIXED_BYTES + 1]),
            wrong_sum,
            wrong_address,
        ] {
            assert_eq!(Header::read(&header), Header::Bad, "{}", header.escape_ascii());
        }
        assert_eq!(Header::read(&[V2, &[0x10]].concat()), Header::Bad, "as soon as it can be told");
        let announced = [V2, &[0x21, 0x11, 0xff, 0xff]].concat();
        assert_eq!(Header::read(&announced), Header::Bad, "as soon as it can be told");
    }

    #[test]
    fn the_checksum_is_that_of_castagnoli() {
        assert_eq!(crc32c([b"123456789"]), 0xe306_9283);
        assert_eq!(crc32c([&b"1234"[..], b"", b"56789"]), 0xe306_9283);
    }
}

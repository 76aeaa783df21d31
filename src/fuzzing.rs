//! What the fuzz targets in `tests/fuzz` call, and the tests that run their corpus. Not in any other build.

use std::net::SocketAddr;

use crate::framing::proxy::{FromTo, Header, MAX_HEADER_BYTES};
use crate::framing::{Lines, frames};

pub use crate::connection::play as connection;

/// Frames do not depend on how the bytes came, and are what splitting at line ends gives.
///
/// # Panics
/// If they are not.
pub fn framing(data: &[u8]) {
    let [max, flags, step, bytes @ ..] = data else { return };
    let (max, ended, step) = (usize::from(*max % 16), flags & 1 == 1, usize::from(*step % 8) + 1);
    let lines = Lines::new(max);
    let expected = split(bytes, max, ended);
    for step in [bytes.len().max(1), step, 1] {
        let parts: Vec<&[u8]> = bytes.chunks(step).collect();
        assert_eq!(frames(&lines, &parts, ended), expected, "{step} bytes at a time");
    }
}

/// What is said of a PROXY header does not depend on how it came nor on what is behind it, and what it names is what it says when
/// it is written again.
///
/// # Panics
/// If not.
pub fn proxy(data: &[u8]) {
    let said = (0..=data.len()).map(|len| Header::read(&data[..len])).find(|said| *said != Header::More);
    assert_eq!(said.unwrap_or(Header::More), Header::read(data), "a byte at a time");
    match Header::read(data) {
        Header::More => assert!(data.len() < MAX_HEADER_BYTES, "it would be waited for for ever"),
        Header::Bad => {}
        Header::Whole { consumed, from_to } => {
            assert!(consumed <= data.len().min(MAX_HEADER_BYTES));
            assert_eq!(Header::read(&data[..consumed]), Header::Whole { consumed, from_to });
            if let Some(FromTo { from, to }) = from_to {
                let line = line_of(from, to);
                let consumed = line.len();
                assert_eq!(Header::read(line.as_bytes()), Header::Whole { consumed, from_to }, "{line}");
            }
        }
    }
}

/// The line of version 1 that names these, which are of one family.
fn line_of(from: SocketAddr, to: SocketAddr) -> String {
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
}

/// The lines of `bytes`, and whether one was too long, by the letter of the rule.
fn split(bytes: &[u8], max: usize, ended: bool) -> (Vec<Vec<u8>>, bool) {
    let mut lines = Vec::new();
    let mut pieces: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let line = piece.strip_suffix(b"\r").unwrap_or(piece);
        if line.len() > max {
            return (lines, true);
        }
        lines.push(line.to_vec());
    }
    let too_long = if ended { last } else { last.strip_suffix(b"\r").unwrap_or(last) }.len() > max;
    if ended && !last.is_empty() && !too_long {
        lines.push(last.to_vec());
    }
    (lines, too_long)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Runs what the fuzzer kept for `target`, what comes of each by so many small changes, and random bytes besides.
    fn run(target: &str, changes: usize, play: impl Fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
        let files =
            std::fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
        let inputs: Vec<Vec<u8>> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
        assert!(!inputs.is_empty(), "there is no corpus for {target}");
        inputs.iter().for_each(|input| play(input));
        let mut state = 1_u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        // What is nearly one of them.
        for input in inputs.iter().filter(|input| !input.is_empty()) {
            for _ in 0..changes {
                let mut changed = input.clone();
                let at = number() % changed.len();
                changed[at] ^= 1 << (number() % 8);
                changed.truncate(changed.len().saturating_sub(number() % 4 * (number() % 2)));
                play(&changed);
            }
        }
        for length in 0..2000 {
            let byte = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            play(&(0..length % 100).map(byte).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn framing_holds_for_the_corpus() {
        run("framing", 100, super::framing);
    }

    #[test]
    fn a_proxy_header_holds_for_the_corpus() {
        run("proxy", 100, super::proxy);
    }

    #[test]
    fn a_connection_holds_for_the_corpus() {
        run("connection", 0, super::connection);
    }
}

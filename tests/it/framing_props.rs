//! Properties of framing, against a reference that is too simple to be wrong.

use std::ops::ControlFlow;

use proptest::prelude::*;
use tidemill::framing::{LineFramer, LineTooLong};

type Lines = Result<Vec<Vec<u8>>, (Vec<Vec<u8>>, LineTooLong)>;

/// All at once: split at each `\n`, take one `\r` off, stop at the first line too long.
fn reference(input: &[u8], max: usize) -> Lines {
    let mut lines = Vec::new();
    let mut parts: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    let last = parts.pop().expect("there is one part at least");
    for part in parts {
        let line = part.strip_suffix(b"\r").unwrap_or(part);
        if line.len() > max {
            return Err((lines, LineTooLong));
        }
        lines.push(line.to_vec());
    }
    if last.len() > max {
        return Err((lines, LineTooLong));
    }
    if !last.is_empty() {
        lines.push(last.to_vec());
    }
    Ok(lines)
}

fn framed(chunks: &[&[u8]], max: usize) -> Lines {
    let mut framer = LineFramer::default();
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for chunk in chunks {
        let fed = framer.feed(chunk, max, |line| {
            lines.push(line.to_vec());
            ControlFlow::<()>::Continue(())
        });
        if let Err(too_long) = fed {
            return Err((lines, too_long));
        }
    }
    match framer.finish(max) {
        Ok(last) => {
            lines.extend(last);
            Ok(lines)
        }
        Err(too_long) => Err((lines, too_long)),
    }
}

/// Mostly terminators and their neighbours, where the edges are.
fn input() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => Just(b'a'), 1 => Just(b'\n'), 1 => Just(b'\r'), 1 => any::<u8>()];
    prop::collection::vec(byte, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lines_are_independent_of_chunking(
        input in input(),
        max in 1_usize..12,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
        prop_assert_eq!(framed(&chunks, max), reference(&input, max));
    }
}

//! A test for framings, those of users too.

use super::{Found, Framing};

/// Bytes that a frame may take up beyond its content, and those of it that may be looked at again: more than any length or terminator
/// that is in use has.
const SLACK_BYTES: usize = 256;
/// So far an unfinished frame is drawn out. Above the default of [`Config::max_line_bytes`](crate::Config::max_line_bytes).
const MAX_DRAWN_OUT_BYTES: usize = 128 << 10;
/// Bytes of a frame that are shown where it is wrong: a line of a terminal.
const MAX_SHOWN_BYTES: usize = 64;

/// The contents of frames, and whether what follows the last one is too long.
type Frames = (Vec<Vec<u8>>, bool);

/// Asks `framing` for the frames of `bytes` in every way in which they may come, and fails where that makes a difference or a rule of
/// [`Framing`] is broken. For the tests of who writes one.
///
/// Whole, one byte at a time, and cut in two at every place; with and without the end of the stream behind it. Then what is left
/// is drawn out, as by a peer that never ends a frame. Returns the frames' contents, and whether what follows the last one is too
/// long, where the stream ends behind `bytes`: with a rest that only then counts as a frame.
///
/// Takes time in the square of the length, so some hundred bytes are a
/// good test; give it inputs with frames at the limit, above it, empty ones, and halves of terminators; and a limit of some
/// KiB once, as only frames longer than 256 bytes tell whether it looks at all of them again and again.
///
/// # Panics
/// With what is wrong: frames that depend on the cuts, and the first that does; a frame outside the bytes, one of no bytes, one above
/// the limit, more looked at than there is, or less than before, or all but 256 bytes less than there is; or a frame that grows without
/// end: one that has 256 bytes more than its limit (looked for up to 128 KiB) and asks for more.
///
/// # Examples
/// ```
/// use tidemill::framing::{Lines, verify};
///
/// let (frames, too_long) = verify(&Lines::new(5), b"one\ntwo\r\nrest");
/// assert_eq!(frames, [&b"one"[..], b"two", b"rest"]);
/// assert!(!too_long);
/// ```
#[track_caller]
pub fn verify(framing: &dyn Framing, bytes: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut at_the_end = Frames::default();
    for (ended, end) in [(false, ""), (true, ", with the end of the stream behind it")] {
        let whole = frames(framing, &[bytes], ended);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_same(&frames(framing, &single, ended), &whole, || format!("one byte at a time{end}"));
        for cut in 1..bytes.len() {
            let parts = [&bytes[..cut], &bytes[cut..]];
            assert_same(&frames(framing, &parts, ended), &whole, || format!("cut at {cut}{end}"));
        }
        at_the_end = whole;
    }
    for filler in [b'x', 0, 0xff] {
        for begin in [bytes, b""] {
            draw_out(framing, begin, filler);
        }
    }
    at_the_end
}

/// Fails with the first frame of `cut` that is not the same in `whole`.
#[track_caller]
fn assert_same(cut: &Frames, whole: &Frames, how: impl FnOnce() -> String) {
    if cut != whole {
        let at = cut.0.iter().zip(&whole.0).take_while(|(cut, whole)| cut == whole).count();
        panic!("{}: {}; all at once: {}", how(), shown(cut, at), shown(whole, at));
    }
}

/// What is found as frame number `at`, in words.
fn shown((frames, too_long): &Frames, at: usize) -> String {
    match frames.get(at) {
        Some(frame) if frame.len() > MAX_SHOWN_BYTES => {
            format!(
                "frame {at} is \"{}\"... ({} bytes)",
                frame[..MAX_SHOWN_BYTES].escape_ascii(),
                frame.len()
            )
        }
        Some(frame) => format!("frame {at} is \"{}\"", frame.escape_ascii()),
        None if *too_long => format!("frame {at} is too long"),
        None => format!("there is no frame {at}"),
    }
}

/// The frames where the bytes come in `parts`, and whether what follows the last one is too long.
#[track_caller]
pub(crate) fn frames(framing: &dyn Framing, parts: &[&[u8]], ended: bool) -> Frames {
    let mut stream = Stream::new(framing);
    for (part, bytes) in parts.iter().enumerate() {
        if !stream.take(bytes, ended && part + 1 == parts.len()) {
            return (stream.found, true);
        }
    }
    (stream.found, false)
}

/// Draws out what is unfinished behind `begin`, until it is a frame or too long.
#[track_caller]
fn draw_out(framing: &dyn Framing, begin: &[u8], filler: u8) {
    let mut stream = Stream::new(framing);
    let mut goes_on = stream.take(begin, false);
    let frames = stream.found.len();
    while goes_on && stream.found.len() == frames && stream.here.len() < MAX_DRAWN_OUT_BYTES {
        let more = vec![filler; stream.here.len().max(1)];
        goes_on = stream.take(&more, false);
    }
}

/// A stream, as far as it has come.
struct Stream<'a> {
    framing: &'a dyn Framing,
    /// What is not cut yet.
    here: Vec<u8>,
    scanned: usize,
    found: Vec<Vec<u8>>,
}

impl Stream<'_> {
    fn new(framing: &dyn Framing) -> Stream<'_> {
        Stream { framing, here: Vec::new(), scanned: 0, found: Vec::new() }
    }

    /// Takes `bytes` in and cuts. `false`: what is here is too long.
    #[track_caller]
    fn take(&mut self, bytes: &[u8], ended: bool) -> bool {
        self.here.extend_from_slice(bytes);
        let (here, limit) = (&mut self.here, self.framing.max_bytes());
        while !here.is_empty() {
            match self.framing.next(here, self.scanned, ended) {
                Found::Frame { content, consumed } => {
                    assert!(consumed > 0, "a frame of no bytes would be found again and again");
                    assert!(
                        content.end <= consumed && consumed <= here.len(),
                        "a frame beyond what has come, or what it takes up"
                    );
                    assert!(content.len() <= limit, "a frame above the limit");
                    self.found.push(here[content].to_vec());
                    here.drain(..consumed);
                    self.scanned = 0;
                }
                Found::More { scanned } => {
                    let len = here.len();
                    assert!(scanned <= len, "more was looked at than there is");
                    assert!(scanned >= self.scanned, "what was looked at is to be looked at again");
                    assert!(
                        len <= limit.saturating_add(SLACK_BYTES),
                        "a frame grows without end: of {limit} bytes at the most, it asks for more than {len}"
                    );
                    assert!(
                        scanned.saturating_add(SLACK_BYTES) >= len,
                        "a frame is looked at again and again: of {len} bytes only {scanned} count as scanned"
                    );
                    self.scanned = scanned;
                    return true;
                }
                Found::TooLong => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::{Endian, Fixed, LengthPrefixed, Lines, Terminated};

    #[test]
    fn all_framings_are_independent_of_how_bytes_are_cut() {
        let bytes = b"\x01a\0\0\x03\nab\r\n--cd-\r--\r\n\r\n\r\0\0\x02--\n\x02\xff\xfflast";
        for framing in [
            &Lines::new(6) as &dyn Framing,
            &Lines::new(100),
            &Fixed::new(1),
            &Fixed::new(7),
            &Fixed::new(70_000),
            &Lines::new(usize::MAX),
            &LengthPrefixed::new(4, Endian::Little, 2 << 20),
            &Terminated::new(b"\r\n.\r\n", 70_000),
            &LengthPrefixed::new(1, Endian::Big, 60),
            &LengthPrefixed::new(2, Endian::Little, 10),
            &LengthPrefixed::new(8, Endian::Big, 10),
            &Terminated::new(b"--", 12),
            &Terminated::new(b"\r\n\r\n", 100),
            &Terminated::new(b"\r\n\r\n", 3),
            &Terminated::new(b"\n", 9),
        ] {
            verify(framing, bytes);
        }
    }

    /// Takes what there is for a frame.
    struct Greedy;

    impl Framing for Greedy {
        fn next(&self, bytes: &[u8], _: usize, _: bool) -> Found {
            Found::Frame { content: 0..bytes.len(), consumed: bytes.len() }
        }

        fn max_bytes(&self) -> usize {
            100
        }
    }

    #[test]
    #[should_panic(expected = r#"one byte at a time: frame 0 is "a"; all at once: frame 0 is "a\n""#)]
    fn one_that_depends_on_them_is_found_out() {
        verify(&Greedy, b"a\n");
    }

    #[test]
    fn what_is_shown_is_the_first_that_differs_in_one_line() {
        let frames =
            |found: &[&[u8]], too_long| (found.iter().map(|frame| frame.to_vec()).collect(), too_long);
        let whole: Frames = frames(&[b"a", &[b'\n'; 65], b"c"], false);
        for (cut, at, says) in [
            (frames(&[b"a", b"b", b"c"], false), 1, "frame 1 is \"b\""),
            (frames(&[b"a"], true), 1, "frame 1 is too long"),
            (frames(&[], false), 0, "there is no frame 0"),
        ] {
            let said =
                std::panic::catch_unwind(|| assert_same(&cut, &whole, || "cut at 3".to_owned())).unwrap_err();
            assert_eq!(
                *said.downcast::<String>().unwrap(),
                format!("cut at 3: {says}; all at once: {}", shown(&whole, at))
            );
        }
        assert_eq!(shown(&whole, 1), format!("frame 1 is \"{}\"... (65 bytes)", "\\n".repeat(64)));
        let longer = frames(&[b"a"], true);
        assert_eq!(
            (shown(&longer, 0), shown(&longer, 1)),
            ("frame 0 is \"a\"".into(), "frame 1 is too long".into())
        );
    }

    /// Lines, less what a rule asks for: told apart by what it says in place of [`Found::More`] and [`Found::TooLong`].
    struct Sloppy<F>(F);

    impl<F: Fn(usize, usize) -> Found + Send + Sync + 'static> Framing for Sloppy<F> {
        fn next(&self, bytes: &[u8], scanned: usize, ended: bool) -> Found {
            match Lines::new(self.max_bytes()).next(bytes, 0, ended) {
                found @ Found::Frame { .. } => found,
                _ => (self.0)(bytes.len(), scanned),
            }
        }

        fn max_bytes(&self) -> usize {
            2000
        }
    }

    fn too_long(len: usize) -> bool {
        len > 2001
    }

    #[test]
    #[should_panic(expected = "a frame grows without end: of 2000 bytes at the most, it asks for more than")]
    fn one_that_grows_without_end_is_found_out() {
        verify(&Sloppy(|len, _| Found::More { scanned: len }), b"a\nb");
    }

    #[test]
    #[should_panic(expected = "a frame is looked at again and again: of 512 bytes only 0 count as scanned")]
    fn one_that_looks_at_everything_again_is_found_out() {
        let next = |len, _| if too_long(len) { Found::TooLong } else { Found::More { scanned: 0 } };
        verify(&Sloppy(next), b"a\n");
    }

    #[test]
    #[should_panic(expected = "what was looked at is to be looked at again")]
    fn one_that_goes_back_is_found_out() {
        let next = |len: usize, scanned| match scanned {
            _ if too_long(len) => Found::TooLong,
            0 => Found::More { scanned: len },
            _ => Found::More { scanned: scanned - 1 },
        };
        verify(&Sloppy(next), b"abc");
    }

    #[test]
    #[should_panic(expected = "a frame beyond what has come, or what it takes up")]
    fn one_whose_frames_overlap_is_found_out() {
        let next = |len, _| match len {
            1 => Found::More { scanned: 1 },
            _ => Found::Frame { content: 0..2, consumed: 1 },
        };
        verify(&Sloppy(next), b"abc");
    }

    #[test]
    fn what_counts_at_the_end_of_the_stream_is_returned() {
        assert_eq!(verify(&Lines::new(4), b"one\ntwo").0, [b"one", b"two"]);
        assert_eq!(verify(&Lines::new(4), b"one\nabcd\r"), (vec![b"one".to_vec()], true));
        assert_eq!(verify(&Terminated::new(b"\n", 4), b"one\ntwo"), (vec![b"one".to_vec()], false));
    }
}

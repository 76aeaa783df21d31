//! What is asked, and what must come back: every byte of a request and of its reply, given the request's number.
//!
//! A [`Protocol`] is two templates in which the number is the only thing that changes. The HELO protocol is one, with a
//! number of fixed width behind the run's tag; `--request` and `--expect` make any other. No I/O and no clock here.

mod reply;
mod template;
mod text;

use std::net::SocketAddr;

use memchr::{memchr, memchr_iter, memmem};

use reply::Reply;
pub(crate) use reply::{Identity, Line, Match};
use template::{Digits, Template};
use text::{Token, parts, push_byte, reply_of, tokens};

/// Longest line of a reply, without its `\n`: what is longer is too long wherever it was cut on its way. Four times what memcached
/// stores, and what each connection may make us hold.
pub(crate) const MAX_LINE_BYTES: usize = 4 << 20;
/// What precedes the number is looked for in the middle of a line, after a reply that was cut short, if it is at least so
/// long: shorter text is found where nothing begins.
const MIN_MARKER_BYTES: usize = 8;
/// Lines with which a server of ours ends a connection. They answer no request.
const LAST_WORDS: [&[u8]; 8] = [
    b"ERROR line too long",
    b"ERROR server full",
    b"ERROR too many connections",
    b"ERROR line not completed",
    b"ERROR KILL_SERVICE refused",
    b"ERROR internal error",
    b"ERROR PROXY header expected",
    b"ERROR request not completed",
];

/// What follows the text in every reply to HELO.
#[derive(Debug, Clone)]
pub(crate) struct Tail {
    pub(crate) advertise: tidemill::protocol::Advertise,
    pub(crate) student_id: String,
}

/// Requests and replies.
#[derive(Debug, Clone)]
pub(crate) struct Protocol {
    request: Template,
    reply: Reply,
    /// What the server says first on each connection.
    greeting: Option<Reply>,
    /// For HELO, whose replies tell the address that was reached.
    tail: Option<Tail>,
}

impl Protocol {
    /// HELO, with texts that no other run has asked for: `tag` tells them apart.
    pub(crate) fn helo(tag: [u8; 4], tail: Tail, server: SocketAddr) -> Self {
        let head = [b"HELO ", &tag[..], b"-"].concat();
        let request = Template::new(vec![head.clone(), b"\n".to_vec()], Digits::Hex);
        let reply = Reply::new(vec![head, Vec::new()], Digits::Hex, vec![false; 4], 0, true);
        let mut protocol = Self { request, reply, greeting: None, tail: Some(tail) };
        protocol.reached(server);
        protocol
    }

    /// A protocol as it is described on the command line.
    ///
    /// `{n}` is the request's number, in the reply `{line}` is the request; a `*` at the end of a line of the reply stands
    /// for the rest of it. The escapes are `\r \n \t \\ \* \{ \xNN`. A reply has `lines` lines, of which those that `expect`
    /// does not have may be anything. Ends of lines in replies may be `\n` or `\r\n`.
    pub(crate) fn custom(
        request: &str,
        expect: &str,
        lines: Option<usize>,
        greeting: Option<&str>,
    ) -> Result<Self, String> {
        let asked = tokens(request)?;
        if asked.contains(&Token::Line) {
            return Err("--request cannot have `{line}` in it: that is the request itself".to_owned());
        }
        let mut parts = parts(&asked, &[]);
        push_byte(&mut parts, b'\n');
        let request = Template::new(parts, Digits::Decimal);
        let reply = reply_of(expect, "--expect", lines, &asked)?;
        let greeting = match greeting {
            None => None,
            Some(text) if tokens(text)?.iter().any(|token| matches!(token, Token::Number | Token::Line)) => {
                return Err("--greeting comes before any request: it has no `{n}` and no `{line}`".to_owned());
            }
            Some(text) => Some(reply_of(text, "--greeting", None, &[])?),
        };
        Ok(Self { request, reply, greeting, tail: None })
    }

    /// Replies name `server` from now on, if they name the address that was reached.
    pub(crate) fn reached(&mut self, server: SocketAddr) {
        if let Some(tail) = &self.tail {
            let tail = tidemill::protocol::render_tail(&server.into(), tail.advertise, &tail.student_id);
            self.reply.replace_part(1, tail);
        }
    }

    /// The bytes of `count` requests from number `first` on, each by `step` above the one before.
    #[inline]
    pub(crate) fn requests(&mut self, first: u64, step: u64, count: usize) -> &[u8] {
        self.request.row(first, step, count)
    }

    /// The bytes of a request.
    pub(crate) fn request(&mut self, number: u64) -> &[u8] {
        self.request.write(number);
        &self.request.bytes
    }

    /// Lines in a request.
    pub(crate) fn request_lines(&self) -> usize {
        self.request.parts.iter().map(|part| memchr_iter(b'\n', part).count()).sum()
    }

    /// The bytes of a reply as a person reads them: what may be anything is a star.
    pub(crate) fn shown_reply(&mut self, number: u64) -> Vec<u8> {
        self.reply.write(number);
        self.reply.shown()
    }

    /// The bytes of a reply, as far as they are known.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn reply(&mut self, number: u64) -> &[u8] {
        self.reply.write(number);
        &self.reply.template.bytes
    }

    /// Lines in a reply.
    pub(crate) fn lines(&self) -> usize {
        self.reply.lines()
    }

    /// How `bytes` compare with the reply to a request.
    #[inline]
    pub(crate) fn compare(&mut self, bytes: &[u8], number: u64) -> Match {
        self.reply.compare(bytes, number)
    }

    /// How many whole replies to `most` requests from `first` on stand at the front of `bytes`, and their length, if that is told
    /// by one comparison. `None`: they are to be looked at one by one.
    pub(crate) fn compare_many(
        &mut self,
        bytes: &[u8],
        first: u64,
        step: u64,
        most: u64,
    ) -> Option<(u64, usize)> {
        // One by itself is compared without being written first.
        if most < 2 {
            return None;
        }
        let there = (bytes.len() / self.reply.template.bytes.len().max(1)) as u64;
        let count = Some(most.min(there)).filter(|&count| count > 1)?;
        let len = self.reply.compare_row(bytes, first, step, usize::try_from(count).ok()?)?;
        Some((count, len))
    }

    /// Whose reply `bytes` begin with.
    pub(crate) fn identify(&self, bytes: &[u8]) -> Identity {
        self.reply.identify(bytes)
    }

    /// Whether the server speaks first.
    pub(crate) fn has_greeting(&self) -> bool {
        self.greeting.is_some()
    }

    /// How `bytes` compare with what the server says first.
    pub(crate) fn compare_greeting(&mut self, bytes: &[u8]) -> Match {
        self.greeting.as_mut().map_or(Match::Whole(0), |greeting| greeting.compare(bytes, 0))
    }

    /// What the server must say first.
    pub(crate) fn shown_greeting(&self) -> Vec<u8> {
        self.greeting.as_ref().map_or_else(Vec::new, Reply::shown)
    }

    /// Where within `line`, not at its front, a reply of this run begins.
    pub(crate) fn find_within(&self, line: &[u8]) -> Option<usize> {
        // Where no number stands in the reply, this is all of it.
        let prefix = self.reply.template.parts.first()?;
        if prefix.len() < MIN_MARKER_BYTES || prefix.contains(&b'\n') {
            return None;
        }
        memmem::find(line.get(1..)?, prefix).map(|at| at + 1)
    }

    /// Whether a wrong line begins as the first line of a reply does, so that the others follow it.
    pub(crate) fn is_of_this_kind(&self, line: &[u8]) -> bool {
        let first = self.reply.template.parts.first().map_or(&[][..], Vec::as_slice);
        // Without the end of the line, which may be another one, or come after what may be anything.
        let line_end = memchr(b'\n', first).unwrap_or(first.len());
        let first = &first[..line_end];
        let word = first.iter().position(|byte| b" :".contains(byte)).map_or(first, |end| &first[..=end]);
        !word.is_empty() && line.starts_with(word)
    }

    /// Whether a server of ours says this when it ends a connection.
    pub(crate) fn is_last_word(line: &[u8]) -> bool {
        LAST_WORDS.iter().any(|words| line.starts_with(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custom(request: &str, expect: &str) -> Protocol {
        Protocol::custom(request, expect, None, None).unwrap()
    }

    fn text(bytes: &[u8]) -> String {
        bytes.escape_ascii().to_string()
    }

    #[test]
    fn numbers_and_the_request_itself_are_put_in() {
        let mut protocol = custom("SET k{n} v{n}", "{line}!{n}");
        for number in [7, 8, 12, 100, 3] {
            assert_eq!(text(protocol.request(number)), format!("SET k{number} v{number}\\n"));
            assert_eq!(text(protocol.reply(number)), format!("SET k{number} v{number}!{number}\\n"));
        }
        let mut protocol = custom(r"ms {n}\t1\r\nx\x41\\\{n}\r", "HD");
        assert_eq!(text(protocol.request(5)), r"ms 5\t1\r\nxA\\{n}\r\n");
    }

    #[test]
    fn requests_in_a_row_are_those_one_by_one() {
        let tail = Tail { advertise: Default::default(), student_id: "1".to_owned() };
        let helo = Protocol::helo(*b"abcd", tail, ([127, 0, 0, 1], 8000).into());
        // Where the upper half of the number changes, before, in and behind the row; the row longer and shorter than before.
        let limit = 1_u64 << 32;
        for protocol in [helo, custom("x{n} {n}", "y{n}"), custom("x", "y")] {
            let is_helo = protocol.tail.is_some();
            let (mut rows, mut single) = (protocol.clone(), protocol);
            for (first, step, count) in [
                (0, 1, 3),
                (7, 3, 5),
                (limit - 4, 2, 4),
                (limit, 1, 2),
                (limit - 9, 1, 3),
                (limit - 9, 5, 3),
                (3, 1, 1),
                (9, 1, 0),
            ] {
                let numbers = (0..count as u64).map(|at| first + at * step);
                let expected: Vec<u8> =
                    numbers.clone().flat_map(|number| single.request(number).to_vec()).collect();
                assert_eq!(text(rows.requests(first, step, count)), text(&expected), "{count} from {first}");
                let replies: Vec<u8> = numbers.flat_map(|number| single.reply(number).to_vec()).collect();
                let last = first + step * (count as u64).saturating_sub(1);
                let at_once = is_helo && count > 1 && first >> 32 == last >> 32;
                let found = at_once.then_some((count as u64, replies.len()));
                assert_eq!(rows.compare_many(&replies, first, step, 9), found, "{count} from {first}");
            }
            // One by itself, after another one was written whose upper half is not the row's.
            rows.request(2 * limit);
            let number = 2 * limit + 1;
            assert_eq!(text(rows.requests(number, 1, 1)), text(single.request(number)));
        }
    }

    #[test]
    fn whole_replies_their_starts_and_others_are_told_apart() {
        for (expect, number, bytes, outcome) in [
            ("+OK", 1, "+OK\r\n", Match::Whole(5)),
            ("+OK", 1, "+OK\nx", Match::Whole(4)),
            ("+OK", 1, "+OK\r", Match::Start),
            ("+OK", 1, "+O", Match::Start),
            ("+OK", 1, "", Match::Start),
            ("+OK", 1, "+OK \n", Match::No),
            ("+OK", 1, "+OKx", Match::No),
            ("+OK", 1, "-", Match::No),
            ("250 *", 1, "250 fine\r\n", Match::Whole(10)),
            ("250 *", 1, "250 fi", Match::Start),
            ("250 *", 1, "250\n", Match::No),
            (r"250 \*", 1, "250 *\n", Match::Whole(6)),
            (r"250 \*", 1, "250 x\n", Match::No),
            (r"$*\n{n}", 12, "$2\r\n12\r\n", Match::Whole(8)),
            (r"$*\n{n}", 12, "$2\r\n12", Match::Start),
            (r"$*\n{n}", 12, "$2\r\n13\r\n", Match::No),
            ("*", 1, "\n", Match::Whole(1)),
            ("a*b", 1, "a*b\n", Match::Whole(4)),
        ] {
            assert_eq!(custom("x", expect).compare(bytes.as_bytes(), number), outcome, "{expect}: {bytes:?}");
        }
        let mut three = Protocol::custom("x", "A{n}", Some(3), None).unwrap();
        assert_eq!(three.lines(), 3);
        assert_eq!(three.compare(b"A1\nwhat\never\nA2", 1), Match::Whole(13));
        assert_eq!(three.compare(b"A1\nwhat\never", 1), Match::Start);
        assert_eq!(text(&three.shown_reply(7)), r"A7\n*\n*\n");
        assert_eq!(Protocol::custom("x", r"a\nb", Some(2), None).unwrap().lines(), 2);
        assert_eq!(text(&custom("x", r"a*\nb{n}").shown_reply(7)), r"a*\nb7\n");
    }

    #[test]
    fn reply_to_helo_is_the_one_to_its_request_in_every_byte() {
        let tail = Tail { advertise: Default::default(), student_id: "1".to_owned() };
        let mut helo = Protocol::helo(*b"abcd", tail, ([127, 0, 0, 1], 8000).into());
        let limit = 1_u64 << 32;
        // Where the upper half of the number is another one than before, and where it is not.
        for number in [7, 8, limit + 8, limit + 9, 3 * limit + 9, 9] {
            let reply = helo.clone().reply(number).to_vec();
            let whole = Match::Whole(reply.len());
            assert_eq!(helo.clone().compare(&[&reply[..], b"H"].concat(), number), whole, "{number}");
            for at in 0..reply.len() {
                assert_eq!(helo.clone().compare(&reply[..at], number), Match::Start, "{number}: {at}");
                let mut other = reply.clone();
                other[at] ^= 1;
                assert_eq!(helo.clone().compare(&other, number), Match::No, "{number}: {at}");
            }
            assert_eq!(helo.compare(&reply, number), whole, "{number}");
        }
    }

    #[test]
    fn replies_are_known_by_their_number() {
        for (expect, bytes, whose) in [
            ("v{n}!", "v12!\n", Identity::Of(12)),
            ("v{n}!", "v12", Identity::Unfinished),
            ("v{n}!", "", Identity::Unfinished),
            ("v{n}!", "v012!\n", Identity::Unknown),
            ("v{n}!", "v!\n", Identity::Unknown),
            ("v{n}!", "w", Identity::Unknown),
            ("v{n}!", "v99999999999999999999999!", Identity::Unknown),
            (r"$*\n{n}", "$2\r\n12\r\n", Identity::Of(12)),
            (r"$*\n{n}", "$2\r", Identity::Unfinished),
            (r"$*\n{n}", "-ERR\r\n", Identity::Unknown),
            (r"$*\n{n}", "-ER", Identity::Unknown),
            ("v{n}!", "v1844674407370955161", Identity::Unfinished),
            ("v{n}!", "v18446744073709551615", Identity::Of(u64::MAX)),
            ("OK", "OK\n", Identity::Unknown),
        ] {
            assert_eq!(custom("x{n}", expect).identify(bytes.as_bytes()), whose, "{expect}: {bytes:?}");
        }
    }

    #[test]
    fn replies_to_helo_are_known_by_all_sixteen_digits() {
        let tail = Tail { advertise: Default::default(), student_id: "1".to_owned() };
        let helo = Protocol::helo(*b"abcd", tail, ([127, 0, 0, 1], 8000).into());
        for (bytes, whose) in [
            ("HELO abcd-00000000000000ff", Identity::Of(255)),
            ("HELO abcd-00000000000000ff\nwhat?", Identity::Of(255)),
            ("HELO abcd-00000000000000f", Identity::Unfinished),
            ("HELO abcd-", Identity::Unfinished),
            ("HELO ab", Identity::Unfinished),
            ("HELO abcd-00000000000000fF", Identity::Unknown),
            ("HELO abcd-00000000000000f\n", Identity::Unknown),
            ("HELO abce-00000000000000ff", Identity::Unknown),
        ] {
            assert_eq!(helo.identify(bytes.as_bytes()), whose, "{bytes:?}");
        }
    }

    #[test]
    fn start_of_a_reply_within_a_line_is_known_by_what_is_long_enough_to_be_one() {
        for (expect, line, at) in [
            ("answers:{n}", "xanswers:7", Some(1)),
            ("answers:{n}", "answers:7 answers:8", Some(10)),
            ("answer:{n}", "xanswer:7", None),
            ("answers:", "xanswers:", None),
        ] {
            assert_eq!(custom("x", expect).find_within(line.as_bytes()), at, "{expect}: {line}");
        }
        assert_eq!([custom("a", "b"), custom(r"a\nb\nc", "b")].map(|it| it.request_lines()), [1, 3]);
    }

    #[test]
    fn wrong_first_line_is_known_by_its_first_word() {
        for (expect, line, is_of_this_kind) in [
            (r"$*\n{n}", "$3", true),
            (r"$*\n{n}", "$3\r", true),
            (r"$*\n{n}", "-ERR", false),
            (r"OK\n{n}", "OK", true),
            (r"OK\n{n}", "ERR", false),
            (r"VALUE k{n}\n*", "VALUE x", true),
            (r"VALUE k{n}\n*", "VALUES", false),
            (r"\n{n}", "anything", false),
        ] {
            assert_eq!(
                custom("x", expect).is_of_this_kind(line.as_bytes()),
                is_of_this_kind,
                "{expect} {line}"
            );
        }
    }

    #[test]
    fn bad_texts_are_refused_by_name() {
        for (request, expect, lines, greeting, part) in [
            ("{line}", "x", None, None, "{line}"),
            (r"\q", "x", None, None, "escape"),
            (r"\x4", "x", None, None, "escape"),
            ("x", r"\", None, None, "escape"),
            ("x", r"a\nb", Some(1), None, "--expect has 2 lines"),
            ("x", "x", None, Some("{n}"), "--greeting"),
            (r"a\nb", "{line}", None, None, "one line"),
        ] {
            let error = Protocol::custom(request, expect, lines, greeting).unwrap_err();
            assert!(error.contains(part), "{request} {expect}: {error}");
        }
    }
}

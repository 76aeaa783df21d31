//! What is asked, and what must come back: every byte of a request and of its reply, given the request's number.
//!
//! A [`Protocol`] is two templates in which the number is the only thing that changes. The HELO protocol is one, with a
//! number of fixed width behind the run's tag; `--request` and `--expect` make any other. No I/O and no clock here.

use std::net::SocketAddr;

use memchr::{memchr, memmem};

/// A line that has not ended after so many bytes is no line of a reply: longer than any limit of lines in use.
pub(crate) const MAX_LINE_BYTES: usize = 64 * 1024;
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

/// How the number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Digits {
    /// Sixteen hexadecimal digits: a request of HELO always has the same length, which makes a comparison cheap.
    Hex,
    Decimal,
}

/// A number as text.
struct Written {
    digits: [u8; 20],
    len: usize,
}

impl Written {
    fn new(mut number: u64, digits: Digits) -> Self {
        let mut written = Self { digits: [b'0'; 20], len: 16 };
        if digits == Digits::Hex {
            written.digits[..8].copy_from_slice(&hex(number >> 32));
            written.digits[8..16].copy_from_slice(&hex(number & 0xffff_ffff));
            return written;
        }
        let mut at = written.digits.len();
        loop {
            at -= 1;
            written.digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        written.digits.copy_within(at.., 0);
        written.len = 20 - at;
        written
    }

    fn bytes(&self) -> &[u8] {
        &self.digits[..self.len]
    }
}

/// Bytes with a number in some places, kept as they were last written.
#[derive(Debug, Clone)]
struct Template {
    /// What stands between the numbers.
    parts: Vec<Vec<u8>>,
    digits: Digits,
    bytes: Vec<u8>,
    /// Where the numbers stand in `bytes`, and how long they are.
    slots: Vec<usize>,
    width: usize,
    /// The number that stands there.
    number: u64,
}

impl Template {
    fn new(parts: Vec<Vec<u8>>, digits: Digits) -> Self {
        let mut template = Self { parts, digits, bytes: Vec::new(), slots: Vec::new(), width: 0, number: 0 };
        template.rebuild(&Written::new(0, digits));
        template
    }

    fn rebuild(&mut self, number: &Written) {
        self.bytes.clear();
        self.slots.clear();
        self.width = number.len;
        for (at, part) in self.parts.iter().enumerate() {
            if at > 0 {
                self.slots.push(self.bytes.len());
                self.bytes.extend_from_slice(number.bytes());
            }
            self.bytes.extend_from_slice(part);
        }
    }

    /// Where the lower half of the number stands, if nothing else differs between the bytes as they are and those for `number`.
    ///
    /// What is done for every request and every reply goes by this. Bytes that were just written are slow to be read again in
    /// larger pieces, so these are not written to.
    fn lower_half(&self, number: u64) -> Option<usize> {
        match self.slots[..] {
            [slot] if self.digits == Digits::Hex && self.number >> 32 == number >> 32 => Some(slot + 8),
            _ => None,
        }
    }

    /// Appends the bytes for `number` to `out`.
    fn append(&mut self, number: u64, out: &mut Vec<u8>) {
        if let Some(at) = self.lower_half(number) {
            let from = out.len();
            out.extend_from_slice(&self.bytes);
            out[from + at..from + at + 8].copy_from_slice(&hex(number & 0xffff_ffff));
            return;
        }
        self.write(number);
        out.extend_from_slice(&self.bytes);
    }

    /// Whether `bytes` begin with those for `number`; `None` where that is to be found out in another way.
    fn is_prefix_of(&self, bytes: &[u8], number: u64) -> Option<bool> {
        let at = self.lower_half(number)?;
        let bytes = bytes.get(..self.bytes.len())?;
        let is_same = |range: std::ops::Range<usize>| bytes[range.clone()] == self.bytes[range];
        let digits = bytes[at..at + 8] == hex(number & 0xffff_ffff);
        Some(digits && is_same(at + 8..bytes.len()) && is_same(0..at))
    }

    /// The bytes for `number`. Tells whether their length may have changed.
    fn write(&mut self, number: u64) -> bool {
        if self.slots.is_empty() || self.number == number {
            return false;
        }
        self.number = number;
        let number = Written::new(number, self.digits);
        if number.len != self.width {
            self.rebuild(&number);
            return true;
        }
        for &slot in &self.slots {
            self.bytes[slot..slot + number.len].copy_from_slice(number.bytes());
        }
        false
    }
}

/// A reply: lines, of which some may go on as they like.
#[derive(Debug, Clone)]
struct Reply {
    template: Template,
    /// Of each line in the template, whether anything may follow on it.
    open: Vec<bool>,
    /// Where each line ends in the template's bytes.
    ends: Vec<usize>,
    /// Lines that follow and may be anything.
    free_lines: usize,
    /// Every byte is known, the ends of lines too.
    exact: bool,
}

/// How bytes compare with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// So many of them are it.
    Whole(usize),
    /// They are the start of it.
    Start,
    No,
}

/// Whose reply the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Of the request with this number.
    Of(u64),
    /// Not enough of them to tell.
    Unfinished,
    Unknown,
}

impl Reply {
    fn new(parts: Vec<Vec<u8>>, digits: Digits, open: Vec<bool>, free_lines: usize, exact: bool) -> Self {
        let template = Template::new(parts, digits);
        let mut reply = Self { template, open, ends: Vec::new(), free_lines, exact };
        reply.find_ends();
        reply
    }

    fn find_ends(&mut self) {
        self.ends.clear();
        self.ends.extend(memchr::memchr_iter(b'\n', &self.template.bytes));
    }

    fn write(&mut self, number: u64) {
        if self.template.write(number) {
            self.find_ends();
        }
    }

    fn compare(&mut self, bytes: &[u8], number: u64) -> Match {
        if self.exact && self.template.is_prefix_of(bytes, number) == Some(true) {
            return Match::Whole(self.template.bytes.len());
        }
        self.write(number);
        let full = &self.template.bytes;
        if self.exact {
            return match bytes.get(..full.len()) {
                Some(reply) if reply == full => Match::Whole(full.len()),
                None if full.starts_with(bytes) => Match::Start,
                _ => Match::No,
            };
        }
        let (mut at, mut from) = (0, 0);
        for (&end, &open) in self.ends.iter().zip(&self.open) {
            let expected = &full[from..end];
            from = end + 1;
            match line(&bytes[at..]) {
                Some(line) if agrees(line, expected, open) => at += line.len() + 1,
                None if may_become(&bytes[at..], expected, open) => return Match::Start,
                _ => return Match::No,
            }
        }
        for _ in 0..self.free_lines {
            match line(&bytes[at..]) {
                Some(line) => at += line.len() + 1,
                None if bytes.len() - at < MAX_LINE_BYTES => return Match::Start,
                None => return Match::No,
            }
        }
        Match::Whole(at)
    }

    /// The number that stands in the reply at the front of `bytes`, if they are such a reply up to there.
    fn identify(&self, bytes: &[u8]) -> Identity {
        let Some(prefix) = self.template.parts.first().filter(|_| self.template.parts.len() > 1) else {
            return Identity::Unknown;
        };
        let (mut at, mut from) = (0, 0);
        let lines = prefix.iter().filter(|&&byte| byte == b'\n').count();
        for (expected, &open) in prefix.split(|&byte| byte == b'\n').take(lines).zip(&self.open) {
            from += expected.len() + 1;
            match line(&bytes[at..]) {
                Some(line) if agrees(line, expected, open) => at += line.len() + 1,
                None if may_become(&bytes[at..], expected, open) => return Identity::Unfinished,
                _ => return Identity::Unknown,
            }
        }
        let (rest, prefix) = (&bytes[at..], &prefix[from..]);
        let Some(rest) = rest.strip_prefix(prefix) else {
            return if prefix.starts_with(rest) { Identity::Unfinished } else { Identity::Unknown };
        };
        match self.template.digits {
            Digits::Hex => {
                let digits = &rest[..rest.len().min(16)];
                let lower = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
                match std::str::from_utf8(digits) {
                    Ok(text) if lower && digits.len() == 16 => {
                        u64::from_str_radix(text, 16).map_or(Identity::Unknown, Identity::Of)
                    }
                    Ok(_) if lower => Identity::Unfinished,
                    _ => Identity::Unknown,
                }
            }
            Digits::Decimal => {
                let len = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                if len == rest.len() && len < 20 {
                    return Identity::Unfinished;
                }
                let text = std::str::from_utf8(&rest[..len]).unwrap_or_default();
                // As it is written, and in no other way.
                let plain = text == "0" || !text.starts_with('0');
                text.parse().ok().filter(|_| plain).map_or(Identity::Unknown, Identity::Of)
            }
        }
    }

    fn shown(&self) -> Vec<u8> {
        let (mut shown, mut from) = (Vec::new(), 0);
        for (&end, &open) in self.ends.iter().zip(&self.open) {
            shown.extend_from_slice(&self.template.bytes[from..end]);
            shown.extend_from_slice(if open { b"*\n" } else { b"\n" });
            from = end + 1;
        }
        shown.extend(b"*\n".repeat(self.free_lines));
        shown
    }

    fn lines(&self) -> usize {
        self.open.len() + self.free_lines
    }
}

/// The first line, without `\n`; `None` while it has no end.
fn line(bytes: &[u8]) -> Option<&[u8]> {
    memchr(b'\n', bytes).map(|end| &bytes[..end])
}

/// Whether a line, less the `\r` of its end, is what it must be.
fn agrees(line: &[u8], expected: &[u8], open: bool) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if open { line.starts_with(expected) } else { line == expected }
}

/// Whether bytes without an end of line can still become such a line.
fn may_become(bytes: &[u8], expected: &[u8], open: bool) -> bool {
    match bytes.strip_prefix(expected) {
        Some(rest) if open => rest.len() < MAX_LINE_BYTES,
        Some(rest) => rest.is_empty() || rest == b"\r",
        None => expected.starts_with(bytes),
    }
}

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
            self.reply.template.parts[1] = tail;
            self.reply.template.number = 0;
            self.reply.template.rebuild(&Written::new(0, Digits::Hex));
            self.reply.find_ends();
        }
    }

    /// Appends the bytes of a request to `out`.
    pub(crate) fn append_request(&mut self, number: u64, out: &mut Vec<u8>) {
        self.request.append(number, out);
    }

    /// The bytes of a request.
    pub(crate) fn request(&mut self, number: u64) -> &[u8] {
        self.request.write(number);
        &self.request.bytes
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
    pub(crate) fn compare(&mut self, bytes: &[u8], number: u64) -> Match {
        self.reply.compare(bytes, number)
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
        let prefix = self.reply.template.parts.first().filter(|_| self.reply.template.parts.len() > 1)?;
        if prefix.len() < MIN_MARKER_BYTES || prefix.contains(&b'\n') {
            return None;
        }
        memmem::find(line.get(1..)?, prefix).map(|at| at + 1)
    }

    /// Whether a wrong line begins as the first line of a reply does, so that the others follow it.
    pub(crate) fn is_of_this_kind(&self, line: &[u8]) -> bool {
        let first = self.reply.template.parts.first().map_or(&[][..], Vec::as_slice);
        let word = first.iter().position(|byte| b" :\n".contains(byte)).map_or(first, |end| &first[..=end]);
        !word.is_empty() && line.starts_with(word)
    }

    /// Whether a server of ours says this when it ends a connection.
    pub(crate) fn is_last_word(line: &[u8]) -> bool {
        LAST_WORDS.iter().any(|words| line.starts_with(words))
    }
}

/// What a text of the command line is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Byte(u8),
    Number,
    Line,
    /// A `*` that may stand for the rest of its line.
    Star,
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let (mut tokens, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"{n}") {
            tokens.push(Token::Number);
            rest = after;
            continue;
        }
        if let Some(after) = rest.strip_prefix(b"{line}") {
            tokens.push(Token::Line);
            rest = after;
            continue;
        }
        rest = after;
        tokens.push(match byte {
            b'*' => Token::Star,
            b'\\' => Token::Byte(escape(&mut rest).ok_or_else(|| {
                format!("in `{text}`: an escape is one of \\r \\n \\t \\\\ \\* \\{{ and \\xNN")
            })?),
            byte => Token::Byte(byte),
        });
    }
    Ok(tokens)
}

/// What follows a backslash.
fn escape(rest: &mut &[u8]) -> Option<u8> {
    let (&kind, after) = rest.split_first()?;
    *rest = after;
    match kind {
        b'r' => Some(b'\r'),
        b'n' => Some(b'\n'),
        b't' => Some(b'\t'),
        b'\\' | b'*' | b'{' => Some(kind),
        b'x' => {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            *rest = &rest[2..];
            u8::from_str_radix(digits, 16).ok()
        }
        _ => None,
    }
}

fn push_byte(parts: &mut [Vec<u8>], byte: u8) {
    if let Some(last) = parts.last_mut() {
        last.push(byte);
    }
}

/// The parts between the numbers; `line` is what `{line}` stands for.
fn parts(tokens: &[Token], line: &[Token]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    for &token in tokens {
        match token {
            Token::Byte(byte) => push_byte(&mut parts, byte),
            Token::Star => push_byte(&mut parts, b'*'),
            Token::Number => parts.push(Vec::new()),
            Token::Line => {
                for (at, part) in self::parts(line, &[]).into_iter().enumerate() {
                    if at > 0 {
                        parts.push(Vec::new());
                    }
                    part.into_iter().for_each(|byte| push_byte(&mut parts, byte));
                }
            }
        }
    }
    parts
}

fn reply_of(text: &str, option: &str, lines: Option<usize>, request: &[Token]) -> Result<Reply, String> {
    const CR: Token = Token::Byte(b'\r');
    const LF: Token = Token::Byte(b'\n');
    let mut tokens = tokens(text)?;
    // An end of line at the end adds no line.
    tokens.pop_if(|last| *last == LF);
    let request = request.strip_suffix(&[CR]).unwrap_or(request);
    let (mut whole, mut open) = (Vec::new(), Vec::new());
    for line in tokens.split(|&token| token == LF) {
        let line = line.strip_suffix(&[CR]).unwrap_or(line);
        let fixed = line.strip_suffix(&[Token::Star]);
        open.push(fixed.is_some());
        whole.extend_from_slice(fixed.unwrap_or(line));
        whole.push(LF);
    }
    let given = open.len();
    if let Some(lines) = lines.filter(|&lines| lines < given) {
        return Err(format!("--expect-lines is {lines}, but {option} has {given} lines"));
    }
    if whole.contains(&Token::Line) && request.contains(&LF) {
        return Err("`{line}` stands for a request of one line".to_owned());
    }
    let free_lines = lines.map_or(0, |lines| lines - given);
    Ok(Reply::new(parts(&whole, request), Digits::Decimal, open, free_lines, false))
}

/// Eight hexadecimal digits of a number of 32 bits, without a loop or a table: they are written twice for every request.
fn hex(value: u64) -> [u8; 8] {
    let mut x = (value | value << 16) & 0x0000_ffff_0000_ffff;
    x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    x = (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((x + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (x + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
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
    fn hex_is_what_the_standard_library_writes() {
        for value in [0, 1, 9, 10, 15, 16, 0xdead_beef, 0x0123_4567, 0x89ab_cdef, u64::from(u32::MAX)] {
            assert_eq!(hex(value).to_vec(), format!("{value:08x}").into_bytes());
        }
        for number in [0, 7, 10, 99, 100, u64::from(u32::MAX) + 1, u64::MAX] {
            assert_eq!(Written::new(number, Digits::Decimal).bytes(), number.to_string().as_bytes());
            assert_eq!(Written::new(number, Digits::Hex).bytes(), format!("{number:016x}").as_bytes());
        }
    }

    #[test]
    fn numbers_and_the_request_itself_are_put_in() {
        let mut protocol = custom("SET k{n} v{n}", "{line}!{n}");
        for number in [7, 8, 12, 100, 3] {
            assert_eq!(text(protocol.request(number)), format!("SET k{number} v{number}\\n"));
            assert_eq!(text(protocol.reply(number)), format!("SET k{number} v{number}!{number}\\n"));
        }
        let mut protocol = custom(r"ms {n} 1\r\nx\x41\\\{n}\r", "HD");
        assert_eq!(text(protocol.request(5)), r"ms 5 1\r\nxA\\{n}\r\n");
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
        assert_eq!(text(&custom("x", r"a*\nb{n}").shown_reply(7)), r"a*\nb7\n");
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
            ("OK", "OK\n", Identity::Unknown),
        ] {
            assert_eq!(custom("x{n}", expect).identify(bytes.as_bytes()), whose, "{expect}: {bytes:?}");
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

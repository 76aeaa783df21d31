//! Requests and replies as they are written on the command line: `{n}`, `{line}`, `*` and escapes.

use super::reply::Reply;
use super::template::Digits;

/// What a text of the command line is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Byte(u8),
    Number,
    Line,
    /// A `*` that may stand for the rest of its line.
    Star,
}

pub(super) fn tokens(text: &str) -> Result<Vec<Token>, String> {
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

pub(super) fn push_byte(parts: &mut [Vec<u8>], byte: u8) {
    if let Some(last) = parts.last_mut() {
        last.push(byte);
    }
}

/// The parts between the numbers; `line` is what `{line}` stands for.
pub(super) fn parts(tokens: &[Token], line: &[Token]) -> Vec<Vec<u8>> {
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

pub(super) fn reply_of(
    text: &str,
    option: &str,
    lines: Option<usize>,
    request: &[Token],
) -> Result<Reply, String> {
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

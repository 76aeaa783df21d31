//! A sink for mail (RFC 5321): takes every message, for anybody, and keeps it in a file or forgets it.
//!
//! `smtp [ADDR:PORT [DIRECTORY]]`: a message is a file `*.eml` there once it is answered with 250, its envelope in the first lines.
//!
//! `DATA` changes the framing, until the dot: a message comes in pieces, so that a connection holds little of it.

mod body;
#[path = "../common/mod.rs"]
mod common;
mod message;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use body::{Body, is_last, text};
use message::{MAX_MESSAGE_BYTES, Message, TOO_BIG};
use tidemill::framing::Framing;
use tidemill::{Connection, Farewell, Kind, Reply, Request, Service};

/// Of a command: RFC 5321 asks for 512 at least, and extensions for some more.
const MAX_COMMAND_BYTES: usize = 2048;
/// RFC 5321 asks for 100 at least.
const MAX_RECIPIENTS: usize = 1000;
/// How long the rest of a command or a piece, and the next command, is waited for: what RFC 5321 asks for.
const PATIENCE: Duration = Duration::from_secs(300);

const SYNTAX: &str = "501 syntax error in the arguments";
const SEQUENCE: &str = "503 bad sequence of commands";

#[derive(Default)]
struct Client {
    greeted: bool,
    from: Option<String>,
    to: Vec<String>,
    message: Option<Message>,
}

struct Sink {
    directory: Option<PathBuf>,
    /// What the names of this run begin with, and the messages so far.
    run: u128,
    messages: AtomicU64,
}

/// The address behind `FROM:` or `TO:`, and the parameters in upper case.
fn path(rest: &str, keyword: &str) -> Option<(String, String)> {
    let (before, behind) = rest.split_at_checked(keyword.len())?;
    let (path, parameters) = behind.trim_start().strip_prefix('<')?.rsplit_once('>')?;
    before.eq_ignore_ascii_case(keyword).then(|| (path.to_owned(), parameters.to_ascii_uppercase()))
}

impl Sink {
    fn command(&self, client: &mut Client, line: &str, reply: &mut Reply<'_>) -> &'static str {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (verb, rest) = (verb.to_ascii_uppercase(), rest.trim());
        if rest.is_empty() == (verb == "RSET") && matches!(&*verb, "HELO" | "EHLO" | "RSET") {
            *client = Client { greeted: client.greeted || verb != "RSET", ..Client::default() };
        }
        match (&*verb, rest) {
            ("HELO" | "EHLO" | "VRFY", "") => SYNTAX,
            ("HELO", _) => "250 tidemill",
            ("EHLO", _) => {
                let size = format!("250-SIZE {MAX_MESSAGE_BYTES}\r\n");
                reply.push(&[b"250-tidemill\r\n250-PIPELINING\r\n", size.as_bytes()].concat());
                "250 8BITMIME"
            }
            ("MAIL", _) => match path(rest, "FROM:") {
                None => SYNTAX,
                Some(_) if !client.greeted || client.from.is_some() => SEQUENCE,
                Some((from, parameters)) => {
                    for parameter in parameters.split_whitespace() {
                        match parameter.split_once('=') {
                            Some(("BODY", "7BIT" | "8BITMIME")) => {}
                            Some(("SIZE", size)) => match size.parse() {
                                Ok(0..=MAX_MESSAGE_BYTES) => {}
                                Ok(_) => return TOO_BIG,
                                Err(_) => return SYNTAX,
                            },
                            _ => return "555 parameter not recognized",
                        }
                    }
                    client.from = Some(from);
                    "250 sender ok"
                }
            },
            ("RCPT", _) => match path(rest, "TO:") {
                Some((to, parameters)) if !to.is_empty() && parameters.is_empty() => match client.from {
                    None => SEQUENCE,
                    Some(_) if client.to.len() == MAX_RECIPIENTS => "452 too many recipients",
                    Some(_) => {
                        client.to.push(to);
                        "250 recipient ok"
                    }
                },
                _ => SYNTAX,
            },
            ("DATA", "") if client.to.is_empty() => SEQUENCE,
            ("DATA", "") => {
                let name = format!("{}-{}.eml", self.run, self.messages.fetch_add(1, Relaxed));
                let mut envelope = format!("Return-Path: <{}>\r\n", client.from.take().unwrap_or_default());
                client.to.drain(..).for_each(|to| envelope += &format!("Delivered-To: <{to}>\r\n"));
                let path = self.directory.as_ref().map(|directory| directory.join(name));
                client.message = Some(Message::begin(path, &envelope));
                "354 end with a dot on a line of its own"
            }
            ("RSET", "") | ("NOOP", _) => "250 ok",
            ("VRFY", _) => "252 send it, and see",
            ("QUIT", "") => {
                reply.close();
                "221 bye"
            }
            ("DATA" | "RSET" | "QUIT", _) => SYNTAX,
            _ => "500 unknown command",
        }
    }
}

impl Service for Sink {
    type State = Client;
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, reply: &mut Reply<'_>) -> Client {
        reply.push(b"220 tidemill ESMTP\r\n");
        Client::default()
    }

    fn handle(&self, client: &mut Client, _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        let said = match &mut client.message {
            None => self.command(client, &String::from_utf8_lossy(request.line()), reply),
            Some(message) => {
                message.add(&text(request.frame()));
                if !is_last(request.frame()) {
                    return;
                }
                let said = message.end();
                client.message = None;
                said
            }
        };
        reply.push(format!("{said}\r\n").as_bytes());
    }

    fn framing<'a>(&'a self, client: &'a Client) -> Option<&'a dyn Framing> {
        client.message.as_ref().map(|_| &Body as &dyn Framing)
    }

    fn classify(&self, client: &Client, frame: &[u8]) -> Kind {
        let switches = match client.message {
            Some(_) => is_last(frame),
            None => frame.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"DATA")),
        };
        if switches { Kind::Switch } else { Kind::Request }
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        let code = if matches!(farewell, Farewell::LineTooLong { .. }) { 500 } else { 421 };
        Some(format!("{code} {farewell}\r\n").into_bytes())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let directory = std::env::args_os().nth(2).map(PathBuf::from);
    common::run(Sink { directory, run, messages: AtomicU64::new(0) }, |config| {
        config.max_line_bytes = MAX_COMMAND_BYTES;
        (config.line_timeout, config.idle_timeout) = (Some(PATIENCE), Some(PATIENCE));
    })
}

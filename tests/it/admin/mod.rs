//! The admin address: what it says, that it says so whatever the server is doing, and that it disturbs nobody.

mod hostile;
mod page;
mod prometheus;
mod routes;
mod states;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use tidemill::Server;

use crate::support::{DEADLINE, Serving, eventually, resolved};

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.field("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Reads one answer, and what may be of the next. `None`: the stream ended before it began.
#[track_caller]
pub(crate) fn read_answer(stream: &mut impl Read, rest: &mut Vec<u8>, has_body: bool) -> Option<Answer> {
    let mut more = |rest: &mut Vec<u8>| {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).unwrap_or(0);
        rest.extend_from_slice(&part[..read]);
        read > 0
    };
    let end = loop {
        if let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if !more(rest) {
            assert!(rest.is_empty(), "half an answer: {}", rest.escape_ascii());
            return None;
        }
    };
    let head = String::from_utf8(rest.drain(..end).collect()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer { status, head, body: String::new() };
    if has_body {
        let length = answer.field("content-length").unwrap().parse().unwrap();
        while rest.len() < length {
            assert!(more(rest), "half a body: {answer:?}");
        }
        answer.body = String::from_utf8(rest.drain(..length).collect()).unwrap();
    }
    Some(answer)
}

/// A connection to an admin address.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Asks for a path, on a connection of its own. `None`: it is not answered.
pub(crate) fn try_get(address: SocketAddr, path: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    read_answer(&mut stream, &mut Vec::new(), true)
}

#[track_caller]
pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    try_get(address, path).unwrap_or_else(|| panic!("{path} is not answered"))
}

/// The admin address of a server in this process.
#[track_caller]
pub(crate) fn admin_of(server: &Server) -> SocketAddr {
    resolved(server.handle().admin_addr().unwrap())
}

/// A request at each of 64 admin connections.
pub(crate) const MAX_CONNECTIONS: usize = 64;
/// A service that looks on closes whoever is silent after that long.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// The admin address of the program, which says it in its log.
#[track_caller]
pub(crate) fn admin_of_program(serving: &Serving) -> SocketAddr {
    let mut address = None;
    eventually("the admin address in the log", || {
        let log = serving.log();
        let line = log.lines().find(|line| line.contains("admin address"));
        address = line.and_then(|line| line.split_once("address=")?.1.trim().parse().ok());
        address.is_some()
    });
    address.unwrap()
}

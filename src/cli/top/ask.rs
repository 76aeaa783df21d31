//! The question to the admin address, and its answer.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use tidemill::Address;

use crate::cli::connect;

/// Longest answer in bytes: more is none of ours.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Most fields in the head of an answer.
const MAX_FIELDS: usize = 64;

/// Who is asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) address: Address,
    /// For the whole answer.
    pub(super) timeout: Duration,
}

impl Asked {
    /// The body of the answer.
    ///
    /// # Errors
    /// One line that says why there is none.
    pub(super) fn get(&self, path: &str) -> Result<String, String> {
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("{}: no answer within {:?}", self.address, self.timeout)
            }
            _ => format!("{}: {error}", self.address),
        };
        let bytes = self.exchange(path).map_err(failed)?;
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut answer = httparse::Response::new(&mut fields);
        let body = match answer.parse(&bytes) {
            Ok(httparse::Status::Complete(head)) => &bytes[head..],
            _ => return Err(format!("{}: that is no admin address: it does not speak HTTP", self.address)),
        };
        match answer.code {
            Some(200) => String::from_utf8(body.to_vec())
                .map_err(|_| format!("{}: the answer is no text", self.address)),
            code => Err(format!("{}: it answers {} to {path}", self.address, code.unwrap_or_default())),
        }
    }

    /// All that it says until it closes.
    fn exchange(&self, path: &str) -> std::io::Result<Vec<u8>> {
        let deadline = Instant::now() + self.timeout;
        let mut stream = match &self.address {
            Address::Unix(path) => connect::unix(path, self.timeout)?,
            address => connect::tcp(&[address.tcp().ok_or(ErrorKind::InvalidInput)?], self.timeout)?,
        };
        let rest = || Some(deadline.saturating_duration_since(Instant::now())).filter(|rest| !rest.is_zero());
        stream.set_write_timeout(Some(rest().ok_or(ErrorKind::TimedOut)?))?;
        // By version 1.0 the body ends with the stream.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
        let (mut bytes, mut part) = (Vec::new(), [0; 16 << 10]);
        loop {
            stream.set_read_timeout(Some(rest().ok_or(ErrorKind::TimedOut)?))?;
            match stream.read(&mut part) {
                Ok(0) => return Ok(bytes),
                Ok(read) => bytes.extend_from_slice(&part[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if bytes.len() > MAX_ANSWER_BYTES {
                return Err(ErrorKind::InvalidData.into());
            }
        }
    }
}

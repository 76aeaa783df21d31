//! A table for Postfix, in an SQLite file: `lookup [ADDR:PORT] [FILE]`, by the protocol of `tcp_table(5)`.
//!
//! `postmap -q KEY tcp:ADDR:PORT` asks it. The table is `entries` (`key`, `value`) in FILE, which is made if it is not there. A
//! look-up reads from the disk and may wait for a writer, so it runs on a worker, and each worker has a handle of the file.

mod common;

use std::env;
use std::path::PathBuf;

use rusqlite::{Connection as Database, OpenFlags, OptionalExtension, Result};
use tidemill::{Connection, Farewell, Reply, Request, Service};

/// Bytes of a reply at the most, its newline included: Postfix reads no more.
const MAX_REPLY_BYTES: usize = 4096;

struct Lookup {
    file: PathBuf,
}

impl Service for Lookup {
    type State = ();
    type Worker = Result<Database>;

    fn start_worker(&self) -> Result<Database> {
        Database::open_with_flags(
            &self.file,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
    }

    fn open(&self, _: &mut Result<Database>, _: &Connection<'_>, _: &mut Reply<'_>) {}

    fn handle(
        &self,
        (): &mut (),
        database: &mut Result<Database>,
        request: &Request<'_>,
        reply: &mut Reply<'_>,
    ) {
        let found = match request.line().strip_prefix(b"get ").map(decode) {
            Some(Some(key)) => match database {
                Ok(database) => value(database, &key).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            },
            Some(None) => Err("the key is encoded wrongly".to_owned()),
            None => Err("only get is known".to_owned()),
        };
        let line = match found {
            Ok(Some(value)) => answer("200", &value),
            Ok(None) => answer("500", b"not found"),
            Err(why) => answer("400", why.as_bytes()),
        };
        reply.push(&if line.len() > MAX_REPLY_BYTES {
            answer("400", b"the value is too long")
        } else {
            line
        });
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        Some(answer("400", farewell.to_string().as_bytes()))
    }

    fn name(&self) -> &str {
        "lookup"
    }
}

fn value(database: &Database, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut query =
        database.prepare_cached("SELECT CAST(value AS BLOB) FROM entries WHERE key = CAST(? AS TEXT)")?;
    query.query_row([key], |row| row.get(0)).optional()
}

/// A status and a text, in which what is not printed, white space and `%` are written as `%XX`.
fn answer(status: &str, text: &[u8]) -> Vec<u8> {
    let mut line = format!("{status} ").into_bytes();
    for byte in text {
        match byte {
            b'%' => line.extend_from_slice(b"%25"),
            b'!'..=b'~' => line.push(*byte),
            byte => line.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    line.push(b'\n');
    line
}

/// The text that was written so. `None`: it was not.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut parts = text.split(|byte| *byte == b'%');
    let mut decoded = parts.next()?.to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        let digit =
            |at: usize| char::from(digits[at]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        decoded.push(digit(0)? << 4 | digit(1)?);
        decoded.extend_from_slice(rest);
    }
    Some(decoded)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let file = PathBuf::from(env::args_os().nth(2).unwrap_or("lookup.sqlite".into()));
    let database = Database::open(&file)?;
    // With a log of its own a writer does not hold up readers.
    database.pragma_update(None, "journal_mode", "wal")?;
    database.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT)", [])?;
    common::run(Lookup { file }, |_| ())
}

//! A store in memory for Redis clients: `kv [ADDR:PORT] [--workers]`.
//!
//! Nothing of it blocks, so it runs on the event loop; with `--workers` on the pool, as if it did.

#[path = "../common/mod.rs"]
mod common;
mod resp;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tidemill::framing::Framing;
use tidemill::{Connection, Place, Reply, Request, Service};

/// Parts of the store, each with a lock: several for each worker, so that few wait for each other.
const SHARDS: usize = 64;

type Shard = HashMap<Box<[u8]>, Vec<u8>>;

struct Kv {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    place: Place,
}

impl Service for Kv {
    /// The connection speaks RESP3, where no value is written otherwise.
    type State = bool;
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, (): &mut (), _: &Connection<'_>, _: &mut Reply<'_>) -> bool {
        false
    }

    fn handle(&self, resp3: &mut bool, (): &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        let mut args = Vec::with_capacity(4);
        if let Err((why, _)) = resp::words(request.frame(), 0, |word| args.push(word)) {
            reply.push(format!("-ERR Protocol error: {why}\r\n").as_bytes());
            return reply.close();
        }
        let [name, args @ ..] = &args[..] else { return };
        // No command has as many letters.
        let (mut upper, len) = ([0; 8], name.len().min(8));
        upper[..len].copy_from_slice(&name[..len]);
        upper.make_ascii_uppercase();
        match (&upper[..len], args) {
            (b"GET", [key]) => match self.shard(key).get(*key) {
                Some(value) => bulk(reply, value),
                None => reply.push(if *resp3 { b"_\r\n" } else { b"$-1\r\n" }),
            },
            (b"SET", [key, value]) => {
                set(&mut self.shard(key), key, value);
                reply.push(b"+OK\r\n");
            }
            (b"INCR", [key]) => self.add(key, b"1", reply),
            (b"INCRBY", [key, number]) => self.add(key, number, reply),
            (b"DEL", [_, ..]) => {
                let gone = args.iter().filter(|key| self.shard(key).remove(**key).is_some());
                number(reply, ":", gone.count());
            }
            (b"EXISTS", [_, ..]) => {
                let there = args.iter().filter(|key| self.shard(key).contains_key(**key));
                number(reply, ":", there.count());
            }
            (b"DBSIZE", []) => number(reply, ":", self.shards.iter().map(|shard| lock(shard).len()).sum()),
            (b"PING", []) => reply.push(b"+PONG\r\n"),
            (b"PING" | b"ECHO", [text]) => bulk(reply, text),
            // What clients ask and tell before they begin.
            (b"HELLO", [] | [b"2" | b"3", ..]) => {
                *resp3 = args.first().map_or(*resp3, |version| *version == b"3");
                reply.push(if *resp3 { b"%2\r\n" } else { b"*4\r\n" });
                ["server", "tidemill", "proto"].iter().for_each(|text| bulk(reply, text.as_bytes()));
                number(reply, ":", if *resp3 { 3 } else { 2 });
            }
            (b"CLIENT", _) => reply.push(b"+OK\r\n"),
            (b"COMMAND", _) => reply.push(b"*0\r\n"),
            (b"CONFIG", [_, name]) => {
                reply.push(if *resp3 { b"%1\r\n" } else { b"*2\r\n" });
                [name, &b""[..]].iter().for_each(|text| bulk(reply, text));
            }
            _ => {
                let name = name.escape_ascii();
                reply.push(
                    format!("-ERR unknown command '{name}', or not with these arguments\r\n").as_bytes(),
                );
            }
        }
    }

    fn place(&self) -> Place {
        self.place
    }

    fn framing<'a>(&'a self, _: &'a bool) -> Option<&'a dyn Framing> {
        Some(&resp::Resp)
    }
}

impl Kv {
    /// The part of the store where `key` belongs.
    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        lock(&self.shards[usize::from(self.hasher.hash_one(key).to_le_bytes()[0]) % SHARDS])
    }

    fn add(&self, key: &[u8], number: &[u8], reply: &mut Reply<'_>) {
        let integer = |text| str::from_utf8(text).ok()?.parse::<i64>().ok();
        let mut shard = self.shard(key);
        let before = shard.get(key).map_or(Some(0), |value| integer(value));
        let Some(sum) = before.zip(integer(number)).and_then(|(before, number)| before.checked_add(number))
        else {
            return reply.push(b"-ERR value is not an integer or out of range\r\n");
        };
        let text = sum.to_string();
        set(&mut shard, key, text.as_bytes());
        [":", &text, "\r\n"].iter().for_each(|part| reply.push(part.as_bytes()));
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set(shard: &mut Shard, key: &[u8], value: &[u8]) {
    match shard.get_mut(key) {
        Some(old) => value.clone_into(old),
        None => drop(shard.insert(key.into(), value.to_vec())),
    }
}

fn bulk(reply: &mut Reply<'_>, text: &[u8]) {
    number(reply, "$", text.len());
    [text, b"\r\n"].iter().for_each(|part| reply.push(part));
}

fn number(reply: &mut Reply<'_>, sign: &str, number: usize) {
    write!(reply, "{sign}{number}\r\n").expect("a reply takes all that is written");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let workers = std::env::args().any(|argument| argument == "--workers");
    let place = if workers { Place::Worker } else { Place::Loop };
    let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
    common::run(Kv { shards, hasher: RandomState::new(), place }, |_| ())
}

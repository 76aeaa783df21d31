//! Chat rooms: requests of several lines, a state for each connection, and messages that reach all members in one order.
//!
//! A frame is a whole request, or what came of one up to the line that does not fit: so `HELO` and `KILL_SERVICE` count where a
//! request begins and nowhere else. A line fits if it has its field's name; values are looked at when the request is whole.
//!
//! Every request is a [`Kind::Switch`], so what it pushes is behind the replies to those before it. What a room is told is pushed
//! under the room's lock; a reply that comes before it is flushed before that, as flushing may wait for the peer.

mod common;

use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill::framing::{Found, Framing, Lines};
use tidemill::{
    CloseReason, Connection, ConnectionId, Farewell, Group, Handler, Helo, Kind, Pusher, Reply, Request,
    Service,
};

/// Most bytes of a request, without the line ending or empty line that ends it: as many as a line may have by default.
const MAX_REQUEST_BYTES: usize = 64 << 10;
/// What a member may leave unread beyond what the kernel holds: thousands of messages, so only who has stopped reading is closed.
const MAX_UNREAD_BYTES: usize = 1 << 20;

/// The fields of each request, in their order.
const FORMS: [&[&str]; 4] = [
    &["JOIN_CHATROOM", "CLIENT_IP", "PORT", "CLIENT_NAME"],
    &["LEAVE_CHATROOM", "JOIN_ID", "CLIENT_NAME"],
    &["CHAT", "JOIN_ID", "CLIENT_NAME", "MESSAGE"],
    &["DISCONNECT", "PORT", "CLIENT_NAME"],
];

/// Whoever holds its lock says what its members see next.
type Room = Arc<Mutex<Group>>;
/// A room, and the name that a client joined it with.
type Membership = (Room, Vec<u8>);
/// What a request has instead of being done: a code and a description.
type Fault = (u8, &'static str);
const MALFORMED: Fault = (1, "malformed request");

fn error((code, description): Fault) -> Vec<u8> {
    format!("ERROR_CODE: {code}\nERROR_DESCRIPTION: {description}\n").into_bytes()
}

/// The value of a field, if `line` is this one.
fn value<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

fn form(frame: &[u8]) -> &'static [&'static str] {
    FORMS.into_iter().find(|form| value(frame, form[0]).is_some()).unwrap_or_default()
}

/// Cuts requests.
struct Requests;

impl Framing for Requests {
    fn next(&self, bytes: &[u8], scanned: usize, ended: bool) -> Found {
        let is_long = bytes.len() > MAX_REQUEST_BYTES + b"\r\n".len();
        let more = if is_long { Found::TooLong } else { Found::More { scanned: bytes.len() } };
        if !ended && memchr::memchr(b'\n', &bytes[scanned..]).is_none() {
            return more;
        }
        let (mut fields, mut at) = (form(bytes).iter(), 0);
        let mut end = loop {
            // A last line without its ending counts, if there is one.
            let line = Lines::new(usize::MAX).next(&bytes[at..], 0, ended && at < bytes.len());
            let Found::Frame { content, consumed } = line else { return more };
            let (line, end) = (&bytes[at..][..content.end], at + content.end);
            at += consumed;
            match fields.next() {
                Some(&"MESSAGE") if value(line, "MESSAGE").is_some() => break None,
                Some(name) if value(line, name).is_some() && fields.len() > 0 => {}
                _ => break Some(end),
            }
        };
        if end.is_none() {
            // The text, up to an empty line.
            let from = at.max(scanned);
            let is_empty = |at: &usize| bytes[..*at].ends_with(b"\n") || bytes[..*at].ends_with(b"\n\r");
            let mut line_ends = memchr::memchr_iter(b'\n', &bytes[from..]).map(|end| from + end);
            let Some(last) = line_ends.find(is_empty) else { return more };
            (end, at) = (Some(last - usize::from(bytes[last - 1] == b'\r')), last + 1);
        }
        match end {
            Some(end) if end <= MAX_REQUEST_BYTES => Found::Frame { content: 0..end, consumed: at },
            _ => Found::TooLong,
        }
    }

    fn max_bytes(&self) -> usize {
        MAX_REQUEST_BYTES
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells a room that `name` says `text`. Who does not take it must not get what comes after it.
fn tell(members: &mut Group, room_ref: u64, name: &[u8], text: &[u8]) {
    let head = format!("CHAT: {room_ref}\nCLIENT_NAME: ");
    for (id, _) in members.push([head.as_bytes(), name, b"\nMESSAGE: ", text, b"\n\n"].concat()) {
        members.remove(id).iter().for_each(Pusher::close);
    }
}

/// Tells it that `name` has come or gone.
fn tell_has(members: &mut Group, room_ref: u64, name: &[u8], what: &str) {
    tell(members, room_ref, name, &[name, b" has ", what.as_bytes(), b" this chatroom."].concat());
}

fn leave((room_ref, (room, joined_as)): (u64, Membership), name: Option<&[u8]>, id: ConnectionId) {
    let mut members = lock(&room);
    tell_has(&mut members, room_ref, name.unwrap_or(&joined_as), "left");
    members.remove(id);
}

#[derive(Default)]
struct Chat {
    helo: Helo,
    /// The rooms by name, and their refs, which count from 1. They stay for ever.
    rooms: Mutex<HashMap<Vec<u8>, (u64, Room)>>,
    /// Clients that have joined a room.
    joined: AtomicU64,
}

#[derive(Default)]
struct Client {
    join_id: Option<u64>,
    rooms: BTreeMap<u64, Membership>,
}

impl Chat {
    fn run(&self, client: &mut Client, request: &Request<'_>, reply: &mut Reply<'_>) -> Result<(), Fault> {
        let (frame, local, id) = (request.frame(), request.local_addr(), request.connection().id());
        let form = form(frame);
        let mut values = [&b""[..]; 4];
        let mut lines = frame.splitn(form.len(), |byte| *byte == b'\n');
        for (at, name) in form.iter().enumerate() {
            let line = lines.next().ok_or(MALFORMED)?;
            // That of the last line is gone, or belongs to the text.
            let line = line.strip_suffix(b"\r").filter(|_| at + 1 < form.len()).unwrap_or(line);
            values[at] = value(line, name).ok_or(MALFORMED)?;
        }
        let number = |at: usize| std::str::from_utf8(values[at]).ok()?.trim().parse().ok();
        let of_room = || {
            let (room_ref, join_id) = number(0).zip(number(1)).ok_or(MALFORMED)?;
            let exists = (1..=lock(&self.rooms).len() as u64).contains(&room_ref);
            if exists { Ok((room_ref, join_id)) } else { Err((2, "no such room")) }
        };
        match form.first().copied().ok_or((4, "unknown request"))? {
            "JOIN_CHATROOM" => {
                let mut rooms = lock(&self.rooms);
                let next = (rooms.len() as u64 + 1, Room::default());
                let (room_ref, room) = rooms.entry(values[0].to_vec()).or_insert(next).clone();
                drop(rooms);
                let join_id = client.join_id.get_or_insert_with(|| self.joined.fetch_add(1, Relaxed) + 1);
                let ip = local.ip().map_or("unix".to_owned(), |ip| ip.to_string());
                let server = format!("\nSERVER_IP: {ip}\nPORT: {}\n", local.port());
                let ids = format!("ROOM_REF: {room_ref}\nJOIN_ID: {join_id}\n");
                let joined = [b"JOINED_CHATROOM: ", values[0], server.as_bytes(), ids.as_bytes()].concat();
                reply.push(&joined);
                // Whoever has gone is told to the others when it is closed.
                reply.flush().unwrap_or_default();
                if let Entry::Vacant(vacant) = client.rooms.entry(room_ref) {
                    vacant.insert((Arc::clone(&room), values[3].to_vec()));
                    let mut members = lock(&room);
                    members.insert(request.connection().pusher());
                    tell_has(&mut members, room_ref, values[3], "joined");
                }
            }
            "LEAVE_CHATROOM" => {
                let (room_ref, join_id) = of_room()?;
                reply.push(format!("LEFT_CHATROOM: {room_ref}\nJOIN_ID: {join_id}\n").as_bytes());
                reply.flush().unwrap_or_default();
                if client.join_id == Some(join_id)
                    && let Some(left) = client.rooms.remove_entry(&room_ref)
                {
                    leave(left, Some(values[2]), id);
                }
            }
            "CHAT" => {
                let (room_ref, join_id) = of_room()?;
                let room = client.rooms.get(&room_ref).filter(|_| client.join_id == Some(join_id));
                let (room, _) = room.ok_or((3, "not a member"))?;
                let text = values[3].strip_suffix(b"\n").unwrap_or(values[3]);
                let lines =
                    text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
                tell(&mut lock(room), room_ref, values[2], &lines.collect::<Vec<_>>().join(&b'\n'));
            }
            _ => {
                let rooms = std::mem::take(&mut client.rooms);
                rooms.into_iter().for_each(|left| leave(left, Some(values[2]), id));
                reply.close();
            }
        }
        Ok(())
    }
}

impl Service for Chat {
    type State = Client;
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) -> Client {
        Client::default()
    }

    fn handle(&self, client: &mut Client, _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        if request.frame().starts_with(b"HELO ") {
            Handler::handle(&self.helo, request, reply);
        } else if let Err(fault) = self.run(client, request, reply) {
            reply.push(&error(fault));
        }
    }

    fn close(&self, client: Client, _: &mut (), connection: &Connection<'_>, reason: CloseReason) {
        // At a stop all leave at once.
        if !matches!(reason, CloseReason::Stopping | CloseReason::Aborted) {
            client.rooms.into_iter().for_each(|left| leave(left, None, connection.id()));
        }
    }

    fn framing<'a>(&'a self, _: &'a Client) -> Option<&'a dyn Framing> {
        Some(&Requests)
    }

    fn classify(&self, _: &Client, frame: &[u8]) -> Kind {
        match Handler::classify(&self.helo, frame) {
            Kind::Ignored if !frame.is_empty() => Kind::Switch,
            Kind::Request => Kind::Switch,
            other => other,
        }
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        match farewell {
            Farewell::LineTooLong { .. } => Some(error((1, "request too long"))),
            other => Handler::last_line(&self.helo, other),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::run(Chat::default(), |config| config.high_watermark_bytes = MAX_UNREAD_BYTES)
}

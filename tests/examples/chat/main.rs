//! Chat rooms: requests of several lines, a state for each connection, and messages that reach all members in one order.
//!
//! What a request pushes is behind the replies to those before it. What a room is told is pushed under the room's lock; a reply
//! that comes before it is flushed before that, as flushing may wait for the peer.

#[path = "../common/mod.rs"]
mod common;
mod requests;

use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use requests::{Fault, MALFORMED, Requests, fields};
use tidemill::framing::Framing;
use tidemill::{
    CloseReason, Connection, ConnectionId, Farewell, Group, Handler, Helo, Kind, Pusher, Reply, Request,
    Service,
};

/// What a member may leave unread beyond what the kernel holds: thousands of messages, so only who has stopped reading is closed.
const MAX_UNREAD_BYTES: usize = 1 << 20;
/// For so long it may take nothing of what waits for it. No later than this after it was closed the others are told.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Whoever holds its lock says what its members see next.
type Room = Arc<Mutex<Group>>;
/// A room, and the name that a client joined it with.
type Membership = (Room, Vec<u8>);

fn error((code, description): Fault) -> Vec<u8> {
    format!("ERROR_CODE: {code}\nERROR_DESCRIPTION: {description}\n").into_bytes()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells a room that `name` says `text`. Who does not take it must not get what comes after it.
fn tell(members: &mut Group, room_ref: u64, name: &[u8], text: &[u8]) {
    let head = format!("CHAT: {room_ref}\nCLIENT_NAME: ");
    for (id, _) in members.blocking_push([head.as_bytes(), name, b"\nMESSAGE: ", text, b"\n\n"].concat()) {
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
        let (local, id) = (request.local_addr(), request.connection().id());
        let (kind, values) = fields(request.frame())?;
        let number = |at: usize| std::str::from_utf8(values[at]).ok()?.trim().parse().ok();
        let of_room = || {
            let (room_ref, join_id) = number(0).zip(number(1)).ok_or(MALFORMED)?;
            let exists = (1..=lock(&self.rooms).len() as u64).contains(&room_ref);
            if exists { Ok((room_ref, join_id)) } else { Err((2, "no such room")) }
        };
        match kind {
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
            Kind::Ignored if !frame.is_empty() => Kind::Request,
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
    common::run(Chat::default(), |config| {
        (config.high_watermark_bytes, config.write_timeout) = (MAX_UNREAD_BYTES, Some(MAX_PAUSE));
    })
}

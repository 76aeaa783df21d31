//! The example `chat`, rule by rule and byte for byte, and by two hundred clients at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use rustix::process::Signal;
use tidemill::framing::verify;

use super::example;
use crate::support::{Peer, Serving, assert_same, helo_reply, in_parallel};

#[path = "../../examples/chat/requests.rs"]
mod requests;

fn chat() -> Serving {
    example("chat", &[])
}

fn join(room: &str, name: &str) -> String {
    format!("JOIN_CHATROOM: {room}\nCLIENT_IP: 0\nPORT: 0\nCLIENT_NAME: {name}\n")
}

fn joined(server: SocketAddr, room: &str, room_ref: u64, join_id: u64) -> String {
    let (ip, port) = (server.ip(), server.port());
    format!(
        "JOINED_CHATROOM: {room}\nSERVER_IP: {ip}\nPORT: {port}\nROOM_REF: {room_ref}\nJOIN_ID: {join_id}\n"
    )
}

fn leave(room_ref: u64, join_id: u64, name: &str) -> String {
    format!("LEAVE_CHATROOM: {room_ref}\nJOIN_ID: {join_id}\nCLIENT_NAME: {name}\n")
}

fn left(room_ref: u64, join_id: u64) -> String {
    format!("LEFT_CHATROOM: {room_ref}\nJOIN_ID: {join_id}\n")
}

fn say(room_ref: u64, join_id: u64, name: &str, text: &str) -> String {
    format!("CHAT: {room_ref}\nJOIN_ID: {join_id}\nCLIENT_NAME: {name}\nMESSAGE: {text}\n\n")
}

fn message(room_ref: u64, name: &str, text: &str) -> String {
    format!("CHAT: {room_ref}\nCLIENT_NAME: {name}\nMESSAGE: {text}\n\n")
}

fn has_joined(room_ref: u64, name: &str) -> String {
    message(room_ref, name, &format!("{name} has joined this chatroom."))
}

fn has_left(room_ref: u64, name: &str) -> String {
    message(room_ref, name, &format!("{name} has left this chatroom."))
}

fn disconnect(name: &str) -> String {
    format!("DISCONNECT: 0\nPORT: 0\nCLIENT_NAME: {name}\n")
}

fn error(code: u8) -> String {
    let words = ["malformed request", "no such room", "not a member", "unknown request"];
    format!("ERROR_CODE: {code}\nERROR_DESCRIPTION: {}\n", words[usize::from(code) - 1])
}

impl Peer {
    /// Says `request`, and sees exactly `expected`. A HELO behind it shows that nothing else came.
    #[track_caller]
    fn sees(&mut self, request: &str, expected: &str) {
        self.send(request.as_bytes());
        self.expect(expected.as_bytes());
        self.ask("that was all");
    }

    /// A client that has joined a room with nobody in it.
    #[track_caller]
    fn alone(server: SocketAddr, room: &str, room_ref: u64, join_id: u64, name: &str) -> Peer {
        let mut peer = Peer::connect(server);
        let expected = joined(server, room, room_ref, join_id) + &has_joined(room_ref, name);
        peer.sees(&join(room, name), &expected);
        peer
    }
}

#[test]
fn join_is_answered_and_then_told_to_all_members() {
    let chat = chat();
    let mut ann = Peer::alone(chat.address, "tea", 1, 1, "ann");
    let mut bob = Peer::connect(chat.address);
    bob.sees(&join("tea", "bob"), &(joined(chat.address, "tea", 1, 2) + &has_joined(1, "bob")));
    ann.sees("", &has_joined(1, "bob"));
    // Once more: answered as before, and told to nobody.
    bob.sees(&join("tea", "robert"), &joined(chat.address, "tea", 1, 2));
    ann.sees("", "");
    // Another room has another ref, a client the same id everywhere.
    ann.sees(&join("a b", "ann"), &(joined(chat.address, "a b", 2, 1) + &has_joined(2, "ann")));
    bob.sees("", "");
}

#[test]
fn leave_is_answered_and_then_told_to_all_members() {
    let chat = chat();
    let mut ann = Peer::alone(chat.address, "tea", 1, 1, "ann");
    let mut bob = Peer::connect(chat.address);
    bob.sees(&join("tea", "bob"), &(joined(chat.address, "tea", 1, 2) + &has_joined(1, "bob")));
    ann.sees("", &has_joined(1, "bob"));
    // With the id of another nobody leaves.
    bob.sees(&leave(1, 1, "bob"), &left(1, 1));
    ann.sees("", "");
    bob.sees(&leave(1, 2, "robert"), &(left(1, 2) + &has_left(1, "robert")));
    ann.sees("", &has_left(1, "robert"));
    // Who is no member has the reply only, and sees nothing more.
    bob.sees(&leave(1, 2, "bob"), &left(1, 2));
    ann.sees(&say(1, 1, "ann", "hello?"), &message(1, "ann", "hello?"));
    bob.sees("", "");
    bob.sees(&leave(2, 2, "bob"), &error(2));
    bob.sees(&leave(0, 2, "bob"), &error(2));
    // It may come again.
    bob.sees(&join("tea", "bob"), &(joined(chat.address, "tea", 1, 2) + &has_joined(1, "bob")));
}

#[test]
fn what_is_said_reaches_all_members_as_it_was_said() {
    let chat = chat();
    let mut ann = Peer::alone(chat.address, "tea", 1, 1, "ann");
    let mut bob = Peer::connect(chat.address);
    bob.sees(&join("tea", "bob"), &(joined(chat.address, "tea", 1, 2) + &has_joined(1, "bob")));
    ann.sees("", &has_joined(1, "bob"));
    for text in
        ["hi", "", "two\nlines", "  blanks  ", "HELO you\nKILL_SERVICE", "JOIN_CHATROOM: tea\nCLIENT_IP: 0"]
    {
        // The name is that of the request.
        ann.sees(&say(1, 1, "anna", text), &message(1, "anna", text));
        bob.sees("", &message(1, "anna", text));
    }
    ann.sees(
        "CHAT:1\r\nJOIN_ID:1\r\nCLIENT_NAME:ann\r\nMESSAGE:x\r\ny \r\n\r\n",
        &message(1, "ann", "x\ny "),
    );
    bob.sees("", &message(1, "ann", "x\ny "));
    bob.sees(&say(1, 1, "ann", "I am ann"), &error(3));
    bob.sees(&say(2, 2, "bob", "anybody?"), &error(2));
    bob.sees(&say(1, 2, "bob", "x").replace("CHAT: 1", "CHAT: one"), &error(1));
    bob.sees(&join("empty", "bob"), &(joined(chat.address, "empty", 2, 2) + &has_joined(2, "bob")));
    ann.sees(&say(2, 1, "ann", "may I?"), &error(3));
    ann.sees("", "");
}

#[test]
fn disconnect_leaves_all_rooms_and_closes() {
    let chat = chat();
    let mut ann = Peer::alone(chat.address, "one", 1, 1, "ann");
    ann.sees(&join("two", "ann"), &(joined(chat.address, "two", 2, 1) + &has_joined(2, "ann")));
    let mut bob = Peer::connect(chat.address);
    bob.sees(&join("two", "bob"), &(joined(chat.address, "two", 2, 2) + &has_joined(2, "bob")));
    bob.sees(&join("one", "bob"), &(joined(chat.address, "one", 1, 2) + &has_joined(1, "bob")));
    ann.sees("", &(has_joined(2, "bob") + &has_joined(1, "bob")));
    let farewells = has_left(1, "robert") + &has_left(2, "robert");
    bob.send((disconnect("robert") + "HELO nobody\n" + &say(1, 2, "bob", "still here")).as_bytes());
    bob.expect_rest(farewells.as_bytes());
    ann.sees("", &farewells);
}

#[test]
fn who_vanishes_leaves_by_the_name_that_it_joined_with() {
    let chat = chat();
    let mut ann = Peer::alone(chat.address, "tea", 1, 1, "ann");
    let mut bob = Peer::connect(chat.address);
    bob.sees(&join("tea", "bob"), &(joined(chat.address, "tea", 1, 2) + &has_joined(1, "bob")));
    bob.sees(&say(1, 2, "robert", "x"), &message(1, "robert", "x"));
    bob.reset();
    ann.expect((has_joined(1, "bob") + &message(1, "robert", "x") + &has_left(1, "bob")).as_bytes());
    // By its sending side: what was not finished is dropped.
    let mut eve = Peer::connect(chat.address);
    eve.sees(&join("tea", "eve"), &(joined(chat.address, "tea", 1, 3) + &has_joined(1, "eve")));
    eve.send(say(1, 3, "eve", "x").trim_end().as_bytes());
    eve.finish();
    // Which counts as DISCONNECT: it sees its own leaving, and the end.
    eve.expect_rest(has_left(1, "eve").as_bytes());
    ann.expect((has_joined(1, "eve") + &has_left(1, "eve")).as_bytes());
    ann.sees("", "");
}

#[test]
fn a_line_that_does_not_fit_ends_the_request_with_one_error() {
    let chat = chat();
    let mut ann = Peer::connect(chat.address);
    ann.sees("\n\r\n\n", "");
    ann.sees("NONSENSE\nhelo x\nHELO\nJOIN_ID: 1\n", &error(4).repeat(4));
    for line in ["HELO x\n", "KILL_SERVICE\n", "\n", "PORT: 0\n", "CLIENT_IP\n", "client_ip: 0\n"] {
        ann.sees(&format!("JOIN_CHATROOM: a\n{line}"), &error(1));
    }
    ann.sees("CHAT: 1\nJOIN_ID: 1\nMESSAGE: x\n\n", &error(1));
    // The next line begins a request.
    let both = "LEAVE_CHATROOM: 1\nnonsense\n".to_owned() + &join("tea", "ann");
    ann.sees(&both, &(error(1) + &joined(chat.address, "tea", 1, 1) + &has_joined(1, "ann")));
    let mut long = Peer::connect(chat.address);
    let words = "ERROR_CODE: 1\nERROR_DESCRIPTION: request too long\n";
    assert_same(
        &long.flood(b"CHAT: 1\nJOIN_ID: 1\nCLIENT_NAME: x\nMESSAGE: \0")[..words.len()],
        words.as_bytes(),
    );
    let mut fits = Peer::connect(chat.address);
    let text = "x".repeat((64 << 10) - say(1, 1, "b", "").len() + 1);
    fits.sees(&say(1, 1, "b", &text), &error(3));
}

#[test]
fn messages_keep_their_place_among_the_replies_however_the_bytes_come() {
    let requests = "HELO a\nWHAT\r\n".to_owned()
        + &join("tea", "ann")
        + "HELO b\n"
        + &say(1, 1, "ann", "one\r\ntwo")
        + &say(9, 1, "ann", "nowhere")
        + &join("tea", "ann")
        + &say(1, 1, "ann", "three")
        + "HELO c\n"
        + &leave(1, 1, "ann")
        + "HELO d\n"
        + &disconnect("ann");
    for size in [1, 2, 7, 100, 10_000] {
        let chat = chat();
        let mut ann = Peer::connect(chat.address);
        requests.as_bytes().chunks(size).for_each(|chunk| ann.send(chunk));
        let helo = |text: &str| String::from_utf8(helo_reply(text.as_bytes(), chat.address)).unwrap();
        let expected = helo("a")
            + &error(4)
            + &joined(chat.address, "tea", 1, 1)
            + &has_joined(1, "ann")
            + &helo("b")
            + &message(1, "ann", "one\ntwo")
            + &error(2)
            + &joined(chat.address, "tea", 1, 1)
            + &message(1, "ann", "three")
            + &helo("c")
            + &left(1, 1)
            + &has_left(1, "ann")
            + &helo("d");
        ann.expect_rest(expected.as_bytes());
    }
}

#[test]
fn kill_service_stops_it_without_farewells() {
    let chat = chat();
    let mut ann = Peer::alone(chat.address, "tea", 1, 1, "ann");
    let mut bob = Peer::connect(chat.address);
    bob.sees(&join("tea", "bob"), &(joined(chat.address, "tea", 1, 2) + &has_joined(1, "bob")));
    bob.send((say(1, 2, "bob", "bye") + "KILL_SERVICE\n").as_bytes());
    bob.expect_rest(message(1, "bob", "bye").as_bytes());
    ann.expect_rest((has_joined(1, "bob") + &message(1, "bob", "bye")).as_bytes());
    assert_eq!(chat.wait().status.code(), Some(0));
}

#[test]
fn a_member_that_does_not_read_is_closed_and_no_message_skipped() {
    const SAID: usize = 400;
    let chat = chat();
    let mut ann = Peer::alone(chat.address, "tea", 1, 1, "ann");
    // One reads again later, one never.
    let mut lazy = ["late", "deaf"].map(|name| {
        let mut peer = Peer::with_small_buffer(chat.address, 4 << 10);
        let join_id = if name == "late" { 2 } else { 3 };
        let expected = joined(chat.address, "tea", 1, join_id) + &has_joined(1, name);
        peer.sees(&join("tea", name), &expected);
        ann.expect(has_joined(1, name).as_bytes());
        peer
    });
    lazy[0].expect(has_joined(1, "deaf").as_bytes());
    let text = "x".repeat(10_000);
    let said = |number: usize| message(1, "ann", &format!("{number} {text}"));
    // More than they may leave unread, and the kernel holds for them.
    for number in 0..SAID {
        ann.send(say(1, 1, "ann", &format!("{number} {text}")).as_bytes());
        ann.expect(said(number).as_bytes());
    }
    let seen = lazy[0].rest();
    let all: Vec<u8> = (0..SAID).flat_map(|number| said(number).into_bytes()).collect();
    assert!((1 << 20..all.len()).contains(&seen.len()), "{} of {}", seen.len(), all.len());
    assert_same(&seen, &all[..seen.len()]);
    ann.expect(has_left(1, "late").as_bytes());
    ann.expect(has_left(1, "deaf").as_bytes());
    ann.sees("", "");
}

/// Clients in rooms, as many in each, who know of each other.
fn crowd(chat: &Serving, rooms: usize, each: usize) -> Vec<Vec<Peer>> {
    let join_id = |room: usize, at: usize| (room * each + at + 1) as u64;
    let fill = |room: usize| {
        let mut members: Vec<Peer> = Vec::new();
        for at in 0..each {
            let (name, room_ref) = (format!("c{at}"), room as u64 + 1);
            let mut peer = Peer::connect(chat.address);
            let reply = joined(chat.address, &format!("room {room}"), room_ref, join_id(room, at));
            peer.send(join(&format!("room {room}"), &name).as_bytes());
            peer.expect(reply.as_bytes());
            members.push(peer);
            members.iter_mut().for_each(|member| member.expect(has_joined(room_ref, &name).as_bytes()));
        }
        members
    };
    (0..rooms).map(fill).collect()
}

/// All of them say `count` things at once.
fn flood(rooms: &[Vec<Peer>], count: usize) {
    let each = rooms[0].len();
    let twins: Vec<Mutex<Peer>> = rooms.iter().flatten().map(|peer| Mutex::new(peer.twin())).collect();
    in_parallel(twins.len(), |client| {
        let (room, at) = (client / each, client % each);
        let of = |number| say(room as u64 + 1, client as u64 + 1, &format!("c{at}"), &number_text(number));
        let requests: String = (0..count).map(of).collect();
        twins[client].lock().unwrap().send(requests.as_bytes());
    });
}

fn number_text(number: usize) -> String {
    format!("number {number:05}")
}

/// What was said in a room, by whom: each one's numbers rise one by one from 0.
fn numbers(seen: &[u8], room: usize) -> HashMap<String, usize> {
    let mut counts: HashMap<String, usize> = HashMap::new();
    let text = std::str::from_utf8(seen).unwrap();
    let messages = text.split_inclusive("\n\n");
    for said in messages {
        let name = said.lines().nth(1).unwrap().strip_prefix("CLIENT_NAME: ").unwrap();
        let count = counts.entry(name.to_owned()).or_default();
        assert_eq!(said, message(room as u64 + 1, name, &number_text(*count)));
        *count += 1;
    }
    counts
}

#[test]
fn two_hundred_clients_see_every_message_once_in_one_order() {
    const ROOMS: usize = 20;
    const EACH: usize = 10;
    const COUNT: usize = 40;
    let chat = chat();
    let mut rooms = crowd(&chat, ROOMS, EACH);
    flood(&rooms, COUNT);
    let len = message(1, "c0", &number_text(0)).len() * EACH * COUNT;
    for (room, members) in rooms.iter_mut().enumerate() {
        let len = len + if room >= 9 { EACH * COUNT } else { 0 };
        let seen: Vec<Vec<u8>> = members.iter_mut().map(|member| member.bytes(len)).collect();
        let counts = numbers(&seen[0], room);
        assert_eq!(counts.len(), EACH);
        assert!(counts.values().all(|count| *count == COUNT), "{counts:?}");
        seen.iter().for_each(|other| assert_same(other, &seen[0]));
    }
    assert_eq!(chat.stop().status.code(), Some(0));
    // Nothing came behind it, no farewell either.
    rooms.iter_mut().flatten().for_each(Peer::expect_end);
}

#[test]
fn a_stop_in_the_flood_lets_what_was_received_reach_every_member() {
    let chat = chat();
    let mut rooms = crowd(&chat, 4, 8);
    flood(&rooms, 200);
    // It is in the middle of it.
    let first = rooms[0][0].byte();
    assert_eq!(first, b'C');
    chat.signal(Signal::TERM);
    for (room, members) in rooms.iter_mut().enumerate() {
        let mut seen: Vec<Vec<u8>> = members.iter_mut().map(Peer::rest).collect();
        if room == 0 {
            seen[0].insert(0, first);
        }
        let counts = numbers(&seen[0], room);
        // All of it had been sent before the stop, so it was received.
        assert_eq!(counts.values().sum::<usize>(), 8 * 200, "{counts:?}");
        seen.iter().for_each(|other| assert_same(other, &seen[0]));
    }
    assert_eq!(chat.wait().status.code(), Some(0));
}

#[test]
fn requests_do_not_depend_on_how_the_bytes_are_cut() {
    let requests = join("a", "b") + "\nHELO x\r\n" + &say(1, 2, "c", "d\r\n\te") + "CHAT: 1\nKILL_SERVICE\n";
    let bytes = requests + "CHAT:1\r\nJOIN_ID: 2\r\nCLIENT_NAME: c\r\nMESSAGE: f\r\n\r\n" + &leave(1, 2, "c");
    let (frames, too_long) = verify(&requests::Requests, bytes.as_bytes());
    let kinds: Vec<_> = frames.iter().map(|frame| requests::fields(frame).map(|(kind, _)| kind)).collect();
    let (unknown, malformed) = (Err((4, "unknown request")), Err(requests::MALFORMED));
    let (joins, says, leaves) = (Ok("JOIN_CHATROOM"), Ok("CHAT"), Ok("LEAVE_CHATROOM"));
    // An empty line is one of them.
    assert_eq!((kinds, too_long), (vec![joins, unknown, unknown, says, malformed, says, leaves], false));
    assert_eq!(requests::fields(&frames[3]).unwrap().1[3], b"d\r\n\te\n");
    assert!(!verify(&requests::Requests, (join("a", "b") + "CHAT: 1").as_bytes()).1);
}

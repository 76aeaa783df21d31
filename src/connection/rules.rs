//! The rules of a connection one by one, where a real socket would need luck to come to them. Only in tests.

use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, sync_channel};

use super::model::Comments;
use super::*;
use crate::config::{ServiceSettings, StopFrom, Timeouts};
use crate::reason::CloseReason;
use crate::slots::{MS, Slots};

/// High and low.
const MARKS: (usize, usize) = (64, 16);

fn endpoint(service: ServiceId) -> Arc<Endpoint> {
    Endpoint::new(([127, 0, 0, 1], 1).into(), service)
}

fn connection() -> Connection {
    let endpoint = endpoint(3);
    let peer = endpoint.address.clone();
    Connection::new(endpoint, &peer, false, Role::Requests, 0)
}

/// With a frame that may be whole, or the begin of one.
fn with_input(bytes: &[u8], is_whole: bool) -> Connection {
    let mut connection = connection();
    connection.set_readable();
    connection.inbound_mut().append(bytes, Some(bytes.len()).filter(|_| !is_whole), 0);
    connection
}

fn push(connection: &mut Connection, count: usize, now: Nanos) {
    connection.with_outbound(MARKS, now, |outbound| outbound.push_word(&vec![b'x'; count]));
}

fn job(connection: &Connection) -> Box<Job> {
    let mut free = FreeJobs::new(Slots::new([]));
    connection.new_job(ConnId { slot: 0, generation: 0 }, &mut free, 0)
}

#[test]
fn what_is_known_of_the_receiving_side_is_what_was_seen_last_and_an_end_stays() {
    let mut connection = connection();
    assert_eq!((connection.is_readable(), connection.service()), (false, 3));
    connection.set_hung_up();
    connection.set_read_short();
    assert!(connection.is_readable(), "only the end empties what has hung up");
    connection.set_read_empty();
    assert!(!connection.is_readable());
    connection.set_readable();
    assert!(connection.is_readable() && !connection.is_broken());
    connection.set_read_short();
    assert!(!connection.is_readable());
    assert!(!connection.has_ended());
    connection.set_broken();
    for change in [Connection::set_hung_up, Connection::set_read_short, Connection::set_read_empty] {
        change(&mut connection);
        assert!(connection.is_broken() && connection.is_readable(), "what it had sent may still be read");
    }
    connection.set_ended();
    for change in [Connection::set_hung_up, Connection::set_readable, Connection::set_read_empty] {
        change(&mut connection);
        assert!(connection.has_ended() && !connection.is_readable() && !connection.is_broken());
    }
}

#[test]
fn only_an_open_connection_without_anything_pending_wants_nothing() {
    assert!(!connection().wants_service() && !connection().has_buffers());
    let changes: [fn(&mut Connection); 4] = [
        Connection::set_readable,
        Connection::set_ended,
        |connection| connection.inbound_mut().append(b"x", None, 0),
        |connection| connection.phase = Phase::Closing(CloseReason::Eof),
    ];
    for change in changes {
        let mut connection = connection();
        change(&mut connection);
        assert!(connection.wants_service(), "{connection:?}");
    }
}

#[test]
fn a_full_socket_is_watched_once_it_takes_bytes_again() {
    let mut connection = connection();
    connection.set_writable();
    assert_eq!((connection.output, connection.is_writable()), (Output::Open, true));
    connection.output = Output::Full;
    assert!(!connection.is_writable());
    connection.set_writable();
    assert_eq!((connection.output, connection.is_writable()), (Output::Watched, true));
}

#[test]
fn it_is_read_as_far_as_its_next_job_needs_it_and_no_further_than_a_drain_goes() {
    const MOST: usize = 64 << 10;
    let with_job = |mut connection: Connection| {
        connection.set_job_out(1);
        connection
    };
    let waiting = |mut connection: Connection| {
        connection.turn = Turn::Waits;
        connection
    };
    for (connection, sparing, expected) in [
        (connection(), false, 0),
        (with_input(b"ab", false), false, MOST),
        (with_input(b"ab", false), true, MOST),
        (with_input(b"a\n", true), false, READ_AHEAD_BYTES - 2),
        (with_input(b"a\n", true), true, LOOK_AHEAD_BYTES - 2),
        (with_job(with_input(b"ab", false)), false, READ_AHEAD_BYTES),
        (with_job(with_input(b"ab", false)), true, LOOK_AHEAD_BYTES),
        (waiting(with_input(b"ab", false)), false, LOOK_AHEAD_BYTES - 2),
        (waiting(with_input(b"a\n", true)), false, LOOK_AHEAD_BYTES - 2),
    ] {
        assert_eq!(connection.may_read(MOST, sparing), expected, "sparing {sparing}: {connection:?}");
    }
    assert!(with_input(b"a\n", true).may_have_frame() && !with_input(b"ab", false).may_have_frame());
    let service = Served::new(Arc::new(Comments), &ServiceSettings::of_lines(8, StopFrom::Any));
    let mut unknown = with_input(b"ab", true);
    unknown.examine(&service, 7);
    let since = unknown.inbound().and_then(Inbound::incomplete_since);
    assert_eq!((unknown.may_have_frame(), since), (false, Some(7)), "a look tells that it is half of one");
    assert_eq!(with_input(b"ab", false).may_read(7, false), 7);
    let mut closing = with_input(b"ab", false);
    closing.phase = Phase::Closing(CloseReason::Eof);
    assert_eq!(closing.may_read(MOST, false), 0);

    let mut draining = connection();
    draining.begin_drain(5);
    assert_eq!(draining.may_read(MOST, false), 5, "an urgent byte may have kept a read short before");
    draining.count_drained(2);
    assert_eq!((draining.may_read(MOST, false), draining.drain_left()), (3, Some(3)));
    draining.set_read_empty();
    assert_eq!(draining.drain_left(), Some(0));
}

#[test]
fn it_is_choked_above_the_high_watermark_until_it_is_at_the_low_one() {
    let mut connection = connection();
    let choked = |connection: &Connection| (connection.is_choked(), !connection.may_hand_out());
    push(&mut connection, MARKS.0, 0);
    assert_eq!(choked(&connection), (false, false));
    push(&mut connection, 1, 0);
    assert_eq!(choked(&connection), (true, true));
    connection.with_outbound(MARKS, 0, |outbound| outbound.advance(MARKS.0 - MARKS.1));
    assert_eq!(choked(&connection), (true, true), "17 bytes wait");
    connection.with_outbound(MARKS, 0, |outbound| outbound.advance(1));
    assert_eq!(choked(&connection), (false, false), "16 bytes wait");
    push(&mut connection, MARKS.0 - MARKS.1, 0);
    assert!(!connection.is_choked(), "between the two it stays as it was");
    assert_eq!(connection.discard_output().map(|bytes| bytes.len()), Some(MARKS.0));
    assert!(!connection.has_buffers());
}

#[test]
fn what_it_holds_is_the_sum_of_its_parts() {
    let mut connection = with_input(b"abc", false);
    push(&mut connection, 10, 0);
    let parts = connection.inbound().unwrap().capacity() + connection.outbound().unwrap().held_bytes();
    assert_eq!((parts, connection.held_bytes()), (13, size_of::<Buffers>() + 13));
    connection.park(Arc::from(&b"pushed"[..]), MARKS);
    let parked = 6 + size_of::<Arc<[u8]>>();
    assert_eq!(connection.held_bytes(), size_of::<Buffers>() + 13 + parked);
    connection.set_job_out(7);
    assert_eq!(connection.held_bytes(), size_of::<Buffers>() + 13 + parked + 7);
    connection.set_job_back();
    let held = job(&connection);
    let held_bytes = held.held_bytes();
    connection.hold(held);
    assert_eq!(connection.held_bytes(), size_of::<Buffers>() + 13 + parked + held_bytes);
    assert_eq!(connection.discard_input().as_deref(), Some(&b"abc"[..]));
    let mut outbound = Outbound::default();
    outbound.push(&mut vec![b'x'; 100], &[25, 50, 75, 100], 0);
    let ends = outbound.held_bytes().saturating_sub(100);
    assert!(ends >= 4 * size_of::<usize>() && ends <= 16 * size_of::<usize>(), "{ends}");
    assert_eq!(outbound.into_bytes().len(), 100);
}

#[test]
fn quiet_is_who_has_nothing_pending_and_answered_who_has_no_job() {
    let state = |connection: &Connection| (connection.is_quiet(), connection.has_answered());
    let mut connection = connection();
    assert_eq!(state(&connection), (true, true));
    connection.set_job_out(1);
    assert_eq!(state(&connection), (false, false));
    connection.set_job_back();
    connection.hold(job(&connection));
    assert_eq!(state(&connection), (false, false), "a job is held");
    assert!(connection.take_held().is_some());
    push(&mut connection, 1, 0);
    assert_eq!(state(&connection), (false, true), "a byte waits to be written");
    assert_eq!(state(&with_input(b"x", false)), (false, true), "a line has begun");
}

#[test]
fn an_unread_reply_is_late_from_when_the_peer_took_any_last() {
    let timeouts = Timeouts { write: Some(100), ..Timeouts::default() };
    let due = |connection: &Connection| connection.deadline(&timeouts, 99, || None).map(|(at, _)| at);
    let mut connection = connection();
    assert_eq!(due(&connection), None);
    push(&mut connection, 4, 10);
    assert_eq!(due(&connection), Some(110));
    push(&mut connection, 4, 20);
    assert_eq!(due(&connection), Some(110), "more came to wait");
    connection.with_outbound(MARKS, 30, |outbound| outbound.advance(1));
    assert_eq!(due(&connection), Some(130));
    connection.with_outbound(MARKS, 40, |_| ());
    assert_eq!(due(&connection), Some(130), "nothing was taken");
    connection.phase = Phase::Leaving(CloseReason::Eof);
    assert_eq!(due(&connection), Some(130));
    connection.phase = Phase::Lingering(CloseReason::Eof);
    assert_eq!(due(&connection), None);
}

#[test]
fn a_line_is_late_from_its_begin_less_the_time_in_which_it_was_not_read() {
    let timeouts = Timeouts { line: Some(100), ..Timeouts::default() };
    let due = |connection: &Connection| connection.deadline(&timeouts, 99, || None).map(|(at, _)| at);
    let begun = || {
        let mut connection = connection();
        connection.inbound_mut().append(b"x", Some(1), 5);
        assert_eq!(due(&connection), Some(105));
        connection
    };
    let mut waiting = begun();
    waiting.turn = Turn::Waits;
    waiting.note_pause(10, || 10);
    assert_eq!(due(&waiting), None);
    waiting.turn = Turn::Its;
    waiting.note_pause(30, || 30);
    assert_eq!(due(&waiting), Some(125));
    let mut choked = begun();
    push(&mut choked, MARKS.0 + 1, 9);
    choked.note_pause(10, || 10);
    assert_eq!(due(&choked), None);
    for change in [
        |connection: &mut Connection| connection.phase = Phase::Closing(CloseReason::Eof),
        |connection: &mut Connection| connection.role = Role::TurnedAway,
    ] {
        let mut connection = begun();
        change(&mut connection);
        assert_eq!(due(&connection), None, "nothing of it is waited for");
    }
}

#[test]
fn idle_is_who_is_quiet_and_counts_from_when_it_was_last_seen() {
    let timeouts = Timeouts { idle: Some(50 * MS), ..Timeouts::default() };
    let due = |connection: &Connection| connection.deadline(&timeouts, 100 * MS, || None);
    let active = || {
        let mut connection = connection();
        connection.set_active(40 * MS);
        connection
    };
    // Kept in milliseconds, and never early.
    let (at, reason) = due(&active()).unwrap();
    assert!((90 * MS..=91 * MS).contains(&at) && reason == CloseReason::IdleTimeout, "{at}");
    for change in [
        |connection: &mut Connection| connection.set_ended(),
        |connection: &mut Connection| connection.set_job_out(1),
        |connection: &mut Connection| connection.phase = Phase::Closing(CloseReason::Eof),
        |connection: &mut Connection| connection.role = Role::TurnedAway,
    ] {
        let mut connection = active();
        change(&mut connection);
        assert_eq!(due(&connection), None, "{connection:?}");
    }
    let may_have = |connection: &Connection, timeouts: &Timeouts| connection.may_have_deadline(timeouts);
    assert!(may_have(&active(), &timeouts) && !may_have(&active(), &Timeouts::default()));
    let request = Timeouts { request: Some(1), ..Timeouts::default() };
    assert!(may_have(&active(), &request) && may_have(&with_input(b"x", false), &Timeouts::default()));
}

#[test]
fn it_is_at_rest_while_it_only_waits_and_all_that_it_holds_is_accounted_for() {
    assert!(connection().is_at_rest());
    let mut with_job = connection();
    with_job.set_job_out(7);
    assert!(!with_job.is_at_rest(), "nobody knows of its job");
    with_job.accounted_bytes = 7;
    assert!(with_job.is_at_rest());
    with_job.set_job_back();
    assert!(!with_job.is_at_rest(), "nobody knows that its job is back");
    for change in [
        |connection: &mut Connection| connection.set_readable(),
        |connection: &mut Connection| connection.set_ended(),
        |connection: &mut Connection| connection.inbound_mut().append(b"x", Some(1), 0),
        |connection: &mut Connection| connection.phase = Phase::Closing(CloseReason::Eof),
        |connection: &mut Connection| connection.role = Role::Joined,
        |connection: &mut Connection| connection.told_choked = true,
    ] {
        let mut connection = connection();
        change(&mut connection);
        assert!(!connection.is_at_rest(), "{connection:?}");
    }
}

#[test]
fn a_request_is_late_from_when_it_was_taken_and_a_later_reply_from_when_it_is_waited_for() {
    let timeouts = Timeouts { request: Some(100), ..Timeouts::default() };
    let due = |connection: &Connection| connection.deadline(&timeouts, 99, || Some(50)).map(|(at, _)| at);
    let mut connection = connection();
    assert_eq!(due(&connection), None);
    connection.set_job_out(1);
    assert_eq!(due(&connection), Some(150));
    assert_eq!(connection.deadline(&timeouts, 99, || None), Some((199, CloseReason::RequestTimeout)));
    connection.phase = Phase::Closing(CloseReason::Eof);
    assert_eq!(due(&connection), None, "to give the session back is no request");
    connection.set_job_back();
    connection.await_reply(70, true);
    assert_eq!(due(&connection), Some(170));
    assert_eq!((connection.end_await(), connection.end_await()), (Some(true), None));
    assert_eq!(due(&connection), None);
}

#[test]
fn a_header_is_late_from_the_accept_on_and_makes_the_connection_its_clients() {
    let timeouts = Timeouts { line: Some(100), ..Timeouts::default() };
    let endpoint = endpoint(3);
    let mut connection = Connection::new(endpoint.clone(), &endpoint.address, false, Role::Announced, 7);
    let due = |connection: &Connection| connection.deadline(&timeouts, 99, || None);
    assert_eq!(due(&connection), Some((107, CloseReason::ProxyHeader)));
    connection.inbound_mut().append(b"headerHELO", Some(10), 9);
    let client = ([10, 0, 0, 1], 2).into();
    connection.become_client(&client, None, true, 6);
    assert_eq!((connection.role, connection.may_stop, connection.peer()), (Role::Requests, true, client));
    assert_eq!(connection.inbound().map(Inbound::rest), Some(&b"HELO"[..]));
    assert_eq!(due(&connection), None, "nobody has looked whether what is behind it is whole");
    connection.role = Role::Announced;
    connection.phase = Phase::Closing(CloseReason::ProxyHeader);
    assert_eq!(due(&connection), None);
}

#[test]
fn replies_behind_others_end_where_they_end() {
    let mut outbound = Outbound::default();
    outbound.push(&mut b"abcdef".to_vec(), &[3, 6], 3);
    assert_eq!(outbound.replies(), 1, "what was sent to its end does not wait");
    outbound.push(&mut b"ghijklm".to_vec(), &[4, 7], 2);
    assert_eq!((outbound.bytes(), outbound.replies()), (&b"defijklm"[..], 3));
    assert_eq!((outbound.advance(5).0, outbound.advance(2).0, outbound.advance(1).0), (2, 0, 1));
    let mut parts = Outbound::default();
    parts.push_word(b"abc");
    parts.push(&mut Vec::new(), &[0], 0);
    assert_eq!(parts.replies(), 1, "only its end came behind what went ahead of it");
    parts.push(&mut b"defg".to_vec(), &[1, 4], 1);
    assert_eq!((parts.bytes(), parts.replies()), (&b"abcefg"[..], 2));
    assert_eq!((parts.advance(3).0, parts.advance(3).0), (1, 1));
    let mut words = Outbound::default();
    words.push_word(b"abcd");
    words.push(&mut b"efghijkl".to_vec(), &[], 2);
    assert_eq!(words.held_bytes(), 10, "no more than is needed");
}

#[test]
fn a_buffer_that_has_a_mapping_of_its_own_is_taken_over_and_a_smaller_one_stays_where_it_is() {
    for (capacity, stays) in [(128 << 10, false), ((128 << 10) - 1, true), (100, true)] {
        let mut replies = Vec::with_capacity(capacity);
        replies.push(b'x');
        Outbound::default().push(&mut replies, &[1], 0);
        assert_eq!((replies.len(), replies.capacity() == capacity), (0, stays), "{capacity}");
    }
}

#[test]
fn what_is_pushed_inside_a_reply_waits_in_order_and_counts_until_it_is_taken() {
    let mut connection = connection();
    for (mid_reply, opening, parks) in [(false, false, false), (true, false, true), (false, true, true)] {
        (connection.mid_reply, connection.opening) = (mid_reply, opening);
        assert_eq!(connection.parks_pushes(), parks);
    }
    connection.park(Arc::from(&b"first"[..]), MARKS);
    connection.park(Arc::from(&b"second"[..]), MARKS);
    assert_eq!(connection.take_parked().as_deref(), Some(&b"first"[..]));
    let second = 6 + size_of::<Arc<[u8]>>();
    assert_eq!(connection.held_bytes(), size_of::<Buffers>() + second);
    assert_eq!(connection.take_parked().as_deref(), Some(&b"second"[..]));
    assert!(connection.take_parked().is_none() && !connection.has_buffers());
}

#[test]
fn a_writer_goes_on_when_its_peer_has_read_enough_or_all() {
    let mut connection = connection();
    let (writer, waits) = sync_channel(1);
    connection.park(Arc::from(&[b'x'; MARKS.0][..]), MARKS);
    connection.keep_writer(writer.clone());
    assert!(connection.is_choked() && connection.take_writer().is_some(), "all that can be read was read");
    connection.keep_writer(writer.clone());
    push(&mut connection, 1, 0);
    assert!(connection.take_writer().is_none());
    assert!(connection.take_parked().is_some());
    push(&mut connection, 1, 0);
    assert!(!connection.is_choked() && connection.take_writer().is_some());
    connection.keep_writer(writer);
    connection.drop_writer();
    assert_eq!(waits.try_recv(), Err(TryRecvError::Disconnected), "it is told that the connection has ended");
}

#[cfg(feature = "admin")]
#[test]
fn what_it_does_is_told_in_a_word() {
    type Change = fn(&mut Connection);
    let changes: &[(&str, Change)] = &[
        ("receiving", |connection| connection.inbound_mut().append(b"x", Some(1), 0)),
        ("sending", |connection| push(connection, 1, 0)),
        ("held_back", |connection| connection.turn = Turn::Waits),
        ("deferred", |connection| connection.await_reply(0, false)),
        ("handling", |connection| connection.set_job_out(1)),
        ("not_reading", |connection| push(connection, MARKS.0, 0)),
        ("closing", |connection| connection.phase = Phase::Closing(CloseReason::Eof)),
        ("closed", |connection| connection.phase = Phase::Lingering(CloseReason::Eof)),
    ];
    let mut connection = connection();
    assert_eq!(connection.doing(), "idle");
    // What comes later in the list matters more.
    for (word, change) in changes {
        change(&mut connection);
        assert_eq!(connection.doing(), *word);
    }
}

//! Streams of replies, right and wrong, and what the books say of them.

use super::*;
use crate::load::protocol::Tail;
use crate::report::load::Requests;

const STEP: u64 = 3;

struct Fixture {
    ledger: Ledger,
    protocol: Protocol,
    tally: Tally,
}

impl Fixture {
    fn with_requests(count: u64) -> Self {
        let tail = Tail { advertise: Default::default(), student_id: "16336617".to_owned() };
        Self::of(Protocol::helo(*b"abcd", tail, ([127, 0, 0, 1], 8000).into()), count)
    }

    /// Requests with every third number.
    fn of(protocol: Protocol, count: u64) -> Self {
        let mut fixture = Self { ledger: Ledger::new(7, STEP), protocol, tally: Tally::new(0) };
        for number in 0..count {
            // Pairs share an entry.
            let asked = Asked { due: 0, sent: number / 2 };
            let first = number * STEP;
            fixture.ledger.ask(asked, first, 1, &mut fixture.protocol, &mut fixture.tally);
        }
        fixture
    }

    fn replies(&mut self, numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|&number| self.protocol.reply(number * STEP).to_vec()).collect()
    }

    /// Feeds the bytes in pieces, closes, and returns what was counted.
    fn counts(mut self, bytes: &[u8], piece: usize, end: End) -> Requests {
        let mut held: Vec<u8> = Vec::new();
        for chunk in bytes.chunks(piece.max(1)) {
            held.extend_from_slice(chunk);
            match self.ledger.read(&held, &mut self.protocol, 1, &mut self.tally) {
                Read::Consumed(n) => drop(held.drain(..n)),
                Read::Rubbish => {
                    held.clear();
                    break;
                }
            }
        }
        self.ledger.close(end, &held, &mut self.protocol, 1, &mut self.tally);
        self.tally.total()
    }
}

fn counts(sent: u64, right: u64) -> Requests {
    Requests { sent, right, ..Requests::default() }
}

#[test]
fn silence_counts_from_the_last_progress_and_what_is_missing_from_when_it_was_overtaken() {
    let mut fixture = Fixture::with_requests(0);
    let Fixture { ledger, protocol, tally } = &mut fixture;
    let out = ledger.ask(Asked { due: 0, sent: 10 }, 0, 4, protocol, tally).to_vec();
    let asked: Vec<u8> = (0..4).flat_map(|at| protocol.request(at * STEP).to_vec()).collect();
    assert_eq!(text(&out), text(&asked), "four numbers in a row");
    let state = |ledger: &Ledger| (ledger.outstanding(), ledger.waits_since(), ledger.misses_since());
    assert_eq!((ledger.asked(), state(ledger)), (4, (4, Some(10), None)));
    let reply = protocol.reply(0).to_vec();
    ledger.read(&reply, protocol, 50, tally);
    assert_eq!(state(ledger), (3, Some(50), None));
    let reply = protocol.reply(2 * STEP).to_vec();
    ledger.read(&reply, protocol, 70, tally);
    assert_eq!(state(ledger), (2, Some(70), Some(70)));
    assert!(!ledger.expire_missing(70, protocol, 80, tally));
    assert!(ledger.expire_missing(71, protocol, 80, tally));
    assert_eq!(state(ledger), (1, Some(70), None));
    // Bytes that answer nothing are no progress; a wrong reply is.
    ledger.read(&reply, protocol, 90, tally);
    assert_eq!(state(ledger), (1, Some(70), None));
    ledger.read(b"what?\n", protocol, 95, tally);
    assert_eq!(state(ledger), (0, None, None));
    let total = tally.total();
    assert_eq!((total.right, total.lost, total.duplicated, total.wrong), (2, 1, 1, 1));
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[test]
fn right_replies_are_right_in_pieces_of_any_size() {
    for piece in 1..200 {
        let mut fixture = Fixture::with_requests(3);
        let bytes = fixture.replies(&[0, 1, 2]);
        assert_eq!(fixture.counts(&bytes, piece, End::Broken), counts(3, 3), "pieces of {piece}");
    }
}

#[test]
fn replies_that_come_together_are_judged_one_by_one_where_they_are_not_all_right() {
    // All of one entry, of which a row of replies is compared at once, and all begins of a row that goes on.
    let asked = Asked { due: 0, sent: 1 };
    for (count, come, wrong) in
        [(9, 9, None), (9, 4, None), (9, 9, Some(0)), (9, 9, Some(5)), (9, 7, Some(6))]
    {
        let mut fixture = Fixture::with_requests(0);
        let Fixture { ledger, protocol, tally } = &mut fixture;
        ledger.ask(asked, 0, count, protocol, tally);
        let mut bytes = fixture.replies(&(0..come).collect::<Vec<_>>());
        let each = bytes.len() / usize::try_from(come).unwrap();
        if let Some(wrong) = wrong {
            // In the tail, behind the number.
            bytes[wrong * each + 30] ^= 1;
        }
        let bad = u64::from(wrong.is_some());
        // A piece that ends inside of a reply has whole ones before it.
        for piece in [1, each, 2 * each, 2 * each + 7, bytes.len()] {
            let mut fixture = Fixture::with_requests(0);
            let Fixture { ledger, protocol, tally } = &mut fixture;
            ledger.ask(asked, 0, count, protocol, tally);
            let expected = Requests { wrong: bad, lost: count - come, ..counts(count, come - bad) };
            assert_eq!(
                fixture.counts(&bytes, piece, End::Broken),
                expected,
                "{come} of {count}, {wrong:?}, {piece}"
            );
        }
    }
}

#[test]
fn swapped_replies_are_one_reordered() {
    let mut fixture = Fixture::with_requests(3);
    let bytes = fixture.replies(&[1, 0, 2]);
    let expected = Requests { reordered: 1, ..counts(3, 2) };
    assert_eq!(fixture.counts(&bytes, 50, End::Broken), expected);
}

#[test]
fn dropped_reply_is_one_lost() {
    let mut fixture = Fixture::with_requests(4);
    let bytes = fixture.replies(&[0, 2, 3]);
    assert_eq!(fixture.counts(&bytes, 33, End::Stopped), Requests { lost: 1, ..counts(4, 3) });
}

#[test]
fn second_reply_is_duplicated_even_when_nothing_is_outstanding() {
    let mut fixture = Fixture::with_requests(2);
    let bytes = fixture.replies(&[0, 0, 1, 1]);
    assert_eq!(fixture.counts(&bytes, 999, End::Broken), Requests { duplicated: 2, ..counts(2, 2) });
}

#[test]
fn wrong_tail_is_wrong_and_the_next_reply_is_found() {
    let mut fixture = Fixture::with_requests(2);
    let mut bytes = fixture.replies(&[0]);
    let end = bytes.len() - 2;
    bytes[end] = b'9';
    bytes.extend(fixture.replies(&[1]));
    for piece in [1, 7, 1000] {
        let mut fixture = Fixture::with_requests(2);
        fixture.ledger.inside_wrong = None;
        assert_eq!(fixture.counts(&bytes, piece, End::Broken), Requests { wrong: 1, ..counts(2, 1) });
    }
}

#[test]
fn truncated_reply_is_wrong_and_the_next_reply_is_found() {
    for cut in 1..69 {
        let mut fixture = Fixture::with_requests(2);
        let mut bytes = fixture.replies(&[0]);
        bytes.truncate(cut);
        bytes.extend(fixture.replies(&[1]));
        let counted = fixture.counts(&bytes, 13, End::Broken);
        // A cut inside "HELO " leaves no way to tell where the next reply starts while it comes in pieces.
        if cut >= 5 {
            assert_eq!(counted, Requests { wrong: 1, ..counts(2, 1) }, "cut at {cut}");
        } else {
            assert_eq!(counted.wrong, 1, "cut at {cut}");
        }
    }
}

#[test]
fn reply_cut_off_by_the_end_is_wrong() {
    let mut fixture = Fixture::with_requests(2);
    let bytes = fixture.replies(&[0]);
    let counted = fixture.counts(&bytes[..40], 40, End::Stopped);
    assert_eq!(counted, Requests { wrong: 1, lost: 1, ..counts(2, 0) });
}

#[test]
fn clean_prefix_and_expected_stop_leave_the_rest_unread() {
    let mut fixture = Fixture::with_requests(4);
    let bytes = fixture.replies(&[0, 1]);
    assert_eq!(fixture.counts(&bytes, 40, End::Stopped), Requests { unread: 2, ..counts(4, 2) });
}

#[test]
fn reply_to_another_connection_is_wrong() {
    let mut fixture = Fixture::with_requests(1);
    // A number of another thread, or connection.
    let bytes = fixture.protocol.reply(STEP + 1).to_vec();
    assert_eq!(fixture.counts(&bytes, 10, End::Broken), Requests { wrong: 1, ..counts(1, 0) });
}

#[test]
fn bytes_that_nobody_asked_for_are_unasked() {
    let fixture = Fixture::with_requests(0);
    assert_eq!(fixture.counts(b"HELO you\nIP:1\nPort:2\nStudentID:3\n", 99, End::Broken).unasked, 1);
    let mut fixture = Fixture::with_requests(1);
    let bytes = fixture.replies(&[0, 5]);
    assert_eq!(fixture.counts(&bytes, 99, End::Broken), Requests { unasked: 1, ..counts(1, 1) });
}

#[test]
fn error_line_answers_nothing() {
    let fixture = Fixture::with_requests(1);
    let counted = fixture.counts(b"ERROR server full (limit 3 connections)\n", 4, End::Broken);
    assert_eq!(counted, Requests { lost: 1, ..counts(1, 0) });
}

#[test]
fn long_pipeline_in_reverse_order_takes_no_time_to_speak_of() {
    let count = 100_000;
    let mut fixture = Fixture::with_requests(count);
    let reversed: Vec<u64> = (0..count).rev().collect();
    let bytes = fixture.replies(&reversed);
    let expected = Requests { reordered: count - 1, ..counts(count, 1) };
    assert_eq!(fixture.counts(&bytes, 1 << 20, End::Broken), expected);
    let mut fixture = Fixture::with_requests(count);
    let last = fixture.replies(&[count - 1]);
    assert_eq!(fixture.counts(&last, 100, End::Broken), Requests { lost: count - 1, ..counts(count, 1) });
}

/// `request` and `expect` of another protocol.
fn custom(request: &str, expect: &str, count: u64) -> Fixture {
    Fixture::of(Protocol::custom(request, expect, None, None).unwrap(), count)
}

#[test]
fn other_protocols_are_judged_as_strictly() {
    // By number, in one line or in another, with ends of lines of either kind.
    for expect in ["v{n}", "{n}", r"$*\n{n}", r"{n}\nend", "{line}"] {
        for (order, expected) in [
            (&[0, 1, 2, 3][..], counts(4, 4)),
            (&[0, 2, 3], Requests { lost: 1, ..counts(4, 3) }),
            (&[1, 0, 2, 3], Requests { reordered: 1, ..counts(4, 3) }),
            (&[0, 0, 1, 2, 3], Requests { duplicated: 1, ..counts(4, 4) }),
            (&[0, 1, 2, 3, 3], Requests { duplicated: 1, ..counts(4, 4) }),
            (&[0, 1, 7, 3], Requests { wrong: 1, ..counts(4, 3) }),
            (&[0, 1, 2, 3, 9], Requests { unasked: 1, ..counts(4, 4) }),
        ] {
            for piece in [1, 5, 1000] {
                let mut fixture = custom("get k{n}", expect, 4);
                let bytes = fixture.replies(order);
                let bytes = String::from_utf8(bytes).unwrap().replace('\n', "\r\n");
                let counted = fixture.counts(bytes.as_bytes(), piece, End::Broken);
                assert_eq!(counted, expected, "{expect} {order:?} in pieces of {piece}");
            }
        }
    }
}

#[test]
fn replies_without_a_number_are_judged_in_their_order() {
    for (bytes, expected) in [
        ("+OK\r\n+OK\r\n", counts(2, 2)),
        ("+OK\n", Requests { lost: 1, ..counts(2, 1) }),
        ("-ERR no\n+OK\n", Requests { wrong: 1, ..counts(2, 1) }),
        ("+OK\n+OK\n+OK\n", Requests { unasked: 1, ..counts(2, 2) }),
        ("+OK\n+O", Requests { wrong: 1, ..counts(2, 1) }),
        ("ERROR server full (limit 1 connections)\n", Requests { lost: 2, ..counts(2, 0) }),
        ("ERROR\n+OK\n", Requests { wrong: 1, ..counts(2, 1) }),
    ] {
        for piece in [1, 3, 100] {
            let fixture = custom("SET k v", "+OK", 2);
            assert_eq!(fixture.counts(bytes.as_bytes(), piece, End::Broken), expected, "{bytes:?}");
        }
    }
    // An error of one line where a reply has two.
    let fixture = custom("GET k{n}", r"$*\nv{n}", 3);
    let bytes = b"$2\nv0\n-ERR no\n$2\nv6\n";
    assert_eq!(fixture.counts(bytes, 4, End::Broken), Requests { wrong: 1, ..counts(3, 2) });
}

#[test]
fn last_words_are_only_those_that_nothing_follows() {
    let words = b"ERROR internal error\n";
    for after in [false, true] {
        let mut fixture = Fixture::with_requests(1);
        let mut bytes = fixture.replies(&[0]);
        bytes.extend_from_slice(words);
        if after {
            bytes.extend_from_slice(words);
        }
        let unasked = u64::from(after);
        // The connection's end claims the last; here it is only not counted among the requests.
        assert_eq!(fixture.counts(&bytes, 7, End::Broken), Requests { unasked, ..counts(1, 1) });
    }
    let mut fixture = Fixture::with_requests(2);
    let mut bytes = b"ERROR busy (waited 5ms)\n".to_vec();
    bytes.extend(fixture.replies(&[1]));
    assert_eq!(fixture.counts(&bytes, 7, End::Broken), Requests { wrong: 1, ..counts(2, 1) });
}

#[test]
fn the_books_balance_whatever_the_peer_sends() {
    // Seeds that found something stay here; the last one is another each time.
    for seed in [3, fastrand::u64(..)] {
        books_balance(seed);
    }
}

fn books_balance(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..2000 {
        let mut fixture = match round % 4 {
            0 => Fixture::with_requests(8),
            1 => custom("x{n}", "y{n}", 8),
            2 => custom("x{n}", r"$*\n{n}\nend", 8),
            _ => custom("x", "250 *", 8),
        };
        let mut bytes = Vec::new();
        for _ in 0..random.usize(0..12) {
            let mut reply = fixture.replies(&[random.u64(0..10)]);
            match random.u8(0..6) {
                0 => reply.truncate(random.usize(0..reply.len())),
                1 => {
                    let at = random.usize(0..reply.len());
                    reply[at] = random.u8(..);
                }
                2 => reply.extend_from_slice(b"rubbish\n"),
                _ => {}
            }
            bytes.extend(reply);
        }
        let piece = random.usize(1..300);
        let end = if random.bool() { End::Broken } else { End::Stopped };
        let counted = fixture.counts(&bytes, piece, end);
        let settled = counted.right + counted.wrong + counted.reordered + counted.lost + counted.unread;
        assert_eq!(settled, counted.sent, "round {round} of seed {seed}: {counted:?}");
    }
}

#[test]
fn second_reply_is_told_from_a_foreign_one_as_far_back_as_runs_are_remembered() {
    for back in 1..=6 {
        let mut fixture = Fixture::with_requests(0);
        let count = 6;
        // Each in a run of its own.
        for number in 0..count {
            let Fixture { ledger, protocol, tally } = &mut fixture;
            ledger.ask(Asked { due: 0, sent: number }, number * STEP, 1, protocol, tally);
            let reply = protocol.reply(number * STEP).to_vec();
            ledger.read(&reply, protocol, 1, tally);
        }
        let again = fixture.replies(&[count - back]);
        let (duplicated, unasked) = if back <= 4 { (1, 0) } else { (0, 1) };
        let expected = Requests { duplicated, unasked, ..counts(count, count) };
        assert_eq!(fixture.counts(&again, 99, End::Broken), expected, "{back} before the end");
    }
}

#[test]
fn wrong_reply_is_that_of_its_number_and_as_long_as_a_reply() {
    let mut fixture = Fixture::with_requests(3);
    let mut wrong = fixture.replies(&[1]);
    let end = wrong.len() - 2;
    wrong[end] = b'9';
    let bytes = [wrong.clone(), fixture.replies(&[0, 2])].concat();
    let expected = Requests { wrong: 1, reordered: 1, ..counts(3, 1) };
    assert_eq!(fixture.counts(&bytes, 99, End::Broken), expected);

    let mut fixture = Fixture::with_requests(3);
    let bytes = [fixture.replies(&[0]), wrong, b"junk\n".to_vec(), fixture.replies(&[2])].concat();
    // The line behind it is wrong too, and taken for the reply whose turn it is.
    let expected = Requests { wrong: 2, duplicated: 1, ..counts(3, 1) };
    assert_eq!(fixture.counts(&bytes, 99, End::Broken), expected);

    for (expect, bytes) in
        [("OK {n}", &b"OK x\njunk\nOK 6\n"[..]), (r"$*\nv{n}", b"-ERR no\n-ERR no\n$2\nv6\n")]
    {
        let counted = custom("x{n}", expect, 3).counts(bytes, 99, End::Broken);
        assert_eq!(counted, Requests { wrong: 2, ..counts(3, 1) }, "{expect}");
    }
}

#[test]
fn last_words_are_kept_for_the_end_of_the_connection() {
    let mut fixture = Fixture::with_requests(1);
    let Fixture { ledger, protocol, tally } = &mut fixture;
    assert_eq!((ledger.connection(), ledger.take_last_words()), (7, None));
    ledger.read(b"ERROR server full (limit 3 connections)\n", protocol, 1, tally);
    assert_eq!(ledger.take_last_words().as_deref(), Some(&b"ERROR server full (limit 3 connections)"[..]));
    assert_eq!(ledger.example(None, b"x", protocol).connection, 7);
}

#[test]
fn bytes_are_shown_as_far_as_a_person_reads() {
    assert_eq!(shown(b"a\xff\n"), r"a\xff\n");
    for (len, is_cut) in [(160, false), (161, true)] {
        let text = shown(&vec![b'x'; len]);
        assert_eq!((text.trim_end_matches('…').len(), text.ends_with('…')), (160, is_cut));
    }
}

/// Of ten requests the last four have not left this machine: what answers those was not asked.
#[test]
fn reply_to_a_request_that_was_not_sent_is_wrong() {
    let numbered = || Fixture::with_requests(10);
    let by_order = || Fixture::of(Protocol::custom("x", "+OK", None, None).unwrap(), 10);
    let lines = || Fixture::of(Protocol::custom("x", r"+OK\n*", None, None).unwrap(), 10);
    for (fixture, name) in
        [(numbered as fn() -> Fixture, "numbered"), (by_order, "by order"), (lines, "lines")]
    {
        for piece in [1, 7, 4096] {
            let mut fixture = fixture();
            let bytes = match name {
                "numbered" => fixture.replies(&(0..10).collect::<Vec<_>>()),
                "by order" => b"+OK\n".repeat(10),
                _ => b"+OK\nrest\n".repeat(10),
            };
            fixture.ledger.set_unsent(4);
            let expected = Requests { wrong: 4, ..counts(10, 6) };
            let got = Requests { offered: 0, ..fixture.counts(&bytes, piece, End::Broken) };
            assert_eq!(got, expected, "{name} {piece}");
        }
    }
    // Those that are sent meanwhile are answered as any other.
    let mut fixture = by_order();
    fixture.ledger.set_unsent(4);
    fixture.ledger.read(&b"+OK\n".repeat(6), &mut fixture.protocol, 1, &mut fixture.tally);
    fixture.ledger.set_unsent(1);
    fixture.ledger.read(&b"+OK\n".repeat(3), &mut fixture.protocol, 1, &mut fixture.tally);
    fixture.ledger.set_unsent(0);
    assert_eq!(fixture.counts(b"+OK\n", 9, End::Broken), counts(10, 10));
}

/// A bulk string of another text, as Redis says it, and the replies around it.
#[test]
fn wrong_reply_of_several_lines_is_one() {
    for end in ["\n", "\r\n"] {
        for piece in [1, 5, 4096] {
            let fixture = Fixture::of(Protocol::custom("ECHO {n}", r"$*\n{n}", None, None).unwrap(), 4);
            let bytes: String =
                ["0", "what?", "6", "9"].map(|text| format!("${}{end}{text}{end}", text.len())).concat();
            let got = Requests { offered: 0, ..fixture.counts(bytes.as_bytes(), piece, End::Broken) };
            assert_eq!(got, Requests { wrong: 1, ..counts(4, 3) }, "{end:?} {piece}");
        }
    }
}

#[test]
fn reply_to_what_is_not_sent_is_wrong_in_its_turn_and_out_of_it() {
    let asked = |unsent| {
        let mut fixture = Fixture::with_requests(0);
        let Fixture { ledger, protocol, tally } = &mut fixture;
        ledger.ask(Asked { due: 0, sent: 0 }, STEP, 6, protocol, tally);
        ledger.set_unsent(unsent);
        fixture
    };
    for unsent in 0..=6 {
        let mut fixture = asked(unsent);
        let all = fixture.replies(&[1, 2, 3, 4, 5, 6]);
        let expected = Requests { wrong: unsent, ..counts(6, 6 - unsent) };
        assert_eq!(fixture.counts(&all, usize::MAX, End::Stopped), expected, "{unsent}");
        for number in 1..=6 {
            let mut fixture = asked(unsent);
            let reply = fixture.replies(&[number]);
            let Fixture { ledger, protocol, tally } = &mut fixture;
            ledger.read(&reply, protocol, 1, tally);
            let is_wrong = u64::from(number > 6 - unsent);
            let total = fixture.tally.total();
            assert_eq!((total.right, total.wrong), (1 - is_wrong, is_wrong), "{number} of {unsent}");
        }
    }
}

#[test]
fn reply_to_what_has_been_given_up_is_no_second_one() {
    let mut fixture = Fixture::with_requests(0);
    let Fixture { ledger, protocol, tally } = &mut fixture;
    ledger.ask(Asked { due: 0, sent: 0 }, 0, 4, protocol, tally);
    for number in [0, 2, 1] {
        let reply = protocol.reply(number * STEP).to_vec();
        ledger.read(&reply, protocol, 5, tally);
        ledger.expire_missing(6, protocol, 6, tally);
    }
    let total = tally.total();
    assert_eq!((total.right, total.lost, total.wrong, total.duplicated), (2, 1, 1, 0));
    let example = &tally.examples[&Kind::Wrong].example;
    assert_eq!(example.got, shown(protocol.reply(STEP)));
}

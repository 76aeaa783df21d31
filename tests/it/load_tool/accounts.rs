//! Servers that are wrong in one way each: every request is accounted for, and latency counts from when it was due.

use super::*;

#[test]
fn right_server_is_right() {
    both_loops(Fault::None, PATIENT, |run, name| {
        assert_eq!(run.errors(), [], "{name} loop");
        assert_eq!((run.count("requests", "sent"), run.count("requests", "right"), run.status), (40, 40, 0));
        assert_ne!(run.json["verdict"], "failed", "{name} loop");
        assert_eq!(run.count("connections", "opened"), 1);
    });
}

#[test]
fn wrong_text_is_wrong() {
    expect(Fault::Text, PATIENT, &[("wrong", 1)]);
}

#[test]
fn wrong_tail_is_wrong() {
    expect(Fault::Tail, PATIENT, &[("wrong", 1)]);
}

#[test]
fn truncated_reply_is_wrong() {
    expect(Fault::Truncate, PATIENT, &[("wrong", 1)]);
}

#[test]
fn dropped_reply_is_lost() {
    expect(Fault::Drop, IMPATIENT, &[("lost", 1)]);
}

#[test]
fn second_reply_is_duplicated() {
    expect(Fault::Duplicate, PATIENT, &[("duplicated", 1)]);
}

#[test]
fn swapped_replies_are_reordered() {
    expect(Fault::Swap, PATIENT, &[("reordered", 1)]);
}

#[test]
fn early_close_loses_what_was_outstanding() {
    both_loops(Fault::Close, PATIENT, |run, name| {
        assert_eq!(run.count("connections", "closed_early"), 1, "{name} loop: {}", run.json);
        assert!((1..=4).contains(&run.count("requests", "lost")), "{name} loop: {}", run.json);
        assert_eq!(run.errors().len(), 2, "{name} loop: {}", run.json);
        assert!(run.example("closed_early").contains("end of stream"), "{}", run.json["examples"]);
        assert_eq!(run.count("connections", "opened"), 2, "another one takes its place");
        assert_eq!((run.count("requests", "sent"), run.status), (40, 1));
    });
}

#[test]
fn reset_loses_what_was_outstanding() {
    // Whether a read or a write is told first is chance: several rounds see both.
    for _ in 0..5 {
        reset_loses();
    }
}

fn reset_loses() {
    both_loops(Fault::Reset, PATIENT, |run, name| {
        assert_eq!(run.count("connections", "reset"), 1, "{name} loop: {}", run.json);
        // A reset also takes replies that had come and were not read.
        assert!((1..=7).contains(&run.count("requests", "lost")), "{name} loop: {}", run.json);
        assert_eq!((run.errors().len(), run.status), (2, 1), "{name} loop: {}", run.json);
    });
}

#[test]
fn silence_is_lost_after_the_timeout() {
    both_loops(Fault::Silence, IMPATIENT, |run, name| {
        let lost = run.count("requests", "lost");
        assert!((1..=4).contains(&lost), "{name} loop: {}", run.json);
        assert_eq!(run.errors(), [("lost".to_owned(), lost)], "{name} loop");
        assert_eq!((run.count("connections", "opened"), run.status), (2, 1), "another one takes its place");
    });
}

#[test]
fn words_of_a_full_server_are_shown() {
    both_loops(Fault::Full, IMPATIENT, |run, name| {
        assert!(
            run.count("connections", "closed_early") >= 1 && run.status == 1,
            "{name} loop: {}",
            run.json
        );
        assert!(run.example("closed_early").contains("server full"), "{}", run.json["examples"]);
        assert_eq!(run.count("requests", "wrong"), 0, "{name} loop");
    });
}

#[test]
fn stall_shows_in_the_latency_of_all_that_was_due_meanwhile() {
    let server = WrongServer::start(Fault::Sleep(Duration::from_millis(400)));
    let target = server.address();
    // 1000 a second: about 400 requests are due while the server sleeps, 200 of them for more than 200 ms.
    let run = Run::new(&target, &["-c", "1", "-n", "1000", "-r", "1000", "--timeout", PATIENT]);
    assert_eq!((run.errors(), run.status), (vec![], 0));
    assert!(run.microseconds("p90") > 150_000.0, "coordinated omission: {}", run.json["latency_us"]);
    assert!(run.microseconds("max") >= 390_000.0, "{}", run.json["latency_us"]);
}

#[test]
fn stall_shows_in_the_latency_of_what_waited_for_a_connection() {
    let server = WrongServer::start(Fault::Sleep(Duration::from_millis(400)));
    let arguments = ["-c", "1", "-n", "400", "-r", "500", "--reconnect", "--timeout", PATIENT];
    let run = Run::new(&server.address(), &arguments);
    assert_eq!((run.errors(), run.status), (vec![], 0));
    // About 200 requests were due while the only connection was taken, half of them for more than 200 ms.
    assert!(run.microseconds("p90") > 150_000.0, "{}", run.json["latency_us"]);
}

#[test]
fn what_never_found_a_connection_is_counted() {
    for arguments in [&["-r", "200", "--reconnect"][..], &["--reconnect"], &["-r", "200", "-P", "2"]] {
        // Two are let in by the system, and nobody answers those.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.listen(1).unwrap();
        let target = socket.local_addr().unwrap().as_socket().unwrap().to_string();
        let run = Run::new(&target, &[&["-c", "50", "-d", "1s", "--timeout", "600ms"], arguments].concat());
        let errors = run.errors();
        assert_eq!(run.status, 1, "{arguments:?}: {errors:?}");
        assert!(run.count("requests", "unsent") > 0, "{arguments:?}: {errors:?}");
        assert!(run.count("requests", "lost") > 0, "{arguments:?}: {errors:?}");
        if arguments.contains(&"-r") {
            assert!(run.count("requests", "offered") >= 100, "{arguments:?}: {}", run.json);
        }
    }
}

#[test]
fn error_lines_beside_replies_are_no_success() {
    for fault in [Fault::LastWordsAlways, Fault::ErrorAlways] {
        both_loops(fault, PATIENT, |run, name| {
            assert_eq!((run.status, &run.json["verdict"]), (1, &Value::from("failed")), "{fault:?} {name}");
            let told = run.example("unasked") + &run.example("wrong");
            assert!(told.contains("ERROR"), "{fault:?} {name}: {}", run.json["examples"]);
        });
    }
    expect_of(Fault::Busy, PATIENT, &[("wrong", 1)], "ERROR busy");
}

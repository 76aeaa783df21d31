//! `tidemill load` against servers that are wrong in one way each, and what it says of itself.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::support::wrong_server::{Fault, WrongServer};
use crate::support::{DEADLINE, Ended, eventually, freeze, program, scratch, serve, skipped};

/// Long enough for a reply on a machine that does other work as well; nothing waits for it.
const PATIENT: &str = "20s";
/// Waited for where a reply never comes.
const IMPATIENT: &str = "700ms";

fn tool(target: &str, arguments: &[&str]) -> Ended {
    Ended::of(program().arg("load").arg(target).args(arguments))
}

/// What a run said, and its exit status.
struct Run {
    json: Value,
    status: i32,
}

impl Run {
    fn new(target: &str, arguments: &[&str]) -> Self {
        Self::of(&tool(target, &[arguments, &["--json"]].concat()))
    }

    #[track_caller]
    fn of(ended: &Ended) -> Self {
        let status = ended.status.code().unwrap_or_else(|| panic!("it does not end: {ended:?}"));
        let json = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        Self { json, status }
    }

    fn count(&self, group: &str, name: &str) -> u64 {
        self.json[group][name].as_u64().unwrap_or_else(|| panic!("{group}.{name} in {}", self.json))
    }

    /// Everything of the ledger that is not zero, sorted by name, and that the sums are right.
    fn errors(&self) -> Vec<(String, u64)> {
        let count = |name| self.count("requests", name);
        let settled = count("right") + count("wrong") + count("reordered") + count("lost") + count("unread");
        assert_eq!(count("sent"), settled, "{}", self.json);
        for group in ["requests", "total"] {
            let count = |name| self.count(group, name);
            assert_eq!(count("offered"), count("sent") + count("unsent"), "{group}: {}", self.json);
        }
        let mut errors = Vec::new();
        for (group, names) in [
            ("requests", &["wrong", "reordered", "duplicated", "lost", "unread", "unasked", "unsent"][..]),
            ("connections", &["refused", "reset", "closed_early"][..]),
        ] {
            let some = names.iter().map(|&name| (name.to_owned(), self.count(group, name)));
            errors.extend(some.filter(|&(_, count)| count > 0));
        }
        errors
    }

    fn example(&self, kind: &str) -> String {
        let examples = self.json["examples"].as_array().unwrap();
        examples.iter().find(|example| example["kind"] == kind).map_or_else(String::new, Value::to_string)
    }

    fn microseconds(&self, percentile: &str) -> f64 {
        self.json["latency_us"][percentile]
            .as_f64()
            .unwrap_or_else(|| panic!("{percentile} in {}", self.json))
    }
}

/// The closed loop and the open loop, each with several requests outstanding on one connection.
fn both_loops(fault: Fault, timeout: &str, check: impl Fn(&Run, &str)) {
    let closed = ["-c", "1", "-P", "4", "-n", "40", "--timeout", timeout];
    let open = [&closed[..], &["-r", "4000"]].concat();
    for (arguments, name) in [(&closed[..], "closed"), (&open[..], "open")] {
        let server = WrongServer::start(fault);
        check(&Run::new(&server.address(), arguments), name);
    }
}

/// Expects exactly these errors, an example of the first, and exit status 1.
fn expect(fault: Fault, timeout: &str, errors: &[(&str, u64)]) {
    expect_of(fault, timeout, errors, "HELO");
}

/// The same, with a word of the example.
fn expect_of(fault: Fault, timeout: &str, errors: &[(&str, u64)], word: &str) {
    both_loops(fault, timeout, |run, name| {
        let expected: Vec<_> = errors.iter().map(|&(kind, count)| (kind.to_owned(), count)).collect();
        assert_eq!(run.errors(), expected, "{name} loop: {}", run.json);
        assert!(run.example(errors[0].0).contains(word), "{name} loop: {}", run.json["examples"]);
        assert_eq!((run.status, &run.json["verdict"]), (1, &Value::from("failed")), "{name} loop");
        assert_eq!(run.count("requests", "sent"), 40, "{name} loop");
    });
}

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
fn server_that_never_answers_ends_the_run() {
    both_loops(Fault::AlwaysSilent, IMPATIENT, |run, name| {
        assert_eq!((run.count("requests", "right"), run.status), (0, 1), "{name} loop");
        assert!(run.count("requests", "lost") >= 4, "{name} loop: {}", run.json);
        assert!(run.json["ended_early"].as_str().unwrap().contains("does not answer"), "{}", run.json);
    });
}

#[test]
fn rubbish_is_wrong_and_ends_the_run() {
    both_loops(Fault::Rubbish, IMPATIENT, |run, name| {
        assert_eq!((run.count("requests", "right"), run.status), (0, 1), "{name} loop");
        assert!(run.count("requests", "wrong") >= 1, "{name} loop: {}", run.json);
        assert!(run.example("wrong").contains("what?"), "{}", run.json["examples"]);
    });
}

#[test]
fn server_that_dies_ends_the_run() {
    both_loops(Fault::Die, IMPATIENT, |run, name| {
        assert!(run.count("connections", "refused") >= 1, "{name} loop: {}", run.json);
        assert!(run.count("requests", "sent") < 40 && run.status == 1, "{name} loop: {}", run.json);
        assert!(run.example("refused").contains("refused"), "{}", run.json["examples"]);
    });
}

#[test]
fn refusal_is_counted_and_ends_the_run_at_once() {
    // Bound but not listening: nobody else gets this port meanwhile.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let target = socket.local_addr().unwrap().as_socket().unwrap().to_string();
    for arguments in [&["-c", "3", "-d", "1h"][..], &["-c", "3", "-d", "1h", "-r", "10"]] {
        let run = Run::new(&target, arguments);
        assert!(run.count("connections", "refused") >= 3 && run.status == 1, "{}", run.json);
        assert_eq!(run.count("connections", "opened"), 0);
    }
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
fn whatever_the_server_does_a_run_ends_in_time() {
    let faults = [
        Fault::None,
        Fault::AlwaysSilent,
        Fault::Rubbish,
        Fault::Stream,
        Fault::StreamOfOneLine,
        Fault::Drip,
        Fault::Deaf,
        Fault::CloseAtOnce,
        Fault::Full,
        Fault::Die,
        Fault::LastWordsAlways,
    ];
    let ways =
        [&["-P", "3"][..], &["-P", "300", "-r", "2000"], &["--reconnect"], &["--reconnect", "-r", "500"]];
    let check = |arguments: &[&str]| {
        for fault in faults {
            let server = WrongServer::start(fault);
            let arguments = [&["-c", "3", "-d", "300ms", "--timeout", "500ms"], arguments].concat();
            let started = Instant::now();
            let run = Run::new(&server.address(), &arguments);
            let took = started.elapsed();
            // Half a second of it for the machine.
            assert!(
                took < Duration::from_millis(300 + 500 + 1000 + 500),
                "{fault:?} {arguments:?}: {took:?}"
            );
            let errors = run.errors();
            assert_eq!(fault == Fault::None, run.status == 0, "{fault:?} {arguments:?}: {errors:?}");
            assert_eq!(fault == Fault::None, errors.is_empty(), "{fault:?} {arguments:?}: {errors:?}");
        }
    };
    // Side by side: most of it is waiting.
    thread::scope(|scope| {
        ways.map(|arguments| scope.spawn(move || check(arguments))).map(|way| way.join().unwrap())
    });
}

#[test]
fn timeout_holds_while_requests_are_still_being_sent() {
    let server = WrongServer::start(Fault::AlwaysSilent);
    let arguments = ["-c", "2", "-P", "10000", "-r", "500", "-d", "1h", "--timeout", "300ms"];
    let run = Run::new(&server.address(), &arguments);
    assert!(run.json["ended_early"].as_str().unwrap().contains("does not answer"), "{}", run.json);
    assert!(run.count("requests", "lost") > 10 && run.status == 1, "{}", run.json);
}

#[test]
fn run_without_anything_to_do_ends() {
    let server = WrongServer::start(Fault::None);
    let run = Run::new(&server.address(), &["-n", "1", "-c", "2", "--threads", "2"]);
    assert_eq!((run.errors(), run.status, run.count("requests", "right")), (vec![], 0, 1));
    let right = (1..=8).map(|seed| {
        let seed = seed.to_string();
        let arguments =
            ["--shape", "rate=random:0..1x1@1s", "-d", "100ms", "--seed", &seed, "--timeout", "200ms"];
        // With seeds that draw a zero, there is no request, which is no success.
        let run = Run::new(&server.address(), &arguments);
        assert_eq!(run.status == 0, run.count("requests", "right") > 0, "{}", run.json);
        run.count("requests", "offered")
    });
    assert_eq!(right.min(), Some(0));
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

#[test]
fn files_that_cannot_be_used_are_known_before_the_run() {
    let server = WrongServer::start(Fault::None);
    let fine = Scratch::new("fine.html");
    for arguments in [
        &["--report", "/nowhere/at/all.html"][..],
        &["--report", "/"],
        &["--report", fine.path(), "--stats", "/nowhere/at/all"],
        &["--report", fine.path(), "--compare", "/nowhere/at/all"],
    ] {
        let ended = tool(&server.address(), &[&["-c", "1", "-d", "1h"], arguments].concat());
        assert_eq!(
            (ended.status.code(), ended.stderr.lines().count()),
            (Some(1), 1),
            "{arguments:?}: {ended:?}"
        );
        assert!(ended.stderr.contains(arguments[arguments.len() - 1]), "{}", ended.stderr);
    }
    assert_eq!(server.requests(), 0);
    assert!(!fine.0.exists(), "nothing is left of a page that was not written");
    // What was there stays until there is something better.
    std::fs::write(fine.path(), "before").unwrap();
    assert_eq!(tool("nowhere", &["--report", fine.path()]).status.code(), Some(2));
    assert_eq!(std::fs::read_to_string(fine.path()).unwrap(), "before");
}

#[test]
fn result_is_printed_even_where_the_page_cannot_be_written() {
    let server = WrongServer::start(Fault::None);
    let ended = tool(&server.address(), &["-c", "1", "-n", "20", "--report", "/dev/full"]);
    assert!(
        ended.stdout.contains("every reply was right") && ended.stderr.contains("/dev/full"),
        "{ended:?}"
    );
    assert_eq!(ended.status.code(), Some(1));
}

#[test]
fn closed_pipe_behind_the_tool_is_no_failure() {
    for (fault, status) in [(Fault::None, 0), (Fault::Text, 1)] {
        let server = WrongServer::start(fault);
        let mut flood = Flood::start(&server.address(), &["-c", "1", "-n", "40"]);
        drop(flood.child.stdout.take());
        let mut said = String::new();
        flood.words.read_to_string(&mut said).unwrap();
        assert_eq!((flood.child.wait().unwrap().code(), said.as_str()), (Some(status), ""));
    }
}

#[test]
fn expected_stop_after_a_clean_prefix_is_right() {
    let server = WrongServer::start(Fault::StopAfter(10));
    let arguments = ["-c", "3", "-P", "4", "-d", "1h", "--expect-stop", "--timeout", PATIENT];
    let run = Run::new(&server.address(), &arguments);
    assert_eq!(run.status, 0, "{}", run.json);
    assert_eq!((run.count("requests", "right"), run.count("connections", "stopped")), (30, 3));
    assert!((3..=12).contains(&run.count("requests", "unread")), "{}", run.json);
}

#[test]
fn expected_stop_inside_a_reply_is_wrong() {
    let server = WrongServer::start(Fault::StopInside);
    let run = Run::new(&server.address(), &["-c", "1", "-P", "4", "-d", "1h", "--expect-stop"]);
    assert_eq!((run.status, run.count("requests", "wrong")), (1, 1), "{}", run.json);
    assert_eq!(run.count("connections", "closed_early"), 1);
}

#[test]
fn expected_stop_that_does_not_come_fails() {
    let server = WrongServer::start(Fault::None);
    let run = Run::new(&server.address(), &["-c", "1", "-n", "20", "--expect-stop"]);
    assert_eq!((run.status, run.count("requests", "right")), (1, 20));
    assert!(run.json["problems"].to_string().contains("did not stop"), "{}", run.json["problems"]);
}

#[test]
fn every_way_of_sending_sends_what_was_asked_for() {
    for arguments in [
        &["-c", "5", "--reconnect"][..],
        &["-c", "5", "--reconnect", "-r", "5000"],
        &["-c", "5", "--threads", "3", "-P", "3"],
        &["-c", "5", "--threads", "2", "-r", "5000", "--poisson"],
        &["-c", "5", "--warm-up", "50ms"],
        &["-d", "1h", "--shape", "connections=ramp:1..5@100ms"],
        &["-d", "1h", "--shape", "rate=onoff:0..5000x2@200ms", "-c", "5"],
    ] {
        let server = WrongServer::start(Fault::None);
        let run = Run::new(&server.address(), &[arguments, &["-n", "203", "--timeout", PATIENT]].concat());
        assert_eq!((run.errors(), run.status), (vec![], 0), "{arguments:?}: {}", run.json);
        assert_eq!(run.count("requests", "right"), 203, "{arguments:?}");
        if arguments.contains(&"--reconnect") {
            assert_eq!(run.count("connections", "opened"), 203, "{arguments:?}");
        }
    }
}

#[test]
fn duration_ends_a_run_without_losing_anything() {
    let server = WrongServer::start(Fault::None);
    for rate in [&[][..], &["-r", "500"]] {
        let run = Run::new(&server.address(), &[&["-c", "3", "-P", "2", "-d", "300ms"], rate].concat());
        assert_eq!((run.errors(), run.status), (vec![], 0), "{}", run.json);
        assert!(run.count("requests", "right") > 0 && run.json["seconds"].as_f64().unwrap() >= 0.29);
        assert!(run.json["series"].as_array().is_some_and(|rows| rows.len() >= 2), "{}", run.json["series"]);
    }
}

#[test]
fn asserts_decide_the_exit_status() {
    let server = WrongServer::start(Fault::None);
    for (asserts, holds, status) in [
        ("lost=0,right=40", [true, true], 0),
        ("lost=0,right=41", [true, false], 1),
        // Forty samples are too few for this percentile.
        ("sent>=40,p99<1h", [true, false], 1),
    ] {
        let run = Run::new(&server.address(), &["-c", "1", "-n", "40", "--assert", asserts]);
        let held: Vec<_> = (0..2).map(|at| run.json["asserts"][at]["holds"].as_bool().unwrap()).collect();
        assert_eq!((&held[..], run.status), (&holds[..], status), "{asserts}: {}", run.json["asserts"]);
    }
}

#[test]
fn wrong_usage_is_one_line_and_status_2() {
    for arguments in [
        &["--assert", "p99<fast"][..],
        &["--shape", "rate=wave:1@1s"],
        &["--poisson"],
        &["--rate", "0"],
        &["--rate", "5", "--shape", "rate=hold:1@1s"],
        &["--reconnect", "-P", "2"],
        &["--duration", "soon"],
        &["--stats", "file"],
        &["-c", "0"],
    ] {
        let output = tool("127.0.0.1:1", arguments);
        let error = output.stderr;
        assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{arguments:?}: {error}");
    }
    assert_eq!(tool("nowhere", &[]).status.code(), Some(2));
}

#[test]
fn nothing_is_drawn_where_there_is_no_terminal() {
    let server = WrongServer::start(Fault::None);
    let output = tool(&server.address(), &["-c", "1", "-n", "300"]);
    assert_eq!(output.stderr, "");
    let text = output.stdout;
    assert!(text.contains("requests/s") && text.contains("300") && !text.contains('\x1b'), "{text}");
}

#[test]
fn every_way_to_write_an_address_reaches_the_server() {
    let targets = ["0.0.0.0", "127.0.0.1", "localhost", "[::ffff:127.0.0.1]"];
    let both = ["[::]", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"];
    for (bind, targets) in [("0.0.0.0", &targets[..]), ("127.0.0.1", &targets), ("::", &both)] {
        if bind == "::" && !has_ipv6() {
            continue;
        }
        let server = serve(&format!("--bind {bind}"));
        for target in targets {
            let target = format!("{target}:{}", server.address.port());
            for more in [&[][..], &["-r", "3000", "--reconnect"]] {
                let run = Run::new(&target, &[&["-c", "2", "-n", "20"], more].concat());
                assert_eq!((run.errors(), run.status), (vec![], 0), "{target} on {bind}: {}", run.json);
                assert_eq!(run.json["target"], target);
            }
        }
    }
}

#[test]
fn server_behind_a_port_mapping_is_right() {
    let known_as = ["--advertise-ip", "192.0.2.7", "--advertise-port", "4711"];
    let server = serve(&known_as.join(" "));
    let target = server.address.to_string();
    let mapped = Run::new(&target, &[&["-c", "1", "-n", "10"], &known_as[..]].concat());
    assert_eq!((mapped.errors(), mapped.status), (vec![], 0), "{}", mapped.json);
    let not_told = Run::new(&target, &["-c", "1", "-n", "10"]);
    assert_eq!(
        (not_told.errors(), not_told.status),
        (vec![("wrong".to_owned(), 10)], 1),
        "{}",
        not_told.json
    );
}

fn has_ipv6() -> bool {
    let available = std::net::TcpListener::bind("[::1]:0").is_ok();
    if !available {
        skipped("no IPv6 here");
    }
    available
}

/// The tool where `hosts` is the file of names; `None` where the system does not let us have our own.
fn where_names_are(hosts: &str, target: &str, arguments: &[&str]) -> Option<Run> {
    let file = Scratch::new("hosts");
    std::fs::write(file.path(), hosts).unwrap();
    let script = format!("mount --bind {} /etc/hosts && exec \"$@\"", file.path());
    let shell = ["--mount", "--map-root-user", "sh", "-c", &script, "sh"];
    if !Command::new("unshare").args(shell).arg("true").output().is_ok_and(|output| output.status.success()) {
        skipped("no file of names of our own here");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(shell).arg(env!("CARGO_BIN_EXE_tidemill")).args(["load", target, "--json"]).args(arguments);
    Some(Run::of(&Ended::of(&mut command)))
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    if !has_ipv6() {
        return;
    }
    let names = "127.0.0.1 both\n::1 both\n::1 six\n::1 six-first\n127.0.0.1 six-first\n";
    for (bind, names_of_it) in
        [("::1", &["both", "six", "six-first"][..]), ("127.0.0.1", &["both", "six-first"])]
    {
        let server = serve(&format!("--bind {bind}"));
        for name in names_of_it {
            let target = format!("{name}:{}", server.address.port());
            for more in [&[][..], &["--threads", "2"], &["-r", "3000"], &["-r", "3000", "--reconnect"]] {
                let arguments = [&["-c", "5", "-n", "40"], more].concat();
                let Some(run) = where_names_are(names, &target, &arguments) else { return };
                assert_eq!((run.errors(), run.status), (vec![], 0), "{target} on {bind}: {}", run.json);
                assert_eq!(run.count("requests", "right"), 40, "{target} on {bind}");
            }
        }
    }
    // Nobody there at any address.
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let run = where_names_are(names, &format!("both:{unused}"), &["-c", "3", "-d", "1h"]);
    let Some(run) = run else { return };
    assert_eq!((run.count("connections", "refused"), run.status), (3, 1), "{}", run.json);
}

/// A run that goes on beside the test.
struct Flood {
    child: Child,
    /// What it says on standard error.
    words: BufReader<ChildStderr>,
}

impl Flood {
    fn start(target: &str, arguments: &[&str]) -> Self {
        let mut command = program();
        command.args(["load", target, "--json"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let words = BufReader::new(child.stderr.take().unwrap());
        Self { child, words }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end.
    #[track_caller]
    fn end(self) -> Run {
        self.end_within(DEADLINE)
    }

    #[track_caller]
    fn end_within(mut self, patience: Duration) -> Run {
        let mut stdout = self.child.stdout.take().unwrap();
        let reader = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < patience, "the run does not end");
            thread::sleep(Duration::from_millis(1));
        };
        Run::of(&Ended { status, stdout: reader.join().unwrap(), stderr: String::new() })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // It has ended, unless the test fails.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn replies_that_came_while_it_was_stopped_are_read_before_they_are_called_lost() {
    let timeout = Duration::from_millis(300);
    for arguments in [&["-P", "8"][..], &["--threads", "2"], &["-r", "5000", "-P", "8"], &["--reconnect"]] {
        let server = WrongServer::start(Fault::None);
        let arguments = [&["-c", "4", "-d", "1h", "--timeout", "300ms"], arguments].concat();
        let flood = Flood::start(&server.address(), &arguments);
        eventually("requests are sent", || server.requests() > 100);
        freeze(flood.pid());
        let since = Instant::now();
        // More than ABSENT_NANOS, too.
        eventually("all timeouts have passed", || since.elapsed() > 3 * timeout);
        let before = server.requests();
        flood.signal(Signal::CONT);
        eventually("it goes on", || server.requests() > before + 100);
        flood.signal(Signal::INT);
        let run = flood.end();
        let mut errors = run.errors();
        // What was due while it was stopped may not all have been sent when the interrupt came.
        errors.retain(|(kind, _)| kind != "unsent");
        assert_eq!((errors, run.status), (vec![], 0), "{arguments:?}: {}", run.json);
        assert_eq!(run.json["verdict"], "invalid", "{arguments:?}");
        assert!(run.json["problems"].to_string().contains("did not run for"), "{}", run.json["problems"]);
    }
}

#[test]
fn frozen_server_is_not_waited_for_once_interrupted() {
    for arguments in [&["-P", "8"][..], &["-r", "2000"], &["-P", "8", "--threads", "2"]] {
        let server = serve("");
        let arguments = [&["-c", "4", "-d", "1h", "--timeout", "1h"], arguments].concat();
        let mut flood = Flood::start(&server.address.to_string(), &arguments);
        eventually("requests are answered", || server.stats()["replies_total"].as_u64() > Some(100));
        server.freeze();
        let since = Instant::now();
        eventually("requests were due meanwhile", || since.elapsed() > Duration::from_millis(50));
        flood.signal(Signal::INT);
        let mut said = String::new();
        flood.words.read_line(&mut said).unwrap();
        assert!(said.contains("interrupted"), "{said}");
        let run = flood.end();
        assert!(run.count("requests", "right") >= 100, "{}", run.json);
        assert!(run.count("requests", "lost") >= 1 && run.status == 1, "{}", run.json);
        assert_eq!(run.json["ended_early"], "interrupted");
        server.resume();
    }
}

#[test]
fn second_interrupt_gives_the_account_at_once() {
    // A server this slow is waited for longer than any test.
    let server = WrongServer::start(Fault::SleepThenSilence(Duration::from_secs(1)));
    let mut flood = Flood::start(&server.address(), &["-c", "1", "-d", "1h", "--timeout", "1h"]);
    eventually("the slow reply has come", || server.requests() == 5);
    flood.signal(Signal::INT);
    flood.words.read_line(&mut String::new()).unwrap();
    flood.signal(Signal::INT);
    let run = flood.end();
    assert_eq!(
        (run.count("requests", "right"), run.errors()),
        (4, vec![("lost".to_owned(), 1)]),
        "{}",
        run.json
    );
    assert_eq!(run.status, 1);
    assert!(run.json["ended_early"].as_str().unwrap().contains("twice"), "{}", run.json);
}

#[test]
fn half_a_reply_that_is_not_waited_for_is_not_wrong() {
    let server = WrongServer::start(Fault::HalfThenSilence);
    let flood = Flood::start(&server.address(), &["-c", "1", "-d", "1h", "--timeout", "1h"]);
    eventually("the reply is due", || server.requests() == 4);
    flood.signal(Signal::INT);
    let run = flood.end();
    assert_eq!((run.errors(), run.status), (vec![("lost".to_owned(), 1)], 1), "{}", run.json);
}

#[test]
fn interrupt_that_loses_nothing_is_no_failure() {
    for arguments in [&[][..], &["-r", "2000"], &["--reconnect"], &["--warm-up", "1h"]] {
        let server = WrongServer::start(Fault::None);
        let flood = Flood::start(&server.address(), &[&["-c", "3", "-d", "1h"], arguments].concat());
        eventually("requests are sent", || server.requests() > 100);
        flood.signal(Signal::TERM);
        let run = flood.end();
        assert_eq!((run.errors(), run.status), (vec![], 0), "{arguments:?}: {}", run.json);
        assert!(run.count("total", "right") >= 100, "{arguments:?}: {}", run.json);
        assert_eq!(run.json["ended_early"], "interrupted");
    }
}

/// It has ended early for want of something of its own, and nothing of that is the server's fault.
fn assert_out_of(what: &str, run: &Run) {
    assert_eq!(run.json["verdict"], "invalid", "{}", run.json);
    assert_eq!((run.count("requests", "lost"), run.count("requests", "wrong"), run.status), (0, 0, 0));
    assert!(run.json["ended_early"].as_str().unwrap().contains(what), "{}", run.json["ended_early"]);
    assert!(run.json["problems"].to_string().contains(what), "{}", run.json["problems"]);
}

#[test]
fn running_out_of_descriptors_ends_a_run_and_makes_it_invalid() {
    for arguments in [&[][..], &["-r", "2000"]] {
        let server = WrongServer::start(Fault::None);
        let arguments = [&["-c", "8", "-d", "1h", "--reconnect"], arguments].concat();
        let flood = Flood::start(&server.address(), &arguments);
        eventually("requests are sent", || server.requests() > 100);
        let few = Rlimit { current: Some(4), maximum: getrlimit(Resource::Nofile).maximum };
        prlimit(Some(flood.pid()), Resource::Nofile, few).unwrap();
        assert_out_of("file descriptors", &flood.end());
    }
}

#[test]
fn running_out_of_local_ports_ends_a_run_and_makes_it_invalid() {
    // A network of its own, with few ports.
    let script = "ip link set lo up && echo 40000 40029 >/proc/sys/net/ipv4/ip_local_port_range || exit 77
        \"$0\" serve 30000 >&2 &
        until \"$0\" client H 127.0.0.1 30000 >&2; do kill -0 $! || exit 77; done
        \"$0\" load 127.0.0.1:30000 --json \"$@\"
        status=$?; kill $!; exit $status";
    let few = ["-c", "4", "-d", "1h", "--reconnect"];
    for arguments in [&few[..], &[&few[..], &["-r", "2000"]].concat(), &["-c", "200", "-d", "1h"]] {
        let mut command = Command::new("unshare");
        command.args(["--net", "--map-root-user", "sh", "-c", script, env!("CARGO_BIN_EXE_tidemill")]);
        let ended = Ended::of(command.args(arguments));
        if ended.status.code() == Some(77) {
            return skipped("no network of our own here");
        }
        assert_out_of("local ports", &Run::of(&ended));
    }
}

/// A file that is gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("tidemill-load-{}-{name}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

#[test]
fn runs_are_written_compared_and_merged() {
    let server = WrongServer::start(Fault::None);
    let (run, page) = (Scratch::new("run.json"), Scratch::new("page.html"));
    let output = tool(&server.address(), &["-c", "2", "-n", "150", "--json"]);
    std::fs::write(run.path(), &output.stdout).unwrap();

    let compare = ["-c", "2", "-n", "150", "--report", page.path(), "--compare", run.path()];
    assert_eq!(tool(&server.address(), &compare).status.code(), Some(0));
    let html = std::fs::read_to_string(page.path()).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.contains("latency · other run"));

    let merge = ["load", "--json", "--merge", run.path(), "--merge", run.path()];
    let output = Ended::of(program().args(merge));
    let sum: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (&sum["requests"]["right"], &sum["latency_us"]["count"]),
        (&Value::from(300), &Value::from(300))
    );
    assert_eq!(output.status.code(), Some(0));

    for (assert, holds) in [("right=300,p90<1h", true), ("right=301", false)] {
        let output = Ended::of(program().args(merge).args(["--assert", assert]));
        let sum: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(sum["asserts"][0]["holds"], holds, "{}", sum["asserts"]);
        assert_eq!(output.status.code(), Some(i32::from(!holds)));
    }
}

#[test]
fn page_of_half_an_hour_with_statistics_is_drawn() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/draw_page.js");
    let server = WrongServer::start(Fault::None);
    let (run, stats, page) =
        (Scratch::new("long.json"), Scratch::new("long.stats"), Scratch::new("long.html"));
    let mut document = Run::new(&server.address(), &["-c", "1", "-n", "50"]).json;
    (document["seconds"], document["started_unix_seconds"]) = (1800.into(), 1_000_000.into());
    std::fs::write(run.path(), document.to_string()).unwrap();
    let line = |at: u32| {
        let now = 1_000_000.0 + f64::from(at) * 0.05;
        format!(
            "{{\"unix_seconds\":{now},\"pool_threads\":{},\"pool_demand\":5,\"pool_busy\":1,\"requests_pending\":3}}\n",
            at % 60
        )
    };
    std::fs::write(stats.path(), (0..36_000).map(line).collect::<String>()).unwrap();
    let merge = ["load", "--merge", run.path(), "--report", page.path(), "--stats", stats.path()];
    assert_eq!(Ended::of(program().args(merge)).status.code(), Some(0));
    if Command::new("node").arg("--version").output().is_err() {
        return skipped("no node here to run the page's script");
    }
    let drawn = Ended::of(Command::new("node").args([script, page.path()]));
    assert!(drawn.status.success(), "{}", drawn.stderr);
    assert!(drawn.stdout.lines().any(|line| line == "3 36000"), "the pool: {}", drawn.stdout);
}

#[test]
fn slow_server_is_found_to_carry_what_it_can() {
    // Two workers of 5 ms each: 400 a second, and no more.
    let server = serve("--handler-delay 5ms --min-threads 2 --max-threads 2");
    let page = Scratch::new("find.html");
    let arguments = ["--find", "p90<25ms", "-d", "300ms", "-c", "16", "-r", "370", "--report", page.path()];
    // A dozen steps or two, and more where other work disturbs them.
    let run = Flood::start(&server.address.to_string(), &arguments).end_within(5 * DEADLINE);
    let find = &run.json["find"];
    let (rate, high) = (find["rate"].as_f64(), find["high"].as_f64());
    // How much less is up to what else goes on here.
    assert!(rate.is_some_and(|rate| (100.0..440.0).contains(&rate)), "{find}");
    assert!(high > rate && high <= rate.map(|rate| rate * 1.021), "{find}");
    assert_eq!(run.status, 0, "{}", run.json["problems"]);
    assert_eq!(run.json["options"]["rate"].as_f64(), rate, "the report is of the run that holds");
    let steps = find["steps"].as_array().unwrap();
    assert!(steps.len() >= 3 && steps.iter().any(|step| step["said"] == "fails"), "{find}");
    let html = std::fs::read_to_string(page.path()).unwrap();
    assert!(html.contains("25ms holds up to"), "its steps are on the page");
}

#[test]
fn search_ends_where_the_server_is_wrong_or_gone() {
    for (fault, word) in
        [(Fault::Text, "wrong"), (Fault::AlwaysSilent, "lost"), (Fault::Full, "closed early")]
    {
        let server = WrongServer::start(fault);
        let run = Run::new(
            &server.address(),
            &["--find", "p50<1s", "-c", "2", "-d", "100ms", "--timeout", "300ms"],
        );
        assert_eq!(
            (run.status, &run.json["find"]["rate"]),
            (1, &Value::Null),
            "{fault:?}: {}",
            run.json["find"]
        );
        assert!(run.json["problems"].to_string().contains(word), "{fault:?}: {}", run.json["problems"]);
    }
    for usage in [&["--find", "lost=0"][..], &["--find", "p99>1s"], &["--find", "p99<1s", "-n", "5"]] {
        assert_eq!(tool("127.0.0.1:1", usage).status.code(), Some(2), "{usage:?}");
    }
}

#[test]
fn commands_of_the_readme_are_understood() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    // Bound but not listening: nobody answers, and nobody else gets this port meanwhile.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let nobody = format!("load 127.0.0.1:{}", socket.local_addr().unwrap().as_socket().unwrap().port());
    let mut count = 0;
    for line in readme.lines().filter_map(|line| line.strip_prefix("target/release/tidemill ")) {
        let line = ["8000", "6379", "11211", "25"].iter().fold(line.to_owned(), |line, port| {
            line.replace(&format!("load 127.0.0.1:{port} "), &format!("{nobody} "))
        });
        let command = program();
        let script = format!("exec \"$0\" {line}");
        let directory = scratch("readme");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).arg(command.get_program()).current_dir(directory);
        let ended = Ended::of(&mut shell);
        let expected = if line.starts_with("load") { 1 } else { 0 };
        assert_eq!(ended.status.code(), Some(expected), "{line}: {ended:?}");
        let answered = ended.stdout.contains("refused") || !line.starts_with("load");
        assert!(answered, "{line}: {ended:?}");
        count += 1;
    }
    assert!(count >= 6, "{count} commands");
}

//! How a run ends: in time whatever the server does, early by its own limits, by an interrupt, by an expected stop.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use super::*;

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
            // A right server is slow only where the machine is.
            let timeout = if fault == Fault::None { PATIENT } else { "500ms" };
            let arguments = [&["-c", "3", "-d", "300ms", "--timeout", timeout], arguments].concat();
            let started = Instant::now();
            let run = Run::new(&server.address(), &arguments);
            let took = started.elapsed();
            // The rest of it is for a machine that does other work as well.
            let most = Duration::from_millis(300 + 500 + 1000) + DEADLINE / 2;
            assert!(took < most, "{fault:?} {arguments:?}: {took:?}");
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
            ["--shape", "rate=random:0..1x1@1s", "-d", "100ms", "--seed", &seed, "--timeout", PATIENT];
        // With seeds that draw a zero, there is no request, which is no success.
        let run = Run::new(&server.address(), &arguments);
        assert_eq!(run.status == 0, run.count("requests", "right") > 0, "{}", run.json);
        run.count("requests", "offered")
    });
    assert_eq!(right.min(), Some(0));
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
fn duration_ends_a_run_without_losing_anything() {
    let server = WrongServer::start(Fault::None);
    for rate in [&[][..], &["-r", "500"]] {
        let run = Run::new(&server.address(), &[&["-c", "3", "-P", "2", "-d", "300ms"], rate].concat());
        assert_eq!((run.errors(), run.status), (vec![], 0), "{}", run.json);
        assert!(run.count("requests", "right") > 0 && run.json["seconds"].as_f64().unwrap() >= 0.29);
        assert!(run.json["series"].as_array().is_some_and(|rows| rows.len() >= 2), "{}", run.json["series"]);
    }
}

/// The last row has replies and nothing else.
#[test]
fn replies_after_the_last_request_are_in_the_rows() {
    let server = serve("--handler-delay 250ms");
    for way in [&["-n", "4"][..], &["-r", "100", "-d", "50ms"]] {
        let arguments = [&["-c", "4", "--timeout", PATIENT], way].concat();
        let run = Run::new(&server.address.to_string(), &arguments);
        assert_eq!(
            (run.errors(), run.count("requests", "right"), run.status),
            (vec![], 4, 0),
            "{}",
            run.json
        );
    }
}

/// It says something first, and is late with it.
#[test]
fn requests_that_wait_for_a_connection_when_the_time_is_over_are_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // The last one has not been greeted when all is answered: it is let in all the same.
    let greet_and_echo = |number: u64, stream: TcpStream| {
        thread::sleep(Duration::from_millis(600 + 400 * number));
        let (mut input, mut output) = (&stream, &stream);
        output.write_all(b"hi\n").and_then(|()| std::io::copy(&mut input, &mut output))
    };
    // Both end with the connections, or with the tests.
    thread::spawn(move || {
        for (number, stream) in (0..).zip(listener.incoming().flatten()) {
            thread::spawn(move || greet_and_echo(number, stream));
        }
    });
    let texts = ["--request", "x{n}", "--expect", "{line}", "--greeting", "hi"];
    let ways = ["-c", "2", "-r", "100", "-d", "300ms", "--timeout", PATIENT];
    let run = Run::new(&address, &[&texts[..], &ways].concat());
    assert_eq!((run.errors(), run.count("requests", "right")), (vec![], 29), "{}", run.json);
    assert_eq!((run.count("connections", "not_let_in"), run.status), (0, 0), "{}", run.json["problems"]);
}

#[test]
fn server_that_comes_back_within_the_timeout_is_not_given_up() {
    let server = WrongServer::start(Fault::Away(10));
    let run = Run::new(&server.address(), &["-c", "1", "-n", "200", "--timeout", PATIENT]);
    // Whether what is sent meanwhile is lost, and how the connections end, is chance.
    run.errors();
    assert_eq!((run.count("connections", "opened"), run.status), (12, 1), "{}", run.json);
    assert_eq!((run.count("requests", "sent"), &run.json["ended_early"]), (200, &Value::Null));
    assert!(run.count("requests", "right") >= 189, "{}", run.json);
}

#[test]
fn replies_that_came_while_it_was_stopped_are_read_before_they_are_called_lost() {
    let timeout = Duration::from_millis(800);
    for arguments in [&["-P", "8"][..], &["--threads", "2"], &["-r", "5000", "-P", "8"], &["--reconnect"]] {
        let server = WrongServer::start(Fault::None);
        let arguments = [&["-c", "4", "-d", "1h", "--timeout", "800ms"], arguments].concat();
        let flood = Flood::start(&server.address(), &arguments);
        eventually("requests are sent", || server.requests() > 100);
        freeze(flood.pid());
        let since = Instant::now();
        // More than ABSENT_NANOS, too.
        eventually("all timeouts have passed", || since.elapsed() > 2 * timeout);
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

/// It had offered what was due when it last looked, and forgot the rest.
#[test]
fn what_became_due_while_it_was_stopped_at_the_end_is_offered_too() {
    for arguments in [&["-P", "8"][..], &["--reconnect"], &["--threads", "2"]] {
        let (server, begun) = (WrongServer::start(Fault::None), Instant::now());
        let arguments = [&["-c", "4", "-r", "500", "-d", "1s", "--timeout", "1h"], arguments].concat();
        let flood = Flood::start(&server.address(), &arguments);
        eventually("requests are sent", || server.requests() > 20);
        freeze(flood.pid());
        eventually("its time is over", || begun.elapsed() > Duration::from_millis(1500));
        flood.signal(Signal::CONT);
        let run = flood.end();
        // One every 2 ms, but not at the end of the second.
        assert_eq!((run.count("total", "offered"), run.count("total", "right")), (499, 499), "{}", run.json);
        assert_eq!((run.errors(), run.status), (vec![], 0), "{arguments:?}: {}", run.json);
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
        let mut errors = run.errors();
        // A generator that is behind at that moment has not sent all that was due.
        errors.retain(|(kind, _)| kind != "unsent");
        assert_eq!((errors, run.status), (vec![], 0), "{arguments:?}: {}", run.json);
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

//! Runs that must not be called right: a generator that did not run, a server that did not let in, read, answer or stop.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::*;

/// A server of its own kind: `serve` gets each connection, the first with number 0. It ends with the tests.
fn each_connection(
    backlog: i32,
    between: Duration,
    serve: impl Fn(usize, &TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(backlog).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap().to_string();
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let serve = std::sync::Arc::clone(&serve);
            thread::spawn(move || serve(number, &stream));
            thread::sleep(between);
        }
    });
    address
}

fn echo(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut output = stream;
    std::io::copy(&mut stream, &mut output).map(drop)
}

const ECHO: [&str; 4] = ["--request", "x{n}", "--expect", "{line}"];

/// Lets it run for a third of the time, until it ends.
#[track_caller]
fn stutter(mut flood: Flood) -> Run {
    let started = Instant::now();
    while flood.child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < DEADLINE, "the run does not end");
        flood.signal(Signal::STOP);
        thread::sleep(Duration::from_millis(400));
        flood.signal(Signal::CONT);
        thread::sleep(Duration::from_millis(200));
    }
    flood.end()
}

#[test]
fn generator_that_ran_for_a_third_of_the_time_says_so_in_every_mode() {
    let check = |arguments: &[&str], part: &str| {
        let server = WrongServer::start(Fault::None);
        let arguments = [&["-d", "3s", "--timeout", PATIENT], arguments].concat();
        let flood = Flood::start(&server.address(), &arguments);
        eventually("requests are sent", || server.requests() > 0);
        let run = stutter(flood);
        let problems = run.json["problems"].to_string();
        assert_eq!(
            (&run.json["verdict"], run.status),
            (&Value::from("invalid"), 0),
            "{arguments:?}: {problems}"
        );
        assert!(problems.contains("did not run for"), "{arguments:?}: {problems}");
        assert!(problems.contains(part), "{arguments:?}: {problems}");
    };
    // Side by side: most of it is waiting. What the open loop sent late it knows besides, at the percentile that it can tell.
    thread::scope(|scope| {
        [
            (&["-c", "2", "-r", "1000"][..], "late (p99)"),
            (&["-c", "4", "-r", "1000", "--reconnect"], "late (p99)"),
            (&["-c", "4", "-r", "100"], "late (p90)"),
            (&["-c", "4"], ""),
        ]
        .map(|(arguments, part)| scope.spawn(move || check(arguments, part)))
        .map(|way| way.join().unwrap())
    });
}

#[test]
fn connections_that_were_never_let_in_are_told() {
    for way in [&[][..], &["-r", "300"]] {
        let target = each_connection(1, Duration::from_millis(30), |_, stream| echo(stream));
        // More than are opened at once: some are never tried.
        // What the system has let in beyond the backlog is answered late, or not at all.
        let arguments = [&["-c", "600", "-d", "900ms", "--timeout", "1s"], &ECHO[..], way].concat();
        let run = Run::new(&target, &arguments);
        let (opened, not_let_in) =
            (run.count("connections", "opened"), run.count("connections", "not_let_in"));
        assert_eq!((opened + not_let_in, run.status), (600, 1), "{way:?}: {}", run.json["connections"]);
        assert!(not_let_in > 400, "{way:?}: {}", run.json["connections"]);
        assert!(run.json["problems"].to_string().contains("never let in"), "{}", run.json["problems"]);
        let text = tool(&target, &arguments).stdout;
        assert!(text.contains(" of 600 connections"), "{text}");
    }
}

/// What it says answers nothing: it has not read what was asked.
#[test]
fn server_that_answers_what_it_has_not_read_is_wrong() {
    let request = "x".repeat(300);
    for way in [["-n", "100000"], ["-d", "1s"]] {
        let target = each_connection(128, Duration::ZERO, |_, mut stream| {
            stream.write_all(&b"+OK\n".repeat(100_000))?;
            loop {
                thread::park();
            }
        });
        let texts = ["--request", &request, "--expect", "+OK", "-P", "100000", "-c", "1", "--timeout", "1s"];
        let run = Flood::start(&target, &[&texts[..], &way].concat()).end();
        assert_eq!(run.status, 1, "{way:?}: {}", run.json["requests"]);
        assert!(run.count("requests", "right") < 90_000, "{way:?}: {}", run.json["requests"]);
        assert!(run.count("requests", "wrong") + run.count("requests", "lost") > 1000, "{way:?}");
        run.errors();
    }
}

#[test]
fn long_pipeline_that_the_server_reads_in_its_own_time_is_right() {
    let server = serve("");
    let arguments = ["-c", "1", "-P", "100000", "-n", "100000", "--timeout", PATIENT];
    let run = Run::new(&server.address.to_string(), &arguments);
    assert_eq!((run.errors(), run.count("requests", "right"), run.status), (vec![], 100_000, 0));
}

#[test]
fn search_against_a_server_that_dies_has_failed() {
    let mut server = Some(serve(""));
    let target = server.as_ref().unwrap().address.to_string();
    let flood = Flood::start(
        &target,
        &["--find", "p50<1s", "-d", "1h", "-c", "2", "-r", "100", "--timeout", "500ms"],
    );
    // After the look of a second it is at the first step, which takes an hour.
    let replies = || server.as_ref().unwrap().stats()["replies_total"].as_u64().unwrap();
    let mut seen = (0, Instant::now());
    eventually("ten replies in 100 ms, and no more", || {
        if seen.1.elapsed() < Duration::from_millis(100) {
            return false;
        }
        let before = std::mem::replace(&mut seen, (replies(), Instant::now()));
        before.0 > 0 && (1..30).contains(&(seen.0 - before.0))
    });
    drop(server.take());
    let run = flood.end();
    assert_eq!((run.status, &run.json["verdict"]), (1, &Value::from("failed")), "{}", run.json["problems"]);
    assert!(run.json["problems"].to_string().contains("does not answer"), "{}", run.json["problems"]);
}

#[test]
fn search_that_is_interrupted_has_no_answer() {
    let server = WrongServer::start(Fault::None);
    let flood = Flood::start(&server.address(), &["--find", "p50<1s", "-d", "1h", "-c", "2", "-r", "100"]);
    eventually("requests are sent", || server.requests() > 0);
    flood.signal(Signal::INT);
    let run = flood.end();
    assert_eq!((run.status, &run.json["find"]["rate"]), (1, &Value::Null), "{}", run.json["problems"]);
}

#[test]
fn expected_stop_of_one_connection_is_not_that_of_the_server() {
    for way in [["-d", "500ms"], ["-n", "500"]] {
        let ended = AtomicBool::new(false);
        let target = each_connection(128, Duration::ZERO, move |number, mut stream| {
            if number == 0 {
                let mut line = [0; 64];
                let len = stream.read(&mut line)?;
                stream.write_all(&line[..len])?;
                stream.shutdown(Shutdown::Write)?;
                ended.store(true, SeqCst);
                return std::io::copy(&mut stream, &mut std::io::sink()).map(drop);
            }
            eventually("the first has ended", || ended.load(SeqCst));
            echo(stream)
        });
        let arguments = [&["-c", "3", "--expect-stop", "--timeout", PATIENT], &ECHO[..], &way].concat();
        let run = Run::new(&target, &arguments);
        let problems = run.json["problems"].to_string();
        assert_eq!((run.count("connections", "stopped"), run.status), (1, 1), "{way:?}: {problems}");
        assert!(problems.contains("did not stop"), "{way:?}: {problems}");
    }
}

#[test]
fn run_in_which_nothing_was_measured_is_no_success() {
    let server = WrongServer::start(Fault::None);
    let run = Run::new(&server.address(), &["-c", "1", "-r", "0.9", "--warm-up", "1500ms", "-d", "100ms"]);
    assert_eq!((run.count("total", "right"), run.count("requests", "right")), (1, 0), "{}", run.json);
    assert_eq!((run.status, &run.json["verdict"]), (1, &Value::from("failed")));
    assert!(run.json["problems"].to_string().contains("nothing was measured"), "{}", run.json["problems"]);
}

#[test]
fn asserts_mean_the_counts_that_the_table_shows() {
    let server = WrongServer::start(Fault::None);
    let asserts = "sent=40,right=40,offered=40,unsent=0,errors=0";
    let run =
        Run::new(&server.address(), &["-c", "1", "-n", "40", "--warm-up", "100ms", "--assert", asserts]);
    assert!(run.count("total", "right") > 40, "{}", run.json);
    assert_eq!(run.status, 0, "{}", run.json["asserts"]);
    // The fourth request is of the warm-up: what is wrong is wrong at any time.
    let server = WrongServer::start(Fault::Text);
    let run = Run::new(&server.address(), &["-c", "1", "-n", "40", "--warm-up", "1s", "--assert", "wrong=1"]);
    assert_eq!((run.count("requests", "wrong"), &run.json["asserts"][0]["holds"]), (0, &Value::from(true)));
}

#[test]
fn documents_that_do_not_add_up_or_are_of_other_times_are_not_merged() {
    let server = WrongServer::start(Fault::None);
    let fine = Run::new(&server.address(), &["-c", "1", "-n", "40"]).json;
    let (one, other) = (Scratch::new("one.json"), Scratch::new("other.json"));
    std::fs::write(one.path(), fine.to_string()).unwrap();
    let merge = |other: &Scratch, more: &[&str]| {
        let arguments = ["load", "--json", "--merge", one.path(), "--merge", other.path()];
        Ended::of(program().args(arguments).args(more))
    };
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 5] = [
        (|it| it["requests"]["right"] = 39.into(), "add up"),
        (|it| it["total"]["offered"] = 41.into(), "add up"),
        (|it| it["requests"]["unsent"] = 1.into(), "add up"),
        (|it| it["histogram_ns"] = Value::Array(Vec::new()), "add up"),
        (
            |it| it["started_unix_seconds"] = (it["started_unix_seconds"].as_f64().unwrap() + 3600.0).into(),
            "at the same time",
        ),
    ];
    for (change, part) in changes {
        let mut document = fine.clone();
        change(&mut document);
        std::fs::write(other.path(), document.to_string()).unwrap();
        let ended = merge(&other, &[]);
        assert_eq!((ended.status.code(), ended.stderr.lines().count()), (Some(1), 1), "{ended:?}");
        assert!(ended.stderr.contains(part) && ended.stderr.contains(other.path()), "{ended:?}");
    }
    std::fs::write(other.path(), fine.to_string()).unwrap();
    assert_eq!(merge(&other, &[]).status.code(), Some(0));
    // An hour that ended when the other began.
    let mut document = fine.clone();
    let began = fine["started_unix_seconds"].as_f64().unwrap();
    document["started_unix_seconds"] = (began - 3600.0).into();
    document["seconds"] = 3599.0.into();
    std::fs::write(other.path(), document.to_string()).unwrap();
    let ended = merge(&other, &[]);
    assert!(ended.status.code() == Some(1) && ended.stderr.contains("at the same time"), "{ended:?}");
    document["seconds"] = 3601.0.into();
    std::fs::write(other.path(), document.to_string()).unwrap();
    assert_eq!(merge(&other, &[]).status.code(), Some(0));
    for sending in
        [&["-c", "3"][..], &["-r", "5"], &["-d", "1s"], &["--timeout", "1s"], &["--reconnect"], &["-P", "2"]]
    {
        assert_eq!(merge(&other, sending).status.code(), Some(2), "{sending:?}");
    }
}

#[test]
fn rows_of_the_longer_run_are_merged_to_the_last() {
    let server = WrongServer::start(Fault::None);
    let mut long = Run::new(&server.address(), &["-c", "1", "-n", "40"]).json;
    let row = long["series"][0].clone();
    long["series"] = Value::Array(vec![row.clone(), row.clone(), row]);
    let short = Run::new(&server.address(), &["-c", "1", "-n", "40"]).json;
    long["started_unix_seconds"] = short["started_unix_seconds"].clone();
    let files = [Scratch::new("long.json"), Scratch::new("short.json")];
    std::fs::write(files[0].path(), long.to_string()).unwrap();
    std::fs::write(files[1].path(), short.to_string()).unwrap();
    for [one, other] in [[0, 1], [1, 0]] {
        let arguments = ["load", "--json", "--merge", files[one].path(), "--merge", files[other].path()];
        let sum: Value = serde_json::from_str(&Ended::of(program().args(arguments)).stdout).unwrap();
        let sent: Vec<_> = sum["series"].as_array().unwrap().iter().map(|row| row["sent"].as_u64()).collect();
        let of = |row: &Value| row["sent"].as_u64().unwrap();
        let each = of(&long["series"][0]);
        assert_eq!(sent, [Some(each + of(&short["series"][0])), Some(each), Some(each)], "{}", sum["series"]);
    }
    // Rows of another length cannot be added, whatever follows.
    let step = short["series_step_seconds"].as_f64().unwrap();
    let mut other = short.clone();
    other["series_step_seconds"] = (2.0 * step).into();
    let third = Scratch::new("other.json");
    std::fs::write(third.path(), other.to_string()).unwrap();
    let [one, other, last] = [files[0].path(), third.path(), files[1].path()];
    let arguments = ["load", "--json", "--merge", one, "--merge", other, "--merge", last];
    let sum: Value = serde_json::from_str(&Ended::of(program().args(arguments)).stdout).unwrap();
    assert_eq!(sum["series"], Value::Array(vec![]));
}

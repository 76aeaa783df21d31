//! What the tool itself costs and cannot do: rates beyond reach, descriptors, lines that are too long, files of others.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use super::*;

/// The tool in a shell that has set limits.
fn limited(limits: &str, target: &str, arguments: &[&str]) -> Ended {
    let program = program();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{limits} && exec \"$0\" \"$@\"")]).arg(program.get_program());
    Ended::of(shell.args(["load", target, "--json"]).args(arguments))
}

#[test]
fn rate_beyond_reach_ends_in_time_in_little_memory_with_every_request_accounted_for() {
    let server = WrongServer::start(Fault::None);
    for (more, exact) in [(&[][..], true), (&["--threads", "2"], true), (&["--poisson"], false)] {
        let arguments = ["-c", "4", "-r", "10000000", "-d", "2s", "--warm-up", "500ms", "--timeout", "1s"];
        // The requests that are due would need 160 MiB.
        let run = Run::of(&limited("ulimit -v 260000", &server.address(), &[&arguments[..], more].concat()));
        let errors = run.errors();
        let offered = (run.count("requests", "offered"), run.count("total", "offered"));
        let most = if exact { 2 } else { 40_000 };
        let is_right = offered.0.abs_diff(20_000_000) <= most && offered.1.abs_diff(25_000_000) <= most;
        assert!(is_right, "{more:?}: {offered:?} {}", run.json["requests"]);
        assert!(matches!(&errors[..], [(unsent, _)] if unsent == "unsent"), "{more:?}: {errors:?}");
        // What was due first is sent first, which is all of the warm-up.
        assert!(run.count("total", "right") > 0 && run.status == 1, "{more:?}: {}", run.json["total"]);
    }
}

#[test]
fn rate_beyond_reach_is_not_deaf_to_an_interrupt() {
    let server = WrongServer::start(Fault::None);
    let flood = Flood::start(&server.address(), &["-c", "4", "-r", "10000000", "-d", "1h"]);
    eventually("it floods", || server.requests() > 100);
    // The more was due in one turn, the more is due in the next.
    let begun = Instant::now();
    eventually("a second passes", || begun.elapsed() > Duration::from_secs(1));
    flood.signal(Signal::INT);
    let run = flood.end();
    assert!(run.json["ended_early"].as_str().unwrap().contains("interrupted"), "{}", run.json);
    let offered = run.count("total", "offered");
    assert!(offered >= 10_000_000, "{offered} became due by then");
    run.errors();
}

#[test]
fn descriptors_of_threads_are_there_before_any_request_is_sent() {
    let server = WrongServer::start(Fault::None);
    let arguments = ["-c", "100", "--threads", "100", "-d", "1s", "--timeout", PATIENT];
    let ended = limited("ulimit -n 160", &server.address(), &arguments);
    if ended.stderr.contains("file descriptors are needed") {
        // Not everybody may raise that limit.
        assert_eq!((ended.status.code(), server.requests()), (Some(1), 0), "{ended:?}");
        return;
    }
    let run = Run::of(&ended);
    assert_eq!((run.errors(), run.status, run.count("connections", "opened")), (vec![], 0, 100));
}

#[test]
fn what_was_measured_is_told_where_the_system_refuses_a_worker_to_go_on() {
    if Command::new("strace").arg("-V").output().is_err() {
        return skipped("no strace here to refuse a system call");
    }
    let server = WrongServer::start(Fault::None);
    for threads in ["1", "2"] {
        let program = program();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=epoll_wait:error=EINVAL:when=200+"]);
        strace.arg(program.get_program()).args(["load", &server.address(), "--json", "--timeout", PATIENT]);
        let run = Run::of(&Ended::of(strace.args(["-c", "4", "-d", "1h", "--threads", threads])));
        let right = run.count("requests", "right");
        assert!(right > 100 && run.status == 1, "{threads} threads: {}", run.json);
        let told = run.json["problems"].to_string();
        assert!(told.contains("the generator failed: Invalid argument"), "{threads} threads: {told}");
        assert_eq!(run.json["generator"]["valid"], false, "{threads} threads: {}", run.json["generator"]);
        run.errors();
    }
}

/// A server that answers each line with one of `v` and so many `x` more, written in such pieces.
fn long_lines(len: usize, piece: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let reply = [b"v".to_vec(), vec![b'x'; len], b"\n".to_vec()].concat();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, reply) = (stream.unwrap(), reply.clone());
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                for _ in lines.map_while(Result::ok) {
                    if reply.chunks(piece).any(|piece| stream.write_all(piece).is_err()) {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn line_of_a_reply_is_right_or_too_long_however_it_was_cut() {
    const MAX: usize = 4 << 20;
    for (len, piece, is_right) in [
        (300_000, 300_002, true),
        (300_000, 9_000, true),
        (MAX - 1, MAX + 1, true),
        (MAX - 1, 60_001, true),
        (MAX, MAX + 2, false),
        (MAX, 60_001, false),
    ] {
        let server = long_lines(len, piece).to_string();
        for lines in [&[][..], &["--expect", "*"]] {
            let arguments = ["--request", "get {n}", "--expect", "v*", "-c", "1", "-n", "3"];
            let run = Run::new(&server, &[&arguments[..], &["--timeout", PATIENT], lines].concat());
            let wrong = run.count("requests", "wrong");
            assert_eq!((run.status == 0, wrong == 0), (is_right, is_right), "{len} by {piece}: {}", run.json);
            let example = run.example("wrong");
            assert_eq!(example.contains("more than 4 MiB"), !is_right, "{len} by {piece}: {example}");
        }
    }
}

#[test]
fn statistics_that_are_not_all_text_and_a_pipe_that_stays_open_are_drawn() {
    let server = WrongServer::start(Fault::None);
    let mut document = Run::new(&server.address(), &["-c", "1", "-n", "50"]).json;
    (document["seconds"], document["started_unix_seconds"]) = (1800.into(), 1_000_000.into());
    let (run, page) = (Scratch::new("drawn.json"), Scratch::new("drawn.html"));
    std::fs::write(run.path(), document.to_string()).unwrap();
    let said = |threads: u32| {
        let line = format!("{{\"unix_seconds\":1000010,\"pool_threads\":{threads},\"pool_demand\":5}}\n");
        [b"\xff\xfe\n", line.as_bytes(), b"{\"torn \xc3"].concat()
    };
    let (file, pipe) = (Scratch::new("drawn.stats"), Scratch::new("drawn.pipe"));
    std::fs::write(file.path(), said(47_110)).unwrap();
    assert!(Command::new("mkfifo").arg(pipe.path()).status().unwrap().success());
    // Its writer, which also keeps it from waiting for a reader.
    let mut writer: File = OpenOptions::new().read(true).write(true).open(pipe.path()).unwrap();
    writer.write_all(&said(47_111)).unwrap();
    for (stats, threads) in [(&file, "47110"), (&pipe, "47111")] {
        let merge = ["load", "--merge", run.path(), "--report", page.path(), "--stats", stats.path()];
        let ended = Ended::of(program().args(merge));
        assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
        let html = std::fs::read_to_string(page.path()).unwrap();
        assert!(html.contains(threads), "{} is not drawn", stats.path());
    }
    // More than a pipe holds: its writer waits for nobody.
    let flood = ["--report", page.path(), "--stats", pipe.path()];
    let flood = Flood::start(&server.address(), &[&["-c", "1", "-d", "1h"], &flood[..]].concat());
    eventually("it floods", || server.requests() > 100);
    for _ in 0..40 {
        writer.write_all(&[b'\n'; 10_000]).unwrap();
    }
    flood.signal(Signal::INT);
    assert_eq!(flood.end().status, 0);
}

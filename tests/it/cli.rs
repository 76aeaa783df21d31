//! Options, usage errors, exit statuses and help, of the program as people call it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::support::{Ended, Peer, Serving, eventually, helo_reply, program, serve};

fn run(arguments: &[&str]) -> Ended {
    Ended::of(program().args(arguments))
}

/// One line on standard error that names what is wrong, nothing on standard output, and the exit status.
#[track_caller]
fn assert_refused(ended: &Ended, status: i32, named: &str) {
    assert_eq!(ended.status.code(), Some(status), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    assert!(ended.stderr.contains(named), "'{named}' is not named in: {}", ended.stderr);
    assert!(ended.stderr.starts_with("tidemill: "), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
}

#[test]
fn wrong_usage_of_serve_is_one_line_that_names_the_option_and_exit_status_2() {
    for (arguments, named) in [
        ("65536", "65536"),
        ("-1", "-1"),
        ("http", "http"),
        ("0 1", "'1'"),
        ("0 --bind localhost", "--bind"),
        ("0 --bind 1.2.3", "--bind"),
        ("0 --min-threads 0", "--min-threads"),
        ("0 --min-threads x", "--min-threads"),
        ("0 --min-threads -3", "-3"),
        ("0 --min-threads 99999999999999999999", "--min-threads"),
        ("0 --min-threads 1000000", "--min-threads"),
        ("0 --max-threads 0", "--max-threads"),
        ("0 --max-threads 20000", "--max-threads"),
        ("0 --min-threads 9 --max-threads 8", "--min-threads is 9"),
        ("0 --min-threads 9 --max-threads 8", "--max-threads"),
        ("0 --tolerance -1", "-1"),
        ("0 --tolerance x", "--tolerance"),
        ("0 --tolerance 99999999", "--tolerance"),
        ("0 --keep-alive 0s", "--keep-alive"),
        ("0 --keep-alive 5", "--keep-alive"),
        ("0 --keep-alive fast", "--keep-alive"),
        ("0 --keep-alive 2years", "--keep-alive"),
        ("0 --handler-delay 5", "--handler-delay"),
        ("0 --handler-delay=-1s", "--handler-delay"),
        ("0 --tolerance=-1", "--tolerance"),
        ("0 --kill-from me", "--kill-from"),
        ("0 --kill-from 10.0.0.0/33", "--kill-from"),
        ("0 --kill-from 10.0.0.0/8,", "--kill-from"),
        ("0 --kill-from any,10.0.0.0/8", "--kill-from"),
        ("0 --advertise-ip here", "--advertise-ip"),
        ("0 --max-connections 0", "--max-connections"),
        ("0 --max-connections x", "--max-connections"),
        ("0 --max-line 0", "--max-line"),
        ("0 --line-timeout 0s", "--line-timeout"),
        ("0 --idle-timeout soon", "--idle-timeout"),
        ("0 --write-timeout 0s", "--write-timeout"),
        ("0 --queue-timeout 0s", "--queue-timeout"),
        ("0 --request-timeout 0s", "--request-timeout"),
        ("0 --max-memory 1KiB", "--max-memory"),
        ("0 --send-buffer 1", "--send-buffer"),
        ("0 --send-buffer much", "--send-buffer"),
        ("0 --unix-mode rw", "--unix-mode"),
        ("0 --unix-mode 7777", "--unix-mode"),
        ("0 --max-connections-per-peer 0", "--max-connections-per-peer"),
        ("0 --max-line 99999999999", "--max-line"),
        ("0 --max-line 64KB", "--max-line"),
        ("0 --max-line -1", "-1"),
        ("0 --max-line 99999999999GiB", "--max-line"),
        ("0 --max-pending 0", "--max-pending"),
        ("0 --thread-stack 0", "--thread-stack"),
        ("0 --thread-stack 1KiB", "--thread-stack"),
        ("0 --thread-stack 2MB", "--thread-stack"),
        ("0 --thread-stack 99999GiB", "--thread-stack"),
        ("0 --drain-timeout soon", "--drain-timeout"),
        ("0 --drain-timeout 2years", "--drain-timeout"),
        ("0 --stats-every 0s", "--stats-every"),
        ("0 --stats-every often", "--stats-every"),
        ("0 --log-format xml", "--log-format"),
        ("0 --log-level loud", "--log-level"),
        ("0 --unknown", "--unknown"),
        ("0 --min-threads", "--min-threads"),
        ("0 --assignment=yes", "--assignment"),
    ] {
        let all: Vec<&str> = ["serve"].into_iter().chain(arguments.split(' ')).collect();
        assert_refused(&run(&all), 2, named);
    }
    assert_refused(&run(&["serve", "0", "--student-id", "a\nb"]), 2, "--student-id");
    assert_refused(&run(&["serve", "0", "--kill-from", ""]), 2, "--kill-from");
}

#[test]
fn wrong_usage_of_the_others_is_one_line_and_exit_status_2() {
    assert_refused(&run(&[]), 2, "subcommand");
    assert_refused(&run(&["sreve"]), 2, "sreve");
    assert_refused(&run(&["client"]), 2, "<IP>");
    assert_refused(&run(&["client", "X", "127.0.0.1", "1"]), 2, "X");
    assert_refused(&run(&["client", "H", "localhost", "1"]), 2, "localhost");
    assert_refused(&run(&["client", "H", "127.0.0.1", "70000"]), 2, "70000");
    assert_refused(&run(&["client", "H", "127.0.0.1"]), 2, "<PORT>");
    assert_refused(&run(&["client", "H", "127.0.0.1", "1", "a\nb"]), 2, "TEXT");
    assert_refused(&run(&["client", "H", "127.0.0.1", "1", "--timeout", "0s"]), 2, "--timeout");
    assert_refused(&run(&["client", "H", "127.0.0.1", "1", "--timeout", "x"]), 2, "--timeout");
}

#[test]
fn a_bad_environment_is_refused_as_the_option_is() {
    for (name, value, named) in [
        ("MIN_THREADS", "many", "--min-threads"),
        ("MIN_THREADS", "", "--min-threads"),
        ("MAX_THREADS", "0", "--max-threads"),
        ("TOLERANCE", "-4", "--tolerance"),
    ] {
        assert_refused(&Ended::of(program().args(["serve", "0"]).env(name, value)), 2, named);
    }
}

#[test]
fn flags_win_over_the_environment_and_the_environment_over_defaults() {
    let mut command = program();
    command.args(["serve", "0", "--max-threads", "7"]);
    command.envs([("MIN_THREADS", "3"), ("MAX_THREADS", "99"), ("STUDENT_ID", "s1"), ("TOLERANCE", "1")]);
    let serving = Serving::start(command);
    let stats = serving.stats();
    assert_eq!((&stats["pool_min"], &stats["pool_max"]), (&3.into(), &7.into()));
    let mut peer = serving.connect();
    peer.send(b"HELO x\n");
    let port = serving.address.port();
    peer.expect(format!("HELO x\nIP:127.0.0.1\nPort:{port}\nStudentID:s1\n").as_bytes());
}

#[test]
fn where_only_one_of_min_and_max_is_given_the_others_default_yields() {
    for (options, min, max) in [
        ("", 4, 32),
        ("--min-threads 40", 40, 40),
        ("--min-threads 2", 2, 32),
        ("--max-threads 2", 2, 2),
        ("--max-threads 100", 4, 100),
        ("--min-threads 1 --max-threads 1", 1, 1),
    ] {
        let stats = serve(options).stats();
        assert_eq!((&stats["pool_min"], &stats["pool_max"]), (&min.into(), &max.into()), "{options}");
    }
    let mut command = program();
    command.args(["serve", "0"]).env("MIN_THREADS", "50");
    let stats = Serving::start(command).stats();
    assert_eq!((&stats["pool_min"], &stats["pool_max"]), (&50.into(), &50.into()));
}

#[test]
fn durations_are_written_with_their_unit() {
    for duration in ["250ms", "10s", "5m", "1h", "1day", "1500us", "0s", "0", "1m 30s"] {
        let mut command = program();
        command.args(["serve", "0", "--drain-timeout", duration]);
        Serving::start(command).connect().ask("fine");
    }
}

#[test]
fn sizes_are_bytes_or_have_their_unit() {
    for size in ["2048", "2KiB"] {
        let serving = serve(&format!("--max-line {size}"));
        let mut peer = serving.connect();
        peer.send(&[b'x'; 2049]);
        peer.expect_rest(b"ERROR line too long (limit 2048 bytes)\n");
    }
}

#[test]
fn workers_have_the_stack_that_they_are_given() {
    let mapped_mib = |stack: &[&str]| {
        let mut command = program();
        // The allocator reserves much for a thread, at some time.
        command.env("MALLOC_ARENA_MAX", "1").args(["serve", "0", "--min-threads", "8", "--max-threads", "8"]);
        command.args(stack);
        Serving::start(command).mapped_kib() >> 10
    };
    // Eight times 256 MiB less 2 MiB.
    let least = mapped_mib(&[]);
    for stack in ["256MiB", "268435456"] {
        let more = mapped_mib(&["--thread-stack", stack]) - least;
        assert!((2000..2100).contains(&more), "{more} MiB for --thread-stack {stack}");
    }
}

#[test]
fn a_port_in_use_is_one_line_and_exit_status_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = run(&["serve", &port]);
    assert_refused(&ended, 1, &format!("127.0.0.1:{port}"));
    // The same for another tidemill on it.
    let serving = serve("");
    let ended = run(&["serve", &serving.address.port().to_string()]);
    assert_refused(&ended, 1, &serving.address.to_string());
    serving.connect().ask("not disturbed");
}

#[test]
fn an_address_that_is_not_ours_is_one_line_and_exit_status_1() {
    assert_refused(&run(&["serve", "0", "--bind", "203.0.113.1"]), 1, "203.0.113.1");
}

/// `tidemill serve 0` as a user that may have so many threads.
fn with_threads(threads: usize) -> Command {
    let mut command = Command::new("sh");
    // That it is another user's must not hide the program: it is passed on as an open file. The option is -p in some
    // shells.
    let script = format!(
        "{{ ulimit -p {threads} || ulimit -u {threads}; }} 2>&-; \
         exec /proc/self/fd/0 serve 0 --min-threads 1 --stats-every 1s"
    );
    command.arg("-c").arg(script).stdin(File::open(env!("CARGO_BIN_EXE_tidemill")).unwrap());
    if geteuid().is_root() {
        // To whom the limit does not apply. Nobody else uses this one.
        command.uid(20_000 + std::process::id() % 40_000);
    }
    command
}

#[test]
fn a_thread_that_the_system_refuses_is_one_line_and_exit_status_1_whichever_it_is() {
    for threads in 1.. {
        let Err(ended) = Serving::try_start(with_threads(threads)) else { break };
        assert_refused(&ended, 1, "cannot start");
        assert!(ended.stderr.contains("thread"), "{}", ended.stderr);
        assert!(threads < 100, "it never starts: {}", ended.stderr);
    }
}

/// `tidemill serve 0` as a process that may have so many files open.
fn with_files(limit: usize, options: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -n {limit} && exec \"$0\" serve 0 {options}"));
    command.arg(env!("CARGO_BIN_EXE_tidemill"));
    command
}

#[test]
fn few_descriptors_are_for_clients_and_each_place_that_it_names_is_there() {
    let options = "--max-threads 64 --tolerance 0 --handler-delay 20ms";
    let serving = Serving::start(with_files(64, options));
    serving.expect_log("the limit of open files lowers --max-connections");
    let log = serving.log();
    let places = log.split_once("possible=").unwrap().1.lines().next().unwrap().parse().unwrap();
    assert!((40..64).contains(&places), "{places} places with 64 descriptors");
    let mut peers: Vec<Peer> = (0..places).map(|_| serving.connect()).collect();
    for _ in 0..5 {
        for peer in &mut peers {
            // Its pool looks at its threads meanwhile, which takes a descriptor.
            peer.send(b"HELO me\n");
        }
        peers.iter_mut().for_each(|peer| peer.expect_reply("me"));
    }
    let mut turned_away: Vec<Peer> = (0..7).map(|_| serving.connect()).collect();
    for peer in &mut turned_away {
        peer.expect_rest(format!("ERROR server full (limit {places} connections)\n").as_bytes());
    }
    peers[0].ask("still in");
    drop((peers, turned_away));
    let ended = serving.stop();
    ended.assert_clean();
    assert_eq!(ended.stats()["accept_errors_total"], 0);
}

#[test]
fn a_limit_of_files_that_leaves_no_place_is_one_line_and_exit_status_1() {
    for limit in 4.. {
        let ended = match Serving::try_start(with_files(limit, "")) {
            Ok(serving) => return serving.connect().ask("there is a place"),
            Err(ended) => ended,
        };
        assert_refused(&ended, 1, "open files");
        assert!(limit < 64);
    }
}

/// The program as whoever blocks signals starts it. The standard library unblocks them in what it starts.
fn with_signals_blocked(arguments: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.arg("--block-signal=INT,TERM,USR1").arg(env!("CARGO_BIN_EXE_tidemill")).args(arguments);
    command
}

#[test]
fn signals_that_were_blocked_when_it_was_started_are_heard() {
    for signal in [Signal::TERM, Signal::INT] {
        let serving = Serving::start(with_signals_blocked(&["serve", "0"]));
        serving.stats();
        serving.signal(signal);
        serving.wait().assert_clean();
    }
    // Those of the other subcommands, too.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let mut client =
        with_signals_blocked(&["client", "H", "127.0.0.1", &port, "--timeout", "10s"]).spawn().unwrap();
    let connected = silent.accept().unwrap();
    kill_process(Pid::from_child(&client), Signal::TERM).unwrap();
    assert_eq!(client.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
    drop(connected);
}

#[test]
fn a_port_can_be_used_again_at_once_after_a_stop() {
    let serving = serve("");
    let port = serving.address.port();
    let mut peer = serving.connect();
    peer.ask("x");
    // The server closes first, so that its side waits for stray packets.
    serving.signal(Signal::TERM);
    peer.expect_end();
    drop(peer);
    serving.wait().assert_clean();
    let mut command = program();
    command.args(["serve", &port.to_string()]);
    Serving::start(command).connect().ask("again");
}

#[test]
fn the_announcement_is_all_that_stands_on_standard_output() {
    let serving = serve("");
    let address = serving.address;
    assert_eq!(address.ip(), std::net::IpAddr::from([127, 0, 0, 1]));
    serving.connect().ask("x");
    assert_eq!(serving.stop().stdout, format!("listening on {address}\n"));
}

#[test]
fn help_documents_every_option_with_default_and_environment() {
    let help = |arguments: &[&str]| {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(0));
        assert_eq!(ended.stderr, "");
        // One option an entry, its lines joined.
        let mut entries: Vec<String> = Vec::new();
        for line in ended.stdout.lines() {
            let continued = line.starts_with("            ");
            match entries.last_mut() {
                Some(last) if continued => *last = format!("{last} {}", line.trim()),
                _ => entries.push(line.trim().to_owned()),
            }
        }
        entries
    };
    let serve = help(&["serve", "--help"]);
    for (option, needed) in [
        ("[PORT]", vec!["[default: 8000]", "0 picks a free one"]),
        ("--bind", vec!["127.0.0.1", "0.0.0.0"]),
        ("--min-threads", vec!["default: 4", "MIN_THREADS"]),
        ("--max-threads", vec!["default: 32", "MAX_THREADS"]),
        ("--tolerance", vec!["default: 4", "TOLERANCE"]),
        ("--keep-alive", vec!["default: 5s"]),
        ("--student-id", vec!["default: 16336617", "STUDENT_ID"]),
        ("--advertise-ip", vec!["default:"]),
        ("--handler-delay", vec!["default: 0"]),
        ("--assignment", vec!["--bind 0.0.0.0 --kill-from any"]),
        ("--kill-from", vec!["default: loopback", "CIDR"]),
        ("--max-connections", vec!["default: 10000"]),
        ("--max-line", vec!["default: 65536", "bytes"]),
        ("--max-pending", vec!["default: 65536"]),
        ("--thread-stack", vec!["default: 2MiB", "bytes"]),
        ("--drain-timeout", vec!["default: 8s"]),
        ("--stats-every", vec!["default: off"]),
        ("--log-format", vec!["default: text", "json"]),
        ("--log-level", vec!["default: info"]),
    ] {
        let entry = serve.iter().find(|entry| entry.starts_with(option));
        let entry = entry.unwrap_or_else(|| panic!("{option} is not documented: {serve:#?}"));
        for part in needed {
            let words: Vec<&str> = entry.split_whitespace().collect();
            assert!(words.join(" ").contains(part), "'{part}' is missing in: {entry}");
        }
    }
    let client = help(&["client", "--help"]).join("\n");
    for part in ["H sends HELO", "K sends KILL_SERVICE", "IMPRESSIVE_TEST", "--timeout", "5s"] {
        assert!(client.contains(part), "{part}: {client}");
    }
    for way in ["--help", "-h"] {
        let load = Ended::of(program().args(["load", way])).stdout;
        assert!(load.contains("'SET k{n} v{n}'") && !load.contains('\u{1b}'), "{load}");
    }
    let all = help(&["--help"]).join("\n");
    assert!(all.contains("serve") && all.contains("client"), "{all}");
    let version = run(&["--version"]);
    assert_eq!(version.stdout, format!("tidemill {}\n", env!("CARGO_PKG_VERSION")));
}

fn client(arguments: &[&str], address: SocketAddr, more: &[&str]) -> Ended {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let all: Vec<&str> = ["client"]
        .iter()
        .chain(arguments)
        .copied()
        .chain([&ip[..], &port])
        .chain(more.iter().copied())
        .collect();
    run(&all)
}

#[test]
fn client_h_prints_the_reply() {
    let serving = serve("");
    for (more, text) in [
        (&[][..], "IMPRESSIVE_TEST"),
        (&["two words"], "two words"),
        (&[""], ""),
        (&["--timeout", "9s", "x"], "x"),
    ] {
        let ended = client(&["H"], serving.address, more);
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
        assert_eq!(ended.stdout.as_bytes(), helo_reply(text.as_bytes(), serving.address));
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn client_k_stops_the_service_and_waits_for_the_close() {
    let serving = serve("");
    let ended = client(&["K"], serving.address, &[]);
    assert_eq!((ended.status.code(), &ended.stdout[..], &ended.stderr[..]), (Some(0), "", ""));
    serving.wait().assert_clean();
}

#[test]
fn client_k_tells_a_refusal() {
    let serving = serve("--kill-from none");
    let ended = client(&["K"], serving.address, &[]);
    assert_refused(&ended, 1, "KILL_SERVICE refused");
    serving.connect().ask("it goes on");
}

#[test]
fn client_without_a_server_or_a_reply_is_one_line_and_exit_status_1() {
    // A port that nobody listens on: bound, and not listening.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    for what in ["H", "K"] {
        assert_refused(&client(&[what], address, &[]), 1, &address.to_string());
    }
    // One that listens and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    for what in ["H", "K"] {
        let ended = client(&[what], address, &["--timeout", "100ms"]);
        assert_refused(&ended, 1, "no reply within 100ms");
    }
}

#[test]
fn client_tells_what_a_server_says_instead_of_a_reply() {
    let serving = serve("--max-connections 1");
    let mut peer = serving.connect();
    peer.ask("x");
    let ended = client(&["H"], serving.address, &[]);
    assert_refused(&ended, 1, "server full");
}

#[test]
fn client_h_takes_what_comes_in_pieces() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 7];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(&request, b"HELO x\n");
            for byte in helo_reply(b"x", address) {
                stream.write_all(&[byte]).unwrap();
            }
        });
        let ended = client(&["H"], address, &["x"]);
        assert_eq!(ended.stdout.as_bytes(), helo_reply(b"x", address));
    });
}

#[test]
fn handler_delay_holds_back_each_reply() {
    let serving = serve("--handler-delay 200ms");
    let begun = std::time::Instant::now();
    let mut peer = serving.connect();
    peer.send(b"HELO a\nHELO b\n");
    peer.expect_reply("a");
    peer.expect_reply("b");
    assert!(begun.elapsed() >= std::time::Duration::from_millis(400));
    // Lines without a reply take no time of a worker.
    let mut other = Peer::connect(serving.address);
    other.send(b"nothing\n");
    eventually("it is counted", || serving.stats()["requests_total"]["helo"]["ignored"] == 1);
    assert_eq!(serving.stats()["service_seconds"]["count"], 2);
}

#[test]
fn reader_that_has_seen_enough_of_help_is_no_failure_and_a_full_disk_is() {
    let asked: [&[&str]; 7] = [
        &["--help"],
        &["--version"],
        &["load", "--help"],
        &["serve", "-h"],
        &["man"],
        &["completions", "bash"],
        &["serve", "--check"],
    ];
    for arguments in asked {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let full = File::options().write(true).open("/dev/full").unwrap();
        for (to, status, lines) in [(Stdio::from(writer), 0, 0), (full.into(), 1, 1)] {
            let output = program().args(arguments).stdout(to).stderr(Stdio::piped()).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(
                (output.status.code(), said.lines().count()),
                (Some(status), lines),
                "{arguments:?}: {said}"
            );
        }
    }
}

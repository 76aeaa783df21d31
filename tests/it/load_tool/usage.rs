//! Arguments, addresses, asserts, files, pages, and the search for a rate.

use super::*;

#[test]
fn files_that_cannot_be_used_are_known_before_the_run() {
    let server = WrongServer::start(Fault::None);
    let fine = Scratch::new("fine.html");
    for arguments in [
        &["--report", "/nowhere/at/all.html"][..],
        &["--report", "/"],
        &["--report", fine.path(), "--stats", "/nowhere/at/all"],
        &["--report", fine.path(), "--stats", "/"],
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
fn of_an_option_given_twice_the_last_counts() {
    let server = WrongServer::start(Fault::None);
    let (first, last) = (Scratch::new("first.html"), Scratch::new("last.html"));
    let script = ["-c", "64", "-d", "1h", "--warm-up", "1h", "--json", "--report", first.path()];
    let user = ["-c", "2", "-n", "40", "--warm-up", "0s", "--json", "--report", last.path()];
    let asserts = ["--assert", "right=41", "--assert", "lost=0"];
    let run = Run::new(&server.address(), &[&script[..], &user, &asserts].concat());
    assert_eq!((run.count("requests", "right"), run.count("connections", "opened")), (40, 2), "{}", run.json);
    assert!(last.0.exists() && !first.0.exists());
    // These add up.
    assert_eq!(
        (run.json["asserts"].as_array().unwrap().len(), run.status),
        (2, 1),
        "{}",
        run.json["asserts"]
    );
    server_of_an_assignment_twice();
}

/// As `start.sh PORT --assignment` has it.
fn server_of_an_assignment_twice() {
    let ended = Ended::of(program().args(["serve", "--assignment", "0", "--assignment", "--check"]));
    assert!(ended.status.success() && ended.stdout.contains("0.0.0.0"), "{ended:?}");
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
    assert!(rate.is_some_and(|rate| (10.0..440.0).contains(&rate)), "{find}");
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
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let nobody = format!("load 127.0.0.1:{port}");
    let mut count = 0;
    for line in readme.lines().filter_map(|line| line.strip_prefix("target/release/tidemill ")) {
        let line = ["8000", "6379", "11211", "25"].iter().fold(line.to_owned(), |line, port| {
            line.replace(&format!("load 127.0.0.1:{port} "), &format!("{nobody} "))
        });
        // Of a server only what it would do; and nobody is watched.
        let line = line.replace("serve ", "serve --check ").replace("top 9100", &format!("top {port}"));
        let command = program();
        let script = format!("exec \"$0\" {line}");
        let directory = scratch("readme");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).arg(command.get_program()).current_dir(directory);
        let ended = Ended::of(&mut shell);
        let asks = line.starts_with("load") || line.starts_with("top");
        assert_eq!(ended.status.code(), Some(i32::from(asks)), "{line}: {ended:?}");
        let answered = !asks || ended.stdout.contains("refused") || ended.stderr.contains("refused");
        assert!(answered, "{line}: {ended:?}");
        count += 1;
    }
    assert!(count >= 6, "{count} commands");
}

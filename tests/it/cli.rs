//! Arguments, exit statuses and the one line that says what is wrong.

use std::net::TcpListener;
use std::process::{Command, Output};

use crate::support::peer::reply_to;
use crate::support::server::{PROGRAM, ServerProcess};

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    for variable in ["MIN_THREADS", "MAX_THREADS", "TOLERANCE", "STUDENT_ID"] {
        command.env_remove(variable);
    }
    command.args(arguments).output().unwrap()
}

/// Checks the status, and that standard error is one line that holds `text`.
#[track_caller]
fn assert_refused(output: &Output, status: i32, text: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(text), "{text} is not in {stderr}");
}

#[test]
fn wrong_usage_is_one_line_that_names_the_option_and_status_2() {
    for (arguments, text) in [
        (&["--min-threads", "0"][..], "--min-threads is 0"),
        (
            &["--min-threads", "9", "--max-threads", "8"],
            "--min-threads is 9, but must be at most --max-threads",
        ),
        (&["--max-threads", "0"], "--max-threads is 0"),
        (&["--max-threads", "x"], "--max-threads"),
        (&["--tolerance", "-1"], "--tolerance"),
        (&["--keep-alive", "0s"], "--keep-alive is 0ns"),
        (&["--keep-alive", "5"], "--keep-alive"),
        (&["--drain-timeout", "soon"], "--drain-timeout"),
        (&["--max-line", "0"], "--max-line is 0"),
        (&["--max-connections", "0"], "--max-connections is 0"),
        (&["--max-pending", "0"], "--max-pending is 0"),
        (&["--kill-from", "everybody"], "--kill-from"),
        (&["--kill-from", "10.0.0.0/33"], "--kill-from"),
        (&["--bind", "localhost"], "--bind"),
        (&["--advertise-ip", "x"], "--advertise-ip"),
        (&["--student-id", "a\nb"], "--student-id"),
        (&["--stats-every", "0s"], "--stats-every is 0s"),
        (&["--log-level", "loud"], "--log-level"),
        (&["--log-format", "xml"], "--log-format"),
        (&["--no-such-option"], "--no-such-option"),
        (&["65536"], "65536"),
    ] {
        assert_refused(&run(PROGRAM, &[&["serve"], arguments].concat()), 2, text);
    }
    assert_refused(&run(PROGRAM, &[]), 2, "subcommand");
    assert_refused(&run(PROGRAM, &["client", "X", "127.0.0.1", "1"]), 2, "X");
    assert_refused(&run(PROGRAM, &["client", "H", "nowhere", "1"]), 2, "nowhere");
}

#[test]
fn a_value_from_the_environment_is_checked_and_a_flag_wins_over_it() {
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "0"]).env("MAX_THREADS", "many");
    assert_refused(&command.output().unwrap(), 2, "--max-threads");

    let mut command = Command::new(PROGRAM);
    command.args(["serve", "0", "--max-threads", "9", "--min-threads", "2"]);
    command.env("MAX_THREADS", "5").env("TOLERANCE", "1").env("STUDENT_ID", "7");
    let server = ServerProcess::spawn(command);
    let stats = server.stats();
    assert_eq!((&stats["pool_min"], &stats["pool_max"]), (&2.into(), &9.into()));
    server.stop();
}

#[test]
fn the_default_of_min_or_max_yields_to_the_other_if_only_that_is_given() {
    for (option, value, expected) in [("--min-threads", "40", (40, 40)), ("--max-threads", "2", (2, 2))] {
        let server = ServerProcess::start(&[option, value]);
        let stats = server.stats();
        assert_eq!((&stats["pool_min"], &stats["pool_max"]), (&expected.0.into(), &expected.1.into()));
        server.stop();
    }
}

#[test]
fn a_port_in_use_is_one_line_and_status_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert_refused(&run(PROGRAM, &["serve", &port]), 1, &port);
}

#[test]
fn every_subcommand_explains_its_options() {
    for (subcommand, words) in [
        ("serve", &["--min-threads", "[env: MIN_THREADS=", "--kill-from", "[default: 8000]"][..]),
        ("client", &["--timeout", "[default: 5s]", "IMPRESSIVE_TEST"]),
    ] {
        let output = run(PROGRAM, &[subcommand, "--help"]);
        // However the terminal's width breaks it.
        let help = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(0));
        for word in words {
            assert!(help.contains(word), "{word} is not in {help}");
        }
    }
}

#[test]
fn start_sh_refuses_a_missing_or_bad_port_with_its_usage() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/start.sh");
    for arguments in [&[][..], &["x"], &["-1"], &["65536"], &["123456789012345678901"], &[""]] {
        assert_refused(&run(script, arguments), 2, "usage: ");
    }
}

#[test]
fn compile_sh_says_what_to_install_when_cargo_is_missing() {
    // A path with the tools of the script, but without cargo.
    let tools = std::env::temp_dir().join(format!("tidemill-tools-{}", std::process::id()));
    std::fs::create_dir_all(&tools).unwrap();
    for tool in ["sh", "dirname"] {
        let found = String::from_utf8(run("sh", &["-c", &format!("command -v {tool}")]).stdout).unwrap();
        std::os::unix::fs::symlink(found.trim(), tools.join(tool)).unwrap();
    }
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/compile.sh"));
    let output = command.env("PATH", &tools).output().unwrap();
    std::fs::remove_dir_all(&tools).unwrap();
    assert_refused(&output, 1, "cargo not found: install Rust");
}

#[test]
fn the_client_prints_the_reply_and_stops_the_server() {
    let server = ServerProcess::start(&[]);
    let port = server.address.port().to_string();
    let output = run(PROGRAM, &["client", "H", "127.0.0.1", &port]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), reply_to("IMPRESSIVE_TEST", server.address));
    let output = run(PROGRAM, &["client", "h", "127.0.0.1", &port, "two words"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), reply_to("two words", server.address));
    assert_eq!(run(PROGRAM, &["client", "K", "127.0.0.1", &port]).status.code(), Some(0));
    assert_eq!(server.wait().0.code(), Some(0));
    assert_refused(&run(PROGRAM, &["client", "H", "127.0.0.1", &port]), 1, "refused");
}

#[test]
fn the_client_gives_up_on_a_server_that_says_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    for request in ["H", "K"] {
        let output = run(PROGRAM, &["client", request, "127.0.0.1", &port, "--timeout", "50ms"]);
        assert_refused(&output, 1, "no reply within 50ms");
    }
}

#[test]
fn a_refused_kill_is_the_clients_failure() {
    let server = ServerProcess::start(&["--kill-from", "none"]);
    let port = server.address.port().to_string();
    assert_refused(&run(PROGRAM, &["client", "K", "127.0.0.1", &port]), 1, "ERROR KILL_SERVICE refused");
    server.stop();
}

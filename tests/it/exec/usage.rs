//! What is refused at the start, and what is said where programs do not do as they should.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tidemill::exec::{ExecConfig, Programs};

use super::{file, serve_exec, serve_script};
use crate::admin::{admin_of_program, get};
use crate::support::{Ended, Peer, configure, eventually, program};

#[track_caller]
fn refused(options: &[&str]) -> String {
    let ended = Ended::of(program().args(["serve", "0"]).args(options));
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    ended.stderr
}

#[test]
fn what_cannot_be_found_or_run_is_refused() {
    let script = file("script", "#!/no/such/interpreter\n");
    let plain = script.to_str().unwrap().to_owned();
    assert!(refused(&["--exec", "no-such-program x"]).contains("--exec is 'no-such-program x', but must be"));
    assert!(refused(&["--exec", "sh -c 'open"]).contains("quotes are closed"));
    assert!(refused(&["--exec", " "]).contains("--exec"));
    assert!(refused(&["--exec", &plain]).contains("is not executable"));
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refused(&["--exec", &plain]).contains("its first line names /no/such/interpreter"));
}

#[test]
fn settings_out_of_range_are_named() {
    for (option, value) in [
        ("--exec-request", "none"),
        ("--exec-request", "lines:0"),
        ("--exec-reply", "word"),
        ("--exec-prefix", "{user}"),
        ("--exec-timeout", "0s"),
        ("--exec-max-requests", "0"),
        ("--exec-max-age", "0s"),
        ("--exec-spare", "10001"),
        ("--exec-stop", "10000days"),
    ] {
        let line = refused(&["--exec", "cat", option, value]);
        assert!(line.contains(option), "{option} {value}: {line}");
    }
    for option in ["--exec-pty", "--exec-spare=2", "--exec-reply=line"] {
        refused(&[option]);
    }
    refused(&["--exec", "cat", "--inline"]);
}

#[test]
fn a_crash_loop_is_one_line_that_says_what_to_do_and_ends_when_it_is_mended() {
    let script = file("program.sh", "echo what is missing >&2; exit 7");
    let server = serve_exec(&format!("sh {}", script.display()), "--admin 0");
    let admin = admin_of_program(&server);
    server.expect_log("ends as soon as it is started");
    let ready = get(admin, "/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("as soon as they are started"), "{ready:?}");
    let replies = server.connect().exchange(b"one\ntwo\n");
    assert_eq!(String::from_utf8(replies).unwrap(), "ERROR program unavailable\n".repeat(2));
    let stats = server.stats();
    assert_eq!(stats["programs"]["available"], false);
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("as soon as it is started")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    for part in ["exit status: 7", "it said last: what is missing", "Run it by hand"] {
        assert!(lines[0].contains(part), "{}", lines[0]);
    }
    fs::write(&script, "while read -r line; do echo \"$line\"; done").unwrap();
    eventually("it is served again", || server.connect().exchange(b"x\n") == b"x\n");
    server.expect_log("programs stay again");
    eventually("it is ready", || get(admin, "/readyz").status == 200);
    server.stop().assert_clean();
}

#[test]
fn the_admin_address_has_a_row_for_each_program() {
    if !super::is_installed("perl") {
        return;
    }
    let options = "--admin 0 --min-threads 2 --max-threads 2 --exec-spare 1 --exec-max-requests 5";
    let server = serve_exec("perl -ne 'BEGIN { $| = 1 } print'", options);
    let admin = admin_of_program(&server);
    assert_eq!(server.connect().exchange(&b"x\n".repeat(7)), b"x\n".repeat(7));
    let mut programs = serde_json::Value::Null;
    eventually("each that was replaced has a successor", || {
        programs = get(admin, "/stats.json").json()["programs"].clone();
        // All have become what they were started as.
        let is_whole = |row: &serde_json::Value| row["resident_bytes"].as_u64() > Some(1_000_000);
        let all = programs["rows"].as_array().unwrap().iter().all(is_whole);
        programs["running"] == 3 && programs["ended_total"]["replaced"] == 1 && all
    });
    let rows = programs["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "{programs}");
    let served: u64 = rows.iter().map(|row| row["requests"].as_u64().unwrap()).sum();
    assert_eq!(served, 2, "{programs}");
    for row in rows {
        let pid = u32::try_from(row["pid"].as_u64().unwrap()).unwrap();
        assert!(super::is_there(pid), "{row}");
        assert!(row["age_seconds"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert!(programs["resident_bytes"].as_u64().unwrap() > 3_000_000, "{programs}");
    let top = Ended::of(program().args(["top", &admin.to_string()]));
    let lines: Vec<&str> = top.stdout.lines().filter(|line| line.contains("programs")).collect();
    assert!(lines.len() == 2 && lines[0].contains("3 run") && lines[1].contains("1 replaced"), "{top:?}");
    assert!(get(admin, "/").body.contains("program_rows"));
}

#[test]
fn a_program_that_closes_its_output_is_not_started_without_end() {
    let server = serve_script("exec 1>&-; while read -r line; do :; done", "--exec-stop 100ms");
    let replies = server.connect().exchange(b"x\n");
    assert_eq!(String::from_utf8(replies).unwrap(), "ERROR program unavailable\n");
    server.expect_log("closes its standard input or output as soon as it is started");
    let stats = server.stats();
    assert_eq!(stats["programs"]["ended_total"]["died"], 0, "{stats}");
    assert!(stats["programs"]["started_total"].as_u64().unwrap() <= 20, "{stats}");
    server.stop().assert_clean();
}

/// Of the library: the program starts its programs by way of itself, which is always there.
#[test]
fn a_program_that_cannot_be_started_any_more_is_tried_again() {
    let script = file("program.sh", "#!/bin/sh\nread -r line; echo \"$line\"\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let elsewhere = script.with_extension("moved");
    let mut config = ExecConfig::default();
    config.spare = 0;
    let programs = Programs::start(script.to_str().unwrap(), config).unwrap();
    let handle = programs.handle();
    let server = configure(programs, |config| (config.min_threads, config.max_threads) = (1, 1));
    let ask = || Peer::connect(server.local_addr()).exchange(b"x\n");
    // Each serves one request, and the worker's next one is started when that is needed.
    assert_eq!(ask(), b"x\n");
    fs::rename(&script, &elsewhere).unwrap();
    eventually("none is there any more", || ask() == b"ERROR program unavailable\n");
    assert!(!handle.stats().available);
    fs::rename(&elsewhere, &script).unwrap();
    eventually("it is served again", || ask() == b"x\n");
    server.handle().stop();
    assert!(server.wait().unwrap().is_clean());
    assert_eq!(handle.stats().running, 0);
}

#[test]
fn held_back_output_is_named_once_with_its_cure() {
    if !super::is_installed("perl") {
        return;
    }
    let holds = "perl -ne print";
    let server = serve_exec(holds, "--min-threads 1 --max-threads 1 --exec-timeout 4s");
    let failed = "ERROR program failed\n";
    assert_eq!(server.connect().exchange(b"x\nx\n"), failed.repeat(2).as_bytes());
    let log = server.log();
    assert_eq!(log.matches("it holds back its output").count(), 1, "{log}");
    assert!(log.contains("python3 -u"), "{log}");
}

#[test]
fn a_slow_program_is_not_taken_for_one_that_holds_back() {
    let server = serve_script("while read -r line; do sleep 1.5; echo \"$line\"; done", "--min-threads 1");
    assert_eq!(server.connect().exchange(b"x\n"), b"x\n");
    assert!(!server.log().contains("holds back"), "{}", server.log());
}

#[test]
fn a_terminal_cures_it() {
    if !super::is_installed("perl") {
        return;
    }
    let server = serve_exec("perl -ne print", "--exec-pty");
    assert_eq!(server.connect().exchange(b"one\n\ttwo\n"), b"one\n\ttwo\n");
    server.stop().assert_clean();
}

#[test]
fn the_last_statistics_of_a_good_run_say_so() {
    let server = serve_exec("cat", "--stats-every 1h");
    let mut peer = server.connect();
    peer.send(b"x\n");
    peer.expect(b"x\n");
    drop(peer);
    let ended = server.stop();
    ended.assert_clean();
    let last: serde_json::Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["programs"]["available"], true, "{last}");
    // Those of the log know how each of them has ended, too.
    let log = ended.stderr.lines().last().unwrap();
    let stats: serde_json::Value = serde_json::from_str(log.split_once("stats=").unwrap().1).unwrap();
    let programs = &stats["programs"];
    assert_eq!((&programs["available"], &programs["running"]), (&true.into(), &0.into()), "{log}");
    assert_eq!(programs["started_total"], crate::support::total(&programs["ended_total"]), "{log}");
}

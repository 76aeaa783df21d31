//! What is started in an upgrade, what cannot be, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::getuid;

use super::{Line, Present, REAL, children};
use crate::support::{Ended, Peer, program_at, scratch, skipped};

#[test]
fn what_is_started_is_what_stands_on_disk_by_the_name_that_was_used() {
    // By a path that is a link, whose target is another later.
    let mut line = Line::start("");
    line.put_script(&format!("echo the next >&2; exec {REAL} \"$@\""));
    line.upgrade();
    line.first.expect_log("the next");
    line.stop();

    // By a name that is looked for, in a file that is replaced.
    let program = scratch("upgrade").join("tidemill-by-name");
    fs::copy(REAL, &program).unwrap();
    let mut command = program_at(Path::new("tidemill-by-name"));
    command
        .env("PATH", format!("{}:/usr/bin:/bin", program.parent().unwrap().display()))
        .args(["serve", "0"]);
    let mut line = Line::run(command, program);
    line.put_script(&format!("echo the next >&2; exec {REAL} \"$@\""));
    line.upgrade();
    line.first.expect_log("the next");
    line.stop();

    // By a name that is none of its own, where the program itself is meant.
    let mut command = Command::new("/bin/bash");
    command.args(["-c", "exec -a something tidemill serve 0"]).stdin(Stdio::null());
    command.env("PATH", Path::new(REAL).parent().unwrap());
    let mut line = Line::run(command, PathBuf::new());
    line.upgrade();
    line.stop();
}

#[test]
fn a_process_that_cannot_take_over_is_ended_and_the_old_one_goes_on() {
    let path = scratch("upgrade").join("socket");
    let mut line = Line::start(&format!("--unix {} --upgrade-timeout 2s", path.display()));
    let mut old = Peer::connect(line.address());
    fs::remove_file(&line.program).unwrap();
    line.expect_failure("cannot be started: No such file or directory");
    fs::write(&line.program, "no program").unwrap();
    line.expect_failure("cannot be started: Permission denied");
    for (script, reason) in [
        ("exit 3", "did not become ready (exit status: 3)"),
        ("exit 0", "did not become ready"),
        ("kill -9 $$", "did not become ready (signal: 9 (SIGKILL))"),
        ("exec sleep 1000", "was not ready within 2s"),
        ("exec sleep 1000 <&-", "did not become ready"),
        ("trap '' TERM; exec sleep 1000", "was not ready within 2s"),
        ("echo ready and steady >&0; exec sleep 1000", "speaks another upgrade protocol"),
        // It refuses its options.
        (&format!("exec {REAL} \"$@\" --max-threads 0"), "did not become ready (exit status: 2)"),
        // It cannot listen.
        (&format!("exec {REAL} \"$@\" --bind 192.0.2.1"), "did not become ready (exit status: 1)"),
    ] {
        line.put_script(script);
        line.expect_failure(reason);
        assert!(path.exists());
    }
    old.ask("an old connection");
    line.put_program();
    line.upgrade();
    old.expect_end();
    drop(old);
    Peer::connect(line.address()).ask("a new one");
    line.stop();
    assert!(!path.exists());
}

#[test]
fn a_limited_address_space_is_no_obstacle() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("ulimit -v 4000000; exec {REAL} serve 0")]).stdin(Stdio::null());
    let mut line = Line::run(command, PathBuf::new());
    for _ in 0..2 {
        line.upgrade();
        Peer::connect(line.address()).ask("x");
    }
    line.stop();
}

#[test]
fn as_process_1_it_is_refused() {
    let is_possible = getuid().is_root()
        && Command::new("unshare").args(["--pid", "--fork", "true"]).status().is_ok_and(|it| it.success());
    if !is_possible {
        return skipped("a process namespace needs root and unshare");
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", REAL, "serve", "0"]).stdin(Stdio::null());
    let mut line = Line::run(command, PathBuf::new());
    line.now = Present(children(line.now.0)[0]);
    line.expect_failure("as process 1");
}

#[test]
fn a_timeout_of_nothing_is_refused() {
    let mut command = program_at(Path::new(REAL));
    let ended = Ended::of(command.args(["serve", "0", "--upgrade-timeout", "0s"]));
    assert_eq!(ended.status.code(), Some(2));
    assert_eq!(ended.stderr.lines().count(), 1);
    assert!(ended.stderr.contains("'0s' for '--upgrade-timeout"), "{}", ended.stderr);
}

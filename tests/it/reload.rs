//! SIGHUP: the file is read again, and what can be changed while the server runs is.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

use crate::config::{ConfigFile, assert_refused};
use crate::support::{Serving, SetAtEnd, assert_json_adds_up, eventually, in_parallel, program_at};

/// SIGHUP, and what the log says then, once more each time.
#[track_caller]
fn reload(serving: &Serving, expected: &str) -> String {
    let before = serving.log().len();
    serving.signal(Signal::HUP);
    let mut said = String::new();
    eventually(expected, || {
        said = serving.log()[before..].to_owned();
        said.contains(expected)
    });
    said
}

#[test]
fn sighup_changes_what_can_be_changed_for_connections_that_are_there() {
    let file = ConfigFile::new("port = 0\n");
    let serving = file.serve("--tolerance 1");
    let mut peer = serving.connect();
    peer.ask("x");
    file.write(
        "max-line = 64\nmin-threads = 6\nmax-threads = 7\nkill-from = \"none\"\nport = 0\ntolerance = 3\n",
    );
    let said = reload(&serving, "configuration reloaded");
    for part in [
        "max-line: 65536 -> 64",
        "min-threads: 4 -> 6",
        "max-threads: 32 -> 7",
        "kill-from: \"loopback\" -> \"none\"",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(!said.contains("tolerance"), "a flag wins: {said}");
    let stats = serving.stats();
    assert_eq!((&stats["pool_min"], &stats["pool_max"]), (&6.into(), &7.into()));
    let mut refused = serving.connect();
    refused.send(b"KILL_SERVICE\n");
    refused.expect_rest(b"ERROR KILL_SERVICE refused\n");
    peer.send(&[b'x'; 65]);
    peer.expect_rest(b"ERROR line too long (limit 64 bytes)\n");
    // A key that is gone has its default again.
    file.write("port = 0\n");
    let said = reload(&serving, "configuration reloaded");
    assert!(said.contains("max-line: 64 -> 65536") && said.contains("max-threads: 7 -> 32"), "{said}");
    let mut peer = serving.connect();
    peer.ask(&"x".repeat(100));
    assert_eq!(serving.stats()["pool_max"], 32);
    reload(&serving, "nothing has changed");
    serving.stop().assert_clean();
}

#[test]
fn a_bad_file_changes_nothing_and_is_logged() {
    let file = ConfigFile::new("port = 0\nmax-line = 64\n");
    let serving = file.serve("");
    let mut peer = serving.connect();
    for (bad, named) in [
        ("port = 0\nmax-line = 4096\nmax-threads = 9\nmax-treads = 9\n", "tidemill.toml:4: max-treads"),
        (
            "port = 0\nmax-line = 4096\nmin-threads = 9\nmax-threads = 8\n",
            "tidemill.toml:3: min-threads is 9",
        ),
        ("port = 0\nmax-line = 4096\nlog-level = \"debug\"\ndrain-timeout = \"2years\"\n", "drain-timeout"),
        ("max-line =", "tidemill.toml:1: "),
    ] {
        file.write(bad);
        let said = reload(&serving, "was not reloaded");
        assert!(said.contains(named), "{said}");
    }
    fs::remove_file(&file.0).unwrap();
    assert!(reload(&serving, "was not reloaded").contains("No such file"));
    assert_eq!(serving.stats()["pool_max"], 32);
    assert!(!serving.log().contains("DEBUG"));
    peer.send(&[b'x'; 65]);
    peer.expect_rest(b"ERROR line too long (limit 64 bytes)\n");
    serving.stop().assert_clean();
}

#[test]
fn what_needs_a_restart_is_named_each_time_and_the_rest_applies() {
    let file = ConfigFile::new("port = 0\n");
    let serving = file.serve("");
    file.write("port = 1\nbind = \"127.0.0.2\"\nunix-mode = \"0666\"\nthread-stack = \"4MiB\"\nsend-buffer = \"system\"\nmax-line = 64\n");
    for changed in ["max-line: 65536 -> 64", "nothing has changed"] {
        let said = reload(&serving, "a restart is needed");
        for key in ["port: 0 -> 1", "bind", "unix-mode", "thread-stack", "send-buffer"] {
            assert!(said.contains(key), "{key} is not in {said}");
        }
        assert!(said.contains(changed), "{said}");
    }
    let mut peer = serving.connect();
    peer.send(&[b'x'; 65]);
    peer.expect_rest(b"ERROR line too long (limit 64 bytes)\n");
    file.write("port = 0\nmax-line = 64\n");
    assert!(!reload(&serving, "nothing has changed").contains("restart"));
}

#[test]
fn words_and_pace_of_the_service_change_for_connections_that_are_there() {
    let file = ConfigFile::new("port = 0\n");
    let write = |more: &str| file.write(&format!("port = 0\nmin-threads = 1\nmax-threads = 1\n{more}"));
    write("");
    let serving = file.serve("--drain-timeout 0s");
    let mut peer = serving.connect();
    peer.ask("x");
    write("student-id = \"7\"\nadvertise-ip = \"192.0.2.1\"\nadvertise-port = 80\n");
    let said = reload(&serving, "configuration reloaded");
    assert!(said.contains("student-id: \"16336617\" -> \"7\"") && !said.contains("restart"), "{said}");
    peer.send(b"HELO x\n");
    peer.expect(b"HELO x\nIP:192.0.2.1\nPort:80\nStudentID:7\n");
    // Its only worker is lost to this one.
    write("handler-delay = \"1h\"\n");
    assert!(!reload(&serving, "configuration reloaded").contains("restart"));
    peer.send(b"HELO x\n");
    eventually("the worker is busy", || serving.stats()["pool_busy"] == 1);
    // What is handled on the event loop needs none.
    write("inline = true\n");
    assert!(!reload(&serving, "configuration reloaded").contains("restart"));
    serving.connect().ask("on the loop");
    write("inline = true\nhandler-delay = \"1s\"\n");
    assert!(reload(&serving, "was not reloaded").contains("handler-delay"));
    serving.connect().ask("as before");
    write("");
    reload(&serving, "configuration reloaded");
    let mut waits = serving.connect();
    waits.send(b"HELO x\n");
    eventually("it waits for the worker again", || serving.stats()["requests_pending"] == 2);
    serving.stop();
}

#[test]
fn the_form_of_the_log_and_the_lines_of_statistics_change_while_it_runs() {
    let file = ConfigFile::new("port = 0\n");
    let serving = file.serve("");
    file.write("port = 0\nlog-format = \"json\"\nstats-every = \"10ms\"\n");
    let said = reload(&serving, "configuration reloaded");
    let line: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert!(line["changed"].as_str().unwrap().contains("log-format: \"text\" -> \"json\""), "{line}");
    assert!(!said.contains("restart"), "{said}");
    eventually("statistics are printed", || serving.output().contains("\n{\"unix_seconds\":"));
    file.write("port = 0\n");
    let said = reload(&serving, "configuration reloaded");
    assert!(said.contains(" INFO configuration reloaded changed="), "{said}");
    let ended = serving.stop();
    ended.assert_clean();
}

#[test]
fn the_level_of_the_log_changes_while_it_runs() {
    let file = ConfigFile::new("port = 0\nlog-level = \"warn\"\n");
    let serving = file.serve("");
    serving.connect().ask("x");
    file.write("port = 0\nlog-level = \"debug\"\n");
    serving.signal(Signal::HUP);
    eventually("connections are logged", || {
        serving.connect().ask("x");
        serving.log().contains("connection closed")
    });
    file.write("port = 0\nlog-level = \"info\"\n");
    let said = reload(&serving, "log-level: \"debug\" -> \"info\"");
    assert!(!said.contains("TRACE"));
    let before = serving.log().len();
    serving.connect().ask("x");
    serving.stats();
    assert!(!serving.log()[before..].contains("DEBUG"), "{}", &serving.log()[before..]);
    assert!(serving.stop().stderr.contains("nothing was dropped"));
}

#[test]
fn more_connections_than_at_the_start_get_the_descriptors_that_they_need() {
    let file = ConfigFile::new("port = 0\nmax-connections = 10\n");
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -S -n 80 && exec \"$0\" serve --config '{}'", file.0.display()));
    command.arg(env!("CARGO_BIN_EXE_tidemill"));
    let serving = Serving::start(command);
    let mut peers: Vec<_> = (0..10).map(|_| serving.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.ask("x"));
    file.write("port = 0\nmax-connections = 200\n");
    reload(&serving, "max-connections: 10 -> 200");
    peers.extend((10..200).map(|_| serving.connect()));
    peers.iter_mut().for_each(|peer| peer.ask("x"));
    serving.connect().expect_rest(b"ERROR server full (limit 200 connections)\n");
}

#[test]
fn fifty_reloads_under_load_lose_no_reply() {
    let file = ConfigFile::new("port = 0\n");
    let serving = file.serve("");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _over = SetAtEnd(&over);
            for number in 0..50 {
                let odd = number % 2 == 1;
                file.write(match odd {
                    false => "port = 0\nmax-threads = 6\nmax-pending = 16\nrequest-timeout = \"1h\"\nline-timeout = \"1h\"\n",
                    true => "port = 0\nmin-threads = 1\nmax-line = 128\nqueue-timeout = \"1h\"\nmax-connections = 50\n",
                });
                reload(&serving, "configuration reloaded");
            }
        });
        scope.spawn(|| {
            in_parallel(8, |number| {
                let mut peer = serving.connect();
                while !over.load(Relaxed) {
                    let text = format!("peer {number}");
                    peer.send(format!("HELO {text}\n").repeat(20).as_bytes());
                    (0..20).for_each(|_| peer.expect_reply(&text));
                }
            });
        });
    });
    let stats = serving.stats();
    assert_json_adds_up(&stats);
    assert_eq!(stats["requests_dropped_total"], 0);
    serving.stop().assert_clean();
}

#[test]
fn connections_that_are_with_a_program_count_for_their_address_after_a_reload_too() {
    let settings = "port = 0\nexec = \"cat\"\nexec-mode = \"leased\"\nmax-connections-per-peer = 1\n";
    let file = ConfigFile::new(settings);
    let serving = file.serve("");
    let mut kept = serving.connect();
    kept.send(b"x\n");
    kept.expect(b"x\n");
    file.write(&format!("{settings}max-line = 64\n"));
    reload(&serving, "max-line");
    serving.connect().expect_rest(b"ERROR too many connections from your address (limit 1)\n");
    kept.finish();
    kept.expect_end();
    drop(kept);
    serving.stop().assert_clean();
}

#[test]
fn sighup_without_a_file_is_a_graceful_stop() {
    // The tests may run under nohup themselves.
    let mut command = program_at(Path::new("env"));
    command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_tidemill"), "serve", "0"]);
    command.args(["--handler-delay", "300ms"]);
    let serving = Serving::start(command);
    let mut peer = serving.connect();
    peer.send(b"HELO x\n");
    eventually("it is with the handler", || serving.stats()["requests_pending"] == 1);
    // The terminal and the shell both say so.
    serving.signal(Signal::HUP);
    serving.expect_log("stopping; once");
    serving.signal(Signal::HUP);
    peer.expect_reply("x");
    peer.expect_end();
    serving.wait().assert_clean();
}

#[test]
fn under_nohup_it_goes_on_when_the_terminal_is_gone() {
    let nohup = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("trap '' HUP; exec \"$0\" \"$@\"")
            .arg(env!("CARGO_BIN_EXE_tidemill"))
            .args(arguments);
        Serving::start(command)
    };
    let serving = nohup(&["serve", "0"]);
    serving.signal(Signal::HUP);
    serving.connect().ask("it goes on");
    serving.stats();
    assert!(!serving.log().contains("stopping; once"));
    serving.stop().assert_clean();
    // Who gives it a file wants to reload it.
    let file = ConfigFile::new("port = 0\n");
    let serving = nohup(&["serve", "--config", file.0.to_str().unwrap()]);
    reload(&serving, "nothing has changed");
}

/// A file that cannot be read for a while, as on a file system that is gone, holds up no signal that stops.
#[test]
fn a_reload_that_hangs_holds_up_no_stop() {
    let file = ConfigFile::new("port = 0\n");
    let serving = file.serve("");
    fs::remove_file(&file.0).unwrap();
    // Whoever opens it to read waits for somebody who writes.
    let made = Command::new("mkfifo").arg(&file.0).status().unwrap();
    assert_eq!((made.code(), made.signal()), (Some(0), None));
    serving.signal(Signal::HUP);
    // Which succeeds once somebody reads; who then waits for what is written, until this is closed.
    let mut silent = None;
    eventually("it reads the file", || {
        silent = rustix::fs::open(&file.0, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).ok();
        silent.is_some()
    });
    serving.stop().assert_clean();
    drop(silent);
}

#[test]
fn what_is_said_of_programs_is_checked_and_kept_until_a_restart() {
    for (text, named) in [
        ("exec = \"no-such-program\"", "no-such-program"),
        ("exec = \"cat\"\nexec-mode = \"leased\"\nexec-reply = \"none\"", "exec-reply"),
        ("exec = \"cat\"\nexec-prefix = \"{nobody}\"", "exec-prefix"),
    ] {
        assert_refused(&ConfigFile::new(text), "", &[named]);
    }
    let file = ConfigFile::new("port = 0\nexec = \"cat\"\nmax-threads = 8\nkill-from = \"loopback\"");
    let serving = file.serve("");
    let mut peer = serving.connect();
    peer.send(b"before\n");
    peer.expect(b"before\n");
    // Who is not to be stopped by anybody any more is not.
    file.write("port = 0\nexec = \"head -c 1\"\nexec-mode = \"leased\"\nmax-threads = 9");
    let said = reload(&serving, "a restart is needed");
    assert!(said.contains("exec-mode: ") && said.contains("max-threads: 8 -> 9"), "{said}");
    assert_eq!(
        (serving.stats()["pool_max"].as_u64(), serving.stats()["pool_min"].as_u64()),
        (Some(9), Some(4))
    );
    peer.send(b"after\n");
    peer.expect(b"after\n");
    let mut other = serving.connect();
    other.send(b"KILL_SERVICE\n");
    other.expect_rest(b"ERROR KILL_SERVICE refused\n");
    serving.stop().assert_clean();
}

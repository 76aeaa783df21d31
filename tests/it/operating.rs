//! The page for operators: every option, metric and reason that it names is there, and what it shows of the log and of what clients
//! read is said.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use crate::logs::{about, in_json};
use crate::support::{DEADLINE, Ended, Serving, eventually, program, program_at, scratch};
use crate::upgrade::Present;

const PAGE: &str = include_str!("../../src/OPERATING.md");

/// All words of the page that begin with `begin` and go on with lower case letters, `_` and `-`.
fn named(begin: &str) -> BTreeSet<String> {
    let ends = |char: char| !(char.is_ascii_lowercase() || char == '_' || char == '-');
    let word = |(at, _): (usize, &str)| {
        let rest = &PAGE[at..];
        let end = begin.len() + rest[begin.len()..].find(ends).unwrap_or(0);
        rest[..end].trim_end_matches(['-', '_']).to_owned()
    };
    PAGE.match_indices(begin).map(word).filter(|word| word.len() > begin.len()).collect()
}

#[test]
fn every_option_that_the_page_names_is_there() {
    let helps: Vec<String> = ["serve", "simulate", "top"]
        .map(|command| Ended::of(program().args([command, "--help"])).stdout)
        .to_vec();
    let options = named("--");
    assert!(options.len() > 20, "{options:?}");
    for option in &options {
        let is_there = |help: &String| help.split([' ', '\n']).any(|word| word == option);
        assert!(helps.iter().any(is_there), "there is no {option}");
    }
}

#[test]
fn every_metric_that_the_page_names_is_there() {
    let mut command = program();
    command.args(["serve", "0", "--admin", "0"]);
    let serving = Serving::start(command);
    serving.expect_log("admin address");
    let log = serving.log();
    let address = log.split_once("address=").unwrap().1.lines().next().unwrap().to_owned();
    let mut admin = TcpStream::connect(&address).unwrap();
    admin.set_read_timeout(Some(DEADLINE)).unwrap();
    admin.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut metrics = String::new();
    admin.read_to_string(&mut metrics).unwrap();
    let names = named("tidemill_");
    assert!(names.len() > 8, "{names:?}");
    for name in &names {
        assert!(metrics.contains(&format!("# TYPE {name} ")), "there is no {name}");
    }
    let reasons = rows("| the client reads |").flat_map(|row| quoted(row[2]));
    let reasons: Vec<_> = reasons.filter(|reason| !reason.starts_with("tidemill_")).collect();
    assert!(reasons.len() > 10, "{reasons:?}");
    for reason in reasons {
        assert!(metrics.contains(&format!("{{reason=\"{reason}\"}}")), "there is no reason {reason}");
    }
}

/// The columns of each row of the table with this head; the first is behind the first bar.
fn rows(head: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let rows = PAGE.split_once(head).unwrap().1.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('|').collect())
}

/// What stands in back quotes.
fn quoted(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split('`').skip(1).step_by(2)
}

/// All of the program's source.
fn source(directory: &Path, all: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source(&path, all);
        } else if path.extension().is_some_and(|it| it == "rs") {
            all.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_line_that_the_page_says_clients_read_is_said() {
    let mut all = String::new();
    source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    let lines: Vec<_> = rows("| the client reads |").flat_map(|row| quoted(row[1])).collect();
    assert!(lines.len() > 10, "{lines:?}");
    for line in lines {
        assert!(line.starts_with("ERROR ") && all.contains(&format!("\"{line}")), "nobody says '{line}'");
    }
}

/// What the text shows is of the table, which the last test holds.
#[test]
fn every_line_of_the_log_that_the_page_shows_is_one_of_its_table() {
    let shown = PAGE.lines().filter_map(|line| {
        let (level, rest) = line.split_once(' ')?;
        ["DEBUG", "INFO", "WARN", "ERROR"].contains(&level).then_some((level, rest))
    });
    let mut count = 0;
    for (level, line) in shown {
        let row = table().into_iter().find(|(message, ..)| line.starts_with(message));
        let (_, levels, keys) = row.unwrap_or_else(|| panic!("'{line}' is not in the table"));
        assert!(levels.contains(&level.to_lowercase().as_str()), "{level} {line}");
        let words = line.split('"').step_by(2).flat_map(str::split_whitespace);
        for (key, _) in words.filter_map(|word| word.split_once('=')) {
            let is_there = keys.iter().any(|it| it.trim_end_matches('?') == key);
            assert!(is_there, "{key} of '{line}' is not in the table");
        }
        count += 1;
    }
    assert!(count > 7, "{count}");
}

/// Message, levels and keys of each row of the table of log lines.
fn table() -> Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)> {
    let rows = PAGE.split_once("| message begins with |").unwrap().1.lines().skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let split = |text: &'static str| text.split(',').map(|part| part.trim().trim_matches('`')).collect();
    rows.map(|row| {
        let [_, message, levels, keys, _] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        (message.trim().trim_matches('`'), split(levels), split(keys))
    })
    .collect()
}

/// The log of a server that was not replaced, then was, and could not stop in time.
fn an_upgrade_and_a_stop_with_losses() -> String {
    let name = scratch("operating").join("tidemill");
    let put = || std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tidemill"), &name).unwrap();
    put();
    let mut command = program_at(&name);
    command
        .args("serve 0 --log-format json --handler-delay 1h --drain-delay 1h --drain-timeout 1h".split(' '));
    let serving = Serving::start(command);
    fs::remove_file(&name).unwrap();
    serving.signal(Signal::USR2);
    serving.expect_log("not upgraded");
    put();
    serving.signal(Signal::USR2);
    serving.expect_log("upgraded: ");
    let log = in_json(&serving.log());
    let id = about(&log, "upgraded")[0]["process"].as_i64().unwrap();
    let new = Pid::from_raw(id.try_into().unwrap()).unwrap();
    let _present = Present(new);
    // Until then the old one may accept a client, and serve it.
    serving.expect_log("\"draining\"");
    let mut peer = serving.connect();
    peer.send(b"HELO x\n");
    eventually("it has the request", || {
        kill_process(new, Signal::USR1).unwrap();
        serving.log().contains("requests_pending\\\":1")
    });
    for said in ["not ready, but serving", "stopping; once more", "stopping at once"] {
        kill_process(new, Signal::TERM).unwrap();
        eventually(said, || serving.log().contains(&format!("\"{said}")));
    }
    eventually("it has ended", || test_kill_process(new).is_err());
    serving.wait().stderr
}

/// Whoever reads the log by program relies on them.
#[test]
fn the_keys_of_a_line_in_json_are_always_those_of_the_page() {
    let file = scratch("operating").join("tidemill.toml");
    let settings = "port = 0\nhandler-delay = \"260ms\"\nmin-threads = 1\nmax-threads = 2\ntolerance = 0\nmax-connections = 6\n";
    let write = |more: &str| fs::write(&file, format!("{settings}{more}")).unwrap();
    write("");
    let mut command = program();
    command.args("serve --log-format json --log-level debug --slow-log 10ms --config".split(' ')).arg(&file);
    let serving = Serving::start(command);
    let mut peers: Vec<_> = (0..6).map(|_| serving.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"HELO x\n"));
    for _ in 0..2 {
        serving.connect().expect_rest(b"ERROR server full (limit 6 connections)\n");
    }
    peers.iter_mut().for_each(|peer| peer.expect_reply("x"));
    for (more, said) in [
        ("max-line = 64\nthread-stack = \"4MiB\"\n", "a restart is needed"),
        ("max-line = 64\n", "nothing has changed"),
        ("max-lines = 64\n", "was not reloaded"),
    ] {
        write(more);
        serving.signal(Signal::HUP);
        serving.expect_log(said);
    }
    peers[0].send(&[b'x'; 65]);
    peers[0].rest();
    drop(peers);
    serving.expect_log("recovered");
    serving.signal(Signal::USR1);
    serving.expect_log("\"statistics\"");
    eventually("connections are closed", || serving.log().matches("connection closed").count() == 6);
    let mut lines = in_json(&serving.stop().stderr);
    lines.extend(in_json(&an_upgrade_and_a_stop_with_losses()));
    let table = table();
    assert!(table.len() > 8, "{table:?}");
    for (message, levels, keys) in table {
        let lines = about(&lines, message);
        assert!(!lines.is_empty(), "no line '{message}'");
        for line in lines {
            let line = line.as_object().unwrap();
            let level = line["level"].as_str().unwrap().to_lowercase();
            assert!(levels.contains(&level.as_str()), "{level}: {line:?}");
            let expected: BTreeMap<&str, bool> =
                keys.iter().map(|key| (key.trim_end_matches('?'), key.ends_with('?'))).collect();
            for key in line.keys().filter(|key| !["timestamp", "level", "message"].contains(&key.as_str())) {
                assert!(expected.contains_key(key.as_str()), "{key} is not on the page: {line:?}");
            }
            for (key, _) in expected.iter().filter(|(_, may_lack)| !**may_lack) {
                assert!(
                    line.get(*key).is_some_and(|value| *value != Value::Null),
                    "{key} is missing: {line:?}"
                );
            }
            assert!(line.contains_key("timestamp"), "{line:?}");
        }
    }
}

//! The page for operators: every option, metric and log line that it names is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;
use serde_json::Value;

use crate::logs::{about, in_json};
use crate::support::{DEADLINE, Ended, Serving, eventually, program, scratch};

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
    let lines = in_json(&serving.stop().stderr);
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

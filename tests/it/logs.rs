//! Logs, and a reader of them that stands still.

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Ended, Serving, in_parallel, program, serve};

/// A server whose log nobody reads, after far more lines than the pipe and the queue before it take.
fn flood_of_unread_lines() -> Serving {
    let mut command = program();
    command.args(["serve", "0", "--log-level", "trace", "--max-connections", "1"]);
    let serving = Serving::start_unread(command);
    let mut inside = serving.connect();
    inside.ask("in");
    // Two lines of the log each.
    in_parallel(3500, |_| serving.connect().expect_rest(b"ERROR server full (limit 1 connections)\n"));
    inside.ask("still here");
    serving
}

#[test]
fn a_reader_of_logs_that_stands_still_never_stops_the_server() {
    let ended = flood_of_unread_lines().stop();
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stderr.len() > 60_000, "the pipe was full: {}", ended.stderr.len());
}

#[test]
fn lines_that_were_dropped_are_counted_in_the_end() {
    let mut serving = flood_of_unread_lines();
    // The reader wakes up, and sees how much it missed.
    serving.read_log();
    let ended = serving.stop();
    ended.assert_clean();
    let line = ended.stderr.lines().find(|line| line.contains("log lines were dropped"));
    let lost = line.and_then(|line| line.split_once("lost=")).expect("dropped lines are counted").1;
    assert!(lost.trim().parse::<u64>().unwrap() > 0);
}

#[test]
fn a_reader_of_statistics_that_stands_still_never_stops_the_server() {
    let mut command = program();
    command.args(["serve", "0", "--stats-every", "1ms"]);
    let serving = Serving::start(command);
    {
        let _standing_still = serving.hold_output();
        // A line is longer than half a kilobyte, and the pipe takes 64.
        for number in 0..200 {
            serving.connect().ask(&number.to_string());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        serving.signal(Signal::TERM);
        serving.expect_log("nothing was dropped");
    }
    serving.wait().assert_clean();
}

#[test]
fn a_reader_that_has_gone_stops_nothing_either() {
    let mut command = program();
    command.args(["serve", "0", "--log-level", "debug", "--stats-every", "1ms"]);
    let mut serving = Serving::start_unread(command);
    serving.close_log();
    for number in 0..100 {
        serving.connect().ask(&number.to_string());
    }
    assert_eq!(serving.stop().status.code(), Some(0));
}

#[test]
fn json_logs_are_one_object_a_line() {
    let serving = serve("--log-format json --log-level debug");
    serving.connect().ask("x");
    let ended = serving.stop();
    assert_eq!(ended.status.code(), Some(0));
    let lines: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["level"].is_string() && line["timestamp"].is_string()));
    assert!(lines.iter().any(|line| line["message"] == "draining"));
    let last: Value = serde_json::from_str(lines.last().unwrap()["stats"].as_str().unwrap()).unwrap();
    assert_eq!(last["replies_total"], 1);
}

#[test]
fn the_level_decides_what_is_logged() {
    let log = |options: &str| -> Ended {
        let serving = serve(options);
        serving.connect().ask("x");
        serving.stop()
    };
    assert_eq!(log("--log-level off").stderr, "");
    assert_eq!(log("--log-level warn").stderr, "");
    // But what is asked for by a signal comes, unless there is to be no log at all.
    let serving = serve("--log-level warn");
    serving.signal(Signal::USR1);
    serving.expect_log("statistics");
    assert_eq!(serving.stop().status.code(), Some(0));
    let info = log("").stderr;
    assert!(info.contains("INFO") && !info.contains("DEBUG"), "{info}");
    assert!(!info.contains('\u{1b}'), "no colours: {info:?}");
    let debug = log("--log-level debug").stderr;
    assert!(debug.contains("connection closed"), "{debug}");
}

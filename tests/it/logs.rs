//! The log and standard output, and readers of them that stand still or are gone.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Ended, Serving, Unread, eventually, in_parallel, program, scratch, serve};

/// Makes for far more lines of the log than a pipe and the queue before it take.
const TALKATIVE: &str = "--log-level trace --max-connections 1";

/// Does what a [`TALKATIVE`] server has so much to say about.
fn talk(serving: &Serving) {
    let mut inside = serving.connect();
    inside.ask("in");
    // A line of the log each.
    in_parallel(7000, |_| serving.connect().expect_rest(b"ERROR server full (limit 1 connections)\n"));
    inside.ask("still here");
}

/// A server whose log nobody reads, after far more lines than fit.
fn flood_of_unread_lines() -> Serving {
    let mut command = program();
    command.args(["serve", "0"]).args(TALKATIVE.split(' '));
    let serving = Serving::start_unread(command);
    talk(&serving);
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

/// `tidemill serve 0` with further options, whose output goes where the test says.
fn serve_into(options: &str, stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Serving {
    let mut command = program();
    command.args(["serve", "0"]).args(options.split_whitespace()).stdout(stdout).stderr(stderr);
    Serving::launch(&mut command)
}

/// What came out is lines, each whole, and nothing but what the contract has there.
#[track_caller]
fn assert_whole_output(output: &str) {
    assert!(output.is_empty() || output.ends_with('\n'), "{output:?}");
    for line in output.lines().map(|line| line.trim_start_matches('\0')) {
        assert!(
            line.starts_with("listening on ") || serde_json::from_str::<Value>(line).is_ok(),
            "{line:?} on standard output"
        );
    }
}

fn read_all(unread: Unread) -> String {
    let mut text = String::new();
    unread.into_reader().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_stop_ends_however_long_the_reader_of_statistics_has_stood_still() {
    let unread = Unread::empty();
    let mut serving = serve_into("--stats-every 1ms", unread.end(), Stdio::piped());
    serving.read_log();
    serving.expect_log("statistics are dropped");
    let ended = serving.stop();
    ended.assert_clean();
    assert!(ended.stderr.contains("lines on standard output were dropped"), "{}", ended.stderr);
    let output = read_all(unread);
    assert_whole_output(&output);
    assert!(output.lines().count() > 10, "{output}");
}

#[test]
fn a_stop_ends_with_both_outputs_in_one_pipe_that_nobody_reads() {
    let unread = Unread::empty();
    let options = format!("--stats-every 1ms {TALKATIVE}");
    let serving = serve_into(&options, unread.end(), unread.end());
    talk(&serving);
    assert!(unread.is_full());
    assert_eq!(serving.stop().status.code(), Some(0));
    for line in read_all(unread).lines() {
        assert!(line.starts_with(['{', '2', 'l']) && !line.contains("}{"), "{line:?} is not one line");
    }
}

#[test]
fn a_stop_ends_with_a_log_that_nobody_reads_and_statistics_whose_reader_is_gone() {
    let (log, statistics) = (Unread::full(), Unread::empty());
    let options = format!("--stats-every 1ms {TALKATIVE}");
    let serving = serve_into(&options, statistics.end(), log.end());
    drop(statistics);
    talk(&serving);
    assert_eq!(serving.stop().status.code(), Some(0));
}

/// As after a restart into a reader that stands still, or on a terminal that CTRL-S holds.
#[test]
fn signals_are_heard_though_the_announcement_finds_no_room() {
    for signal in [Signal::TERM, Signal::INT] {
        let unread = Unread::full();
        let mut serving = serve_into("", unread.end(), Stdio::piped());
        serving.read_log();
        serving.connect().ask("it serves");
        serving.stats();
        serving.signal(signal);
        let ended = serving.wait();
        ended.assert_clean();
        assert!(ended.stderr.contains("lines on standard output were dropped"), "{}", ended.stderr);
        assert!(!read_all(unread).contains("listening"), "there was no room for it");
    }
    // With no room for anything at all.
    let unread = Unread::full();
    let serving = serve_into("--stats-every 1ms", unread.end(), unread.end());
    serving.connect().ask("it serves");
    assert_eq!(serving.stop().status.code(), Some(0));
}

#[test]
fn the_exit_status_is_that_of_the_service_whoever_reads() {
    let unread = Unread::full();
    let options = "--handler-delay 1h --drain-timeout 10ms --stats-every 1ms";
    let serving = serve_into(options, unread.end(), unread.end());
    let mut peer = serving.connect();
    peer.send(b"HELO never\n");
    assert_eq!(serving.stop().status.code(), Some(1));
}

#[test]
fn the_announcement_is_whole_and_first_once_the_reader_goes_on() {
    let unread = Unread::full();
    let mut serving = serve_into("--stats-every 1ms", unread.end(), Stdio::null());
    serving.connect().ask("it serves");
    serving.read_output(unread);
    eventually("statistics", || serving.output().lines().count() > 10);
    let address = serving.address;
    let ended = serving.stop();
    assert_eq!(ended.status.code(), Some(0));
    assert_whole_output(&ended.stdout);
    let first = ended.stdout.lines().next().unwrap();
    assert_eq!(first.trim_start_matches('\0'), format!("listening on {address}"));
}

#[test]
fn a_start_that_is_refused_ends_though_nobody_reads_why() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let unread = Unread::full();
    let mut child =
        program().args(["serve", &port]).stdout(unread.end()).stderr(unread.end()).spawn().unwrap();
    let mut status = None;
    eventually("it ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(1));
}

/// A shell that becomes `tidemill serve 0 --stats-every 1ms` after `before`, with `redirected` output.
fn shell(before: &str, redirected: &str) -> Serving {
    let mut command = Command::new("sh");
    let script = format!("{before}exec \"$0\" serve 0 --log-level debug --stats-every 1ms {redirected}");
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_tidemill"));
    Serving::launch(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

#[test]
fn outputs_that_are_closed_or_take_nothing_stop_nothing() {
    let limited = scratch("limited").join("output");
    let to_limited = format!(">'{}' 2>&1", limited.display());
    for (before, redirected) in [
        ("", ">&-"),
        ("", "2>&-"),
        ("", "<&- >&- 2>&-"),
        ("", ">/dev/full 2>&1"),
        // The system would end the process for the first byte too many.
        ("ulimit -f 8; ", &to_limited),
    ] {
        let serving = shell(before, redirected);
        in_parallel(100, |_| serving.connect().ask("it serves"));
        assert_eq!(serving.stop().status.code(), Some(0), "{before}{redirected}");
    }
    assert!(fs::metadata(limited).unwrap().len() > 1000);
}

#[test]
fn a_flood_of_signals_hides_none_that_stops() {
    let unread = Unread::full();
    let serving = serve_into("", Stdio::null(), unread.end());
    for _ in 0..20_000 {
        serving.signal(Signal::USR1);
    }
    serving.signal(Signal::TERM);
    assert_eq!(serving.wait().status.code(), Some(0));
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

/// The lines of a log in JSON.
#[track_caller]
pub(crate) fn in_json(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// The statistics that a server with `--stats-every` has printed last.
fn printed(serving: &Serving) -> Value {
    let output = serving.output();
    output.lines().rev().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default()
}

/// Those whose message begins like this.
pub(crate) fn about<'a>(lines: &'a [Value], message: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["message"].as_str().unwrap().starts_with(message)).collect()
}

#[test]
fn a_slow_request_is_told_with_what_there_was_to_do() {
    let serving = serve(
        "--log-format json --slow-log 1500ms --handler-delay 1s --min-threads 1 --max-threads 1 --stats-every 5ms",
    );
    let mut peer = serving.connect();
    peer.ask("not slow");
    let mut peers: Vec<_> = (0..4).map(|_| serving.connect()).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.send(format!("HELO {number}\n").as_bytes());
        eventually("it is read", || printed(&serving)["requests_total"]["helo"]["request"] == number + 2);
    }
    peers.iter_mut().enumerate().for_each(|(number, peer)| peer.expect_reply(&number.to_string()));
    let lines = in_json(&serving.stop().stderr);
    let slow = about(&lines, "slow request");
    // The first did not wait.
    assert_eq!(slow.len(), 3, "{slow:?}");
    for (number, line) in (1..).zip(&slow) {
        assert_eq!((&line["level"], &line["service"]), (&"WARN".into(), &"helo".into()));
        assert_eq!(line["request"], format!("HELO {number}"));
        assert_eq!((&line["requests"], &line["busy"], &line["max"]), (&1.into(), &1.into(), &1.into()));
        assert_eq!(line["waiting"], 3 - number, "behind it, when it was picked up");
        let seconds = |key: &str| line[key].as_f64().unwrap();
        assert!(seconds("service_seconds") >= 1.0 && seconds("wait_seconds") >= 0.1, "{line}");
        assert!(seconds("wait_seconds") + seconds("service_seconds") >= 1.5, "{line}");
        let peer = peers[number].local().to_string();
        assert_eq!(line["peer"], peer);
    }
}

#[test]
fn a_slow_backend_does_not_fill_the_disk_and_what_is_left_out_is_counted() {
    const REQUESTS: u64 = 400;
    let serving =
        serve("--log-format json --slow-log 1ms --handler-delay 2ms --min-threads 8 --max-threads 8");
    let begun = std::time::Instant::now();
    in_parallel(usize::try_from(REQUESTS).unwrap() / 20, |_| {
        let mut peer = serving.connect();
        (0..20).for_each(|_| peer.ask("x"));
    });
    let seconds = begun.elapsed().as_secs();
    // Without another request, and before the end.
    serving.expect_log("left out of the log");
    let lines = in_json(&serving.stop().stderr);
    let slow: Vec<&Value> = lines.iter().filter(|line| line["message"] == "slow request").collect();
    assert!(slow.len() as u64 <= 10 * (seconds + 2), "{} lines in {seconds} s", slow.len());
    let left_out: u64 = lines.iter().filter_map(|line| line["left_out"].as_u64()).sum();
    assert_eq!(slow.len() as u64 + left_out, REQUESTS);
}

#[test]
fn saturation_is_told_when_it_begins_and_when_it_is_over() {
    let serving = serve("--log-format json --handler-delay 600ms --min-threads 2 --max-threads 2");
    let mut peers: Vec<_> = (0..8).map(|_| serving.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"HELO x\n"));
    serving.expect_log("saturated");
    peers.iter_mut().for_each(|peer| peer.expect_reply("x"));
    serving.expect_log("recovered");
    let lines = in_json(&serving.stop().stderr);
    let (saturated, recovered) = (about(&lines, "saturated"), about(&lines, "recovered after "));
    assert_eq!((saturated.len(), recovered.len()), (1, 1), "{lines:?}");
    let line = saturated[0];
    assert!(line["oldest_wait_seconds"].as_f64().unwrap() >= 0.2, "{line}");
    assert_eq!((&line["busy"], &line["workers"], &line["max"]), (&2.into(), &2.into(), &2.into()));
    let line = recovered[0];
    // Two at once: those who came third to eighth waited for 600 ms at least, but for how much later they came.
    assert_eq!(line["waited"], 6, "{line}");
    assert!(line["worst_seconds"].as_f64().unwrap() > 1.2, "{line}");
    assert!(line["seconds"].as_f64().unwrap() >= 0.5, "{line}");
    assert!(line["message"].as_str().unwrap().contains("6 requests waited, worst "), "{line}");
}

/// Nobody says another word once all are stuck.
#[test]
fn saturation_is_told_where_no_worker_ever_comes_back() {
    let serving = serve("--handler-delay 1h --min-threads 1 --max-threads 1 --drain-timeout 0s");
    let mut peers = [serving.connect(), serving.connect()];
    for peer in &mut peers {
        peer.send(b"HELO x\n");
    }
    serving.expect_log("saturated: requests wait for a worker");
    assert!(!serving.log().contains("recovered"));
}

#[test]
fn of_each_reason_one_refusal_within_a_second_is_a_warning() {
    let serving = serve("--log-format json --max-connections 1");
    let mut inside = serving.connect();
    inside.ask("in");
    let begun = std::time::Instant::now();
    in_parallel(200, |_| drop(serving.connect().rest()));
    let seconds = begun.elapsed().as_secs();
    let lines = in_json(&serving.stop().stderr);
    let warnings = about(&lines, "connection rejected").len() as u64;
    assert!((1..=seconds + 2).contains(&warnings), "{warnings} warnings in {seconds} s");
}

/// A pool that cannot grow is looked at only while there is work; what comes after a rest is news.
#[test]
fn saturation_is_told_after_a_rest() {
    let serving = serve("--handler-delay 300ms --min-threads 1 --max-threads 1");
    serving.connect().ask("x");
    // For longer than there is between two looks.
    let (mut quiet, mut before) = (0, serving.context_switches());
    eventually("nobody wakes for a second", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = serving.context_switches();
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
        quiet == 10
    });
    let mut peers: Vec<_> = (0..4).map(|_| serving.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"HELO x\n"));
    peers.iter_mut().for_each(|peer| peer.expect_reply("x"));
    serving.expect_log("saturated: requests wait for a worker");
}

#[test]
fn a_pool_that_grows_as_it_should_is_not_saturated() {
    // On a machine that stands still for a moment requests wait, whatever the pool does: such a run says nothing.
    eventually("a run in which none waits for long", || {
        let serving = serve("--handler-delay 50ms --min-threads 1 --max-threads 32 --tolerance 4");
        in_parallel(8, |_| {
            let mut peer = serving.connect();
            (0..10).for_each(|_| peer.ask("x"));
        });
        let ended = serving.stop();
        let longest = ended.stats()["queue_wait_seconds"]["max"].as_f64().unwrap();
        let is_calm = longest < 0.2;
        assert!(!is_calm || !ended.stderr.contains("saturated: requests"), "{longest} s: {}", ended.stderr);
        is_calm
    });
}

#[test]
fn each_close_and_each_refusal_is_told_once_with_its_reason() {
    let log = |level: &str| {
        let serving = serve(&format!(
            "--log-format json --log-level {level} --max-line 12 --max-connections 5 --kill-from none --line-timeout 50ms \
             --stats-every 5ms"
        ));
        let mut ends = Vec::new();
        let mut end =
            |peer: &crate::support::Peer, reason: &'static str| ends.push((peer.local().to_string(), reason));
        for _ in 0..4 {
            let mut peer = serving.connect();
            end(&peer, "line_too_long");
            peer.send(b"longer than twelve\n");
            peer.expect_rest(b"ERROR line too long (limit 12 bytes)\n");
        }
        let mut peer = serving.connect();
        end(&peer, "kill_refused");
        peer.send(b"KILL_SERVICE\n");
        peer.rest();
        let mut peer = serving.connect();
        end(&peer, "line_timeout");
        peer.send(b"half");
        peer.rest();
        let mut peer = serving.connect();
        end(&peer, "eof");
        peer.ask("x");
        peer.finish();
        peer.expect_end();
        eventually("all have ended", || printed(&serving)["connections"] == 0);
        let mut inside: Vec<_> = (0..5).map(|_| serving.connect()).collect();
        inside.iter_mut().for_each(|peer| peer.ask("x"));
        for _ in 0..3 {
            let mut peer = serving.connect();
            end(&peer, "full");
            peer.rest();
        }
        inside.iter().for_each(|peer| end(peer, "stopping"));
        (ends, in_json(&serving.stop().stderr))
    };
    let (ends, lines) = log("debug");
    for (peer, reason) in &ends {
        let told: Vec<&Value> = lines.iter().filter(|line| line["peer"] == peer.as_str()).collect();
        assert_eq!(told.len(), 1, "{peer}, {reason}: {told:?}");
        assert_eq!(told[0]["reason"], *reason);
        let message = if *reason == "full" { "connection rejected" } else { "connection closed" };
        assert_eq!(told[0]["message"], message);
    }
    // By default those that the server ended are warned of, of each reason one within a second.
    let (_, lines) = log("info");
    let mut reasons: Vec<&str> = lines
        .iter()
        .filter(|line| line["peer"].is_string())
        .filter_map(|line| line["reason"].as_str())
        .collect();
    let told = reasons.len() as u64;
    reasons.sort_unstable();
    reasons.dedup();
    // What was left out is told of as well, once.
    let left_out: u64 = lines.iter().filter_map(|line| line["left_out"].as_u64()).sum();
    assert_eq!(
        left_out + told,
        ends.iter().filter(|(_, reason)| *reason != "stopping" && *reason != "eof").count() as u64
    );
    assert_eq!(reasons, ["full", "kill_refused", "line_timeout", "line_too_long"], "{lines:?}");
    assert!(lines.iter().filter(|line| line["reason"].is_string()).all(|line| line["level"] == "WARN"));
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

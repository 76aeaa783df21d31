//! Statistics: their names, and that they add up at every moment.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use rustix::process::Signal;
use serde_json::Value;
use tidemill::{Helo, Reply, Request};

use crate::support::{
    Peer, Serving, SetAtEnd, Unread, assert_adds_up, assert_json_adds_up, configure, eventually, in_parallel,
    program, resolved, serve,
};

fn lines_of_json(output: &str) -> Vec<Value> {
    output
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_name_of_the_contract_is_there() {
    let serving = serve("--stats-every 10ms");
    serving.connect().ask("x");
    eventually("a line on standard output", || serving.output().contains("\"replies_total\":1"));
    let by_signal = serving.stats();
    let ended = serving.stop();
    let printed = lines_of_json(&ended.stdout).pop().unwrap();
    for stats in [by_signal, printed, ended.stats()] {
        for name in [
            "connections",
            "connections_accepted_total",
            "replies_total",
            "requests_pending",
            "pool_threads",
            "pool_busy",
            "pool_min",
            "pool_max",
            "pool_demand",
            "handler_panics_total",
            "read_bytes_total",
            "written_bytes_total",
            "wakeups_total",
            "requests_silent_total",
            "requests_dropped_total",
            "held_bytes",
        ] {
            assert!(stats[name].is_u64(), "{name} in {stats}");
        }
        assert!(stats["connections_rejected_total"]["full"].is_u64());
        assert!(stats["pool_saturation"].is_f64());
        for reason in [
            "eof",
            "reset",
            "line_too_long",
            "kill_refused",
            "panic",
            "handler",
            "write_timeout",
            "stopping",
            "aborted",
        ] {
            assert!(stats["connections_closed_total"][reason].is_u64(), "{reason} in {stats}");
        }
        for kind in ["request", "stop", "ignored"] {
            assert!(stats["requests_total"]["helo"][kind].is_u64(), "{kind} in {stats}");
        }
        for direction in ["grow", "shrink"] {
            assert!(stats["pool_resizes_total"][direction].is_u64(), "{direction} in {stats}");
        }
        for histogram in ["queue_wait_seconds", "service_seconds"] {
            assert_eq!(stats[histogram]["count"], 1, "{stats}");
            for part in ["sum", "p50", "p90", "p99", "p999", "max"] {
                assert!(stats[histogram][part].is_number(), "{histogram}.{part} in {stats}");
            }
        }
        assert_json_adds_up(&stats);
    }
}

#[test]
fn bytes_connections_and_requests_are_counted_exactly() {
    let serving = serve("--max-line 50");
    let mut peer = serving.connect();
    let sent = b"HELO one\r\nother\n\nHELO two\n";
    peer.send(sent);
    peer.expect_reply("one");
    peer.expect_reply("two");
    let replies = 2 * crate::support::helo_reply(b"one", serving.address).len();
    eventually("all is written", || serving.stats()["written_bytes_total"] == replies);
    let stats = serving.stats();
    assert_eq!(stats["read_bytes_total"], sent.len());
    assert_eq!(stats["connections"], 1);
    peer.finish();
    peer.expect_end();
    serving.connect().send(&[b'x'; 60]);
    serving.connect().reset();
    let closed = |stats: &Value, reason: &str| stats["connections_closed_total"][reason].as_u64();
    eventually("all have come and gone", || {
        let stats = serving.stats();
        stats["connections_accepted_total"] == 3 && stats["connections"] == 0
    });
    let ended = serving.stop();
    let stats = ended.stats();
    assert_eq!(closed(&stats, "eof"), Some(1));
    assert_eq!(closed(&stats, "line_too_long"), Some(1));
    assert_eq!(closed(&stats, "reset"), Some(1));
    assert_eq!(stats["connections_accepted_total"], 3);
    assert_eq!(stats["requests_total"]["helo"]["request"], 2);
    assert_eq!(stats["requests_total"]["helo"]["ignored"], 2);
    assert_eq!(stats["service_seconds"]["count"], 2);
}

/// Clients of every kind at once: well-behaved, gone too early, too long, refused, turned away.
fn mixed_client(address: std::net::SocketAddr, number: usize) {
    let mut peer = Peer::connect(address);
    match number % 6 {
        0 => {
            let lines = b"HELO pipelined\nother\n".repeat(200);
            drop(peer.exchange(&lines));
        }
        1 => {
            peer.send(&b"HELO gone\n".repeat(50));
            peer.reset();
        }
        2 => {
            peer.send(&b"HELO gone\n".repeat(50));
        }
        3 => {
            peer.send(b"HELO too long\n");
            peer.send(&[b'x'; 70_000]);
            drop(peer.rest());
        }
        4 => {
            peer.send(b"HELO a\nKILL_SERVICE\nHELO b\n");
            drop(peer.rest());
        }
        _ => {
            peer.send(b"HELO panic\nHELO b\n");
            peer.finish();
            drop(peer.rest());
        }
    }
}

#[test]
fn they_add_up_in_every_snapshot_of_a_flood() {
    let helo = Helo::new();
    let handler = Mixed(helo);
    let server = configure(handler, |config| {
        config.max_connections = 12;
        config.max_pending = 300;
        config.stop_from = tidemill::StopFrom::None;
    });
    let handle = server.handle();
    let over = AtomicBool::new(false);
    let snapshots = thread::scope(|scope| {
        let is_over = SetAtEnd(&over);
        let sampler = scope.spawn(|| {
            let mut snapshots = 0;
            while !over.load(Relaxed) {
                let stats = handle.stats();
                assert_adds_up(&stats);
                assert!(stats.requests_pending <= 300, "{stats:?}");
                assert!(stats.connections <= 12, "{stats:?}");
                assert!(
                    stats.pool_threads <= stats.pool_max && stats.pool_busy <= stats.pool_max,
                    "{stats:?}"
                );
                snapshots += 1;
                thread::yield_now();
            }
            snapshots
        });
        // More clients than connections: some are turned away, and told so without a reset.
        in_parallel(600, |number| mixed_client(resolved(server.local_addr()), number));
        drop(is_over);
        sampler.join().unwrap()
    });
    assert!(snapshots > 10, "{snapshots}");
    handle.stop();
    let outcome = server.wait().unwrap();
    assert_adds_up(&outcome.stats);
    assert_eq!((outcome.stats.connections, outcome.stats.requests_pending), (0, 0));
}

struct Mixed(Helo);

impl tidemill::Handler for Mixed {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        assert_ne!(request.line(), b"HELO panic", "on purpose");
        self.0.handle(request, reply);
    }

    fn classify(&self, line: &[u8]) -> tidemill::Kind {
        self.0.classify(line)
    }
}

#[test]
fn stats_every_prints_lines_that_add_up_during_a_flood_and_one_at_the_end() {
    let serving = serve("--stats-every 2ms --handler-delay 100us");
    in_parallel(8, |number| {
        let lines = format!("HELO {number}\nother\n").repeat(300);
        drop(serving.connect().exchange(lines.as_bytes()));
    });
    let ended = serving.stop();
    ended.assert_clean();
    let lines = lines_of_json(&ended.stdout);
    assert!(lines.len() > 5, "{}", lines.len());
    lines.iter().for_each(|stats| assert_json_adds_up(stats));
    let growing = |name: &str| {
        let values: Vec<u64> = lines.iter().map(|line| line[name].as_u64().unwrap()).collect();
        values.is_sorted()
    };
    assert!(growing("replies_total") && growing("connections_accepted_total") && growing("read_bytes_total"));
    let last = lines.last().unwrap();
    assert_eq!((&last["replies_total"], &last["connections"]), (&2400.into(), &0.into()));
    assert_eq!(ended.stats()["replies_total"], 2400);
}

fn times_of_decisions(line: &Value) -> Vec<f64> {
    line["decisions"].as_array().unwrap().iter().map(|decision| decision["t"].as_f64().unwrap()).collect()
}

/// Standard output in a pipe whose reader stands still for a while: what is missing is counted, and no line is torn.
fn stand_still_and_go_on(unread: Unread) {
    let mut command = program();
    // The pool grows by one worker for each request that waits.
    command.args(["serve", "0", "--stats-every", "1ms", "--tolerance", "0", "--handler-delay", "30ms"]);
    command.args(["--min-threads", "1", "--max-threads", "8", "--keep-alive", "50ms"]);
    let mut serving = Serving::launch(command.stdout(unread.end()).stderr(Stdio::piped()));
    serving.read_log();
    serving.expect_log("statistics are dropped");
    in_parallel(8, |_| serving.connect().ask("grow"));
    eventually("it has shrunk", || serving.stats()["pool_threads"] == 1);
    let decisions = serving.stats()["decisions"].as_array().unwrap().len();
    assert!(decisions > 1, "{decisions}");
    serving.read_output(unread);
    let last = |serving: &Serving| lines_of_json(&serving.output()).pop();
    eventually("a line after those that are missing", || {
        last(&serving).is_some_and(|line| line["lines_dropped_total"].as_u64() > Some(0))
    });
    let ended = serving.stop();
    ended.assert_clean();
    let address = ended.stdout.lines().next().unwrap();
    assert!(address.starts_with("listening on "), "{address}");
    let lines = lines_of_json(&ended.stdout);
    assert_eq!(lines.len() + 1, ended.stdout.lines().count(), "nothing else is there");
    lines.iter().for_each(assert_json_adds_up);
    let dropped: Vec<u64> = lines.iter().map(|line| line["lines_dropped_total"].as_u64().unwrap()).collect();
    assert!(dropped.is_sorted() && dropped[0] == 0, "{dropped:?}");
    // All that were dropped are in the last line, and in the log.
    let told = format!(
        "lines on standard output were dropped because their reader stood still lost={}",
        dropped.last().unwrap()
    );
    assert!(ended.stderr.contains(&told), "{told}: {}", ended.stderr);
    // No decision is missing with a line that is.
    let shown: Vec<f64> = lines.iter().flat_map(times_of_decisions).collect();
    assert!(shown.is_sorted() && shown.len() >= decisions, "{shown:?}, and {decisions} in the log");
}

#[test]
fn lines_that_a_reader_was_too_slow_for_are_counted_in_the_next_and_none_is_torn() {
    stand_still_and_go_on(Unread::empty());
}

#[test]
fn nor_are_they_in_a_pipe_that_does_not_block() {
    stand_still_and_go_on(Unread::empty().nonblocking());
}

/// A line must not be longer than a pipe takes as a whole.
#[test]
fn decisions_that_find_no_room_in_a_line_come_with_another() {
    let serving = serve(
        "--stats-every 1h --handler-delay 20ms --min-threads 1 --max-threads 8 --tolerance 0 --keep-alive 20ms",
    );
    let resizes = || {
        let stats = serving.stats();
        let total = &stats["pool_resizes_total"];
        total["grow"].as_u64().unwrap() + total["shrink"].as_u64().unwrap()
    };
    eventually("many decisions", || {
        in_parallel(8, |_| serving.connect().ask("grow"));
        eventually("it has shrunk", || serving.stats()["pool_threads"] == 1);
        resizes() > 80
    });
    assert!(resizes() < 256, "all are remembered");
    for line in serving.log().lines().filter(|line| line.contains("stats=")) {
        assert!(line.len() < 4096, "{}", line.len());
    }
    let expected = resizes();
    let ended = serving.stop();
    let lines = lines_of_json(&ended.stdout);
    assert!(lines.len() > 1 && ended.stdout.lines().all(|line| line.len() < 4096), "{}", lines.len());
    let shown: Vec<f64> = lines.iter().flat_map(times_of_decisions).collect();
    assert!(shown.is_sorted_by(|a, b| a < b), "{shown:?}");
    assert_eq!(shown.len() as u64, expected);
}

#[test]
fn sigusr1_logs_one_line_each_time_and_stops_nothing() {
    let serving = serve("");
    for number in 1..=5 {
        serving.connect().ask("x");
        assert!(serving.stats()["replies_total"].as_u64() >= Some(number - 1));
    }
    assert_eq!(serving.log().lines().filter(|line| line.contains("stats=")).count(), 5);
    serving.signal(Signal::USR1);
    serving.stop().assert_clean();
}

#[test]
fn without_stats_every_nothing_is_printed() {
    let serving = serve("");
    serving.connect().ask("x");
    assert_eq!(serving.stop().stdout.lines().count(), 1);
}

//! Shared mode: what a request and a reply are, who gets which program, and how many there are.

use std::time::{Duration, Instant};

use super::{OBEDIENT, children, file, number, serve_exec, serve_script};
use crate::support::{assert_json_adds_up, eventually, in_parallel};

#[test]
fn lines_are_answered_in_order_whatever_the_client_ends_them_with() {
    let server = serve_script(OBEDIENT, "");
    let replies = server.connect().exchange(b"one\ntwo words\r\n\n  \nKILL_SERVICE\nlast");
    // `two` is a word that means something else.
    assert_eq!(String::from_utf8(replies).unwrap(), "one\nwords\n\n\nKILL_SERVICE\nlast\n");
    server.stop().assert_clean();
}

#[test]
fn many_clients_get_their_own_replies() {
    let server = serve_script(OBEDIENT, "--min-threads 3 --max-threads 3");
    in_parallel(32, |client| {
        let lines: Vec<String> = (0..50).map(|line| format!("client {client} line {line}\n")).collect();
        let replies = server.connect().exchange(lines.concat().as_bytes());
        assert_eq!(String::from_utf8(replies).unwrap(), lines.concat());
    });
    let stats = server.stats();
    assert_json_adds_up(&stats);
    assert_eq!(stats["requests_total"]["exec"]["request"], 1600);
    server.stop().assert_clean();
}

#[test]
fn requests_of_several_lines_are_handed_over_whole() {
    if !super::is_installed("perl") {
        return;
    }
    // Answers with the number of lines of each request, which ends in an empty line.
    let count = r#"perl -e '$| = 1; while (<STDIN>) { if (/\r/) { $n += 100 } if (/^$/) { print $n + 0, " lines\n"; $n = 0 } else { $n++ } }'"#;
    let server = serve_exec(count, "--exec-request until:");
    let replies = server.connect().exchange(b"a=1\r\nb=2\n\nc=3\r\n\r\n\nunfinished\n");
    assert_eq!(String::from_utf8(replies).unwrap(), "2 lines\n1 lines\n0 lines\n");
    let sum = r#"perl -e '$| = 1; while (defined($a = <STDIN>)) { $b = <STDIN>; print $a + $b, "\n" }'"#;
    let server = serve_exec(sum, "--exec-request lines:2");
    let replies = server.connect().exchange(b"1\n2\n30\r\n12\n7\n");
    assert_eq!(String::from_utf8(replies).unwrap(), "3\n42\n");
}

#[test]
fn replies_end_where_it_is_said() {
    if !super::is_installed("perl") {
        return;
    }
    let twice = r#"perl -ne 'BEGIN { $| = 1 } print "first $_", "second $_"'"#;
    let replies = serve_exec(twice, "--exec-reply lines:2").connect().exchange(b"a\nb\n");
    assert_eq!(String::from_utf8(replies).unwrap(), "first a\nsecond a\nfirst b\nsecond b\n");
    let until = r#"perl -ne 'BEGIN { $| = 1 } print "x\n" x $_, "END\n"'"#;
    let replies = serve_exec(until, "--exec-reply until:END").connect().exchange(b"2\n0\n1\n");
    assert_eq!(String::from_utf8(replies).unwrap(), "x\nx\nEND\nEND\nx\nEND\n");
}

#[test]
fn a_program_without_replies_gets_every_request() {
    let kept = file("kept", "");
    let server = serve_exec(
        &format!("sh -c 'while read -r line; do echo noise; echo \"$line\" >>{}; done'", kept.display()),
        "--exec-reply none --min-threads 1 --max-threads 1",
    );
    let lines: String = (0..100).map(|number| format!("line {number}\n")).collect();
    assert_eq!(server.connect().exchange(lines.as_bytes()), b"");
    server.stop().assert_clean();
    assert_eq!(std::fs::read_to_string(kept).unwrap(), lines);
}

#[test]
fn a_long_request_and_a_long_reply_pass() {
    if !super::is_installed("perl") {
        return;
    }
    // More than a pipe takes, both ways at once: it answers before it has read all of the line.
    let echo = r#"perl -e '$| = 1; while (read STDIN, $_, 1) { print }'"#;
    let server = serve_exec(echo, "--max-line 1MiB --min-threads 1");
    let line = [vec![b'x'; 1_000_000], b"\n".to_vec()].concat();
    let whole = r#"perl -ne 'BEGIN { $| = 1 } print'"#;
    let calm = serve_exec(whole, "--max-line 1MiB --min-threads 1");
    assert_eq!(calm.connect().exchange(&line.repeat(2)), line.repeat(2));
    // A reply begins behind its request here too, and ends behind its line.
    assert_eq!(server.connect().exchange(&line), line);
}

#[test]
fn what_is_known_of_the_client_goes_before_the_request() {
    let server = serve_exec("cat", "--exec-prefix <{peer_ip}|{peer}|{connection}|{request}>{{}}");
    let mut peer = server.connect();
    let local = peer.local();
    for request in 1..=2 {
        peer.send(b"x\n");
        peer.expect(format!("<127.0.0.1|{local}|0|{request}>{{}}x\n").as_bytes());
    }
}

#[test]
fn the_service_stops_by_a_line_only_where_it_is_said_who_may() {
    let server = serve_script(OBEDIENT, "--kill-from loopback");
    let mut peer = server.connect();
    peer.send(b"one\nKILL_SERVICE\n");
    peer.expect_rest(b"one\n");
    server.wait().assert_clean();
}

#[test]
fn standard_error_is_logged_with_the_number_of_the_program() {
    let server = serve_script(OBEDIENT, "--min-threads 1 --max-threads 1 --exec-spare 0");
    let mut peer = server.connect();
    peer.send(b"say two words \x1b[31m\nnumber\n");
    peer.expect(b"said\n");
    let program = number(&peer.line());
    // No control character of it reaches the log.
    server.expect_log("two words ?[31m");
    let log = server.log();
    let line = log.lines().find(|line| line.contains("two words")).unwrap();
    assert!(line.contains(&format!("program={program}")), "{line}");
}

#[test]
fn a_program_has_its_number_and_nothing_of_what_is_the_servers() {
    if !super::is_installed("perl") {
        return;
    }
    let mut command = crate::support::program();
    command.args(["serve", "0", "--exec", r#"perl -ne 'BEGIN { $| = 1 } chomp; print "$_=$ENV{$_}\n"'"#]);
    command
        .env("OF_THE_USER", "kept")
        .env("NOTIFY_SOCKET", "/none")
        .env("LISTEN_FDNAMES", "x")
        .env("WATCHDOG_USEC", "1000000000");
    let server = crate::support::Serving::start(command);
    let replies = server
        .connect()
        .exchange(b"OF_THE_USER\nTIDEMILL_MODE\nNOTIFY_SOCKET\nLISTEN_FDNAMES\nWATCHDOG_USEC\n");
    assert_eq!(
        String::from_utf8(replies).unwrap(),
        "OF_THE_USER=kept\nTIDEMILL_MODE=shared\nNOTIFY_SOCKET=\nLISTEN_FDNAMES=\nWATCHDOG_USEC=\n"
    );
}

#[test]
fn a_spare_that_is_ready_costs_a_request_nothing() {
    // It starts for longer than a test may take to be told from one that does not.
    let slow = r#"
sleep 4
while read -r line; do
    case $line in exit) exit ;; *) echo "$line" ;; esac
done
"#;
    let server = serve_script(slow, "--min-threads 1 --max-threads 1 --exec-spare 3");
    let mut peer = server.connect();
    peer.send(b"first\n");
    peer.expect(b"first\n");
    eventually("three are ready beside that of the worker", || server.stats()["programs"]["ready"] == 4);
    let begun = Instant::now();
    for _ in 0..3 {
        peer.send(b"exit\nnext\n");
        peer.expect(b"ERROR program failed\nnext\n");
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// So the pool sees that it starts, and does not start others in its place.
#[test]
fn a_worker_takes_nothing_before_its_program_has_started() {
    const START: Duration = Duration::from_secs(4);
    const ROUNDS: usize = 10;
    let one_is_slow =
        "[ $TIDEMILL_PROGRAM = 2 ] && sleep 4; while read -r line; do echo $TIDEMILL_PROGRAM; done";
    let begun = Instant::now();
    let server = serve_script(one_is_slow, "--min-threads 2 --max-threads 2 --exec-spare 0");
    let mut peers: Vec<_> = (0..8).map(|_| server.connect()).collect();
    let mut round = || {
        peers.iter_mut().for_each(|peer| peer.send(b"x\n"));
        peers.iter_mut().map(|peer| number(&peer.line())).collect::<Vec<_>>()
    };
    let rounds = (0..ROUNDS).take_while(|_| round() == [1; 8] && begun.elapsed() < START).count();
    assert_eq!(rounds, ROUNDS, "before the other program had started, by {:?}", begun.elapsed());
    eventually("the other one serves, too", || round().contains(&2));
}

#[test]
fn programs_that_compute_are_not_added_to_as_those_that_wait_are() {
    if !super::is_installed("perl") {
        return;
    }
    let options = "--min-threads 1 --max-threads 32 --tolerance 0 --keep-alive 60s";
    let flood = |server: &crate::support::Serving, each: usize| {
        let lines = b"x\n".repeat(each);
        in_parallel_all(32, |_| assert_eq!(server.connect().exchange(&lines), lines));
    };
    let waits = serve_exec("perl -ne 'BEGIN { $| = 1 } select undef, undef, undef, 0.03; print'", options);
    flood(&waits, 10);
    let stats = waits.stats();
    assert!(stats["pool_threads"].as_u64().unwrap() >= 20, "{stats}");
    // As long, but on a CPU.
    let computes =
        serve_exec("perl -ne 'BEGIN { $| = 1 } $n = 0; $n += $_ for 1 .. 600_000; print'", options);
    flood(&computes, 3);
    let stats = computes.stats();
    let most = (2 * stats["pool_cores"].as_u64().unwrap()).max(16);
    assert!(stats["pool_threads"].as_u64().unwrap() <= most, "{stats}");
}

#[test]
fn programs_of_workers_that_are_gone_end_too() {
    if !super::is_installed("perl") {
        return;
    }
    let slow = r#"perl -ne 'BEGIN { $| = 1 } select(undef, undef, undef, 0.05); print'"#;
    let limits = "--min-threads 1 --max-threads 8 --tolerance 0 --keep-alive 100ms";
    // Each request leaves a worker without a program, for which another is started.
    let server = serve_exec(slow, &format!("{limits} --exec-max-requests 1"));
    in_parallel_all(8, |_| assert_eq!(server.connect().exchange(&b"x\n".repeat(5)), b"x\n".repeat(5)));
    let id = server.pid().as_raw_nonzero().get().unsigned_abs();
    eventually("one is left for a worker, and one as a spare", || children(id).len() == 2);
    server.stop().assert_clean();
}

/// Runs `each` for every number below `count`, all at the same time.
pub(super) fn in_parallel_all(count: usize, each: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        let each = &each;
        (0..count).for_each(|number| {
            scope.spawn(move || each(number));
        });
    });
}

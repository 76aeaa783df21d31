//! Programs leave nothing behind: no process, zombie or grandchild, no descriptor.

use std::env;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{OBEDIENT, children, is_gone, is_there, number, serve_exec, serve_script};
use crate::support::{Serving, eventually, in_parallel};

fn id(server: &Serving) -> u32 {
    server.pid().as_raw_nonzero().get().unsigned_abs()
}

fn descriptors(server: &Serving) -> usize {
    fs::read_dir(format!("/proc/{}/fd", id(server))).unwrap().count()
}

/// The programs of a server, once there are so many.
fn programs(server: &Serving, count: usize) -> Vec<u32> {
    eventually("all programs run", || children(id(server)).len() == count);
    children(id(server))
}

#[test]
fn replacements_leave_neither_processes_nor_descriptors() {
    if !super::is_installed("perl") {
        return;
    }
    let replacements: usize = env::var("TIDEMILL_REPLACEMENTS").map_or(300, |count| count.parse().unwrap());
    let server = serve_exec(
        "perl -ne 'BEGIN { $| = 1 } print'",
        "--min-threads 2 --max-threads 2 --exec-spare 2 --exec-max-requests 1",
    );
    let round = |count: usize| {
        in_parallel(4, |_| {
            let lines = b"x\n".repeat(count / 4);
            assert_eq!(server.connect().exchange(&lines), lines);
        });
    };
    let settled = |what| {
        eventually(what, || {
            let stats = server.stats();
            // Each has served its one request, so that its worker has none, and its successor is ready.
            children(id(&server)).len() == 4 && stats["programs"]["ready"] == 4 && stats["connections"] == 0
        });
        descriptors(&server)
    };
    round(20);
    let before = settled("the first round is over");
    round(replacements);
    settled("the second round is over");
    // The pool's control loop has one for a moment now and then.
    eventually("there are as many descriptors as before", || descriptors(&server) <= before);
    let stats = server.stats();
    let (started, ended) = (&stats["programs"]["started_total"], &stats["programs"]["ended_total"]);
    assert_eq!(started.as_u64().unwrap(), crate::support::total(ended) + 4, "{stats}");
    assert!(ended["replaced"].as_u64().unwrap() >= replacements as u64, "{stats}");
    server.stop().assert_clean();
}

#[test]
fn a_stop_under_load_ends_every_program() {
    let server = serve_script(OBEDIENT, "--min-threads 4 --max-threads 4 --exec-spare 2");
    let programs = programs(&server, 6);
    let mut peers: Vec<_> = (0..8).map(|_| server.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.send(&b"sleep 0.01\n".repeat(20)));
    peers[0].expect(b"slept\n");
    let ended = server.stop();
    ended.assert_clean();
    peers[1..].iter_mut().for_each(|peer| peer.expect_rest(&b"slept\n".repeat(20)));
    peers[0].expect_rest(&b"slept\n".repeat(19));
    assert!(programs.iter().all(|program| !is_there(*program)), "{programs:?}");
}

#[test]
fn a_program_that_ignores_everything_is_killed_with_all_of_its_group() {
    let deaf = "trap '' TERM\nsleep 1000 & echo $! >&2\nwhile :; do read -r line && echo $$; done";
    let server = serve_script(deaf, "--min-threads 1 --max-threads 1 --exec-spare 0 --exec-stop 200ms");
    let mut peer = server.connect();
    peer.send(b"x\n");
    let program = number(&peer.line());
    eventually("its child runs", || server.log().contains("program=1"));
    let log = server.log();
    let child: u32 = log.lines().find_map(|line| line.contains("program=1").then(|| digits(line))).unwrap();
    assert!(is_there(child));
    server.stop().assert_clean();
    assert!(!is_there(program));
    // Nobody of ours is its parent any more, who may take a moment.
    is_gone(child);
}

/// The number that stands alone in a log line.
fn digits(line: &str) -> u32 {
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

#[test]
fn what_a_program_leaves_in_its_group_goes_with_it() {
    let parent = "sleep 1000 & echo $! >&2; read -r line; echo \"$line\"; exit";
    let server = serve_script(parent, "--min-threads 1 --max-threads 1 --exec-spare 0");
    let mut peer = server.connect();
    peer.send(b"x\n");
    peer.expect(b"x\n");
    eventually("its child is known", || server.log().contains("program=1"));
    let child = digits(server.log().lines().find(|line| line.contains("program=1")).unwrap());
    is_gone(child);
    // So does that of its successor, which would outlive a server that is killed.
    server.stop().assert_clean();
}

#[test]
fn programs_do_not_outlive_a_server_that_is_killed() {
    // One that has a request does not read its input, and so does not see it end.
    let server = serve_script("read -r line; echo $$; exec sleep 1000", "--min-threads 2 --max-threads 2");
    let programs = programs(&server, 3);
    let mut peer = server.connect();
    peer.send(b"x\n");
    let busy = number(&peer.line());
    assert!(programs.contains(&busy));
    server.signal(Signal::KILL);
    for program in programs {
        is_gone(program);
    }
}

#[test]
fn a_second_signal_does_not_wait_for_a_program() {
    let server = serve_script(OBEDIENT, "--min-threads 1 --max-threads 1");
    let programs = programs(&server, 2);
    let mut peer = server.connect();
    peer.send(b"silent\n");
    eventually("it is with a program", || server.stats()["pool_busy"] == 1);
    server.signal(Signal::TERM);
    server.expect_log("once more stops at once");
    server.signal(Signal::TERM);
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(programs.iter().all(|program| !is_there(*program)), "{programs:?}");
}

#[test]
fn a_stop_does_not_wait_for_programs_that_are_being_started() {
    let server = serve_script("exec sleep 1000", "--exec-stop 100ms");
    let programs = programs(&server, 5);
    let begun = Instant::now();
    server.stop().assert_clean();
    // They count as started after five seconds.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(programs.iter().all(|program| !is_there(*program)), "{programs:?}");
}

#[test]
fn a_program_has_no_descriptor_but_its_three() {
    if !super::is_installed("perl") {
        return;
    }
    // The server inherits one that is not closed when it starts something.
    let server = crate::support::program();
    let command = format!(
        "exec 9</dev/null; exec {} serve 0 --exec 'perl -ne \"BEGIN {{ \\$| = 1 }} print qq(\\$\\$\\n)\"'",
        server.get_program().display(),
    );
    let mut server = std::process::Command::new("sh");
    server.args(["-c", &command]);
    let server = Serving::start(server);
    assert!(fs::exists(format!("/proc/{}/fd/9", id(&server))).unwrap());
    let mut peer = server.connect();
    peer.send(b"x\n");
    let program = number(&peer.line());
    let open = fs::read_dir(format!("/proc/{program}/fd")).unwrap();
    let mut open: Vec<_> = open.map(|entry| entry.unwrap().file_name()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
}

#[test]
fn a_refused_start_leaves_no_program() {
    let taken = serve_exec("cat", "");
    let port = taken.address.port().to_string();
    let mut second = crate::support::program();
    second.args(["serve", &port, "--exec", "cat"]);
    let ended = crate::support::Ended::of(&mut second);
    assert_eq!((ended.status.code(), ended.stderr.lines().count()), (Some(1), 1), "{ended:?}");
}

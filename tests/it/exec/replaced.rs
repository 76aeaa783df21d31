//! Programs are replaced, and whoever has a request is served by one that is there.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{OBEDIENT, children, number, serve_script};
use crate::support::{eventually, in_parallel};

const ONE: &str = "--min-threads 1 --max-threads 1";

#[test]
fn a_program_is_replaced_after_so_many_requests_and_at_that_age() {
    let server = serve_script(OBEDIENT, "--min-threads 1 --max-threads 1 --exec-max-requests 3");
    let mut peer = server.connect();
    let mut ask = || {
        peer.send(b"pid\n");
        number(&peer.line())
    };
    let programs: Vec<u32> = (0..9).map(|_| ask()).collect();
    let several: BTreeSet<u32> = programs.iter().copied().collect();
    assert_eq!(several.len(), 3, "{programs:?}");
    assert!(programs.chunks(3).all(|three| three.iter().all(|id| *id == three[0])), "{programs:?}");
    super::is_gone(programs[0]);

    let server = serve_script(OBEDIENT, "--min-threads 1 --max-threads 1 --exec-max-age 50ms");
    let mut peer = server.connect();
    let mut ask = || {
        peer.send(b"pid\n");
        number(&peer.line())
    };
    let first = ask();
    eventually("another program answers", || ask() != first);
    super::is_gone(first);
}

/// One after the other, each when its successor is ready, so that none is missing meanwhile.
#[test]
fn programs_that_nobody_asks_are_replaced_at_their_age() {
    const THERE: u64 = 6;
    let server =
        serve_script(OBEDIENT, "--min-threads 2 --max-threads 2 --exec-spare 4 --exec-max-age 100ms");
    eventually("all are ready", || server.stats()["programs"]["ready"] == THERE);
    let first = children(server.pid().as_raw_nonzero().get().unsigned_abs());
    eventually("each has been replaced, and more", || {
        let stats = server.stats();
        let programs = &stats["programs"];
        assert!(programs["ready"].as_u64().unwrap() >= THERE, "{stats}");
        programs["ended_total"]["replaced"].as_u64().unwrap() > 2 * THERE
    });
    first.into_iter().for_each(super::is_gone);
    let stats = server.stats();
    // Those that are replaced are not more than a part of them at a time.
    assert!(stats["programs"]["running"].as_u64().unwrap() < 2 * THERE, "{stats}");
    assert_eq!(stats["programs"]["ended_total"]["surplus"], 0, "{stats}");
    server.stop().assert_clean();
}

/// It is the one that was started first that is replaced, though its successor is of age too by the time that it is ready.
#[test]
fn a_program_that_takes_longer_to_start_than_it_may_live_is_replaced_too() {
    let slow = "sleep 0.3; while read -r line; do echo $$; done";
    let server = serve_script(slow, &format!("{ONE} --exec-spare 0 --exec-max-age 100ms"));
    let mut peer = server.connect();
    peer.send(b"x\n");
    super::is_gone(number(&peer.line()));
}

#[test]
fn a_program_of_age_serves_until_its_successor_is_ready() {
    // No successor ever is, for as long as this takes.
    let first_alone = "[ $TIDEMILL_PROGRAM -gt 1 ] && exec sleep 1000; while read -r line; do echo $$; done";
    let server = serve_script(first_alone, &format!("{ONE} --exec-spare 0 --exec-max-age 50ms"));
    let mut peer = server.connect();
    let mut ask = || {
        peer.send(b"x\n");
        number(&peer.line())
    };
    let first = ask();
    eventually("its successor starts", || server.stats()["programs"]["started_total"] == 2);
    assert_eq!(ask(), first);
}

/// A worker whose program has ended takes requests all the same, which wait for no other to start.
#[test]
fn a_request_is_served_by_a_program_that_is_there() {
    // Programs that are never seen to wait for input count as ready behind this.
    const START: Duration = Duration::from_secs(5);
    const ROUNDS: usize = 10;
    let two_start = "[ $TIDEMILL_PROGRAM -gt 2 ] && exec sleep 1000; while read -r word; do [ $word = exit ] && exit; echo $$; done";
    let server = serve_script(two_start, "--min-threads 2 --max-threads 2 --exec-spare 0");
    eventually("both are ready", || server.stats()["programs"]["ready"] == 2);
    let begun = Instant::now();
    assert_eq!(
        server.connect().exchange(b"x\nexit\n").split(|byte| *byte == b'\n').nth(1),
        Some(&b"ERROR program failed"[..])
    );
    let round = || {
        let replies = in_parallel(4, |_| server.connect().exchange(b"x\nx\nx\n"));
        let programs: BTreeSet<u32> = replies
            .iter()
            .flat_map(|replies| replies.split_inclusive(|byte| *byte == b'\n'))
            .map(number)
            .collect();
        programs.len() == 1
    };
    let rounds = (0..ROUNDS).take_while(|_| round() && begun.elapsed() < START).count();
    assert_eq!(rounds, ROUNDS, "by {:?}", begun.elapsed());
}

/// What is counted does not depend on which of its ends is seen first.
#[test]
fn a_program_that_ends_with_its_first_request_has_died() {
    let server = serve_script("read -r line; exec >&-; exit 3", &format!("{ONE} --exec-spare 0"));
    server.connect().exchange(b"1\n2\n3\n4\n");
    server.expect_log("ends as soon as it is started (exit status: 3)");
    let stats = server.stats();
    assert!(stats["programs"]["ended_total"]["died"].as_u64() >= Some(3), "{stats}");
    assert_eq!(stats["programs"]["ended_total"]["broke_framing"], 0, "{stats}");
    server.stop().assert_clean();
}

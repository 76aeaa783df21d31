//! Whole runs against servers of this process, of which is known what they do. Nothing here is about how long it takes.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;

use super::*;
use crate::load::progress::Progress;
use crate::load::{Outcome, run};

/// What a server does on a connection, given its number: serves until it returns.
type Serve = fn(usize, &TcpStream);

/// Starts a server, which ends with the process.
fn server(serve: Serve) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            thread::spawn(move || serve(number, &stream));
        }
    });
    address
}

/// Answers `x7` by `y7`, so many times.
fn answer(mut stream: &TcpStream, most: usize) {
    for line in BufReader::new(stream).lines().take(most).map_while(Result::ok) {
        // In one piece: the system holds back a small one while another has not been acknowledged.
        if stream.write_all(format!("y{}\n", &line[1..]).as_bytes()).is_err() {
            return;
        }
    }
}

pub(super) fn plan(address: SocketAddr) -> Plan {
    Plan {
        target: String::new(),
        addresses: vec![address],
        protocol: Protocol::custom("x{n}", "y{n}", None, None).unwrap(),
        connections: 3,
        pipeline: 4,
        requests: Some(500),
        duration: None,
        warm_up: Duration::ZERO,
        rate: None,
        poisson: false,
        connection_curve: None,
        reconnect: false,
        threads: 1,
        timeout: Duration::from_secs(20),
        expect_stop: false,
        seed: 1,
    }
}

fn flood(plan: &Plan) -> Outcome {
    run(plan, &Interrupts::default(), &mut |_| {}).unwrap()
}

/// All was offered, sent and answered, and nothing went wrong.
fn assert_all_right(outcome: &Outcome, right: u64) {
    let total = outcome.total;
    assert_eq!(
        (total.offered, total.sent, total.right, total.unsent),
        (right, right, right, 0),
        "{outcome:?}"
    );
    assert_eq!((total.errors(), outcome.connections.errors()), (0, 0), "{outcome:?}");
    assert!(outcome.ended_early.is_none(), "{outcome:?}");
}

#[test]
fn closed_loop_sends_what_is_asked_for_and_counts_its_own_lateness() {
    let address = server(|_, stream| answer(stream, usize::MAX));
    for (connections, pipeline, threads) in [(3, 4, 1), (1, 1, 1), (3, 50, 2), (50, 1, 1)] {
        let outcome = flood(&Plan { connections, pipeline, threads, ..plan(address) });
        assert_all_right(&outcome, 500);
        assert_eq!(outcome.connections.opened, connections as u64);
        assert_eq!(outcome.latencies.len(), 500);
        let handled = outcome.generator.lateness.len();
        assert!(handled > 0 && handled < 5000, "{handled}");
        // In a turn with one reply nothing else has kept it waiting, as far as that is told apart; all begin in the same turn.
        let late = outcome.generator.lateness.max() >= 64;
        assert!(if connections == 1 { !late } else { connections < 50 || late }, "{connections}");
    }
}

#[test]
fn warm_up_is_not_measured() {
    let address = server(|_, stream| answer(stream, usize::MAX));
    for rate in [None, Some(Curve::constant(2000.0))] {
        let outcome =
            flood(&Plan { warm_up: Duration::from_millis(300), requests: Some(50), rate, ..plan(address) });
        assert_eq!((outcome.measured.right, outcome.latencies.len()), (50, 50));
        let total = outcome.total.right;
        assert!(total > 50, "{total}");
        assert_all_right(&outcome, total);
        // At most each reply, those that were on their way, and what else the sockets have to tell.
        let handled = outcome.generator.lateness.len();
        assert!((1..100).contains(&handled), "{handled}");
    }
}

/// With one thread the run is of this thread.
#[test]
fn what_is_computed_in_the_measured_part_is_told() {
    let address = server(|_, stream| answer(stream, usize::MAX));
    let used = |plan: Plan| {
        let before = Usage::of_thread();
        let outcome = flood(&plan);
        (outcome.generator.threads[0].cpu_seconds, Usage::of_thread().since(before).cpu_seconds)
    };
    let some = Duration::from_millis(300);
    let (measured, all) = used(Plan { duration: Some(some), requests: None, ..plan(address) });
    assert!(measured > all / 2.0 && measured <= all, "{measured} of {all}");
    let (measured, all) = used(Plan { warm_up: some, requests: Some(1), ..plan(address) });
    assert!(measured < all / 2.0, "{measured} of {all}");
}

#[test]
fn each_request_has_its_connection_where_that_is_asked_for() {
    let address = server(|_, stream| answer(stream, usize::MAX));
    for rate in [None, Some(Curve::constant(2000.0))] {
        let outcome = flood(&Plan { reconnect: true, requests: Some(40), rate, ..plan(address) });
        assert_all_right(&outcome, 40);
        assert_eq!(outcome.connections.opened, 40);
    }
}

#[test]
fn open_loop_sends_what_is_due_and_waits_for_its_answers() {
    let address = server(|_, stream| answer(stream, usize::MAX));
    for (poisson, threads) in [(false, 1), (true, 1), (false, 2)] {
        let rate = Some(Curve::constant(1000.0));
        let duration = Some(Duration::from_millis(101));
        let outcome = flood(&Plan { rate, duration, poisson, threads, requests: None, ..plan(address) });
        let offered = outcome.total.offered;
        assert!((50..200).contains(&offered) && (poisson || (98..103).contains(&offered)), "{offered}");
        assert_all_right(&outcome, offered);
        assert_eq!((outcome.generator.lateness.len(), outcome.connections.opened), (offered, 3));
    }
}

#[test]
fn what_a_server_says_first_is_waited_for() {
    let address = server(|_, mut stream| {
        stream.write_all(b"hi\n").unwrap();
        answer(stream, usize::MAX);
    });
    for reconnect in [false, true] {
        let protocol = Protocol::custom("x{n}", "y{n}", None, Some("hi")).unwrap();
        let outcome = flood(&Plan { protocol, reconnect, requests: Some(30), ..plan(address) });
        assert_all_right(&outcome, 30);
    }
    // Another one than expected is bytes that nobody asked for.
    let protocol = Protocol::custom("x{n}", "y{n}", None, Some("ho")).unwrap();
    let outcome = flood(&Plan { protocol, ..plan(address) });
    assert_eq!((outcome.total.right, outcome.total.sent), (0, 0), "{outcome:?}");
    assert!(outcome.total.unasked >= 3, "{outcome:?}");
}

#[test]
fn connection_that_the_server_ends_is_counted_and_opened_again() {
    let address = server(|_, stream| answer(stream, 10));
    let outcome = flood(&Plan { connections: 1, pipeline: 1, requests: Some(35), ..plan(address) });
    let (total, connections) = (outcome.total, outcome.connections);
    // The request that meets the end may be lost with it.
    assert_eq!((total.offered, total.sent, total.right + total.lost), (35, 35, 35), "{outcome:?}");
    assert!(connections.opened >= 4 && connections.closed_early + connections.reset >= 3, "{outcome:?}");
    assert!(total.right >= 30 && outcome.ended_early.is_none(), "{outcome:?}");
}

#[test]
fn server_that_falls_silent_is_given_up_and_what_it_owes_is_lost() {
    let address = server(|number, stream| {
        answer(stream, if number == 0 { 5 } else { 0 });
        // It reads, and says nothing.
        BufReader::new(stream).lines().map_while(Result::ok).for_each(drop);
    });
    let (connections, timeout) = (1, Duration::from_millis(300));
    let outcome = flood(&Plan { connections, timeout, ..plan(address) });
    assert!(matches!(outcome.ended_early, Some(EndedEarly::Gone)), "{outcome:?}");
    // Not even those need have come in time.
    assert!(outcome.total.right <= 5, "{outcome:?}");
    assert!(outcome.total.lost >= 4 && outcome.total.lost.is_multiple_of(4), "{outcome:?}");
}

#[test]
fn first_address_that_lets_one_in_is_the_one() {
    let address = server(|_, stream| answer(stream, usize::MAX));
    // Bound, and nobody listens: nobody else gets the port meanwhile.
    let nobody = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    nobody.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let nobody = (nobody.local_addr().unwrap().as_socket().unwrap(), nobody);
    let outcome = flood(&Plan { addresses: vec![nobody.0, address], ..plan(address) });
    assert_all_right(&outcome, 500);
    assert_eq!(outcome.connections.opened, 3);
    let outcome = flood(&Plan { addresses: vec![nobody.0], ..plan(address) });
    assert!(matches!(outcome.ended_early, Some(EndedEarly::Gone)), "{outcome:?}");
    assert_eq!((outcome.connections.opened, outcome.connections.refused), (0, 3), "{outcome:?}");
}

#[test]
fn interrupt_ends_a_run_that_would_go_on() {
    let address = server(|_, stream| answer(stream, usize::MAX));
    for (rate, reconnect) in [(None, false), (Some(Curve::constant(500.0)), false), (None, true)] {
        let interrupts = Interrupts::default();
        let plan = Plan { requests: None, rate, reconnect, ..plan(address) };
        // Once: a second one would end it at once, with what is under way.
        let mut interrupt = Some(&interrupts.came);
        let mut interrupt = |progress: &Progress| {
            // Under load nothing may have been answered in the first rows.
            if progress.rate() > 0.0
                && let Some(came) = interrupt.take()
            {
                came.store(true, Ordering::Relaxed);
            }
        };
        let outcome = run(&plan, &interrupts, &mut interrupt).unwrap();
        assert!(matches!(outcome.ended_early, Some(EndedEarly::Interrupted)), "{outcome:?}");
        let total = outcome.total;
        assert!(total.right > 0 && total.sent == total.right, "{outcome:?}");
        assert_eq!((total.errors(), outcome.connections.errors()), (0, 0), "{outcome:?}");
    }
}

#[test]
fn stop_that_is_expected_is_no_error_and_every_connection_counts() {
    let address = server(|_, stream| {
        answer(stream, 20);
        // What has come by then is read, or the system would reset the connection.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        BufReader::new(stream).lines().map_while(Result::ok).for_each(drop);
    });
    let plan = Plan { expect_stop: true, pipeline: 1, requests: None, ..plan(address) };
    let outcome = flood(&plan);
    let connections = outcome.connections;
    assert_eq!((connections.opened, connections.stopped, connections.not_stopped), (3, 3, 0), "{outcome:?}");
    // What was outstanding then has not been read.
    let total = outcome.total;
    assert_eq!((total.right, total.errors(), total.unread), (60, 0, 3), "{outcome:?}");
    // Of one that goes on, the connections are open to the end.
    let address = server(|_, stream| answer(stream, usize::MAX));
    let outcome = flood(&Plan { expect_stop: true, ..self::plan(address) });
    assert_eq!((outcome.connections.stopped, outcome.connections.not_stopped), (0, 3), "{outcome:?}");
    assert_all_right(&outcome, 500);
}

#[test]
fn connections_come_and_go_as_their_curve_says() {
    let address = server(|_, stream| answer(stream, usize::MAX));
    let (connections, requests) = (4, None);
    let duration = Some(Duration::from_millis(300));
    for rate in [None, Some(Curve::constant(500.0))] {
        let connection_curve = Some(Curve::constant(2.0));
        let plan = Plan { connections, requests, duration, rate, connection_curve, ..plan(address) };
        let outcome = flood(&plan);
        let total = outcome.total;
        assert_eq!(outcome.connections.opened, 2, "{outcome:?}");
        assert_eq!((total.right, total.errors(), total.unsent), (total.offered, 0, 0), "{outcome:?}");
    }
}

#[test]
fn long_replies_to_a_long_pipeline_are_read_in_turns() {
    let address = server(|_, stream| {
        let mut out = std::io::BufWriter::new(stream);
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            drop(writeln!(out, "y{}{}", &line[1..], "z".repeat(2000)).and_then(|()| out.flush()));
        }
    });
    let expected = format!("y{{n}}{}", "z".repeat(2000));
    let protocol = Protocol::custom("x{n}", &expected, None, None).unwrap();
    let outcome = flood(&Plan { protocol, pipeline: 2000, requests: Some(6000), ..plan(address) });
    assert_all_right(&outcome, 6000);
}

//! Single steps of a worker, at moments that the test chooses: what whole runs pass too seldom, or too fast, to tell apart.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use mio::Interest;
use mio::net::TcpStream;
use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Socket, Type};

use super::opening::MOST_CONNECTING;
use super::tests::plan;
use super::*;
use crate::load::connection::Ending;
use crate::load::ledger::Ledger;
use crate::load::tally::Kind;

const SECOND: u64 = 1_000_000_000;

/// Of a connection, to tell it from a place and from the number of a request.
const NUMBER: u32 = 7;

/// A worker that has done nothing yet, and wants as many connections as it may have.
fn with_worker<T>(plan: &Plan, act: impl FnOnce(&mut Worker<'_>) -> T) -> T {
    let interrupts = Interrupts::default();
    act(&mut worker(plan, &interrupts, &mut |_| {}))
}

fn worker<'a>(plan: &'a Plan, interrupts: &'a Interrupts, rows: &'a mut dyn FnMut(Row)) -> Worker<'a> {
    let share = crate::load::share(plan, 0, 1);
    let mut worker = Worker::new(plan, share, Polling::new().unwrap(), Clock::start(), interrupts, rows);
    worker.wanted = worker.connections.len();
    worker
}

fn listener() -> (TcpListener, Plan) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let plan = plan(listener.local_addr().unwrap());
    (listener, plan)
}

/// Of a worker that connects to nobody.
fn lonely() -> Plan {
    plan(([127, 0, 0, 1], 9).into())
}

impl Worker<'_> {
    /// A socket that has been connecting since `since`.
    fn begin(&mut self, slot: usize, since: u64) {
        let mut stream = TcpStream::connect(self.plan.addresses[self.address]).unwrap();
        self.poll
            .registry()
            .register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)
            .unwrap();
        self.connections[slot].start(stream, Ledger::new(NUMBER, 1), &self.protocol, since);
        self.connections[slot].address = self.address;
        self.connecting += 1;
        self.live += 1;
    }

    /// A connection that the system has let in, and the peer's end of it.
    fn begin_with(&mut self, slot: usize, listener: &TcpListener) -> std::net::TcpStream {
        self.begin(slot, 0);
        listener.accept().unwrap().0
    }

    /// A connection that the system has let in, and that nobody accepts: there is no room for another one.
    fn begin_queued(&mut self, slot: usize, listener: &Socket) {
        self.begin(slot, 0);
        poll(&mut [PollFd::new(listener, PollFlags::IN)], None).unwrap();
    }

    fn phase(&self, slot: usize) -> Phase {
        self.connections[slot].phase
    }

    /// Waits until something lies in the socket.
    fn wait_for_bytes(&self, slot: usize) {
        let stream = self.connections[slot].stream().unwrap();
        while stream.peek(&mut [0]).is_err() {
            std::thread::yield_now();
        }
    }

    /// An open loop in which a request was due at the start, and no other one becomes due.
    fn with_backlog(&mut self) {
        self.offering = false;
        let Pace::Open(open) = &mut self.pace else { panic!("it is a closed loop") };
        open.backlog.push_back(Due { at: 0, seen: 0 });
        self.tally.offered(0, 1);
    }
}

/// An open connection in a place.
fn opened(worker: &mut Worker<'_>, slot: usize, listener: &TcpListener) -> std::net::TcpStream {
    let peer = worker.begin_with(slot, listener);
    worker.connecting -= 1;
    worker.open += 1;
    worker.connections[slot].opened(0);
    peer
}

fn open_loop(plan: Plan) -> Plan {
    Plan { rate: Some(Curve::constant(1.0)), ..plan }
}

#[test]
fn numbers_of_requests_are_every_so_manyth() {
    with_worker(&lonely(), |worker| {
        (worker.threads, worker.next_number) = (3, 1);
        assert_eq!([2, 1, 1].map(|count| worker.take_numbers(count)), [1, 7, 10]);
    });
}

#[test]
fn it_sleeps_until_it_has_something_to_do() {
    with_worker(&lonely(), |worker| {
        worker.next_housekeeping = SECOND;
        for (now, is_soon) in [(0, false), (SECOND - SPIN_NANOS - 1, false), (SECOND - SPIN_NANOS, true)] {
            let expected = is_soon.then_some(Duration::ZERO);
            assert_eq!((worker.sleep(now).unwrap(), worker.turn_began), (expected, SECOND), "{now}");
        }
        worker.unread.push(0);
        assert_eq!((worker.sleep(5).unwrap(), worker.turn_began), (Some(Duration::ZERO), 5));
    });
}

#[test]
fn turn_that_took_long_puts_off_the_look_for_silence() {
    with_worker(&lonely(), |worker| {
        worker.timeout = 400;
        for (now, next) in [(1100, 1000), (1101, 1301), (1102, 1302), (900, 1302)] {
            worker.allow_for_absence(1000, now);
            assert_eq!(worker.next_expiry.max(1000), next, "{now}");
        }
    });
}

#[test]
fn requests_that_wait_for_a_connection_are_still_to_be_sent() {
    with_worker(&open_loop(lonely()), |worker| {
        assert!(!worker.has_requests_to_send());
        worker.assigned = 1;
        assert!(worker.has_requests_to_send());
        worker.assigned = 0;
        worker.with_backlog();
        assert!(worker.has_requests_to_send());
    });
}

#[test]
fn interrupt_leaves_time_for_replies_and_a_second_one_none() {
    let plan = lonely();
    for (slowest, patience) in [(0, SECOND), (3 * SECOND, 6 * SECOND), (15 * SECOND, 20 * SECOND)] {
        let interrupts = Interrupts::default();
        let mut rows = |_| {};
        let mut worker = worker(&plan, &interrupts, &mut rows);
        worker.tally.slowest = slowest;
        for (now, settle_by, twice) in
            [(5 * SECOND, 5 * SECOND + patience, false), (6 * SECOND, 6 * SECOND, true)]
        {
            interrupts.came.store(true, std::sync::atomic::Ordering::Relaxed);
            // A later look sees nothing new.
            for now in [now, now + 1] {
                worker.housekeeping(now);
                assert_eq!(worker.settle_by, settle_by, "{slowest}");
                let ended = worker.ended_early.as_ref();
                assert_eq!(matches!(ended, Some(EndedEarly::InterruptedTwice)), twice, "{ended:?}");
                assert!(!worker.offering && ended.is_some());
            }
        }
    }
}

#[test]
fn silence_is_looked_for_a_few_times_in_a_timeout() {
    for (timeout, next) in [(0.1, 10), (1.0, 50), (20.0, 100)] {
        with_worker(&Plan { timeout: Duration::from_secs_f64(timeout), ..lonely() }, |worker| {
            worker.housekeeping(SECOND);
            assert_eq!(worker.next_expiry, SECOND + next * SECOND / 1000, "{timeout} s");
        });
    }
}

#[test]
fn what_waits_to_be_opened_is_given_up_when_nothing_more_may_be_sent() {
    for (offering, now, given_up) in [(true, 9, false), (false, 8, false), (false, 9, true)] {
        with_worker(&lonely(), |worker| {
            (worker.offering, worker.send_by) = (offering, 9);
            worker.to_open.push_back(0);
            worker.to_retry.push_back((10, 1));
            worker.housekeeping(now);
            let (open, retry) = (worker.to_open.is_empty(), worker.to_retry.is_empty());
            assert_eq!((open, retry), (given_up, given_up), "{offering} {now}");
        });
    }
}

#[test]
fn expected_stop_has_come_when_all_that_were_open_are_gone() {
    for opened in [0, 1] {
        with_worker(&Plan { expect_stop: true, ..lonely() }, |worker| {
            worker.tally.connections.opened = opened;
            worker.housekeeping(SECOND);
            assert_eq!(worker.offering, opened == 0);
        });
    }
}

#[test]
fn absence_is_what_a_look_is_late_by_and_not_computed() {
    with_worker(&lonely(), |worker| {
        // The first look is never late.
        worker.look_for_absence(1000 * SECOND);
        assert_eq!(worker.absence.longest, 0);
        worker.next_housekeeping = SECOND;
        worker.look_for_absence(SECOND);
        assert_eq!(worker.absence.longest, 0);
        worker.look_for_absence(1000 * SECOND);
        let absent = worker.absence.longest;
        assert!((900 * SECOND..=999 * SECOND).contains(&absent), "{absent}");
    });
}

#[test]
fn shape_says_how_many_connections_there_are() {
    let curve: Curve = "ramp:0..4@4s".parse().unwrap();
    let warm_up = Duration::from_secs(1);
    with_worker(&Plan { connection_curve: Some(curve), warm_up, ..lonely() }, |worker| {
        worker.wanted = 0;
        for (seconds, wanted) in [(0, 0), (1, 0), (2, 1), (3, 2)] {
            worker.follow_shape(seconds * SECOND);
            assert_eq!((worker.wanted, worker.to_open.len()), (wanted, wanted), "{seconds}");
        }
    });
}

/// An address that lets one in: nobody accepts it, and there is room for one to wait for that.
fn full() -> (Socket, Plan) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, Plan { connections: 4, duration: Some(Duration::from_millis(300)), ..plan(address) })
}

#[test]
fn connections_that_are_not_let_in_are_counted_once_with_those_that_wait_behind_them() {
    let (socket, plan) = full();
    with_worker(&plan, |worker| {
        worker.wanted = 3;
        worker.begin_queued(0, &socket);
        worker.begin(1, 0);
        worker.to_open.extend([2, 3]);
        for _ in 0..2 {
            worker.count_not_let_in(SECOND);
            assert_eq!((worker.phase(0), worker.phase(1)), (Phase::Open, Phase::Connecting));
            assert_eq!(worker.tally.connections.not_let_in, 2);
            let flags = worker.connections.iter().map(|connection| connection.is_not_let_in);
            assert_eq!(flags.collect::<Vec<_>>(), [false, true, true, false]);
        }
        // The first of them is let in after all.
        worker.opened(1, SECOND);
        assert_eq!((worker.tally.connections.not_let_in, worker.tally.connections.opened), (1, 2));
    });
}

#[test]
fn connection_that_waits_to_be_greeted_was_let_in() {
    let (socket, plan) = full();
    let protocol = Protocol::custom("x", "y", None, Some("hi")).unwrap();
    with_worker(&Plan { protocol, ..plan }, |worker| {
        worker.begin_queued(0, &socket);
        worker.count_not_let_in(SECOND);
        assert_eq!((worker.phase(0), worker.tally.connections.not_let_in), (Phase::Connecting, 0));
        worker.begin(1, 0);
        worker.count_not_let_in(SECOND);
        assert_eq!((worker.phase(1), worker.tally.connections.not_let_in), (Phase::Connecting, 1));
        assert!(!worker.connections[0].is_not_let_in && worker.connections[1].is_not_let_in);
    });
}

#[test]
fn connection_that_was_begun_late_is_not_held_against_the_server() {
    // Of a short run it is half, and 200 ms of a long one.
    for (deadline, since, count) in [(300, 149, 1), (300, 150, 0), (1000, 799, 1), (1000, 800, 0)] {
        for (reconnect, expect_stop) in [(false, false), (true, false), (false, true)] {
            let (socket, plan) = full();
            with_worker(&Plan { reconnect, expect_stop, ..plan }, |worker| {
                let ms = SECOND / 1000;
                worker.deadline = deadline * ms;
                worker.begin_queued(0, &socket);
                worker.begin(1, since * ms);
                worker.count_not_let_in(worker.deadline);
                let expected = if reconnect || expect_stop { 0 } else { count };
                assert_eq!(worker.tally.connections.not_let_in, expected, "{deadline} {since} {reconnect}");
            });
        }
    }
}

#[test]
fn what_has_come_when_time_is_up_still_counts_and_the_rest_is_lost() {
    let (listener, plan) = listener();
    with_worker(&Plan { requests: Some(2), pipeline: 1, ..plan }, |worker| {
        let mut peers = [0, 1].map(|slot| {
            let peer = worker.begin_with(slot, &listener);
            worker.look_whether_connected(slot);
            peer
        });
        peers[0].write_all(b"y0\n").unwrap();
        worker.wait_for_bytes(0);
        worker.offering = false;
        worker.settle_by = SECOND;
        worker.wind_up(SECOND - 1);
        assert_eq!((worker.phase(0), worker.phase(1)), (Phase::Open, Phase::Open));
        worker.wind_up(SECOND);
        let total = worker.tally.total();
        assert_eq!((total.sent, total.right, total.lost), (2, 1, 1), "{total:?}");
        assert_eq!((worker.phase(1), worker.open, worker.live), (Phase::Idle, 0, 0));
    });
}

#[test]
fn request_that_waits_for_its_connection_is_unsent_once_it_is_too_late() {
    let (_socket, plan) = full();
    with_worker(&Plan { reconnect: true, ..plan }, |worker| {
        worker.begin(0, 0);
        worker.connections[0].assigned = Some(0);
        worker.tally.offered(0, 1);
        (worker.assigned, worker.send_by, worker.offering) = (1, SECOND, false);
        worker.wind_up(SECOND - 1);
        assert_eq!((worker.phase(0), worker.assigned), (Phase::Connecting, 1));
        worker.wind_up(SECOND);
        assert_eq!((worker.phase(0), worker.assigned, worker.connecting), (Phase::Idle, 0, 0));
        assert_eq!(worker.tally.total().unsent, 1);
    });
}

#[test]
fn socket_that_is_connected_for_a_request_that_waits_is_kept() {
    let (_socket, plan) = full();
    with_worker(&open_loop(plan), |worker| {
        worker.send_by = SECOND;
        worker.with_backlog();
        worker.begin(0, 0);
        worker.wind_up(0);
        assert_eq!((worker.phase(0), worker.connecting), (Phase::Connecting, 1));
        worker.wind_up(SECOND);
        assert_eq!((worker.phase(0), worker.connecting, worker.live), (Phase::Idle, 0, 0));
        assert_eq!(worker.tally.total().unsent, 1);
        // While requests are offered nothing is wound up for want of one that waits.
        worker.offering = true;
        worker.begin(0, 0);
        worker.opened(0, 0);
        worker.begin(1, 0);
        for had_backlog in [false, true] {
            if had_backlog {
                worker.with_backlog();
            }
            worker.offering = true;
            worker.dispatch(0).unwrap();
            assert_eq!(
                (worker.phase(1), worker.tally.total().sent),
                (Phase::Connecting, u64::from(had_backlog))
            );
        }
    });
}

#[test]
fn row_is_told_when_it_is_over_and_the_last_one_if_there_is_something_in_it() {
    let tell = |plan: &Plan, now: u64, [offered, sent, right, errors]: [u64; 4]| {
        let (mut told, interrupts) = (Vec::new(), Interrupts::default());
        let mut keep = |row: Row| told.push(row);
        let mut worker = worker(plan, &interrupts, &mut keep);
        let recent = &mut worker.tally.recent;
        (recent.offered, recent.sent, recent.right, recent.errors) = (offered, sent, right, errors);
        // It has used more of a core than any row holds.
        worker.row_usage.cpu_seconds = -1e6;
        worker.right_while_busy = 5;
        worker.flush_row(now);
        let busy = worker.right_while_busy - 5;
        let rows =
            told.iter().map(|Row { point, .. }| [point.offered, point.sent, point.right, point.errors]);
        (rows.collect::<Vec<_>>(), busy)
    };
    let plan = lonely();
    let each = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]];
    assert_eq!(tell(&plan, u64::MAX, [0; 4]), (vec![], 0));
    for counts in each {
        assert_eq!(tell(&plan, u64::MAX, counts), (vec![counts], counts[2]));
        assert_eq!(tell(&plan, ROW_NANOS - 1, counts), (vec![], 0));
    }
    assert_eq!(tell(&plan, ROW_NANOS, [0; 4]), (vec![[0; 4]], 0));
    let warm_up = Duration::from_secs(3600);
    assert_eq!(tell(&Plan { warm_up, ..lonely() }, u64::MAX, [1; 4]), (vec![], 0));
}

#[test]
fn server_is_gone_when_all_have_failed_and_nobody_was_answered_for_as_long_as_a_reply_may_take() {
    let plan = lonely();
    with_worker(&plan, |worker| {
        for failures in 1..=3 {
            assert!(worker.ended_early.is_none());
            worker.failed(0, SECOND);
            assert_eq!((worker.failures, worker.to_retry.len()), (failures, failures));
        }
        assert!(matches!(worker.ended_early, Some(EndedEarly::Gone)));
    });
    with_worker(&plan, |worker| {
        (worker.tally.connections.opened, worker.tally.last_reply) = (1, SECOND);
        let over = SECOND + worker.timeout;
        for _ in 0..5 {
            worker.failed(0, over + 1);
        }
        worker.failed(0, over);
        assert!(worker.ended_early.is_none());
        worker.failed(0, over + 1);
        assert!(matches!(worker.ended_early, Some(EndedEarly::Gone)));
    });
}

#[test]
fn connections_are_opened_when_they_may_and_only_those_that_are_of_use() {
    let (_listener, plan) = listener();
    let opened = |plan: &Plan, prepare: &dyn Fn(&mut Worker<'_>)| {
        with_worker(plan, |worker| {
            worker.wanted = 2;
            prepare(worker);
            worker.open_connections(6).unwrap();
            (0..3).filter(|&slot| worker.phase(slot) == Phase::Connecting).collect::<Vec<_>>()
        })
    };
    let all = |worker: &mut Worker<'_>| worker.to_open.extend(0..3);
    assert_eq!(opened(&plan, &all), [0, 1]);
    assert_eq!(opened(&plan, &|worker| worker.to_retry.extend([(5, 0), (7, 1)])), [0]);
    let crowd = |worker: &mut Worker<'_>| {
        all(worker);
        worker.connecting = MOST_CONNECTING - 1;
    };
    assert_eq!(opened(&plan, &crowd), [0]);
    // Nothing is offered any more: what waits is sent all the same.
    let late = |worker: &mut Worker<'_>| {
        all(worker);
        worker.offering = false;
    };
    assert!(opened(&plan, &late).is_empty());
    let backlog = |worker: &mut Worker<'_>| {
        all(worker);
        worker.with_backlog();
    };
    let open = open_loop(plan.clone());
    assert_eq!(opened(&open, &backlog), [0, 1]);
    assert!(opened(&open, &late).is_empty());
    let assigned = |worker: &mut Worker<'_>| {
        late(worker);
        worker.connections[1].assigned = Some(3);
    };
    assert_eq!(opened(&Plan { reconnect: true, ..plan.clone() }, &assigned), [1]);
    with_worker(&Plan { reconnect: true, ..open }, |worker| {
        worker.wanted = 2;
        all(worker);
        worker.open_connections(6).unwrap();
        let Pace::Open(open) = &worker.pace else { panic!("it is a closed loop") };
        assert_eq!(open.ready, [0, 1]);
    });
}

#[test]
fn first_address_that_lets_one_in_stays_and_what_waited_is_sent() {
    let (listener, plan) = listener();
    let here = plan.addresses[0];
    let plan = Plan { addresses: vec![([127, 0, 0, 1], 9).into(), here], reconnect: true, ..plan };
    with_worker(&plan, |worker| {
        worker.address = 1;
        let mut peer = worker.begin_with(0, &listener);
        worker.address = 0;
        worker.connections[0].assigned = Some(0);
        worker.assigned = 1;
        worker.tally.offered(0, 1);
        worker.opened(0, 1);
        assert_eq!((worker.phase(0), worker.address, worker.assigned), (Phase::Open, 1, 0));
        assert_eq!((worker.connecting, worker.open, worker.live), (0, 1, 1));
        let mut request = [0; 3];
        peer.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"x0\n");
    });
}

#[test]
fn connection_opens_when_all_of_the_greeting_has_come() {
    let (listener, plan) = listener();
    let protocol = Protocol::custom("x{n}", "y{n}", None, Some(r"hi\nthere")).unwrap();
    with_worker(&Plan { protocol, ..plan }, |worker| {
        let mut peer = worker.begin_with(0, &listener);
        for (part, phase) in [(&b"hi\n"[..], Phase::Connecting), (b"there\n", Phase::Open)] {
            peer.write_all(part).unwrap();
            worker.wait_for_bytes(0);
            worker.read(0);
            assert_eq!((worker.phase(0), worker.tally.errors), (phase, 0));
        }
    });
}

#[test]
fn end_of_a_connection_is_counted_as_what_it_is() {
    /// Whether a stop is expected, the phase, the end; then what is counted.
    type Case = (bool, Phase, fn() -> Ending, [u64; 4]);
    let (listener, plan) = listener();
    let dropped = || Ending::Dropped;
    let reset = || Ending::Failed(ErrorKind::ConnectionReset.into());
    let eof = || Ending::Eof;
    let cases: [Case; 7] = [
        (true, Phase::Open, dropped, [1, 0, 0, 0]),
        (false, Phase::Open, dropped, [0, 0, 0, 0]),
        (true, Phase::Closing, dropped, [0, 0, 0, 0]),
        (true, Phase::Open, eof, [0, 1, 0, 0]),
        (true, Phase::Open, reset, [0, 0, 1, 0]),
        (false, Phase::Open, reset, [0, 0, 1, 0]),
        (false, Phase::Open, eof, [0, 0, 0, 1]),
    ];
    for (expect_stop, phase, ending, expected) in cases {
        with_worker(&Plan { expect_stop, ..plan.clone() }, |worker| {
            let _peer = opened(worker, 0, &listener);
            if phase == Phase::Closing {
                worker.connections[0].finish(1);
                worker.open -= 1;
            }
            let case = format!("{expect_stop} {phase:?} {:?}", ending());
            worker.end(0, ending());
            let counts = worker.tally.connections;
            let got = [counts.not_stopped, counts.stopped, counts.reset, counts.closed_early];
            assert_eq!(got, expected, "{case}");
            assert_eq!((worker.live, worker.open, worker.connecting), (0, 0, 0), "{case}");
            for (kind, index) in [(Kind::Reset, 2), (Kind::ClosedEarly, 3)] {
                let first = worker.tally.examples.get(&kind);
                assert_eq!(first.is_some(), expected[index] > 0, "{case}");
                let is_told = |example: &crate::load::ledger::Example| {
                    example.connection == NUMBER && !example.got.is_empty()
                };
                assert!(first.is_none_or(|first| is_told(&first.example)), "{case}: {first:?}");
            }
        });
    }
}

#[test]
fn stop_inside_a_reply_is_no_stop() {
    let (listener, plan) = listener();
    with_worker(&Plan { expect_stop: true, connections: 1, ..plan }, |worker| {
        let mut peer = worker.begin_with(0, &listener);
        worker.opened(0, 1);
        peer.write_all(b"y").unwrap();
        worker.wait_for_bytes(0);
        worker.read(0);
        worker.end(0, Ending::Eof);
        let counts = worker.tally.connections;
        assert_eq!((counts.stopped, counts.closed_early), (0, 1), "{counts:?}");
        assert_eq!(worker.tally.total().wrong, 1);
    });
}

#[test]
fn refusal_is_told_with_its_connection_and_its_cause() {
    with_worker(&lonely(), |worker| {
        worker.connections[1].ledger = Ledger::new(NUMBER, 1);
        worker.not_connected(1, &ErrorKind::ConnectionRefused.into(), 1);
        let example = &worker.tally.examples[&Kind::Refused].example;
        assert_eq!((example.connection, worker.tally.connections.refused), (NUMBER, 1));
        assert!(example.got.contains("refused"), "{example:?}");
    });
}

#[test]
fn connection_is_closed_when_it_has_nothing_to_wait_for() {
    let (listener, plan) = listener();
    // Whether it is surplus, whether requests are offered, whether one is outstanding, whether a stop is expected; then whether
    // it is closed, and counted as one that the server did not stop with.
    for (surplus, offering, outstanding, expect_stop, closed, not_stopped) in [
        (false, true, false, false, false, 0),
        (false, true, false, true, false, 0),
        (false, false, false, false, true, 0),
        (false, false, false, true, true, 1),
        (true, true, false, true, true, 0),
        (true, false, false, false, true, 0),
        (true, false, true, false, false, 0),
        (false, false, true, true, false, 0),
    ] {
        let case = (surplus, offering, outstanding, expect_stop);
        with_worker(&Plan { expect_stop, ..plan.clone() }, |worker| {
            let _peer = opened(worker, 1, &listener);
            if outstanding {
                worker.go_on(1, 0);
            }
            worker.offering = offering;
            worker.wanted = if surplus { 1 } else { 2 };
            // A place without a socket is left alone.
            for slot in 0..3 {
                worker.close_if_settled(slot, 1);
            }
            assert_eq!(worker.phase(1) == Phase::Closing, closed, "{case:?}");
            assert_eq!((worker.phase(0), worker.phase(2)), (Phase::Idle, Phase::Idle), "{case:?}");
            assert_eq!(worker.open, usize::from(!closed), "{case:?}");
            assert_eq!(worker.tally.connections.not_stopped, not_stopped, "{case:?}");
        });
    }
}

#[test]
fn connection_without_more_to_do_is_closed_at_once() {
    let (listener, plan) = listener();
    with_worker(&Plan { requests: Some(0), ..plan.clone() }, |worker| {
        let _peer = opened(worker, 0, &listener);
        worker.go_on(0, 1);
        assert_eq!(worker.phase(0), Phase::Closing);
    });
    with_worker(&open_loop(plan), |worker| {
        worker.offering = false;
        let _peer = opened(worker, 0, &listener);
        worker.go_on(0, 1);
        assert_eq!(worker.phase(0), Phase::Closing);
    });
}

#[test]
fn due_requests_are_handed_to_connections_with_room_which_may_take_more_while_they_have_some() {
    let (listener, plan) = listener();
    for (pipeline, has_room) in [(1, false), (2, true)] {
        with_worker(&open_loop(Plan { pipeline, ..plan.clone() }), |worker| {
            worker.wanted = 1;
            let peers = [0, 1, 2].map(|slot| opened(worker, slot, &listener));
            for slot in [1, 0] {
                worker.offer(slot, 0);
            }
            worker.with_backlog();
            worker.dispatch(1).unwrap();
            // The first is surplus. What had room but no request is closed at once after the last request was sent.
            assert_eq!((worker.phase(2), worker.phase(1)), (Phase::Closing, Phase::Closing));
            assert_eq!((worker.phase(0), worker.connections[0].queued), (Phase::Open, has_room));
            assert_eq!((worker.tally.total().sent, worker.open), (1, 1));
            // With one outstanding it has room again when that is answered.
            worker.offering = true;
            worker.go_on(0, 2);
            assert_eq!(worker.connections[0].queued, has_room);
            drop(peers);
        });
    }
}

#[test]
fn connection_is_opened_for_a_request_in_a_place_that_is_wanted() {
    let (_listener, plan) = listener();
    with_worker(&open_loop(Plan { reconnect: true, ..plan }), |worker| {
        worker.wanted = 1;
        for slot in [1, 0] {
            worker.offer(slot, 0);
        }
        worker.with_backlog();
        worker.dispatch(1).unwrap();
        assert_eq!((worker.phase(0), worker.phase(1)), (Phase::Connecting, Phase::Idle));
        assert_eq!((worker.assigned, worker.connections[0].assigned), (1, Some(0)));
    });
}

#[test]
fn bytes_that_the_socket_did_not_take_are_sent_when_it_does() {
    let (listener, plan) = listener();
    let request = format!("x{{n}}{}", "z".repeat(16 << 20));
    let protocol = Protocol::custom(&request, "y{n}", None, None).unwrap();
    with_worker(&Plan { protocol, pipeline: 1, ..plan }, |worker| {
        let peer = opened(worker, 0, &listener);
        worker.go_on(0, 1);
        assert!(worker.connections[0].has_unsent());
        let reader = std::thread::spawn(move || {
            let mut line = Vec::new();
            BufReader::new(peer).read_until(b'\n', &mut line).unwrap();
            line.len()
        });
        let mut events = Events::with_capacity(4);
        while worker.connections[0].has_unsent() {
            worker.poll.poll(&mut events, Some(Duration::from_secs(30))).unwrap();
            assert!(!events.is_empty(), "the socket has no room");
            worker.flush(0);
        }
        assert_eq!(reader.join().unwrap(), request.len() - "{n}".len() + "0\n".len());
        assert_eq!((worker.phase(0), worker.tally.total().sent), (Phase::Open, 1));
    });
}

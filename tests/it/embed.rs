//! The library in other people's programs: handlers, handles, and several servers in one process.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use tidemill::{
    Builder, Config, Error, Handler, Helo, Kind, PoolLimits, Reply, Request, Server, ServerHandle,
};

use crate::support::peer::Peer;
use crate::support::server::{DEADLINE, until};

fn server(handler: impl Handler) -> Builder {
    Server::builder(handler).listen("127.0.0.1:0".parse().unwrap())
}

fn echo(request: &Request<'_>, reply: &mut Reply<'_>) {
    reply.push(request.line());
    reply.push(b"\n");
}

/// Holds handlers back until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn pass(&self) {
        let mut open = self.0.0.lock().unwrap();
        while !*open {
            open = self.0.1.wait(open).unwrap();
        }
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

#[test]
fn a_closure_is_a_handler_and_knows_both_addresses() {
    let server = server(|request: &Request<'_>, reply: &mut Reply<'_>| {
        use std::io::Write;
        writeln!(reply, "{} {}", request.local_addr(), request.peer_addr()).unwrap();
    })
    .start()
    .unwrap();
    let mut peer = Peer::connect(server.local_addr());
    let expected = format!("{} {}\n", server.local_addr(), peer.stream.local_addr().unwrap());
    peer.send(b"who?\n");
    peer.expect(expected.as_bytes());
    drop(peer);
    server.handle().stop();
    assert!(server.wait().unwrap().is_clean());
}

#[test]
fn a_panic_costs_one_connection_and_neither_earlier_replies_nor_the_worker() {
    let server = server(|request: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(b"half of ");
        assert!(request.line() != b"panic", "on purpose");
        echo(request, reply);
    })
    .threads(1, 1)
    .start()
    .unwrap();
    let mut bystander = Peer::connect(server.local_addr());
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nb\npanic\nc\nd\n");
    peer.expect_last(b"half of a\nhalf of b\nERROR internal error\n");
    bystander.send(b"x\n");
    bystander.expect(b"half of x\n");
    drop((peer, bystander));
    server.handle().stop();
    let stats = server.wait().unwrap().stats;
    assert_eq!((stats.handler_panics_total, stats.connections_closed_total.panic), (1, 1));
    assert_eq!((stats.replies_total, stats.requests_dropped_total), (3, 3));
    assert_eq!(stats.requests_pending, 0);
}

#[test]
fn a_panic_in_classify_costs_one_connection() {
    struct Picky;
    impl Handler for Picky {
        fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
            echo(request, reply);
        }
        fn classify(&self, line: &[u8]) -> Kind {
            assert!(line != b"panic", "on purpose");
            Kind::Request
        }
    }
    let server = server(Picky).start().unwrap();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\npanic\nb\n");
    peer.expect_last(b"a\nERROR internal error\n");
    let mut other = Peer::connect(server.local_addr());
    other.send(b"x\n");
    other.expect(b"x\n");
}

#[test]
fn a_handler_may_close_its_connection_behind_the_reply() {
    let server = server(|request: &Request<'_>, reply: &mut Reply<'_>| {
        echo(request, reply);
        if request.line() == b"quit" {
            reply.close();
        }
    })
    .start()
    .unwrap();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nquit\nb\n");
    peer.expect_last(b"a\nquit\n");
    drop(peer);
    let handle = server.handle();
    until(|| handle.stats().connections_closed_total.handler == 1);
    let stats = handle.stats();
    assert_eq!((stats.replies_total, stats.requests_dropped_total), (2, 1));
}

#[test]
fn a_handler_that_writes_nothing_has_no_reply() {
    let server = server(|request: &Request<'_>, reply: &mut Reply<'_>| {
        if !request.line().is_empty() {
            echo(request, reply);
        }
    })
    .start()
    .unwrap();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"\n\na\n\n");
    peer.finish();
    peer.expect_last(b"a\n");
    drop(peer);
    server.handle().stop();
    let stats = server.wait().unwrap().stats;
    assert_eq!((stats.replies_total, stats.requests_silent_total), (1, 3));
}

#[test]
fn a_handler_may_stop_its_server_but_not_wait_for_it() {
    let (set, get) = mpsc::channel::<ServerHandle>();
    let get = Mutex::new(get);
    let server = server(move |_: &Request<'_>, reply: &mut Reply<'_>| {
        let handle = get.lock().unwrap().recv().unwrap();
        handle.stop();
        assert!(matches!(handle.wait(), Err(Error::WaitInHandler)));
        reply.push(b"stopping\n");
    })
    .start()
    .unwrap();
    set.send(server.handle()).unwrap();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"stop\n");
    peer.expect_last(b"stopping\n");
    drop(peer);
    assert!(server.wait().unwrap().is_clean());
}

#[test]
fn dropping_the_server_stops_it_and_answers_what_had_arrived() {
    let gate = Gate::default();
    let server = server({
        let gate = gate.clone();
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            gate.pass();
            echo(request, reply);
        }
    })
    .start()
    .unwrap();
    let handle = server.handle();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\n");
    until(|| handle.stats().pool_busy == 1);
    let dropper = std::thread::spawn(move || drop(server));
    until(|| handle.is_stopping());
    gate.open();
    peer.expect_last(b"a\n");
    drop(peer);
    dropper.join().unwrap();
    assert!(handle.wait().unwrap().is_clean());
    assert!(std::net::TcpStream::connect_timeout(&handle.local_addr(), DEADLINE).is_err());
}

#[test]
fn a_worker_that_never_returns_is_left_behind_at_the_deadline() {
    let gate = Gate::default();
    let server = server({
        let gate = gate.clone();
        move |_: &Request<'_>, _: &mut Reply<'_>| gate.pass()
    })
    .drain_timeout(Duration::from_millis(50))
    .start()
    .unwrap();
    let handle = server.handle();
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nb\n");
    until(|| handle.stats().pool_busy == 1);
    handle.stop();
    let outcome = server.wait().unwrap();
    assert_eq!((outcome.dropped_requests, outcome.dropped_replies, outcome.busy_workers), (2, 0, 1));
    assert_eq!((outcome.stats.requests_dropped_total, outcome.stats.requests_pending), (2, 0));
    gate.open();
}

#[test]
fn several_servers_run_in_one_process_and_know_nothing_of_each_other() {
    let servers: Vec<Server> = (0..3)
        .map(|id| server(Helo::new().student_id(&id.to_string())).threads(1, 2).start().unwrap())
        .collect();
    for (id, server) in servers.iter().enumerate() {
        let mut peer = Peer::connect(server.local_addr());
        peer.send(b"HELO x\n");
        let port = server.local_addr().port();
        peer.expect(format!("HELO x\nIP:127.0.0.1\nPort:{port}\nStudentID:{id}\n").as_bytes());
    }
    servers[0].handle().stop();
    assert!(servers[0].handle().wait().unwrap().is_clean());
    Peer::connect(servers[1].local_addr()).send(b"HELO y\n");
    assert_eq!(servers[0].handle().stats().requests_total.helo, 1);
}

#[test]
fn one_server_may_listen_on_several_addresses() {
    let server = server(echo).listen("127.0.0.2:0".parse().unwrap()).start().unwrap();
    let handle = server.handle();
    assert_eq!(handle.local_addrs().len(), 2);
    for address in handle.local_addrs() {
        let mut peer = Peer::connect(*address);
        peer.send(b"x\n");
        peer.expect(b"x\n");
    }
}

#[test]
fn a_setting_out_of_range_starts_nothing() {
    let config = Config { min_threads: 3, max_threads: 2, ..Config::default() };
    let error = Server::builder(echo).config(config).start().unwrap_err();
    assert!(matches!(error, Error::Setting { name: "min_threads", .. }), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = Server::builder(echo).listen(taken.local_addr().unwrap()).start().unwrap_err();
    assert!(matches!(error, Error::Bind { .. }), "{error}");
}

#[test]
fn limits_can_be_changed_while_it_runs_and_lose_nothing() {
    let gate = Gate::default();
    let running = Arc::new(AtomicUsize::new(0));
    let server = server({
        let (gate, running) = (gate.clone(), Arc::clone(&running));
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            running.fetch_add(1, SeqCst);
            gate.pass();
            echo(request, reply);
        }
    })
    .threads(2, 2)
    .tolerance(0)
    .start()
    .unwrap();
    let handle = server.handle();
    let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        peer.send(b"x\n");
    }
    until(|| running.load(SeqCst) == 2);
    let limits = PoolLimits { max_threads: 6, ..handle.pool_limits() };
    handle.set_pool_limits(limits).unwrap();
    until(|| running.load(SeqCst) == 6);
    assert_eq!(handle.stats().pool_threads, 6);
    // Below what is running: they leave as they finish.
    let limits = PoolLimits { min_threads: 1, max_threads: 1, ..limits };
    handle.set_pool_limits(limits).unwrap();
    assert_eq!(handle.pool_limits(), limits);
    gate.open();
    for peer in &mut peers {
        peer.expect(b"x\n");
    }
    until(|| handle.stats().pool_threads == 1);
    let refused = handle.set_pool_limits(PoolLimits { min_threads: 0, ..limits });
    assert!(matches!(refused, Err(Error::Setting { name: "min_threads", .. })));
    assert_eq!(handle.pool_limits(), limits);
}

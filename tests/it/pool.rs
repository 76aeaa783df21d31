//! The pool as its user sees it: it grows, shrinks, keeps its limits, and strands nobody.

use std::collections::HashMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tidemill::{Decision, Reply, Request, Server};

use rustix::process::Signal;

use crate::support::{
    Ended, Gate, Peer, Serving, SetAtEnd, assert_adds_up, configure, echo, eventually, in_parallel, serve,
};

/// A server whose handler waits for `gate` with each line, with these limits.
fn held_by(gate: &Gate, min: usize, max: usize, tolerance: usize) -> Server {
    configure(gate.holds_all(), |config| {
        (config.min_threads, config.max_threads, config.tolerance) = (min, max, tolerance);
        config.keep_alive = Duration::from_millis(100);
    })
}

fn send_from_each(server: &Server, count: usize) -> Vec<Peer> {
    let mut peers: Vec<Peer> = (0..count).map(|_| Peer::connect(server.local_addr())).collect();
    for peer in &mut peers {
        peer.send(b"x\n");
    }
    peers
}

#[test]
fn it_grows_for_requests_that_block_and_shrinks_when_they_are_gone_without_further_traffic() {
    let gate = Gate::closed();
    let server = held_by(&gate, 2, 20, 2);
    let handle = server.handle();
    assert_eq!(handle.stats().pool_threads, 2);
    let mut peers = send_from_each(&server, 16);
    // Nobody says another word from here on.
    eventually("each request has a worker", || handle.stats().pool_busy == 16);
    assert!(handle.stats().pool_threads <= 20);
    gate.open();
    for peer in &mut peers {
        peer.expect(b"x\n");
    }
    eventually("it is back within tolerance of the minimum", || handle.stats().pool_threads <= 4);
    // A resize is counted once it is done.
    eventually("both resizes are counted", || {
        let resizes = handle.stats().pool_resizes_total;
        resizes.grow >= 1 && resizes.shrink >= 1
    });
    let stats = handle.stats();
    assert!(stats.pool_threads >= 2);
    let decisions = handle.decisions();
    assert!(decisions.len() as u64 >= stats.pool_resizes_total.grow + stats.pool_resizes_total.shrink);
    assert!(decisions.iter().all(|decision| (2..=20).contains(&decision.to)), "{decisions:?}");
}

#[test]
fn the_decisions_played_again_give_the_sizes_that_the_pool_had() {
    let gate = Gate::closed();
    let server = held_by(&gate, 2, 20, 2);
    let handle = server.handle();
    let mut peers = send_from_each(&server, 16);
    eventually("each request has a worker", || handle.stats().pool_busy == 16);
    let sixteen = handle.stats().pool_threads;
    gate.open();
    peers.iter_mut().for_each(|peer| peer.expect(b"x\n"));
    eventually("it is back within tolerance of the minimum", || handle.stats().pool_threads <= 4);
    handle.set_pool_limits(handle.pool_limits().threads(7, 20)).unwrap();
    eventually("it has the new minimum, and has said so", || handle.decisions().last().unwrap().to == 7);
    let mut workers = 2;
    let mut sizes = Vec::new();
    for decision in handle.decisions() {
        assert_eq!(decision.from, workers, "{decision:?}");
        workers = decision.to;
        sizes.push(workers as u64);
    }
    assert_eq!(handle.stats().pool_threads, workers as u64);
    assert!(sizes.contains(&sixteen), "{sixteen} in {sizes:?}");
}

#[test]
fn another_keep_alive_holds_at_once() {
    let gate = Gate::closed();
    let server = configure(gate.holds_all(), |config| {
        (config.min_threads, config.max_threads, config.tolerance) = (2, 20, 2);
        config.keep_alive = Duration::from_secs(3600);
    });
    let handle = server.handle();
    let long = handle.pool_limits();
    let mut peers = send_from_each(&server, 16);
    eventually("each request has a worker", || handle.stats().pool_busy == 16);
    gate.open();
    peers.iter_mut().for_each(|peer| peer.expect(b"x\n"));
    // With the hour that it began with it would stay.
    handle.set_pool_limits(long.keep_alive(Duration::from_millis(50))).unwrap();
    eventually("it comes down, without any traffic", || handle.stats().pool_threads <= 4);
}

#[test]
fn a_handler_may_declare_that_it_blocks() {
    let gate = Arc::new(AtomicBool::new(false));
    // It computes, so that it counts as blocked by what it says alone.
    let handler = {
        let gate = Arc::clone(&gate);
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            request.blocking(|| {
                while !gate.load(SeqCst) {
                    std::hint::spin_loop();
                }
            });
            echo(request, reply);
        }
    };
    let server = configure(handler, |config| {
        (config.min_threads, config.max_threads, config.tolerance) = (1, 8, 0);
    });
    let handle = server.handle();
    let mut peers = send_from_each(&server, 6);
    eventually("each request has a worker", || handle.stats().pool_busy == 6);
    gate.store(true, SeqCst);
    peers.iter_mut().for_each(|peer| peer.expect(b"x\n"));
    let decisions = handle.decisions();
    let believed = |decision: &Decision| decision.blocked.is_some_and(|blocked| blocked > 0);
    assert!(decisions.iter().any(believed), "{decisions:?}");
}

#[test]
fn it_never_grows_above_its_maximum() {
    let running = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let gate = Gate::closed();
    let handler = {
        let (running, pass) = (Arc::clone(&running), gate.entrance());
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            let now = running.0.fetch_add(1, SeqCst) + 1;
            running.1.fetch_max(now, SeqCst);
            pass();
            running.0.fetch_sub(1, SeqCst);
            echo(request, reply);
        }
    };
    let server = configure(handler, |config| {
        (config.min_threads, config.max_threads, config.tolerance) = (1, 6, 0);
    });
    let handle = server.handle();
    let mut peers = send_from_each(&server, 40);
    eventually("all workers are busy", || handle.stats().pool_busy == 6);
    eventually("all requests are there", || handle.stats().requests_pending == 40);
    assert_eq!(handle.stats().pool_threads, 6);
    gate.open();
    for peer in &mut peers {
        peer.expect(b"x\n");
    }
    assert_eq!(running.1.load(SeqCst), 6);
}

#[test]
fn the_tolerance_never_strands_a_request() {
    for (min, max, tolerance) in [(1, 2, 8), (1, 32, 8), (2, 3, 100), (1, 32, 0)] {
        let gate = Gate::closed();
        let server = configure(gate.holds_stuck(), |config| {
            (config.min_threads, config.max_threads, config.tolerance) = (min, max, tolerance);
        });
        let mut stuck: Vec<Peer> = (0..min).map(|_| Peer::connect(server.local_addr())).collect();
        for peer in &mut stuck {
            peer.send(b"stuck\n");
        }
        eventually("they are stuck", || server.handle().stats().pool_busy == min as u64);
        // One that comes now, inside the tolerance, and nothing after it.
        let mut other = Peer::connect(server.local_addr());
        other.send(b"served\n");
        other.expect(b"served\n");
        gate.open();
        for peer in &mut stuck {
            peer.expect(b"stuck\n");
        }
    }
}

#[test]
fn a_burst_that_came_before_anything_was_known_is_not_stranded() {
    // The very first requests, all at once, in the program.
    let serving = serve("--handler-delay 20ms --min-threads 1 --max-threads 8 --tolerance 8");
    serving.freeze();
    let mut peers: Vec<Peer> = (0..40).map(|_| serving.connect()).collect();
    for peer in &mut peers {
        peer.send(b"HELO x\n");
    }
    serving.resume();
    for peer in &mut peers {
        peer.expect_reply("x");
    }
}

#[test]
fn limits_change_while_it_runs_and_are_obeyed_at_once() {
    let gate = Gate::closed();
    let server = held_by(&gate, 2, 4, 0);
    let handle = server.handle();
    let limits = handle.pool_limits();
    assert_eq!((limits.min_threads, limits.max_threads, limits.tolerance), (2, 4, 0));

    // A higher minimum: without any request.
    handle.set_pool_limits(limits.threads(5, 6)).unwrap();
    eventually("it has the new minimum", || handle.stats().pool_threads == 5);
    // A higher maximum: for work that waits already.
    let mut peers = send_from_each(&server, 12);
    eventually("it is at its maximum", || handle.stats().pool_busy == 6);
    handle.set_pool_limits(limits.threads(1, 12)).unwrap();
    eventually("it is at its new maximum", || handle.stats().pool_busy == 12);
    // A lower maximum: workers above it leave as they finish, and no request is lost.
    handle.set_pool_limits(limits.threads(1, 3)).unwrap();
    let stats = handle.stats();
    assert_eq!((stats.pool_min, stats.pool_max), (1, 3));
    gate.open();
    for peer in &mut peers {
        peer.expect(b"x\n");
    }
    eventually("it is below its new maximum", || handle.stats().pool_threads <= 3);
    // One that does not fit is refused and changes nothing.
    for bad in
        [limits.threads(0, limits.max_threads), limits.threads(5, 4), limits.keep_alive(Duration::ZERO)]
    {
        handle.set_pool_limits(bad).unwrap_err();
    }
    assert_eq!(handle.pool_limits().max_threads, 3);
    send_from_each(&server, 5).iter_mut().for_each(|peer| peer.expect(b"x\n"));
}

#[test]
fn no_request_is_lost_while_the_pool_is_resized_again_and_again() {
    let server = configure(echo, |config| config.keep_alive = Duration::from_millis(1));
    let handle = server.handle();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = SetAtEnd(&over);
        scope.spawn(|| {
            let limits = handle.pool_limits();
            for round in (1..=8).cycle() {
                if over.load(SeqCst) {
                    break;
                }
                let (min_threads, max_threads) = (round, round * 2);
                handle.set_pool_limits(limits.threads(min_threads, max_threads)).unwrap();
                thread::yield_now();
            }
        });
        in_parallel(8, |number| {
            let mut peer = Peer::connect(server.local_addr());
            for round in 0..300 {
                let line = format!("{number} {round}\n").into_bytes();
                peer.send(&line);
                peer.expect(&line);
            }
        });
    });
    assert_adds_up(&handle.stats());
    eventually("all are counted", || handle.stats().replies_total == 8 * 300);
}

#[test]
fn requests_of_one_connection_run_one_after_another() {
    let running = Arc::new(Mutex::new(HashMap::new()));
    let handler = {
        let running = Arc::clone(&running);
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            let peer = request.peer_addr();
            let before = running.lock().unwrap().insert(peer.clone(), ());
            assert!(before.is_none(), "two requests of one connection at once");
            thread::sleep(Duration::from_micros(300));
            running.lock().unwrap().remove(peer);
            echo(request, reply);
        }
    };
    let server = configure(handler, |config| config.min_threads = 8);
    in_parallel(12, |_| {
        let mut peer = Peer::connect(server.local_addr());
        let lines: Vec<u8> = (0..200).flat_map(|line| format!("{line}\n").into_bytes()).collect();
        // In pieces, so that requests come while others of the same connection are being worked on.
        let mut sender = peer.twin();
        thread::scope(|scope| {
            scope.spawn(|| lines.chunks(50).for_each(|chunk| sender.send(chunk)));
            peer.expect(&lines);
        });
    });
    assert_eq!(server.handle().stats().handler_panics_total, 0);
}

#[test]
fn requests_of_different_connections_run_side_by_side() {
    let count = 12;
    let barrier = Arc::new(Barrier::new(count));
    let handler = {
        let barrier = Arc::clone(&barrier);
        // Returns only when all of them are here at the same time.
        move |request: &Request<'_>, reply: &mut Reply<'_>| {
            barrier.wait();
            echo(request, reply);
        }
    };
    let server = configure(handler, |config| (config.min_threads, config.tolerance) = (1, 8));
    let mut peers = send_from_each(&server, count);
    for peer in &mut peers {
        peer.expect(b"x\n");
    }
}

#[test]
fn a_batch_behind_a_request_that_blocks_is_taken_by_others() {
    let gate = Gate::closed();
    let server = configure(gate.holds_stuck(), |config| (config.min_threads, config.max_threads) = (2, 2));
    // Requests that take next to no time, so that workers take many together.
    in_parallel(8, |_| {
        let lines = b"quick\n".repeat(2000);
        assert_eq!(Peer::connect(server.local_addr()).exchange(&lines), lines);
    });
    let mut peers: Vec<Peer> = (0..64).map(|_| Peer::connect(server.local_addr())).collect();
    let (stuck, others) = peers.split_first_mut().unwrap();
    stuck.send(b"stuck\n");
    for peer in others.iter_mut() {
        peer.send(b"quick\n");
    }
    for peer in others.iter_mut() {
        peer.expect(b"quick\n");
    }
    gate.open();
    stuck.expect(b"stuck\n");
}

#[test]
fn nothing_wakes_up_while_nothing_happens() {
    let serving = serve("");
    let mut peers: Vec<Peer> = (0..100).map(|_| serving.connect()).collect();
    for peer in &mut peers {
        peer.ask("x");
    }
    let (wakeups, since) = (serving.context_switches(), Instant::now());
    thread::sleep(Duration::from_millis(500));
    let (more, silence) = (serving.context_switches() - wakeups, since.elapsed());
    // A tick of a millisecond would make one each, however long this process slept.
    assert!(u128::from(more) < silence.as_millis() / 10, "{more} context switches in {silence:?} of silence");
}

/// Whatever it waits for, it waits asleep: less than a third of a CPU in each of these states.
#[test]
fn no_state_of_a_connection_makes_it_spin() {
    let stuck = "--handler-delay 1h --min-threads 1 --max-threads 1 --drain-timeout 1h";
    let one_busy = |serving: &Serving| {
        let mut peer = serving.connect();
        peer.send(b"HELO stuck\n");
        eventually("the worker is stuck", || serving.stats()["pool_busy"] == 1);
        peer
    };
    type State<'a> = (&'a str, String, Box<dyn Fn(&Serving) -> Vec<Peer> + 'a>);
    let states: Vec<State<'_>> = vec![
        ("a stuck worker", stuck.into(), Box::new(|serving| vec![one_busy(serving)])),
        (
            "a stuck worker, and more requests of the same client than are read",
            stuck.into(),
            Box::new(|serving| {
                let mut peer = one_busy(serving);
                peer.send_until_blocked(&b"HELO more\n".repeat(1 << 20), Duration::from_millis(100));
                vec![peer]
            }),
        ),
        (
            "a stuck worker whose client has closed its side",
            stuck.into(),
            Box::new(|serving| {
                let peer = one_busy(serving);
                peer.finish();
                vec![peer]
            }),
        ),
        (
            "a stuck worker whose client has gone",
            stuck.into(),
            Box::new(|serving| {
                one_busy(serving).reset();
                vec![]
            }),
        ),
        (
            "clients that wait for a place",
            format!("{stuck} --max-pending 1"),
            Box::new(|serving| {
                let mut peers: Vec<Peer> = (0..10).map(|_| serving.connect()).collect();
                for (number, peer) in peers.iter_mut().enumerate() {
                    peer.send(b"HELO x\nHELO y\nHELO z");
                    if number % 2 == 0 {
                        peer.finish();
                    }
                }
                peers
            }),
        ),
        (
            "a stop that waits for a stuck worker, with clients that go on sending",
            stuck.into(),
            Box::new(|serving| {
                let mut peers = vec![one_busy(serving), serving.connect()];
                serving.signal(Signal::TERM);
                serving.expect_log("draining");
                peers[0].send(&b"HELO late\n".repeat(1000));
                peers
            }),
        ),
        (
            "a client that does not read",
            String::new(),
            Box::new(|serving| {
                let mut peer = Peer::with_small_buffer(serving.address, 4096);
                peer.send_until_blocked(&b"HELO x\n".repeat(2 << 20), Duration::from_millis(200));
                vec![peer]
            }),
        ),
        (
            "a client that does not read, has closed its side, and is stopped for",
            "--drain-timeout 1h".into(),
            Box::new(|serving| {
                let mut peer = Peer::with_small_buffer(serving.address, 4096);
                peer.send_until_blocked(&b"HELO x\n".repeat(2 << 20), Duration::from_millis(200));
                peer.finish();
                serving.signal(Signal::TERM);
                serving.expect_log("draining");
                vec![peer]
            }),
        ),
    ];
    for (name, options, enter) in states {
        let serving = serve(&options);
        let peers = enter(&serving);
        // What it still does on the way into the state is over at some time.
        let mut before = serving.cpu_ticks();
        eventually(name, || {
            thread::sleep(Duration::from_millis(100));
            let used = serving.cpu_ticks() - std::mem::replace(&mut before, serving.cpu_ticks());
            used <= 3
        });
        // From then on it stays so: its own CPU time does not depend on what else the machine does.
        let since = Instant::now();
        thread::sleep(Duration::from_millis(500));
        let (used, window) = (serving.cpu_ticks() - before, since.elapsed());
        assert!(
            u128::from(used) * 10 < window.as_millis() / 3,
            "{name}: {used} ticks of 10 ms in {window:?}"
        );
        drop(peers);
    }
}

/// The program under a limit of its address space.
fn under_limit(mebibytes: usize, options: &str) -> Command {
    let script = format!("ulimit -v {} && exec \"$0\" serve 0 {options}", mebibytes << 10);
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_tidemill")]).env_remove("MALLOC_ARENA_MAX");
    command
}

#[test]
fn a_limit_of_the_address_space_keeps_the_pool_small_and_the_service_up() {
    // From where it can only just start to where it can have nearly all that it wants.
    for (mebibytes, delay) in [(72, "10ms"), (100, "10ms"), (160, "20ms"), (300, "200ms")] {
        // So long that all of them are wanted, however slowly requests come.
        let options = format!("--handler-delay {delay} --max-threads 200 --tolerance 0");
        let serving = Serving::start(under_limit(mebibytes, &options));
        let mut peers: Vec<Peer> = (0..220).map(|_| serving.connect()).collect();
        for round in 0..2 {
            for peer in &mut peers {
                peer.send(format!("HELO {round}\n").as_bytes());
            }
            for peer in &mut peers {
                peer.expect_reply(&round.to_string());
            }
        }
        serving.expect_log("the system refuses threads");
        drop(peers);
        serving.stop().assert_clean();
    }
}

#[test]
fn too_little_address_space_to_work_in_is_refused_at_the_start() {
    // With less than some 17 a debug build does not get as far as to its own code.
    for mebibytes in [24, 32, 48] {
        let ended = Ended::of(&mut under_limit(mebibytes, "--max-threads 200"));
        assert_eq!(ended.status.code(), Some(1), "{mebibytes}: {ended:?}");
        assert_eq!((ended.stdout.lines().count(), ended.stderr.lines().count()), (0, 1), "{ended:?}");
        assert!(ended.stderr.contains("the limit of the address space"), "{ended:?}");
    }
}

#[test]
fn a_small_stack_is_enough_for_a_small_handler() {
    let server = configure(echo, |config| config.thread_stack_bytes = tidemill::MIN_THREAD_STACK_BYTES);
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect(b"x\n");
}

#[test]
fn at_its_maximum_with_every_worker_stuck_and_work_waiting_nothing_wakes_up() {
    for options in ["--min-threads 1 --max-threads 4", "--min-threads 4 --max-threads 4 --keep-alive 10ms"] {
        let serving = serve(&format!("--handler-delay 1h {options}"));
        let mut peers: Vec<Peer> = (0..12).map(|_| serving.connect()).collect();
        peers.iter_mut().for_each(|peer| peer.send(b"HELO stuck\n"));
        eventually("all are stuck, and work waits", || {
            let stats = serving.stats();
            stats["pool_busy"] == 4 && stats["requests_pending"] == 12
        });
        // What it still does on the way there is over at some time.
        eventually("it comes to rest", || {
            let before = serving.context_switches();
            thread::sleep(Duration::from_secs(1));
            serving.context_switches() - before < 10
        });
        // And stays there.
        let (wakeups, since) = (serving.context_switches(), Instant::now());
        thread::sleep(Duration::from_secs(1));
        let (more, silence) = (serving.context_switches() - wakeups, since.elapsed());
        assert!(u128::from(more) < silence.as_millis() / 50, "{more} context switches in {silence:?}");
    }
}

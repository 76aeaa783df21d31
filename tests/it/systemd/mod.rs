//! What a service manager gives and is told: sockets, READY, STOPPING, WATCHDOG, MAINPID.

mod real;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::examples::missing;
use crate::support::{DEADLINE, Ended, Peer, Serving, eventually, program, program_at, scratch};

const REAL: &str = env!("CARGO_BIN_EXE_tidemill");
/// What a connection that was just accepted is given for its first line.
const FIRST_LINE: Duration = Duration::from_millis(50);
const UNIX_REPLY: &str = "HELO x\nIP:unix\nPort:0\nStudentID:16336617\n";

/// A service manager's end of the notifications.
#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new() -> Manager {
        let path = scratch("systemd").join("notify");
        Manager { socket: UnixDatagram::bind(&path).unwrap(), path }
    }

    /// Starts the program with further `options` and `variables`, as NAME=VALUE, separated by blanks. `$$` is its process number.
    #[track_caller]
    fn serve(&self, options: &str, variables: &str) -> Serving {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("{variables} exec {REAL} serve 0 {options}")]);
        command.stdin(Stdio::null()).env("NOTIFY_SOCKET", &self.path);
        Serving::start(command)
    }

    /// The next message.
    #[track_caller]
    fn message(&self) -> String {
        self.socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut message = [0; 4096];
        let len = self.socket.recv(&mut message).expect("a message");
        String::from_utf8(message[..len].to_vec()).unwrap()
    }

    /// The first message from now on that begins with `word`, and those before it.
    #[track_caller]
    fn expect(&self, word: &str) -> (String, Vec<String>) {
        let (mut before, begun) = (Vec::new(), Instant::now());
        loop {
            assert!(begun.elapsed() < DEADLINE, "no {word} among {before:?}");
            let message = self.message();
            if message.starts_with(word) {
                return (message, before);
            }
            before.push(message);
        }
    }

    /// What has come and was not taken.
    fn rest(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let mut message = [0; 4096];
        let received = || self.socket.recv(&mut message).ok().map(|len| message[..len].to_vec());
        let all: Vec<_> = std::iter::from_fn(received).collect();
        self.socket.set_nonblocking(false).unwrap();
        all.into_iter().map(|message| String::from_utf8(message).unwrap()).collect()
    }
}

#[test]
fn it_is_ready_once_clients_can_connect_and_stopping_when_it_stops() {
    for kill in [false, true] {
        let manager = Manager::new();
        let mut command = program();
        command.args(["serve", "0"]).env("NOTIFY_SOCKET", &manager.path);
        let serving = Serving::start(command);
        let address = serving.address;
        assert_eq!(manager.message(), format!("READY=1\nSTATUS=serving on {address}\n"));
        let mut peer = Peer::connect(address);
        if kill {
            peer.send(b"KILL_SERVICE\n");
        } else {
            serving.signal(Signal::TERM);
        }
        let (stopping, before) = manager.expect("STOPPING=1\nSTATUS=draining: ");
        assert!(stopping.contains("connections, ") && !before.concat().contains("WATCHDOG"), "{before:?}");
        peer.expect_end();
        drop(peer);
        serving.wait().assert_clean();
        assert!(!manager.rest().concat().contains("STOPPING"), "it is said once");
    }
}

#[test]
fn the_watchdog_is_answered_by_the_loop_also_when_every_worker_is_stuck() {
    let manager = Manager::new();
    let serving = manager.serve(
        "--handler-delay 1h --min-threads 1 --max-threads 1 --drain-timeout 0s",
        "WATCHDOG_USEC=20000",
    );
    manager.expect("READY=1");
    manager.expect("WATCHDOG=1");
    let mut peers: Vec<Peer> = (0..50).map(|_| serving.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"HELO x\n"));
    let (status, _) =
        manager.expect("STATUS=50 connections, 50 requests pending, 1 of 1 workers busy, at most 1");
    assert_eq!(status.lines().count(), 1);
    for _ in 0..5 {
        manager.expect("WATCHDOG=1");
    }
    assert_eq!(serving.stop().status.code(), Some(1));
}

#[test]
fn the_watchdog_is_answered_only_by_who_is_asked() {
    let manager = Manager::new();
    let serving = manager.serve("", "WATCHDOG_USEC=20000 WATCHDOG_PID=$$");
    manager.expect("READY=1");
    manager.expect("WATCHDOG=1");
    serving.stop().assert_clean();

    let manager = Manager::new();
    let serving = manager.serve("", "WATCHDOG_USEC=20000 WATCHDOG_PID=1");
    manager.expect("READY=1");
    // Before the first time that it says how it is, it would have answered.
    let (_, before) = manager.expect("STATUS=");
    assert_eq!(before, [""; 0]);
    serving.stop().assert_clean();
    assert!(!manager.rest().concat().contains("WATCHDOG"));
}

#[test]
fn a_manager_that_does_not_read_holds_nothing_up() {
    let manager = Manager::new();
    // More than its queue takes, which is 512 at most by default.
    let serving = manager.serve("", "WATCHDOG_USEC=200");
    let mut peer = serving.connect();
    eventually("its queue is full", || {
        peer.ask("x");
        let blocked = UnixDatagram::unbound().unwrap();
        blocked.set_nonblocking(true).unwrap();
        blocked.connect(&manager.path).unwrap();
        blocked.send(b"").is_err()
    });
    peer.ask("x");
    drop(peer);
    serving.stop().assert_clean();
}

#[test]
fn an_abstract_name_is_understood_and_one_where_nobody_is_does_no_harm() {
    let name = format!("tidemill-test-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let manager = Manager { socket, path: format!("@{name}").into() };
    let serving = manager.serve("", "");
    manager.expect("READY=1");
    serving.stop().assert_clean();

    let mut command = program();
    command.args(["serve", "0"]).env("NOTIFY_SOCKET", "/nowhere/socket");
    let serving = Serving::start(command);
    serving.expect_log("cannot notify the service manager");
    serving.stop().assert_clean();
}

#[test]
fn at_an_upgrade_the_manager_hears_of_the_main_process_and_of_no_stop() {
    let manager = Manager::new();
    let serving = manager.serve("", "WATCHDOG_USEC=20000 WATCHDOG_PID=$$ LISTEN_PID=$$");
    manager.expect("READY=1");
    manager.expect("WATCHDOG=1");
    serving.signal(Signal::USR2);
    let (main, before) = manager.expect("MAINPID=");
    let (_, between) = manager.expect("READY=1");
    let number = main["MAINPID=".len()..].trim_end().to_owned();
    serving.expect_log(&format!("has taken over process={number} "));
    assert_ne!(number, serving.pid().as_raw_nonzero().to_string());
    // What the old one had on its way; the new one is not the one that was asked for the watchdog, and answers all the same.
    manager.expect("WATCHDOG=1");
    let environment = fs::read(format!("/proc/{number}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(environment.contains("WATCHDOG_USEC=") && environment.contains("NOTIFY_SOCKET="));
    assert!(!environment.contains("WATCHDOG_PID=") && !environment.contains("LISTEN_PID="));
    let new = rustix::process::Pid::from_raw(number.parse().unwrap()).unwrap();
    rustix::process::kill_process(new, Signal::TERM).unwrap();
    let (_, after) = manager.expect("STOPPING=1");
    for said in [before, between, after] {
        assert!(!said.concat().contains("STOPPING"), "{said:?}");
    }
    serving.wait().assert_clean();
    assert!(!manager.rest().concat().contains("STOPPING"));
}

/// It ignores what it is told of the main process from when it has asked that to stop.
#[test]
fn a_stop_that_the_manager_asks_for_before_it_knows_the_new_process_stops_both() {
    let begun = Instant::now();
    let (manager, serving, mut peer, new) = loop {
        assert!(begun.elapsed() < DEADLINE, "this machine is too slow, or it does not wait for its manager");
        let manager = Manager::new();
        let serving = manager.serve("", "");
        manager.expect("READY=1");
        let mut peer = serving.connect();
        peer.ask("x");
        serving.signal(Signal::USR2);
        let (main, _) = manager.expect("MAINPID=");
        let new =
            rustix::process::Pid::from_raw(main["MAINPID=".len()..].trim_end().parse().unwrap()).unwrap();
        // What follows is read after this, which is how the manager is known to have read the first.
        serving.signal(Signal::TERM);
        let mut is_late = false;
        eventually("it is decided", || {
            let log = serving.log();
            is_late = log.contains("has taken over process=");
            is_late || log.contains("the server stops")
        });
        if !is_late {
            break (manager, serving, peer, new);
        }
        // It waits half a second.
        rustix::process::kill_process(new, Signal::KILL).unwrap();
    };
    assert_eq!(manager.expect("MAINPID=").0, format!("MAINPID={}\n", serving.pid().as_raw_nonzero()));
    manager.expect("STOPPING=1");
    peer.expect_end();
    drop(peer);
    let ended = serving.wait();
    ended.assert_clean();
    eventually("it is gone", || rustix::process::test_kill_process(new).is_err());
}

#[test]
fn an_upgrade_that_fails_is_none_of_the_managers_business() {
    let manager = Manager::new();
    let name = scratch("systemd").join("tidemill");
    std::os::unix::fs::symlink(REAL, &name).unwrap();
    let mut command = program_at(&name);
    command.args(["serve", "0"]).env("NOTIFY_SOCKET", &manager.path);
    let serving = Serving::start(command);
    manager.expect("READY=1");
    fs::remove_file(&name).unwrap();
    serving.signal(Signal::USR2);
    serving.expect_log("not upgraded");
    serving.stop().assert_clean();
    let all = manager.rest().concat();
    assert!(!all.contains("MAINPID") && all.contains("STOPPING"), "{all}");
}

#[test]
fn the_manager_hears_when_a_reload_begins_and_ends_also_of_a_bad_file() {
    let manager = Manager::new();
    let file = scratch("systemd").join("config.toml");
    fs::write(&file, "tolerance = 1\n").unwrap();
    let serving = manager.serve(&format!("--config {}", file.display()), "");
    manager.expect("READY=1");
    for text in ["tolerance = 2\n", "tolerance = nonsense\n"] {
        fs::write(&file, text).unwrap();
        let before = monotonic_micros();
        serving.signal(Signal::HUP);
        let (reloading, _) = manager.expect("RELOADING=1\nMONOTONIC_USEC=");
        let at: i64 = reloading["RELOADING=1\nMONOTONIC_USEC=".len()..].trim_end().parse().unwrap();
        assert!((before..=monotonic_micros()).contains(&at), "{reloading}");
        assert_eq!(manager.expect("READY=1").0, "READY=1\n");
    }
    serving.expect_log("not reloaded");
    serving.stop().assert_clean();
}

fn monotonic_micros() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

fn asked_over(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"HELO x\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn passed_sockets_are_served_instead_of_what_the_options_say_and_are_left_as_they_were() {
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        return missing("systemd-socket-activate is not installed");
    }
    let path = scratch("systemd").join("socket");
    let mut command = Command::new("systemd-socket-activate");
    // It takes no port 0. This address is nobody else's.
    let [high, low] = [1, 0].map(|byte| std::process::id().to_le_bytes()[byte]);
    command.args(["-l", &format!("127.77.{high}.{low}:8000"), "-l"]).arg(&path).args([
        "-E",
        "NOTIFY_SOCKET",
        "--",
    ]);
    // A port that cannot be bound.
    command.args([REAL, "serve", "1", "--bind", "192.0.2.1"]).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut serving = Serving::launch(&mut command);
    serving.read_log();
    // Nobody serves before the first connection, which is in the queue then.
    serving.connect().ask("x");
    assert_eq!(asked_over(&path), UNIX_REPLY);
    serving.signal(Signal::USR2);
    serving.expect_log("has taken over process=");
    serving.connect().ask("by the next process");
    assert_eq!(asked_over(&path), UNIX_REPLY);
    Peer::connect(serving.address).send(b"KILL_SERVICE\n");
    serving.wait().assert_clean();
    assert!(path.exists(), "it is not ours to remove");
}

#[test]
fn what_was_passed_and_is_no_listener_is_one_clear_line() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("exec 3</dev/null; LISTEN_FDS=1 exec {REAL} serve 0")]);
    let ended = Ended::of(command.stdin(Stdio::null()));
    assert_eq!((ended.status.code(), ended.stderr.lines().count()), (Some(1), 1), "{ended:?}");
    assert!(ended.stderr.contains("LISTEN_FDS: fd 3 is not a socket"), "{}", ended.stderr);
    // Those of another process are not ours.
    let mut command = program();
    command.args(["serve", "0"]).envs([("LISTEN_FDS", "1"), ("LISTEN_PID", "1")]);
    let serving = Serving::start(command);
    serving.connect().ask("x");
    serving.stop().assert_clean();
}

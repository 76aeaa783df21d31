//! What a server listens on: several addresses, both families, Unix sockets; and why it may refuse to start.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::thread;

use rustix::process::Signal;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::{Ended, Peer, Serving, eventually, program, scratch};

fn serving(options: &[&str]) -> Serving {
    let mut command = program();
    command.args(["serve", "0"]).args(options);
    Serving::start(command)
}

/// One line on standard error that says `expected`, and exit status 1.
#[track_caller]
fn refused(options: &[&str], expected: &str) {
    let mut command = program();
    let ended = Ended::of(command.args(["serve", "0"]).args(options));
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(expected) && ended.stderr.lines().count() == 1, "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
}

fn exchange(path: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(crate::support::DEADLINE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

const REPLY: &str = "HELO x\nIP:unix\nPort:0\nStudentID:16336617\n";

#[test]
fn a_unix_socket_is_served_beside_tcp_and_removed_at_the_end() {
    let path = scratch("unix").join("socket");
    let text = path.display().to_string();
    let serving = serving(&["--unix", &text, "--unix-mode", "0660"]);
    eventually("both are announced", || serving.output().contains(&format!("listening on unix:{text}\n")));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(exchange(&path, b"HELO x\n"), REPLY);
    serving.connect().ask("over TCP");
    // Its peers count as loopback, which may stop the service by default.
    assert_eq!(exchange(&path, b"KILL_SERVICE\n"), "");
    let ended = serving.wait();
    ended.assert_clean();
    assert!(!path.exists());
}

#[test]
fn its_mode_is_for_its_owner_unless_another_is_given() {
    let path = scratch("unix").join("socket");
    let serving = serving(&["--unix", path.to_str().unwrap()]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    serving.stop().assert_clean();
}

#[test]
fn a_socket_file_that_was_left_behind_is_replaced_and_one_in_use_is_not() {
    let path = scratch("unix").join("socket");
    let text = path.to_str().unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "the file stays when the socket is closed");
    let first = serving(&["--unix", text]);
    assert_eq!(exchange(&path, b"HELO x\n"), REPLY);
    refused(&["--unix", text], &format!("cannot listen on unix:{text}: "));
    assert_eq!(exchange(&path, b"HELO x\n"), REPLY);
    first.signal(Signal::KILL);
    drop(first);
    assert!(path.exists());
    let second = serving(&["--unix", text]);
    assert_eq!(exchange(&path, b"HELO x\n"), REPLY);
    second.stop().assert_clean();
}

#[test]
fn what_cannot_be_listened_on_is_one_clear_line() {
    let directory = scratch("unix");
    let long = directory.join("x".repeat(200)).display().to_string();
    refused(&["--unix", &long], &format!("cannot listen on unix:{long}: "));
    let nowhere = directory.join("nowhere/socket").display().to_string();
    refused(&["--unix", &nowhere], "No such file or directory");
    let file = directory.join("file");
    fs::write(&file, "no socket").unwrap();
    refused(&["--unix", file.to_str().unwrap()], "Address already in use");
    assert_eq!(fs::read_to_string(&file).unwrap(), "no socket");
    refused(&["--bind", "192.0.2.1"], "cannot listen on 192.0.2.1:0");
}

#[test]
fn which_families_a_wildcard_serves_is_told() {
    let both = serving(&["--bind", "::"]);
    both.expect_log("families=\"IPv4 and IPv6\"");
    Peer::connect(("127.0.0.1", both.address.port())).ask("over IPv4");
    both.stop().assert_clean();
    let beside = serving(&["--bind", "0.0.0.0", "--bind", "::"]);
    beside.expect_log("families=\"IPv6\"");
    beside.stop().assert_clean();
}

#[test]
fn several_addresses_are_served_and_announced_in_their_order() {
    let serving = serving(&["--bind", "127.0.0.1", "--bind", "127.0.0.2"]);
    eventually("both are announced", || serving.output().lines().count() == 2);
    // Who asks for any port gets one for all.
    let port = serving.address.port();
    for (line, ip) in serving.output().lines().zip(["127.0.0.1", "127.0.0.2"]) {
        let address = line.strip_prefix("listening on ").unwrap();
        assert_eq!(address, format!("{ip}:{port}"));
        Peer::connect(address).ask("x");
    }
    serving.stop().assert_clean();
}

#[test]
fn timeout_of_a_tool_holds_where_the_listen_backlog_is_full() {
    let path = scratch("backlog").join("full");
    let address = SockAddr::unix(&path).unwrap();
    let socket = || Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = socket();
        client.set_nonblocking(true).unwrap();
        if client.connect(&address).is_err() {
            break;
        }
        waiting.push(client);
    }
    let target = format!("unix:{}", path.display());
    for tool in [&["client", "--pipe"][..], &["top"]] {
        let mut command = program();
        let ended = Ended::of(command.args(tool).args([&target, "--timeout", "300ms"]));
        let told = (ended.status.code(), ended.stderr.lines().count(), ended.stderr.contains(&target));
        assert_eq!(told, (Some(1), 1, true), "{tool:?}: {ended:?}");
    }
    // Within its time it is waited for.
    let mut client = program();
    client.args(["client", "--pipe", &target, "--timeout", "1h"]).stdin(Stdio::null());
    let accepts = thread::spawn(move || {
        for _ in 0..=waiting.len() {
            (&listener.accept().unwrap().0).write_all(b"accepted\n").unwrap();
        }
    });
    let ended = Ended::of(&mut client);
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(0), "accepted\n"), "{ended:?}");
    accepts.join().unwrap();
}

//! `client --pipe`: a command where a socket is.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use super::{OBEDIENT, serve_script};
use crate::support::{Ended, echo, embed, program, scratch, serve};

/// The command that joins its streams to this address.
fn pipe(address: &str) -> Child {
    let mut command = program();
    command
        .args(["client", "--pipe", address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn both_ways_at_once_and_ends_when_both_have() {
    let server = serve_script(OBEDIENT, "");
    let mut pipe = pipe(&format!("localhost:{}", server.address.port()));
    let (mut input, mut output) = (pipe.stdin.take().unwrap(), BufReader::new(pipe.stdout.take().unwrap()));
    for number in 0..100 {
        // One at a time: nothing is held back on the way.
        writeln!(input, "line {number}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("line {number}\n"));
    }
    write!(input, "sleep 0.1\nlast").unwrap();
    // The end of input is passed on, and what is still owed comes.
    drop(input);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "slept\nlast\n");
    assert!(pipe.wait().unwrap().success());
}

#[test]
fn many_bytes_pass_both_ways() {
    let server = embed(echo);
    let mut pipe = pipe(&server.local_addr().to_string());
    let (mut input, mut output) = (pipe.stdin.take().unwrap(), pipe.stdout.take().unwrap());
    let line = [vec![b'x'; 60_000], b"\n".to_vec()].concat();
    let sender = std::thread::spawn({
        let lines = line.repeat(100);
        move || input.write_all(&lines).unwrap()
    });
    let mut received = Vec::new();
    output.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == line.repeat(100));
    assert!(pipe.wait().unwrap().success());
}

#[test]
fn the_servers_end_is_passed_on() {
    let server = serve("--max-line 100");
    let mut pipe = pipe(&server.address.to_string());
    let (mut input, mut output) = (pipe.stdin.take().unwrap(), pipe.stdout.take().unwrap());
    input.write_all(&[b'x'; 200]).unwrap();
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert_eq!(said, "ERROR line too long (limit 100 bytes)\n");
    drop(input);
    pipe.wait().unwrap();
}

#[test]
fn over_a_unix_socket() {
    let path = scratch("pipe").join("socket");
    let server = serve(&format!("--unix {}", path.display()));
    let mut pipe = pipe(&format!("unix:{}", path.display()));
    pipe.stdin.take().unwrap().write_all(b"HELO unix\n").unwrap();
    let output = pipe.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "HELO unix\nIP:unix\nPort:0\nStudentID:16336617\n");
    server.stop().assert_clean();
}

#[test]
fn who_is_not_there_is_one_line() {
    for address in ["127.0.0.1:1", "unix:/no/such/socket", "no-port"] {
        let ended = Ended::of(program().args(["client", "--pipe", address]));
        assert_eq!((ended.status.code(), ended.stderr.lines().count()), (Some(1), 1), "{ended:?}");
        assert!(ended.stderr.contains(address), "{ended:?}");
    }
    for wrong in [&["client"][..], &["client", "H"], &["client", "--pipe", "x:1", "H", "127.0.0.1", "1"]] {
        assert_eq!(Ended::of(program().args(wrong)).status.code(), Some(2), "{wrong:?}");
    }
}

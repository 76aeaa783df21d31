//! `client --pipe`: a command where a socket is.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::{OBEDIENT, serve_script};
use crate::support::{DEADLINE, Ended, echo, embed, eventually, program, scratch, serve};

/// The command that joins its streams to an address. Killed if it takes too long, so that a test that would read without end fails.
struct Pipe {
    child: Child,
    /// Dropped once it has ended.
    watch: mpsc::Sender<()>,
}

fn pipe(address: &str) -> Pipe {
    let mut command = program();
    command.args(["client", "--pipe", address]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let process = Pid::from_child(&child);
    let (watch, ended) = mpsc::channel::<()>();
    thread::spawn(move || {
        if ended.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
            kill_process(process, Signal::KILL).unwrap();
        }
    });
    Pipe { child, watch }
}

impl Pipe {
    fn input(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    fn output(&mut self) -> ChildStdout {
        self.child.stdout.take().unwrap()
    }

    /// It has ended, and nothing failed.
    #[track_caller]
    fn expect_end(mut self) {
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        drop(self.watch);
    }
}

#[test]
fn both_ways_at_once_and_ends_when_both_have() {
    let server = serve_script(OBEDIENT, "");
    let mut pipe = pipe(&format!("localhost:{}", server.address.port()));
    let (mut input, mut output) = (pipe.input(), BufReader::new(pipe.output()));
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
    pipe.expect_end();
}

#[test]
fn many_bytes_pass_both_ways() {
    let server = embed(echo);
    let mut pipe = pipe(&server.local_addr().to_string());
    let (mut input, mut output) = (pipe.input(), pipe.output());
    let line = [vec![b'x'; 60_000], b"\n".to_vec()].concat();
    let sender = thread::spawn({
        let lines = line.repeat(100);
        move || input.write_all(&lines).unwrap()
    });
    let mut received = Vec::new();
    output.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == line.repeat(100));
    pipe.expect_end();
}

#[test]
fn the_servers_end_is_passed_on() {
    let server = serve("--max-line 100");
    let mut pipe = pipe(&server.address.to_string());
    let (mut input, mut output) = (pipe.input(), pipe.output());
    input.write_all(&[b'x'; 200]).unwrap();
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert_eq!(said, "ERROR line too long (limit 100 bytes)\n");
    drop(input);
    pipe.expect_end();
}

#[test]
fn over_a_unix_socket() {
    let path = scratch("pipe").join("socket");
    let server = serve(&format!("--unix {}", path.display()));
    let mut pipe = pipe(&format!("unix:{}", path.display()));
    pipe.input().write_all(b"HELO unix\n").unwrap();
    let mut said = String::new();
    pipe.output().read_to_string(&mut said).unwrap();
    pipe.expect_end();
    assert_eq!(said, "HELO unix\nIP:unix\nPort:0\nStudentID:16336617\n");
    server.stop().assert_clean();
}

#[test]
fn who_is_not_there_is_one_line() {
    for (address, status) in [("127.0.0.1:1", 1), ("unix:/no/such/socket", 1), ("no-port", 2)] {
        let ended = Ended::of(program().args(["client", "--pipe", address]));
        assert_eq!((ended.status.code(), ended.stderr.lines().count()), (Some(status), 1), "{ended:?}");
        assert!(ended.stderr.contains(address), "{ended:?}");
    }
    for wrong in [&["client"][..], &["client", "H"], &["client", "--pipe", "x:1", "H", "127.0.0.1", "1"]] {
        assert_eq!(Ended::of(program().args(wrong)).status.code(), Some(2), "{wrong:?}");
    }
}

/// A tool server of the JSON-RPC kind that takes half a second to start, for clients that only know how to start a command.
#[test]
fn a_client_that_starts_a_command_reaches_a_program_that_runs() {
    if !super::is_installed("perl") {
        return;
    }
    let program = r#"
select undef, undef, undef, 0.5;
$| = 1;
while (<STDIN>) {
    my ($id) = /"id":(\d+)/;
    print qq({"jsonrpc":"2.0","id":$id,"result":$$}\n);
}
"#;
    let path = super::file("tool.pl", program);
    let server = super::serve_exec(&format!("perl {}", path.display()), "--exec-spare 20 --min-threads 1");
    eventually("the programs are ready", || server.stats()["programs"]["ready"] == 21);
    for id in 0..20 {
        let mut pipe = pipe(&server.address.to_string());
        let (mut input, output) = (pipe.input(), pipe.output());
        writeln!(input, r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#).unwrap();
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"#)), "{line}");
        drop(input);
        pipe.expect_end();
    }
    server.stop().assert_clean();
}

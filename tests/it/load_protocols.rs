//! `tidemill load` against servers of other makes: Redis, memcached and an SMTP server, where they are installed, and a program
//! behind `serve --exec`.
//!
//! `.ci/run` installs them. `CLIENTS_PYTHON` names a Python that has aiosmtpd, unless `python3` does.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::examples::missing;
use crate::support::{Ended, eventually, program};

/// A server of another make; it ends when dropped.
struct Foreign {
    child: Child,
    target: String,
}

impl Foreign {
    /// Starts what `command` makes for a port, and waits until it lets a connection in. `None` where it is not installed.
    fn start(what: &str, command: impl Fn(u16) -> Command) -> Option<Self> {
        // Another process may take the port meanwhile: then this server ends, and another port is tried.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut command = command(port);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let Ok(child) = command.spawn() else { break };
            let mut server = Self { child, target: format!("127.0.0.1:{port}") };
            let mut ended = false;
            eventually("it lets a connection in", || {
                ended = server.child.try_wait().unwrap().is_some();
                ended || TcpStream::connect(&server.target).is_ok()
            });
            if !ended {
                return Some(server);
            }
        }
        missing(&format!("{what} does not start, or is not installed"));
        None
    }

    fn load(&self, arguments: &[&str]) -> Value {
        let ended = Ended::of(program().args(["load", &self.target, "--json"]).args(arguments));
        let json: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        let failed = json["verdict"] == "failed";
        assert_eq!(ended.status.code(), Some(i32::from(failed)), "{json}");
        json
    }

    /// Every request is answered right, in both loops, pipelined and with a connection for each.
    fn is_right(&self, texts: &[&str]) {
        for way in [&["-P", "5"][..], &["--threads", "2"], &["-r", "4000"], &["--reconnect"]] {
            let json = self.load(&[&["-c", "4", "-n", "300", "--timeout", "15s"], way, texts].concat());
            assert_ne!(json["verdict"], "failed", "{texts:?} {way:?}: {json}");
            assert_eq!(json["requests"]["right"], 300, "{texts:?} {way:?}: {json}");
        }
    }

    /// None is, for what is expected is not what comes.
    fn is_wrong(&self, texts: &[&str]) {
        let json = self.load(&[&["-c", "2", "-P", "3", "-n", "30", "--timeout", "500ms"], texts].concat());
        assert_eq!(json["requests"]["right"], 0, "{texts:?}: {json}");
        let count = |name: &str| json["requests"][name].as_u64().unwrap();
        assert_eq!(count("wrong") + count("lost"), count("sent"), "{texts:?}: {json}");
        assert!(count("wrong") > 0, "{texts:?}: {json}");
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It has ended by itself, or nobody needs it any more.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn redis_is_flooded_by_inline_commands() {
    let command = |port: u16| {
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--port",
            &port.to_string(),
        ]);
        command
    };
    let Some(redis) = Foreign::start("redis-server", command) else { return };
    redis.is_right(&["--request", "SET k{n} v{n}", "--expect", "+OK"]);
    redis.is_right(&["--request", "ECHO {n}", "--expect", r"$*\n{n}"]);
    redis.is_right(&["--request", "ECHO {n}", "--expect", "$*", "--expect-lines", "2"]);
    redis.is_right(&["--request", r"PING '{n}'\r", "--expect", r"$*\n{n}\r"]);
    redis.is_wrong(&["--request", "ECHO {n}", "--expect", r"$*\n{n}1"]);
    redis.is_wrong(&["--request", "NONSENSE {n}", "--expect", "+OK"]);
}

#[test]
fn memcached_is_flooded_by_meta_commands() {
    let command = |port: u16| {
        let mut command = Command::new("memcached");
        command.args(["-U", "0", "-l", "127.0.0.1", "-u", "nobody", "-p", &port.to_string()]);
        command
    };
    let Some(memcached) = Foreign::start("memcached", command) else { return };
    memcached.is_right(&["--request", r"ms k{n} 3\r\nabc\r", "--expect", "HD"]);
    memcached.is_right(&["--request", "mg missing{n} v", "--expect", "EN"]);
    memcached.is_right(&["--request", r"ms same 1\r\nx\r", "--expect", "HD"]);
    memcached.is_right(&["--request", "mg same v k O{n}", "--expect", r"VA 1 ksame O{n}\nx"]);
    memcached.is_wrong(&["--request", "mg missing{n} v", "--expect", r"VA 1\nx"]);
}

#[test]
fn smtp_server_is_flooded_after_its_greeting() {
    let command = |port: u16| {
        let mut command = Command::new(std::env::var("CLIENTS_PYTHON").unwrap_or("python3".to_owned()));
        let listen = format!("127.0.0.1:{port}");
        command.args(["-m", "aiosmtpd", "-n", "-l", &listen, "-c", "aiosmtpd.handlers.Sink"]);
        command
    };
    let Some(smtp) = Foreign::start("aiosmtpd", command) else { return };
    smtp.is_right(&["--request", r"NOOP\r", "--expect", "250 *", "--greeting", "220 *"]);
    smtp.is_wrong(&["--request", r"NOOP\r", "--expect", "251 *", "--greeting", "220 *"]);
    // Told nothing of it, the greeting is bytes that nobody asked for; another greeting is, too.
    for texts in [
        &["--request", "NOOP", "--expect", "250 *"][..],
        &["--request", "NOOP", "--expect", "250 *", "--greeting", "554 *"],
    ] {
        let json = smtp.load(&[&["-c", "1", "-n", "20", "--timeout", "500ms"], texts].concat());
        assert_eq!(json["verdict"], "failed", "{texts:?}: {json}");
        assert!(json["requests"]["unasked"].as_u64() > Some(0), "{texts:?}: {json}");
    }
}

#[test]
fn programs_behind_a_server_of_ours_are_flooded() {
    let start = |port: u16| {
        let mut server = program();
        server.args(["serve", &port.to_string(), "--exec", "cat", "--min-threads", "2"]);
        server
    };
    let server = Foreign::start("cat", start).unwrap();
    server.is_right(&["--request", "job {n}", "--expect", "{line}"]);
    server.is_wrong(&["--request", "job {n}", "--expect", "done {n}"]);
}

//! The servers that are compared: how each is started, and one that runs.

use std::io::{BufRead, BufReader, Error, ErrorKind, Result};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a server that says nothing may take until it accepts.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a server may take from SIGTERM to its end; then it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Ports below those that the system gives to clients, which would collide with them.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// The server that is measured.
pub const OURS: &str = "tidemill";

/// How to start a server.
#[derive(Clone, Debug)]
pub struct ServerSpec {
    /// What it is called in tables and on the command line.
    pub name: String,
    /// Program and arguments; `{port}` stands for the port.
    pub command: Vec<String>,
    /// It prints `listening on ADDRESS` once clients can connect; any other is tried until it accepts.
    pub announces: bool,
}

impl ServerSpec {
    /// A server from `NAME=COMMAND`, as given on the command line.
    ///
    /// # Errors
    /// A sentence for the user if there is no `=` or no `{port}`.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("expected NAME=COMMAND")?;
        if !command.contains("{port}") {
            return Err("the command must contain {port}".to_owned());
        }
        Ok(ServerSpec {
            name: name.to_owned(),
            command: command.split_whitespace().map(str::to_owned).collect(),
            announces: true,
        })
    }

    /// All servers that are known by name: `tidemill` from its binary, the peers from the folder of this program.
    ///
    /// # Errors
    /// If that folder cannot be told.
    pub fn known(tidemill: &Path) -> Result<Vec<Self>> {
        let own = std::env::current_exe()?;
        let peers = own.parent().ok_or(ErrorKind::NotFound)?;
        let ours = |name: &str, options: &[&str]| {
            let program = tidemill.display().to_string();
            let words = ["serve", "{port}", "--log-level", "warn"].into_iter().chain(options.iter().copied());
            let command = std::iter::once(program).chain(words.map(str::to_owned)).collect();
            ServerSpec { name: name.to_owned(), command, announces: true }
        };
        let peer = |name: &str| {
            let program = peers.join(format!("peer-{name}")).display().to_string();
            ServerSpec { name: name.to_owned(), command: vec![program, "{port}".to_owned()], announces: true }
        };
        Ok(vec![
            ours(OURS, &[]),
            peer("tokio"),
            peer("floor"),
            peer("channel"),
            peer("threads"),
            ours("tidemill-max4", &["--max-threads", "4"]),
            ours("tidemill-max64", &["--max-threads", "64"]),
        ])
    }

    /// Starts the server and waits until it says that clients can connect.
    ///
    /// # Errors
    /// If it cannot be started or does not say so.
    pub fn start(&self, options: &[String], wrapper: &[String]) -> Result<Server> {
        let port = free_port()?;
        let own = self.command.iter().map(|word| word.replace("{port}", &port.to_string()));
        let words: Vec<String> = wrapper.iter().cloned().chain(own).chain(options.iter().cloned()).collect();
        let (program, arguments) = words.split_first().ok_or(ErrorKind::InvalidInput)?;
        let said = |error: Error| Error::new(error.kind(), format!("{}: {program}: {error}", self.name));
        let stdout = if self.announces { Stdio::piped() } else { Stdio::null() };
        let process = Command::new(program).args(arguments).stdout(stdout).stdin(Stdio::null()).spawn();
        let mut server = Server { process: process.map_err(said)?, address: ([127, 0, 0, 1], port).into() };
        if !self.announces {
            server.wait_until_it_accepts().map_err(said)?;
            return Ok(server);
        }
        let mut line = String::new();
        let stdout = server.process.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).map_err(said)?;
        match line.trim_end().strip_prefix("listening on ").and_then(|address| address.parse().ok()) {
            Some(address) => server.address = address,
            None => return Err(Error::other(format!("{}: said {line:?} instead of its address", self.name))),
        }
        Ok(server)
    }
}

/// A port that nobody listens on, another each time.
fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(PORTS.start);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if !PORTS.contains(&port) {
            return Err(ErrorKind::AddrNotAvailable.into());
        }
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}

/// A server that runs. Dropped, it is stopped.
#[derive(Debug)]
pub struct Server {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Asks the server to stop, by SIGTERM, and waits for its end; blocks for 5 s at most, then kills it.
    ///
    /// # Errors
    /// If it had ended before, or had to be killed.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.stop_by(Signal::SIGTERM)
    }

    /// Ends the server without more ado: what flooders have left in its receive queues would take a graceful stop long.
    ///
    /// # Errors
    /// If it had ended before.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.stop_by(Signal::SIGKILL)
    }

    fn wait_until_it_accepts(&self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match TcpStream::connect(self.address) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn stop_by(&mut self, signal: Signal) -> Result<ExitStatus> {
        if let Some(status) = self.process.try_wait()? {
            return Err(Error::other(format!("the server had ended: {status}")));
        }
        let pid = Pid::from_raw(i32::try_from(self.process.id()).map_err(|_| ErrorKind::InvalidData)?);
        kill(pid, signal)?;
        wait_until(&mut self.process, Instant::now() + STOP_TIMEOUT)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            // A server that cannot be stopped has been killed, and there is nobody to tell.
            let _ = self.stop_by(Signal::SIGTERM);
        }
    }
}

/// Waits for the end of `process`; kills it at the deadline.
///
/// # Errors
/// `TimedOut` if it had to be killed.
pub fn wait_until(process: &mut Child, deadline: Instant) -> Result<ExitStatus> {
    while Instant::now() < deadline {
        if let Some(status) = process.try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    process.kill()?;
    process.wait()?;
    Err(ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_given_as_name_and_command_with_a_port() {
        let spec = ServerSpec::parse("old=./old serve {port} --max-threads=4").unwrap();
        assert_eq!(spec.name, "old");
        assert_eq!(spec.command, ["./old", "serve", "{port}", "--max-threads=4"]);
        assert!(ServerSpec::parse("old").is_err());
        assert!(ServerSpec::parse("old=./old serve 8000").is_err());
    }

    #[test]
    fn server_that_does_not_say_where_it_listens_is_an_error() {
        let spec = ServerSpec::parse("echo=echo port {port}").unwrap();
        let error = spec.start(&[], &[]).unwrap_err();
        assert!(error.to_string().starts_with("echo: said"), "{error}");
    }
}

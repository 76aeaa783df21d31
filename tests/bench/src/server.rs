//! The servers that are measured: how each is started, and one that runs, with what it says of itself.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::machine::signed;
use crate::wait::wait_for;

/// How long a server that says nothing may take until it accepts: one in Node.js has needed 6 s beside other work.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a server may take from SIGTERM to its end; then it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The server that is measured.
pub(crate) const OURS: &str = "tidemill";
/// The same, answering on its event loop.
pub(crate) const INLINE: &str = "inline";

/// A server's name, its command, and what the load generator is told where it does not speak HELO. `{tidemill}` and `{bench}` stand for
/// the programs, `{port}` for the port.
pub(crate) type Known = (&'static str, &'static str, &'static str);

/// All servers that are known by name: ours, the peers, and for scale two that everybody knows.
const KNOWN: [Known; 9] = [
    (OURS, "{tidemill} serve {port} --log-level warn", ""),
    (INLINE, "{tidemill} serve {port} --log-level warn --inline", ""),
    ("tokio", "{bench} peer-tokio {port}", ""),
    ("floor", "{bench} peer-floor {port}", ""),
    ("channel", "{bench} peer-channel {port}", ""),
    ("tidemill-max4", "{tidemill} serve {port} --log-level warn --max-threads 4", ""),
    ("tidemill-max64", "{tidemill} serve {port} --log-level warn --max-threads 64", ""),
    ("redis", "redis-server --bind 127.0.0.1 --port {port} --save", "--request PING --expect +PONG"),
    (
        "memcached",
        "memcached -l 127.0.0.1 -p {port} -t 2 -c 12000 -u nobody",
        "--request version --expect VERSION*",
    ),
];

/// How to start a server.
#[derive(Clone, Debug)]
pub(crate) struct ServerSpec {
    pub(crate) name: String,
    /// Program and arguments; `{port}` stands for the port.
    command: Vec<String>,
    /// It prints `listening on ADDRESS` once clients can connect; any other is tried until it accepts.
    announces: bool,
    pub(crate) asks: &'static str,
}

impl ServerSpec {
    /// A server from `NAME=COMMAND`, as given on the command line.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("expected NAME=COMMAND")?;
        if !command.contains("{port}") {
            return Err("the command must contain {port}".to_owned());
        }
        let command = command.split_whitespace().map(str::to_owned).collect();
        Ok(ServerSpec { name: name.to_owned(), command, announces: true, asks: "" })
    }

    /// A server with our programs where they are.
    pub(crate) fn of((name, command, asks): Known, tidemill: &str) -> Result<Self> {
        let own = std::env::current_exe()?.display().to_string();
        // A path may have a blank in it.
        let place = |word: &str| word.replace("{tidemill}", tidemill).replace("{bench}", &own);
        let words = command.split_whitespace().map(place).collect();
        Ok(ServerSpec { name: name.to_owned(), command: words, announces: command.starts_with('{'), asks })
    }

    /// All that are known by name.
    pub(crate) fn known(tidemill: &str) -> Result<Vec<Self>> {
        KNOWN.into_iter().map(|known| ServerSpec::of(known, tidemill)).collect()
    }

    /// Starts the server and waits until clients can connect.
    pub(crate) fn start(&self, options: &[String], wrapper: &[String]) -> Result<Server> {
        // A port that nobody has.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let own = self.command.iter().map(|word| word.replace("{port}", &port.to_string()));
        let words: Vec<String> = wrapper.iter().cloned().chain(own).chain(options.iter().cloned()).collect();
        let (program, arguments) = words.split_first().ok_or(ErrorKind::InvalidInput)?;
        let said = |error: Error| Error::new(error.kind(), format!("{}: {program}: {error}", self.name));
        let mut command = Command::new(program);
        command.args(arguments);
        let server = if self.announces {
            Server::start(&mut command)
        } else {
            Server::start_silent(&mut command, ([127, 0, 0, 1], port).into())
        };
        server.map_err(said)
    }
}

/// How to start our server on a free port, with options that have no blanks in them.
pub(crate) fn serve(tidemill: &str, options: &str) -> Command {
    let mut command = Command::new(tidemill);
    command.args(["serve", "0"]).args(options.split_whitespace());
    command
}

/// A server that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Server {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// The last line of statistics that it printed.
    last: Arc<Mutex<Value>>,
    /// Its standard error, if that was piped.
    errors: Arc<Mutex<Vec<String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands each line to `take`, on a thread of its own that ends with the server.
fn read_lines(from: impl Read + Send + 'static, mut take: impl FnMut(String) + Send + 'static) {
    thread::spawn(move || BufReader::new(from).lines().map_while(Result::ok).for_each(&mut take));
}

impl Server {
    /// Starts a server that announces its address, and then may print statistics. Its standard error may be piped.
    ///
    /// # Errors
    /// If it cannot be started, or says something else.
    pub fn start(command: &mut Command) -> Result<Self> {
        let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut server = Server::of(process, ([0, 0, 0, 0], 0).into());
        let mut stdout = BufReader::new(server.process.stdout.take().expect("it is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        match line.trim_end().strip_prefix("listening on ").and_then(|address| address.parse().ok()) {
            Some(address) => server.address = address,
            None => {
                let mut why = String::new();
                server.process.stderr.take().map(|mut stderr| stderr.read_to_string(&mut why)).transpose()?;
                return Err(Error::other(format!("said {line:?} instead of its address: {why}")));
            }
        }
        let (last, errors) = (Arc::clone(&server.last), Arc::clone(&server.errors));
        read_lines(stdout, move |line| {
            if let Ok(value @ Value::Object(_)) = serde_json::from_str(&line) {
                *lock(&last) = value;
            }
        });
        if let Some(stderr) = server.process.stderr.take() {
            read_lines(stderr, move |line| lock(&errors).push(line));
        }
        Ok(server)
    }

    /// Starts a server that is to listen on `address` and does not say when it does.
    fn start_silent(command: &mut Command, address: SocketAddr) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Server::of(command.spawn()?, address);
        wait_for("it accepts", START_TIMEOUT, || TcpStream::connect(address).is_ok())?;
        Ok(server)
    }

    fn of(process: Child, address: SocketAddr) -> Self {
        Server { process, address, last: Arc::default(), errors: Arc::default() }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A number of its last statistics, by JSON pointer; NaN while there is none.
    pub(crate) fn figure(&self, pointer: &str) -> f64 {
        lock(&self.last).pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN)
    }

    /// What it said on standard error so far.
    pub(crate) fn errors(&self) -> Vec<String> {
        lock(&self.errors).clone()
    }

    /// Asks the server to stop, by SIGTERM, and waits for its end; an error if it had ended before, or had to be killed.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.process.try_wait()? {
            return Err(Error::other(format!("the server had ended: {status}")));
        }
        kill(Pid::from_raw(signed(self.pid())?), Signal::SIGTERM)?;
        let ended =
            wait_for("its end", STOP_TIMEOUT, || !matches!(self.process.try_wait(), Ok(None))).map(drop);
        if ended.is_err() {
            self.process.kill()?;
        }
        let status = self.process.wait()?;
        ended.map(|()| status)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
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
        assert!(error.to_string().starts_with("echo: echo: said"), "{error}");
    }

    #[test]
    fn what_a_server_says_of_itself_is_kept() {
        let mut shell = Command::new("sh");
        let script = "echo listening on 127.0.0.1:9; echo rubbish; echo '{\"a\":{\"b\":7}}'; echo why >&2; exec sleep 60";
        let mut server = Server::start(shell.args(["-c", script]).stderr(Stdio::piped())).unwrap();
        let is_kept = || (server.figure("/a/b"), server.errors().len()) == (7.0, 1);
        wait_for("all of it is kept", START_TIMEOUT, is_kept).unwrap();
        assert!(server.figure("/c").is_nan());
        assert!(!server.stop().unwrap().success());
    }
}

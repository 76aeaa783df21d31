//! What a service manager such as systemd gives a server, and what it is told: sockets, READY, WATCHDOG and their kin.
//!
//! Messages are left to an [`Output`] whose thread writes them, in order and whole: whoever speaks never waits for a manager
//! that does not read. WATCHDOG=1 is said when the event loop has answered, so that one that hangs is restarted, while workers
//! that are all stuck in a slow backend are not. Held by `tests/it/systemd.rs`. (The crate `sd-notify` would connect and write
//! on the caller's thread, and knows no abstract sockets.)

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::time::{ClockId, clock_gettime};
use tidemill::ServerHandle;

use crate::cli::output::Output;

/// How often the state in words is told anew if it has changed. For a person who looks.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How long the end waits for a manager that does not read.
const LAST_MESSAGES_TIMEOUT: Duration = Duration::from_millis(500);

/// The sockets that were passed to this process (`LISTEN_FDS`), which are listened on instead of what the options say.
///
/// It changes the environment, so it is called before there are threads.
///
/// # Errors
/// One line that says which one cannot be listened on.
pub(super) fn passed_sockets() -> Result<Vec<OwnedFd>, String> {
    let mut passed = ListenFd::from_env();
    let count = passed.len();
    let mut take = |number| {
        if let Ok(socket) = passed.take_tcp_listener(number) {
            return Ok(socket.map(OwnedFd::from));
        }
        let socket = passed.take_unix_listener(number);
        let message = |error| format!("LISTEN_FDS: {error}, nor a tcp socket");
        socket.map(|socket| socket.map(OwnedFd::from)).map_err(message)
    };
    (0..count).filter_map(|number| take(number).transpose()).collect()
}

/// The way to the service manager, if there is one. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Notifier {
    output: Option<Output>,
    /// The same socket, for what an output cannot say.
    socket: Option<Arc<UnixDatagram>>,
    /// How often it wants to hear that the server works.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// To the one that the environment names.
    ///
    /// # Errors
    /// What the system said when it refused the thread that writes.
    pub(super) fn from_env() -> io::Result<Notifier> {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let connected = connect(&name);
            connected
                .inspect_err(|error| tracing::warn!(%error, ?name, "cannot notify the service manager"))
                .ok()
        });
        let again = socket.as_ref().map(UnixDatagram::try_clone).transpose()?.map(Arc::new);
        let output = socket.map(|socket| Output::start("tidemill-notify", socket, |_| ())).transpose()?;
        let watchdog =
            watchdog(env::var_os("WATCHDOG_USEC").as_deref(), env::var_os("WATCHDOG_PID").as_deref());
        Ok(Notifier { watchdog: watchdog.filter(|_| output.is_some()), output, socket: again })
    }

    /// Clients can connect: READY=1, and from then on the state in words and the watchdog, until what is returned is dropped.
    ///
    /// # Errors
    /// What the system said when it refused the thread.
    pub(super) fn begin(&self, server: &ServerHandle) -> io::Result<Option<Teller>> {
        let Some(output) = self.output.clone() else { return Ok(None) };
        let addresses: Vec<String> = server.local_addrs().iter().map(ToString::to_string).collect();
        self.say(format!("READY=1\nSTATUS=serving on {}", addresses.join(", ")));
        let (end, ended) = mpsc::channel();
        let (server, watchdog) = (server.clone(), self.watchdog);
        let thread = thread::Builder::new()
            .name("tidemill-status".to_owned())
            .spawn(move || tell(&server, &output, watchdog, &ended))?;
        Ok(Some(Teller { end: Some(end), thread: Some(thread), notifier: self.clone() }))
    }

    /// The configuration is being read again; [`reloaded`](Self::reloaded) follows, whatever came of it.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        self.say(format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
    }

    /// See [`reloading`](Self::reloading).
    pub(super) fn reloaded(&self) {
        self.say("READY=1");
    }

    /// The service's main process is the one of this number from now on. Never blocks.
    pub(super) fn main_process(&self, id: u32) {
        self.say(format!("MAINPID={id}"));
    }

    /// Blocks until the manager has acted on all that was said, if it reads: after [`main_process`](Self::main_process) it signals
    /// that one only.
    pub(super) fn wait_until_read(&self) {
        if let (Some(output), Some(socket)) = (&self.output, &self.socket) {
            output.flush(LAST_MESSAGES_TIMEOUT);
            // One that cannot be asked is not waited for.
            wait_until_read(socket).unwrap_or_default();
        }
    }

    /// Says nothing more: another process speaks for the service.
    pub(super) fn fall_silent(&self) {
        if let Some(output) = &self.output {
            output.close();
        }
    }

    fn say(&self, message: impl Display) {
        if let Some(output) = &self.output {
            // Without room the manager has not read for long, and is beyond help.
            let _: bool = output.line(format!("{message}\n").into_bytes());
        }
    }
}

/// Tells the service manager how the server is, until it is dropped.
#[derive(Debug)]
pub(super) struct Teller {
    /// `None` once it is dropped.
    end: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    notifier: Notifier,
}

impl Drop for Teller {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It waits for the server's end at most. A panic there is in the log.
            drop(thread.join());
        }
        if let Some(output) = &self.notifier.output {
            output.finish(LAST_MESSAGES_TIMEOUT);
        }
    }
}

/// The thread of a [`Teller`].
fn tell(server: &ServerHandle, output: &Output, watchdog: Option<Duration>, ended: &Receiver<()>) {
    let every = watchdog.map_or(STATUS_INTERVAL, |watchdog| watchdog.min(STATUS_INTERVAL));
    let say = |message: String| output.line(format!("{message}\n").into_bytes());
    let (mut stopping, mut told) = (false, String::new());
    loop {
        if let Some(watchdog) = watchdog
            && server.is_alive(watchdog)
        {
            say("WATCHDOG=1".to_owned());
        }
        if stopping {
            if !matches!(ended.recv_timeout(every), Err(RecvTimeoutError::Timeout)) {
                return;
            }
        } else if server.wait_stopping(every) {
            // Once, however it ends.
            (stopping, told) = (true, status(server, true));
            say(format!("STOPPING=1\nSTATUS={told}"));
            continue;
        }
        let now = status(server, stopping);
        if now != told {
            say(format!("STATUS={now}"));
            told = now;
        }
    }
}

/// The server's state in words.
fn status(server: &ServerHandle, stopping: bool) -> String {
    let stats = server.stats();
    let (connections, pending) = (stats.connections, stats.requests_pending);
    if stopping {
        let state = server.state();
        return format!("{state}: {connections} connections, {pending} requests pending");
    }
    let (busy, threads, max) = (stats.pool_busy, stats.pool_threads, stats.pool_max);
    format!(
        "{connections} connections, {pending} requests pending, {busy} of {threads} workers busy, at most {max}"
    )
}

/// Blocks until the manager has acted on all that was said before, for [`LAST_MESSAGES_TIMEOUT`] at most: it closes what it is given
/// with this message then, and the system does where it knows no such message.
///
/// # Errors
/// What the system said; [`ErrorKind::WouldBlock`](io::ErrorKind::WouldBlock) where it does not read.
fn wait_until_read(socket: &UnixDatagram) -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let given = [writer.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&given)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    sendmsg(socket, &[IoSlice::new(b"BARRIER=1")], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    drop(writer);
    let timeout = Timespec::try_from(LAST_MESSAGES_TIMEOUT).ok();
    retry_on_intr(|| poll(&mut [PollFd::new(&reader, PollFlags::IN)], timeout.as_ref()))?;
    Ok(())
}

/// A socket that writes to the one of this name: a path, or of the abstract kind behind `@`.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    #[cfg(target_os = "linux")]
    let named = match name.as_bytes() {
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            Some(SocketAddr::from_abstract_name(name)?)
        }
        _ => None,
    };
    #[cfg(not(target_os = "linux"))]
    let named = None;
    let address = named.map_or_else(|| SocketAddr::from_pathname(name), Ok)?;
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// How often to say that the server works: twice as often as is asked for, where this process is the one that is asked.
fn watchdog(micros: Option<&OsStr>, process: Option<&OsStr>) -> Option<Duration> {
    let is_ours = process.is_none_or(|id| id == OsString::from(process::id().to_string()).as_os_str());
    let micros: u64 = micros.filter(|_| is_ours)?.to_str()?.parse().ok()?;
    (micros > 0).then(|| Duration::from_micros(micros) / 2)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Condvar, Mutex};

    use tidemill::{Handler, Kind, Reply, Request, Server};

    use super::*;

    /// Answers on the event loop, and not before it is let.
    #[derive(Clone, Default)]
    struct Held(Arc<(Mutex<(bool, bool)>, Condvar)>);

    impl Handler for Held {
        fn handle(&self, _: &Request<'_>, _: &mut Reply<'_>) {
            let mut state = self.0.0.lock().unwrap();
            state.0 = true;
            self.0.1.notify_all();
            drop(self.0.1.wait_while(state, |state| !state.1).unwrap());
        }

        fn classify(&self, _: &[u8]) -> Kind {
            Kind::Inline
        }
    }

    #[test]
    fn the_watchdog_hears_nothing_while_the_loop_does_not_turn() {
        let held = Held::default();
        let server = Server::builder(held.clone()).listen("127.0.0.1:0".parse().unwrap()).start().unwrap();
        let handle = server.handle();
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let said = || {
            let mut message = [0; 1024];
            let len = ours.recv(&mut message).expect("a message");
            String::from_utf8(message[..len].to_vec()).unwrap()
        };
        let output = Output::start("output", theirs, |_| ()).unwrap();
        let (end, ended) = mpsc::channel();
        let teller = thread::spawn({
            let handle = handle.clone();
            move || tell(&handle, &output, Some(Duration::from_millis(20)), &ended)
        });
        while said() != "WATCHDOG=1\n" {}
        let mut client = std::net::TcpStream::connect(handle.local_addr()).unwrap();
        std::io::Write::write_all(&mut client, b"x\n").unwrap();
        drop(held.0.1.wait_while(held.0.0.lock().unwrap(), |state| !state.0).unwrap());
        // What it says of the pool needs no loop. Behind the first such message the loop has not answered.
        for (max, may_answer) in [(50, true), (51, false), (52, false)] {
            handle.set_pool_limits(handle.pool_limits().threads(1, max)).unwrap();
            loop {
                match said() {
                    message if message.ends_with(&format!("at most {max}\n")) => break,
                    message => assert!(may_answer || message != "WATCHDOG=1\n"),
                }
            }
        }
        held.0.0.lock().unwrap().1 = true;
        held.0.1.notify_all();
        while said() != "WATCHDOG=1\n" {}
        handle.stop();
        drop(end);
        teller.join().unwrap();
        drop((client, server));
    }

    #[test]
    fn the_watchdog_is_answered_twice_as_often_as_asked_and_only_by_who_is_asked() {
        let asked =
            |micros: &str, process: Option<&str>| watchdog(Some(micros.as_ref()), process.map(OsStr::new));
        let own = process::id().to_string();
        assert_eq!(asked("3000000", None), Some(Duration::from_millis(1500)));
        assert_eq!(asked("1000", Some(&own)), Some(Duration::from_micros(500)));
        assert_eq!(asked("3000000", Some("1")), None);
        assert_eq!(asked("0", None), None);
        assert_eq!(asked("x", None), None);
        assert_eq!(watchdog(None, None), None);
    }
}

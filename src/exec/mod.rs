//! Programs as handlers: requests go to co-processes, in any language, that read lines and write lines.
//!
//! [`Programs`] is a [`Service`]: give it to [`Server::builder`](crate::Server::builder). For each worker of the pool there is a program, started
//! before its first request, so the pool's rule sizes both: a worker that waits for a program is a worker that blocks. Programs
//! are shared: any of them takes the next request of anybody, one at a time, and gives one reply.
//!
//! ```
//! use tidemill::Server;
//! use tidemill::exec::{ExecConfig, Programs};
//!
//! let programs = Programs::start("sh -c 'while read -r line; do echo \"you said $line\"; done'", ExecConfig::default())?;
//! let server = Server::builder(programs).listen("127.0.0.1:0".parse()?).threads(1, 8).start()?;
//! # let mut client = tidemill::client::Client::connect(server.local_addr().tcp().unwrap(), std::time::Duration::from_secs(20))?;
//! # client.send(b"hello\n")?;
//! # assert_eq!(client.read_line()?, b"you said hello");
//! server.handle().stop();
//! assert!(server.wait()?.is_clean());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a program has to do
//!
//! Read requests from its standard input until that ends, write each reply whole to its standard output, and flush it: most languages hold
//! back what they write to a pipe (`python3 -u` or `print(…, flush=True)`, `$| = 1` in Perl, `fflush()` in awk, `stdbuf -oL`; else
//! [`ExecConfig::pty`]). Lines come with `\n` at their end, whatever the client sent. Standard error goes to the log, line by line. It gets
//! no signal but at its end.
//!
//! # What is shared, and what never is
//!
//! A reply goes to the request that was written before it, or nowhere. What a program writes before it is asked, or behind its reply,
//! replaces the program; so does a reply that does not come in time ([`ExecConfig::timeout`]). The next request is not written before the
//! program reads its input again, which shows in `/proc` where its first thread does that: until then whatever it writes belongs to the
//! request before. It costs no time, as the program would not take it sooner. One bound remains that nobody can move from outside, for
//! programs whose reading does not show so (several threads, an event loop, a script around them): what they write after their reply was
//! complete, and *after* the next request was written, cannot be told from the reply to that. A program that answers each request once,
//! when it was asked, never does that.
//!
//! A request whose program ends, or breaks the framing, is answered [`FAILED`], once. If the program had not read a byte of it,
//! another one gets it, and nobody notices. While programs end as soon as they are started requests are answered [`UNAVAILABLE`].
//!
//! # Leased
//!
//! With [`Mode::Leased`] a program belongs to one connection until that closes: bytes flow both ways at any time, on the event loop, and nobody
//! looks at them; the end of either side is passed on, and what the other does not take is held back. Nothing is framed, no reply is
//! waited for, and no worker takes part. What its client has not read when the connection ends is lost, as is what it writes then.
//!
//! # What remains
//!
//! Nothing: each program is a process group of its own, whose rest is killed when the program has ended; dropping [`Programs`], which the
//! server's end does, ends them all and waits for that. If the server's process is killed, programs meet the end of their input. One that does
//! not read then needs the kernel's parent-death signal, which cannot be asked for from here without `unsafe`: let a command set
//! it that becomes the program ([`ExecConfig::launcher`]), such as `setpriv --pdeathsig KILL`; the `tidemill` program is one itself.

mod command;
mod extent;
mod keeper;
mod leased;
mod log;
mod look;
mod prefix;
mod program;
mod shared;
mod stats;
mod terminal;

use std::ffi::OsString;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Poll, Waker};

use crate::error::Error;
use crate::framing::Framing;
use crate::service::{Connection, Farewell, Join, Reply, Request, Service};
use crate::sync::lock_std;
use crate::threads;
pub use extent::Extent;
use extent::Requests;
use keeper::Keeper;
pub use leased::Mode;
use log::Notice;
use look::Doing;
use prefix::Prefix;
use program::{Failure, Program};
use shared::{Busy, End, Settings, Shared};
pub use stats::{ProgramEnds, ProgramStats, ProgramsStats};

/// What a request is answered whose program ended or broke the framing, in place of a reply.
pub const FAILED: &str = "ERROR program failed\n";
/// What a request is answered while no program stays where it is started.
pub const UNAVAILABLE: &str = "ERROR program unavailable\n";
/// Most programs that can be kept ready: each is a process.
const MAX_SPARE: usize = 10_000;
/// Stack of the keeper's thread, in bytes: of what is not ours only the subscriber of logs runs on it.
const KEEPER_STACK_BYTES: usize = 512 << 10;

/// What can be set for [`Programs`].
///
/// A plain value: change what matters and leave the rest.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExecConfig {
    /// How programs and clients meet. Of the settings below only `spare`, `pty`, `stop_timeout` and `launcher` mean anything where they are
    /// [leased](Mode::Leased). Default: shared.
    pub mode: Mode,
    /// What a request is. Default: a line.
    pub request: Extent,
    /// Where a reply ends. [`Extent::None`]: there are no replies, and what programs write is thrown away. Default: behind a line.
    pub reply: Extent,
    /// Goes before each request, as it is, with `{peer}`, `{peer_ip}`, `{connection}` and `{request}` replaced by the client's address, the same
    /// without port, and the numbers of the connection and of the request. Control characters in such a value become `?`. Default:
    /// nothing.
    pub prefix: String,
    /// How long one reply may take. The program is ended then and replaced, since its late reply must not become
    /// another's. From 1 ms to [`MAX_DURATION`](crate::MAX_DURATION). Default: 30 s.
    pub timeout: Duration,
    /// Programs that are kept started and ready above those that workers have. Default: 1.
    pub spare: usize,
    /// Where they are leased, programs at least, those of connections among them; not with `spare` 0, where none is started before its
    /// client is there. Default: 0.
    pub least: usize,
    /// A program is replaced after so many requests. At least 1. Default: `None`.
    pub max_requests: Option<u64>,
    /// A program is replaced at this age, whether it is asked or not, between two requests: it ends when its successor is ready, and
    /// of many that come of age together a quarter at a time. Default: `None`.
    pub max_age: Option<Duration>,
    /// Gives programs a terminal for their output, against those that hold back what they write to a pipe. Default: off.
    pub pty: bool,
    /// What a program gets to end in: its input has ended, after a quarter of it its process group gets SIGTERM, at the end SIGKILL. Up to
    /// [`MAX_DURATION`](crate::MAX_DURATION). Default: 2 s.
    pub stop_timeout: Duration,
    /// Most bytes of a request where it is not one line; of one line [`Config::max_line_bytes`](crate::Config::max_line_bytes) is the
    /// limit. Default: 65 536.
    pub max_request_bytes: usize,
    /// A line that stops the server, from peers that may ([`Config::stop_from`](crate::Config::stop_from)). Default: `None`.
    pub stop_line: Option<String>,
    /// Words that are put before the command when it is started, not when it is looked for: a command that prepares something and
    /// becomes the program (`exec`). Default: none.
    pub launcher: Vec<OsString>,
}

impl Default for ExecConfig {
    fn default() -> Self {
        ExecConfig {
            mode: Mode::Shared,
            request: Extent::Line,
            reply: Extent::Line,
            prefix: String::new(),
            timeout: Duration::from_secs(30),
            spare: 1,
            least: 0,
            max_requests: None,
            max_age: None,
            pty: false,
            stop_timeout: Duration::from_secs(2),
            max_request_bytes: 65_536,
            stop_line: None,
            launcher: Vec::new(),
        }
    }
}

impl ExecConfig {
    /// Whether programs of `command` could be started with this; none is.
    ///
    /// # Errors
    /// [`Error::Setting`] as of [`Programs::start`].
    pub fn check(&self, command: &str) -> Result<(), Error> {
        check(command, self.clone()).map(drop)
    }
}

/// A service that hands requests to programs. See the [module](self).
///
/// Dropping it ends the programs, and blocks until they are gone, for [`ExecConfig::stop_timeout`] and a second at most.
#[derive(Debug)]
pub struct Programs {
    handle: ProgramsHandle,
}

/// Reaches the programs from any thread, also while a server has the service. Cheap to clone.
#[derive(Clone)]
pub struct ProgramsHandle {
    shared: Arc<Shared>,
    keeper: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// What a worker has of its own: a place among those for whom programs are kept.
pub struct Seat {
    shared: Arc<Shared>,
    /// The request as the program gets it. Kept for its capacity.
    request: Vec<u8>,
}

impl Programs {
    /// Looks for the program of `command`, split into words as a POSIX shell does and run without one, and starts the spares.
    ///
    /// # Errors
    /// [`Error::Setting`] for what cannot be found or run, and for settings out of range; [`Error::Poll`] or [`Error::Thread`] where the
    /// system refuses what it takes to keep programs. Nothing is left running.
    pub fn start(command: &str, config: ExecConfig) -> Result<Programs, Error> {
        let settings = check(command, config)?;
        let poll = Poll::new().map_err(|source| Error::Poll { source })?;
        let waker = Waker::new(poll.registry(), keeper::WAKER).map_err(|source| Error::Poll { source })?;
        let shared = Arc::new(Shared::new(settings, waker));
        let keeper = Keeper::new(Arc::clone(&shared), poll);
        let name = "tidemill-exec";
        let thread = threads::spawn(name.to_owned(), KEEPER_STACK_BYTES, move || keeper.run())
            .map_err(|source| Error::Thread { name, source })?;
        Ok(Programs { handle: ProgramsHandle { shared, keeper: Arc::new(Mutex::new(Some(thread))) } })
    }

    /// A handle to the programs.
    pub fn handle(&self) -> ProgramsHandle {
        self.handle.clone()
    }
}

fn check(command: &str, config: ExecConfig) -> Result<Settings, Error> {
    let refuse = |name, value: String, must| Error::Setting { name, value, must };
    let ExecConfig {
        mode,
        request,
        reply,
        prefix,
        timeout,
        spare,
        least,
        max_requests,
        max_age,
        pty,
        stop_timeout,
        ..
    } = config;
    let program = command::Program::find(command, config.launcher)
        .map_err(|must| refuse("exec", format!("'{command}'"), must))?;
    let requests = match request {
        Extent::Line => None,
        Extent::None => {
            return Err(refuse(
                "exec_request",
                request.to_string(),
                "line, lines:N or until:TEXT".to_owned(),
            ));
        }
        extent => Some(Requests { extent, max_bytes: config.max_request_bytes }),
    };
    let prefix = Prefix::parse(&prefix).map_err(|must| refuse("exec_prefix", format!("'{prefix}'"), must))?;
    let durations = [
        ("exec_timeout", Some(timeout), Duration::from_millis(1)),
        ("exec_max_age", max_age, Duration::from_millis(1)),
        ("exec_stop", Some(stop_timeout), Duration::ZERO),
    ];
    for (name, value, least) in durations {
        if let Some(value) = value.filter(|value| *value < least || *value > crate::MAX_DURATION) {
            return Err(refuse(name, format!("{value:?}"), format!("{least:?} to 365 days")));
        }
    }
    if max_requests == Some(0) {
        return Err(refuse("exec_max_requests", "0".to_owned(), "at least 1".to_owned()));
    }
    if spare > MAX_SPARE {
        return Err(refuse("exec_spare", spare.to_string(), format!("at most {MAX_SPARE}")));
    }
    Ok(Settings {
        command: program,
        requests,
        reply,
        prefix,
        timeout,
        spare,
        max_requests,
        max_age: max_age.filter(|_| mode == Mode::Shared),
        pty,
        stop_timeout,
        mode,
        least,
        stop_line: config.stop_line.map(String::into_bytes),
    })
}

impl Drop for Programs {
    fn drop(&mut self) {
        self.handle.end(self.handle.shared.settings.stop_timeout);
    }
}

impl ProgramsHandle {
    /// What was counted of the programs.
    pub fn stats(&self) -> ProgramsStats {
        self.shared.stats()
    }

    /// Calls `watcher` with whether programs stay where they are started ([`ProgramsStats::available`]): at once, and whenever that changes,
    /// on the thread that keeps them, which it must not block. One at a time: called again, this replaces it.
    pub fn watch(&self, watcher: impl Fn(bool) + Send + 'static) {
        self.shared.watch(Box::new(watcher));
    }

    /// The programs that run, the oldest first, `most` at the most: a look at each takes some 10 µs.
    pub fn programs(&self, most: usize) -> Vec<ProgramStats> {
        self.shared.programs(most)
    }

    /// Ends the programs, those that are with a worker too, for good: what they have not answered is failed. They get `grace` for it;
    /// with none, they are killed. Blocks until they are gone, for a second beyond that at most.
    pub fn end(&self, grace: Duration) {
        self.shared.stop(grace);
        if let Some(thread) = lock_std(&self.keeper).take()
            && thread.join().is_err()
        {
            tracing::error!("the programs' thread panicked");
        }
    }
}

impl fmt::Debug for ProgramsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramsHandle")
            .field("command", &self.shared.settings.command)
            .finish_non_exhaustive()
    }
}

impl Service for Programs {
    type State = ();
    type Worker = Seat;

    /// Blocks until there is a program for this worker: until then it is not one that could take a request, and so the pool does not
    /// take it for one that waits for nothing.
    fn start_worker(&self) -> Seat {
        Seat::new(&self.handle.shared)
    }

    /// Workers that start do not wait until their program has, as nobody may need it. A request that comes to one of them waits for it
    /// all the same.
    fn stopping(&self) {
        self.handle.shared.hurry();
    }

    fn joins(&self) -> Option<&dyn Join> {
        (self.handle.shared.settings.mode == Mode::Leased).then_some(self)
    }

    fn open(&self, _: &mut Seat, _: &Connection<'_>, _: &mut Reply<'_>) {}

    fn handle(&self, (): &mut (), seat: &mut Seat, request: &Request<'_>, reply: &mut Reply<'_>) {
        seat.serve(request, reply);
    }

    fn framing<'a>(&'a self, (): &'a ()) -> Option<&'a dyn Framing> {
        self.handle.shared.settings.requests.as_ref().map(|requests| requests as &dyn Framing)
    }

    fn stop_line(&self) -> Option<&[u8]> {
        self.handle.shared.settings.stop_line.as_deref()
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        let line = match (farewell, &self.handle.shared.settings.stop_line) {
            (Farewell::StopRefused, Some(line)) => {
                format!("ERROR {} refused\n", String::from_utf8_lossy(line))
            }
            _ => format!("{farewell}\n"),
        };
        Some(line.into_bytes())
    }

    fn name(&self) -> &str {
        "exec"
    }

    fn has_sessions(&self) -> bool {
        false
    }
}

impl Seat {
    fn new(shared: &Arc<Shared>) -> Seat {
        shared.enter(Instant::now() + shared.settings.timeout);
        Seat { shared: Arc::clone(shared), request: Vec::new() }
    }

    fn serve(&mut self, request: &Request<'_>, reply: &mut Reply<'_>) {
        let Seat { shared, request: line } = self;
        let settings = &shared.settings;
        line.clear();
        line.shrink_to(program::KEPT_BYTES);
        settings.prefix.write(request, || shared.next_request(), line);
        extent::write_lines(request.frame(), line);
        let until = Instant::now() + settings.timeout;
        loop {
            let Some((mut program, busy)) = shared.take(until) else {
                reply.push(UNAVAILABLE.as_bytes());
                return;
            };
            let id = program.card.id;
            let silent = |program: &Program| name_held_back(shared, program);
            let asked = request.awaiting(id, || program.ask(line, &settings.reply, settings.timeout, silent));
            match asked {
                Ok(answer) => {
                    reply.push(answer.reply);
                    let more = answer.more;
                    shared.served.fetch_add(1, Relaxed);
                    let served = program.has_served();
                    keep(shared, program, busy, more, served);
                    return;
                }
                Err(failed) => {
                    let end = match failed.why {
                        Failure::Ended => End::Died,
                        Failure::TimedOut => End::TimedOut,
                        Failure::Spoke | Failure::TooLong => End::Broke,
                    };
                    if !failed.untouched {
                        tell_failed(shared, &program, failed.why, end);
                    }
                    shared.retire(program, busy, end, failed.untouched);
                    // Where it had not read any of it another one may have it.
                    if !failed.untouched || Instant::now() >= until {
                        reply.push(FAILED.as_bytes());
                        return;
                    }
                }
            }
        }
    }
}

/// The program has served so many requests. Those that are not to serve another end now, so that their successor starts before it
/// is needed.
fn keep(shared: &Shared, program: Program, busy: Busy<'_>, wrote_more: bool, served: u64) {
    if wrote_more {
        if let Some(since) = shared.notice(Notice::Trailing) {
            let number = program.card.number;
            tracing::warn!(
                program = number,
                since,
                "a program writes more than one reply to a request, and is replaced each time: does --exec-reply say where its replies end?"
            );
        }
        shared.retire(program, busy, End::Broke, false);
    } else if shared.settings.max_requests.is_some_and(|most| served >= most) {
        shared.retire(program, busy, End::Replaced, false);
    } else {
        shared.give_back(program, busy);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.leave();
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").finish_non_exhaustive()
    }
}

/// Names held-back output, once: the program has read its request, has written nothing for a second, and waits for more.
fn name_held_back(shared: &Shared, program: &Program) {
    let waits = || program.input_inode().and_then(|inode| look::doing(program.card.id, inode));
    if shared.is_named.load(Relaxed) {
        return;
    }
    if !program.has_read_all() || waits() != Some(Doing::Reads) || shared.is_named.swap(true, Relaxed) {
        return;
    }
    tracing::warn!(
        program = program.card.number,
        "a program has read its request, has written nothing for a second, and waits for its next input: it holds back its output, or \
         wants more lines for a request. Have it flush after each reply (python3 -u, $| = 1 in Perl, fflush() in awk, mawk -W interactive, stdbuf -oL), or try \
         --exec-pty; or say with --exec-request what a request is"
    );
}

/// Tells of a request that was failed, now and then.
fn tell_failed(shared: &Shared, program: &Program, why: Failure, end: End) {
    let Some(since) = Notice::of(end).and_then(|notice| shared.notice(notice)) else { return };
    let what = match why {
        Failure::Ended => {
            "ended, or closed its output, with a request inside, which is answered ERROR program failed"
        }
        Failure::TimedOut => {
            "did not reply in time (--exec-timeout) and is replaced; its request is answered ERROR program failed"
        }
        Failure::TooLong => "replies without end: does --exec-reply say where its replies end?",
        Failure::Spoke => "replied to what it had not read: does --exec-request say what a request is?",
    };
    tracing::warn!(program = program.card.number, since, "a program {what}");
}

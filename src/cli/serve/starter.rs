//! How a process that is to take this one's place is started: by one in between, which is gone by the time it takes over.
//!
//! A service manager waits, in a stop, for a main process that is its own child, and kills any other at once (systemd: "is not our
//! child"). So the new process is started by one in between, this very program, which ends as soon as the new one is ready: that is
//! the service manager's child then, as all are whose parent has gone. Until then the one in between waits for it, so that how it
//! ended can be told. Not in here: what old and new say to each other (`upgrade`). Held by `tests/it/systemd/real.rs`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, pidfd_send_signal};

use super::records::{far, receive, send};

/// The first argument of the process in between. Not a subcommand: it is nobody's to type.
const NAME: &str = "--starts";
/// What the one in between says once it has: its own end of the socket pair is the new one's standard input. The number of the new
/// process follows, and a descriptor of it comes along.
const STARTED: &[u8] = b"started ";
/// What it says where it could not; why follows.
const REFUSED: &[u8] = b"refused ";
/// How long a process that has let go of its end of the pair has to end by itself, so that its exit status can be told.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Whether the program was started as the one in between; then it does not return but with an exit status.
pub(crate) fn run() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().as_deref() != Some(OsStr::new(NAME)) {
        return None;
    }
    let mut command = Command::new(arguments.next()?);
    command.arg0(arguments.next()?).args(arguments);
    Some(start(command).unwrap_or_else(|error| {
        // Whoever reads it may be gone.
        send(&io::stdin(), &[REFUSED, error.to_string().as_bytes()].concat(), None, far())
            .unwrap_or_default();
        ExitCode::FAILURE
    }))
}

/// Starts it, tells of it, and ends as it does.
fn start(mut command: Command) -> io::Result<ExitCode> {
    let nothing = File::open("/dev/null")?;
    let mut child = command.spawn()?;
    let process = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(process) => process,
        Err(error) => {
            // Nobody could end it.
            child.kill().and_then(|()| child.wait()).map(drop)?;
            return Err(error.into());
        }
    };
    let said = [STARTED, child.id().to_string().as_bytes()].concat();
    if send(&io::stdin(), &said, Some(process.as_fd()), far()).is_err() {
        // Nobody is left whose place it could take.
        child.kill()?;
    }
    // From here on only the new one has that end, so that its end is seen.
    rustix::stdio::dup2_stdin(nothing)?;
    let status = child.wait()?;
    if let Some(signal) = status.signal().and_then(Signal::from_named_raw) {
        kill_process(getpid(), signal)?;
    }
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// A process that was started, and may take this one's place.
#[derive(Debug)]
pub(super) struct Successor {
    id: u32,
    process: OwnedFd,
    /// The one in between, until the new one is ready.
    between: Option<Child>,
    is_unasked: bool,
}

impl Successor {
    /// Starts `program` with these arguments, the first of which is its name, as `dress` says. `pair`: this process's end of that
    /// which becomes its standard input.
    ///
    /// # Errors
    /// Why it cannot be started, or what `why_not` says of what the system says where nothing is heard of it. None is left, then.
    pub(super) fn start(
        program: &Path,
        arguments: impl IntoIterator<Item = OsString>,
        dress: impl FnOnce(&mut Command),
        pair: &OwnedFd,
        deadline: Instant,
        why_not: impl FnOnce(io::Error) -> String,
    ) -> Result<Successor, String> {
        let refused = |reason: &str| format!("{} cannot be started: {reason}", program.display());
        // By this name it is found though another one has taken its place on the disk.
        let mut command = Command::new("/proc/self/exe");
        command.arg(NAME).arg(program).args(arguments);
        dress(&mut command);
        let spawned = command.spawn();
        // It holds the other end of the pair, whose closing is how the end of the new process is noticed.
        drop(command);
        let between = spawned.map_err(|error| refused(&error.to_string()))?;
        let mut is_unasked = false;
        let told = loop {
            match receive(pair, deadline) {
                Ok((said, Some(process))) if said.starts_with(STARTED) => {
                    let id = str::from_utf8(&said[STARTED.len()..]).ok().and_then(|id| id.parse().ok());
                    break id.map(|id| (id, process)).ok_or_else(|| refused("its number is not known"));
                }
                Ok((said, None)) if said.starts_with(REFUSED) => {
                    break Err(refused(&String::from_utf8_lossy(&said[REFUSED.len()..])));
                }
                // That was the new one.
                Ok(_) => is_unasked = true,
                Err(error) => break Err(why_not(error)),
            }
        };
        match told {
            Ok((id, process)) => Ok(Successor { id, process, between: Some(between), is_unasked }),
            Err(reason) => {
                // It may have started it, and not have told: who cannot tell ends what it has started. What it told since is here.
                let _ = shutdown(pair, Shutdown::Both);
                while let Ok((_, process)) = receive(pair, Instant::now() + LAST_MOMENT) {
                    let _ = process.map(|process| pidfd_send_signal(&process, Signal::KILL));
                }
                wait_or_kill(between);
                Err(reason)
            }
        }
    }

    /// Whether it has spoken before it was told anything.
    pub(super) fn is_unasked(&self) -> bool {
        self.is_unasked
    }

    /// The number of the process.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// It is ready: from now on it is a child of the service manager, or of whoever else adopts those whose parent has gone.
    pub(super) fn adopt_out(&mut self) {
        if let Some(mut between) = self.between.take() {
            // It has not been waited for. What it would tell is of no account any more.
            between.kill().and_then(|()| between.wait()).map(drop).unwrap_or_default();
        }
    }

    /// Whether it ends within `timeout`.
    pub(super) fn has_ended(&self, timeout: Duration) -> bool {
        ended(&self.process, timeout)
    }

    /// Ends it, unless it ends by itself within `patience`, a moment at most; `timeout`: from SIGTERM to SIGKILL.
    /// Returns how it ended by itself, if that was a failure and is known.
    pub(super) fn end(mut self, patience: Duration, timeout: Duration) -> Option<ExitStatus> {
        let by_itself = self.has_ended(patience.min(LAST_MOMENT));
        if !by_itself {
            // It may have ended meanwhile.
            let _ = pidfd_send_signal(&self.process, Signal::TERM);
            if !self.has_ended(timeout) {
                let _ = pidfd_send_signal(&self.process, Signal::KILL);
            }
        }
        wait_or_kill(self.between.take()?).filter(|status| by_itself && !status.success())
    }
}

/// Waits a moment for the one in between to end by itself.
fn wait_or_kill(mut between: Child) -> Option<ExitStatus> {
    let process = pidfd_open(Pid::from_child(&between), PidfdFlags::empty());
    if !process.is_ok_and(|process| ended(&process, LAST_MOMENT)) {
        between.kill().unwrap_or_default();
    }
    between.wait().ok()
}

/// Whether a process ends within `timeout`.
fn ended(process: &OwnedFd, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).ok();
    retry_on_intr(|| poll(&mut [PollFd::new(process, PollFlags::IN)], timeout.as_ref()))
        .is_ok_and(|ended| ended > 0)
}

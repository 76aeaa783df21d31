//! What becomes a program of `serve --exec`: this very program, started with what it is to become.
//!
//! It does what has to be done in the new process and cannot be done from the old one without `unsafe`: closes what it inherited besides its
//! three streams, and asks the kernel for SIGKILL when the server's process ends, however that happens. Then it becomes the
//! program, which keeps both.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::{env, fs};

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

/// The first argument. Not a subcommand: it is nobody's to type.
const NAME: &str = "--becomes";
/// What a shell says where it cannot execute.
const CANNOT_EXECUTE: u8 = 126;

/// The words to put before a program, which is then started by this process. `executable`: this program; unless that is known
/// programs are started without.
pub(super) fn launcher(executable: Option<PathBuf>) -> Vec<OsString> {
    let Some(executable) = executable else { return Vec::new() };
    // By this name it is found though another one has taken its place on the disk.
    let own = PathBuf::from("/proc/self/exe");
    let path = if own.exists() { own } else { executable };
    vec![path.into_os_string(), NAME.into(), getpid().as_raw_nonzero().to_string().into()]
}

/// Whether the program was started as a launcher; then it does not return but with an exit status.
pub(super) fn run() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().as_deref() != Some(OsStr::new(NAME)) {
        return None;
    }
    let parent = arguments.next().and_then(|parent| parent.to_str()?.parse().ok()).and_then(Pid::from_raw);
    let path = arguments.next()?;
    close_inherited();
    // It may have ended before it was asked for.
    if set_parent_process_death_signal(Some(Signal::KILL)).is_ok() && getppid() != parent {
        return Some(ExitCode::from(CANNOT_EXECUTE));
    }
    let error = Command::new(&path).args(arguments).exec();
    drop(writeln!(io::stderr(), "cannot run {}: {error}", path.display()));
    Some(ExitCode::from(CANNOT_EXECUTE))
}

/// Closes every descriptor above the three.
fn close_inherited() {
    let Ok(listed) = fs::read_dir("/proc/self/fd") else { return };
    let numbers = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // That of the list is closed with it, before.
    let numbers: Vec<i32> = numbers.filter(|number| *number > 2).collect();
    for number in numbers {
        let _ = nix::unistd::close(number);
    }
}

//! The examples as programs of their own, each driven by clients of other makes, where they are installed.
//!
//! `.ci/run` installs them, and sets `CLIENTS_REQUIRED`: what is missing then fails the test.

mod chat;
mod kv;
mod lookup;
mod smtp;
mod upper;

use std::env;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{Ended, Serving, skipped};

/// Starts the example `name` on a free port.
#[track_caller]
fn example(name: &str, arguments: &[&str]) -> Serving {
    let mut command = Command::new(executable(name));
    command.arg("127.0.0.1:0").args(arguments).stdin(Stdio::null());
    Serving::start(command)
}

/// Cargo puts examples beside the directory of the tests.
#[track_caller]
fn executable(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let path = test.parent().unwrap().with_file_name("examples").join(name);
    assert!(path.exists(), "{} is not built: run cargo test, or cargo build --examples", path.display());
    path
}

/// SIGTERM ends an example, and it lost nothing.
#[track_caller]
fn stop(example: Serving) {
    let ended = example.stop();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

/// Runs a client to its end. `None` where it is not installed, which is told.
#[track_caller]
pub(crate) fn client(command: &mut Command) -> Option<Ended> {
    let ended = Ended::try_of(command.stdin(Stdio::null()));
    match ended {
        Ok(ended) => Some(ended),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            missing(&format!("{} is not installed", command.get_program().display()));
            None
        }
        Err(error) => panic!("{command:?}: {error}"),
    }
}

/// A client of another make is missing.
#[track_caller]
pub(crate) fn missing(what: &str) {
    assert!(env::var_os("CLIENTS_REQUIRED").is_none(), "CLIENTS_REQUIRED is set, but {what}");
    skipped(what);
}

//! Programs as handlers: `serve --exec`, with real programs.

mod leased;
mod mixups;
mod pipe;
mod real;
mod remains;
mod replaced;
mod shared;
mod usage;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::examples::missing;
use crate::support::{Serving, eventually, program, scratch};

/// A program that does as it is told: most lines come back, some words mean something else.
const OBEDIENT: &str = r#"
while read -r word rest; do
    case $word in
        pid) echo $$ ;;
        number) echo "$TIDEMILL_PROGRAM" ;;
        exit) exit 3 ;;
        half) printf half; sleep 60 ;;
        silent) sleep 60 ;;
        two) echo "$rest"; echo again ;;
        later) echo "$rest"; sleep 0.05; echo late ;;
        sleep) sleep "$rest"; echo slept ;;
        say) echo "$rest" >&2; echo said ;;
        *) echo "$word${rest:+ $rest}" ;;
    esac
done
"#;

/// `serve --exec` with a script for the shell, and further `options`, separated by blanks.
#[track_caller]
fn serve_script(script: &str, options: &str) -> Serving {
    serve_exec(&format!("sh {}", file("program.sh", script).display()), options)
}

/// `serve --exec` with further `options`, separated by blanks.
#[track_caller]
fn serve_exec(command: &str, options: &str) -> Serving {
    let mut server = program();
    server.args(["serve", "0", "--exec", command]).args(options.split_whitespace());
    Serving::start(server)
}

/// A file with this content, in a directory of its own.
fn file(name: &str, content: &str) -> PathBuf {
    let path = scratch("exec").join(name);
    fs::write(&path, content).unwrap();
    path
}

/// A line of digits that a program answered.
fn number(line: &[u8]) -> u32 {
    let text = std::str::from_utf8(line).unwrap().trim_end();
    text.parse().unwrap_or_else(|_| panic!("'{text}' is no number"))
}

/// Whether a program is installed; where it is not, that is told.
fn is_installed(program: &str) -> bool {
    let look = format!("PATH=$PATH:/usr/sbin command -v {program}");
    let found = Command::new("sh").args(["-c", &look]).output().unwrap();
    if !found.status.success() {
        missing(&format!("{program} is not installed"));
    }
    found.status.success()
}

/// Whether there is a process of this number, even one that nobody has reaped.
fn is_there(process: u32) -> bool {
    PathBuf::from(format!("/proc/{process}")).exists()
}

/// Waits until the process of this number is gone.
#[track_caller]
fn is_gone(process: u32) {
    eventually(&format!("process {process} is gone"), || !is_there(process));
}

/// The direct children of a process, those that nobody has reaped among them.
fn children(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let of_thread =
        |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    threads
        .flatten()
        .map(of_thread)
        .flat_map(|ids| ids.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

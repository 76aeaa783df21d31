//! What the server needs to know of a limit of its address space (`ulimit -v`) before it does anything else.
//!
//! Where there is too little to work in, it is refused at once: later, a stack that cannot grow or some bytes that cannot be
//! had would end the process without a word. Where there is enough, glibc's allocator is kept from reserving 64 MiB of it for
//! each thread: threads that find no room for that get a page for each allocation, until there is none left. The allocator can
//! be told by the environment only, and only before the program starts: so it starts itself once more, with the same process
//! number, arguments and files.

use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Resource, getrlimit};

/// Less room than this is too little, in bytes: what the library leaves free for connections before it starts a thread.
const LEAST_ROOM_BYTES: usize = 32 << 20;
/// How many reservations of 64 MiB the allocator may make. One: a request allocates nothing, so that nobody waits for it.
const ARENAS: &str = "1";
const VARIABLE: &str = "MALLOC_ARENA_MAX";

/// Starts this program anew if its address space is limited and nobody has told the allocator what to do.
///
/// # Errors
/// The limit leaves too little to work in.
pub(super) fn prepare() -> Result<(), &'static str> {
    if ![Resource::As, Resource::Data].into_iter().any(|it| getrlimit(it).current.is_some()) {
        return Ok(());
    }
    let mut probe = Vec::<u8>::new();
    let enough = probe.try_reserve_exact(LEAST_ROOM_BYTES).is_ok();
    // Nobody looks into it, so the compiler would leave it out.
    drop(black_box(probe));
    if !enough {
        return Err("the limit of the address space (ulimit -v) is too low to work in");
    }
    if !cfg!(target_env = "gnu") || std::env::var_os(VARIABLE).is_some() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    if let Ok(program) = std::env::current_exe() {
        let mut again = Command::new(program);
        if let Some(name) = arguments.next() {
            again.arg0(name);
        }
        // It returns only if it fails. Then there are as many reservations as there are.
        drop(again.args(arguments).env(VARIABLE, ARENAS).exec());
    }
    Ok(())
}

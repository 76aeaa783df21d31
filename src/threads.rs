//! Threads with a stated stack, refused while there still is room in the address space.
//!
//! Where the address space is limited (`ulimit -v`), threads' stacks could take the last of it, and the next allocation of some
//! bytes would end the process: Rust has no other way out. So a thread is refused before, as if the system had, and
//! [`RESERVE_BYTES`] stay free. Where nothing is limited nothing is looked at. Held by `pool::a_limit_of_the_address_space_*`
//! in `tests/it`.
//!
//! glibc's allocator takes up to 64 MiB for each thread's first allocation besides, until there is none left, and then a page for
//! each allocation of such a thread. An embedder who runs under such a limit should set `MALLOC_ARENA_MAX=1` in the
//! environment, as the program does for itself.

use std::hint::black_box;
use std::io::{Error, ErrorKind, Result};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use rustix::process::{Resource, getrlimit};

/// Address space that a thread must leave free: for what connections, requests and replies need, some KiB each, and for what
/// threads map for themselves before their first line of ours. It is more than 32 MiB together with any stack: glibc would keep
/// a smaller block for itself that was tried and freed.
const RESERVE_BYTES: usize = 32 << 20;

/// Starts a thread. Where the address space is limited, blocks until it has allocated for the first time.
///
/// # Errors
/// The system refuses it, or it would take what must stay free.
pub(crate) fn spawn(
    name: String,
    stack_bytes: usize,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    let builder = Builder::new().name(name).stack_size(stack_bytes);
    if !is_limited() {
        return builder.spawn(run);
    }
    if !has_room(stack_bytes.saturating_add(RESERVE_BYTES)) {
        return Err(Error::new(
            ErrorKind::OutOfMemory,
            "the limit of the address space leaves no room for it",
        ));
    }
    // One after the other, so that the next one finds what is really left.
    let (begun, has_begun) = mpsc::channel::<()>();
    let thread = builder.spawn(move || {
        black_box(Vec::<u8>::with_capacity(1));
        drop(begun);
        run();
    })?;
    // Nothing is sent: it has begun when the other end is gone.
    has_begun.recv().unwrap_or_default();
    Ok(thread)
}

/// Whether this process may have no more than a part of the address space, or of the memory that it can write to.
fn is_limited() -> bool {
    [Resource::As, Resource::Data].into_iter().any(|resource| getrlimit(resource).current.is_some())
}

/// Whether so much could be mapped now.
fn has_room(bytes: usize) -> bool {
    let mut probe = Vec::<u8>::new();
    let reserved = probe.try_reserve_exact(bytes).is_ok();
    // Nobody looks into it, so the compiler would leave it out.
    black_box(&mut probe);
    reserved
}

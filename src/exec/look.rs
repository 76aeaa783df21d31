//! What a program is doing, by `/proc`: whether it waits for input.
//!
//! Threads and children are looked at too: what reads may be neither the first thread nor the process that was started, but the
//! last command of a script. It takes some 30 µs for each process.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Children of children that are looked at: a shell, its script, what that runs.
const MAX_DEPTH: usize = 4;
/// Most processes that are looked at for one program.
const MAX_PROCESSES: usize = 16;

/// What the kernel says of a call: its number, six arguments and two addresses, in hexadecimal.
const CALL_BYTES: usize = 192;

/// The numbers of the system calls that read, with the descriptor as their first argument.
#[cfg(target_arch = "x86_64")]
const READING: &[u64] = &[0, 17, 19];
#[cfg(target_arch = "aarch64")]
const READING: &[u64] = &[63, 65, 67];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const READING: &[u64] = &[];
/// And of those that wait for any of several: poll, select and epoll, with their kin.
#[cfg(target_arch = "x86_64")]
const WAITING: &[u64] = &[7, 23, 232, 270, 271, 281, 441];
#[cfg(target_arch = "aarch64")]
const WAITING: &[u64] = &[22, 72, 73, 441];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const WAITING: &[u64] = &[];

/// What a program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doing {
    /// Something else than waiting for input.
    Other,
    /// It waits for one of several things, of which its input may be one.
    Waits,
    /// It is blocked in reading its input.
    Reads,
}

/// What the program of process `id` does, whose input is the pipe of this inode. `None` where the system does not say.
pub(super) fn doing(id: u32, inode: u64) -> Option<Doing> {
    let input = input(inode);
    let mut known = None;
    let mut next = vec![(id, 0)];
    let mut looked_at = 0;
    while let Some((id, depth)) = next.pop() {
        looked_at += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{id}/task")) else { continue };
        for thread in threads.flatten() {
            known = known.max(of_thread(id, &thread.path(), &input));
            if known == Some(Doing::Reads) {
                return known;
            }
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            if depth < MAX_DEPTH && looked_at < MAX_PROCESSES {
                next.extend(children.split_whitespace().filter_map(|id| Some((id.parse().ok()?, depth + 1))));
            }
        }
    }
    known
}

/// Sees whether a program is back at reading its input, in a microsecond or two: for one whose first thread reads it.
#[derive(Debug)]
pub(super) struct Watch {
    /// Open, it stands for this process and for no later one of its number.
    call: File,
    /// What it begins with while the program reads its input.
    reads: String,
}

/// What a [`Watch`] sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is blocked in reading its input: it has done with what it was given before.
    Reads,
    /// It does something else.
    Busy,
    /// Nothing that says anything: it waits for several things, or is gone.
    Unknown,
}

impl Watch {
    /// For the program of process `id` whose input is the pipe of this inode. `None` unless its first thread is reading that now.
    pub(super) fn of(id: u32, inode: u64) -> Option<Watch> {
        let call = File::open(format!("/proc/{id}/syscall")).ok()?;
        let mut watch = Watch { call, reads: String::new() };
        let mut text = [0; CALL_BYTES];
        let (number, descriptor) = parse(watch.read(&mut text)?)?;
        let link = fs::read_link(format!("/proc/{id}/fd/{descriptor}")).ok()?;
        if !READING.contains(&number) || link.as_os_str() != input(inode).as_str() {
            return None;
        }
        watch.reads = format!("{number} 0x{descriptor:x} ");
        Some(watch)
    }

    pub(super) fn look(&self) -> Seen {
        let mut text = [0; CALL_BYTES];
        match self.read(&mut text) {
            Some(call) if call.starts_with(&self.reads) => Seen::Reads,
            Some(call) if parse(call).is_some_and(|(number, _)| WAITING.contains(&number)) => Seen::Unknown,
            Some(_) => Seen::Busy,
            None => Seen::Unknown,
        }
    }

    fn read<'a>(&self, text: &'a mut [u8; CALL_BYTES]) -> Option<&'a str> {
        let len = self.call.read_at(text, 0).ok()?;
        std::str::from_utf8(&text[..len]).ok()
    }
}

/// The number of a system call and its first argument, as the kernel writes them.
fn parse(call: &str) -> Option<(u64, u64)> {
    let mut fields = call.split(' ');
    let number = fields.next()?.parse().ok()?;
    Some((number, u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok()?))
}

/// What the link of a descriptor says that is the pipe of this inode.
fn input(inode: u64) -> String {
    format!("pipe:[{inode}]")
}

fn of_thread(id: u32, thread: &std::path::Path, input: &str) -> Option<Doing> {
    if READING.is_empty() {
        return None;
    }
    // A thread that runs shows no call.
    let call = fs::read_to_string(thread.join("syscall")).ok()?;
    let Some((number, descriptor)) = parse(&call) else { return Some(Doing::Other) };
    if WAITING.contains(&number) {
        return Some(Doing::Waits);
    }
    let is_input =
        || fs::read_link(format!("/proc/{id}/fd/{descriptor}")).is_ok_and(|link| link.as_os_str() == input);
    Some(if READING.contains(&number) && is_input() { Doing::Reads } else { Doing::Other })
}

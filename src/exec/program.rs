//! One program as the worker sees it that owns it: its input and its output, and one request at a time.
//!
//! Both ends here never block: the worker waits in poll, with a deadline. Its process is the keeper's (`keeper`), which starts it,
//! reads its standard error and reaps it; what both know of it is its [`Card`].
//!
//! A reply is what was written since the request was: what a program had written before, and what is left over behind a reply,
//! is found out, and the program is not used any more. Held by `exec::mixups` in `tests/it`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread, read, write};

use super::extent::{Extent, Progress};
use super::look::{Seen, Watch};

/// Most bytes of a reply: it is held until it is whole, so that a program that ends inside of it can be told from one that does not.
pub(super) const MAX_REPLY_BYTES: usize = 16 << 20;
/// Room for a read.
const READ_BYTES: usize = 8 << 10;
/// A buffer that has grown above this for a long request or reply is given back behind it.
pub(super) const KEPT_BYTES: usize = 64 << 10;
/// A program that has written nothing for so long is looked at.
const SILENCE: Duration = Duration::from_secs(1);

/// A program that has just replied is back at its input within microseconds: so often this gives up the CPU before it waits.
const YIELDS: u32 = 8;
/// How long it waits then between two looks: a quarter of what it has waited for, within these.
const MIN_PAUSE: Duration = Duration::from_micros(50);
const MAX_PAUSE: Duration = Duration::from_millis(5);

/// What is known of a program. Statistics are relaxed.
#[derive(Debug)]
pub(super) struct Card {
    /// Counted from 1 over all that were started.
    pub(super) number: u64,
    /// Of its process.
    pub(super) id: u32,
    pub(super) started: Instant,
    /// Replies that it has given whole; requests that it took where there are none. Written by the worker.
    pub(super) served: AtomicU64,
}

impl Card {
    /// It has just been started.
    pub(super) fn new(number: u64, id: u32) -> Card {
        Card { number, id, started: Instant::now(), served: AtomicU64::new(0) }
    }
}

/// A program that is ready, or thought to be.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) card: std::sync::Arc<Card>,
    /// Dropped, it is the program's end of input.
    input: OwnedFd,
    /// `None`: nobody listens to what it writes.
    output: Option<OwnedFd>,
    /// What of its output was read and is no reply yet.
    received: Vec<u8>,
    /// `None`: it cannot be seen whether it is back at its input.
    watch: Option<Watch>,
}

/// Why there is no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It has ended, or closed its streams.
    Ended,
    /// It wrote something before it was asked.
    Spoke,
    /// It has not replied in time.
    TimedOut,
    /// Its reply is too long.
    TooLong,
}

/// A request that was not answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed {
    pub(super) why: Failure,
    /// The program has not read a byte of the request: another may have it.
    pub(super) untouched: bool,
}

/// A reply, or that there is none to wait for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    pub(super) reply: &'a [u8],
    /// More than the reply was there.
    pub(super) more: bool,
}

impl Program {
    /// # Errors
    /// The descriptors cannot be made not to block.
    pub(super) fn new(
        card: std::sync::Arc<Card>,
        input: OwnedFd,
        output: Option<OwnedFd>,
    ) -> io::Result<Program> {
        rustix::io::ioctl_fionbio(&input, true)?;
        if let Some(output) = &output {
            rustix::io::ioctl_fionbio(output, true)?;
        }
        Ok(Program { card, input, output, received: Vec::new(), watch: None })
    }

    /// Its input and its output, for who talks to it in another way.
    pub(super) fn into_ends(self) -> (OwnedFd, Option<OwnedFd>) {
        (self.input, self.output)
    }

    /// The pipe that it reads from.
    pub(super) fn input_inode(&self) -> Option<u64> {
        rustix::fs::fstat(&self.input).ok().map(|stat| stat.st_ino)
    }

    /// It is seen to read its input: from now on it can be seen whether it does.
    pub(super) fn watch(&mut self) {
        self.watch = self.input_inode().and_then(|inode| Watch::of(self.card.id, inode));
    }

    /// Hands `request` to it and waits for its reply, `timeout` at most. After each second of silence behind the request, `silent` is told.
    pub(super) fn ask(
        &mut self,
        request: &[u8],
        extent: &Extent,
        timeout: Duration,
        silent: impl Fn(&Program),
    ) -> Result<Answer<'_>, Failed> {
        self.received.clear();
        self.received.shrink_to(KEPT_BYTES);
        self.settle(timeout).map_err(|why| Failed { why, untouched: true })?;
        let mut written = 0;
        match self.exchange(request, &mut written, extent, timeout, silent) {
            Ok(end) => Ok(Answer { reply: &self.received[..end], more: end < self.received.len() }),
            Err(why) => {
                // What lies in the pipe has not been read: nobody else reads there.
                let unread = ioctl_fionread(&self.input).unwrap_or(0);
                let untouched = why == Failure::Ended && self.received.is_empty() && unread == written as u64;
                Err(Failed { why, untouched })
            }
        }
    }

    /// Sees to it that what the program writes from now on is its reply to what it is given from now on: it has written nothing, and,
    /// where that can be seen, is done with the request before, as it reads its input again. It would not take the next one any
    /// sooner, so that waiting for this costs nothing.
    fn settle(&mut self, timeout: Duration) -> Result<(), Failure> {
        let mut begun = None;
        for look in 0.. {
            // Seen first, so that what it wrote before it read is there.
            let seen = self.watch.as_ref().map_or(Seen::Reads, Watch::look);
            let goes_on = self.receive()?;
            match (self.received.is_empty(), goes_on) {
                (true, true) => {}
                (false, _) => return Err(Failure::Spoke),
                (true, false) => return Err(Failure::Ended),
            }
            match seen {
                Seen::Reads => break,
                Seen::Unknown => {
                    self.watch = None;
                    break;
                }
                Seen::Busy if look < YIELDS => thread::yield_now(),
                Seen::Busy => {
                    let waited = begun.get_or_insert_with(Instant::now).elapsed();
                    if waited >= timeout.min(SILENCE) {
                        // It reads in another way now, or has much to do behind each reply.
                        self.watch = None;
                        break;
                    }
                    self.wait(false, (waited / 4).clamp(MIN_PAUSE, MAX_PAUSE));
                }
            }
        }
        Ok(())
    }

    /// Returns where in what was received the reply ends.
    fn exchange(
        &mut self,
        request: &[u8],
        written: &mut usize,
        extent: &Extent,
        timeout: Duration,
        silent: impl Fn(&Program),
    ) -> Result<usize, Failure> {
        let begun = Instant::now();
        let (mut at, mut look_after) = (Progress::default(), SILENCE);
        loop {
            while *written < request.len() {
                match write(&self.input, &request[*written..]) {
                    Ok(bytes) => *written += bytes,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(_) => return Err(Failure::Ended),
                }
            }
            let wants_room = *written < request.len();
            if !wants_room && (*extent == Extent::None || self.output.is_none()) {
                return Ok(0);
            }
            let waited = begun.elapsed();
            let mut left =
                timeout.checked_sub(waited).filter(|left| !left.is_zero()).ok_or(Failure::TimedOut)?;
            if self.received.is_empty() && !wants_room {
                if waited >= look_after {
                    silent(self);
                    look_after = waited + SILENCE;
                }
                left = left.min(look_after - waited);
            }
            self.wait(wants_room, left);
            let goes_on = self.receive()?;
            if let Some(end) = extent.find(&self.received, &mut at) {
                // A reply to what it has not read whole is none.
                return if *written < request.len() { Err(Failure::Spoke) } else { Ok(end) };
            }
            if !goes_on {
                return Err(Failure::Ended);
            }
        }
    }

    /// Blocks until there is output, or room for input if that is wanted, or for `at_most` so long.
    fn wait(&self, wants_room: bool, at_most: Duration) {
        let input = wants_room.then(|| PollFd::new(&self.input, PollFlags::OUT));
        let output = self.output.as_ref().map(|output| PollFd::new(output, PollFlags::IN));
        let timeout = Timespec::try_from(at_most).ok();
        let waited = match (input, output) {
            (Some(input), Some(output)) => poll(&mut [input, output], timeout.as_ref()),
            (Some(one), None) | (None, Some(one)) => poll(&mut [one], timeout.as_ref()),
            (None, None) => return thread::sleep(at_most),
        };
        // A signal is no reason to stop; whatever else there is, reading and writing find out.
        let _ = waited;
    }

    /// Reads what is there. `false`: nothing more will come.
    fn receive(&mut self) -> Result<bool, Failure> {
        let Program { output: Some(output), received, .. } = self else { return Ok(true) };
        loop {
            received.reserve(READ_BYTES);
            let room = received.capacity() - received.len();
            match read(&*output, spare_capacity(received)) {
                Ok(0) => return Ok(false),
                Ok(_) if received.len() > MAX_REPLY_BYTES => return Err(Failure::TooLong),
                // There is no more than that.
                Ok(bytes) if bytes < room => return Ok(true),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(true),
                // A terminal whose other end is closed says so.
                Err(_) => return Ok(false),
            }
        }
    }

    /// Whether it has read all that it was given.
    pub(super) fn has_read_all(&self) -> bool {
        ioctl_fionread(&self.input).is_ok_and(|unread| unread == 0)
    }

    /// Whether it has written what nobody has read.
    pub(super) fn has_written(&self) -> bool {
        self.output.as_ref().is_some_and(|output| ioctl_fionread(output).is_ok_and(|unread| unread > 0))
    }

    /// It has served a request.
    pub(super) fn has_served(&self) -> u64 {
        self.card.served.fetch_add(1, Relaxed) + 1
    }
}

//! Lines on their way to standard output or standard error, which nobody waits for.
//!
//! Whoever has a line to say puts it into a queue; a thread of the output's own writes it, in one call, and stands
//! still with a reader that does. A line that finds no room is dropped and counted, and the count is told once lines go
//! through again. No end is held up: [`Output::finish`] leaves a thread that stands still behind. Not in here: what the
//! lines say.
//!
//! Invariant: what reaches the descriptor is whole lines, in order. A pipe takes a line of up to [`ATOMIC_BYTES`] as a
//! whole or not at all, whoever else writes to it. Held by the tests below and by `tests/it/logs.rs`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, write};

/// The longest line that a pipe takes as a whole or not at all (`PIPE_BUF`): longer ones may be torn where processes
/// share a pipe, or where the end comes while half of one is written.
pub(crate) const ATOMIC_BYTES: usize = 4096;
/// Lines that wait for their reader. More are dropped and counted. A burst of some ten milliseconds at the most
/// talkative level.
const MAX_WAITING_LINES: usize = 4096;
/// The same in bytes, for long lines: what a reader that stands still costs in memory.
const MAX_WAITING_BYTES: usize = 1 << 20;
/// Lines, of any length, that have room beyond that when the end has come: a few that tell how it ended.
const MAX_LAST_LINES: usize = 16;
/// How long to leave a full pipe that does not block alone at least, so that one which is said to have room but takes
/// nothing costs no CPU.
const FULL_PIPE_PAUSE: Duration = Duration::from_millis(1);
/// How long until a full disk is tried again.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(100);

/// One output. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Output(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// To the writer's thread: there is a line, or there will be none any more.
    work: Condvar,
    /// To who waits for the end: all is written.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    phase: Phase,
    /// The writer's thread has taken a line and not said what became of it.
    writing: bool,
    /// The writer's thread waits for a line.
    parked: bool,
    /// Lines dropped since the start, for want of room or because the system refused them.
    dropped: u64,
    /// How many of those the reader has been told of.
    told: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Phase {
    #[default]
    Open,
    /// There is room for a few lines more.
    LastLines,
    /// Nothing is taken any more.
    Closed,
}

impl Output {
    /// Starts the thread that writes to `to`. When lines go through again after some were dropped, it calls `tell` with
    /// the number of those dropped since the start; `tell` may use this output.
    ///
    /// # Errors
    /// What the system said when it refused the thread.
    pub(crate) fn start(
        thread_name: &str,
        to: impl AsFd + Send + 'static,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Output> {
        let shared = Arc::<Shared>::default();
        thread::Builder::new().name(thread_name.to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.write_lines(&to, tell)
        })?;
        Ok(Output(shared))
    }

    /// Leaves one line, which ends in a newline, to be written. Never blocks. False: there was no room, and it is
    /// dropped and counted.
    pub(crate) fn line(&self, line: Vec<u8>) -> bool {
        let mut queue = self.0.lock();
        let has_room = match queue.phase {
            Phase::Open => {
                queue.lines.len() < MAX_WAITING_LINES && queue.bytes + line.len() <= MAX_WAITING_BYTES
            }
            Phase::LastLines => queue.lines.len() < MAX_WAITING_LINES + MAX_LAST_LINES,
            Phase::Closed => false,
        };
        if !has_room {
            queue.dropped += 1;
            return false;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        if std::mem::take(&mut queue.parked) {
            drop(queue);
            self.0.work.notify_one();
        }
        true
    }

    /// Lines dropped since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.0.lock().dropped
    }

    /// From now on a few lines have room even where the reader stands still: those that tell how it ended.
    pub(crate) fn begin_last_lines(&self) {
        self.0.lock().phase = Phase::LastLines;
    }

    /// Takes no more lines. The thread ends once those that wait are written.
    pub(crate) fn close(&self) {
        self.0.lock().phase = Phase::Closed;
        self.0.work.notify_one();
    }

    /// Waits until all is written that was said, for `timeout` at most.
    pub(crate) fn flush(&self, timeout: Duration) {
        drop(self.wait_until_written(timeout));
    }

    fn wait_until_written(&self, timeout: Duration) -> MutexGuard<'_, Queue> {
        let unwritten = |queue: &mut Queue| queue.writing || !queue.lines.is_empty();
        let waited = self.0.idle.wait_timeout_while(self.0.lock(), timeout, unwritten);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Closes it, and waits until all is written, for `timeout` at most. What is not written then is dropped.
    pub(crate) fn finish(&self, timeout: Duration) {
        self.close();
        let mut queue = self.wait_until_written(timeout);
        queue.dropped += queue.lines.len() as u64 + u64::from(queue.writing);
        queue.lines.clear();
    }
}

/// Each call is one line, and cannot fail: what the log's formatter wants to write to.
impl io::Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Whether it was dropped is counted, and no concern of who logs.
        let _: bool = self.line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue is usable as it is after a panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's thread.
    fn write_lines(&self, to: &impl AsFd, tell: impl Fn(u64)) {
        let mut written = Ok(());
        let mut is_torn = false;
        while let Some((mut line, untold)) = self.next(written.is_ok()) {
            if let Some(dropped) = untold {
                tell(dropped);
            }
            if is_torn {
                // What is there of the line before it stays apart from this one.
                line.insert(0, b'\n');
            }
            written = write_all(to, &line);
            is_torn = written.is_err_and(|part| part > 0 || is_torn);
        }
    }

    /// The next line, and how many were dropped if that is to be told: only once a line went through, since it would be
    /// dropped as well.
    /// `None`: there will be none any more.
    fn next(&self, written: bool) -> Option<(Vec<u8>, Option<u64>)> {
        let mut queue = self.lock();
        if std::mem::take(&mut queue.writing) && !written {
            queue.dropped += 1;
        }
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.len();
                queue.writing = true;
                let untold = written && queue.dropped > queue.told;
                if untold {
                    queue.told = queue.dropped;
                }
                return Some((line, untold.then_some(queue.dropped)));
            }
            self.idle.notify_all();
            if queue.phase == Phase::Closed {
                return None;
            }
            queue.parked = true;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes all of `line`, in one call wherever the system takes it in one. Waits for room, however long that takes: in a
/// pipe that does not block, and on a disk.
///
/// # Errors
/// The bytes that were written, where the system refuses the rest for good: as when the reader has gone.
fn write_all(to: &impl AsFd, line: &[u8]) -> Result<(), usize> {
    let mut done = 0;
    while done < line.len() {
        match write(to, &line[done..]) {
            Ok(0) => return Err(done),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                thread::sleep(FULL_PIPE_PAUSE);
                // Whatever it says, the next call tells.
                let _ = poll(&mut [PollFd::new(to, PollFlags::OUT)], None);
            }
            // Disk, quota, or the limit of a file's size: somebody may make room.
            Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => thread::sleep(FULL_DISK_PAUSE),
            Err(_) => return Err(done),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::{BufRead, BufReader, PipeReader, Write, pipe};
    use std::os::fd::AsRawFd;
    use std::sync::{OnceLock, mpsc};
    use std::time::Instant;

    use super::*;

    /// Generous: it passes only when something is broken.
    const DEADLINE: Duration = Duration::from_secs(20);

    fn numbered(number: usize, length: usize) -> Vec<u8> {
        format!("{number:0>length$}\n").into_bytes()
    }

    /// An output whose pipe is full, whose first line therefore stands still, and behind which all room is taken: one
    /// line was dropped. Returns how many lines were taken, numbered.
    fn stalled(tell: impl Fn(u64) + Send + 'static) -> (PipeReader, Output, usize) {
        let (reader, writer) = pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while (&writer).write_all(&[0; ATOMIC_BYTES]).is_ok() {}
        rustix::io::ioctl_fionbio(&writer, false).unwrap();
        let output = Output::start("output", writer, tell).unwrap();
        assert!(output.line(numbered(0, 100)));
        until(|| output.0.lock().writing);
        let taken = (1..).find(|number| !output.line(numbered(*number, 100))).unwrap();
        assert_eq!(taken, 1 + MAX_WAITING_LINES);
        (reader, output, taken)
    }

    /// What comes, without what the pipe was filled with.
    fn lines(reader: PipeReader) -> impl Iterator<Item = String> {
        BufReader::new(reader).lines().map(|line| line.unwrap().trim_start_matches('\0').to_owned())
    }

    fn until(condition: impl Fn() -> bool) {
        let begun = Instant::now();
        while !condition() {
            assert!(begun.elapsed() < DEADLINE);
            thread::yield_now();
        }
    }

    #[test]
    fn lines_come_whole_and_in_order_once_the_reader_goes_on() {
        let (reader, output, taken) = stalled(|_| ());
        assert_eq!(output.dropped(), 1);
        thread::scope(|scope| {
            let read = scope.spawn(|| lines(reader).collect::<Vec<_>>());
            output.finish(DEADLINE);
            assert_eq!(output.dropped(), 1, "the end dropped none");
            let read = read.join().unwrap();
            assert!(read.iter().enumerate().all(|(number, line)| *line == format!("{number:0>100}")));
            assert_eq!(read.len(), taken);
        });
    }

    #[test]
    fn what_was_dropped_is_told_where_it_is_missing_and_once() {
        let itself = Arc::new(OnceLock::<Output>::new());
        let tell = {
            let itself = Arc::clone(&itself);
            move |dropped| {
                itself.get().unwrap().line(format!("dropped {dropped}\n").into_bytes());
            }
        };
        let (reader, output, taken) = stalled(tell);
        itself.set(output.clone()).unwrap();
        output.line(b"dropped too\n".to_vec());
        let mut lines = lines(reader);
        assert_eq!(lines.by_ref().take(taken).last(), Some(format!("{:0>100}", taken - 1)));
        assert_eq!(lines.next().as_deref(), Some("dropped 2"));
        output.line(b"next\n".to_vec());
        output.line(b"last\n".to_vec());
        assert_eq!(lines.next().as_deref(), Some("next"));
        assert_eq!(lines.next().as_deref(), Some("last"));
    }

    #[test]
    fn the_end_waits_no_longer_than_it_is_told_and_counts_what_is_left() {
        let (_reader, output, taken) = stalled(|_| ());
        output.begin_last_lines();
        assert!(output.line(b"the last\n".to_vec()), "there is room for it");
        let begun = Instant::now();
        output.finish(Duration::from_millis(20));
        assert!(begun.elapsed() < DEADLINE);
        assert_eq!(output.dropped(), 1 + taken as u64 + 1);
        assert!(!output.line(b"too late\n".to_vec()));
    }

    /// A writer whose pipe does not block has longer lines cut by the system.
    #[test]
    fn long_lines_are_whole_in_a_pipe_that_does_not_block() {
        let (reader, writer) = pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let output = Output::start("output", writer, |_| ()).unwrap();
        for number in 0..10 {
            assert!(output.line(numbered(number, 50_000)));
        }
        let read = thread::spawn(|| lines(reader).collect::<Vec<_>>());
        output.finish(DEADLINE);
        assert_eq!(output.dropped(), 0);
        drop(output);
        let read = read.join().unwrap();
        assert!(read.iter().enumerate().all(|(number, line)| *line == format!("{number:0>50000}")));
        assert_eq!(read.len(), 10);
    }

    #[test]
    fn a_reader_that_is_gone_costs_its_lines_and_nobody_is_told_in_vain() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let output = Output::start("output", writer, |_| panic!("there is no reader")).unwrap();
        for number in 0..100 {
            output.line(numbered(number, 10));
        }
        output.finish(DEADLINE);
        assert_eq!(output.dropped(), 100);
    }

    #[test]
    fn a_reader_that_comes_back_is_told() {
        let (reader, writer) = pipe().unwrap();
        let again = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let (told, telling) = mpsc::channel();
        let output = Output::start("output", writer, move |dropped| told.send(dropped).unwrap()).unwrap();
        drop(reader);
        output.line(b"nobody reads it\n".to_vec());
        until(|| output.dropped() == 1);
        let _reader = OpenOptions::new().read(true).open(again).unwrap();
        output.line(b"somebody does\n".to_vec());
        output.line(b"and is told\n".to_vec());
        assert_eq!(telling.recv_timeout(DEADLINE), Ok(1));
    }

    #[test]
    fn a_disk_that_is_full_is_tried_again_and_holds_up_no_end() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Output::start("output", full, |_| ()).unwrap();
        output.line(b"a\n".to_vec());
        output.line(b"b\n".to_vec());
        output.finish(Duration::from_millis(10));
        assert_eq!(output.dropped(), 2);
    }
}

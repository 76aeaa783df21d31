//! What reaches the log: lines of standard error, and what went wrong with programs, no more often than somebody reads it.

use std::time::{Duration, Instant};

use memchr::memchr;

use super::shared::End;

/// Longest part of a line of standard error that is logged as one, in bytes.
const MAX_LINE_BYTES: usize = 1024;
/// So often one kind of failure is told at most; how often it came meanwhile is told with the next.
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// Standard error of a program, line by line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    last: String,
}

impl Lines {
    pub(super) fn add(&mut self, program: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.line.len();
            let part = &bytes[..bytes.len().min(room)];
            match memchr(b'\n', part) {
                Some(end) => {
                    self.line.extend_from_slice(&part[..end]);
                    bytes = &bytes[end + 1..];
                    self.end(program);
                }
                None => {
                    self.line.extend_from_slice(part);
                    bytes = &bytes[part.len()..];
                    if self.line.len() == MAX_LINE_BYTES {
                        self.end(program);
                    }
                }
            }
        }
    }

    /// Logs what has come of a line.
    pub(super) fn end(&mut self, program: u64) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        if !line.is_empty() {
            // A terminal that shows the log is not to obey it.
            self.last = String::from_utf8_lossy(line)
                .chars()
                .map(|char| if char.is_control() && char != '\t' { '?' } else { char })
                .collect();
            tracing::info!(program, "{}", self.last);
        }
        self.line.clear();
    }

    /// The last line that was not empty.
    pub(super) fn last(&self) -> &str {
        &self.last
    }
}

/// Kinds of failure that are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Died,
    TimedOut,
    Broke,
    Trailing,
}

impl Notice {
    /// What is told of a program that failed a request.
    pub(super) fn of(end: End) -> Option<Notice> {
        match end {
            End::Died => Some(Notice::Died),
            End::TimedOut => Some(Notice::TimedOut),
            End::Broke => Some(Notice::Broke),
            End::Replaced | End::Surplus => None,
        }
    }
}

/// When each kind was told last, and how many came since.
#[derive(Debug, Default)]
pub(super) struct Notices([(Option<Instant>, u64); 4]);

impl Notices {
    /// Whether it is to be told now, and how many were not since the last time.
    pub(super) fn tell(&mut self, notice: Notice) -> Option<u64> {
        let (told, held) = &mut self.0[notice as usize];
        if told.is_some_and(|told| told.elapsed() < NOTICE_INTERVAL) {
            *held += 1;
            return None;
        }
        *told = Some(Instant::now());
        Some(std::mem::take(held))
    }
}

//! A message that comes in, and what becomes of it: a file, if there is a directory for it.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

/// Most bytes of a message: 10 MB and what an encoding adds to them.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;

pub(crate) const TOO_BIG: &str = "552 the message is too big";
const NOT_STORED: &str = "451 the message could not be stored";

/// A message that is coming in.
pub(crate) struct Message {
    /// Where it is kept: under another name until it is whole.
    path: Option<PathBuf>,
    file: Option<File>,
    bytes: usize,
    /// What is wrong with it.
    fault: Option<&'static str>,
}

impl Message {
    /// Its file begins with the envelope.
    pub(crate) fn begin(path: Option<PathBuf>, envelope: &str) -> Message {
        let file = path.as_ref().map(|path| File::create(path.with_extension("part")));
        let mut message = Message { path, file: None, bytes: 0, fault: None };
        match file.transpose() {
            Ok(file) => message.file = file,
            Err(_) => message.fault = Some(NOT_STORED),
        }
        message.add(envelope.as_bytes());
        message.bytes = 0;
        message
    }

    pub(crate) fn add(&mut self, text: &[u8]) {
        self.bytes += text.len();
        if self.bytes > MAX_MESSAGE_BYTES {
            self.fault = Some(TOO_BIG);
        } else if self.file.as_mut().is_some_and(|file| file.write_all(text).is_err()) {
            self.fault = Some(NOT_STORED);
        }
    }

    /// All of it is here. Returns what is said.
    pub(crate) fn end(&mut self) -> &'static str {
        if let (None, Some(path), Some(file)) = (self.fault, &self.path, &self.file)
            && file.sync_all().and_then(|()| fs::rename(path.with_extension("part"), path)).is_err()
        {
            return NOT_STORED;
        }
        self.fault.unwrap_or("250 the message is taken")
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // Nothing is there if it was taken.
        self.path.iter().for_each(|path| fs::remove_file(path.with_extension("part")).unwrap_or_default());
    }
}

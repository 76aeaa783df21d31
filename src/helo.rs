//! The HELO service, the first one built on [`Handler`], and [`Delay`], which makes any handler slow on purpose.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use crate::handler::{Handler, Kind, Reply, Request};
use crate::protocol;

/// Answers `HELO text` with the text, the address that the client reached, and a student's number; takes
/// `KILL_SERVICE` for a request to stop; leaves everything else without reply.
#[derive(Clone, Debug)]
pub struct Helo {
    student_id: String,
    advertise_ip: Option<IpAddr>,
}

impl Helo {
    /// The student's number in replies unless another is given.
    pub const STUDENT_ID: &'static str = "16336617";

    /// A service that answers with [`STUDENT_ID`](Self::STUDENT_ID) and the address that the client reached.
    pub fn new() -> Self {
        Helo { student_id: Self::STUDENT_ID.to_owned(), advertise_ip: None }
    }

    /// Answers with this student's number. A line break in it would break the reply, so it ends there.
    #[must_use]
    pub fn student_id(mut self, id: &str) -> Self {
        self.student_id = id.lines().next().unwrap_or_default().to_owned();
        self
    }

    /// Answers with this address instead of the one that the client reached: for a server behind address translation.
    #[must_use]
    pub fn advertise_ip(mut self, ip: IpAddr) -> Self {
        self.advertise_ip = Some(ip);
        self
    }
}

impl Default for Helo {
    fn default() -> Self {
        Self::new()
    }
}

impl Handler for Helo {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        if let Some(text) = protocol::helo_text(request.line()) {
            let tail = request
                .local_bytes(|local| protocol::render_tail(local, self.advertise_ip, &self.student_id));
            protocol::render_helo(text, tail, reply.buffer());
        }
    }

    fn classify(&self, line: &[u8]) -> Kind {
        protocol::classify(line)
    }
}

/// A handler that blocks for a fixed time before each request: to see and to test the pool at work.
#[derive(Clone, Debug)]
pub struct Delay<H> {
    inner: H,
    delay: Duration,
}

impl<H: Handler> Delay<H> {
    /// Wraps `inner`. With a `delay` of zero nothing changes.
    pub fn new(inner: H, delay: Duration) -> Self {
        Delay { inner, delay }
    }
}

impl<H: Handler> Handler for Delay<H> {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        if !self.delay.is_zero() {
            thread::sleep(self.delay);
        }
        self.inner.handle(request, reply);
    }

    fn classify(&self, line: &[u8]) -> Kind {
        self.inner.classify(line)
    }
}

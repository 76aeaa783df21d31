//! The HELO service, the first one built on [`Handler`], and [`Delay`], which makes any handler slow on purpose.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use crate::address::Address;
use crate::protocol::{self, Advertise};
use crate::service::{Farewell, Handler, Kind, Reply, Request};

/// Local addresses for which what follows the text in each reply is kept: a server seldom has more. For others it is
/// rendered for each request.
const KEPT_TAILS: usize = 8;

/// Answers `HELO text` with the text, the address that the client reached, and a student's number; takes
/// `KILL_SERVICE` for a request to stop; leaves everything else without reply.
#[derive(Clone, Debug)]
pub struct Helo {
    student_id: String,
    advertise: Advertise,
    /// Requests are handled on the event loop.
    inline: bool,
    /// What follows the text in each reply, by the local address, in the order in which clients reached them.
    tails: Arc<[OnceLock<Tail>; KEPT_TAILS]>,
}

/// A local address, and what follows the text in each reply to a client that reached it.
type Tail = (Address, Vec<u8>);

impl Helo {
    /// The student's number in replies unless another is given.
    pub const STUDENT_ID: &'static str = "16336617";

    /// A service that answers with [`STUDENT_ID`](Self::STUDENT_ID) and the address that the client reached.
    pub fn new() -> Self {
        Helo {
            student_id: Self::STUDENT_ID.to_owned(),
            advertise: Advertise::default(),
            inline: false,
            tails: Arc::default(),
        }
    }

    /// Answers with this student's number. A line break in it would break the reply, so it ends there.
    #[must_use]
    pub fn student_id(mut self, id: &str) -> Self {
        self.student_id = id.lines().next().unwrap_or_default().to_owned();
        self.tails = Arc::default();
        self
    }

    /// Answers with this address instead of the one that the client reached: for a server behind address translation.
    #[must_use]
    pub fn advertise_ip(mut self, ip: IpAddr) -> Self {
        self.advertise.ip = Some(ip);
        self.tails = Arc::default();
        self
    }

    /// Answers with this port instead of the one that the client reached: for a server behind a port mapping.
    #[must_use]
    pub fn advertise_port(mut self, port: u16) -> Self {
        self.advertise.port = Some(port);
        self.tails = Arc::default();
        self
    }

    /// Answers on the event loop instead of on a worker: nothing of it blocks, so that is the faster way.
    #[must_use]
    pub fn inline(mut self, inline: bool) -> Self {
        self.inline = inline;
        self
    }

    /// What follows the text in the reply to a client that reached `local`.
    #[inline(always)]
    fn tail(&self, local: &Address) -> Cow<'_, [u8]> {
        match self.tails[0].get() {
            Some((address, tail)) if is_same(address, local) => Cow::Borrowed(tail),
            _ => self.other_tail(local),
        }
    }

    /// The same where the address is not the one that clients reached first.
    fn other_tail(&self, local: &Address) -> Cow<'_, [u8]> {
        let render = || protocol::render_tail(local, self.advertise, &self.student_id);
        for kept in &*self.tails {
            let (address, tail) = kept.get_or_init(|| (local.clone(), render()));
            if address == local {
                return Cow::Borrowed(tail);
            }
        }
        Cow::Owned(render())
    }
}

/// Whether two addresses are the same, told quickly for most.
#[inline]
fn is_same(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Tcp(SocketAddr::V4(one)), Address::Tcp(SocketAddr::V4(other))) => {
            one.ip() == other.ip() && one.port() == other.port()
        }
        _ => one == other,
    }
}

impl Default for Helo {
    fn default() -> Self {
        Self::new()
    }
}

impl Handler for Helo {
    #[inline(always)]
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        if let Some(text) = protocol::helo_text(request.line()) {
            protocol::render_helo(text, &self.tail(request.local_addr()), reply.buffer());
        }
    }

    #[inline]
    fn classify(&self, line: &[u8]) -> Kind {
        match protocol::classify(line) {
            Kind::Request if self.inline => Kind::Inline,
            kind => kind,
        }
    }

    fn stop_line(&self) -> Option<&[u8]> {
        Some(protocol::KILL)
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        Some(match farewell {
            Farewell::StopRefused => b"ERROR KILL_SERVICE refused\n".to_vec(),
            other => format!("{other}\n").into_bytes(),
        })
    }

    fn name(&self) -> &str {
        "helo"
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

    fn stop_line(&self) -> Option<&[u8]> {
        self.inner.stop_line()
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        self.inner.last_line(farewell)
    }

    fn busy_line(&self, waited: Duration) -> Vec<u8> {
        self.inner.busy_line(waited)
    }

    fn name(&self) -> &str {
        self.inner.name()
    }
}

//! The [`Handler`] trait: a service without state of its own for each connection. Closures are handlers.

use std::time::Duration;

use super::connection::Connection;
use super::reply::Reply;
use super::request::Request;
use super::traits::Service;
use super::words::{self, Farewell, Kind};
use crate::framing::Framing;

/// A service that keeps nothing for each connection: turns a frame, by default a line, into a reply.
///
/// Requests of one connection are handled one after another and their replies keep that order; those of different
/// connections are handled side by side, so a handler is shared by all workers.
///
/// A closure that takes a [`Request`] and a [`Reply`], the types of both written out, is a handler, and every handler is a [`Service`],
/// which can do more: have a state for each connection and for each worker, greet, and change its framing.
///
/// # Examples
/// ```
/// use tidemill::{Handler, Reply, Request};
///
/// struct Upper;
///
/// impl Handler for Upper {
///     fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
///         reply.push(&request.line().to_ascii_uppercase());
///         reply.push(b"\n");
///     }
///
///     fn stop_line(&self) -> Option<&[u8]> {
///         Some(b"quit server")
///     }
///
///     fn name(&self) -> &str {
///         "upper"
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// Handles one request and writes its reply, as [`Service::handle`] does.
    ///
    /// # Panics
    /// As there.
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>);

    /// How bytes become frames, the same at every call. `None`, which is the default: lines of up to
    /// [`Config::max_line_bytes`](crate::Config::max_line_bytes).
    fn framing(&self) -> Option<&dyn Framing> {
        None
    }

    /// Tells what a frame is. By default the [stop line](Self::stop_line) is [`Kind::Stop`], every other frame a request. See
    /// [`Service::classify`].
    fn classify(&self, frame: &[u8]) -> Kind {
        match self.stop_line() {
            Some(line) if line == frame => Kind::Stop,
            _ => Kind::Request,
        }
    }

    /// A line that stops the server, if the peer may, wherever it stands. By default there is none. See [`Service::stop_line`].
    fn stop_line(&self) -> Option<&[u8]> {
        None
    }

    /// See [`Service::last_line`].
    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        farewell.line()
    }

    /// What a peer is told in place of the reply to a request that waited too long. If it is empty, pipelining clients are off by one
    /// reply: see [`Service::busy_line`].
    fn busy_line(&self, waited: Duration) -> Vec<u8> {
        words::busy_line(waited)
    }

    /// See [`Service::name`].
    fn name(&self) -> &str {
        "service"
    }
}

impl<F> Handler for F
where
    F: Fn(&Request<'_>, &mut Reply<'_>) + Send + Sync + 'static,
{
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        self(request, reply);
    }
}

impl Handler for Box<dyn Handler> {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        (**self).handle(request, reply);
    }

    fn framing(&self) -> Option<&dyn Framing> {
        (**self).framing()
    }

    fn classify(&self, frame: &[u8]) -> Kind {
        (**self).classify(frame)
    }

    fn stop_line(&self) -> Option<&[u8]> {
        (**self).stop_line()
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        (**self).last_line(farewell)
    }

    fn busy_line(&self, waited: Duration) -> Vec<u8> {
        (**self).busy_line(waited)
    }

    fn name(&self) -> &str {
        (**self).name()
    }
}

impl<H: Handler + ?Sized> Service for H {
    type State = ();
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), _: &Connection<'_>, _: &mut Reply<'_>) {}

    #[inline(always)]
    fn handle(&self, _: &mut (), _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
        Handler::handle(self, request, reply);
    }

    fn has_sessions(&self) -> bool {
        false
    }

    fn framing<'a>(&'a self, _: &'a ()) -> Option<&'a dyn Framing> {
        Handler::framing(self)
    }

    #[inline]
    fn classify(&self, _: &(), frame: &[u8]) -> Kind {
        Handler::classify(self, frame)
    }

    fn stop_line(&self) -> Option<&[u8]> {
        Handler::stop_line(self)
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        Handler::last_line(self, farewell)
    }

    fn busy_line(&self, waited: Duration) -> Vec<u8> {
        Handler::busy_line(self, waited)
    }

    fn name(&self) -> &str {
        Handler::name(self)
    }
}

//! The [`Service`] trait: what a listener speaks, with a state for each connection and for each worker.
//!
//! What runs on workers may block: [`Service::handle`], and unless [`Service::place`] says otherwise [`Service::open`] and
//! [`Service::close`]. The rest runs on the reactor and must not.

use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use super::join::Join;
use super::reply::Reply;
use super::request::Request;
use super::words::{self, Farewell, Kind, Place};
use crate::framing::Framing;
use crate::reason::CloseReason;

/// What a listener speaks: how bytes become requests, what becomes of them, and what is kept for each connection.
///
/// Requests of one connection are handled one after another and their replies keep that order; those of different
/// connections are handled side by side, so a service is shared by all workers. What is of one connection lies in its
/// [`State`](Self::State), which travels with its requests, so that no lock is needed for it.
///
/// For less, a closure or a [`Handler`](crate::Handler) is a service too. `Arc<S>` is one, so that a service can be shared, and so is a
/// boxed `dyn Service`.
///
/// # Panics
/// A panic of `open` or `handle` costs this request and its connection: what was written for it and not flushed is discarded,
/// replies before it are sent, then `ERROR internal error` ([`last_line`](Self::last_line)) unless a part of its reply was flushed,
/// and the connection is closed; its state,
/// as the panic left it, is given back to `close`. The worker and the server go on. The same for what runs on the event loop. A
/// panic of `close` is logged and costs nothing else.
///
/// # Examples
/// ```
/// use tidemill::{Connection, Reply, Request, Server, Service};
///
/// /// Numbers the lines of each connection.
/// struct Numbered;
///
/// impl Service for Numbered {
///     type State = u64;
///     type Worker = ();
///
///     fn start_worker(&self) {}
///
///     fn open(&self, _: &mut (), _: &Connection<'_>, reply: &mut Reply<'_>) -> u64 {
///         reply.push(b"welcome\n");
///         0
///     }
///
///     fn handle(&self, lines: &mut u64, _: &mut (), request: &Request<'_>, reply: &mut Reply<'_>) {
///         *lines += 1;
///         reply.push(format!("{lines} {}\n", request.line().escape_ascii()).as_bytes());
///     }
/// }
///
/// let server = Server::builder(Numbered).listen("127.0.0.1:0".parse()?).start()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Service: Send + Sync + 'static {
    /// What each connection has of its own. Made by [`open`](Self::open), handed to each request in turn, given back to
    /// [`close`](Self::close). Costs a connection its size, on the heap.
    type State: Send + 'static;

    /// What each worker has of its own, such as a handle of a database. It stays on the worker's thread.
    type Worker: 'static;

    /// Makes what a worker has of its own, on its thread, before its first job; it is dropped there when the worker retires. May
    /// block, and the worker takes no job meanwhile. The event loop has one too, made before it first handles something for this
    /// service.
    ///
    /// # Panics
    /// It is tried again before the worker's next job, and what it panics for then fails as by a panic of its handler; a state that was
    /// to be [closed](Self::close) there is dropped.
    fn start_worker(&self) -> Self::Worker;

    /// A connection has opened: makes its state. What is written to `reply` greets the peer, before anything else. Runs where
    /// [`place`](Self::place) says.
    fn open(
        &self,
        worker: &mut Self::Worker,
        connection: &Connection<'_>,
        reply: &mut Reply<'_>,
    ) -> Self::State;

    /// Handles one request and writes its reply, which is sent as it is: a reply that is to end in a newline brings it.
    /// Nothing written means no reply.
    ///
    /// Runs on a worker, and may block for as long as it likes: the pool grows when workers are held up. On the event loop for
    /// [`Kind::Inline`], where it must not.
    fn handle(
        &self,
        state: &mut Self::State,
        worker: &mut Self::Worker,
        request: &Request<'_>,
        reply: &mut Reply<'_>,
    );

    /// A connection has ended, and gives its state back: exactly once for each that was opened, whatever it ended of, and behind
    /// its last request. A peer that has only ended its side ([`Eof`](CloseReason::Eof)) still gets what is pushed to it until this
    /// returns; for any other reason nothing reaches it any more. Runs where [`place`](Self::place) says, on
    /// a worker that is free or on the event loop. By default the state is dropped.
    ///
    /// With `Eof` the connection keeps its place among [`Config::max_connections`](crate::Config::max_connections) until it returns; with
    /// another reason as many that have ended as may be open, 64 at least, may wait for it. Where it takes long and more leave, those
    /// who come are told that the server is full.
    ///
    /// After a stop at once, or at a stop's deadline, what is left is closed on one thread of its own, with what that thread
    /// [has](Self::start_worker): all of it together within a second.
    ///
    /// The exceptions, in which a state is dropped: what a worker has [could not be made](Self::start_worker) where it was to be closed;
    /// and a handler has it that never returns or, where a stop has given up, not within that second.
    fn close(
        &self,
        state: Self::State,
        worker: &mut Self::Worker,
        connection: &Connection<'_>,
        reason: CloseReason,
    ) {
        let _ = (worker, connection, reason);
        drop(state);
    }

    /// Where [`open`](Self::open) and [`close`](Self::close) run, and by default requests too: the same at every call. Asked at the
    /// start, and by the default [`classify`](Self::classify) for each frame. By default on a worker.
    fn place(&self) -> Place {
        Place::Worker
    }

    /// How bytes become frames. `None`, which is the default: lines of up to
    /// [`Config::max_line_bytes`](crate::Config::max_line_bytes).
    ///
    /// Asked whenever frames are about to be cut, so that the framing may depend on the state. What changes it in the state
    /// is a request of [`Kind::Switch`] or [`Kind::Inline`]; then it takes effect for the very next byte, also of what had been read
    /// already. Runs on the event loop, as [`classify`](Self::classify) does.
    fn framing<'a>(&'a self, state: &'a Self::State) -> Option<&'a dyn Framing> {
        let _ = state;
        None
    }

    /// Tells what a frame is when its turn has come. By default a frame that is the [stop line](Self::stop_line) is
    /// [`Kind::Stop`], and every other a request, handled where [`place`](Self::place) says.
    ///
    /// Runs on the event loop, once for every frame or, where one has to wait, again: it holds up all connections while it runs, so it must
    /// only look. What it and the framing take counts with requests of [`Kind::Inline`], and is noticed there if it is long; for requests
    /// that workers handle it is not. The state is what the last [`Kind::Switch`] or [`Kind::Inline`] left, or later: requests that were cut
    /// together are classified before the first of them is handled.
    fn classify(&self, state: &Self::State, frame: &[u8]) -> Kind {
        let _ = state;
        match (self.stop_line(), self.place()) {
            (Some(line), _) if line == frame => Kind::Stop,
            (_, Place::Worker) => Kind::Request,
            (_, Place::Loop) => Kind::Inline,
        }
    }

    /// What connections are joined to. `None`, which is the default: nothing, their frames are handled. Where it is something, none
    /// of the other methods is called for a connection, but [`last_line`](Self::last_line). Asked once, at the start, and then for
    /// each connection that opens.
    fn joins(&self) -> Option<&dyn Join> {
        None
    }

    /// A line that is [`Kind::Stop`] wherever it stands in the stream, for a service whose lines mean the same in every state. It is
    /// acted on as soon as it has been read, also where lines before it still wait for workers that are stuck. By default
    /// there is none. The same at every call.
    ///
    /// It is looked for ahead only where connections have no state, which is to say for a [`Handler`](crate::Handler), and frames are
    /// lines: elsewhere it may stand inside of another frame, and is acted on when its turn has come, as
    /// [`classify`](Self::classify) says. There the default says so too; one of your own must, as a line is not looked for ahead
    /// where nothing stands before it.
    fn stop_line(&self) -> Option<&[u8]> {
        None
    }

    /// What a peer is told last, line ending included, when the server ends its connection for a reason of its own. By
    /// default the text of `farewell` and a line feed; `None` tells nothing. Runs on the event loop, as
    /// [`classify`](Self::classify) does; if it panics, nothing is told. Not asked at a stop: see [`stopping`](Self::stopping).
    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        farewell.line()
    }

    /// What a peer is told, line ending included, in place of the reply to a request that has `waited` for a worker longer than
    /// [`Config::queue_timeout`](crate::Config::queue_timeout) and is not run. By default `ERROR busy` with how long. Runs on a worker;
    /// if it panics, the peer is told the default.
    ///
    /// An empty one makes the request one without a reply: a client that counts replies then takes the next one for this one's, so leave
    /// it empty only where replies say what they are for.
    fn busy_line(&self, waited: Duration) -> Vec<u8> {
        words::busy_line(waited)
    }

    /// The server begins to stop: what has arrived is answered, then everything ends. For a service that waits for something, or has
    /// others wait, so that nobody does so in vain; or that has a word for its peers, which it [pushes](crate::Group::push): who is idle
    /// gets it as the last. Called once, on the event loop, so it must not block; where the server ends
    /// without a stop, or its threads could not be started, on the thread that ends it. By default nothing is done.
    fn stopping(&self) {}

    /// The service's name in the statistics: a short word, the same at every call. Asked once, at the start. By default `service`, as
    /// that of each closure; services of one server with the same name are counted together.
    fn name(&self) -> &str {
        "service"
    }

    /// Whether connections are opened and closed for the service. Asked once, at the start. One whose state is `()`, and that has
    /// nothing to do then, may say no, as a [`Handler`](crate::Handler) does: it spares each connection two visits to a worker, and
    /// lets a [stop line](Self::stop_line) be looked for ahead. With another state than `()` it panics whenever that is asked for.
    fn has_sessions(&self) -> bool {
        true
    }
}

/// A service behind a pointer is the service.
macro_rules! forward {
    ($inner:ty; $($header:tt)*) => {
        $($header)* {
            type State = <$inner as Service>::State;
            type Worker = <$inner as Service>::Worker;

            fn start_worker(&self) -> <$inner as Service>::Worker {
                (**self).start_worker()
            }

            fn open(&self, worker: &mut <$inner as Service>::Worker, connection: &Connection<'_>, reply: &mut Reply<'_>) -> <$inner as Service>::State {
                (**self).open(worker, connection, reply)
            }

            fn handle(
                &self,
                state: &mut <$inner as Service>::State,
                worker: &mut <$inner as Service>::Worker,
                request: &Request<'_>,
                reply: &mut Reply<'_>,
            ) {
                (**self).handle(state, worker, request, reply);
            }

            fn close(
                &self,
                state: <$inner as Service>::State,
                worker: &mut <$inner as Service>::Worker,
                connection: &Connection<'_>,
                reason: CloseReason,
            ) {
                (**self).close(state, worker, connection, reason);
            }

            fn place(&self) -> Place {
                (**self).place()
            }

            fn framing<'a>(&'a self, state: &'a <$inner as Service>::State) -> Option<&'a dyn Framing> {
                (**self).framing(state)
            }

            fn classify(&self, state: &<$inner as Service>::State, frame: &[u8]) -> Kind {
                (**self).classify(state, frame)
            }

            fn joins(&self) -> Option<&dyn Join> {
                (**self).joins()
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

            fn stopping(&self) {
                (**self).stopping();
            }

            fn name(&self) -> &str {
                (**self).name()
            }

            fn has_sessions(&self) -> bool {
                (**self).has_sessions()
            }
        }
    };
}

forward!(S; impl<S: Service + ?Sized> Service for Arc<S>);
forward!(dyn Service<State = T, Worker = W>; impl<T: Send + 'static, W: 'static> Service for Box<dyn Service<State = T, Worker = W>>);

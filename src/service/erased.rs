//! A service without its types: what the reactor and the workers hold. Panics of the service are caught here.

use std::any::Any;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use super::connection::Connection;
use super::cut::Cutting;
use super::join::{Join, Joining};
use super::reply::{Mode, Reply};
use super::request::Request;
use super::traits::Service;
use super::words::{self, Farewell, Kind, Place};
use crate::framing::Framing;
use crate::job::{Handled, Replies, Session};
use crate::reason::CloseReason;

/// What a worker has of its own for a service.
pub(crate) type WorkerState = Box<dyn Any>;

/// [`Service`], with a session in place of its state. A session that is not of the service's type is a bug of ours, and panics.
pub(crate) trait Erased: Send + Sync + 'static {
    fn start_worker(&self) -> WorkerState;
    fn open(&self, worker: &mut WorkerState, connection: &Connection<'_>, reply: &mut Reply<'_>) -> Session;
    fn handle(
        &self,
        session: &mut Option<Session>,
        worker: &mut WorkerState,
        request: &Request<'_>,
        reply: &mut Reply<'_>,
    );
    fn cut(&self, session: &mut Option<Session>, cutting: &mut Cutting<'_>);
    fn close(
        &self,
        session: Session,
        worker: &mut WorkerState,
        connection: &Connection<'_>,
        reason: CloseReason,
    );
    fn framing<'a>(&'a self, session: Option<&'a Session>) -> Option<&'a dyn Framing>;
    fn classify(&self, session: Option<&Session>, frame: &[u8]) -> Kind;
    fn has_sessions(&self) -> bool;
    fn joins(&self) -> Option<&dyn Join>;
    fn place(&self) -> Place;
    fn stop_line(&self) -> Option<&[u8]>;
    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>>;
    fn busy_line(&self, waited: Duration) -> Vec<u8>;
    fn stopping(&self);
    fn name(&self) -> &str;
}

const OF_ITS_TYPE: &str = "a session is given back to the service that made it";
/// The state of a connection that has no session.
static NONE: () = ();

fn state<T: 'static>(session: Option<&Session>) -> &T {
    match session {
        Some(session) => session.downcast_ref(),
        None => (&NONE as &dyn Any).downcast_ref(),
    }
    .expect(OF_ITS_TYPE)
}

fn state_mut<'a, T: 'static>(session: &'a mut Option<Session>, none: &'a mut ()) -> &'a mut T {
    match session {
        Some(session) => session.downcast_mut(),
        None => (none as &mut dyn Any).downcast_mut(),
    }
    .expect(OF_ITS_TYPE)
}

pub(super) fn worker_state<'a, T: 'static>(worker: &'a mut WorkerState, none: &'a mut ()) -> &'a mut T {
    // Told at compile time where a worker has nothing of its own.
    match (none as &mut dyn Any).downcast_mut() {
        Some(none) => Some(none),
        None => worker.downcast_mut(),
    }
    .expect("a worker has a state of each service")
}

impl<S: Service> Erased for S {
    fn start_worker(&self) -> WorkerState {
        Box::new(Service::start_worker(self))
    }

    fn open(&self, worker: &mut WorkerState, connection: &Connection<'_>, reply: &mut Reply<'_>) -> Session {
        Box::new(Service::open(self, worker_state(worker, &mut ()), connection, reply))
    }

    fn handle(
        &self,
        session: &mut Option<Session>,
        worker: &mut WorkerState,
        request: &Request<'_>,
        reply: &mut Reply<'_>,
    ) {
        let mut none = ();
        let state = state_mut(session, &mut none);
        Service::handle(self, state, worker_state(worker, &mut ()), request, reply);
    }

    fn cut(&self, session: &mut Option<Session>, cutting: &mut Cutting<'_>) {
        let mut none = ();
        cutting.run(self, state_mut(session, &mut none));
    }

    fn close(
        &self,
        session: Session,
        worker: &mut WorkerState,
        connection: &Connection<'_>,
        reason: CloseReason,
    ) {
        let state = *session.downcast().expect(OF_ITS_TYPE);
        Service::close(self, state, worker_state(worker, &mut ()), connection, reason);
    }

    fn framing<'a>(&'a self, session: Option<&'a Session>) -> Option<&'a dyn Framing> {
        Service::framing(self, state(session))
    }

    fn classify(&self, session: Option<&Session>, frame: &[u8]) -> Kind {
        Service::classify(self, state(session), frame)
    }

    fn has_sessions(&self) -> bool {
        Service::has_sessions(self)
    }

    fn joins(&self) -> Option<&dyn Join> {
        Service::joins(self)
    }

    fn place(&self) -> Place {
        Service::place(self)
    }

    fn stop_line(&self) -> Option<&[u8]> {
        Service::stop_line(self)
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        Service::last_line(self, farewell)
    }

    fn busy_line(&self, waited: Duration) -> Vec<u8> {
        Service::busy_line(self, waited)
    }

    fn stopping(&self) {
        Service::stopping(self);
    }

    fn name(&self) -> &str {
        Service::name(self)
    }
}

/// Calls `service` for one request, whose reply is appended. After a panic it is as before, less what was flushed.
#[inline(always)]
pub(crate) fn handle(
    service: &dyn Erased,
    session: &mut Option<Session>,
    worker: &mut WorkerState,
    request: &Request<'_>,
    to: Replies<'_>,
    mode: Mode,
) -> Handled {
    let mut reply = Reply::new(to, request.connection(), mode);
    // Unwind safety: after a panic the only value of ours that it could have left half written is cut back; the states are the
    // service's own.
    let call = || service.handle(session, worker, request, &mut reply);
    if let Err(value) = panic::catch_unwind(AssertUnwindSafe(call)) {
        discard(value);
        let start = reply.start;
        reply.buffer().truncate(start);
        return Handled::Panicked;
    }
    reply.handled()
}

/// Opens a connection; what it is greeted with is appended. With it comes whether it is to be closed at once. `None`: it panicked,
/// and nothing was written.
pub(crate) fn open(
    service: &dyn Erased,
    worker: &mut WorkerState,
    connection: &Connection<'_>,
    to: Replies<'_>,
) -> Option<(Session, bool)> {
    let mut reply = Reply::new(to, connection, Mode::Greeting);
    // Unwind safety: as above.
    let call = || service.open(worker, connection, &mut reply);
    match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(session) => Some((session, reply.close)),
        Err(value) => {
            discard(value);
            let start = reply.start;
            reply.buffer().truncate(start);
            None
        }
    }
}

/// Gives a session back. `false`: it panicked.
pub(crate) fn close(
    service: &dyn Erased,
    session: Session,
    worker: &mut WorkerState,
    connection: &Connection<'_>,
    reason: CloseReason,
) -> bool {
    // Unwind safety: what it had is gone with it.
    let call = || service.close(session, worker, connection, reason);
    panic::catch_unwind(AssertUnwindSafe(call)).map_err(discard).is_ok()
}

/// Drops what is a service's own, as a session that cannot be given back, whether it panics or not.
pub(crate) fn drop_value(value: Box<dyn Any + Send>) {
    // Unwind safety: nothing of it is used any more.
    panic::catch_unwind(AssertUnwindSafe(|| drop(value))).unwrap_or_else(discard);
}

/// Makes what a worker has of its own. `None`: it panicked.
pub(crate) fn start_worker(service: &dyn Erased) -> Option<WorkerState> {
    // Unwind safety: it only had a shared reference to itself.
    panic::catch_unwind(AssertUnwindSafe(|| service.start_worker())).map_err(discard).ok()
}

/// Asks `service` what a frame is. `None`: it panicked.
pub(crate) fn classify(service: &dyn Erased, session: Option<&Session>, frame: &[u8]) -> Option<Kind> {
    // Unwind safety: it only had shared references.
    panic::catch_unwind(AssertUnwindSafe(|| service.classify(session, frame))).map_err(discard).ok()
}

/// Asks `service` to join a connection. After a panic it is closed.
pub(crate) fn join(service: &dyn Erased, connection: &Connection<'_>, joining: Joining) {
    // Unwind safety: what it had is dropped.
    let call = || service.joins().map(|to| to.join(connection, joining));
    panic::catch_unwind(AssertUnwindSafe(call)).map_or_else(discard, drop);
}

/// Asks `service` for its last line. After a panic there is none.
pub(crate) fn last_line(service: &dyn Erased, farewell: &Farewell) -> Option<Vec<u8>> {
    // Unwind safety: it only had a shared reference to a plain value.
    panic::catch_unwind(AssertUnwindSafe(|| service.last_line(farewell))).map_err(discard).ok().flatten()
}

/// Asks `service` for what is told in place of a reply that comes too late. After a panic it is the default: told nothing, a client
/// that pipelines would take the next reply for this one.
pub(crate) fn busy_line(service: &dyn Erased, waited: Duration) -> Vec<u8> {
    // Unwind safety: as above.
    let line = panic::catch_unwind(AssertUnwindSafe(|| service.busy_line(waited))).map_err(discard);
    line.unwrap_or_else(|()| words::busy_line(waited))
}

/// Tells `service` that the server stops, whether it panics or not.
pub(super) fn stopping(service: &dyn Erased) {
    // Unwind safety: it only had a shared reference to itself.
    panic::catch_unwind(AssertUnwindSafe(|| service.stopping())).unwrap_or_else(discard);
}

/// Drops the value of a panic. It is the service's, so its drop may panic in turn; the value of that is leaked.
pub(crate) fn discard(value: Box<dyn Any + Send>) {
    if let Err(again) = panic::catch_unwind(AssertUnwindSafe(|| drop(value))) {
        mem::forget(again);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::job::{Batch, Endpoint, Origin};
    use crate::mail::{Nowhere, Post};
    use crate::service::Waits;
    use crate::slots::{ConnId, Slots};

    fn with_request(ask: impl FnOnce(&Request<'_>, &Waits)) {
        let local = Endpoint::new(([127, 0, 0, 1], 1).into(), 0);
        let id = ConnId { slot: 0, generation: 0 };
        let origin = Origin { id, slots: Slots::new([]), peer: local.address.clone(), local, opened_at: 0 };
        let (post, waits): (Arc<dyn Post>, _) = (Arc::new(Nowhere), Waits::default());
        ask(&Request::new(b"x", &Connection::new(&origin, &post), &waits), &waits);
    }

    #[test]
    fn a_panicking_handler_leaves_earlier_replies_untouched() {
        with_request(|request, _| {
            let mut batch = Batch::default();
            batch.replies.extend_from_slice(b"earlier\n");
            let service = |_: &Request<'_>, reply: &mut Reply<'_>| {
                reply.push(b"half of a");
                panic!("on purpose");
            };
            let mut worker = start_worker(&service).unwrap();
            let to = batch.replies();
            let handled = handle(&service, &mut None, &mut worker, request, to, Mode::Worker);
            assert_eq!((handled, &batch.replies[..]), (Handled::Panicked, &b"earlier\n"[..]));
        });
    }

    #[test]
    fn what_is_declared_ends_with_the_work_however_it_ends() {
        with_request(|request, waits| {
            let inner = request.blocking(|| {
                request.blocking(|| ());
                waits.blocks()
            });
            assert!(inner, "the outer one goes on");
            assert!(!waits.blocks());
            panic::catch_unwind(AssertUnwindSafe(|| request.blocking(|| panic!("on purpose")))).unwrap_err();
            assert!(!waits.blocks());
            let inner = request.awaiting(1, || {
                request.awaiting(2, || assert_eq!(waits.process(), Some(2)));
                waits.process()
            });
            assert_eq!((inner, waits.process()), (Some(1), None));
            panic::catch_unwind(AssertUnwindSafe(|| request.awaiting(3, || panic!("on purpose"))))
                .unwrap_err();
            assert_eq!(waits.process(), None);
        });
    }
}

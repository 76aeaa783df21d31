//! Peer: a reactor, a channel and a fixed pool of threads, the textbook way.
//!
//! One job is the lines of one read; while it is out, its connection is not read, which keeps the replies in order.
//! Every job is sent on its own, and every result wakes the reactor.

use std::io::Result;
use std::sync::Arc;
use std::thread;

use crate::peers::{self, Args};
use crate::reactor::{Reactor, Work};
use crate::service::{Answer, Service};
use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::Waker;

pub(crate) fn run(args: &Args) -> Result<bool> {
    let listener = args.listen()?;
    let reactor = Reactor::new(listener.try_clone()?)?;
    let waker = Arc::new(reactor.waker()?);
    let service = Arc::new(Service::new(listener.local_addr()?, args.handler_delay));
    // Neither is bounded: a connection has at most one job, so there are no more of them than connections.
    let (jobs, queue) = unbounded();
    let (results, done) = unbounded();
    for _ in 0..args.workers() {
        let (queue, results) = (queue.clone(), results.clone());
        let (service, waker) = (Arc::clone(&service), Arc::clone(&waker));
        thread::Builder::new().spawn(move || serve(&service, &queue, &results, &waker))?;
    }
    peers::announce(&listener)?;
    reactor.run(Pool { jobs, done }).map(|()| true)
}

/// Lines of a connection, or the replies to them.
type Bytes = (usize, Vec<u8>);

/// What the reactor holds of the pool.
struct Pool {
    jobs: Sender<Bytes>,
    done: Receiver<Bytes>,
}

impl Work for Pool {
    fn take(&mut self, id: usize, lines: &[u8], _: &mut Vec<u8>) -> bool {
        self.jobs.send((id, lines.to_vec())).expect("workers hold the other end and never return");
        false
    }

    fn collect(&mut self) -> Option<Bytes> {
        self.done.try_recv().ok()
    }
}

fn serve(service: &Service, queue: &Receiver<Bytes>, results: &Sender<Bytes>, waker: &Waker) {
    for (id, lines) in queue {
        let mut replies = Vec::new();
        service.answer(&lines, &mut replies);
        results.send((id, replies)).expect("the reactor holds the other end for ever");
        waker.wake().expect("an eventfd takes another count");
    }
}

//! Peer: a reactor, a channel and a fixed pool of threads, the textbook way.
//!
//! One job is the lines of one read; while it is out, its connection is not read, which keeps the replies in order.
//! Every job is sent on its own, and every result wakes the reactor.

use std::io::Result;
use std::sync::Arc;
use std::thread;

use crate::peer::{self, Args};
use crate::reactor::{Reactor, Work};
use crate::service::{Answer, Service};
use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::Waker;

pub(crate) fn run(args: &Args) -> Result<bool> {
    let listener = args.listen()?;
    let reactor = Reactor::new(listener.try_clone()?, args.handler_delay)?;
    let waker = Arc::new(reactor.waker()?);
    // Neither is bounded: a connection has at most one job, so there are no more of them than connections.
    let (jobs, queue) = unbounded();
    let (results, done) = unbounded();
    for _ in 0..args.workers() {
        let (queue, results, waker) = (queue.clone(), results.clone(), Arc::clone(&waker));
        thread::Builder::new().spawn(move || serve(&queue, &results, &waker))?;
    }
    peer::announce(&listener)?;
    reactor.run(Pool { jobs, done }).map(|()| true)
}

struct Job {
    id: usize,
    service: Arc<Service>,
    lines: Vec<u8>,
}

/// What the reactor holds of the pool.
struct Pool {
    jobs: Sender<Job>,
    done: Receiver<(usize, Vec<u8>)>,
}

impl Work for Pool {
    fn take(&mut self, id: usize, service: &Arc<Service>, lines: &[u8], _: &mut Vec<u8>) -> bool {
        let job = Job { id, service: Arc::clone(service), lines: lines.to_vec() };
        self.jobs.send(job).expect("workers hold the other end and never return");
        false
    }

    fn collect(&mut self) -> Option<(usize, Vec<u8>)> {
        self.done.try_recv().ok()
    }
}

fn serve(queue: &Receiver<Job>, results: &Sender<(usize, Vec<u8>)>, waker: &Waker) {
    for job in queue {
        let mut replies = Vec::new();
        job.service.answer(&job.lines, &mut replies);
        results.send((job.id, replies)).expect("the reactor holds the other end for ever");
        waker.wake().expect("an eventfd takes another count");
    }
}

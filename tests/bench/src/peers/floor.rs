//! Peer: one thread that does everything, the least that a server over epoll can cost.

use std::io::Result;

use crate::peers::{self, Args};
use crate::reactor::{Reactor, Work};
use crate::service::{Answer, Service};

pub(crate) fn run(args: &Args) -> Result<bool> {
    let listener = args.listen()?;
    let service = Service::new(listener.local_addr()?, args.handler_delay);
    peers::announce(&listener)?;
    Reactor::new(listener)?.run(service).map(|()| true)
}

/// Answers on the spot.
impl Work for Service {
    fn take(&mut self, _: usize, lines: &[u8], replies: &mut Vec<u8>) -> bool {
        self.answer(lines, replies);
        true
    }
}

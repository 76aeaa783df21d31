//! Peer: one thread that does everything, the least that a server over epoll can cost.

use std::io::Result;
use std::sync::Arc;

use crate::peer::{self, Args};
use crate::reactor::{Reactor, Work};
use crate::service::{Answer, Service};

pub(crate) fn run(args: &Args) -> Result<bool> {
    let listener = args.listen()?;
    peer::announce(&listener)?;
    Reactor::new(listener, args.handler_delay)?.run(Inline).map(|()| true)
}

/// Answers on the spot.
struct Inline;

impl Work for Inline {
    fn take(&mut self, _: usize, service: &Arc<Service>, lines: &[u8], replies: &mut Vec<u8>) -> bool {
        service.answer(lines, replies);
        true
    }

    fn collect(&mut self) -> Option<(usize, Vec<u8>)> {
        None
    }
}

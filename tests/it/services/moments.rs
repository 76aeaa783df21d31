//! What meets at an odd moment: nobody hangs, nothing is counted twice or never, and the order holds.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tidemill::{Reply, Request};

use crate::support::{Gate, Peer, assert_adds_up, embed, eventually};

/// Longer than anything takes that goes on at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// A sender that threads may share.
fn shared<T: Send>() -> (impl Fn(T) + Send + Sync + 'static, Receiver<T>)
where
    T: 'static,
{
    let (sender, receiver) = channel();
    let sender: Mutex<Sender<T>> = Mutex::new(sender);
    (move |value| sender.lock().unwrap().send(value).unwrap_or_default(), receiver)
}

#[test]
fn a_reply_that_is_taken_along_when_its_peer_has_gone_is_accounted_for() {
    let gate = Gate::closed();
    let (pass, (tell, told)) = (gate.entrance(), shared());
    let server = embed(move |_: &Request<'_>, reply: &mut Reply<'_>| {
        tell(());
        pass();
        reply.push(b"begun ");
        reply.defer().send();
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"a\nb\nc\n");
    told.recv_timeout(PATIENCE).unwrap();
    peer.reset();
    let handle = server.handle();
    eventually("it is known to be gone", || handle.stats().connections == 0);
    gate.open();
    eventually("nothing is pending", || handle.stats().requests_pending == 0);
    assert_adds_up(&handle.stats());
    assert_eq!(handle.stats().requests_dropped_total, 3);
}

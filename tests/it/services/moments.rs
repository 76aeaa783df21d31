//! What meets at an odd moment: nobody hangs, nothing is counted twice or never, and the order holds.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tidemill::{Pusher, Reply, Request};

use crate::support::{Gate, Peer, assert_adds_up, configure, embed, eventually};

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

#[test]
fn a_writer_goes_on_though_more_is_pushed_meanwhile_than_the_peer_may_leave_unread() {
    let gate = Gate::closed();
    let (pass, (tell, pushers)) = (gate.entrance(), shared::<Pusher>());
    let server = embed(move |request: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(b"<");
        reply.flush().unwrap();
        tell(request.connection().pusher());
        pass();
        reply.push(b"|");
        reply.flush().unwrap();
        reply.push(b">");
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect(b"<");
    let pusher = pushers.recv_timeout(PATIENCE).unwrap();
    let handle = server.handle();
    // More than the watermark, at once.
    pusher.push(&[b'p'; 100_000][..]).unwrap();
    eventually("it is taken in", || handle.stats().pushed_total == 1);
    gate.open();
    peer.expect(b"|>");
    peer.expect(&[b'p'; 100_000]);
    assert_adds_up(&handle.stats());
}

#[test]
fn a_writer_that_has_more_after_the_end_of_the_server_is_told() {
    let gate = Gate::closed();
    let (pass, (tell, told)) = (gate.entrance(), shared());
    let server = embed(move |_: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(b"<");
        reply.flush().unwrap();
        pass();
        reply.push(b">");
        tell(reply.flush().is_err());
    });
    let mut peer = Peer::connect(server.local_addr());
    peer.send(b"x\n");
    peer.expect(b"<");
    server.handle().stop_now();
    let outcome = server.wait().unwrap();
    assert_eq!((outcome.busy_workers, outcome.left_behind.len()), (1, 1));
    gate.open();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(true));
}

#[test]
fn a_writer_whose_request_takes_too_long_is_let_go() {
    let (tell, told) = shared();
    let flood = move |_: &Request<'_>, reply: &mut Reply<'_>| {
        let written = (0..10_000).all(|_| {
            reply.push(&[b'x'; 16 << 10]);
            reply.flush().is_ok()
        });
        tell(written);
    };
    let server = configure(flood, |config| {
        config.request_timeout = Some(Duration::from_millis(50));
        config.write_timeout = None;
    });
    let mut peer = Peer::with_small_buffer(server.local_addr(), 4 << 10);
    peer.send(b"x\n");
    assert_eq!(told.recv_timeout(PATIENCE), Ok(false));
    let handle = server.handle();
    eventually("no worker is stuck", || handle.stats().pool_busy == 0);
    assert_adds_up(&handle.stats());
    peer.reset();
    eventually("it is gone", || handle.stats().connections == 0);
    assert_eq!(handle.stats().requests_pending, 0);
    assert_adds_up(&handle.stats());
}

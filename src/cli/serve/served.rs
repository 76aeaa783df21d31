//! What `serve` serves where it hands requests to no programs: HELO, whose words and pace a reload changes.
//!
//! A request handler on many threads, so what is in force is behind a lock; but only where it is not what it was at the start, or a delay
//! is set. Else a request costs a look at a flag, as it did at the delay. Held by `tests/it/config.rs`.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, PoisonError, RwLock};

use tidemill::{Delay, Farewell, Handler, Helo, Kind, Reply, Request};

use super::ServeArgs;

/// The service. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Served(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// As at the start, and what was said of it.
    first: Helo,
    words: Words,
    /// That is what is in force, and without delay. Whoever reads it late answers as before, which is all that it decides.
    is_first: AtomicBool,
    present: RwLock<Arc<Delay<Helo>>>,
    /// Requests are handled on the event loop.
    inline: AtomicBool,
}

impl Served {
    pub(super) fn new(args: &ServeArgs) -> Served {
        let first = helo(args);
        let present = RwLock::new(Arc::new(Delay::new(first.clone(), args.handler_delay)));
        let is_first = AtomicBool::new(args.handler_delay.is_zero());
        let inline = AtomicBool::new(args.inline);
        Served(Arc::new(Shared { first, words: words(args), is_first, present, inline }))
    }

    /// What comes from now on is served so.
    pub(super) fn set(&self, args: &ServeArgs) {
        // A request that is handled on the event loop finds no delay, as the options exclude each other: but for one that is
        // classified before this and handled behind it.
        if !args.inline {
            self.0.inline.store(false, SeqCst);
        }
        let present = Arc::new(Delay::new(helo(args), args.handler_delay));
        *self.0.present.write().unwrap_or_else(PoisonError::into_inner) = present;
        let is_first = args.handler_delay.is_zero() && words(args) == self.0.words;
        self.0.is_first.store(is_first, Relaxed);
        self.0.inline.store(args.inline, SeqCst);
    }
}

/// What replies say: student, address and port.
type Words = (String, Option<IpAddr>, Option<u16>);

fn words(args: &ServeArgs) -> Words {
    (args.student_id.clone(), args.advertise_ip, args.advertise_port)
}

fn helo(args: &ServeArgs) -> Helo {
    let mut helo = Helo::new().student_id(&args.student_id);
    if let Some(ip) = args.advertise_ip {
        helo = helo.advertise_ip(ip);
    }
    if let Some(port) = args.advertise_port {
        helo = helo.advertise_port(port);
    }
    helo
}

impl Served {
    /// Answers by other words than the first.
    #[cold]
    fn handle_changed(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        // Not while it is handled: that may take long, and nobody who changes it is to wait.
        let present = Arc::clone(&self.0.present.read().unwrap_or_else(PoisonError::into_inner));
        present.handle(request, reply);
    }
}

impl Handler for Served {
    #[inline(always)]
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        if self.0.is_first.load(Relaxed) {
            self.0.first.handle(request, reply);
        } else {
            self.handle_changed(request, reply);
        }
    }

    #[inline]
    fn classify(&self, line: &[u8]) -> Kind {
        match self.0.first.classify(line) {
            Kind::Request if self.0.inline.load(Relaxed) => Kind::Inline,
            kind => kind,
        }
    }

    fn stop_line(&self) -> Option<&[u8]> {
        self.0.first.stop_line()
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        self.0.first.last_line(farewell)
    }

    fn name(&self) -> &str {
        self.0.first.name()
    }
}

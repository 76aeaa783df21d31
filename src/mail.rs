//! What comes to the reactor from other threads, through its mailbox (`replies`): finished jobs, pieces of replies, replies
//! that were given later, what is pushed, what connections are joined to, and questions.
//!
//! The mailbox is one queue, so all that is for one connection leaves it in the order in which it was given.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

#[cfg(feature = "admin")]
use crate::address::Address;
use crate::clock::Nanos;
#[cfg(feature = "admin")]
use crate::config::ServiceId;
use crate::handover::Listener;
use crate::job::Job;
use crate::slots::ConnId;

/// One piece of mail. Each is boxed, as it moves between queues.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A worker is done with it, for now or altogether.
    Job(Box<Job>),
    /// The event loop is done with it while pushed bytes for its connection may be here: its replies, or the end of its connection, are
    /// behind them.
    Inline(Box<Job>),
    Piece(Box<Piece>),
    Completion(Box<Completion>),
    Push(Box<Push>),
    Join(Box<JoinTo>),
    Question(Question),
    #[cfg(feature = "admin")]
    Survey(Box<Survey>),
}

impl Mail {
    /// The job that it is, if it is one. A further kind says here whether it carries one, and with it a session.
    pub(crate) fn into_job(self) -> Option<Box<Job>> {
        match self {
            Mail::Job(job) | Mail::Inline(job) => Some(job),
            Mail::Piece(_) | Mail::Completion(_) | Mail::Push(_) | Mail::Join(_) | Mail::Question(_) => None,
            #[cfg(feature = "admin")]
            Mail::Survey(_) => None,
        }
    }
}

/// What a handler has written so far of a reply, and the replies before it in the same job.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) connection: ConnId,
    pub(crate) bytes: Vec<u8>,
    /// Where in `bytes` those replies end that are complete.
    pub(crate) ends: Vec<usize>,
    /// Told once the peer has read enough for more; dropped if the connection ends before.
    pub(crate) go_on: SyncSender<()>,
}

/// What became of a reply that was to be given later.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) connection: ConnId,
    /// The rest of the reply; `None`: nobody will give it.
    pub(crate) reply: Option<Vec<u8>>,
    /// The connection is to be closed behind it.
    pub(crate) close: bool,
}

/// Bytes for one connection or more, between their replies.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) to: Vec<ConnId>,
    /// How many of them have it.
    pub(crate) given: usize,
    /// They are to be closed behind it.
    pub(crate) close: bool,
}

/// What a connection is joined to, or what its peer is told instead.
#[derive(Debug)]
pub(crate) struct JoinTo {
    pub(crate) connection: ConnId,
    pub(crate) to: Result<Ends, Vec<u8>>,
}

/// Where the bytes of a peer go, where those come from that are for it, and what is dropped when it has gone.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) input: OwnedFd,
    pub(crate) output: OwnedFd,
    pub(crate) guard: Box<dyn Any + Send>,
}

/// What others want to know of the reactor; dropped without an answer if that has ended.
#[derive(Debug)]
pub(crate) enum Question {
    /// Whether it turns.
    Turns(SyncSender<()>),
    /// Its listeners, once more; none if a stop was asked for.
    Listeners(SyncSender<io::Result<Vec<Listener>>>),
}

/// A question about the connections of clients.
#[cfg(feature = "admin")]
pub(crate) struct Survey {
    /// So many of those that hold most are told of.
    pub(crate) top: usize,
    /// Whose peers are told.
    pub(crate) peers_of: Vec<ConnId>,
    /// Takes the answer, on the reactor's thread.
    pub(crate) answer: Box<dyn FnOnce(Findings) + Send>,
}

#[cfg(feature = "admin")]
impl fmt::Debug for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Survey").field("top", &self.top).finish_non_exhaustive()
    }
}

/// The answer.
#[cfg(feature = "admin")]
#[derive(Debug)]
pub(crate) struct Findings {
    /// The one that holds most first.
    pub(crate) most: Vec<Holder>,
    /// In the order of [`Survey::peers_of`]; `None`: it is gone.
    pub(crate) peers: Vec<Option<Address>>,
}

/// A connection, and what it holds.
#[cfg(feature = "admin")]
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) service: ServiceId,
    pub(crate) peer: Address,
    pub(crate) age_nanos: Nanos,
    pub(crate) state: &'static str,
    pub(crate) held_bytes: usize,
}

/// The way to the reactor, and its clock, for whoever does not care how it is woken.
pub(crate) trait Post: Send + Sync + 'static {
    /// Hands `mail` over and wakes the reactor for it. Once that has ended, drops it.
    fn post(&self, mail: Mail);

    /// The pool's clock.
    fn now(&self) -> Nanos;

    /// Whether the reactor takes in what was handed over while the calling thread waits: not once it has ended, nor if this is its thread.
    fn takes_in(&self) -> bool;
}

impl fmt::Debug for dyn Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Post")
    }
}

/// A way to no reactor.
#[cfg(any(test, fuzzing))]
pub(crate) struct Nowhere;

#[cfg(any(test, fuzzing))]
impl Post for Nowhere {
    fn post(&self, _: Mail) {}

    fn now(&self) -> Nanos {
        0
    }

    fn takes_in(&self) -> bool {
        false
    }
}

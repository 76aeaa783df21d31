//! A server for line protocols over TCP: one event loop, and a pool of worker threads that sizes itself.
//!
//! Clients send lines; a [`Handler`] turns each into a reply, on a worker thread where it may block. One
//! [mio] event loop does all the I/O. The pool follows the work between a minimum and a maximum, and leaves it alone
//! within a tolerance.
//!
//! ```
//! use std::io::{Read, Write};
//!
//! use tidemill::{Reply, Request, Server};
//!
//! // A server of your own: answer each line in upper case.
//! let upper = |request: &Request<'_>, reply: &mut Reply<'_>| {
//!     reply.push(&request.line().to_ascii_uppercase());
//!     reply.push(b"\n");
//! };
//! let server = Server::builder(upper).listen("127.0.0.1:0".parse()?).start()?;
//!
//! let mut client = std::net::TcpStream::connect(server.local_addr())?;
//! client.write_all(b"hello\n")?;
//! let mut reply = [0; 6];
//! client.read_exact(&mut reply)?;
//! assert_eq!(&reply, b"HELLO\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A [`Service`] can do more than that: keep a state for each connection and each worker, greet, speak frames other than lines and
//! change them on the way, give replies later or in pieces, push, handle what never blocks on the event loop. The [`guide`]
//! grows these lines to a chat, step by step.
//!
//! # Map of the modules
//!
//! Start with [`Server`], [`Handler`], [`Service`] and [`Config`]. How the pool is sized is documented in [`controller`], the cutting of
//! bytes into lines in [`framing`], the HELO protocol in [`protocol`]; [`client`] is a small blocking client. What
//! happens between a socket and a handler is told in [`architecture`]; how the program is run, in its module `operating`.
//!
//! # Features
//!
//! - `cli` (default): the `tidemill` program. An embedder turns it off with `default-features = false`.
//! - `top` (default): `tidemill top`, a terminal screen; needs `cli`.
//! - `exec`: the module `exec`, programs in any language as handlers. Part of `cli`.
//! - `simulate`: the modules `simulate` and `schedule`, which play the pool's rule in simulated time. Part of `cli`.
//! - `admin`: the server tells about itself by HTTP, `Builder::admin`. Part of `cli`.
//! - `serde`: [`Stats`] and [`Decision`] can be serialized.
//!
//! # Versions
//!
//! The oldest Rust that builds it is in `Cargo.toml` (`rust-version`). It rises only with a new minor version, to one that is half
//! a year old at least. Breaking changes of the API come with a new major version, before 1.0 with a new
//! minor one, and the changelog names each; what may grow is `#[non_exhaustive]`, traits grow by methods with defaults. No type of
//! another crate is part of the API but [`IpNet`] of `ipnet`.
//!
//! # Logs
//!
//! The library prints nothing. It reports through [`tracing`](https://docs.rs/tracing), from the reactor thread too: a
//! subscriber must not block.

/// The example in the README is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

#[doc = include_str!("GUIDE.md")]
pub mod guide {}

#[doc = include_str!("ARCHITECTURE.md")]
pub mod architecture {}

#[cfg(feature = "cli")]
#[doc = include_str!("OPERATING.md")]
pub mod operating {}

mod address;
#[cfg(feature = "admin")]
mod admin;
#[cfg(feature = "admin")]
mod agent;
pub mod client;
mod clock;
mod config;
mod connection;
pub mod controller;
mod error;
#[cfg(feature = "exec")]
pub mod exec;
pub mod framing;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod handover;
mod helo;
mod hub;
mod job;
mod litter;
mod mail;
mod metrics;
mod overview;
mod pool;
pub mod protocol;
mod reactor;
mod reason;
mod replies;
mod saturation;
#[cfg(feature = "simulate")]
pub mod schedule;
mod server;
mod service;
#[cfg(feature = "simulate")]
pub mod simulate;
mod slots;
mod slow;
mod socket;
mod state;
mod sync;
mod threads;
mod timings;
mod tuner;
mod watch;

pub use address::Address;
pub use config::{
    Config, MAX_DURATION, MAX_LINE_BYTES, MAX_THREAD_STACK_BYTES, MAX_WORKERS, MIN_THREAD_STACK_BYTES,
    PoolLimits, ProxyFrom, ServiceConfig, StopFrom,
};
pub use controller::Decision;
pub use error::Error;
pub use handover::Listener;
pub use helo::{Delay, Helo};
pub use ipnet::IpNet;
pub use metrics::{Closed, Rejected, Requests, Resizes, Stats};
pub use reason::CloseReason;
pub use server::{Builder, Outcome, Server, ServerHandle};
pub use service::{
    Connection, ConnectionId, Deferred, Farewell, Group, Handler, Join, Joining, Kind, Place, PushError,
    Pusher, Reply, Request, Service,
};
pub use state::ServerState;
pub use timings::Distribution;
pub use tuner::MAX_DECISIONS;

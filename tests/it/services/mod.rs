//! What a service can do beyond request and reply, each over real sockets.
//!
//! | module | what it holds |
//! |---|---|
//! | `sessions` | the state of a connection: made once, handed on, given back once, whatever happens |
//! | `workers` | what a worker has of its own |
//! | `framings` | other frames than lines, and a change of framing in the middle of a connection |
//! | `inline` | requests that are handled on the event loop |
//! | `joined` | connections whose bytes go to something else and come from there |
//! | `later` | replies that are given later, from any thread |
//! | `pieces` | long replies in pieces, and how long the writer waits |
//! | `mixed` | everything at once, seeded |
//! | `moments` | what meets at an odd moment |
//! | `push` | bytes that nobody asked for, to one and to many |
//! | `several` | several services in one server |

mod framings;
mod inline;
mod joined;
mod later;
mod mixed;
mod moments;
mod pieces;
mod push;
mod sessions;
mod several;
mod workers;

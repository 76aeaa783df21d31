//! What the peers, the benchmark and the cost table share.
//!
//! Peers: [`peer`] (arguments, listener), [`service`] (lines to replies), [`reactor`] (a mio loop).

pub mod peer;
pub mod reactor;
pub mod service;

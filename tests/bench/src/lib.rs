//! What the peers, the benchmark and the cost table share.
//!
//! Peers: [`peer`] (arguments, listener), [`service`] (lines to replies), [`reactor`] (a mio loop).
//! Measuring: [`server`] (what is started), [`workload`] and [`flood`] (what it is flooded with), [`machine`] (what the
//! kernel counts), [`measure`] (one measurement), [`stats`] (medians), [`results`], [`scaling`], [`target`], [`markdown`]
//! and [`page`] (what is shown); [`syscalls`] and [`idle`] for the cost table.

pub mod flood;
pub mod idle;
pub mod machine;
pub mod markdown;
pub mod measure;
pub mod neighbours;
pub mod page;
pub mod peer;
pub mod reactor;
pub mod results;
pub mod scaling;
pub mod server;
pub mod service;
pub mod stats;
pub mod syscalls;
pub mod target;
pub mod workload;

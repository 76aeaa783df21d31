//! What the peers, the benchmark and the scorecard share.
//!
//! Peers: [`peer`] (arguments, listener), [`service`] (lines to replies), [`reactor`] (a mio loop).
//! Measuring: [`server`] (what is started), [`workload`] and [`flood`] (what it is flooded with), [`machine`] (what the
//! kernel counts), [`measure`] (one measurement), [`stats`] (medians), [`goal`] and [`target`] (what they have to be) and
//! [`results`] (what is shown, by the program's own renderer of reports).

pub mod flood;
pub mod goal;
pub mod machine;
pub mod measure;
pub mod neighbours;
pub mod peer;
pub mod reactor;
#[path = "../../../src/report/mod.rs"]
#[expect(dead_code, reason = "the program's own, of which the benchmark needs a part")]
mod report;
pub mod results;
pub mod server;
pub mod service;
pub mod stats;
pub mod target;
pub mod workload;

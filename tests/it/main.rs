//! End-to-end tests: real sockets, real signals, the real binary.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

/// Arguments, exit statuses, and the one line that says what is wrong.
mod cli;
/// Properties of the controller for any sequence of samples.
mod controller_props;
/// The library in other people's programs.
mod embed;
/// Properties of framing.
mod framing_props;
/// Every limit, and what happens at it.
mod limits;
/// `tidemill load` against servers that are wrong in one way each.
mod load_tool;
/// Ten thousand connections.
mod many;
/// Many requests at once, in order.
mod pipelining;
/// The pool follows the load.
mod pool;
/// The HELO protocol, byte for byte.
mod protocol;
/// Names of the statistics, and that they add up.
mod stats;
/// What a stop answers, and how it ends.
mod stop;
/// Helpers of several modules.
mod support;

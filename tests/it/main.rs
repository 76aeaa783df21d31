//! End-to-end tests: real sockets, real signals, the real binary.

/// `tidemill load` against servers that are wrong in one way each.
mod load_tool;
/// Helpers of several modules.
mod support;

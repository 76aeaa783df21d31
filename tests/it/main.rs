//! End-to-end tests: real sockets, real signals, the real binary.

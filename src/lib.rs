//! A server for line protocols over TCP: one event loop, and a pool of worker threads that sizes itself.

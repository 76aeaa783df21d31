//! A request allocates nothing, once the server has warmed up.
//!
//! A binary of its own: the counting allocator is the whole process's, and nothing else may run beside it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tidemill::{Helo, Server};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Sends `depth` requests at a time on each connection and reads their replies, without allocating anything itself.
fn ask(clients: &mut [TcpStream], request: &[u8], replies: &mut [u8], times: usize) {
    for _ in 0..times {
        for client in clients.iter_mut() {
            client.write_all(request).unwrap();
        }
        for client in clients.iter_mut() {
            client.read_exact(replies).unwrap();
        }
    }
}

/// Allocations for each of 10 000 requests, with `depth` of them in a write.
fn allocations_per_request(depth: usize) -> f64 {
    let server = Server::builder(Helo::new()).listen(([127, 0, 0, 1], 0).into()).start().unwrap();
    let mut clients: Vec<TcpStream> =
        (0..4).map(|_| TcpStream::connect(server.local_addr()).unwrap()).collect();
    let request = b"HELO the same text each time\n".repeat(depth);
    let port = server.local_addr().port();
    let reply = format!("HELO the same text each time\nIP:127.0.0.1\nPort:{port}\nStudentID:16336617\n");
    let mut replies = vec![0; reply.len() * depth];
    let times = 10_000 / (clients.len() * depth);

    ask(&mut clients, &request, &mut replies, times / 4);
    let before = ALLOCATOR.stats();
    ask(&mut clients, &request, &mut replies, times);
    let after = ALLOCATOR.stats();
    assert_eq!(replies, reply.repeat(depth).as_bytes());
    let allocations = after.allocations - before.allocations + after.reallocations - before.reallocations;
    let requests = times * clients.len() * depth;
    allocations as f64 / requests as f64
}

#[test]
fn a_request_allocates_nothing_in_the_long_run() {
    for depth in [1, 10] {
        let each = allocations_per_request(depth);
        assert!(each < 0.1, "{each} allocations for each request, {depth} in a write");
    }
}

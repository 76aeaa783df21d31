//! A request allocates nothing, once the server has warmed up.
//!
//! A binary of its own: the counting allocator is the whole process's, and nothing else may run beside it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tidemill::{Helo, Server};

/// The queue in front of the workers takes a block for so many jobs.
const JOBS_IN_A_BLOCK: usize = 63;
/// Beside those: buffers that grow once more, of jobs that a busy machine brings together for the first time. Fewer than one for
/// every hundredth request.
const MOST_OTHERS: usize = 80;

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

/// Allocations for 10 000 requests, with `depth` of them in a write.
fn allocations(depth: usize) -> usize {
    // A worker that is started allocates.
    let builder = Server::builder(Helo::new()).threads(2, 2).listen(([127, 0, 0, 1], 0).into());
    let server = builder.start().unwrap();
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
    after.allocations - before.allocations + after.reallocations - before.reallocations
}

#[test]
fn a_request_allocates_nothing_in_the_long_run() {
    for depth in [1, 10] {
        let count = allocations(depth);
        writeln!(std::io::stderr(), "{count} allocations for 10 000 requests, {depth} in a write")
            .unwrap_or_default();
        let most = 10_000 / depth / JOBS_IN_A_BLOCK + MOST_OTHERS;
        assert!(count < most, "{count} allocations for 10 000 requests, {depth} in a write");
    }
}

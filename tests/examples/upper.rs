//! Answers each line in upper case: the least that a service is.

mod common;

use tidemill::{Reply, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let upper = |request: &Request<'_>, reply: &mut Reply<'_>| {
        reply.push(&request.line().to_ascii_uppercase());
        reply.push(b"\n");
    };
    common::run(upper, |_| ())
}

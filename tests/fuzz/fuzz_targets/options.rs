#![no_main]
#![allow(dead_code, reason = "the whole program is here, and one function of it is called")]

#[path = "../../../src/cli/mod.rs"]
mod cli;
#[path = "../../../src/load/mod.rs"]
mod load;
#[path = "../../../src/report/mod.rs"]
mod report;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cli::fuzzing::options(data));

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidemill::fuzzing::proxy(data));

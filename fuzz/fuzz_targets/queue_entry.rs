#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ppsw_spool::fuzzing::queue_entry(data));

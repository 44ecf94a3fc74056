#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ppsw_spool::fuzzing::log_record(data));

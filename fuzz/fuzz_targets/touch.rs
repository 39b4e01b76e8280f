#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rdp_server::fuzz_oracle::fuzz_touch(bytes));

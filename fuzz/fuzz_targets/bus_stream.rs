#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| enhanced_session::fuzz_oracle::fuzz_bus_stream(bytes));

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::fuzz_oracle::fuzz_hyperv_image(bytes));

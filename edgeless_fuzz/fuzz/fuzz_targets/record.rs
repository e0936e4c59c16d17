#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| edgeless_fuzz::run("record", input));

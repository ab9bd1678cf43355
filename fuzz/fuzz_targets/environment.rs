//! A file of variables.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| troop_cli::fuzz::environment(text));

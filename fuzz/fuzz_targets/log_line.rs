//! A line that a worker prints, on its way into a log and out of it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| troop_cli::fuzz::log_line(line));

//! A line on the control socket, from a user who may be anybody that reaches it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| troop_cli::fuzz::control_request(line));

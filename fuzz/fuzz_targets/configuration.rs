//! A file of apps: the first byte chooses the format. (`ecosystem.config.js` is a program; node
//! reads it.)
#![no_main]

use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 4] = ["troop.toml", "ecosystem.yaml", "ecosystem.json", "Procfile"];

fuzz_target!(|data: &[u8]| {
    let [format, text @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    troop_cli::fuzz::configuration(NAMES[usize::from(*format) % NAMES.len()], text);
});

//! The first bytes of a connection: a proxy's header, a request with a cookie or a query. The first
//! byte chooses what a client is recognised by.
//!
//! At the end of the bytes there is always an answer; an answer that did not wait for the end is
//! not taken back when more bytes come; and nothing is taken off a connection that has not arrived.
#![no_main]

use libfuzzer_sys::fuzz_target;
use troop_core::policy::{Finding, Identify, Scheduling, identify};

const RULES: [&str; 7] = [
    "proxy=strip",
    "proxy=pass",
    "cookie=a",
    "query=a",
    "proxy=strip,cookie=a",
    "proxy=strip,query=a",
    "proxy=pass,cookie=a",
];

fuzz_target!(|data: &[u8]| {
    let [rules, bytes @ ..] = data else { return };
    let rules = RULES[usize::from(*rules) % RULES.len()];
    let Ok(Scheduling::Sticky(sticky)) = format!("sticky:{rules}").parse() else { panic!("{rules}") };
    let find = |bytes: &[u8], last| identify(Identify { sticky: &sticky, peer: Some([10, 0, 0, 1].into()), bytes, last });
    let Finding::Found { client, strip } = find(bytes, true) else { panic!("it waits beyond the end") };
    assert!(client.is_some(), "it has an address at least");
    assert!(strip <= bytes.len());
    let early = (0..=bytes.len()).find_map(|cut| match find(&bytes[..cut], false) {
        Finding::Found { strip, .. } => Some((cut, strip)),
        Finding::More => None,
    });
    if let Some((cut, early)) = early {
        assert!(early <= cut);
        assert_eq!(early, strip, "decided after {cut} of {} bytes", bytes.len());
    }
});

//! What memory a primary takes.

#![allow(clippy::unwrap_used)]

mod support;

use support::Home;

#[test]
fn threads_of_a_primary_allocate_from_one_arena() {
    let server = "require('http').createServer().listen(0, '127.0.0.1')";
    let home = Home::with(&[("server.js", server)]);
    home.fine(&["start", "server.js"]);
    let pid = home.show("server")["pid"].as_u64().unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    // The C library reserves 64 MiB for each further arena, of which most cannot be accessed yet.
    let reserved = maps.lines().filter(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let size = u64::from_str_radix(to, 16).unwrap() - u64::from_str_radix(from, 16).unwrap();
        rest.starts_with("---p") && size > 32 << 20
    });
    assert_eq!(reserved.count(), 0, "{maps}");
    home.fine(&["stop", "server"]);
}

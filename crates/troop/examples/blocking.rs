//! Plain threads, no async code: `cargo run --release --example blocking`, then
//! `curl telnet://127.0.0.1:8000`.

use std::io::Write;

use troop::{Cluster, Role};

fn main() -> troop::Result<()> {
    let role = match troop::role()? {
        Role::Primary => return Cluster::builder().on_event(|event| println!("{event}")).run(),
        Role::Worker(role) => role,
    };
    let worker = role.blocking()?;
    let listener = worker.listen(8000)?;
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                // Ends when the worker is to finish.
                while let Ok((mut stream, peer)) = listener.accept() {
                    let _ =
                        writeln!(stream, "hello {peer}, this is process {}", std::process::id());
                }
            });
        }
    });
    worker.finish();
    Ok(())
}

//! An axum server on every CPU: `cargo run --release --features axum --example hello`, then
//! `curl http://127.0.0.1:8000/`.

use axum::{Router, routing::get};
use troop::{Cluster, Event, Role};

/// Prints what happens, except the settings that precede each start of a worker.
fn print(event: &Event) {
    if !matches!(event, Event::Setup { .. }) {
        println!("{event}");
    }
}

fn main() -> troop::Result<()> {
    match troop::role()? {
        Role::Primary => Cluster::builder().on_event(print).run(),
        Role::Worker(worker) => worker.block_on(async |worker| {
            let listener = worker.listen(8000).await?;
            let app = Router::new()
                .route("/", get(async || format!("hello from process {}\n", std::process::id())));
            troop::serve(listener, app).await;
            Ok(())
        }),
    }
}

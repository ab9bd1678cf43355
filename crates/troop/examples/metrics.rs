//! Workers that count what they serve: `cargo build --features axum,metrics --example metrics`, then
//! `troop start target/debug/examples/metrics -n web -w 2`, `troop admin --worker-metrics web` and `curl
//! http://127.0.0.1:9900/metrics`, which has the sum over all workers.

use std::sync::Arc;

use axum::{Router, routing::get};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

fn main() -> troop::Result<()> {
    troop::worker()?.block_on(async |worker| {
        let served: Counter = Counter::default();
        let mut registry = Registry::default();
        registry.register("served", "Requests that were answered", served.clone());
        worker.metrics(Arc::new(registry));

        let listener = worker.listen(8000).await?;
        let hello = async move || {
            served.inc();
            "hello\n"
        };
        troop::serve(listener, Router::new().route("/", get(hello))).await;
        Ok(())
    })
}

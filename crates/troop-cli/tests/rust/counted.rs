//! A worker that counts its connections in a registry of its own. With `slow` it takes longer to collect
//! than anybody waits.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Metrics that take a minute to collect, in the worker of slot 1.
#[derive(Debug)]
struct Slow;

impl Collector for Slow {
    fn encode(&self, _: DescriptorEncoder<'_>) -> std::fmt::Result {
        if std::env::var("TROOP_SLOT").is_ok_and(|slot| slot == "1") {
            std::thread::sleep(Duration::from_secs(60));
        }
        Ok(())
    }
}

fn main() -> troop::Result<()> {
    troop::worker()?.block_on(async |worker| {
        let served: Counter = Counter::default();
        let mut registry = Registry::default();
        registry.register("served", "Connections that were answered", served.clone());
        if std::env::args().any(|arg| arg == "slow") {
            registry.register_collector(Box::new(Slow));
        }
        worker.metrics(Arc::new(registry));
        let listener = worker.listen("127.0.0.1:0").await?;
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            served.inc();
        }
        Ok(())
    })
}

//! Rust workers under our primary.

use std::collections::BTreeMap;

use troop::event::ExitHow;
use troop::{Cluster, Scheduling, Setup};
use troop_testkit::{Troop, ask, get};

fn fixture<const N: usize>(args: [&str; N]) -> Setup {
    Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture")).args(args)
}

#[tokio::test]
async fn connections_go_round_in_exact_turns() {
    let mut troop = Troop::with(fixture(["line", "127.0.0.1:0"]));
    let (one, two, three) = (troop.fork().await, troop.fork().await, troop.fork().await);
    let port = troop.listening(&one).await;
    assert_eq!(troop.listening(&two).await, port);
    assert_eq!(troop.listening(&three).await, port);
    let mut counts = BTreeMap::new();
    for _ in 0..30 {
        *counts.entry(ask(port, "").await.unwrap()).or_insert(0) += 1;
    }
    assert_eq!(counts.values().copied().collect::<Vec<i32>>(), [10, 10, 10], "{counts:?}");
    troop.cluster.disconnect().await.unwrap();
    for worker in [one, two, three] {
        assert_eq!(troop.exit(&worker).await, ExitHow::Code(0));
        assert_eq!(worker.exited_after_disconnect(), Some(true));
    }
}

#[tokio::test]
async fn a_shared_socket_serves_too() {
    let mut troop = Troop::start(
        Cluster::builder().scheduling(Scheduling::Shared).setup(fixture(["http", "127.0.0.1:0"])),
    );
    let (one, two) = (troop.fork().await, troop.fork().await);
    let port = troop.listening(&one).await;
    assert_eq!(troop.listening(&two).await, port);
    for _ in 0..10 {
        assert!(!get(port, "/").await.unwrap().is_empty());
    }
    troop.cluster.disconnect().await.unwrap();
    assert_eq!(troop.exit(&one).await, ExitHow::Code(0));
}

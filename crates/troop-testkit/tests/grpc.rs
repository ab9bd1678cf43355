//! tonic on a worker's listener, by itself and under axum.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use troop::supervise::Progress;
use troop::{Cluster, Event, Setup};
use troop_testkit::{TEST_TIMEOUT, Troop, at_once};

/// A client that is there before a reload and afterwards. The service has the name of the worker.
async fn the_client_gets_to_the_new_worker(by: &str) {
    let setup = Setup::new().program(env!("CARGO_BIN_EXE_troop-fixture"));
    let builder = Cluster::builder().workers(1).replace(at_once()).drain_spread(Duration::ZERO);
    let mut troop = Troop::start(builder.setup(setup.args(["grpc", by, "127.0.0.1:0"])));
    let listening = |e: &Event| match e {
        Event::Listening { worker, address, .. } => Some((worker.clone(), address.port.unwrap())),
        _ => None,
    };
    let (old, port) = troop.until("listening", listening).await;
    let name = format!("{} {}", old.id(), old.pid());
    let endpoint = Endpoint::new(format!("http://127.0.0.1:{port}")).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    for _ in 0..10 {
        let known = client.check(HealthCheckRequest { service: name.clone() }).await.unwrap();
        assert_eq!(known.into_inner().status(), ServingStatus::Serving);
    }
    let reload = troop.cluster.reload();
    let done = |e: &Event| matches!(e, Event::Supervision(Progress::ReloadFinished)).then_some(());
    troop.until("the end of the reload", done).await;
    reload.await.unwrap();
    // Its connection, which stays open until it is closed from here, does not keep it.
    troop.exit(&old).await;
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let status = client.check(HealthCheckRequest { service: name.clone() }).await.unwrap_err();
        // A service of another worker's name does not exist.
        if status.code() == Code::NotFound {
            break;
        }
        // The client may not have seen yet that its connection is closed.
        assert!(Instant::now() < deadline, "{status:?}");
    }
}

#[tokio::test]
async fn clients_of_tonics_own_server_get_to_the_new_worker() {
    the_client_gets_to_the_new_worker("tonic").await;
}

#[tokio::test]
async fn clients_of_tonics_routes_under_axum_get_to_the_new_worker() {
    the_client_gets_to_the_new_worker("axum").await;
}

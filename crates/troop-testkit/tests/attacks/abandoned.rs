//! Listeners that workers leave behind.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::Duration;

use troop::supervise::ReplacePolicy;
use troop::{Cluster, Event};
use troop_testkit::{free_port, open_descriptors};

use crate::scene::{ONLINE, Scene, alone};

/// Workers that each listen on another address, and die, one after the other; and one that never
/// says that it listens, so that it could ask for their ports for ever.
#[tokio::test]
async fn listeners_of_dead_workers_are_closed_with_their_waiting_clients() {
    if !alone("abandoned::listeners_of_dead_workers_are_closed_with_their_waiting_clients") {
        return;
    }
    const LIVES: usize = 10;
    let replace = ReplacePolicy::default().ready_timeout(Duration::from_secs(5));
    let mut scene = Scene::with(Cluster::builder().replace(replace)).await;
    let before = open_descriptors();
    let mut ports = Vec::new();
    for _ in 0..LIVES {
        let port = free_port();
        let fields =
            format!(r#""seq":1,"index":0,"address":"127.0.0.1","port":{port},"addressType":4"#);
        let query = format!(r#"answer {{"cmd":"NODE_CLUSTER","act":"queryServer",{fields}}}"#);
        let worker = scene.raw(&[ONLINE, &query]).await;
        scene.troop.message(&worker).await;
        worker.kill(9).await.unwrap();
        scene.troop.exit(&worker).await;
        ports.push(port);
    }
    let clients: Vec<TcpStream> =
        ports.iter().map(|port| TcpStream::connect(("127.0.0.1", *port)).unwrap()).collect();
    let silent = scene.raw(&[ONLINE; 5]).await;
    for _ in 0..LIVES {
        let closed = |event: &Event| match event {
            Event::ListenerClosed { address: at, dropped, .. } => Some((at.port, *dropped)),
            _ => None,
        };
        let (port, dropped) = scene.troop.until("the end of a listener", closed).await;
        assert!(ports.iter().any(|other| Some(i64::from(*other)) == port));
        assert_eq!(dropped, 1);
    }
    for mut client in clients {
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let end = client.read(&mut [0]);
        assert!(
            matches!(&end, Ok(0))
                || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "a client hangs"
        );
    }
    for port in ports {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    }
    scene.honest_worker_serves().await;
    silent.kill(9).await.unwrap();
    scene.troop.exit(&silent).await;
    assert!(
        open_descriptors() <= before,
        "{before} descriptors before, {} after",
        open_descriptors()
    );
}

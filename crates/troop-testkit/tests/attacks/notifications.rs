//! Sockets for notifications (`sd_notify`), which users that are not a worker's must not reach.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use troop::supervise::{ReadyWhen, ReplacePolicy};
use troop::{Cluster, Setup};

use crate::scene::{ONLINE, Scene};
use crate::support::{STRANGER, is_root};

/// The value of `NOTIFY_SOCKET` of a process.
fn address_of(pid: u32) -> String {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let mut variables = environment.split('\0');
    variables.find_map(|pair| pair.strip_prefix("NOTIFY_SOCKET=")).unwrap().to_owned()
}

#[tokio::test]
async fn no_other_user_finds_the_socket_of_a_worker() {
    if !is_root("notifications::no_other_user_finds_the_socket_of_a_worker") {
        return;
    }
    let policy = ReplacePolicy::default().ready_when(ReadyWhen::Notified);
    let scene = Scene::with(Cluster::builder().replace(policy)).await;
    scene.troop.cluster.setup(Setup::new().uid(STRANGER).gid(STRANGER)).unwrap();
    let steps = [ONLINE, "notify READY=1", "line \"it was sent\"", "sleep 600000"];
    let mut scene = scene;
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let worker = scene.raw(&steps).await;
        assert_eq!(scene.troop.message(&worker).await, "it was sent");
        let address = address_of(worker.pid());
        let path = Path::new(&address);
        assert!(path.is_absolute(), "{address} is open to every user");
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(!std::fs::read_to_string("/proc/net/unix").unwrap().contains(name));
        let mut list = Command::new("ls");
        list.arg(path.parent().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
        let listed = list.uid(STRANGER + 1).gid(STRANGER + 1).status().unwrap();
        assert!(!listed.success(), "its directory can be listed");
        let mut place = Command::new("touch");
        place.arg(path.with_file_name("x")).stderr(Stdio::null());
        let placed = place.uid(STRANGER).gid(STRANGER).status().unwrap();
        assert!(!placed.success(), "its directory can be changed");
        addresses.push((worker, address));
    }
    assert_ne!(addresses[0].1, addresses[1].1);
    for (worker, address) in addresses {
        worker.kill(9).await.unwrap();
        scene.troop.exit(&worker).await;
        assert!(!Path::new(&address).exists(), "its file is removed");
    }
    scene.honest_worker_serves().await;
}

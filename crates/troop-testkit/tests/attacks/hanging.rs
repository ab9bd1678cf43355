//! Paths on a file system that never answers.

use troop::{Cluster, Fork, Setup};

use super::fuse::Mount;
use super::home::Home;
use super::running::{Running, open_directory};
use super::scene::{ONLINE, Scene};
use super::support::{STRANGER, is_root, troop};

const FIXTURE: &str = env!("CARGO_BIN_EXE_troop-fixture");

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_names_a_path_that_is_never_answered_holds_nobody_up() {
    const TEST: &str = "a_worker_that_names_a_path_that_is_never_answered_holds_nobody_up";
    if !is_root(TEST) {
        return;
    }
    let home = open_directory();
    let Some(dead) = Mount::dead(TEST, &home.path().join("dead")) else { return };
    let mut scene = Scene::with(Cluster::builder()).await;
    scene.troop.cluster.setup(Setup::new().uid(STRANGER).gid(STRANGER)).unwrap();
    let query = |seq: u32, name: &str| {
        let path = dead.at.join(name);
        format!(
            r#"answer {{"cmd":"NODE_CLUSTER","act":"queryServer","seq":{seq},"index":0,"port":-1,"addressType":-1,"address":"{}"}}"#,
            path.display()
        )
    };
    let worker = scene.raw(&[ONLINE, &query(1, "a"), &query(2, "b"), &query(3, "c")]).await;
    for _ in 0..3 {
        assert_eq!(scene.troop.message(&worker).await["errno"], -libc::ETIMEDOUT);
    }
    scene.honest_worker_serves().await;
    // Neither does a directory that its own user was given by the operator.
    scene.troop.cluster.setup(Setup::new().cwd(&dead.at)).unwrap();
    let refused = scene.troop.cluster.fork(Fork::new()).await.unwrap_err();
    assert!(refused.chain().to_string().contains("did not answer"), "{}", refused.chain());
    scene.honest_worker_serves().await;
}

#[test]
fn what_the_operator_names_and_is_never_answered_is_an_error_in_the_end_and_the_app_serves_meanwhile()
 {
    const TEST: &str = "what_the_operator_names_and_is_never_answered_is_an_error_in_the_end_and_the_app_serves_meanwhile";
    if !is_root(TEST) {
        return;
    }
    let home = open_directory();
    let user = STRANGER;
    std::fs::copy(FIXTURE, home.path().join("program")).unwrap();
    let write = |more: &str| {
        let text = format!(
            "[app.web]\nprogram = \"./program\"\nargs = [\"line\", \"127.0.0.1:0\"]\nworkers = 1\nuser = \"{user}\"\ngroup = \"{user}\"\n{more}"
        );
        std::fs::write(home.path().join("troop.toml"), text).unwrap();
    };
    write("");
    let mut running = Running::start(&mut troop(home.path(), &["run", "--log", "json", "web"]));
    running.event("listening");
    let Some(dead) = Mount::dead(TEST, &home.path().join("dead")) else { return };
    write("env_file = [\"dead/env\"]\ncwd = \"dead\"\n");
    std::thread::scope(|scope| {
        let asked = [&["reload", "web"][..], &["check"], &["run", "--name", "other", "web"]]
            .map(|args| scope.spawn(|| Home::ended(troop(home.path(), args))));
        for _ in 0..3 {
            let ended = Home::ended(troop(home.path(), &["ls"]));
            assert!(ended.code == Some(0) && ended.out.contains("running"), "{ended:?}");
        }
        for asked in asked {
            let ended = asked.join().unwrap();
            assert!(
                matches!(ended.code, Some(1 | 2)) && ended.err.contains("has not answered"),
                "{ended:?}"
            );
        }
    });
    drop(dead);
}

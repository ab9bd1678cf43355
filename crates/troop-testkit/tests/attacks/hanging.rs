//! Paths on a file system that never answers.

use std::path::Path;

use tempfile::TempDir;
use troop::supervise::Progress;
use troop::{Cluster, Event, Fork, Setup};
use troop_testkit::{Troop, ask, at_once};

use super::fuse::Mount;
use super::home::Home;
use super::running::{Running, open_directory};
use super::scene::{ONLINE, Scene, fixture};
use super::support::{STRANGER, is_root, troop};

const FIXTURE: &str = env!("CARGO_BIN_EXE_troop-fixture");

/// A directory, and a file system in it that never answers. `None` where there can be none.
fn dead_mount(test: &str) -> Option<(TempDir, Mount)> {
    if !is_root(test) {
        return None;
    }
    let home = open_directory();
    let dead = Mount::dead(test, &home.path().join("dead"))?;
    Some((home, dead))
}

/// The same, and a cluster that starts its workers there from now on.
async fn with_starts_on_a_dead_mount(test: &str) -> Option<(TempDir, Mount, Scene)> {
    let (home, dead) = dead_mount(test)?;
    let mut scene = Scene::with(Cluster::builder()).await;
    scene.troop.cluster.setup(Setup::new().cwd(&dead.at)).unwrap();
    scene.troop.until("the change", |event| is_made_there(event, &dead)).await;
    Some((home, dead, scene))
}

/// Asks for a Unix socket at this path.
fn query(seq: u32, path: &Path) -> String {
    format!(
        r#"answer {{"cmd":"NODE_CLUSTER","act":"queryServer","seq":{seq},"index":0,"port":-1,"addressType":-1,"address":"{}"}}"#,
        path.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_path_on_a_dead_mount_delays_no_other() {
    const TEST: &str = "a_worker_with_a_path_on_a_dead_mount_delays_no_other";
    let Some((_home, dead)) = dead_mount(TEST) else { return };
    let mut scene = Scene::with(Cluster::builder()).await;
    scene.troop.cluster.setup(Setup::new().uid(STRANGER).gid(STRANGER)).unwrap();
    let queries = [1, 2, 3].map(|seq| query(seq, &dead.at.join(seq.to_string())));
    let steps: Vec<_> = std::iter::once(ONLINE).chain(queries.iter().map(String::as_str)).collect();
    let worker = scene.raw(&steps).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn the_total_delay_by_slow_paths_of_a_worker_is_bounded() {
    const TEST: &str = "the_total_delay_by_slow_paths_of_a_worker_is_bounded";
    if !is_root(TEST) {
        return;
    }
    let home = open_directory();
    let Some(slow) = Mount::slow(TEST, &home.path().join("slow")) else { return };
    let mut scene = Scene::with(Cluster::builder()).await;
    scene.troop.cluster.setup(Setup::new().uid(STRANGER).gid(STRANGER)).unwrap();
    let queries = [0, 1, 2, 3, 4, 5].map(|seq| query(seq, &slow.at.join(format!("{seq}/s"))));
    let steps: Vec<_> = std::iter::once(ONLINE).chain(queries.iter().map(String::as_str)).collect();
    let worker = scene.raw(&steps).await;
    let mut errors = Vec::new();
    for _ in 0..6 {
        errors.push(scene.troop.message(&worker).await["errno"].as_i64().unwrap());
    }
    // Each takes a second; of all there is waited for three.
    assert_eq!((errors[0], errors[5]), (-i64::from(libc::EACCES), -i64::from(libc::ETIMEDOUT)));
    scene.honest_worker_serves().await;
}

/// Whether workers are started on a dead mount, from now on or just now.
fn is_made_there(event: &Event, dead: &Mount) -> Option<()> {
    match event {
        Event::Setup { setup, .. } => (setup.get_cwd() == Some(&*dead.at)).then_some(()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_dead_mount_delays_neither_clients_nor_the_stop() {
    const TEST: &str = "a_start_on_a_dead_mount_delays_neither_clients_nor_the_stop";
    let Some((_home, dead, mut scene)) = with_starts_on_a_dead_mount(TEST).await else { return };
    let cluster = scene.troop.cluster.clone();
    let start = tokio::spawn(async move { cluster.fork(Fork::new()).await });
    scene.troop.until("the start", |event| is_made_there(event, &dead)).await;
    for _ in 0..5 {
        scene.honest_worker_serves().await;
        assert_eq!(scene.troop.cluster.snapshot().await.unwrap().workers.len(), 1);
    }
    assert!(!start.is_finished());
    scene.troop.cluster.disconnect().await.unwrap();
    let refused = start.await.unwrap().unwrap_err();
    assert!(refused.chain().contains("cancelled"), "{}", refused.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_that_hang_on_a_dead_mount_delay_other_starts_for_seconds_at_most() {
    const TEST: &str = "starts_that_hang_on_a_dead_mount_delay_other_starts_for_seconds_at_most";
    let Some((home, dead, mut scene)) = with_starts_on_a_dead_mount(TEST).await else { return };
    let mut starts = Vec::new();
    for _ in 0..3 {
        let cluster = scene.troop.cluster.clone();
        starts.push(tokio::spawn(async move { cluster.fork(Fork::new()).await }));
        scene.troop.until("the start", |event| is_made_there(event, &dead)).await;
    }
    scene.troop.cluster.setup(Setup::new().cwd(home.path())).unwrap();
    let begun = std::time::Instant::now();
    let worker = scene.troop.cluster.fork(Fork::new()).await.unwrap();
    let took = begun.elapsed();
    // An own user's start has 30 s.
    assert!(took < std::time::Duration::from_secs(15), "it took {took:?}");
    assert!(starts.iter().all(|start| !start.is_finished()));
    worker.kill(9).await.unwrap();
    scene.troop.exit(&worker).await;
    scene.honest_worker_serves().await;
    scene.troop.cluster.disconnect().await.unwrap();
    for start in starts {
        let refused = start.await.unwrap().unwrap_err();
        assert!(refused.chain().contains("cancelled"), "{}", refused.chain());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_replaces_workers_whose_start_hangs_on_a_dead_mount() {
    const TEST: &str = "a_reload_replaces_workers_whose_start_hangs_on_a_dead_mount";
    let Some((home, dead)) = dead_mount(TEST) else { return };
    let setup = fixture(["line", "127.0.0.1:0"]);
    let mut troop = Troop::start(Cluster::builder().setup(setup).workers(2).replace(at_once()));
    let listens = |event: &Event| match event {
        Event::Listening { worker, address, .. } => Some((worker.clone(), address.port)),
        _ => None,
    };
    let (first, port) = troop.until("listening", listens).await;
    let (second, _) = troop.until("listening", listens).await;
    let port = u16::try_from(port.unwrap()).unwrap();
    troop.cluster.setup(Setup::new().cwd(&dead.at)).unwrap();
    second.kill(9).await.unwrap();
    troop.exit(&second).await;
    for what in ["the change", "the start of its successor"] {
        troop.until(what, |event| is_made_there(event, &dead)).await;
    }
    for _ in 0..5 {
        assert!(ask(port, "").await.unwrap().contains(' '));
    }
    let reload = troop.cluster.reload_as(Setup::new().cwd(home.path()));
    let finished = |event: &Event| match event {
        Event::Supervision(Progress::ReloadFinished) => Some(true),
        Event::Supervision(Progress::ReloadFailed { .. }) => Some(false),
        _ => None,
    };
    assert!(troop.until("the end of the reload", finished).await, "{}", troop.story());
    let reloaded = reload.await.unwrap();
    assert_eq!((reloaded.replaced, reloaded.started), (1, 1), "{reloaded:?}");
    troop.exit(&first).await;
    let snapshot = troop.cluster.snapshot().await.unwrap();
    assert_eq!((snapshot.workers.len(), snapshot.ready), (2, 2), "{snapshot:?}");
    assert!(snapshot.workers.iter().all(|worker| worker.generation == Some(2)), "{snapshot:?}");
    assert!(ask(port, "").await.unwrap().contains(' '));
}

#[test]
fn configured_paths_on_a_dead_mount_time_out_with_an_error_while_the_app_serves() {
    const TEST: &str =
        "configured_paths_on_a_dead_mount_time_out_with_an_error_while_the_app_serves";
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

#[test]
fn an_app_whose_record_is_on_a_dead_mount_runs_and_is_listed_without_it() {
    const TEST: &str = "an_app_whose_record_is_on_a_dead_mount_runs_and_is_listed_without_it";
    if !is_root(TEST) {
        return;
    }
    let home = open_directory();
    let Some(dead) = Mount::dead(TEST, &home.path().join("dead")) else { return };
    let program = home.path().join("program");
    std::fs::copy(FIXTURE, &program).unwrap();
    let on_dead = |args: &[&str]| {
        let mut command = troop(home.path(), args);
        command.env("TROOP_STATE_DIR", home.path().join("dead/apps"));
        command
    };
    let program = program.to_str().unwrap();
    let args = ["run", "--log", "json", "-n", "web", program, "line", "127.0.0.1:0"];
    let mut running = Running::start(&mut on_dead(&args));
    running.event("listening");
    let ended = Home::ended(on_dead(&["ls"]));
    assert!(
        ended.code == Some(0) && ended.out.contains("running") && ended.err.contains("dead mount"),
        "{ended:?}"
    );
    // Nor does its end wait for it.
    let ended = Home::ended(on_dead(&["stop", "web"]));
    assert!(ended.code == Some(0) && ended.out.contains("web: stopped"), "{ended:?}");
    drop(dead);
}

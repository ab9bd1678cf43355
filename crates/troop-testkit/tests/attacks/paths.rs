//! Unix listeners at paths whose directories change under the primary's hands, or where only root
//! may go.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use troop::{Builder, Cluster, Event, Setup, WorkerHandle};
use troop_sys::identity::Identity;

use super::scene::{ONLINE, Scene};
use super::support::{STRANGER, is_root};

/// A directory that the stranger may enter, with one that is its own (`its`), and one that only
/// root may change (`roots`).
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let place = Place { directory };
        let open = |path: &Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap()
        };
        open(place.directory.path());
        for name in ["its", "roots"] {
            std::fs::create_dir(place.at(name)).unwrap();
            open(&place.at(name));
        }
        chown(place.at("its"), Some(STRANGER), Some(STRANGER)).unwrap();
        place
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// What root's directory holds.
    fn roots(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.at("roots"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn as_stranger<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    Identity { uid: STRANGER, gid: STRANGER, groups: Vec::new() }
        .with_rights(|| Ok(work()))
        .unwrap()
}

/// A primary that is root, whose workers from now on are the stranger's.
async fn scene(builder: Builder) -> Scene {
    let scene = Scene::with(builder).await;
    scene.troop.cluster.setup(Setup::new().uid(STRANGER).gid(STRANGER)).unwrap();
    scene
}

fn query(path: &Path) -> String {
    let path = path.display();
    format!(
        r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"index":0,"port":-1,"addressType":-1,"address":"{path}","readableAll":true,"writableAll":true}}"#
    )
}

/// Asks for a path, and says how that ended; the worker stays.
async fn asked(scene: &mut Scene, path: &Path) -> (i64, WorkerHandle) {
    let worker = scene.raw(&[ONLINE, &format!("answer {}", query(path))]).await;
    let answer = scene.troop.message(&worker).await;
    (answer["errno"].as_i64().unwrap_or(0), worker)
}

async fn ends(scene: &mut Scene, worker: &WorkerHandle) {
    worker.kill(9).await.unwrap();
    scene.troop.exit(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_becomes_a_link_does_not_lead_root_to_its_own_files() {
    if !is_root("a_directory_that_becomes_a_link_does_not_lead_root_to_its_own_files") {
        return;
    }
    let place = Place::new();
    let precious = place.at("roots/s");
    std::fs::write(&precious, "precious").unwrap();
    std::fs::set_permissions(&precious, std::fs::Permissions::from_mode(0o600)).unwrap();
    let before = std::fs::metadata(&precious).unwrap();
    let (real, link) = (place.at("its/d"), place.at("its/link"));
    as_stranger(|| {
        std::fs::create_dir(&real).unwrap();
        symlink("../roots", &link).unwrap();
    });
    let over = Arc::new(AtomicBool::new(false));
    let flips = std::thread::spawn({
        let (real, over) = (real.clone(), over.clone());
        move || {
            as_stranger(|| {
                let mut flips = 0;
                while !over.load(Ordering::Relaxed) {
                    renameat_with(CWD, &real, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                    flips += 1;
                }
                flips
            })
        }
    });
    let mut scene = scene(Cluster::builder()).await;
    let path = real.join("s");
    let close = format!(
        r#"{{"cmd":"NODE_CLUSTER","act":"close","key":"{}:-1:-1:undefined:0","seq":2}}"#,
        path.display()
    );
    let many = format!("repeat 3000 {}\n{close}", query(&path));
    let worker = scene.raw(&[ONLINE, &many, "line \"done\""]).await;
    // Its answers are not read, so it may have to be helped to its end.
    let id = worker.id();
    let done = |e: &Event| match e {
        Event::Message { worker: w, .. } | Event::Exit { worker: w, .. } if w.id() == id => {
            Some(())
        }
        _ => None,
    };
    scene.troop.until("its end", done).await;
    over.store(true, Ordering::Relaxed);
    assert!(flips.join().unwrap() > 100, "the directory was exchanged all the time");
    let after = std::fs::metadata(&precious).unwrap();
    assert_eq!((after.mode(), after.ino(), after.uid()), (before.mode(), before.ino(), 0));
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    assert_eq!(place.roots(), ["s"]);
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn nothing_is_bound_removed_or_opened_up_where_only_root_may_write() {
    if !is_root("nothing_is_bound_removed_or_opened_up_where_only_root_may_write") {
        return;
    }
    let place = Place::new();
    let stale = place.at("roots/stale");
    drop(UnixListener::bind(&stale).unwrap());
    let before = std::fs::symlink_metadata(&stale).unwrap();
    symlink("../roots", place.at("its/link")).unwrap();
    let mut scene = scene(Cluster::builder()).await;
    for path in [
        "roots/stale",
        "roots/new",
        "its/link/new",
        "its/link/stale",
        "its/../roots/new",
        "its/./link/../../roots/new",
    ] {
        let (errno, worker) = asked(&mut scene, &place.at(path)).await;
        assert!(errno < 0, "{path}: {errno}");
        ends(&mut scene, &worker).await;
        let after = std::fs::symlink_metadata(&stale).unwrap();
        assert_eq!(
            (after.ino(), after.mode(), after.uid()),
            (before.ino(), before.mode(), 0),
            "{path}"
        );
        assert_eq!(place.roots(), ["stale"], "{path}");
    }
    assert!(
        scene.troop.story().contains("may_listen"),
        "the operator is told what to do: {}",
        scene.troop.story()
    );
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_worker_has_what_its_own_user_could_have_and_that_user_owns_it() {
    if !is_root("a_worker_has_what_its_own_user_could_have_and_that_user_owns_it") {
        return;
    }
    let place = Place::new();
    let path = place.at("its/s");
    as_stranger(|| drop(UnixListener::bind(&path).unwrap()));
    let mut scene = scene(Cluster::builder().keep_listeners(false)).await;
    let (errno, worker) = asked(&mut scene, &path).await;
    assert_eq!(errno, 0, "its own stale socket is replaced");
    let found = std::fs::symlink_metadata(&path).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o666), (STRANGER, 0o666));
    UnixStream::connect(&path).unwrap();
    // Something else in its place is not removed at the end.
    as_stranger(|| {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another").unwrap();
    });
    ends(&mut scene, &worker).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "another");
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_path_that_the_configuration_names_is_bound_by_root_and_no_other() {
    if !is_root("a_path_that_the_configuration_names_is_bound_by_root_and_no_other") {
        return;
    }
    let place = Place::new();
    let named = place.at("roots/web.sock");
    symlink("../roots", place.at("its/link")).unwrap();
    let through = place.at("its/link/web.sock");
    let pattern = |path: &Path| path.to_str().unwrap().parse().unwrap();
    let builder = Cluster::builder().keep_listeners(false).may_listen("0".parse().unwrap());
    let mut scene = scene(builder.may_listen(pattern(&named)).may_listen(pattern(&through))).await;
    for path in ["roots/other.sock", "its/../roots/web.sock", "its/s"] {
        let (errno, worker) = asked(&mut scene, &place.at(path)).await;
        assert_eq!(errno, -13, "{path}");
        ends(&mut scene, &worker).await;
    }
    let (errno, worker) = asked(&mut scene, &through).await;
    assert!(errno < 0, "a link that the stranger may exchange is not followed on root's account");
    ends(&mut scene, &worker).await;
    assert_eq!(place.roots(), [""; 0]);
    let (errno, worker) = asked(&mut scene, &named).await;
    assert_eq!(errno, 0);
    UnixStream::connect(&named).unwrap();
    ends(&mut scene, &worker).await;
    assert_eq!(place.roots(), [""; 0], "it is removed with its listener");
    scene.honest_worker_serves().await;
}

#[tokio::test]
async fn a_worker_that_has_given_up_root_has_no_more_than_its_new_user() {
    if !is_root("a_worker_that_has_given_up_root_has_no_more_than_its_new_user") {
        return;
    }
    let place = Place::new();
    let mut scene = Scene::new().await;
    let become_stranger = format!("become {STRANGER}");
    for (steps, expected) in [(vec![], 0), (vec![become_stranger.as_str()], -13)] {
        let path = place.at("roots/s");
        let ask = format!("answer {}", query(&path));
        let worker = scene.raw(&[&steps[..], &[ONLINE, &ask]].concat()).await;
        assert_eq!(scene.troop.message(&worker).await["errno"].as_i64().unwrap_or(0), expected);
        let close = worker.id();
        ends(&mut scene, &worker).await;
        let _ = close;
        scene.troop.cluster.keep_listeners(false).unwrap();
        scene.troop.cluster.keep_listeners(true).unwrap();
        scene.honest_worker_serves().await;
        assert_eq!(place.roots(), [""; 0]);
    }
}

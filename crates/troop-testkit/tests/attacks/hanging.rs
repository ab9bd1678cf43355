//! Paths on a file system that never answers.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use troop::{Cluster, Fork, Setup};

use super::home::Home;
use super::running::{Running, open_directory};
use super::scene::{ONLINE, Scene};
use super::support::{STRANGER, is_root, troop};

const FIXTURE: &str = env!("CARGO_BIN_EXE_troop-fixture");

/// A file system that everybody may use and nobody serves: whoever looks at it waits until this is
/// dropped.
struct Dead {
    at: PathBuf,
    /// With it the connection ends, and so does all waiting.
    served_by: Option<File>,
}

impl Dead {
    /// `None`, and a word about it, where none can be mounted.
    fn mount(test: &str, at: &Path) -> Option<Dead> {
        let text = |text: &str| std::ffi::CString::new(text).unwrap();
        std::fs::create_dir(at).unwrap();
        let served_by = File::options().read(true).write(true).open("/dev/fuse").ok();
        let mounted = served_by.as_ref().is_some_and(|fuse| {
            let options = text(&format!(
                "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
                fuse.as_raw_fd()
            ));
            let target = text(at.to_str().unwrap());
            #[expect(unsafe_code, reason = "the tests' only mount is not worth a wrapper")]
            // SAFETY: a system call with valid texts.
            let result = unsafe {
                libc::mount(
                    c"dead".as_ptr(),
                    target.as_ptr(),
                    c"fuse".as_ptr(),
                    0,
                    options.as_ptr().cast(),
                )
            };
            result == 0
        });
        if !mounted {
            eprintln!("skipped: hanging::{test}: no file system can be mounted by /dev/fuse");
            return None;
        }
        Some(Dead { at: at.to_owned(), served_by })
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        drop(self.served_by.take());
        let target = std::ffi::CString::new(self.at.to_str().unwrap()).unwrap();
        #[expect(unsafe_code, reason = "as for the mount")]
        // SAFETY: a system call with a valid text.
        let _ = unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_names_a_path_that_is_never_answered_holds_nobody_up() {
    const TEST: &str = "a_worker_that_names_a_path_that_is_never_answered_holds_nobody_up";
    if !is_root(TEST) {
        return;
    }
    let home = open_directory();
    let Some(dead) = Dead::mount(TEST, &home.path().join("dead")) else { return };
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
    let Some(dead) = Dead::mount(TEST, &home.path().join("dead")) else { return };
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

//! What a worker in a sandbox still reaches: files, system calls, and the primary as a way around.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use troop::{Cluster, Setup, WorkerHandle};
use troop_testkit::{node_program, talk, wait_until};

use super::home::Home;
use super::running::{Running, file, open_directory};
use super::scene::{ONLINE, Scene};
use super::support::{STRANGER, troop};

const FIXTURE: &str = env!("CARGO_BIN_EXE_troop-fixture");

/// Whether this kernel has what the test is about. Says which test it skips otherwise.
fn has_landlock(test: &str) -> bool {
    let mut sandbox = troop::setup::Sandbox::default();
    sandbox.write = Some(Vec::new());
    let missing = sandbox.unsupported();
    missing.iter().for_each(|missing| eprintln!("skipped: sandbox::{test}: {missing}"));
    missing.is_none()
}

/// What Node and `sh` need of the system, as TOML.
fn system() -> String {
    let node = String::from_utf8(
        std::process::Command::new("sh").args(["-c", "command -v node"]).output().unwrap().stdout,
    )
    .unwrap();
    let node = Path::new(node.trim()).canonicalize().unwrap();
    let paths = ["/usr", "/bin", "/lib", "/lib64", "/etc", "/proc"]
        .map(PathBuf::from)
        .into_iter()
        .chain([node]);
    paths
        .filter(|path| path.exists())
        .map(|path| format!("{path:?}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `user` and `group`, where this process may give them.
fn user() -> String {
    if rustix::process::geteuid().is_root() {
        format!("user = \"{STRANGER}\"\ngroup = \"{STRANGER}\"\n")
    } else {
        String::new()
    }
}

/// An open directory with a directory that a worker may use, and one that it may not although its
/// user could.
fn home() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let home = open_directory();
    for name in ["inside", "outside"] {
        let path = home.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let open = home.path().join("outside/open");
    std::fs::write(&open, "secret").unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o666)).unwrap();
    std::fs::copy(node_program("sandboxed.js"), home.path().join("server.js")).unwrap();
    home
}

/// An app `web` that says what it can do.
fn write(home: &Path, more: &str) {
    let text = format!(
        "[app.web]\nprogram = \"server.js\"\nargs = [\"outside/open\", \"outside\", \"inside\"]\nworkers = 1\nmin_ready_time = 0\n{}{more}",
        user()
    );
    std::fs::write(home.join("troop.toml"), text).unwrap();
}

fn attempts(troop: &mut Running) -> Value {
    let port = u16::try_from(troop.event("listening")["port"].as_u64().unwrap()).unwrap();
    let answer = talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n").unwrap();
    serde_json::from_str(answer.rsplit("\r\n").next().unwrap()).unwrap()
}

#[test]
fn a_worker_uses_only_the_files_that_its_sandbox_leaves_and_a_reload_changes_it() {
    if !has_landlock("a_worker_uses_only_the_files_that_its_sandbox_leaves_and_a_reload_changes_it")
    {
        return;
    }
    let home = home();
    write(home.path(), "");
    let mut troop = Running::start(&mut troop(home.path(), &["run", "--log", "json", "web"]));
    let free = attempts(&mut troop);
    assert_eq!(
        (&free["read outside"], &free["write outside"], &free["Seccomp"]),
        (&json!("secret"), &json!("done"), &json!(0))
    );
    std::fs::write(home.path().join("outside/open"), "secret").unwrap();
    std::fs::remove_file(home.path().join("outside/mine")).unwrap();

    let sandbox = format!(
        "[app.web.sandbox]\nread = [\"server.js\", {}]\nwrite = [\"inside\"]\ndeny_system_calls = [\"all\"]\n",
        system()
    );
    write(home.path(), &sandbox);
    let ended = Home::ended(super::support::troop(home.path(), &["reload", "web"]));
    assert!(ended.code == Some(0) && ended.err.contains("sandbox"), "{ended:?} {:?}", troop.seen);
    let kept = attempts(&mut troop);
    for what in
        ["read outside", "list outside", "write outside", "empty outside", "read the primary"]
    {
        assert_eq!(kept[what], "EACCES", "{what}: {kept}");
    }
    assert_eq!(
        (&kept["write inside"], &kept["NoNewPrivs"], &kept["Seccomp"]),
        (&json!("done"), &json!(1), &json!(2))
    );
    assert_ne!(kept["move outside"], "done");
    assert_eq!(std::fs::read_to_string(home.path().join("outside/open")).unwrap(), "secret");
    assert!(!home.path().join("outside/mine").exists());
}

#[test]
fn a_health_command_is_in_the_sandbox_of_its_worker() {
    if !has_landlock("a_health_command_is_in_the_sandbox_of_its_worker") {
        return;
    }
    let home = home();
    let command = "(cat outside/open 2>/dev/null; echo x 2>/dev/null > outside/healthy; grep ^Seccomp: /proc/self/status) > inside/new; mv inside/new inside/health";
    let more = format!(
        "[app.web.health]\ncommand = {command:?}\nevery = \"50ms\"\n[app.web.sandbox]\nread = [\"server.js\", {}]\nwrite = [\"inside\"]\n\
         deny_system_calls = [\"debug\"]\n",
        system()
    );
    write(home.path(), &more);
    let mut troop = Running::start(&mut troop(home.path(), &["run", "--log", "json", "web"]));
    troop.event("listening");
    assert_eq!(file(&home.path().join("inside/health")), "Seccomp:\t2\n");
    assert!(!home.path().join("outside/healthy").exists());
}

#[test]
fn denied_system_calls_fail_with_eperm() {
    let home = open_directory();
    let errors = |name: &str, more: &[&str]| -> serde_json::Map<String, Value> {
        let report = home.path().join(name);
        let report = report.to_str().unwrap();
        let user = if rustix::process::geteuid().is_root() {
            STRANGER.to_string()
        } else {
            rustix::process::geteuid().as_raw().to_string()
        };
        let who = if rustix::process::geteuid().is_root() {
            vec!["--user", &user, "--group", &user]
        } else {
            Vec::new()
        };
        let args = [
            &["run", "--log", "json", "-w", "1", "--name", name],
            &who[..],
            more,
            &["--", FIXTURE, "calls", report],
        ]
        .concat();
        let _troop = Running::start(&mut troop(home.path(), &args));
        serde_json::from_str(&file(Path::new(report))).unwrap()
    };
    let free = errors("free", &[]);
    let mut kept = errors("kept", &["--set", "sandbox.deny_system_calls=[\"all\"]"]);
    assert_eq!(kept.remove("own limits"), Some(json!(true)));
    for (call, error) in &kept {
        let expected = if call == "clone3" { libc::ENOSYS } else { libc::EPERM };
        assert_eq!(error, &json!(expected), "{call}; without the sandbox {}", free[call]);
    }
    // Missing privileges do not make these fail with that error, unless this machine, a container,
    // denies them itself.
    let is_free = std::fs::read_to_string("/proc/self/status").unwrap().contains("\nSeccomp:\t0\n");
    for call in [
        "clone",
        "io_uring_enter",
        "kcmp",
        "keyctl",
        "pidfd_getfd",
        "prlimit64",
        "process_vm_readv",
        "ptrace",
        "setns",
        "unshare",
    ] {
        assert!(!is_free || free[call] != json!(libc::EPERM), "{call}");
    }
    // One group leaves the others alone.
    let some = errors("some", &["--set", "sandbox.deny_system_calls=[\"keyring\"]"]);
    assert_eq!((&some["keyctl"], &some["kcmp"]), (&json!(libc::EPERM), &free["kcmp"]));
}

/// Asks for a path, and says how that ended; the worker stays.
async fn asked(scene: &mut Scene, path: &Path) -> (i64, WorkerHandle) {
    let query = format!(
        r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"index":0,"port":-1,"addressType":-1,"address":"{}"}}"#,
        path.display()
    );
    let worker = scene.raw(&[ONLINE, &format!("answer {query}")]).await;
    let answer = scene.troop.message(&worker).await;
    (answer["errno"].as_i64().unwrap_or(0), worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_makes_no_socket_where_the_sandbox_of_the_worker_would_not_let_it() {
    if !has_landlock("the_primary_makes_no_socket_where_the_sandbox_of_the_worker_would_not_let_it")
    {
        return;
    }
    let home = home();
    let at = |name: &str| home.path().join(name);
    let mut scene = Scene::with(Cluster::builder()).await;
    let mut sandbox = troop::setup::Sandbox::default();
    sandbox.write = Some(vec![at("inside")]);
    let setup = Setup::new().sandbox(sandbox);
    let setup = if rustix::process::geteuid().is_root() {
        setup.uid(STRANGER).gid(STRANGER)
    } else {
        setup
    };
    scene.troop.cluster.setup(setup.clone()).unwrap();
    for (name, allowed) in
        [("outside/s", false), ("inside/s", true), ("inside/../outside/s", false)]
    {
        let (errno, worker) = asked(&mut scene, &at(name)).await;
        assert_eq!((errno == 0, at(name).exists()), (allowed, allowed), "{name}: {errno}");
        worker.kill(9).await.unwrap();
        scene.troop.exit(&worker).await;
    }
    scene.honest_worker_serves().await;
    drop(scene);
    wait_until("the end of the socket", || !at("inside/s").exists());
    // What the operator names is the operator's affair.
    let builder = Cluster::builder().may_listen("127.0.0.1:0".parse().unwrap());
    let mut scene =
        Scene::with(builder.may_listen(at("outside/s").to_str().unwrap().parse().unwrap())).await;
    scene.troop.cluster.setup(setup).unwrap();
    assert_eq!(asked(&mut scene, &at("outside/s")).await.0, 0);
}

#[test]
fn a_program_outside_of_its_sandbox_is_an_error_that_says_so() {
    if !has_landlock("a_program_outside_of_its_sandbox_is_an_error_that_says_so") {
        return;
    }
    let home = home();
    write(home.path(), "[app.web.sandbox]\nread = [\"inside\"]\n");
    let ended = Home::ended(troop(home.path(), &["run", "web"]));
    assert!(
        ended.code == Some(1)
            && ended.err.contains("Permission denied")
            && ended.err.contains("sandbox lets it read"),
        "{ended:?}"
    );
    write(home.path(), "[app.web.sandbox]\nwrite = [\"nowhere\"]\n");
    let ended = Home::ended(troop(home.path(), &["run", "web"]));
    assert!(ended.code == Some(2) && ended.err.contains("sandbox.write: there is no"), "{ended:?}");
    write(home.path(), "no_new_privileges = false\n[app.web.sandbox]\nwrite = [\"inside\"]\n");
    let ended = Home::ended(troop(home.path(), &["run", "web"]));
    assert!(ended.code == Some(2) && ended.err.contains("no_new_privileges"), "{ended:?}");
}

/// A worker that may write `data` would decide at its next start what it can read: everything, by a
/// link in the place of `data/lib`.
#[test]
fn no_worker_starts_whose_sandbox_leads_through_what_it_may_change() {
    let test = "no_worker_starts_whose_sandbox_leads_through_what_it_may_change";
    if !has_landlock(test) {
        return;
    }
    let home = home();
    let at = |name: &str| home.path().join(name);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(home.path(), mode).unwrap();
    std::fs::create_dir_all(at("data/lib")).unwrap();
    std::os::unix::fs::symlink("data/lib", at("current")).unwrap();
    std::os::unix::fs::symlink("data", at("alias")).unwrap();
    let write = |read: &str, write: &str| {
        let text = format!(
            "[app.web]\nprogram = \"server.js\"\nargs = [\"outside/open\", \"outside\", \"inside\"]\nworkers = 1\nmin_ready_time = 0\n\
             [app.web.sandbox]\nread = [\"server.js\", \"{read}\", {}]\nwrite = [\"{write}\"]\n",
            system()
        );
        std::fs::write(at("troop.toml"), text).unwrap();
    };
    for (read, written) in
        [("current", "data"), ("data/lib", "alias"), ("inside/../data/lib", "data")]
    {
        write(read, written);
        let ended = Home::ended(troop(home.path(), &["run", "web"]));
        assert!(
            ended.code == Some(2) && ended.err.contains("could put anything else there"),
            "{read}: {ended:?}"
        );
    }
    // It is not a matter of names.
    write("data/../inside", "data");
    let mut troop = Running::start(&mut troop(home.path(), &["run", "--log", "json", "web"]));
    assert_eq!(attempts(&mut troop)["read outside"], "EACCES");
    drop(troop);
    // Nor does the engine start one, without a check before.
    let mut sandbox = troop::setup::Sandbox::default();
    (sandbox.read, sandbox.write) = (Some(vec!["/".into(), at("current")]), Some(vec![at("data")]));
    let setup = Setup::new().program(FIXTURE).sandbox(sandbox);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let e = runtime.block_on(async {
        let cluster = Cluster::builder().setup(setup).start().unwrap();
        cluster.fork(troop::Fork::new()).await.unwrap_err()
    });
    assert!(format!("{e:?}").contains("leads through"), "{e:?}");
}

//! What workers get: directory, environment, descriptors, streams, user, settings, and the program
//! itself.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::{Signal, getuid};
use troop::event::ExitHow;
use troop::setup::Stdio;
use troop::{Event, Fork, Setup};
use troop_testkit::{TEST_TIMEOUT, Troop, talk, wait_until};

use super::{FIXTURE, Primary, fixture, free_port, pid};

async fn inspected(setup: Setup, fork: Fork) -> serde_json::Value {
    let mut troop = Troop::with(setup);
    let worker = troop.cluster.fork(fork).await.unwrap();
    troop.message(&worker).await
}

#[tokio::test]
async fn a_worker_gets_its_directory_environment_and_arguments() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap();
    let setup = fixture(["inspect"]).cwd(&path).env("TEST_VALUE", "cluster");
    let seen = inspected(setup.clone(), Fork::new()).await;
    assert_eq!((seen["cwd"].as_str(), seen["env"].as_str()), (path.to_str(), Some("cluster")));
    let seen = inspected(setup, Fork::new().env("TEST_VALUE", "fork")).await;
    assert_eq!(seen["env"], "fork");
}

#[tokio::test]
async fn the_identity_of_a_worker_is_gone_from_its_environment() {
    let seen = inspected(fixture(["inspect"]), Fork::new().env("NODE_UNIQUE_ID", "77")).await;
    let left: Vec<&str> =
        seen["identity"].as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
    for name in ["NODE_UNIQUE_ID", "NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE"] {
        assert!(!left.contains(&name), "{left:?}");
    }
}

#[tokio::test]
async fn a_worker_inherits_no_descriptors_but_its_own() {
    // An inheritable one, as a careless program leaves it.
    let careless = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let mut troop = Troop::with(fixture(["inspect"]).stdin(Stdio::Null));
    let _others = (troop.fork().await, troop.fork().await);
    let worker = troop.fork().await;
    let seen = troop.message(&worker).await;
    let fds: Vec<&str> =
        seen["fds"].as_array().unwrap().iter().filter_map(|v| v.as_str()).collect();
    let sockets = fds
        .iter()
        .filter_map(|fd| fd.split_once("=socket:"))
        .map(|(_, inode)| inode)
        .collect::<BTreeSet<_>>()
        .len();
    // The channel, and the pair by which tokio hears of signals, if it was made.
    assert!(sockets <= 3, "{fds:?}");
    let nulls = fds.iter().filter(|fd| {
        fd.ends_with("=/dev/null")
            && !fd.starts_with("0=")
            && !fd.starts_with("1=")
            && !fd.starts_with("2=")
    });
    assert_eq!(nulls.count(), 0, "{fds:?}");
    assert!(!fds.iter().any(|fd| fd.contains("[pidfd]")), "{fds:?}");
    drop(careless);
}

#[tokio::test]
async fn standard_streams_can_be_pipes() {
    let setup = fixture(["print", "TEST_VALUE"])
        .env("TEST_VALUE", "of the fork")
        .silent(true)
        .stdin(Stdio::Pipe);
    let mut troop = Troop::with(setup);
    let worker = troop.fork().await;
    let (mut out, mut err) = (worker.take_stdout().unwrap(), worker.take_stderr().unwrap());
    worker.take_stdin().unwrap().write_all(b"a line\n").unwrap();
    let text = tokio::task::spawn_blocking(move || {
        let (mut o, mut e) = (String::new(), String::new());
        out.read_to_string(&mut o).unwrap();
        err.read_to_string(&mut e).unwrap();
        (o, e)
    });
    let (out, err) = text.await.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("out of the fork\nin a line\n", "err\n"));
    assert!(worker.take_stdout().is_none(), "a pipe can be taken once");
    assert_eq!(troop.exit(&worker).await, ExitHow::Code(0));
}

#[tokio::test]
async fn the_last_lines_of_a_dead_worker_are_kept() {
    let mut troop = Troop::with(fixture(["die"]).stderr(Stdio::Forward));
    let worker = troop.fork().await;
    assert_eq!(troop.exit(&worker).await, ExitHow::Code(3));
    let last = tokio::task::spawn_blocking(move || worker.last_stderr(TEST_TIMEOUT)).await.unwrap();
    assert_eq!(last.as_deref(), Some("about to fail\nfatal: no such table"));
}

#[tokio::test]
async fn a_worker_can_run_as_another_user() {
    if !getuid().is_root() {
        return;
    }
    // Where that user may execute it.
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("fixture");
    std::fs::copy(FIXTURE, &program).unwrap();
    let mut troop =
        Troop::with(fixture(["inspect"]).program(&program).cwd("/").uid(65534).gid(65533));
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await["uid"], 65534);
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), ["65534"; 4]);
    assert_eq!(field("Gid:"), ["65533"; 4]);
    assert!(field("Groups:").is_empty(), "the privileged primary's groups are gone");
    troop.cluster.setup(Setup::new().groups([4, 5])).unwrap();
    let worker = troop.fork().await;
    troop.message(&worker).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    assert!(status.lines().any(|l| l.starts_with("Groups:") && l.contains("4 5")), "{status}");
}

#[tokio::test]
async fn a_worker_leads_a_process_group_if_it_should() {
    let mut troop = Troop::with(fixture(["inspect"]));
    let worker = troop.fork().await;
    let own = rustix::process::getpgrp().as_raw_nonzero().get();
    assert_eq!(troop.message(&worker).await["pgid"], own);
    troop.cluster.setup(Setup::new().own_process_group(true)).unwrap();
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await["pgid"], worker.pid());
}

#[tokio::test]
async fn a_worker_has_the_name_of_its_program() {
    let seen = inspected(fixture(["inspect"]), Fork::new()).await;
    assert_eq!(seen["comm"], "troop-fixture");
}

#[tokio::test]
async fn profiles_of_workers_do_not_overwrite_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.profraw");
    let seen = inspected(fixture(["inspect"]), Fork::new().env("LLVM_PROFILE_FILE", &file)).await;
    assert_eq!(seen["profile"], directory.path().join("a-%p.profraw").to_str().unwrap());
}

#[tokio::test]
async fn clusters_nest() {
    let mut troop = Troop::with(fixture(["nest", "2"]));
    // The second of this cluster, so that numbers tell levels apart.
    let (_first, worker) = (troop.fork().await, troop.fork().await);
    let seen = troop.message(&worker).await;
    assert_eq!(
        (seen["ancestors"].as_str(), seen["id left"].as_bool()),
        (Some("/2/1/1"), Some(false))
    );
    tokio::time::timeout(TEST_TIMEOUT, troop.cluster.disconnect())
        .await
        .expect("the whole tree ends")
        .unwrap();
}

// ---- setup ----

#[tokio::test]
async fn setup_is_cumulative_and_every_fork_reports_it() {
    let mut troop = Troop::with(fixture(["inspect"]));
    troop.cluster.setup(Setup::new().env("TEST_VALUE", "one")).unwrap();
    troop.cluster.setup(Setup::new().env("OTHER", "two")).unwrap();
    let worker = troop.fork().await;
    assert_eq!(troop.message(&worker).await["env"], "one");
    let id = worker.id();
    let mut setups = Vec::new();
    while setups.len() < 3 {
        let next = |e: &Event| {
            if let Event::Setup { setup: s, .. } = e { Some(s.clone()) } else { None }
        };
        setups.push(troop.until("the setup", next).await);
    }
    assert_eq!(setups[2].get_args().as_ref(), ["inspect"]);
    assert_eq!(setups[2].get_envs().count(), 2);
    troop
        .until("the fork", |e| {
            matches!(e, Event::Fork { worker: w, .. } if w.id() == id).then_some(())
        })
        .await;
}

// ---- the image ----

fn respawned_worker_works_after(change: impl FnOnce(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("server");
    std::fs::copy(FIXTURE, &program).unwrap();
    let port = free_port();
    let mut primary = Primary::start(&program, &["line", &format!("127.0.0.1:{port}")]);
    primary.until("listening");
    primary.until("listening");
    change(&program);
    let old = primary.workers();
    rustix::process::kill_process(pid(old[0]), Signal::KILL).unwrap();
    primary.until("died");
    primary.until("listening");
    let new: Vec<u32> = primary.workers().into_iter().filter(|w| !old.contains(w)).collect();
    assert_eq!(new.len(), 1);
    wait_until("the new worker serves", || {
        talk(([127, 0, 0, 1], port), "").is_ok_and(|a| a.trim().ends_with(&new[0].to_string()))
    });
    let name = std::fs::read_to_string(format!("/proc/{}/comm", new[0])).unwrap();
    assert_eq!(name.trim(), "server", "not the name of the link that it was executed by");
}

#[test]
fn a_worker_is_the_running_program_after_its_file_was_removed() {
    respawned_worker_works_after(|file| std::fs::remove_file(file).unwrap());
}

#[test]
fn a_worker_is_the_running_program_after_its_file_was_replaced() {
    respawned_worker_works_after(|file| {
        let new = file.with_extension("new");
        std::fs::write(&new, "#!/bin/sh\nexit 9\n").unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, file).unwrap();
    });
}

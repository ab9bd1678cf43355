//! `troop upgrade --keeper`: the process that everybody knows executes another program in its own place, or
//! stays what it is and says why.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::kept_client::while_clients_ask;
use support::{Running, end_of, get, node, run, start, works_and_ends};
use troop_testkit::{engine, is_running, wait_until};

/// How often it is upgraded under load.
const UPGRADES: usize = 5;

fn app(options: &[&str]) -> Running {
    let options = options.iter().map(|option| (*option).to_owned());
    run(options.chain([node("hello.js").display().to_string()]))
}

/// An app whose processes die, or are stopped, at this point for the first time.
fn faulty(point: &str, directory: &Path, signal: Signal, workers: &str) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", workers]).arg(node("hello.js"));
    command.env("TROOP_FAULT", format!("{point}:1:{}", directory.join("once").display()));
    command.env("TROOP_FAULT_SIGNAL", signal.as_raw().to_string());
    start(command)
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn shown(troop: &Running) -> Value {
    let (code, out, err) = troop.troop(["show", "--json"]);
    assert_eq!(code, 0, "{out}{err}");
    serde_json::from_str::<Vec<Value>>(&out).unwrap().remove(0)
}

/// Waits until another engine goes on.
fn another_engine(troop: &Running, before: u32) {
    wait_until("another engine", || {
        let (code, out, _) = troop.troop(["show", "--json"]);
        let shown = serde_json::from_str::<Value>(&out).unwrap_or_default();
        let now = shown[0]["engine"].as_u64();
        code == 0 && now.is_some_and(|now| now != u64::from(before))
    });
}

fn upgrade(troop: &Running) -> Value {
    let (code, out, err) = troop.troop(["upgrade", "--keeper", "--json"]);
    assert_eq!(code, 0, "{out}{err}");
    serde_json::from_str(&out).unwrap()
}

/// The keeper's descriptors, by what they refer to, and its threads.
fn has(keeper: u32) -> (Vec<String>, usize) {
    let all = std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().flatten();
    let links = all.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let mut links: Vec<_> = links.map(|link| link.display().to_string()).collect();
    links.sort();
    (links, std::fs::read_dir(format!("/proc/{keeper}/task")).unwrap().count())
}

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
}

#[test]
fn keeper_upgrades_under_load_lose_nothing() {
    let mut troop = app(&["-w", "2"]);
    let port = troop.listening(2);
    let (keeper, workers) = (troop.child.id(), troop.workers().to_vec());
    let first = engine(keeper).unwrap();
    wait_until("nothing more is held than when it is idle", || {
        let before = has(keeper);
        std::thread::sleep(std::time::Duration::from_millis(100));
        before == has(keeper)
    });
    let before = has(keeper);
    while_clients_ask(
        port,
        true,
        || get(port),
        || {
            for _ in 0..UPGRADES {
                assert_eq!(upgrade(&troop)["pid"], keeper);
                assert_eq!(engine(keeper), Some(first), "the engine stays");
            }
        },
    );
    wait_until("it has what it had", || has(keeper) == before);
    // What it has kept is as good as before for an engine to come.
    send(first, Signal::KILL);
    another_engine(&troop, first);
    while_clients_ask(
        port,
        true,
        || get(port),
        || {
            assert_eq!(upgrade(&troop)["pid"], keeper);
            let (code, out, err) = troop.troop(["upgrade"]);
            assert_eq!(code, 0, "{out}{err}");
            assert_eq!(upgrade(&troop)["pid"], keeper);
        },
    );
    assert!(workers.iter().all(|pid| is_running(*pid)), "workers are as they were");
    let status = std::fs::read_to_string(format!("/proc/{keeper}/comm")).unwrap();
    assert_eq!(status.trim(), "troop-keeper");
    // It is their parent still.
    works_and_ends(troop, workers[0], port);
}

/// The keeper is stopped just before it executes the other program, or just after that.
#[test]
fn what_happens_during_a_keeper_upgrade_is_not_lost() {
    for point in ["renewing", "renewed"] {
        let directory = tempfile::tempdir().unwrap();
        let mut troop = faulty(point, directory.path(), Signal::STOP, "2");
        let port = troop.listening(2);
        let keeper = troop.child.id();
        let (killed, other) = (troop.workers()[0], troop.workers()[1]);
        let upgrade = troop.command(["upgrade", "--keeper"]).spawn().unwrap();
        wait_until("the keeper is stopped", || is_stopped(keeper));
        send(killed, Signal::KILL);
        wait_until("the end of the worker", || !is_running(killed));
        send(keeper, Signal::HUP);
        let waiting = std::thread::spawn(move || get(port));
        send(keeper, Signal::CONT);
        let exit = troop.event("exit");
        let killed = (Some(u64::from(killed)), Some("SIGKILL"));
        assert_eq!((exit["pid"].as_u64(), exit["signal"].as_str()), killed, "{point}");
        assert_eq!(end_of(upgrade, "the upgrade").0, Some(0), "{point}");
        waiting.join().unwrap().unwrap();
        troop.event("reload-finished");
        wait_until("the signal has replaced the other one", || !is_running(other));
        wait_until("all that have ended are reaped", || {
            troop_testkit::children(keeper).into_iter().all(is_running)
        });
        assert_eq!(troop.troop(["stop"]).0, 0);
        assert_eq!(troop.end().0, Some(0), "{point}");
    }
}

#[test]
fn an_engine_that_is_killed_during_a_keeper_upgrade_is_followed_by_another_one() {
    for point in ["renewing", "renewed", "asked to keep"] {
        let directory = tempfile::tempdir().unwrap();
        let mut troop = faulty(point, directory.path(), Signal::STOP, "1");
        let port = troop.listening(1);
        let (keeper, worker) = (troop.child.id(), troop.workers()[0]);
        let before = engine(keeper).unwrap();
        let upgrade = troop.command(["upgrade", "--keeper"]).spawn().unwrap();
        wait_until("it is stopped", || {
            let asked = troop_testkit::children(keeper).into_iter().any(is_stopped);
            is_stopped(keeper) || asked
        });
        send(before, Signal::KILL);
        // A signal to one whose threads are still ending is lost.
        wait_until("the end of the engine", || !is_running(before));
        if is_stopped(keeper) {
            send(keeper, Signal::CONT);
        }
        // It is not known to whoever has asked.
        assert_eq!(end_of(upgrade, "the upgrade").0, Some(1), "{point}");
        another_engine(&troop, before);
        assert_eq!(shown(&troop)["crashes"], 1, "{point}");
        get(port).unwrap();
        assert!(is_running(worker));
        // Nothing of the question is left, and it can be asked again.
        wait_until("no other child", || troop_testkit::children(keeper).len() == 2);
        upgrade_and_stop(&mut troop);
    }
}

fn upgrade_and_stop(troop: &mut Running) {
    upgrade(troop);
    assert_eq!(troop.troop(["stop"]).0, 0);
    assert_eq!(troop.end().0, Some(0));
}

/// A program that says it could be the keeper, and does not know the state.
const LIAR: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
    unsigned char answer[16] = {17, 0, 0, 0};
    send(atoi(strchr(getenv("TROOP_KEEPER"), ':') + 1), answer, sizeof answer, 0);
    pause();
}"#;

/// One of an older version, which asks for the engine's state.
const OLD: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
    unsigned char fetch[16] = {6, 0, 0, 0};
    send(atoi(strchr(getenv("TROOP_KEEPER"), ':') + 1), fetch, sizeof fetch, 0);
    pause();
}"#;

/// One that is silent.
const SILENT: &str = "#include <unistd.h>\nint main(void) { pause(); }";

fn compiled(directory: &Path, name: &str, code: &str) -> PathBuf {
    let (source, program) = (directory.join(format!("{name}.c")), directory.join(name));
    std::fs::write(&source, code).unwrap();
    let done = Command::new("cc").arg("-o").args([&program, &source]).status().unwrap();
    assert!(done.success());
    program
}

#[test]
fn a_program_that_cannot_be_the_keeper_changes_nothing_and_the_reason_is_said() {
    let mut troop = app(&["-w", "1"]);
    let port = troop.listening(1);
    let keeper = troop.child.id();
    let (engine_before, worker) = (engine(keeper).unwrap(), get(port).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let pipe = directory.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o755.into()).unwrap();
    let before = has(keeper);
    for (path, why) in [
        (directory.path().join("none"), "cannot execute"),
        (pipe, "cannot execute"),
        (directory.path().to_owned(), "cannot execute"),
        ("/bin/true".into(), "the new program has ended: exit code 0"),
        (script, "the new program has ended"),
        (compiled(directory.path(), "lies", LIAR), "has not understood the state of the keeper"),
        (compiled(directory.path(), "old", OLD), "of a version that cannot take the place"),
        (compiled(directory.path(), "hangs", SILENT), "the new program was not ready within 5 s"),
    ] {
        let path = path.display().to_string();
        let (code, out, err) = troop.troop(["upgrade", "--keeper", "--path", &path]);
        assert!(code == 1 && err.contains(why) && err.contains("the app goes on"), "{out}{err}");
        assert_eq!((engine(keeper), get(port).unwrap()), (Some(engine_before), worker.clone()));
        wait_until("nothing is left of it", || {
            has(keeper) == before && troop_testkit::children(keeper).len() == 2
        });
    }
    upgrade_and_stop(&mut troop);
}

/// The program is changed between its answer and its execution.
#[test]
fn a_keeper_that_cannot_execute_a_program_goes_on_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let mut troop = faulty("asked to keep", directory.path(), Signal::STOP, "1");
    let port = troop.listening(1);
    let (keeper, first) = (troop.child.id(), engine(troop.child.id()).unwrap());
    let program = directory.path().join("troop");
    std::fs::copy(env!("CARGO_BIN_EXE_troop"), &program).unwrap();
    let before = has(keeper);
    let upgrade = troop
        .command(["upgrade", "--keeper", "--path", &program.display().to_string()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut asked = None;
    wait_until("it is asked", || {
        asked = troop_testkit::children(keeper).into_iter().find(|pid| is_stopped(*pid));
        asked.is_some()
    });
    std::fs::set_permissions(&program, Permissions::from_mode(0o644)).unwrap();
    send(asked.unwrap(), Signal::CONT);
    let (code, said) = end_of(upgrade, "the upgrade");
    assert_eq!(code, Some(1));
    assert!(said.contains("cannot execute it: Permission denied"), "{said}");
    assert_eq!(engine(keeper), Some(first));
    wait_until("it has what it had", || has(keeper) == before);
    // What it starts inherits nothing more than before.
    let descriptors = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let expected = descriptors(first);
    send(first, Signal::KILL);
    another_engine(&troop, first);
    wait_until("the engine has as many descriptors", || {
        descriptors(engine(keeper).unwrap()) <= expected
    });
    get(port).unwrap();
    upgrade_and_stop(&mut troop);
}

/// The program itself, which says that it is of another version.
fn of_version(directory: &Path, version: &str) -> PathBuf {
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!(own.len(), version.len());
    let mut bytes = std::fs::read(env!("CARGO_BIN_EXE_troop")).unwrap();
    let places: Vec<usize> = memchr::memmem::find_iter(&bytes, own.as_bytes()).collect();
    for at in places {
        bytes[at..at + own.len()].copy_from_slice(version.as_bytes());
    }
    let program = directory.join(format!("troop-{version}"));
    std::fs::write(&program, bytes).unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn the_keepers_version_is_shown_and_an_upgrade_of_the_engine_says_if_it_is_another_one() {
    let mut troop = app(&["-w", "1"]);
    troop.listening(1);
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!(shown(&troop)["keeper_version"], own);
    assert!(troop.troop(["show"]).1.contains(&format!("(troop {own}, keeper {own})")));
    let directory = tempfile::tempdir().unwrap();
    let other = own.replacen(|c: char| c.is_ascii_digit(), "9", 1);
    let program = of_version(directory.path(), &other).display().to_string();
    let (code, out, err) = troop.troop(["upgrade", "--keeper", "--path", &program]);
    assert!(
        code == 0 && out.contains(&format!("keeper upgraded from {own} to {other}")),
        "{out}{err}"
    );
    assert!(troop.troop(["show"]).1.contains(&format!("(troop {own}, keeper {other})")));
    assert!(troop.troop(["ls", "--json"]).1.contains(&format!("\"keeper_version\": \"{other}\"")));
    let (code, out, err) = troop.troop(["upgrade"]);
    assert!(code == 0 && out.contains(&format!("its keeper is of version {other}")), "{out}{err}");
    // Another engine hears it, too, and it is the way back.
    assert_eq!(shown(&troop)["keeper_version"], other);
    let answer = upgrade(&troop);
    assert_eq!((answer["from"].as_str(), answer["version"].as_str()), (Some(&*other), Some(own)));
    let (_, out, _) = troop.troop(["upgrade"]);
    assert!(!out.contains("its keeper"), "{out}");
    assert_eq!(troop.troop(["stop"]).0, 0);
}

#[test]
fn a_keeper_that_dies_when_it_has_executed_itself_ends_the_app_as_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut troop = faulty("renewed", directory.path(), Signal::KILL, "1");
    troop.listening(1);
    let first = engine(troop.child.id()).unwrap();
    assert_ne!(troop.troop(["upgrade", "--keeper"]).0, 0);
    let error = troop.event("error");
    assert!(error["error"].as_str().unwrap().contains("the keeper, process"), "{error}");
    wait_until("the end of the engine", || !is_running(first));
    assert!(troop.workers().iter().all(|pid| !is_running(*pid)));
}

#[test]
fn an_app_without_a_keeper_has_none_to_upgrade() {
    let mut troop = app(&["-w", "1", "--no-keeper"]);
    troop.listening(1);
    let (code, _, err) = troop.troop(["upgrade", "--keeper"]);
    assert!(code == 1 && err.contains("it has no keeper"), "{err}");
}

#[test]
fn process_1_of_a_namespace_is_upgraded_and_its_engine_followed_by_another_one() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_troop")]);
    command.args(["run", "--log", "json", "-w", "1"]).arg(node("hello.js"));
    let mut troop = start(command);
    let port = troop.listening(1);
    let init = troop_testkit::children(troop.child.id())[0];
    for _ in 0..2 {
        let (code, out, err) = troop.troop(["upgrade", "--keeper"]);
        assert!(code == 0 && out.contains("process 1"), "{out}{err}");
        let before = shown(&troop)["engine"].as_u64().unwrap();
        send(engine(init).unwrap(), Signal::KILL);
        another_engine(&troop, u32::try_from(before).unwrap());
        get(port).unwrap();
    }
    assert_eq!(shown(&troop)["crashes"], 2);
    send(init, Signal::TERM);
    assert_eq!(troop.event("exit")["code"], 0);
    assert_eq!(troop.end().0, Some(0));
}

#[test]
fn a_shell_waits_on_when_the_engine_of_its_job_is_killed() {
    let script = "set -m; \"$@\" & wait $!; echo \"ended by $?\" >&2";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_troop")]);
    command.args(["run", "--log", "json", "-w", "1"]).arg(node("hello.js"));
    let mut troop = start(command);
    let port = troop.listening(1);
    let keeper = troop_testkit::children(troop.child.id())[0];
    for round in 1..=2 {
        let before = engine(keeper).unwrap();
        send(before, Signal::KILL);
        another_engine(&troop, before);
        upgrade(&troop);
        assert_eq!(shown(&troop)["crashes"], round);
        get(port).unwrap();
    }
    assert_eq!(troop_testkit::children(troop.child.id()), [keeper]);
    send(keeper, Signal::TERM);
    let (code, said) = troop.end();
    assert!(code == Some(0) && said.ends_with("ended by 0"), "{said}");
}

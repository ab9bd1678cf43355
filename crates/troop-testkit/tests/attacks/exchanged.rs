//! Directories that a stranger exchanges for links all the time (`RENAME_EXCHANGE`), while root writes
//! files of its app there, and removes them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use troop_sys::identity::Identity;

use super::home::Home;
use super::support::{STRANGER, is_root};

/// How often something is done meanwhile.
const ROUNDS: usize = 20;

fn as_stranger<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    Identity { uid: STRANGER, gid: STRANGER, groups: Vec::new() }
        .with_rights(|| Ok(work()))
        .unwrap()
}

/// The stranger exchanges two names over and over.
struct Exchange {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Exchange {
    fn begin(one: PathBuf, other: PathBuf) -> Exchange {
        let is_over = Arc::new(AtomicBool::new(false));
        let its_end = is_over.clone();
        let exchange = move || {
            let mut count = 0;
            while !its_end.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                count += 1;
            }
            // Where it was at first.
            if count % 2 == 1 {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
            count
        };
        let thread = std::thread::spawn(move || as_stranger(exchange));
        Exchange { is_over, thread: Some(thread) }
    }

    /// Returns how often.
    fn end(mut self) -> u32 {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// All below root's directory `target`: what it is, whose, and what is in it.
fn target(home: &Home) -> BTreeMap<PathBuf, (u64, u32, u32, String)> {
    let (mut found, mut left) = (BTreeMap::new(), vec![home.at("target")]);
    while let Some(path) = left.pop() {
        let is = fs::symlink_metadata(&path).unwrap();
        if is.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let text = if is.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
        found.insert(path, (is.ino(), is.mode(), is.uid(), text));
    }
    found
}

/// The processes of the primary and of the workers.
fn processes(home: &Home) -> (u64, Vec<u64>) {
    let shown: serde_json::Value =
        serde_json::from_str(&home.fine(&["show", "web", "--json"])).unwrap();
    let workers = shown[0]["workers"].as_array().unwrap();
    let workers = workers.iter().map(|worker| worker["pid"].as_u64().unwrap()).collect();
    (shown[0]["pid"].as_u64().unwrap(), workers)
}

/// `user` is that of the workers; without one they are root's, and may have become the stranger's by
/// themselves.
fn pid_files_stay_where_they_were(user: &str) {
    let app = format!(
        "[app.web]\nprogram = \"sleep\"\nargs = [\"1000\"]\ncwd = \"app\"\nworkers = 1\n{user}\
         pid_file = \"run/web.pid\"\nworker_pid_file = \"run/web.pid\"\n"
    );
    let home = Home::with(&[("troop.toml", &app)]);
    fs::create_dir(home.at("target")).unwrap();
    as_stranger(|| symlink("../target", home.at("app/link")).unwrap());
    if user.is_empty() {
        as_stranger(|| fs::create_dir(home.at("app/run")).unwrap());
    }
    home.fine(&["start", "web"]);
    // As if they were its own, which it may remove.
    let (primary, workers) = processes(&home);
    fs::write(home.at("target/web.pid"), primary.to_string()).unwrap();
    fs::write(home.at("target/web-0.pid"), workers[0].to_string()).unwrap();
    fs::write(home.at("target/web-1.pid"), "1").unwrap();
    let before = target(&home);
    let exchange = Exchange::begin(home.at("app/run"), home.at("app/link"));
    for round in 0..ROUNDS / 2 {
        home.fine(&["scale", "web", if round % 2 == 0 { "3" } else { "1" }]);
        if round % 5 == 4 {
            let ended = home.troop(&["restart", "web"]);
            assert!(ended.code == Some(0) || ended.err.contains("symbolic link"), "{ended:?}");
        }
    }
    home.fine(&["stop", "web"]);
    assert!(exchange.end() > 100, "it was exchanged all the time");
    assert_eq!(target(&home), before);
    // Whatever it could not remove.
    home.fine(&["start", "web"]);
    home.fine(&["delete", "web"]);
}

#[test]
fn pid_files_of_a_strangers_workers_stay_where_they_were() {
    if !is_root("exchanged::pid_files_of_a_strangers_workers_stay_where_they_were") {
        return;
    }
    pid_files_stay_where_they_were(&format!("user = \"{STRANGER}\"\ngroup = \"{STRANGER}\"\n"));
}

#[test]
fn pid_files_in_a_directory_of_a_stranger_stay_where_they_were() {
    if !is_root("exchanged::pid_files_in_a_directory_of_a_stranger_stay_where_they_were") {
        return;
    }
    pid_files_stay_where_they_were("");
}

#[test]
fn a_socket_that_root_binds_for_its_workers_replaces_and_opens_up_nothing_elsewhere() {
    if !is_root("exchanged::a_socket_that_root_binds_for_its_workers") {
        return;
    }
    let home = Home::with(&[]);
    fs::create_dir(home.at("target")).unwrap();
    // One that nobody serves any more, which would be replaced here.
    drop(UnixListener::bind(home.at("target/web.sock")).unwrap());
    home.mode("target/web.sock", 0o600);
    as_stranger(|| {
        fs::create_dir(home.at("app/d")).unwrap();
        symlink("../target", home.at("app/link")).unwrap();
    });
    let before = target(&home);
    let exchange = Exchange::begin(home.at("app/d"), home.at("app/link"));
    let (socket, mut bound) = (home.at("app/d/web.sock"), 0);
    for _ in 0..ROUNDS {
        let args = ["run", "-n", "web", "-w", "1", "--set", "restart.when=\"never\"", "-b"];
        let ended = home.troop(&[&args[..], &[socket.to_str().unwrap(), "true"]].concat());
        assert!(ended.code == Some(0) || ended.err.contains("symbolic link"), "{ended:?}");
        bound += usize::from(ended.code == Some(0));
    }
    assert!(exchange.end() > 100, "it was exchanged all the time");
    assert_eq!(target(&home), before, "{bound} of {ROUNDS} were bound");
}

#[test]
fn records_locks_and_control_sockets_stay_where_they_were() {
    if !is_root("exchanged::records_locks_and_control_sockets_stay_where_they_were") {
        return;
    }
    let home = Home::with(&[]);
    for directory in ["target", "target/run", "target/state", "target/logs"] {
        fs::create_dir(home.at(directory)).unwrap();
        home.mode(directory, 0o700);
    }
    for file in ["run/web.sock", "run/web.lock", "state/web.json", "state/.lock", "logs/web.log"] {
        fs::write(home.at("target").join(file), "precious").unwrap();
        home.mode(&format!("target/{file}"), 0o600);
    }
    as_stranger(|| {
        fs::create_dir(home.at("app/d")).unwrap();
        symlink("../target", home.at("app/link")).unwrap();
    });
    let before = target(&home);
    let exchange = Exchange::begin(home.at("app/d"), home.at("app/link"));
    let troop = |args: &[&str]| {
        let mut command = home.command(args);
        for (name, at) in [("RUNTIME", "run"), ("STATE", "state"), ("LOG", "logs")] {
            command.env(format!("TROOP_{name}_DIR"), home.at("app/d").join(at));
        }
        let ended = Home::ended(command);
        assert!(ended.code.is_some(), "it ends by itself: {args:?}: {ended:?}");
    };
    for _ in 0..ROUNDS {
        let run = ["run", "-n", "web", "-w", "1", "--set", "restart.when=\"never\""];
        troop(&[&run[..], &["--set", "output.to=files", "true"]].concat());
        troop(&["ls"]);
        troop(&["delete", "web"]);
        troop(&["logs", "web"]);
    }
    assert!(exchange.end() > 100, "it was exchanged all the time");
    assert_eq!(target(&home), before);
}

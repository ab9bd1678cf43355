//! Programs that bind their ports by themselves, past troop, and go on when these are in use.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use support::{Home, node, run};
use troop_testkit::{free_port, talk, wait_until};

fn has_python() -> bool {
    Command::new("python3").arg("--version").output().is_ok()
}

/// A place with this program.
fn home(name: &str) -> Home {
    Home::with(&[(name, &std::fs::read_to_string(node(name)).unwrap())])
}

fn address(home: &Home) -> SocketAddr {
    let mut port = String::new();
    wait_until("the port", || {
        port = std::fs::read_to_string(home.path().join("port")).unwrap_or_default();
        !port.is_empty()
    });
    format!("127.0.0.1:{port}").parse().unwrap()
}

/// The process that serves there.
fn server(at: SocketAddr) -> String {
    let mut answer = String::new();
    // One that is started by another one may come later.
    wait_until("the server", || {
        answer = talk(at, "GET / HTTP/1.0\r\n\r\n").unwrap_or_default();
        !answer.is_empty()
    });
    answer.rsplit_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Reloads of a program whose successor cannot have the port. A worker is ready by its age only, so each
/// start and each reload takes seconds, and those that do not need each other are made at a time.
fn serves_on(name: &str, arguments: &[&str]) {
    std::thread::scope(|scope| {
        scope.spawn(move || keeps_the_old_one(name, arguments));
        scope.spawn(move || has_the_old_one_leave_first(name, arguments));
    });
}

fn start_one(home: &Home, name: &str, arguments: &[&str], more: &[&str]) {
    let start = ["start", name, "-n", "web", "--set", "min_ready_time=0"];
    home.fine(&[&start, more, &["--"], arguments].concat());
}

fn keeps_the_old_one(name: &str, arguments: &[&str]) {
    let home = home(name);
    start_one(&home, name, arguments, &[]);
    let at = address(&home);
    let before = server(at);
    for app in ["web", "web:1"] {
        let (code, out, err) = home.troop(&["reload", app]);
        let told = format!(" does not listen on {at}, as worker 1 does by itself");
        assert!(code == 1 && err.contains(&told), "{app}: {out}{err}");
        assert!(err.contains("an address is in use") && err.contains("max_surge = 0"), "{err}");
        assert_eq!(server(at), before);
    }
    let shown = home.show("web");
    assert_eq!((&shown["phase"], &shown["ready"]), (&"running".into(), &1.into()), "{shown}");
    home.fine(&["stop", "web"]);
}

fn has_the_old_one_leave_first(name: &str, arguments: &[&str]) {
    let home = home(name);
    let leaves = ["--set", "max_surge=0", "--set", "max_unavailable=1"];
    start_one(&home, name, arguments, &leaves);
    let at = address(&home);
    let before = server(at);
    home.fine(&["reload", "web"]);
    assert_ne!(server(at), before);
    home.fine(&["stop", "web"]);
}

#[test]
fn a_node_program_with_a_port_of_its_own_serves_on_when_a_reload_cannot_give_it_to_a_successor() {
    serves_on("goes_on.js", &[]);
}

#[test]
fn so_does_one_that_a_node_program_starts() {
    serves_on("goes_on.js", &["child"]);
}

#[test]
fn so_does_one_whose_parent_listens_on_a_path_of_its_own() {
    serves_on("goes_on.js", &["pipe"]);
}

#[test]
fn so_does_a_python_program() {
    if has_python() {
        serves_on("goes_on.py", &[]);
        serves_on("goes_on.py", &["retries"]);
    }
}

#[test]
fn the_address_of_a_program_that_listens_by_itself_is_shown() {
    let home = home("goes_on.js");
    let started = home.fine(&["start", "goes_on.js", "-n", "web", "--", "child"]);
    let at = address(&home).to_string();
    assert_eq!(started, format!("web: 1 worker ready on {at}, past troop\n"));
    assert!(home.fine(&["ls"]).lines().any(|line| line.ends_with(&at)));
    assert!(home.fine(&["show", "web"]).contains(&format!("listen by themselves on {at}\n")));
    let shown = home.show("web");
    assert_eq!((&shown["own"][0], &shown["listeners"]), (&at.as_str().into(), &[(); 0][..].into()));
    // With troop's own listeners it is none of them.
    let text = "require('http').createServer().listen(0, '127.0.0.1')";
    std::fs::write(home.path().join("server.js"), text).unwrap();
    home.fine(&["start", "server.js"]);
    let shown = home.show("server");
    assert_eq!(
        (&shown["own"], shown["listeners"].as_array().unwrap().len()),
        (&[(); 0][..].into(), 1)
    );
}

#[test]
fn a_port_that_workers_share_by_themselves_passes_to_the_next_ones() {
    if !has_python() {
        return;
    }
    let home = home("goes_on.py");
    home.fine(&["start", "goes_on.py", "-n", "web", "-w", "2", "--", "shares"]);
    let at = address(&home);
    home.fine(&["reload", "web"]);
    let ends = |worker: &str| home.log("web.log").contains(&format!("worker {worker} finished"));
    wait_until("the end of the first ones", || ends("1") && ends("2"));
    server(at);
    home.fine(&["stop", "web"]);
}

#[test]
fn a_port_that_the_kernel_chooses_need_not_be_the_predecessors() {
    if !has_python() {
        return;
    }
    let home = home("ignores.py");
    home.fine(&["start", "ignores.py", "-n", "web", "--set", "min_ready_time=0"]);
    home.fine(&["reload", "web"]);
    home.fine(&["reload", "web:2"]);
    home.fine(&["stop", "web"]);
}

/// The start of two workers, of which one has the port.
fn starts_one(name: &str, arguments: &[&str]) {
    let home = home(name);
    let start = ["start", name, "-n", "web", "-w", "2", "--"];
    let (code, out, err) = home.troop(&[&start, arguments].concat());
    let at = address(&home);
    let told = format!(" listens on {at} by itself, and others that do the same cannot");
    assert!(code == 1 && err.contains("1 of 2") && err.contains(&told), "{out}{err}");
    assert!(err.contains(&format!("{}", at.port())) && err.contains("start one worker"), "{err}");
    assert_eq!(home.show("web")["ready"], 1);
    let log = home.fine(&["logs", "web", "--nostream", "--lines", "1000"]);
    assert_eq!(log.matches(&told).count(), 1, "{log}");
    server(at);
    home.fine(&["stop", "web"]);
}

#[test]
fn of_workers_with_one_port_of_their_own_only_the_one_that_has_it_is_ready() {
    starts_one("goes_on.js", &["child"]);
    if has_python() {
        starts_one("goes_on.py", &[]);
    }
}

#[test]
fn workers_that_try_for_seconds_to_have_a_port_of_their_own_and_end_are_never_ready() {
    if !has_python() {
        return;
    }
    starts_one("goes_on.py", &["retries"]);
    // In the foreground, where troop does not see what they say.
    let home = home("goes_on.py");
    let cwd = format!("cwd={:?}", home.path().display().to_string());
    let mut troop = run(["-w", "2", "--set", &cwd, "python3", "goes_on.py", "retries"]);
    let event = troop.event("not-shared");
    assert_eq!(event["address"], address(&home).to_string());
    assert!(event["text"].as_str().unwrap().contains("start one worker, or"), "{event}");
    let degraded = troop.event("degraded");
    assert!(degraded["text"].as_str().unwrap().contains("1 of 2"), "{degraded}");
    troop.signal(Signal::TERM);
    troop.end();
}

/// What a server at this path answers.
fn served_at(path: &Path) -> Option<String> {
    let mut answer = String::new();
    UnixStream::connect(path).ok()?.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A program that binds a path by itself, and removes that at its end.
fn removes_its_path(options: &[&str], verb: &[&str]) -> (Home, String) {
    let home = home("own_path.py");
    let path = home.path().join("web.sock");
    let at = path.display().to_string();
    let start = ["start", "own_path.py", "-n", "web", "--set", "min_ready_time=0"];
    home.fine(&[&start, options, &["--", &at]].concat());
    let mut before = None;
    wait_until("the server", || {
        before = served_at(&path);
        before.is_some()
    });
    let is_seen = || home.fine(&["ls"]).contains("web.sock");
    if !options.contains(&"ready=notify") {
        wait_until("what troop sees", is_seen);
    }
    let told = home.fine(verb);
    assert!(options.contains(&"ready=notify") || is_seen(), "{told}");
    assert_ne!(served_at(&path).unwrap(), before.unwrap(), "{told}");
    (home, told)
}

#[test]
fn a_path_that_the_old_worker_removes_at_its_end_leads_to_the_new_one_when_a_verb_has_replaced_it()
{
    if !has_python() {
        return;
    }
    let (home, told) = removes_its_path(&[], &["reload", "web"]);
    assert!(told.starts_with("web: 1 worker replaced; clients were refused"), "{told}");
    assert!(told.contains("web.sock") && told.contains("`alone = true`"), "{told}");
    let log = home.fine(&["logs", "web", "--nostream"]);
    assert!(log.contains("worker 1 has removed ") && log.contains("web.sock at its end"), "{log}");
    // It is the program's habit: the one that replaces a single worker finds it, too.
    let (home, _) = removes_its_path(&[], &["reload", "web:1"]);
    home.fine(&["reload", "all"]);
    served_at(&home.path().join("web.sock")).unwrap();
    let (_, told) = removes_its_path(&["--set", "alone=true"], &["reload", "web"]);
    assert_eq!(told, "web: 1 worker replaced\n");
}

/// Listens on this port; says so if it is in use, and goes on.
fn listens_on(port: u16, says: &str) -> String {
    let listen = format!("listen({{ port: {port}, host: '127.0.0.1', exclusive: true }})");
    format!(
        "require('net').createServer().on('error', () => console.error('{says}')).{listen}; setInterval(() => {{}}, 1000)"
    )
}

#[test]
fn a_start_fails_soon_where_a_program_wants_the_address_that_troop_has_itself() {
    for says in ["address already in use PORT", "Address already in use"] {
        let port = free_port();
        let says = says.replace("PORT", &port.to_string());
        let home = Home::with(&[("server.js", &listens_on(port, &says))]);
        let at = format!("127.0.0.1:{port}");
        let (code, out, err) = home.troop(&["start", "server.js", "-b", &at]);
        assert!(
            code == 1 && err.contains("no worker is ready: an address is in use"),
            "{out}{err}"
        );
        assert!(
            err.contains(&format!("| {says}")) && err.contains("as fd 3 (LISTEN_FDS)"),
            "{err}"
        );
        assert_eq!(err.contains("if that is the address of -b"), !says.contains("use "), "{err}");
        assert_eq!(home.troop(&["ls", "server", "--quiet"]).0, 3);
    }
}

#[test]
fn a_start_tells_of_a_worker_that_runs_and_cannot_have_its_address() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let home = Home::with(&[("server.js", &listens_on(port, "Address already in use"))]);
    let (code, out, err) = home.troop(&["start", "server.js"]);
    assert!(code == 0 && out.contains("1 worker ready"), "{out}{err}");
    assert!(err.contains("says that an address is in use; `ss -ltnp`"), "{err}");
}

#[test]
fn a_start_tells_of_workers_that_do_not_listen_and_say_nothing() {
    let port = free_port();
    let home = Home::with(&[("server.js", &listens_on(port, ""))]);
    let (code, out, err) = home.troop(&["start", "server.js", "-w", "2"]);
    assert!(code == 0 && out.contains("2 workers ready"), "{out}{err}");
    assert!(err.contains(&format!("listens on 127.0.0.1:{port} by itself, and others")), "{err}");
}

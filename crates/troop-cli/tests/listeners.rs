//! Listeners are open as long as workers have them, or are to have them.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Running, node, run};
use tempfile::TempDir;
use troop_testkit::{TEST_TIMEOUT, free_port, talk, wait_until};

/// An app that listens where its file says.
struct Scene {
    app: Running,
    directory: TempDir,
}

impl Scene {
    fn start(args: &[&str], places: &str) -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("places");
        std::fs::write(&file, places.replace("{dir}", &directory.path().display().to_string()))
            .unwrap();
        let quick = ["--set", "min_ready_time=0", "--set", "ready_timeout=4s", "--name", "web"];
        let args = quick.into_iter().chain(args.iter().copied()).map(String::from);
        let program = [node("places.js"), file].map(|path| path.display().to_string());
        Scene { app: run(args.chain(program)), directory }
    }

    fn places(&self) -> PathBuf {
        self.directory.path().join("places")
    }

    fn listens(&self, places: &str) {
        std::fs::write(
            self.places(),
            places.replace("{dir}", &self.directory.path().display().to_string()),
        )
        .unwrap();
    }

    fn kill(&self, pid: u32) {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    }

    fn show(&self) -> Value {
        let (code, out, err) = self.app.troop(["show", "web", "--json"]);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str::<Vec<Value>>(&out).unwrap().remove(0)
    }

    fn listeners(&self) -> Vec<String> {
        self.show()["listeners"]
            .as_array()
            .unwrap()
            .iter()
            .map(|listener| listener["address"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// The process that answers.
fn served_by(port: u16) -> u32 {
    talk(local(port), "GET / HTTP/1.0\r\n\r\n")
        .unwrap()
        .rsplit("\r\n")
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

fn refuses(port: u16) -> bool {
    TcpStream::connect(local(port))
        .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// A client that asks now, and reads later.
fn ask(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(local(port)).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    stream
}

/// Everything until the end, or the reset, of the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    if let Err(e) = stream.read_to_end(&mut all) {
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "it hangs");
    }
    String::from_utf8(all).unwrap()
}

#[test]
fn a_port_that_only_a_worker_has_that_is_too_many_is_closed_when_that_goes() {
    let (shared, own) = (free_port(), free_port());
    let mut scene = Scene::start(&["-w", "2"], &format!("{shared}\n{own}#1\n"));
    scene.app.listening(3);
    served_by(own);
    assert_eq!(scene.app.troop(["scale", "web", "1"]).0, 0);
    let closed = scene.app.event("listener-closed");
    assert_eq!((&closed["port"], &closed["dropped"]), (&own.into(), &0.into()));
    assert!(refuses(own));
    served_by(shared);
    assert_eq!(scene.listeners(), [format!("127.0.0.1:{shared}")]);
}

#[test]
fn a_reload_that_loses_the_shared_port_is_rolled_back_unless_it_may_move() {
    let (old, new) = (free_port(), free_port());
    for workers in ["1", "2"] {
        let mut scene = Scene::start(&["-w", workers], &format!("{old}\n"));
        scene.app.listening(workers.parse().unwrap());
        let before = served_by(old);
        scene.listens(&format!("{new}\n"));
        let (code, out, err) = scene.app.troop(["reload", "web"]);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(
            err.contains(&format!("does not listen on 127.0.0.1:{old}, where the old ones do")),
            "{err}"
        );
        assert!(
            err.contains(&format!("on 127.0.0.1:{new}")) && err.contains("allow-moved"),
            "{err}"
        );
        assert!(scene.app.workers().contains(&before));
        // Nobody has gone, and what the new one had has.
        served_by(old);
        assert_eq!(scene.app.event("listener-closed")["port"], new);
        let (code, out, err) = scene.app.troop(["reload", "web", "--allow-moved"]);
        assert_eq!(
            (code, out),
            (
                0,
                format!(
                    "web: {} replaced\n",
                    troop::text::counted(workers.parse::<u64>().unwrap(), "worker")
                )
            ),
            "{err}"
        );
        let waiting = ask(old);
        let since = Instant::now();
        served_by(new);
        assert_eq!(scene.app.event("listener-closed")["dropped"], 1);
        assert_eq!(rest(waiting), "");
        assert!(since.elapsed() < Duration::from_secs(8));
        assert!(refuses(old));
        // Where it is now is where it has to stay.
        scene.listens(&format!("{old}\n"));
        assert_eq!(scene.app.troop(["reload", "web"]).0, 1);
        served_by(new);
    }
}

#[test]
fn a_worker_that_listens_late_takes_over_too() {
    let (port, other) = (free_port(), free_port());
    let mut scene = Scene::start(&["-w", "2", "--set", "ready_timeout=20s"], &format!("{port}\n"));
    scene.app.listening(2);
    scene.listens(&format!("{other}\nwait 1500\n{port}\n"));
    let (code, _, err) = scene.app.troop(["reload", "web"]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains(&format!("to listen on 127.0.0.1:{port}")), "{err}");
    let old = scene.app.workers()[..2].to_vec();
    (0..4).for_each(|_| assert!(!old.contains(&served_by(port))));
}

#[test]
fn an_address_of_one_worker_may_be_lost_by_a_reload_that_permits_it() {
    let (shared, own) = (free_port(), free_port());
    let mut scene = Scene::start(&["-w", "2"], &format!("{shared}\n{own}#1\n"));
    scene.app.listening(3);
    scene.listens(&format!("{shared}\n"));
    let (code, _, err) = scene.app.troop(["reload", "web", "--allow-moved"]);
    assert_eq!(code, 0, "{err}");
    wait_until("its port is closed", || refuses(own));
    served_by(shared);
    assert_eq!(scene.show()["phase"], "running");
}

/// As with `serve` from npm, which takes another port when it finds its own one open: the first
/// worker has it, and no successor ever would.
#[test]
fn a_reload_whose_workers_all_leave_the_port_of_one_worker_is_rolled_back() {
    for workers in ["1", "3"] {
        let port = free_port();
        let mut scene = Scene::start(&["-w", workers], &format!("{port}#0\n0#1\n0#2\n"));
        scene.app.listening(workers.parse().unwrap());
        let before = served_by(port);
        scene.listens("0\n");
        let (code, out, err) = scene.app.troop(["reload", "web"]);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(&format!("127.0.0.1:{port}")) && err.contains("allow-moved"), "{err}");
        // Where it is, seen from outside.
        assert!(err.contains("on 127.0.0.1:") && !err.contains("127.0.0.1:0"), "{err}");
        assert_eq!(served_by(port), before);
        // Where its replacement takes it again, all is well, and where another one does too.
        for places in [format!("{port}#0\n0#1\n0#2\n"), format!("0#0\n0#1\n{port}#2\n")] {
            if workers == "1" && places.starts_with('0') {
                continue;
            }
            scene.listens(&places);
            wait_until("the reload before is over", || scene.app.troop(["reload", "web"]).0 == 0);
            served_by(port);
        }
        assert_eq!(scene.show()["phase"], "running");
        scene.listens("0\n");
        let (code, _, err) = scene.app.troop(["reload", "web", "--allow-moved"]);
        assert_eq!(code, 0, "{err}");
        wait_until("the port is closed", || refuses(port));
        assert_eq!(scene.show()["phase"], "running", "that was permitted");
    }
}

#[test]
fn an_address_that_is_missed_after_a_crash_is_shown_until_a_worker_serves_it() {
    let port = free_port();
    let mut scene = Scene::start(&["-w", "2"], &format!("{port}#0\n0#1\n"));
    scene.app.listening(2);
    assert_eq!(scene.show()["phase"], "running");
    scene.listens("0\n");
    scene.kill(served_by(port));
    let lost = scene.app.event("listener-lost");
    assert_eq!(
        (&lost["port"], lost["text"].as_str().unwrap().contains("no")),
        (&port.into(), true),
        "{lost}"
    );
    let at = format!("127.0.0.1:{port}");
    let show = scene.show();
    assert_eq!(
        (&show["phase"], &show["ready"], &show["lost"][0]["address"]),
        (&"degraded".into(), &2.into(), &at.clone().into())
    );
    assert!(scene.app.troop(["ls"]).1.contains("degraded"));
    let shown = scene.app.troop(["show", "web"]).1;
    assert!(shown.contains(&format!("lost {at}: no worker listens there")), "{shown}");
    scene.listens(&format!("{port}#0\n0#1\n"));
    assert_eq!(scene.app.troop(["reload", "web"]).0, 0);
    assert_eq!(scene.app.event("listener-restored")["port"], port);
    assert_eq!(scene.show()["phase"], "running");
    served_by(port);
}

#[test]
fn a_worker_that_disconnects_by_itself_leaves_the_port_to_its_successor() {
    let (port, other) = (free_port(), free_port());
    let mut scene = Scene::start(&["-w", "2"], &format!("{port}#0\n{other}#1\n"));
    scene.app.listening(2);
    let before = served_by(port);
    scene.listens(&format!("wait 1000\n{port}#0\n{other}#1\n"));
    let slot = scene.show()["workers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|worker| worker["pid"] == before)
        .unwrap()["id"]
        .clone();
    assert_eq!(scene.app.troop(["send", &format!("web:{slot}"), "leave"]).0, 0);
    // From before the worker has closed its server until its successor listens.
    let mut answered = served_by(port);
    wait_until("its successor answers", || {
        answered = served_by(port);
        answered != before
    });
    assert!(scene.app.seen.iter().all(|line| !line.contains("listener-closed")));
}

#[test]
fn a_worker_that_is_never_ready_is_replaced_until_one_is() {
    let port = free_port();
    let args = ["-w", "2", "--set", "ready=message", "--set", "ready_timeout=3s"];
    let mut scene = Scene::start(&args, &format!("{port}\nready\n"));
    scene.app.listening(2);
    wait_until("all are ready", || scene.show()["phase"] == "running");
    scene.listens(&format!("{port}\n"));
    let pid = scene.app.workers()[0];
    scene.kill(pid);
    let late = scene.app.event("not-ready");
    assert!(late["text"].as_str().unwrap().contains("was not ready within 3s"), "{late}");
    let end = scene.app.event("exit");
    assert_eq!(end["worker"], late["worker"]);
    let begun = scene.app.event("restarting");
    assert!(begun["delay_ms"].as_u64().unwrap() > 0, "{begun}");
    scene.listens(&format!("{port}\nready\n"));
    wait_until("one is ready in its place", || scene.show()["phase"] == "running");
    served_by(port);
}

#[test]
fn the_port_of_a_dead_worker_stays_open_until_its_successor_listens_elsewhere() {
    let (old, new) = (free_port(), free_port());
    let mut scene = Scene::start(&["-w", "1"], &format!("{old}\n"));
    scene.app.listening(1);
    // The same again, after a while: nobody is refused.
    scene.listens(&format!("wait 1000\n{old}\n"));
    scene.kill(scene.app.workers()[0]);
    scene.app.event("exit");
    assert!(rest(ask(old)).contains("200 OK"));
    scene.listens(&format!("wait 1000\n{new}\n"));
    scene.kill(served_by(old));
    scene.app.event("exit");
    let waiting = ask(old);
    scene.app.listening(1);
    assert_eq!(scene.app.event("listener-closed")["dropped"], 1);
    assert_eq!(rest(waiting), "");
    assert!(refuses(old));
    served_by(new);
}

#[test]
fn paths_of_workers_that_have_ended_leave_neither_files_nor_descriptors() {
    let port = free_port();
    let set = [
        "restart.max=1000",
        "restart.delay=10ms",
        "restart.max_delay=20ms",
        "restart.min_uptime=0",
    ];
    let args: Vec<&str> =
        ["-w", "2"].into_iter().chain(set.into_iter().flat_map(|set| ["--set", set])).collect();
    let mut scene = Scene::start(&args, &format!("{port}\n{{dir}}/ps-{{pid}}.sock\n"));
    scene.app.listening(4);
    let descriptors = |scene: &Scene| {
        std::fs::read_dir(format!("/proc/{}/fd", scene.app.child.id())).unwrap().count()
    };
    let sockets = |scene: &Scene| {
        let files = std::fs::read_dir(scene.directory.path()).unwrap();
        files
            .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with("ps-"))
            .count()
    };
    assert_eq!(sockets(&scene), 2);
    // The keeper gets its copies a moment after the event.
    let mut before = 0;
    wait_until("it has all", || {
        let now = descriptors(&scene);
        std::mem::replace(&mut before, now) == now
    });
    for life in 0..20 {
        let pid = scene.app.workers()[life + 1];
        scene.kill(pid);
        scene.app.event("exit");
        scene.app.listening(2);
    }
    wait_until("the files of those that have ended are gone", || sockets(&scene) == 2);
    wait_until("their descriptors are closed", || descriptors(&scene) <= before);
    assert_eq!(scene.listeners().len(), 3);
    served_by(port);
    // And a reload is none of a move.
    assert_eq!(scene.app.troop(["reload", "web"]).0, 0);
    wait_until("the files of those that were replaced are gone", || sockets(&scene) == 2);
}

#[test]
fn without_workers_that_are_wanted_clients_wait() {
    let port = free_port();
    let mut scene = Scene::start(&["-w", "2"], &format!("{port}\n"));
    scene.app.listening(2);
    let (code, out, err) = scene.app.troop(["scale", "web", "0"]);
    let err = support::without_progress(&err);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "web: 0 workers, 2 before\n", ""));
    (0..2).for_each(|_| drop(scene.app.event("exit")));
    let waiting = ask(port);
    // Longer than anything is kept for workers that are starting.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(scene.listeners(), [format!("127.0.0.1:{port}")]);
    assert_eq!(scene.app.troop(["reload", "web"]).0, 0, "there is nobody to replace");
    assert_eq!(scene.app.troop(["scale", "web", "1"]).0, 0);
    assert!(rest(waiting).contains("200 OK"));
    let pid = served_by(port);
    scene.app.signal(Signal::WINCH);
    loop {
        if scene.app.event("exit")["pid"] == pid {
            break;
        }
    }
    let waiting = ask(port);
    std::thread::sleep(Duration::from_secs(5));
    // A new version is held to where the one before was.
    scene.listens(&format!("{}\n", free_port()));
    let (code, _, err) = scene.app.troop(["reload", "web"]);
    assert!(code == 1 && err.contains(&format!("127.0.0.1:{port}")), "{err}");
    scene.listens(&format!("{port}\n"));
    let (code, _, err) = scene.app.troop(["reload", "web"]);
    assert_eq!(code, 0, "{err}");
    assert!(rest(waiting).contains("200 OK"));
}

/// The process that answers at a path.
fn served_at(path: &std::path::Path) -> u32 {
    let mut client = std::os::unix::net::UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer.rsplit("\r\n").next().unwrap().parse().unwrap()
}

#[test]
fn four_workers_that_remove_their_path_before_they_listen_serve_from_the_start_after_a_reload_and_after_a_crash()
 {
    let mut scene = Scene::start(&["-w", "4"], "!{dir}/s\n");
    let path = scene.directory.path().join("s");
    let all_serve = || -> BTreeSet<u32> { (0..16).map(|_| served_at(&path)).collect() };
    (0..4).for_each(|_| drop(scene.app.event("listening")));
    let first = all_serve();
    assert_eq!(first.len(), 4);
    let (code, out, err) = scene.app.troop(["reload", "web"]);
    assert_eq!(code, 0, "{out}{err}");
    (0..4).for_each(|_| drop(scene.app.event("listening")));
    let second = all_serve();
    assert!(second.len() == 4 && second.is_disjoint(&first), "{first:?} {second:?}");
    let killed = *second.first().unwrap();
    scene.kill(killed);
    scene.app.event("listening");
    let third = all_serve();
    assert!(third.len() == 4 && !third.contains(&killed), "{second:?} {third:?}");
}

/// Whether a server answers a client that has little patience.
fn answers_soon(port: u16) -> bool {
    let Ok(mut client) = TcpStream::connect(local(port)) else { return false };
    client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut answer = String::new();
    let _ = client.write_all(b"GET / HTTP/1.0\r\n\r\n");
    let _ = client.read_to_string(&mut answer);
    answer.contains("200 OK")
}

#[test]
fn a_program_that_tries_a_port_before_it_listens_gets_it() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("probe.js");
    for (tried, is_same) in [("0.0.0.0", true), ("127.0.0.1", true), ("0.0.0.0", false)] {
        let port = free_port();
        let own = if is_same { port } else { free_port() };
        let text = format!(
            "const probe = require('net').createServer().listen({port}, '{tried}', () => probe.close(() => {{\n\
             require('http').createServer((_, response) => response.end(`${{process.pid}}`)).listen({own}, '127.0.0.1');\n}}));"
        );
        std::fs::write(&program, text).unwrap();
        let path = program.display().to_string();
        let quick = [
            "--set",
            "min_ready_time=0",
            "--set",
            "ready_timeout=4s",
            "--name",
            "web",
            "-w",
            "1",
            &path,
        ];
        let mut app = run(quick.map(String::from));
        // A client that comes while the port is only tried is answered by nobody, as without troop,
        // and the trial lasts as long as the client waits.
        let answers = || answers_soon(own);
        wait_until("the program's own server", answers);
        let first = served_by(own);
        // A second one beside it could not try the whole port, with Node's primary neither.
        if tried != "0.0.0.0" || !is_same {
            let (code, _, err) = app.troop(["reload", "web"]);
            assert_eq!(code, 0, "{tried} {is_same}: {err}");
            assert_ne!(served_by(own), first);
        }
        // What it tried is nothing that is missed.
        let (_, out, _) = app.troop(["show", "web", "--json"]);
        let shown = serde_json::from_str::<Vec<Value>>(&out).unwrap().remove(0);
        assert_eq!(shown["phase"], "running", "{tried} {is_same}: {shown}");
        kill_process(Pid::from_raw(served_by(own).cast_signed()).unwrap(), Signal::KILL).unwrap();
        app.event("restarting");
        wait_until("its successor", answers);
    }
}

#[test]
fn a_path_with_the_number_of_its_worker_is_lost_all_the_same_where_no_successor_asks_for_its_own() {
    let mut scene = Scene::start(&["-w", "1"], "{dir}/app-1/web.sock\n");
    let path = scene.directory.path().join("app-1/web.sock");
    scene.app.event("listening");
    scene.listens("{dir}/other.sock\n");
    let (code, _, err) = scene.app.troop(["reload", "web"]);
    assert!(code == 1 && err.contains(&path.display().to_string()), "{code} {err}");
    // Nor is it its own where the worker dies.
    scene.kill(served_at(&path));
    let lost = scene.app.event("listener-lost");
    assert_eq!(lost["address"], path.display().to_string(), "{lost}");
    scene.listens("{dir}/app-1/web.sock\n");
    assert_eq!(scene.app.troop(["reload", "web", "--allow-moved"]).0, 0);
    assert_ne!(served_at(&path), 0);
    // What each names after itself is no loss, neither in a reload nor after a death.
    scene.listens("{dir}/app-1/web.sock\n{dir}/app-{id}/own.sock\n{dir}/{pid}-own.sock\n");
    for _ in 0..2 {
        let (code, out, err) = scene.app.troop(["reload", "web"]);
        assert!(code == 0 && !out.contains("own.sock"), "{out} {err}");
    }
    scene.kill(served_at(&path));
    scene.app.event("restarting");
    (0..3).for_each(|_| drop(scene.app.event("listening")));
    (0..2).for_each(|_| drop(scene.app.event("listener-closed")));
    assert_eq!(scene.show()["phase"], "running");
}

#[test]
fn a_port_that_closed_at_once_is_missed_where_the_successor_listens_elsewhere() {
    let (old, new) = (free_port(), free_port());
    let args = ["-w", "1", "--set", "restart.keep_listeners=false"];
    let mut scene = Scene::start(&args, &format!("{old}\n"));
    scene.app.listening(1);
    // A crash whose successor listens there again is no loss.
    scene.kill(served_by(old));
    scene.app.listening(1);
    scene.listens(&format!("{new}\n"));
    scene.kill(served_by(old));
    scene.app.listening(1);
    let lost = scene.app.event("listener-lost");
    assert_eq!(lost["port"], old, "{lost}");
    assert_eq!(scene.show()["phase"], "degraded");
    assert!(
        !scene
            .app
            .seen
            .iter()
            .any(|line| line.contains("listener-lost") && !line.contains(&old.to_string()))
    );
    // And a reload to one that has moved is none.
    scene.listens(&format!("{old}\n"));
    let (code, _, err) = scene.app.troop(["reload", "web", "--allow-moved"]);
    assert_eq!(code, 0, "{err}");
    wait_until("nothing is missed", || scene.show()["phase"] == "running");
    scene.listens("exit\n");
    scene.kill(served_by(old));
    scene.app.event("restarting");
    wait_until("the port closes", || refuses(old));
    scene.listens(&format!("{new}\n"));
    let (code, _, err) = scene.app.troop(["reload", "web"]);
    assert!(code == 1 && err.contains(&old.to_string()), "{code} {err}");
}

//! Running apps are shown and controlled from outside.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Home, Running, node, run, start_in};
use troop_testkit::{TEST_TIMEOUT, is_running, talk, wait_until};

fn app(args: &[&str], program: &str) -> Running {
    run(args.iter().map(|arg| (*arg).to_owned()).chain([node(program).display().to_string()]))
}

/// Another one, in the same place.
fn beside(first: &Running, args: &[&str], program: &str) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json"]).args(args).arg(node(program));
    start_in(first.runtime.clone(), command)
}

fn show(app: &Running, name: &str) -> Value {
    let (code, out, err) = app.troop(["show", name, "--json"]);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str::<Vec<Value>>(&out).unwrap().remove(0)
}

fn served_by(port: u16) -> String {
    talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n")
        .unwrap()
        .rsplit("\r\n")
        .next()
        .unwrap()
        .to_owned()
}

/// Clients wait in the queue of a stopped process, and the next one would wait for room in it.
#[test]
fn an_app_that_does_not_answer_is_listed_and_delays_no_other() {
    let mut stopped = app(&["-w", "1", "--name", "stopped"], "hello.js");
    stopped.listening(1);
    let mut other = beside(&stopped, &["-w", "1", "--name", "other"], "hello.js");
    other.listening(1);
    let pid = troop_testkit::engine(stopped.child.id()).unwrap();
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let listed = || {
        let (code, out, err) = other.troop(["ls"]);
        assert_eq!((code, err.as_str()), (0, ""));
        let of = |name: &str| out.lines().find(|line| line.contains(name)).unwrap().to_owned();
        assert!(
            of("stopped").contains("not answering") && of("other").contains("running"),
            "{out}"
        );
    };
    listed();
    let path = stopped.runtime.path().join("troop/stopped.sock");
    let full = loop {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
        let flags = SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let address = SocketAddrUnix::new(&path).unwrap();
        if let Err(e) = rustix::net::connect(socket.unwrap(), &address) {
            break e;
        }
    };
    assert_eq!(full, rustix::io::Errno::AGAIN);
    listed();
    let (code, out, err) = other.troop(["ls", "--json"]);
    assert_eq!(code, 0, "{err}");
    let phases: BTreeSet<String> = serde_json::from_str::<Vec<Value>>(&out)
        .unwrap()
        .iter()
        .map(|app| format!("{} {}", app["name"], app["phase"]))
        .collect();
    assert!(phases.contains("\"stopped\" \"not-answering\""), "{phases:?}");
    let (code, _, err) = other.troop(["reload", "stopped"]);
    assert!(code != 0 && err.contains("stopped: there is no answer"), "{err}");
    let (code, _, err) = other.troop(["stop", "other"]);
    assert_eq!(code, 0, "{err}");
    kill_process(pid, Signal::CONT).unwrap();
}

#[test]
fn apps_are_listed_and_shown() {
    let mut first = app(&["-w", "2", "--name", "web", "--policy", "round-robin"], "hello.js");
    let port = first.listening(2);
    let mut second = beside(&first, &["-w", "1", "--policy", "steered"], "hello.js");
    second.listening(1);
    let mut third = beside(&first, &["-w", "1", "--policy", "auto"], "hello.js");
    third.listening(1);
    served_by(port);
    let (code, out, _) = first.troop(["ls"]);
    assert_eq!(code, 0);
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    let names: Vec<_> = rows.iter().map(|row| row[1]).collect();
    // Without a name they are called as their programs, and those that are alike get a number.
    assert_eq!(names, ["NAME", "web", "hello", "hello-2"]);
    let expected = ["0", "web", &first.child.id().to_string(), "running", "2/2", "0"];
    assert_eq!(rows[1][..6], expected);
    assert_eq!(rows[1].last().unwrap(), &format!("127.0.0.1:{port}"));

    let web = show(&first, "web");
    let workers: BTreeSet<u64> = web["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| worker["pid"].as_u64().unwrap())
        .collect();
    assert_eq!(workers, first.workers().iter().map(|pid| u64::from(*pid)).collect());
    let taken: u64 = web["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| worker["stats"]["taken"].as_u64().unwrap())
        .sum();
    assert_eq!(taken, 1);
    assert!(web["workers"][0]["usage"]["rss"].as_u64().unwrap() > 10 << 20);
    // The total is of all processes, in `ls` as in `show`.
    let rss = |value: &Value| value["rss"].as_u64().unwrap();
    let mut listed: Vec<Value> =
        serde_json::from_str(&first.troop(["ls", "web", "--json"]).1).unwrap();
    for app in [web.clone(), listed.remove(0)] {
        let workers = app["workers"].as_array().unwrap().iter();
        let sum = workers.map(|worker| rss(&worker["usage"])).sum::<u64>() + rss(&app["usage"]);
        assert_eq!(rss(&app["total"]), sum, "{app}");
    }
    let listener = json!({ "address": format!("127.0.0.1:{port}"), "scheduling": "round-robin", "workers": 2, "waiting": 0 });
    assert_eq!(web["listeners"], json!([listener]));
    let (_, out, _) = first.troop(["show", "hello"]);
    assert!(out.contains("steered") && out.contains("listening"), "{out}");
    let (_, out, _) = first.troop(["show", "hello-2"]);
    assert!(out.contains("auto (turns for "), "{out}");
    let mode = &show(&first, "hello-2")["listeners"][0]["mode"];
    assert_eq!((&mode["mode"], &mode["reason"]), (&json!("turns"), &json!("it was opened")));
    assert!(mode["age_ms"].is_u64(), "{mode}");
    assert_eq!(first.troop(["list", "web", "--json"]).0, 0);
}

#[test]
fn an_app_is_scaled_and_serves_meanwhile() {
    let mut troop = app(&["-w", "1"], "hello.js");
    let port = troop.listening(1);
    let (code, out, err) = troop.troop(["scale", "3"]);
    let err = support::without_progress(&err);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "hello: 3 workers, 1 before\n", ""));
    troop.listening(2);
    assert_eq!((0..3).map(|_| served_by(port)).collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(troop.troop(["scale", "hello", "-2"]).1, "hello: 1 worker, 3 before\n");
    troop.event("exit");
    troop.event("exit");
    wait_until("one worker", || show(&troop, "hello")["workers"].as_array().unwrap().len() == 1);
    served_by(port);
    let (code, _, err) = troop.troop(["scale", "-1"]);
    let text = "troop: -1 would leave none of 1 worker; `troop scale 0` ends all and keeps the listeners\n";
    assert_eq!((code, err.as_str()), (2, text));
    assert_eq!(troop.troop(["scale", "many"]).0, 2);
}

#[test]
fn a_reload_is_waited_for() {
    let mut troop = app(&["-w", "2"], "hello.js");
    let port = troop.listening(2);
    let old: Vec<u32> = troop.workers().to_vec();
    let (code, out, err) = troop.troop(["reload", "hello"]);
    assert_eq!((code, out.as_str()), (0, "hello: 2 workers replaced\n"), "{err}");
    assert!(err.contains("takes over from worker 1"), "{err}");
    for _ in 0..4 {
        assert!(!old.contains(&served_by(port).split(' ').next().unwrap().parse().unwrap()));
    }
}

#[test]
fn a_failed_reload_reports_the_reason_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let broken = directory.path().join("broken");
    let arguments = ["-w", "2", "--name", "web"].map(String::from).into_iter();
    let mut troop = run(arguments
        .chain([node("fails_on_reload.js").display().to_string(), broken.display().to_string()]));
    troop.listening(2);
    std::fs::write(&broken, "").unwrap();
    let (code, _, err) = troop.troop(["reload"]);
    assert_eq!(code, 1);
    for part in [
        "the new worker ended with exit code 1",
        "0 workers had been replaced",
        "the new version is broken",
    ] {
        assert!(err.contains(part), "{part} in {err}");
    }
    assert!(troop.workers()[..2].iter().all(|pid| is_running(*pid)));
    std::fs::remove_file(&broken).unwrap();
    assert_eq!(
        troop.troop(["reload", "--json"]).1,
        "{\"later\":[],\"name\":\"web\",\"replaced\":2}\n"
    );
}

#[test]
fn one_of_two_concurrent_reloads_is_rejected() {
    let mut troop = app(&["-w", "4"], "hello.js");
    troop.listening(4);
    let first =
        troop.command(["reload"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    troop.event("reload-started");
    let (code, _, err) = troop.troop(["reload"]);
    assert_eq!((code, err.as_str()), (1, "troop: a reload is under way, or the app is stopping\n"));
    assert!(first.wait_with_output().unwrap().status.success());
}

#[test]
fn an_app_is_stopped_and_waited_for() {
    let mut troop = app(&["-w", "2"], "hello.js");
    let port = troop.listening(2);
    let mut slow = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    slow.write_all(b"GET /slow HTTP/1.0\r\n\r\n").unwrap();
    served_by(port);
    assert_eq!(troop.troop(["stop"]), (0, "hello: stopped\n".into(), String::new()));
    // What was being served was finished first, and nothing is left.
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    assert!(troop.workers().iter().all(|pid| !is_running(*pid)));
    assert_eq!(troop.end().0, Some(0));
    assert_eq!(troop.troop(["stop"]), (3, String::new(), "troop: no app is running\n".into()));
    assert_eq!(troop.troop(["ls", "--json"]).1, "[]\n");
}

#[test]
fn a_second_stop_does_not_shorten_the_grace_period() {
    let directory = tempfile::tempdir().unwrap();
    let (program, go) = (directory.path().join("held.js"), directory.path().join("go"));
    // It answers when it is told to.
    let held = format!(
        "require('http').createServer((q, r) => {{
            const timer = setInterval(() => {{
                if (q.url === '/held' && !require('fs').existsSync({go:?})) return;
                clearInterval(timer);
                r.end();
            }}, 5);
        }}).listen(0, '127.0.0.1');"
    );
    std::fs::write(&program, held).unwrap();
    let mut troop = run(["-w", "1", program.to_str().unwrap()]);
    let port = troop.listening(1);
    let mut slow = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    slow.write_all(b"GET /held HTTP/1.0\r\n\r\n").unwrap();
    served_by(port);
    for _ in 0..3 {
        assert_eq!(troop.troop(["stop", "--no-wait"]).1, "held: stopping\n");
    }
    troop.event("stopping");
    std::fs::write(&go, "").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
}

#[test]
fn stop_now_ends_the_cluster_at_once() {
    let mut troop = app(&["-w", "1"], "stays.js");
    troop.listening(1);
    assert_eq!(troop.troop(["stop", "--quick", "all"]).0, 0);
    assert!(troop.workers().iter().all(|pid| !is_running(*pid)));
}

#[test]
fn the_policy_of_an_app_that_runs_is_changed() {
    let mut troop = app(&["-w", "2", "--policy", "round-robin"], "hello.js");
    let port = troop.listening(2);
    assert_eq!(troop.troop(["policy", "sticky"]), (0, "hello: sticky\n".into(), String::new()));
    assert_eq!(show(&troop, "hello")["listeners"][0]["scheduling"], "sticky");
    assert_eq!((0..6).map(|_| served_by(port)).collect::<BTreeSet<_>>().len(), 1);
    let (_, out, _) = troop.troop(["policy", "hello", "steered"]);
    let later = "hello: steered, but not yet on 127.0.0.1:0, which changes when";
    assert!(out.starts_with(later) && out.contains("`troop restart hello`"), "{out}");
    assert_eq!(show(&troop, "hello")["listeners"][0]["scheduling"], "sticky");
    assert_eq!(troop.troop(["policy", "hello", "sideways"]).0, 2);
}

#[test]
fn signals_reach_the_workers_that_are_meant() {
    let mut troop = app(&["-w", "2"], "hello.js");
    troop.listening(2);
    assert_eq!(troop.troop(["signal", "KILL", "--worker", "2"]).1, "hello: sent to 1 worker\n");
    let exit = troop.event("exit");
    assert_eq!((&exit["worker"], &exit["signal"]), (&json!(2), &json!("SIGKILL")));
    let (code, _, err) = troop.troop(["signal", "hello", "9", "--worker", "77"]);
    assert_eq!((code, err.as_str()), (1, "troop: there is no worker 77\n"));
    assert_eq!(troop.troop(["signal", "SIGNONSENSE"]).0, 2);
}

#[test]
fn messages_reach_the_workers_that_are_meant_and_answers_come_back() {
    let home = Home::with(&[("answers.js", include_str!("node/answers.js"))]);
    home.fine(&["start", "answers.js", "-i", "2", "--name", "web"]);
    assert_eq!(home.fine(&["send", "web", "{\"flush\": [1, \"ü\"]}"]), "web: sent to 2 workers\n");
    wait_until("the message at both", || {
        home.log("web.log").matches("sent {\"flush\":[1,\"ü\"]}").count() == 2
    });
    assert_eq!(home.fine(&["send", "web:2", "plain words"]), "web: sent to 1 worker\n");
    wait_until("the text", || home.log("web.log").matches("sent \"plain words\"").count() == 1);
    let out = home.fine(&["send", "--ask", "\"hello\""]);
    let answers: Vec<&str> = out.lines().collect();
    assert!(
        answers.len() == 2
            && answers[0].starts_with("web:1: {\"by\":")
            && answers[1].starts_with("web:2: "),
        "{out}"
    );
    let answer: Value =
        serde_json::from_str(&home.fine(&["send", "web:1", "--ask", "hello", "--json"])).unwrap();
    assert_eq!(
        (&answer["workers"], &answer["answers"]["1"]["heard"]),
        (&json!([1]), &json!("hello"))
    );
    let (code, _, err) = home.troop(&["send", "web:1", "--ask", "refuse"]);
    assert!(code == 1 && err.contains("worker 1") && err.contains("not now"), "{code} {err}");
    let (code, _, err) = home.troop(&["send", "web", "--ask", "--timeout", "100ms", "hang"]);
    assert!(
        code == 1 && err.contains("worker 1") && err.contains("worker 2") && err.contains("100ms"),
        "{code} {err}"
    );
    assert_eq!(home.troop(&["send", "web:9", "x"]).0, 1);
    let (code, _, err) =
        home.troop(&["send", "web", "{\"cmd\": \"NODE_CLUSTER\", \"act\": \"disconnect\"}"]);
    assert!(code == 2 && err.contains("Node's own"), "{code} {err}");
    home.fine(&["delete", "web"]);
    // Who has no channel cannot be told anything.
    home.fine(&["start", "sleep", "-b", "127.0.0.1:0", "-i", "1", "--", "1000"]);
    let (code, _, err) = home.troop(&["send", "sleep", "x"]);
    assert!(code == 1 && err.contains("activation"), "{code} {err}");
}

#[test]
fn events_are_followed_to_the_end() {
    let mut troop = app(&["-w", "1"], "hello.js");
    troop.listening(1);
    let mut follower = troop.command(["events", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap);
    let (sender, seen) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || {
        sender.send(lines.next()).unwrap();
        lines.count()
    });
    // It follows from when it is there, so that something has to happen until it sees something.
    let (mut first, mut workers) = (None, 1);
    wait_until("an event", || {
        workers = 3 - workers;
        troop.troop(["scale", &workers.to_string()]);
        first = seen.recv_timeout(Duration::from_millis(50)).ok();
        first.is_some()
    });
    let first: Value = serde_json::from_str(&first.flatten().unwrap()).unwrap();
    assert_eq!(troop.troop(["stop"]).0, 0);
    let rest = worker.join().unwrap();
    assert!(first["event"].is_string() && first["text"].is_string(), "{first}");
    assert!(rest > 2);
    follower.wait().unwrap();
}

#[test]
fn a_name_must_be_valid_and_unused() {
    let mut troop = app(&["-w", "1", "--name", "web"], "hello.js");
    troop.listening(1);
    let (code, log) = beside(&troop, &["--name", "web"], "hello.js").end();
    assert_eq!(
        (code, log.as_str()),
        (
            Some(1),
            "troop: an app \"web\" runs already: `troop reload web` replaces its workers; another --name starts a second one"
        )
    );
    for bad in ["../web", "all", ""] {
        assert_eq!(beside(&troop, &["--name", bad], "hello.js").end().0, Some(2));
    }
    let (code, _, err) = troop.troop(["reload", "wbe"]);
    assert_eq!(
        (code, err.as_str()),
        (3, "troop: there is no app \"wbe\"; did you mean web? running: web\n")
    );
    // A primary that was killed leaves a socket, and no name.
    let engine = troop_testkit::engine(troop.child.id()).unwrap();
    troop.child.kill().unwrap();
    troop.child.wait().unwrap();
    kill_process(Pid::from_raw(engine.cast_signed()).unwrap(), Signal::KILL).unwrap();
    wait_until("the end of its engine", || !is_running(engine));
    assert_eq!(troop.troop(["show", "web"]).0, 3);
    let mut next = beside(&troop, &["-w", "1", "--name", "web"], "hello.js");
    next.listening(1);
    assert_eq!(next.troop(["show", "web"]).0, 0);
}

#[test]
fn abuse_of_the_control_socket_disturbs_no_other_client() {
    let mut troop = app(&["-w", "1", "--name", "web"], "hello.js");
    troop.listening(1);
    let path = troop.runtime.path().join("troop/web.sock");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let connect = || UnixStream::connect(&path).unwrap();
    let answer = |request: &[u8]| {
        let mut stream = connect();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        // It may be cut off before it has said it all.
        let _ = stream.write_all(request);
        let mut line = String::new();
        let _ = BufReader::new(stream).read_line(&mut line);
        line
    };
    // Silent ones, one that follows everything and reads nothing, and one that leaves in the middle
    // of its request.
    let silent: Vec<_> = (0..20).map(|_| connect()).collect();
    let mut deaf = connect();
    deaf.write_all(b"{\"troop\":1,\"do\":\"events\"}\n").unwrap();
    connect().write_all(b"{\"troop\":").unwrap();
    for (request, part) in [
        (&b"hello\n"[..], "this is no request"),
        (b"{\"troop\":2,\"do\":\"snapshot\"}\n", "version 2 is not spoken"),
        (b"{\"troop\":1,\"do\":\"dance\"}\n", "unknown variant `dance`"),
        (b"{\"troop\":1,\"do\":\"scale\",\"workers\":1000000}\n", "0 to 4096"),
        (
            b"{\"troop\":1,\"do\":\"scale\",\"workers\":null,\"by\":9223372036854775807}\n",
            "0 to 4096",
        ),
        (b"{\"troop\":1,\"do\":\"signal\",\"signal\":-5,\"worker\":null}\n", "failed"),
        (b"\xff\xfe\n", "this is no request"),
    ] {
        let line = answer(request);
        assert!(line.contains("\"failed\"") && line.contains(part), "{line}");
    }
    answer(&vec![b'x'; 1 << 20]);
    for _ in 0..40 {
        assert_eq!(troop.troop(["show", "web"]).0, 0);
    }
    drop(silent);
}

#[test]
fn a_restart_is_waited_for_as_long_as_the_app_may_take_to_start() {
    for (args, most) in
        [(&["-w", "1"][..], 35_000), (&["-w", "1", "--set", "ready_timeout=3m"], 185_000)]
    {
        let mut troop = app(args, "hello.js");
        troop.listening(1);
        let mut stream =
            UnixStream::connect(troop.runtime.path().join("troop/hello.sock")).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.write_all(b"{\"troop\":1,\"do\":\"restart\"}\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        let done = json!({ "restarting": true, "start_timeout_ms": most });
        assert_eq!(answer, json!({ "done": done }), "{args:?}");
        troop.listening(1);
    }
}

#[test]
fn no_control_socket_is_created_in_an_unprotected_directory() {
    let mut troop = app(&["-w", "1"], "hello.js");
    troop.listening(1);
    let open = tempfile::tempdir().unwrap();
    std::fs::create_dir(open.path().join("troop")).unwrap();
    std::fs::set_permissions(open.path().join("troop"), std::fs::Permissions::from_mode(0o755))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(["run", "--log", "json", "-w", "1"]).arg(node("hello.js"));
    let mut other = start_in(open.into(), command);
    // It serves all the same, and says so.
    served_by(other.listening(1));
    assert!(
        other
            .seen
            .iter()
            .any(|line| line.contains("without a control socket") && line.contains("mode 700"))
    );
    let (code, _, err) = other.troop(["ls"]);
    assert!(code == 1 && err.contains("set TROOP_RUNTIME_DIR"), "{err}");
}

#[test]
fn a_failed_reload_reports_its_reason_and_the_state_of_the_app() {
    let directory = tempfile::tempdir().unwrap();
    let broken = directory.path().join("broken");
    let arguments = ["-w", "2", "--name", "web"].map(String::from).into_iter();
    let mut troop = run(arguments
        .chain([node("fails_on_reload.js").display().to_string(), broken.display().to_string()]));
    troop.listening(2);
    troop.signal(rustix::process::Signal::WINCH);
    (0..2).for_each(|_| drop(troop.event("exit")));
    std::fs::write(&broken, "").unwrap();
    let (code, _, err) = troop.troop(["reload"]);
    assert!(
        code == 1
            && err.contains(
                "the app is still paused, and nothing is tried again before the next reload"
            ),
        "{err}"
    );
    assert!(!err.contains("keep running"), "{err}");
    std::fs::remove_file(&broken).unwrap();
    let (code, out, err) = troop.troop(["reload"]);
    assert_eq!(
        (code, out.as_str()),
        (0, "web: 2 workers started, none was there to replace\n"),
        "{err}"
    );
    // Without a single ready worker.
    std::fs::write(&broken, "").unwrap();
    troop.troop(["signal", "web", "KILL"]);
    wait_until("no worker is ready", || {
        let (_, out, _) = troop.troop(["show", "web", "--json"]);
        let app: Value = serde_json::from_str::<Vec<Value>>(&out).unwrap().remove(0);
        app["phase"] == "degraded" && app["ready"] == 0
    });
    let (code, out, err) = troop.troop(["reload"]);
    assert!(
        code == 1
            && err
                .contains("no worker is ready, and troop keeps trying with the previous settings"),
        "{code}: {out}{err}"
    );
    std::fs::remove_file(&broken).unwrap();
    let (code, _, err) = troop.troop(["reload", "web:1", "--allow-moved"]);
    assert!(code == 2 && err.contains("troop reload web --allow-moved"), "{err}");
}

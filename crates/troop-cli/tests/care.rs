//! What can be said about the care of workers, each against the real program.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Home, Running, run, start};
use tempfile::TempDir;
use troop_testkit::{is_running, talk, wait_until};

const SERVER: &str = "require('http').createServer((q, s) => s.end(String(process.env.GREETING ?? process.pid))).listen(0, '127.0.0.1');";

fn script(text: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.js");
    std::fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    (directory, path)
}

fn get(port: u16) -> String {
    talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n")
        .unwrap()
        .rsplit("\r\n")
        .next()
        .unwrap()
        .to_owned()
}

fn show(app: &Running) -> Value {
    serde_json::from_str::<Vec<Value>>(&app.troop(["show", "--json"]).1).unwrap().remove(0)
}

fn in_directory(directory: &Path, args: &[&str]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    command.args(args).current_dir(directory);
    start(command)
}

#[test]
fn workers_run_as_the_configured_user() {
    let text = "
        const fs = require('fs');
        const status = fs.readFileSync('/proc/self/status', 'utf8');
        const line = name => status.split('\\n').find(line => line.startsWith(name)).split(/\\s+/).slice(1).join(' ');
        process.stderr.write('SEEN ' + JSON.stringify({
            umask: process.umask(), nice: require('os').getPriority(), cpus: line('Cpus_allowed_list'), uid: process.getuid(), gid: process.getgid(),
            groups: process.getgroups(), files: fs.readFileSync('/proc/self/limits', 'utf8').split('\\n').find(l => l.startsWith('Max open files')).split(/\\s+/).slice(3, 5),
            slot: [process.env.TROOP_SLOT, process.env.NODE_APP_INSTANCE, process.env.MY_SLOT], from: process.env.FROM_FILE, over: process.env.OVER,
            argv: process.execArgv,
        }) + '\\n');
        process.exit();";
    let (directory, path) = script(text);
    std::fs::write(directory.path().join(".env"), "# comment\nFROM_FILE='a b'\nOVER=1\n").unwrap();
    rustix::fs::chmod(directory.path(), 0o755.into()).unwrap();
    let env_file = directory.path().join(".env").display().to_string();
    let is_root = rustix::process::geteuid().is_root();
    let mut args =
        vec!["-w", "2", "--restart", "never", "--env-file", &env_file, "--env", "OVER=2"];
    args.extend([
        "--set",
        "umask=027",
        "--set",
        "nice=7",
        "--set",
        "cpus=[\"0\"]",
        "--set",
        "limits.files=[100, 200]",
    ]);
    args.extend(["--set", "slot_variable=MY_SLOT", "--set", "node_args=[\"--no-warnings\"]"]);
    if is_root {
        args.extend(["--user", "nobody"]);
    }
    args.push(&path);
    let mut app = run(args);
    let (code, log) = app.end();
    assert_eq!(code, Some(0), "{log}");
    let mut seen: Vec<Value> = log
        .lines()
        .filter_map(|line| line.strip_prefix("SEEN "))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    seen.sort_by_key(|seen| seen["slot"][0].to_string());
    assert_eq!(seen.len(), 2, "{log}");
    for (slot, seen) in seen.iter().enumerate() {
        let slot = slot.to_string();
        assert_eq!(seen["slot"], serde_json::json!([slot, slot, slot]));
        assert_eq!(
            (&seen["umask"], &seen["nice"], &seen["cpus"]),
            (&0o027.into(), &7.into(), &"0".into())
        );
        // Node raises the soft limit to the hard one by itself.
        assert_eq!(seen["files"], serde_json::json!(["200", "200"]));
        assert_eq!(
            (&seen["from"], &seen["over"], &seen["argv"][0]),
            (&"a b".into(), &"2".into(), &"--no-warnings".into())
        );
        if is_root {
            assert_eq!((&seen["uid"], &seen["gid"]), (&65_534.into(), &65_534.into()));
            assert!(!seen["groups"].as_array().unwrap().contains(&0.into()));
        }
    }
}

#[test]
fn ready_completes_when_all_workers_are_ready() {
    let notify = "require('child_process').execFileSync('python3', ['-c', `import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'].replace('@', chr(0), 1))`])";
    for (how, say) in [("--wait-ready", "process.send('ready')"), ("--ready=notify", notify)] {
        let (directory, path) = script(&format!(
            "{SERVER} const timer = setInterval(() => {{
                if (!require('fs').existsSync(__dirname + '/go')) return;
                clearInterval(timer);
                {say};
            }}, 20);"
        ));
        let mut app = run(["-w", "1", how, "--set", "min_ready_time=0", &path]);
        app.listening(1);
        let shown = show(&app);
        assert_eq!(shown["workers"][0]["ready"], false, "{how}");
        assert!(
            app.troop(["ls"]).1.contains("starting") && app.troop(["show"]).1.contains("starting")
        );
        std::fs::write(directory.path().join("go"), "").unwrap();
        wait_until("readiness", || show(&app)["workers"][0]["ready"] == true);
        assert!(app.troop(["ls"]).1.contains("running"));
    }
}

#[test]
fn workers_are_recycled_for_memory_age_and_failed_health_checks() {
    let sick = "let n = 0; require('http').createServer((q, s) => { s.statusCode = q.url === '/health' ? 500 : 200; s.end() }).listen(0, '127.0.0.1')";
    for (args, text, word) in [
        (&["--max-memory", "20M"][..], SERVER, "MiB"),
        (&["--max-age", "500ms"], SERVER, "old"),
        (
            &["--health", "/health", "--set", "health.every=20ms", "--set", "health.failures=2"],
            sick,
            "answered 500",
        ),
    ] {
        let (_directory, path) = script(text);
        let mut app = run(args.iter().copied().chain(["-w", "1", &path]));
        app.listening(1);
        let recycling = app.event("recycling");
        assert!(recycling["reason"].as_str().unwrap().contains(word), "{recycling}");
        app.event("replaced");
    }
}

#[test]
fn restarts_follow_the_configured_policy() {
    for (args, text, forks, code) in [
        (&["--no-autorestart"][..], "process.exit(0)", 1, 0),
        (&["--restart", "never"], "process.exit(7)", 1, 7),
        (&["--restart", "on-failure"], "process.exit(0)", 1, 0),
        (&["--set", "restart.final_codes=[7]"], "process.exit(7)", 1, 0),
        (&["--set", "restart.max=3", "--set", "restart.delay=1ms"], "process.exit(7)", 3, 1),
    ] {
        let (_directory, path) = script(text);
        let mut app = run(args.iter().copied().chain(["-w", "1", &path]));
        let (ended, log) = app.end();
        assert_eq!((ended, app.workers().len()), (Some(code), forks), "{args:?} {log}");
    }
}

#[test]
fn an_app_that_was_ready_once_keeps_restarting_or_ends_if_configured() {
    let (directory, path) = script(&format!(
        "if (require('fs').existsSync(__dirname + '/bad')) process.exit(5); {SERVER}"
    ));
    let bad = directory.path().join("bad");
    let with = |more: &[&str]| {
        let set = ["restart.max=2", "restart.delay=1ms", "restart.max_delay=100ms"];
        let set = set.into_iter().chain(more.iter().copied()).flat_map(|set| ["--set", set]);
        run(["-w", "1"].into_iter().chain(set).chain([path.as_str()]))
    };
    let mut app = with(&[]);
    let port = app.listening(1);
    std::fs::write(&bad, "").unwrap();
    let kill =
        |pid: u32| kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    kill(app.workers()[0]);
    assert_eq!(app.event("degraded")["ready"], 0);
    (0..6).for_each(|_| drop(app.event("restarting")));
    std::fs::remove_file(&bad).unwrap();
    assert_eq!(app.event("recovered")["workers"], 1);
    assert_eq!(get(port), app.workers().last().unwrap().to_string());
    let mut app = with(&["restart.when_failed=end", "restart.window=500ms"]);
    app.listening(1);
    std::fs::write(&bad, "").unwrap();
    kill(app.workers()[0]);
    assert_eq!(app.event("giving-up")["been_ready"], true);
    assert_eq!(app.end().0, Some(1));
}

#[test]
fn a_start_whose_workers_never_listen_fails_when_the_time_is_over() {
    let (_directory, path) = script("setInterval(() => {}, 1000); console.error('no port for me')");
    let set = ["restart.window=1", "ready_timeout=1"].into_iter().flat_map(|set| ["--set", set]);
    let mut app =
        run(["-w", "2", "--ready", "listening"].into_iter().chain(set).chain([path.as_str()]));
    assert_eq!(app.event("giving-up")["been_ready"], false);
    let (code, log) = app.end();
    assert!(code == Some(1) && log.contains("no worker became ready within 1s"), "{log}");
}

#[test]
fn changed_files_cause_a_reload_and_the_port_stays_open() {
    let (directory, path) = script(
        "require('http').createServer((q, s) => s.end(text)).listen(0, '127.0.0.1'); const text = require('./text.js');",
    );
    let text = directory.path().join("text.js");
    std::fs::write(&text, "module.exports = 'first'").unwrap();
    std::fs::create_dir(directory.path().join("node_modules")).unwrap();
    let mut app = in_directory(
        directory.path(),
        &[
            "run",
            "--log",
            "json",
            "-w",
            "1",
            "--watch",
            "--set",
            "min_ready_time=0",
            "--set",
            "watch.delay=50ms",
            &path,
        ],
    );
    let port = app.listening(1);
    assert_eq!(get(port), "first");
    std::fs::write(directory.path().join("node_modules/x.js"), "").unwrap();
    std::fs::write(directory.path().join("app.log"), "").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    std::fs::write(&text, "module.exports = 'second'").unwrap();
    app.event("reload-finished");
    assert_eq!(get(port), "second");
    let reloads = app.seen.iter().filter(|line| line.contains("has changed")).collect::<Vec<_>>();
    assert!(reloads.len() == 1 && reloads[0].contains("text.js"), "{reloads:?}");
    // One that does not work changes nothing.
    std::fs::write(&text, "module.exports = ").unwrap();
    app.event("reload-failed");
    std::fs::write(&text, "module.exports = 'third'").unwrap();
    app.event("reload-finished");
    assert_eq!(get(port), "third");
}

#[test]
fn hup_reads_the_file_again() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("app.js"), SERVER).unwrap();
    let file = |greeting: &str| {
        format!(
            "[app.web]\nprogram = \"app.js\"\nworkers = 1\nlog = \"json\"\nmin_ready_time = 0\nenv = {{ GREETING = \"{greeting}\" }}\n"
        )
    };
    std::fs::write(directory.path().join("troop.toml"), file("hi")).unwrap();
    let mut app = in_directory(directory.path(), &["run"]);
    let port = app.listening(1);
    assert_eq!(get(port), "hi");
    std::fs::write(directory.path().join("troop.toml"), file("ho")).unwrap();
    app.signal(Signal::HUP);
    app.event("reload-finished");
    assert_eq!(get(port), "ho");
    std::fs::write(directory.path().join("troop.toml"), "nonsense").unwrap();
    app.signal(Signal::HUP);
    wait_until("the complaint", || {
        app.event_line()
            .is_some_and(|line| line.contains("not reloaded") && line.contains("troop.toml"))
    });
    assert_eq!(get(port), "ho");
}

#[test]
fn winch_ends_the_workers_and_keeps_the_port() {
    let (_directory, path) = script(SERVER);
    let mut app = run(["-w", "2", "--set", "min_ready_time=0", &path]);
    let port = app.listening(2);
    app.signal(Signal::WINCH);
    app.event("pausing");
    app.event("exit");
    app.event("exit");
    assert!(app.troop(["ls"]).1.contains("paused"));
    let client = std::thread::spawn(move || get(port));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!client.is_finished());
    app.signal(Signal::HUP);
    assert!(!client.join().unwrap().is_empty());
}

#[test]
fn a_program_runs_alone_without_workers() {
    let (_directory, path) = script(
        "console.log(process.pid, !!process.send, require('cluster').isPrimary, process.argv[2], process.env.A)",
    );
    let output = Command::new(env!("CARGO_BIN_EXE_troop"))
        .args(["run", "-w", "0", "--env", "A=b", &path, "--verbose"])
        .stdin(Stdio::null())
        .spawn()
        .map(|child| (child.id(), child));
    let (_, mut child) = output.unwrap();
    assert!(child.wait().unwrap().success());
    let output = Command::new(env!("CARGO_BIN_EXE_troop"))
        .args(["run", "-w", "0", "--env", "A=b", &path, "--verbose"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.trim_end().ends_with(" false true --verbose b"), "{text}");
    let error = Command::new(env!("CARGO_BIN_EXE_troop"))
        .args(["run", "-w", "0", "-b", "0", &path])
        .output()
        .unwrap();
    assert!(
        error.status.code() == Some(2) && String::from_utf8_lossy(&error.stderr).contains("alone")
    );
}

#[test]
fn processes_that_a_worker_started_end_with_it() {
    let (directory, path) = script(&format!(
        "const child = require('child_process').spawn('sleep', ['1000'], {{ stdio: 'ignore' }});
         require('fs').writeFileSync(__dirname + '/pid', String(child.pid)); {SERVER}"
    ));
    let mut app = run(["-w", "1", &path]);
    app.listening(1);
    let pid: u32 = std::fs::read_to_string(directory.path().join("pid")).unwrap().parse().unwrap();
    assert!(is_running(pid));
    app.signal(Signal::TERM);
    assert_eq!(app.end().0, Some(0));
    // Before the primary itself has ended.
    assert!(!is_running(pid));
}

#[test]
fn sockets_that_systemd_has_opened_are_used() {
    // As systemd starts a program: descriptors from 3 on, and its own number in LISTEN_PID.
    let reporter = "
import os, socket, sys
sockets = []
for name in ('web', 'other'):
    s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(100); sockets.append(s)
print(*[s.getsockname()[1] for s in sockets], file=sys.stderr, flush=True)
for at, s in enumerate(sockets):
    os.dup2(s.fileno(), 30 + at)
for at in range(len(sockets)):
    os.dup2(30 + at, 3 + at); os.set_inheritable(3 + at, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='web:other')
args = [a.replace('PORT', str(sockets[0].getsockname()[1])) for a in sys.argv[1:]]
os.execv(args[0], args)
";
    let under_systemd = |args: &[&str]| {
        let mut command = Command::new("python3");
        command
            .args(["-c", reporter, env!("CARGO_BIN_EXE_troop"), "run", "--log", "json", "-w", "2"])
            .args(args);
        let mut app = start(command);
        let ports: Vec<u16> =
            app.event_line().unwrap().split(' ').map(|port| port.parse().unwrap()).collect();
        (app, ports)
    };
    // A Node program that listens on the same address gets the socket.
    let (_directory, path) = script(
        "require('http').createServer((q, s) => s.end('node')).listen(Number(process.argv[2]), '127.0.0.1')",
    );
    let (mut app, ports) = under_systemd(&[&path, "PORT"]);
    assert_eq!((app.listening(2), get(ports[0])), (ports[0], "node".into()));
    // The same after a restart, which leaves them to the next primary.
    let (code, _, err) = app.troop(["restart"]);
    assert_eq!((code, get(ports[0])), (0, "node".into()), "{err}");
    // A program that takes sockets gets one by its name.
    let (_directory, path) = script(
        "require('http').createServer((q, s) => s.end(process.env.LISTEN_FDNAMES)).listen({ fd: 3 })",
    );
    for (bind, names) in [("systemd:other", "other"), ("api=systemd:other", "api")] {
        let (mut app, ports) = under_systemd(&["-b", bind, &path]);
        app.event("online");
        assert_eq!(get(ports[1]), names);
    }
    let (mut app, _) = under_systemd(&["-b", "systemd:none", &path]);
    let (code, log) = app.end();
    assert!(code == Some(1) && log.contains("there are web, other"), "{log}");
}

#[test]
fn a_control_directory_that_was_removed_is_created_again() {
    let home = Home::with(&[("server.js", "require('http').createServer().listen(0)")]);
    home.fine(&["start", "server.js", "-w", "1"]);
    let run = home.path().join("run");
    for is_whole in [true, false] {
        if is_whole {
            std::fs::remove_dir_all(&run).unwrap();
        } else {
            std::fs::remove_file(run.join("server.sock")).unwrap();
        }
        wait_until("the socket", || run.join("server.sock").exists());
        assert_eq!(home.show("server")["phase"], "running");
    }
    home.fine(&["stop", "server"]);
    assert!(!run.join("server.sock").exists() && !run.join("server.lock").exists());
}

#[test]
fn a_restart_tries_the_program_on_disk_before_it_ends_anything() {
    let home = Home::with(&[("server.js", "require('http').createServer().listen(0)")]);
    let own = home.path().join("troop");
    std::fs::copy(env!("CARGO_BIN_EXE_troop"), &own).unwrap();
    let start = home.command(&["start", "server.js", "-w", "1"]);
    let mut command = std::process::Command::new(&own);
    command.args(start.get_args()).current_dir(home.path());
    for (name, value) in start.get_envs() {
        command.env(name, value.unwrap());
    }
    assert!(command.status().unwrap().success());
    let pid = home.show("server")["workers"][0]["pid"].clone();
    std::fs::remove_file(&own).unwrap();
    std::fs::write(&own, "#!/bin/sh\necho it is broken >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (code, _, err) = home.troop(&["restart", "server"]);
    assert!(code == 1 && err.contains("it is broken") && err.contains("goes on"), "{code} {err}");
    assert_eq!(home.show("server")["workers"][0]["pid"], pid);
    std::fs::remove_file(&own).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_troop"), &own).unwrap();
    home.fine(&["restart", "server"]);
    assert_ne!(home.show("server")["workers"][0]["pid"], pid);
}

//! Verbs and options that are there because PM2 has them, and what is said of the others.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::Home;
use troop_testkit::wait_until;

const SERVER: &str = "
require('http').createServer(() => {}).listen(0, '127.0.0.1');
console.log('greeting ' + process.env.GREETING);
process.on('SIGUSR2', () => console.log('signalled'));
";

#[test]
fn verbs_of_pm2_do_what_they_do_there() {
    let home = Home::with(&[("server.js", SERVER)]);
    let mut command = home.command(&["start", "server.js", "-n", "web", "-i", "2"]);
    let env = [("API_TOKEN", "secret-1"), ("DB", "db://me:secret-2@host"), ("PLAIN", "plain")];
    assert!(command.envs(env).status().unwrap().success());
    home.fine(&["start", "server.js", "-n", "jobs"]);
    home.fine(&["stop", "jobs"]);
    let list: Vec<Value> = serde_json::from_str(&home.fine(&["jlist"])).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Value>>(&home.fine(&["prettylist"])).unwrap().len(), 3);
    let of = |entry: &Value| {
        (entry["name"].clone(), entry["pm_id"].clone(), entry["pm2_env"]["status"].clone())
    };
    let entry = |name: &str, id: u32, status: &str| (name.into(), id.into(), status.into());
    assert_eq!(
        list.iter().map(of).collect::<Vec<_>>(),
        [entry("web", 0, "online"), entry("web", 0, "online"), entry("jobs", 1, "stopped")]
    );
    assert!(list[0]["monit"]["memory"].as_u64().unwrap() > 1 << 20);
    let mut pids: Vec<_> = home.fine(&["pid", "web"]).lines().map(str::to_owned).collect();
    let mut listed: Vec<_> = list[..2].iter().map(|entry| entry["pid"].to_string()).collect();
    pids.sort();
    listed.sort();
    assert_eq!(pids, listed);
    let shown = home.fine(&["env", "web"]);
    for line in ["API_TOKEN: ***", "DB: db://me:***@host", "PLAIN: plain"] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    assert!(!shown.contains("secret-"), "{shown}");
    assert_eq!(home.fine(&["ping"]), "pong\n");
    assert!(home.fine(&["-v"]).starts_with("troop "));
    for verb in ["ps", "l", "list"] {
        assert!(home.fine(&[verb]).contains("jobs"), "{verb}");
    }
    home.fine(&["sendSignal", "SIGUSR2", "web"]);
    wait_until("the signal", || home.log("web.log").matches("signalled").count() == 2);
    assert!(home.fine(&["flush", "web"]).contains("web.log"));
    assert_eq!(home.log("web.log"), "");
    home.fine(&["signal", "web", "USR2"]);
    wait_until("more lines", || home.log("web.log").contains("signalled"));
    assert!(!home.log("web.log").contains('\0'), "it goes on at the new end");
    // A restart that is not counted any more.
    kill_process(Pid::from_raw(pids[0].parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    wait_until("a restart", || home.show("web")["restarts"] == 1);
    home.fine(&["reset", "web"]);
    assert_eq!(home.show("web")["restarts"], 0);
    let mut child = home
        .command(&["attach", "web"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("following the output of web"), "{said}");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    wait_until("a line", || {
        home.fine(&["signal", "web", "USR2"]);
        lines.next().unwrap().unwrap().contains("signalled")
    });
    child.kill().unwrap();
    child.wait().unwrap();
    home.fine(&["kill"]);
    assert_eq!(home.troop(&["show", "web"]).0, 3);
    home.fine(&["kill"]);
}

#[test]
fn verbs_that_there_are_not_are_answered_and_nothing_misleading_is_suggested() {
    let home = Home::with(&[]);
    for (verb, part) in [
        ("update", "troop restart APP"),
        ("install", "there are no modules"),
        ("link", "troop events --json"),
        ("deploy", "troop reload FILE"),
        ("report", "troop logs APP --nostream"),
        ("inspect", "--inspect"),
        ("relaod", "did you mean reload?"),
        ("frobnicate", "`troop --help` lists the verbs"),
    ] {
        let (code, out, err) = home.troop(&[verb, "x"]);
        assert!(code == 2 && out.is_empty() && err.contains(part), "{verb}: {err}");
        assert_eq!(err.lines().count(), 1, "{verb}: {err}");
        for misleading in ["init", "scale", "similar"] {
            assert!(!err.contains(misleading), "{verb}: {err}");
        }
    }
    let (code, _, err) = home.troop(&["start", "a.js", "--pricy"]);
    assert!(code == 2 && !err.contains("--policy"), "{err}");
}

#[test]
fn options_of_pm2_have_their_effect() {
    let home = Home::with(&[("server.js", SERVER)]);
    let all = || std::fs::read_to_string(home.path().join("all.log")).unwrap_or_default();
    home.fine(&[
        "start",
        "server.js",
        "-n",
        "web",
        "-f",
        "--no-vizion",
        "--merge-logs",
        "--no-treekill",
        "-l",
        "all.log",
        "--log-date-format",
        "YYYY-MM-DD",
    ]);
    assert!(all().contains("greeting"), "{}", all());
    home.fine(&["start", "server.js", "-n", "quiet", "--disable-logs"]);
    assert!(!home.log("quiet.log").contains("greeting"));
    let (code, _, err) = home.troop(&["reload", "web:1", "--update-env"]);
    assert!(code == 2 && err.contains("troop reload web --update-env"), "{err}");
    let with = |args: &[&str], greeting: &str| {
        assert!(home.command(args).env("GREETING", greeting).status().unwrap().success());
        all().lines().rfind(|line| line.contains("greeting")).unwrap().to_owned()
    };
    assert!(with(&["restart", "web", "--update-env"], "one").ends_with("greeting one"));
    assert!(with(&["restart", "web"], "two").ends_with("greeting one"));
    // A reload does it without an interruption, and what follows keeps it.
    assert!(with(&["reload", "web", "--update-env"], "new").ends_with("greeting new"));
    assert!(with(&["reload", "web"], "two").ends_with("greeting new"));
    let mut without = home.command(&["reload", "web", "--update-env"]);
    assert!(without.env_remove("GREETING").status().unwrap().success());
    let log = all();
    let last = log.lines().rfind(|line| line.contains("greeting")).unwrap();
    assert!(last.ends_with("greeting undefined"), "{last}");
    assert!(with(&["reload", "web", "--update-env"], "newer").ends_with("greeting newer"));
    assert!(with(&["restart", "web"], "two").ends_with("greeting newer"));
    home.fine(&["stop", "web"]);
    assert!(with(&["start", "web"], "three").ends_with("greeting newer"));
    home.fine(&["stop", "web"]);
    assert!(with(&["start", "web", "--update-env"], "four").ends_with("greeting four"));
}

#[test]
fn workers_are_replaced_or_a_job_is_run_at_certain_times() {
    let home = Home::with(&[("server.js", SERVER), ("job.js", "console.log('ran')")]);
    let (code, _, err) = home.troop(&["start", "server.js", "--cron-restart", "often"]);
    assert!(code == 2 && err.contains("cron"), "{err}");
    home.fine(&[
        "start",
        "server.js",
        "-n",
        "web",
        "--cron-restart",
        "* * * * * *",
        "--set",
        "min_ready_time=0",
    ]);
    wait_until("another generation", || {
        home.show("web")["workers"][0]["generation"].as_u64() > Some(1)
    });
    home.fine(&["start", "job.js", "--no-autorestart", "--cron", "* * * * * *"]);
    wait_until("two runs", || home.log("job.log").matches("ran").count() > 1);
    // None, as in PM2.
    home.fine(&["start", "server.js", "-n", "plain", "--cron-restart", "0"]);
}

#[test]
fn run_takes_what_start_takes() {
    let home = Home::with(&[("tell.sh", "#!/bin/sh\necho \"$# $*\"\n")]);
    let run = |args: &[&str]| {
        home.fine(&[&["run", "--restart", "never", "--ready", "auto"], args].concat())
    };
    for (args, said) in [
        (&["sh", "tell.sh", "--port", "1"][..], "2 --port 1\n"),
        (&["sh", "--", "tell.sh", "--port", "1"], "2 --port 1\n"),
        (&["sh tell.sh -x", "--", "y z"], "2 -x y z\n"),
        (&["A=1 && sh tell.sh $A", "b"], "2 1 b\n"),
    ] {
        assert_eq!(run(args), said, "{args:?}");
    }
}

#[test]
fn an_app_is_started_in_the_foreground_or_followed() {
    let home = Home::with(&[("server.js", SERVER)]);
    let mut command = home.command(&["start", "server.js", "-n", "web", "--no-daemon"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the app runs", || home.troop(&["show", "web"]).0 == 0);
    assert_eq!(home.show("web")["pid"], child.id());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let mut command = home.command(&["start", "server.js", "--attach"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("server: 1 worker ready"));
    home.fine(&["signal", "server", "USR2"]);
    assert!(lines.map_while(Result::ok).any(|line| line.contains("signalled")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(home.show("server")["phase"], "running");
}

/// Sends a request; returns the answer.
fn ask(address: &str, request: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "{request}\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_directory_is_served_and_nothing_outside_it() {
    let home = Home::with(&[("secret.txt", "secret")]);
    let at = |name: &str| home.path().join("dist").join(name);
    std::fs::create_dir_all(at("sub dir")).unwrap();
    std::fs::create_dir_all(at(".git")).unwrap();
    let large = "x".repeat(300_000);
    for (name, text) in [
        ("index.html", "start"),
        ("sub dir/index.html", "below"),
        ("a.css", &*large),
        (".git/config", "hidden"),
        (".env", "hidden"),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    std::os::unix::fs::symlink("../secret.txt", at("leak.txt")).unwrap();
    std::os::unix::fs::symlink(home.path(), at("up")).unwrap();
    std::os::unix::fs::symlink("a.css", at("b.css")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::from_raw_mode(0o666))
        .unwrap();
    let opened = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::NONBLOCK).unwrap();
    let watched = rustix::fs::inotify::WatchFlags::OPEN;
    rustix::fs::inotify::add_watch(&opened, at("pipe"), watched).unwrap();
    let out = home.fine(&["serve", "dist", "127.0.0.1:0", "-n", "docs"]);
    assert!(out.starts_with("docs: 1 worker ready on 127.0.0.1:"), "{out}");
    let address = home.show("docs")["listeners"][0]["address"].as_str().unwrap().to_owned();
    let get = |path: &str| ask(&address, &format!("GET {path} HTTP/1.1"));
    let is = |path: &str, status: u32, body: &str| {
        let answer = get(path);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.ends_with(body),
            "{path}: {answer:.300}"
        );
        answer
    };
    let page = is("/", 200, "\r\n\r\nstart");
    assert!(page.contains("content-type: text/html; charset=utf-8"), "{page}");
    is("/sub%20dir/", 200, "below");
    assert!(is("/sub%20dir", 301, "").contains("location: /sub%20dir/\r\n"));
    assert!(is("/a.css?v=1", 200, &large).contains("content-length: 300000"));
    is("/b.css", 200, &large);
    for path in [
        "/none",
        "/.git/config",
        "/.env",
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/leak.txt",
        "/up/secret.txt",
        "/pipe",
        "/sub%20dir/..%2f..%2fsecret.txt",
        "/a.css/",
        "//etc/passwd",
    ] {
        let answer = get(path);
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer:.300}");
        assert!(!answer.contains("secret") && !answer.contains("hidden"), "{path}: {answer}");
    }
    // A process that waits to write to it goes on waiting.
    let event = rustix::io::read(&opened, &mut [0; 64]);
    assert_eq!(event.err(), Some(rustix::io::Errno::AGAIN), "the pipe was opened");
    let tag = page.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let known = ask(&address, &format!("GET / HTTP/1.1\r\nIf-None-Match: {tag}"));
    assert!(known.starts_with("HTTP/1.1 304") && known.ends_with("\r\n\r\n"), "{known}");
    let head = ask(&address, "HEAD / HTTP/1.1");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    let length = |answer: &str| {
        let line = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
        line.map(str::to_owned)
    };
    assert!(length(&head).is_some() && length(&head) == length(&page), "{head}");
    let known = ask(&address, "GET / HTTP/1.1\r\nIf-None-Match: *");
    assert!(known.starts_with("HTTP/1.1 304"), "{known}");
    assert!(ask(&address, "POST / HTTP/1.1").starts_with("HTTP/1.1 405"));
    home.fine(&["delete", "docs"]);
    home.fine(&["serve", "dist", "127.0.0.1:0", "--spa", "-n", "page"]);
    let address = home.show("page")["listeners"][0]["address"].as_str().unwrap().to_owned();
    let answer = ask(&address, "GET /users/7 HTTP/1.1");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("start"), "{answer}");
    assert_eq!(home.troop(&["serve", "none"]).0, 2);
}

#[test]
fn a_file_that_cannot_be_opened_for_lack_of_descriptors_is_not_said_to_be_missing() {
    use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
    let home = Home::with(&[]);
    std::fs::create_dir(home.path().join("dist")).unwrap();
    std::fs::write(home.path().join("dist/index.html"), "start").unwrap();
    for (options, name) in [(&[][..], "docs"), (&["--spa"], "page")] {
        let mut args = vec!["serve", "dist", "127.0.0.1:0", "-n", name];
        args.extend(options);
        home.fine(&args);
        let shown = home.show(name);
        let pid = shown["workers"][0]["pid"].as_u64().unwrap();
        let mut stream = TcpStream::connect(shown["listeners"][0]["address"].as_str().unwrap());
        let stream = stream.as_mut().unwrap();
        let mut ask = || {
            stream.write_all(b"GET /index.html HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let mut answer = String::new();
            while !answer.ends_with("start") && !answer.ends_with("unavailable\n") {
                let mut part = [0; 1024];
                let len = stream.read(&mut part).unwrap();
                assert!(len > 0, "{answer}");
                answer.push_str(&String::from_utf8_lossy(&part[..len]));
            }
            answer
        };
        assert!(ask().starts_with("HTTP/1.1 200"));
        let all = getrlimit(Resource::Nofile);
        let limit = |current: Option<u64>| {
            let pid = Pid::from_raw(pid.try_into().unwrap());
            prlimit(pid, Resource::Nofile, Rlimit { current, ..all }).unwrap();
        };
        limit(Some(3));
        let answer = ask();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no-cache"), "{answer}");
        limit(all.current);
        assert!(ask().starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn a_restart_takes_an_environment_of_any_size() {
    let home = Home::with(&[("server.js", SERVER)]);
    home.fine(&["start", "server.js", "-n", "web"]);
    let mut command = home.command(&["restart", "web", "--update-env"]);
    let large = "x".repeat(120_000);
    command.env("GREETING", "large").envs((0..8).map(|at| (format!("LARGE_{at}"), &large)));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_until("the new environment", || home.log("web.log").contains("greeting large"));
}

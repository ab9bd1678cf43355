//! What somebody types and writes who knows supervisord, and what probes are told of apps in a file.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use support::{Home, end_of};

/// Checks that a command line fails with this exit code, and that standard error contains all of
/// these texts. Returns that.
fn fails(home: &Home, args: &[&str], exit: i32, texts: &[&str]) -> String {
    let (code, out, err) = home.troop(args);
    assert_eq!(code, exit, "troop {args:?}: {out}{err}");
    for text in texts {
        assert!(err.contains(text), "troop {args:?} does not say {text:?}: {err}");
    }
    err
}

fn with_file(text: &str) -> Home {
    Home::with(&[("troop.toml", text)])
}

/// Programs that are ready soon.
fn sleeps(name: &str, more: &str) -> String {
    format!("[app.{name}]\nprogram = 'sleep'\nargs = ['1000']\nworkers = 1\n{more}\n")
}

#[test]
fn an_app_of_a_file_whose_start_has_failed_is_missing_for_probes_and_named() {
    let fatal = "[app.fatal]\nprogram = 'sh'\nargs = ['-c', 'exit 7']\nworkers = 1\nrestart = { max = 1 }\n";
    let home = with_file(&(sleeps("good", "") + fatal + &sleeps("by_name", "autostart = false")));
    fails(&home, &["start"], 1, &["fatal"]);
    home.fine(&["ls", "good", "--quiet"]);
    fails(&home, &["ls", "troop.toml", "--quiet"], 3, &[]);
    let missing = "fatal of troop.toml does not run";
    let told =
        fails(&home, &["wait", "troop.toml"], 3, &[missing, "`troop start troop.toml fatal`"]);
    assert!(!told.contains("by_name"), "{told}");
    let (code, out, err) = home.troop(&["ls", "troop.toml"]);
    assert!(code == 0 && out.contains("good") && err.contains(missing), "{out}{err}");
    for verb in ["show", "status", "restart", "stop", "wait"] {
        // What `status` lists is `ls`.
        fails(&home, &[verb, "fatal"], 3, &[missing, "`troop start fatal`"]);
    }
    // One that was stopped is not missed.
    std::fs::write(home.path().join("troop.toml"), sleeps("good", "") + &sleeps("other", ""))
        .unwrap();
    home.fine(&["start", "other"]);
    home.fine(&["ls", "troop.toml", "--quiet"]);
    home.fine(&["stop", "other"]);
    home.fine(&["ls", "troop.toml", "--quiet"]);
    home.fine(&["delete", "other"]);
    fails(&home, &["ls", "troop.toml", "--quiet"], 3, &[]);
}

#[test]
fn log_files_that_are_troops_own_streams_are_no_files() {
    let home = with_file(
        "[app.web]\nprogram = 'sh'\nargs = ['-c', 'echo said; exec sleep 1000']\nworkers = 1\n\
         output = { to = 'files', file = '/dev/stdout', error_file = '/dev/stderr' }\n",
    );
    let (code, _, err) = home.troop(&["check"]);
    assert!(code == 0 && err.contains("with `troop run` only"), "{err}");
    let mut child = home.command(&["run"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let read = BufReader::new(child.stdout.take().unwrap()).read_line(&mut line);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    end_of(child, "troop run");
    assert!(read.is_ok() && line.ends_with("said\n"), "{line}");
    let (code, _, err) = home.troop(&["start"]);
    assert!(code == 0 && err.contains("with `troop run` only"), "{err}");
    assert!(home.fine(&["logs", "web", "--nostream"]).contains("said"));
}

#[test]
fn a_program_with_its_arguments_is_told_where_these_stand() {
    let home = with_file("[app.web]\nprogram = \"sleep 1000 's 2'\"\n");
    let expected = "program = \"sleep\", args = [\"1000\", \"s 2\"]";
    for verb in ["check", "start", "run"] {
        fails(&home, &[verb], 2, &["there is no program", expected, "\"-c\""]);
    }
}

#[test]
fn an_app_without_a_program_is_one_error() {
    let home = with_file("[app.web]\nworkers = 1\n");
    let told = fails(&home, &["check"], 2, &["missing field `program`"]);
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn one_more_error_is_one() {
    let unknown: String = (0..21).map(|number| format!("unknown{number} = 1\n")).collect();
    let home = with_file(&format!("[app.web]\nprogram = 'sleep'\n{unknown}"));
    fails(&home, &["check"], 2, &["and 1 more error\n"]);
}

#[test]
fn a_file_of_supervisords_is_recognised() {
    let text = "[supervisord]\nnodaemon=true\n[program:web]\ncommand=sleep 1000\n";
    let home = Home::with(&[("supervisord.conf", text)]);
    let file = "supervisord.conf";
    for args in [&["check", file][..], &["init", "--from", file], &["start", "-c", file]] {
        fails(&home, args, 2, &["[program:web]", "docs/coming-from-supervisord.md"]);
    }
}

#[test]
fn expressions_of_supervisords_are_warned_of() {
    let home = with_file(&sleeps("web", "env = { A = 'x-%(process_num)02d', B = '100%' }"));
    let (code, _, err) = home.troop(&["check"]);
    assert!(code == 0 && err.contains("%(process_num)02d stays as it is"), "{err}");
    assert!(err.contains("TROOP_SLOT") && !err.contains("100%"), "{err}");
}

#[test]
fn verbs_of_supervisorctl_are_answered() {
    let home = Home::with(&[]);
    for (verb, instead) in [
        ("reread", "troop check"),
        ("avail", "troop ls"),
        ("update", "troop reload all"),
        ("shutdown", "troop stop all"),
        ("fg", "troop attach"),
        ("maintail", "troop logs"),
        ("clear", "troop flush"),
        ("add", "troop start"),
        ("remove", "troop delete"),
        ("version", "troop --version"),
    ] {
        let told = fails(&home, &[verb, "web"], 2, &["there is no verb", instead]);
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

#[test]
fn a_namespace_is_started_and_a_group_is_told_to_be_one() {
    let home = with_file(
        &(sleeps("web", "namespace = 'shop'")
            + &sleeps("jobs", "namespace = 'shop'")
            + &sleeps("other", "")),
    );
    fails(&home, &["start", "all"], 3, &["`troop start` starts those of troop.toml"]);
    let told = home.fine(&["start", "shop"]);
    assert!(told.contains("web:") && told.contains("jobs:") && !told.contains("other:"), "{told}");
    for verb in ["stop", "restart", "show", "reload"] {
        let (code, out, err) = home.troop(&[verb, "shop:*"]);
        assert!([2, 3].contains(&code) && err.contains("namespace"), "{verb}: {out}{err}");
    }
    home.fine(&["stop", "shop"]);
    home.fine(&["start", "shop"]);
    home.fine(&["ls", "shop", "--quiet"]);
}

#[test]
fn the_start_of_an_app_that_its_file_has_no_more_says_so() {
    for (started, code, text) in [
        (&["start", "web"][..], 1, "troop.toml has the app other"),
        (&["start"], 2, "has no app \"web\", but other"),
        (&["start", "-c", "troop.toml"], 2, "has no app \"web\", but other"),
    ] {
        let home = with_file(&(sleeps("web", "") + &sleeps("other", "")));
        home.fine(started);
        home.fine(&["stop", "web"]);
        std::fs::write(home.path().join("troop.toml"), sleeps("other", "")).unwrap();
        let told = fails(&home, &["start", "web"], code, &["web", text]);
        assert!(!told.contains("exit status"), "{told}");
    }
}

/// Only root can start workers of another user.
#[test]
fn a_check_looks_for_the_program_that_the_workers_user_executes() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let script = "#!/bin/sh\nexec sleep 1000\n";
    let home = Home::with(&[]);
    let at = |name: &str| home.path().join(name);
    let mode = |name: &str, mode| {
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for name in ["closed", "open"] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("tool"), script).unwrap();
        mode(&format!("{name}/tool"), 0o755);
    }
    mode("", 0o755);
    mode("closed", 0o700);
    let path = format!("{}:{}:/usr/bin:/bin", at("closed").display(), at("open").display());
    let app = |path: &str| {
        format!(
            "[app.web]\nprogram = 'tool'\nuser = 'nobody'\nworkers = 1\nenv = {{ PATH = '{path}' }}\n"
        )
    };
    let troop = |verb: &str| {
        // It is searched for as the shell of this process would, too.
        let output = home.command(&[verb]).env("PATH", &path).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    std::fs::write(at("troop.toml"), app(&path)).unwrap();
    for verb in ["check", "start"] {
        let (code, err) = troop(verb);
        assert!(code == Some(0) && !err.contains("cannot execute"), "{verb}: {err}");
    }
    mode("open", 0o700);
    let (code, err) = troop("check");
    assert!(code == Some(2) && err.contains("cannot execute"), "{err}");
}

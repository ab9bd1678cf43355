//! Attacks by files: links, pipes and names that others put where root reads or writes.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, OFlags, mkfifoat};
use troop_testkit::wait_until;

use super::home::Home;
use super::support::{STRANGER, is_root};

/// An app of the stranger's in `app`, whose log is `logs/web.log` there, and is put aside at one
/// kilobyte. So many are kept that no line is gone before a test has looked.
fn app(script: &str) -> String {
    format!(
        r#"[app.web]
program = "sh"
args = ["-c", '''{script}''']
cwd = "app"
user = "{STRANGER}"
group = "{STRANGER}"
workers = 1
output = {{ to = "files", file = "logs/web.log", rotate_size = "1K", keep = 99 }}
"#
    )
}

/// Prints for ever.
const PRINT: &str = "while :; do echo '* * * * * root evil'; sleep 0.02; done";

/// The process of the primary.
fn primary(home: &Home) -> rustix::process::Pid {
    let shown: serde_json::Value =
        serde_json::from_str(&home.fine(&["show", "web", "--json"])).unwrap();
    rustix::process::Pid::from_raw(i32::try_from(shown[0]["pid"].as_u64().unwrap()).unwrap())
        .unwrap()
}

/// The primary is asked to reopen its files, and reports this, once, in the log that it had before.
fn says_when_it_opens_its_files(home: &Home, text: &str) {
    rustix::process::kill_process(primary(home), rustix::process::Signal::USR1).unwrap();
    wait_until(text, || {
        home.names("app/moved")
            .iter()
            .any(|name| home.text(&format!("app/moved/{name}")).contains(text))
    });
}

/// A directory of root's, which must stay empty.
fn target(home: &Home) {
    fs::create_dir(home.at("target")).unwrap();
    home.mode("target", 0o700);
}

#[test]
fn a_worker_that_exchanges_the_log_directory_for_a_link_moves_no_line() {
    if !is_root("a_worker_that_exchanges_the_log_directory_for_a_link_moves_no_line") {
        return;
    }
    let home = Home::with(&[(
        "troop.toml",
        &app(&format!("sleep 0.2; mv logs moved && ln -s ../target logs; {PRINT}")),
    )]);
    target(&home);
    home.fine(&["start", "web"]);
    wait_until("lines in the directory that was checked", || {
        home.text("app/moved/web.log.2").contains("evil")
    });
    // Told to open its files anew, it goes by the path, which is not safe any more.
    says_when_it_opens_its_files(&home, "a symbolic link");
    // Long enough for several looks at the path and rotations.
    let before = fs::metadata(home.at("app/moved/web.log.2")).unwrap().ino();
    wait_until("another rotation", || {
        fs::metadata(home.at("app/moved/web.log.2")).is_ok_and(|found| found.ino() != before)
    });
    assert_eq!(home.names("target"), Vec::<String>::new());
    // `troop logs` does not follow the link either.
    let ended = home.troop(&["logs", "web"]);
    assert!(ended.code == Some(1) && ended.err.contains("symbolic link"), "{ended:?}");
}

#[test]
fn a_worker_that_exchanges_the_log_directory_over_and_over_moves_no_line_whatever_is_done_meanwhile()
 {
    if !is_root("a_worker_that_exchanges_the_log_directory_over_and_over_moves_no_line") {
        return;
    }
    let exchange = "while mv -T logs moved && mv -T link logs && mv -T logs link && mv -T moved logs; do :; done";
    let home = Home::with(&[(
        "troop.toml",
        &app(&format!("sleep 0.2; ln -s ../target link; ({exchange}) & {PRINT}")),
    )]);
    target(&home);
    home.fine(&["start", "web"]);
    let primary = primary(&home);
    wait_until("many rotations", || {
        // It opens its files anew all the time, wherever the path leads at that moment.
        rustix::process::kill_process(primary, rustix::process::Signal::USR1).unwrap();
        ["logs", "moved"].iter().any(|at| home.names(&format!("app/{at}")).len() > 3)
    });
    assert_eq!(home.names("target"), Vec::<String>::new());
    assert!(home.fine(&["ls"]).contains("running"));
}

#[test]
fn a_worker_that_makes_a_log_directory_of_its_own_gets_no_file_of_roots_in_it() {
    if !is_root("a_worker_that_makes_a_log_directory_of_its_own_gets_no_file_of_roots_in_it") {
        return;
    }
    let script = format!(
        "sleep 0.2; mv logs moved && mkdir logs && ln ../secret logs/web.log; ln -s /etc logs/x; {PRINT}"
    );
    let home = Home::with(&[("troop.toml", &app(&script)), ("secret", "")]);
    home.fine(&["start", "web"]);
    wait_until("lines in the directory that was checked", || {
        home.text("app/moved/web.log.2").contains("evil")
    });
    says_when_it_opens_its_files(&home, "it belongs to user");
    assert_eq!(
        (home.text("secret").as_str(), home.names("app/logs").contains(&"web.log.1".into())),
        ("", false)
    );
}

#[test]
fn a_start_with_a_link_pipe_or_hard_link_as_log_is_rejected_and_creates_nothing() {
    if !is_root("a_start_with_a_link_pipe_or_hard_link_as_log_is_rejected_and_creates_nothing") {
        return;
    }
    let home = Home::with(&[("troop.toml", &app(PRINT)), ("secret", "")]);
    target(&home);
    symlink("../target", home.at("app/logs")).unwrap();
    let err = home.refused(&["start", "web"]);
    assert!(err.contains("a symbolic link in a directory that others can change"), "{err}");
    let err = home.refused(&["run", "web"]);
    assert!(err.contains("symbolic link"), "{err}");
    // As root's own workers, too: it is somebody else's directory.
    let mine =
        |file: &str| home.refused(&["run", "-n", "mine", "-o", file, "sh", "--", "-c", PRINT]);
    assert!(mine("app/logs/web.log").contains("symbolic link"));
    fs::remove_file(home.at("app/logs")).unwrap();
    fs::create_dir(home.at("app/logs")).unwrap();
    home.give("app/logs");
    let err = home.refused(&["start", "web"]);
    assert!(err.contains("belongs to user 64017"), "{err}");
    fs::hard_link(home.at("secret"), home.at("app/logs/hard")).unwrap();
    assert!(mine("app/logs/hard").contains("2 names"));
    mkfifoat(CWD, home.at("app/logs/pipe"), 0o666.into()).unwrap();
    let _reader =
        rustix::fs::open(home.at("app/logs/pipe"), OFlags::RDONLY | OFlags::NONBLOCK, 0.into())
            .unwrap();
    assert!(mine("app/logs/pipe").contains("a pipe"));
    symlink(home.at("target/made"), home.at("app/logs/link")).unwrap();
    assert!(mine("app/logs/link").contains("a symbolic link"));
    assert!(mine("app/logs").contains("a directory"));
    assert_eq!((home.names("target"), home.text("secret").as_str()), (vec![], ""));
    assert_eq!(home.names("app/logs"), ["hard", "link", "pipe"]);
    // Neither a socket nor a lock.
    assert_eq!((home.names("run"), home.names("logs")), (vec![], vec![]));
}

#[test]
fn a_start_that_is_rejected_for_one_log_file_does_not_create_the_other() {
    if !is_root("a_start_that_is_rejected_for_one_log_file_does_not_create_the_other") {
        return;
    }
    let home = Home::with(&[("secret", "")]);
    symlink("../secret", home.at("app/err.log")).unwrap();
    let args = ["run", "-o", "new/out.log", "-e", "app/err.log", "sh", "--", "-c", PRINT];
    assert!(home.refused(&args).contains("symbolic link"));
    // Nor where something else is wrong.
    let args =
        ["run", "-o", "new/out.log", "--set", "watch.paths=[\"missing\"]", "sh", "--", "-c", PRINT];
    assert!(home.refused(&args).contains("missing"));
    assert!(
        !home.at("new").exists() && home.names("run").is_empty() && home.text("secret").is_empty()
    );
}

#[test]
fn the_fallback_in_tmp_is_not_used_if_another_user_made_it_first() {
    if !is_root("the_fallback_in_tmp_is_not_used_if_another_user_made_it_first") {
        return;
    }
    // A user of this test's own.
    let user = STRANGER + 1;
    struct Planted(String);
    impl Drop for Planted {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
            let _ = fs::remove_file(&self.0);
        }
    }
    let planted = Planted(format!("/tmp/troop-{user}"));
    let home = Home::with(&[]);
    chown(home.at("app"), Some(user), Some(user)).unwrap();
    let start = || {
        let mut command = home.command(&[
            "run",
            "-w",
            "1",
            "--set",
            "output.to=files",
            "sh",
            "--",
            "-c",
            "sleep 1000",
        ]);
        command.current_dir(home.at("app")).env("TROOP_RUNTIME_DIR", home.at("app/run"));
        for name in ["TROOP_LOG_DIR", "XDG_STATE_HOME", "HOME"] {
            command.env_remove(name);
        }
        command.uid(user).gid(user);
        Home::ended(command)
    };
    let at = Path::new(&planted.0);
    fs::create_dir_all(at.join("logs")).unwrap();
    for path in [at.to_owned(), at.join("logs")] {
        chown(&path, Some(STRANGER), Some(STRANGER)).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let ended = start();
    assert!(
        ended.code == Some(2) && ended.err.contains(&format!("belongs to user {STRANGER}")),
        "{ended:?}"
    );
    assert_eq!(fs::read_dir(at.join("logs")).unwrap().count(), 0);
    fs::remove_dir_all(at).unwrap();
    symlink(home.at("app"), at).unwrap();
    let ended = start();
    assert!(ended.code == Some(2) && ended.err.contains("symbolic link"), "{ended:?}");
    assert!(!home.at("app/logs").exists());
}

#[test]
fn the_control_directory_is_not_reached_by_a_link_that_a_stranger_has_put_there() {
    if !is_root("the_control_directory_is_not_reached_by_a_link_that_a_stranger_has_put_there") {
        return;
    }
    let home = Home::with(&[("secret.sock", "precious")]);
    home.mode(".", 0o700);
    symlink("..", home.at("app/run")).unwrap();
    let mut command =
        home.command(&["run", "-n", "secret", "-w", "1", "--set", "restart.when=never", "true"]);
    command.env("TROOP_RUNTIME_DIR", home.at("app/run"));
    let ended = Home::ended(command);
    assert!(
        ended.err.contains("without a control socket") && ended.err.contains("symbolic link"),
        "{ended:?}"
    );
    assert_eq!(home.text("secret.sock"), "precious");
}

#[test]
fn files_that_verbs_write_do_not_go_through_links() {
    if !is_root("files_that_verbs_write_do_not_go_through_links") {
        return;
    }
    let home = Home::with(&[("troop.toml", &app(PRINT)), ("secret", "precious")]);
    target(&home);
    for (link, to) in [
        ("troop-web.service", "../secret"),
        ("troop.1", "../secret"),
        ("new.toml", "../target/made"),
    ] {
        symlink(to, home.at("app").join(link)).unwrap();
    }
    home.fine(&["startup", "--directory", "app"]);
    assert!(home.text("app/troop-web.service").contains("[Unit]"));
    home.fine(&["man", "app"]);
    assert!(home.text("app/troop.1").contains(".TH"));
    let ended = home.troop(&["init", "server.js", "-o", "app/new.toml"]);
    assert!(ended.code == Some(2) && ended.err.contains("is there already"), "{ended:?}");
    home.fine(&["init", "server.js", "-o", "app/new.toml", "--force"]);
    assert!(home.text("app/new.toml").contains("[app.server]"));
    symlink("../target", home.at("app/units")).unwrap();
    let ended = home.troop(&["startup", "--directory", "app/units"]);
    assert!(ended.code == Some(2) && ended.err.contains("symbolic link"), "{ended:?}");
    assert_eq!((home.names("target"), home.text("secret").as_str()), (vec![], "precious"));
}

#[test]
fn looking_at_logs_waits_for_no_pipe_in_their_place() {
    if !is_root("looking_at_logs_waits_for_no_pipe_in_their_place") {
        return;
    }
    let home = Home::with(&[]);
    fs::create_dir(home.at("logs")).unwrap();
    home.give("logs");
    mkfifoat(CWD, home.at("logs/web.log"), 0o666.into()).unwrap();
    let ended = home.troop(&["logs", "web"]);
    assert!(
        ended.code == Some(1)
            && ended.err.contains("a pipe")
            && ended.took < Duration::from_secs(10),
        "{ended:?}"
    );
    // Nor are names of files believed that somebody else has noted.
    fs::write(home.at("logs/other.files"), "[\"/etc/passwd\"]").unwrap();
    home.give("logs/other.files");
    let ended = home.troop(&["logs", "other"]);
    assert!(ended.code == Some(3) && !ended.out.contains("root:"), "{ended:?}");
}

/// Whether a text warns of a file by its name, owner and mode.
fn warns_of(text: &str, file: &Path, who: &str) -> bool {
    text.lines().any(|line| {
        line.contains(&format!("{} can be changed by others", file.display())) && line.contains(who)
    })
}

#[test]
fn other_writers_of_roots_files_are_named_and_their_programs_are_not_run() {
    if !is_root("other_writers_of_roots_files_are_named_and_their_programs_are_not_run") {
        return;
    }
    let toml =
        "[app.web]\nprogram = \"sleep\"\nargs = [\"1000\"]\nworkers = 1\nenv_file = [\"env\"]\n";
    let home = Home::with(&[("troop.toml", toml), ("env", "A=1\n")]);
    let ended = home.troop(&["check"]);
    assert!(
        ended.code == Some(0) && ended.err.is_empty(),
        "nothing is wrong with root's own files: {ended:?}"
    );
    home.give("troop.toml");
    home.mode("env", 0o666);
    let (file, env) = (home.at("troop.toml"), home.at("env"));
    let all = |text: &str| {
        warns_of(text, Path::new("troop.toml"), "owned by user 64017")
            || warns_of(text, &file, "owned by user 64017")
    };
    for verb in [&["check"][..], &["start"], &["startup", "--print"]] {
        let ended = home.troop(verb);
        assert!(
            ended.code == Some(0) && all(&ended.err) && warns_of(&ended.err, &env, "mode 666"),
            "{verb:?}: {ended:?}"
        );
    }
    home.fine(&["reload", "web"]);
    wait_until("the warning of a reload", || all(&home.text("logs/web.log")));
    // Reading it would run a program as root.
    let script = "require('fs').writeFileSync(__dirname + '/ran', ''); module.exports = { apps: [{ script: 'sleep', args: '9' }] };";
    let js = "app/ecosystem.config.js";
    fs::write(home.at(js), script).unwrap();
    for verb in ["check", "start", "run"] {
        let err = home.refused(&[verb, js]);
        assert!(
            err.contains("is a program, which root does not run") && err.contains("app"),
            "{err}"
        );
    }
    for (owner, mode) in [(Some(STRANGER), 0o644), (Some(0), 0o664), (Some(0), 0o646)] {
        let js = "ecosystem.config.js";
        fs::write(home.at(js), script).unwrap();
        chown(home.at(js), owner, None).unwrap();
        home.mode(js, mode);
        assert!(
            home.refused(&["check", js]).contains("is a program, which root does not run"),
            "{owner:?} {mode:o}"
        );
        fs::remove_file(home.at(js)).unwrap();
    }
    // By way of a link that somebody else can turn.
    fs::write(home.at("ecosystem.config.js"), script).unwrap();
    symlink("../ecosystem.config.js", home.at("app/link.config.js")).unwrap();
    assert!(home.refused(&["check", "app/link.config.js"]).contains("is a program"));
    assert!(!home.at("ran").exists() && !home.at("app/ran").exists());
    home.fine(&["check", "ecosystem.config.js"]);
    assert!(home.at("ran").exists(), "root's own is run");
}

#[test]
fn an_app_of_roots_is_not_upgraded_to_a_program_that_others_can_change() {
    if !is_root("an_app_of_roots_is_not_upgraded_to_a_program_that_others_can_change") {
        return;
    }
    let toml = "[app.web]\nprogram = \"sleep\"\nargs = [\"1000\"]\nworkers = 1\n";
    let home = Home::with(&[("troop.toml", toml)]);
    home.fine(&["start", "web"]);
    let engine = || {
        let shown = home.fine(&["show", "web", "--json"]);
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()[0]["engine"].clone()
    };
    let before = engine();
    let script = format!("#!/bin/sh\ntouch {}\n", home.at("ran").display());
    for (name, owner, mode) in [
        ("app/troop", 0, 0o755),
        ("its", STRANGER, 0o755),
        ("of-a-group", 0, 0o775),
        ("of-all", 0, 0o757),
        ("fine", 0, 0o755),
    ] {
        fs::write(home.at(name), &script).unwrap();
        chown(home.at(name), Some(owner), None).unwrap();
        home.mode(name, mode);
    }
    // By way of a link that somebody else can turn.
    symlink("../fine", home.at("app/link")).unwrap();
    mkfifoat(CWD, home.at("pipe"), 0o755.into()).unwrap();
    for (name, why) in [
        ("app/troop", "app can be changed by others (owned by user 64017"),
        ("its", "its can be changed by others (owned by user 64017"),
        ("of-a-group", "mode 775"),
        ("of-all", "mode 757"),
        ("app/link", "app can be changed by others"),
        ("pipe", "a pipe"),
        ("missing", "cannot execute"),
    ] {
        let ended = home.troop(&["upgrade", "web", "--path", name]);
        assert!(
            ended.code == Some(1)
                && ended.err.contains(why)
                && ended.err.contains("the app goes on"),
            "{name}: {ended:?}"
        );
    }
    assert!(!home.at("ran").exists() && engine() == before);
    fs::copy(super::support::troop_program(), home.at("own")).unwrap();
    home.fine(&["upgrade", "web", "--path", "own"]);
    assert_ne!(engine(), before);
}

#[test]
fn files_that_are_pipes_devices_endless_or_bombs_are_one_clear_error_at_once() {
    let app = |env: &str| {
        format!("[app.web]\nprogram = \"sleep\"\nargs = [\"1000\"]\nenv_file = [\"{env}\"]\n")
    };
    let home = Home::bare();
    mkfifoat(CWD, home.at("pipe"), 0o666.into()).unwrap();
    fs::write(home.at("endless"), "A=x\n".repeat(300_000)).unwrap();
    for (env, why) in [
        ("pipe", "a pipe"),
        ("/dev/zero", "a device"),
        ("/dev/tty", "a device"),
        ("endless", "bytes"),
        (".", "a directory"),
    ] {
        fs::write(home.at("troop.toml"), app(env)).unwrap();
        for verb in [&["check"][..], &["run"], &["start"]] {
            let err = home.refused(verb);
            assert!(err.contains(why) && err.contains(env), "{verb:?} {env}: {err}");
        }
    }
    let bomb: [(&str, String); 5] = [
        ("bomb.yml", "[".repeat(50_000)),
        (
            "tags.yml",
            (0..50_000).map(|n| format!("%TAG !a{n}! x\n")).collect::<String>() + "--- a\n",
        ),
        ("bomb.json", "[".repeat(50_000)),
        ("bomb.toml", format!("a = {}", "[".repeat(50_000))),
        ("Procfile", format!("web: {}", "x ".repeat(5_000_000))),
    ];
    for (name, text) in bomb {
        fs::write(home.at(name), text).unwrap();
        let err = home.refused(&["check", name]);
        assert!(err.contains(name) && err.len() < 2000, "{name}: {err:.500}");
    }
    rustix::fs::unlink(home.at("Procfile")).unwrap();
    mkfifoat(CWD, home.at("Procfile"), 0o666.into()).unwrap();
    assert!(home.refused(&["check", "Procfile"]).contains("a pipe"));
    // A program that stands for a file has to come to an end, too.
    let own = home.at("spin.config.js");
    fs::write(&own, "setTimeout(() => {}, 1e8); module.exports = new Promise(() => {});").unwrap();
    let ended = home.troop(&["check", "spin.config.js"]);
    assert!(ended.code == Some(2) && ended.err.contains("does not end within 10 s"), "{ended:?}");
    fs::write(&own, "setInterval(() => console.log('x'.repeat(1e5)), 0); module.exports = new Promise(() => {});").unwrap();
    assert!(home.refused(&["check", "spin.config.js"]).contains("too much"));
}

//! Attacks by text: escape sequences that terminals obey, and lines that look like troop's own.

use std::process::Command;

use troop::Event;
use troop::text::is_unsafe;
use troop_testkit::wait_until;

use super::home::Home;
use super::running::open_directory;
use super::scene::{ONLINE, Scene};
use super::support::{STRANGER, is_root};

/// What a terminal obeys, and a line that looks like one of troop's, as JSON.
const HOSTILE: &str = r"\u001b]0;evil\u0007\n2026-01-01T00:00:00.000Z - * forged\u009b2J\u202e";

/// Whether nothing but newlines in a text is obeyed by a terminal, and no line of it is the forged
/// one.
fn assert_harmless(text: &str) {
    assert!(!text.contains(|c| c != '\n' && is_unsafe(c)), "{text:?}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with("2026-01-01")), "{text}");
}

/// The content of a TOML list of strings, between the brackets.
fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("'''{word}'''")).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn events_of_a_hostile_worker_are_one_harmless_line_each() {
    let mut scene = Scene::new().await;
    let listening = format!(
        r#"line {{"cmd":"NODE_CLUSTER","act":"listening","seq":1,"addressType":-1,"port":-1,"address":"/{HOSTILE}"}}"#
    );
    let malformed = format!(
        r#"line {{"cmd":"NODE_CLUSTER","act":"queryServer","seq":"{HOSTILE}","addressType":"{HOSTILE}"}}"#
    );
    let worker = scene.raw(&[ONLINE, &listening, &malformed]).await;
    let id = worker.id();
    let (mut texts, mut is_listening) = (Vec::new(), false);
    let killed = |event: &Event| {
        texts.push(event.to_string());
        match event {
            Event::Listening { worker: w, address: at, .. } if w.id() == id => {
                is_listening = true;
                assert!(
                    at.address.as_ref().is_some_and(|address| address.contains('\x1b')),
                    "the value is what was said: {at:?}"
                );
                None
            }
            Event::Exit { worker: w, .. } if w.id() == id => Some(()),
            _ => None,
        }
    };
    scene.troop.until("its end", killed).await;
    assert!(is_listening);
    texts.iter().for_each(|text| assert!(!text.contains(is_unsafe), "{text:?}"));
    assert!(texts.iter().any(|text| text.contains(r"\x1b]0;evil\x07\n2026")), "{texts:?}");
    scene.honest_worker_serves().await;
}

#[test]
fn text_of_a_worker_is_escaped_in_tables_events_and_logs() {
    let home = Home::with(&[]);
    let path = home.at("sock").display().to_string();
    let query = format!(
        r#"line {{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"addressType":-1,"port":-1,"index":0,"address":"{path}{HOSTILE}"}}"#
    );
    let listening = format!(
        r#"line {{"cmd":"NODE_CLUSTER","act":"listening","seq":2,"addressType":-1,"port":-1,"address":"{path}{HOSTILE}"}}"#
    );
    let steps = ["raw", ONLINE, &query, &listening];
    let program = env!("CARGO_BIN_EXE_troop-fixture");
    std::fs::write(
        home.at("troop.toml"),
        format!("[app.web]\nprogram = \"{program}\"\nargs = [{}]\nworkers = 1\n", list(&steps)),
    )
    .unwrap();
    let out = home.fine(&["start", "web"]);
    assert!(out.contains("evil"), "{out}");
    assert_harmless(&out);
    for verb in ["ls", "show"] {
        let out = home.fine(&[verb, "web"]);
        assert!(out.contains(r"\x1b]0;evil"), "{out}");
        assert_harmless(&out);
        let json = home.fine(&[verb, "web", "--json"]);
        assert_harmless(&json);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(value[0]["listeners"][0]["address"].as_str().unwrap().contains("evil"));
    }
    wait_until("the event in the log", || home.text("logs/web.log").contains("listening on"));
    let log = home.text("logs/web.log");
    assert!(
        log.lines().all(|line| line.starts_with("20") && !line.starts_with("2026-01-01"))
            && log.contains("evil"),
        "{log}"
    );
    assert_harmless(&log);
}

#[test]
fn a_terminal_gets_only_colours_of_a_program_unless_raw_output_is_requested() {
    let home = Home::with(&[]);
    let print = r"printf '\033[31mred\n\033]0;evil\007title\nover\rwritten\n\233twoJ \302\233twoJ\n'; exec sleep 1000";
    std::fs::write(
        home.at("troop.toml"),
        format!(
            "[app.web]\nprogram = \"sh\"\nargs = ['-c', \"\"\"{}\"\"\"]\nworkers = 1\n",
            print.replace('\\', "\\\\")
        ),
    )
    .unwrap();
    home.fine(&["start", "web"]);
    let bytes = || std::fs::read(home.at("logs/web.log")).unwrap_or_default();
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    wait_until("the last line", || has(&bytes(), b"\xc2\x9btwoJ"));
    assert!(
        has(&bytes(), b"\x1b]0;evil\x07title\n") && has(&bytes(), b"\x9btwoJ"),
        "files keep bytes"
    );
    // `script` gives it a terminal.
    let on_terminal = |args: &str| {
        let mut command = Command::new("script");
        let troop = super::support::troop_program().display().to_string();
        command
            .args(["-qec", &format!("{troop} logs web --nostream {args}"), "/dev/null"])
            .current_dir(home.path());
        command
            .env("TROOP_RUNTIME_DIR", home.at("run"))
            .env("TROOP_LOG_DIR", home.at("logs"))
            .stdin(std::process::Stdio::null());
        Home::ended(command).out.replace("\r\n", "\n")
    };
    let shown = on_terminal("");
    assert!(
        shown.contains("\x1b[31mred\x1b[0m\n") && shown.contains(r"\x1b]0;evil\x07title"),
        "{shown:?}"
    );
    assert!(shown.contains(r"over\rwritten") && shown.contains(r"\u{9b}twoJ"), "{shown:?}");
    let rest = shown.replace("\x1b[31m", "").replace("\x1b[0m", "");
    assert!(!rest.contains(|c| c != '\n' && is_unsafe(c)), "{rest:?}");
    assert!(on_terminal("--raw").contains("\x1b]0;evil\x07title"));
    assert!(
        home.fine(&["logs", "web", "--nostream"]).contains("\x1b]0;evil\x07title"),
        "nor is it changed for programs"
    );
    let json = home.fine(&["logs", "web", "--nostream", "--json"]);
    assert_harmless(&json);
    assert!(json.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}

#[test]
fn a_worker_of_another_user_does_not_control_the_terminal_that_its_output_is_passed_on_to() {
    let name = "terminal::a_worker_of_another_user_does_not_control_the_terminal_that_its_output_is_passed_on_to";
    if !is_root(name) {
        return;
    }
    let home = open_directory();
    let print = r"p() { printf '\033]0;evil\007title\ntroop worker 9 died: forged\nover\rwritten\n\233twoJ'; }; p; p >&2";
    std::fs::write(home.path().join("print.sh"), print).unwrap();
    // `script` gives it a terminal.
    let troop = super::support::troop_program().display().to_string();
    let run = format!(
        "{troop} run --user {STRANGER} --group {STRANGER} -w 1 --set restart.when=never -- sh print.sh"
    );
    let mut command = Command::new("script");
    command
        .args(["-qec", &run, "/dev/null"])
        .current_dir(home.path())
        .env("TROOP_RUNTIME_DIR", home.path().join("run"))
        .stdin(std::process::Stdio::null());
    let shown = Home::ended(command).out.replace("\r\n", "\n");
    for line in [
        r"| \x1b]0;evil\x07title",
        "| troop worker 9 died: forged",
        r"| over\rwritten",
        "| \u{fffd}twoJ",
    ] {
        assert_eq!(shown.lines().filter(|shown| *shown == line).count(), 2, "{line}: {shown:?}");
    }
    let rest = shown.replace("\x1b[2mtroop\x1b[0m", "troop");
    assert!(!rest.contains(|c| c != '\n' && is_unsafe(c)), "{rest:?}");
}

#[test]
fn last_lines_of_a_worker_are_quoted_and_forge_none_of_troops() {
    let home = Home::with(&[(
        "die.js",
        "process.stderr.write('2026-01-01T00:00:00.000Z - * forged\\ntroop: forged\\x1b]0;evil\\x07\\n'); process.exit(3)",
    )]);
    let ended = home.troop(&[
        "start",
        "die.js",
        "-n",
        "web",
        "-i",
        "1",
        "--set",
        "restart.max=1",
        "--set",
        "restart.delay=0",
    ]);
    assert!(ended.code == Some(1) && ended.err.contains("forged"), "{ended:?}");
    assert_harmless(&ended.err);
    assert!(!ended.err.lines().any(|line| line.starts_with("troop: forged")), "{}", ended.err);
    let ended = home.troop(&[
        "run",
        "die.js",
        "-n",
        "web",
        "-w",
        "1",
        "--set",
        "restart.max=1",
        "--set",
        "output.format=prefixed",
    ]);
    let own = ended.err.lines().filter(|line| !line.contains(" ! ")).collect::<Vec<_>>().join("\n");
    assert!(ended.code == Some(1) && own.contains("forged"), "{ended:?}");
    assert_harmless(&own);
    assert!(!own.lines().any(|line| line.starts_with("troop: forged")), "{own}");
}

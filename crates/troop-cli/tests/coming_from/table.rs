//! Tables of what people know beside what it is here: written into the documents, and run.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::support::Home;

/// How a test shows that a row is true.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shown {
    /// Each command here ends with success.
    Done,
    /// The command prints and goes on.
    Follows,
    /// The command as it is there is refused, with an answer that has this text.
    Refused(&'static str),
    /// This test shows it.
    By(&'static str),
}

/// A command there, and here.
#[derive(Debug)]
pub(crate) struct Command {
    /// Without the program; several of the same meaning are separated by ` · `.
    pub(crate) theirs: &'static str,
    /// The commands here, without the program; empty: the same.
    pub(crate) ours: &'static [&'static str],
    pub(crate) remark: &'static str,
    pub(crate) shown: Shown,
}

/// A setting there, and here.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) theirs: &'static str,
    /// Lines of an app in `troop.toml`; empty: there is none.
    pub(crate) ours: &'static str,
    pub(crate) remark: &'static str,
}

/// A command that is the same here, or that the program says nothing else for.
pub(crate) const fn command(
    theirs: &'static str,
    ours: &'static [&'static str],
    remark: &'static str,
    shown: Shown,
) -> Command {
    Command { theirs, ours, remark, shown }
}

pub(crate) const fn setting(
    theirs: &'static str,
    ours: &'static str,
    remark: &'static str,
) -> Setting {
    Setting { theirs, ours, remark }
}

/// Returns the commands of one row.
pub(crate) fn each(theirs: &str) -> impl Iterator<Item = &str> {
    theirs.split(" · ")
}

/// Runs the commands of a table, in order, where other commands have left the apps.
pub(crate) fn run(home: &Home, table: &[Command]) {
    for Command { theirs, ours, shown, .. } in table {
        let same: Vec<&str> = each(theirs).collect();
        let commands = if ours.is_empty() { &same[..] } else { ours };
        match shown {
            Shown::Done => {
                for command in commands {
                    let words = shlex::split(command).unwrap();
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    let (code, out, err) = home.troop(&words);
                    assert_eq!(code, 0, "troop {command}: {out}{err}");
                }
            }
            Shown::Follows => commands.iter().for_each(|command| follows(home, command)),
            Shown::Refused(part) => {
                for command in &same {
                    let words = shlex::split(command).unwrap();
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    let (code, out, err) = home.troop(&words);
                    assert!(code == 2 && err.contains(part), "troop {command}: {code} {out}{err}");
                }
            }
            Shown::By(test) => assert!(tests().contains(&format!("fn {test}(")), "{test}"),
        }
    }
}

fn follows(home: &Home, command: &str) {
    let words = shlex::split(command).unwrap();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut child =
        home.command(&words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let line = BufReader::new(child.stdout.take().unwrap()).lines().next();
    let is_running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.is_some_and(|line| line.is_ok()) && is_running, "troop {command}");
}

/// The text of all tests.
fn tests() -> String {
    fn read(directory: &Path, text: &mut String) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, text);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    for directory in ["tests", "src", "../troop-testkit/tests"] {
        read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut text);
    }
    text
}

/// Writes a table of commands as Markdown.
pub(crate) fn commands(program: &str, table: &[Command]) -> String {
    let mut text = format!("| {program} | troop | |\n| --- | --- | --- |\n");
    for Command { theirs, ours, remark, shown } in table {
        let code = |prefix: &str, words: &str| format!("`{}`", format!("{prefix} {words}").trim());
        let there = each(theirs).map(|words| code(program, words)).collect::<Vec<_>>().join(", ");
        let here = match (shown, ours) {
            (Shown::Refused(_), []) => "–".into(),
            (_, []) => "the same".into(),
            (_, ours) => {
                ours.iter().map(|words| code("troop", words)).collect::<Vec<_>>().join(", ")
            }
        };
        let _ = writeln!(text, "{}", row(&[&there, &here, remark]));
    }
    text
}

/// Writes a table of settings as Markdown.
pub(crate) fn settings(program: &str, table: &[Setting]) -> String {
    let mut text = format!("| {program} | `troop.toml` | |\n| --- | --- | --- |\n");
    for Setting { theirs, ours, remark } in table {
        let lines: Vec<_> = ours.lines().map(|line| format!("`{line}`")).collect();
        let here = if lines.is_empty() { "–".into() } else { lines.join("<br>") };
        let there: Vec<_> = each(theirs).map(|words| format!("`{words}`")).collect();
        let _ = writeln!(text, "{}", row(&[&there.join(", "), &here, remark]));
    }
    text
}

fn row(cells: &[&str]) -> String {
    let cells = cells.iter().map(|cell| cell.replace('|', "\\|"));
    format!("| {} |", cells.collect::<Vec<_>>().join(" | ")).replace("|  |", "| |")
}

/// Checks that a document is what the tables say; `TROOP_WRITE=1` writes it.
pub(crate) fn is_written(name: &str, text: &str) {
    let file: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    if std::env::var_os("TROOP_WRITE").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    let command = "TROOP_WRITE=1 cargo nextest run -p troop-cli --test coming_from";
    assert!(written == text, "docs/{name} is not what the table says; write it anew: {command}");
}

/// Checks that troop takes the lines of a table of settings, each in an app of its own.
pub(crate) fn is_accepted(table: &[Setting]) {
    let mut text = String::new();
    for (at, Setting { ours, .. }) in
        table.iter().enumerate().filter(|(_, row)| !row.ours.is_empty())
    {
        let program = if ours.contains("program =") { "" } else { "program = \"./server.js\"\n" };
        let _ = writeln!(text, "[app.a{at}]\n{program}{ours}\n");
    }
    // Not every system has it.
    let text = text.replace("www-data", "root");
    let home = Home::with(&[("server.js", ""), (".env", "A=1\n"), ("troop.toml", &text)]);
    let (code, out, err) = home.troop(&["check"]);
    assert_eq!(code, 0, "{out}{err}\n{text}");
}

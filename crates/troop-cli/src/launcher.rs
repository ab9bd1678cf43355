//! Recognises programs that start another one, as `npm start` does, and names the one that they
//! start.

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::path::Path;

use serde_json::Value;
use troop::program::safe_path::open_for_reading;

use crate::resolve::ResolvedApp;

/// The largest `package.json` that is read, in bytes.
const MAX_PACKAGE: u64 = 1 << 20;
/// Characters that only a shell interprets.
const FOR_SHELL: &str = "$&|;<>()*?[]{}~`#!";

/// Returns what several workers of a package manager's script need instead: what it starts is a
/// process of its own, which is no worker and cannot share its port. `None` for other programs, and
/// where there is one worker.
pub(crate) fn hint(app: &ResolvedApp) -> Option<String> {
    if app.workers() < 2 || !app.app.bind.is_empty() {
        return None;
    }
    let (launcher, script) = script(&app.program, &app.args)?;
    let here = app.cwd.as_deref().unwrap_or(Path::new("."));
    let command = command(&here.join("package.json"), &script);
    let instead = command.as_deref().and_then(|command| {
        let is_installed = |name: &str| here.join("node_modules/.bin").join(name).exists();
        instead(command, &app.workers().to_string(), app.background, is_installed)
    });
    let starts = command.map_or_else(|| "another program".into(), |command| format!("`{command}`"));
    let then = match instead {
        Some(instead) => format!("; start that instead: `{instead}`"),
        None => "; name the program that it starts instead, or leave out -w".into(),
    };
    Some(format!(
        "{launcher} starts {starts} as a process of its own, which is no worker and cannot share its port with others{then}"
    ))
}

/// Returns the package manager and the script that a command runs.
fn script(program: &OsStr, args: &[OsString]) -> Option<(&'static str, String)> {
    let name = Path::new(program).file_name()?.to_str()?;
    let launcher = ["npm", "pnpm", "yarn", "bun"].into_iter().find(|known| *known == name)?;
    let mut words = args.iter().map(|arg| arg.to_string_lossy().into_owned());
    let mut words = words.by_ref().filter(|word| !word.starts_with('-'));
    let script = match words.next()?.as_str() {
        "run" | "run-script" => words.next()?,
        word @ ("start" | "test") => word.to_owned(),
        // Only npm takes no other script without `run`.
        word if launcher != "npm" => word.to_owned(),
        _ => return None,
    };
    Some((launcher, script))
}

/// Returns the command of a script in a `package.json`.
fn command(file: &Path, script: &str) -> Option<String> {
    let package = package(file)?;
    let command = package["scripts"][script].as_str();
    // npm's own default.
    let usual = (script == "start").then_some("node server.js");
    command.or(usual).map(str::to_owned)
}

/// Reads a `package.json`.
pub(crate) fn package(file: &Path) -> Option<Value> {
    let (file, _) = open_for_reading(file, MAX_PACKAGE).ok()?;
    let mut text = String::new();
    file.take(MAX_PACKAGE).read_to_string(&mut text).ok()?;
    serde_json::from_str::<Value>(&text).ok().filter(Value::is_object)
}

/// Returns the command line that runs a script's program without its package manager. `None` if a
/// shell is needed for it, or it is not known how to reach the program.
fn instead(
    command: &str,
    workers: &str,
    is_background: bool,
    is_installed: impl Fn(&str) -> bool,
) -> Option<String> {
    if command.contains(|c| FOR_SHELL.contains(c)) {
        return None;
    }
    let mut words = shlex::split(command)?.into_iter().peekable();
    let mut line = vec!["troop".to_owned(), if is_background { "start" } else { "run" }.into()];
    line.extend(["-w".into(), workers.to_owned()]);
    while let Some(variable) = words.next_if(|word| word.contains('=')) {
        line.extend(["--env".into(), variable]);
    }
    let program = match words.next()? {
        name if name == "node" && words.peek().is_some_and(|word| !word.starts_with('-')) => {
            words.next()?
        }
        name if is_installed(&name) => format!("node_modules/.bin/{name}"),
        name => name,
    };
    line.push(program);
    let mut args = words.peekable();
    if is_background && args.peek().is_some() {
        line.push("--".into());
    }
    line.extend(args);
    shlex::try_join(line.iter().map(String::as_str)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_of_package_managers_are_recognised() {
        let script = |words: &str| {
            let mut words = words.split(' ').map(OsString::from);
            let program = words.next().unwrap();
            script(&program, &words.collect::<Vec<_>>())
                .map(|(by, script)| format!("{by} {script}"))
        };
        for (typed, found) in [
            ("npm start", Some("npm start")),
            ("/usr/bin/npm --silent run dev", Some("npm dev")),
            ("npm run-script serve -- --port 1", Some("npm serve")),
            ("yarn dev", Some("yarn dev")),
            ("pnpm run dev", Some("pnpm dev")),
            ("npm ci", None),
            ("npm", None),
            ("node start", None),
        ] {
            assert_eq!(script(typed).as_deref(), found, "{typed}");
        }
    }

    #[test]
    fn the_program_of_a_script_is_named_as_it_would_be_typed() {
        let line = |command, background| instead(command, "4", background, |name| name == "next");
        for (command, background, expected) in [
            ("node server.js", true, Some("troop start -w 4 server.js")),
            ("node server.js --port 1", true, Some("troop start -w 4 server.js -- --port 1")),
            ("node server.js --port 1", false, Some("troop run -w 4 server.js --port 1")),
            ("node --inspect a.js", false, Some("troop run -w 4 node --inspect a.js")),
            ("next start", true, Some("troop start -w 4 node_modules/.bin/next -- start")),
            ("A=1 node a.js", true, Some("troop start -w 4 --env 'A=1' a.js")),
            ("npm run build && node a.js", true, None),
            ("node a.js --port $PORT", true, None),
        ] {
            assert_eq!(line(command, background).as_deref(), expected, "{command}");
        }
    }
}

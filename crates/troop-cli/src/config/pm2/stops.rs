//! The signal that asks an app to finish. PM2 sends `SIGINT` to all, or what its variable names.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::plain::{plain, time};
use crate::config::app::App;
use crate::{names, program};

/// PM2's signal.
const USUAL: &str = "SIGINT";

/// Programs that are asked by `SIGTERM` all the same. Shells and those that start another program wait
/// for it after `SIGINT`, which terminals send to all at once, and do not pass it on; what they have
/// started is asked when they have ended. To gunicorn it means to cut off its requests.
const BY_SIGTERM: [&str; 34] = [
    "sh",
    "bash",
    "dash",
    "ash",
    "zsh",
    "ksh",
    "fish",
    "busybox",
    "npm",
    "npx",
    "pnpm",
    "pnpx",
    "yarn",
    "yarnpkg",
    "bunx",
    "tsx",
    "nodemon",
    "uv",
    "uvx",
    "poetry",
    "pipenv",
    "pdm",
    "hatch",
    "rye",
    "make",
    "just",
    "sudo",
    "su",
    "runuser",
    "env",
    "cross-env",
    "dotenv",
    "gunicorn",
    "tini",
];

/// Takes the signal of a field. PM2 has none, but people expect that it does.
pub(super) fn take(value: &Value, app: &mut App) -> Result<(), String> {
    app.stop_signal = Some(checked(&plain(value))?);
    Ok(())
}

fn checked(signal: &str) -> Result<String, String> {
    let signal = signal.trim();
    match names::signal(signal)? {
        9 | 19 => Err(format!(
            "{signal}: no program can handle it; one that does not end is killed after `kill_timeout` anyway"
        )),
        _ => Ok(signal.to_owned()),
    }
}

/// Takes what PM2's variables say, where the fields do not: those of the app, or of this process.
/// PM2 itself reads them when its daemon starts.
pub(super) fn apply_variables(app: &mut App) -> Result<(), String> {
    let variable = |app: &App, name: &str| {
        let value = app.env.get(name).cloned().or_else(|| std::env::var(name).ok());
        value.filter(|value| !value.is_empty())
    };
    let of = |name: &'static str| move |e: String| format!("{name}: {e}");
    if let Some(signal) = variable(app, "PM2_KILL_SIGNAL").filter(|_| app.stop_signal.is_none()) {
        app.stop_signal = Some(checked(&signal).map_err(of("PM2_KILL_SIGNAL"))?);
    }
    if let Some(value) = variable(app, "PM2_KILL_TIMEOUT").filter(|_| app.grace.is_none()) {
        app.grace = Some(time(&value.into()).map_err(of("PM2_KILL_TIMEOUT"))?);
    }
    app.shutdown_with_message |= variable(app, "PM2_KILL_USE_MESSAGE").is_some();
    Ok(())
}

/// Sets PM2's signal for a program that is not Node's. (Node programs get the one that they handle.)
pub(super) fn apply_usual(app: &mut App, directory: &Path) {
    if app.stop_signal.is_none() && !is_by_sigterm(app, directory) {
        app.stop_signal = Some(USUAL.into());
    }
}

fn is_by_sigterm(app: &App, directory: &Path) -> bool {
    let base = |name: &str| {
        let name = Path::new(name).file_name().and_then(|name| name.to_str());
        name.map(str::to_owned).unwrap_or_default()
    };
    let is_node = |name: &str| ["node", "nodejs"].contains(&name);
    let own = Path::new(&app.program);
    let name = base(&app.program);
    if program::is_script(own) || is_node(&name) || BY_SIGTERM.contains(&&*name) {
        return true;
    }
    // `python3 venv/bin/gunicorn`, `python3 -m gunicorn`
    let script = app.args.iter().find(|arg| !arg.starts_with('-'));
    if script.is_some_and(|script| base(script) == "gunicorn") {
        return true;
    }
    let own_file = app.program.contains('/').then(|| directory.join(own));
    let search = || app.env.get("PATH").cloned().or_else(|| std::env::var("PATH").ok());
    let is_own = own_file.is_some();
    let file = own_file.or_else(|| on_path(own, directory, &search()?));
    let interpreter = file.and_then(|file| program::interpreter_in(&file));
    let interpreter = interpreter.map(|interpreter| base(&interpreter)).unwrap_or_default();
    // Version managers put a script of the shell on the path that becomes the program.
    is_node(&interpreter) || (is_own && BY_SIGTERM.contains(&&*interpreter))
}

fn on_path(name: &Path, directory: &Path, search: &str) -> Option<PathBuf> {
    std::env::split_paths(search)
        .map(|at| directory.join(at).join(name))
        .find(|file| program::is_executable(file))
}

//! Finds what would keep every worker from being executed, before the first one is started.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Resource;
use troop::Error;
use troop::text::escaped;

use crate::command;
use crate::config::{self, Limited};
use crate::program::is_script;
use crate::resolve::ResolvedApp;
use crate::suggest;

/// The most bytes of one argument or variable: `MAX_ARG_STRLEN`, with the NUL byte at its end.
const MAX_STRING: usize = 128 * 1024;
/// The most bytes that the kernel takes for all of them, however large the stack may become.
const MAX_STRINGS: u64 = 6 * 1024 * 1024;

/// Checks that the program and the working directory exist.
///
/// # Errors
/// What is missing, with the path that was tried.
pub(crate) fn check_files(app: &ResolvedApp) -> Result<(), Error> {
    let checked = app.clone();
    // The directory may be on a file system that does not answer.
    config::source::answered(move || find_files(&checked)).map_err(Error::Settings)
}

fn find_files(app: &ResolvedApp) -> Result<(), String> {
    let here = app.cwd.clone().unwrap_or_else(|| PathBuf::from("."));
    let here = std::path::absolute(&here).unwrap_or(here);
    if !here.is_dir() {
        return Err(format!("there is no directory {} to run in", here.display()));
    }
    check_program(Path::new(&app.program), &here, app.env.get(OsStr::new("PATH")))
}

fn check_program(program: &Path, here: &Path, search: Option<&OsString>) -> Result<(), String> {
    let wrong = |text: String| Err(text);
    let path: PathBuf = here.join(program).components().collect();
    let is_missing = |path: &Path| path.try_exists().is_ok_and(|exists| !exists);
    if is_script(program) {
        return match is_missing(&path) {
            true => wrong(format!("there is no script {}", path.display())),
            false => Ok(()),
        };
    }
    if program.components().count() > 1 || program.is_absolute() || path == here {
        if is_missing(&path) {
            let e = io::Error::from(rustix::io::Errno::NOENT);
            return wrong(format!("cannot start {}: {e}", path.display()));
        }
        if path.is_dir() {
            return wrong(format!("{} is a directory; name a program in it", path.display()));
        }
        return Ok(());
    }
    let search = search.cloned().or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    if std::env::split_paths(&search).any(|directory| directory.join(program).exists()) {
        return Ok(());
    }
    let shown = program.display();
    if path.is_file() {
        return wrong(format!(
            "there is no program {shown} on the PATH; ./{shown} is the one in {}",
            here.display()
        ));
    }
    match config::format_of(program) {
        Some(_) => wrong(format!("there is no file {}", path.display())),
        None => wrong(format!(
            "there is no program {shown} on the PATH, and no file {}{}",
            path.display(),
            match command::installed(program, here) {
                Some(installed) => format!("; npm has installed {}", installed.display()),
                None => other_apps(program),
            }
        )),
    }
}

/// Returns the apps of `troop.toml`, to append to an error about a program that may have been meant
/// as the name of one.
fn other_apps(program: &Path) -> String {
    let file = Path::new(config::DEFAULT_FILE);
    let Some(typed) = program.to_str().filter(|_| file.exists()) else { return String::new() };
    let Ok(apps) = config::read(file) else { return String::new() };
    let meant = suggest::app(typed, apps.keys().map(String::as_str));
    let names: Vec<_> = apps.into_keys().collect();
    let apps = if names.len() == 1 { "the app" } else { "the apps" };
    format!("; {} has {apps} {}{meant}", file.display(), names.join(", "))
}

/// Says that no program gets a variable of this length, with its name, `=` and a NUL byte.
pub(crate) fn too_long(name: &str, len: usize) -> Option<String> {
    (len > MAX_STRING).then(|| {
        format!(
            "the variable {} has {} bytes with its name, and Linux passes {} at most; put the value into a file",
            escaped(name),
            len - 1,
            MAX_STRING - 1
        )
    })
}

/// Checks what `execve(2)` would answer with `E2BIG`, which does not name the culprit.
///
/// # Errors
/// What is too long, by name.
pub(crate) fn check_length(app: &ResolvedApp) -> Result<(), String> {
    let inherited = std::env::vars_os().filter(|(name, _)| !app.env.contains_key(name));
    let own = app.env.iter().map(|(name, value)| (name.clone(), value.clone()));
    let variables: Vec<(OsString, usize)> = inherited
        .chain(own)
        .map(|(name, value)| {
            // `NAME=VALUE` and a NUL byte.
            let len = name.len() + value.len() + 2;
            (name, len)
        })
        .collect();
    let Some((largest, most)) = variables.iter().max_by_key(|(_, len)| *len) else {
        return Ok(());
    };
    let largest = largest.to_string_lossy();
    if let Some(text) = too_long(&largest, *most) {
        return Err(text);
    }
    if app.app.limits.contains_key(&Limited::Stack) {
        // The limit depends on the stack that the workers get, not on this process's.
        return Ok(());
    }
    let stack = rustix::process::getrlimit(Resource::Stack).current.unwrap_or(u64::MAX);
    let limit = (stack / 4).clamp(MAX_STRING as u64, MAX_STRINGS);
    let pointer = size_of::<usize>();
    let args = app.args.iter().map(|arg| arg.len() + 1 + pointer);
    let all: usize = variables.iter().map(|(_, len)| len + pointer).chain(args).sum();
    if all as u64 > limit {
        return Err(format!(
            "the arguments and the environment have {all} bytes together, and Linux passes {limit} at most; the largest variable is {} with {most}",
            escaped(&largest)
        ));
    }
    Ok(())
}

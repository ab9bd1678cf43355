//! Where an app's script is, where it runs, and what executes it.

use std::path::{Path, PathBuf};

use super::directory_of;
use crate::program;

/// The directories that relative paths may start at.
#[derive(Debug)]
pub(super) struct Bases {
    /// The directory of the caller, as in PM2.
    caller: PathBuf,
    /// The directory of the file.
    beside: PathBuf,
}

/// The place of an app.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The directory that the app runs in.
    pub(super) directory: PathBuf,
    /// The same as an option of the app, if it needs one.
    pub(super) cwd: Option<PathBuf>,
    /// That the place is another one than in PM2.
    pub(super) warning: Option<String>,
}

impl Bases {
    pub(super) fn of(file: &Path) -> Bases {
        let beside = directory_of(file);
        let caller = crate::directory::current().unwrap_or_else(|_| beside.clone());
        Bases { caller, beside }
    }

    #[cfg(test)]
    pub(super) fn new(caller: &Path, beside: &Path) -> Bases {
        Bases { caller: caller.to_owned(), beside: beside.to_owned() }
    }

    /// Finds an app. Its directory, and a script without one, are relative to the caller's directory,
    /// as in PM2, or to the file's if they are only there.
    pub(super) fn find(&self, script: &str, cwd: Option<&str>) -> Place {
        let directory = |base: &Path| cwd.map_or_else(|| base.to_owned(), |cwd| base.join(cwd));
        let (by_caller, by_file) = (directory(&self.caller), directory(&self.beside));
        let is_there = |directory: &Path| directory.join(script).exists();
        let is_beside = !is_there(&by_caller) && is_there(&by_file);
        let has_no_directory = !by_caller.is_dir() && by_file.is_dir();
        let is_same = self.caller == self.beside;
        if is_same || !(is_beside || has_no_directory) {
            // Relative to the file, as in troop.toml, where that is the same.
            let cwd = match cwd {
                _ if !is_same => Some(by_caller.clone()),
                cwd => cwd.map(Into::into),
            };
            return Place { directory: by_caller, cwd, warning: None };
        }
        let what = if is_beside { Path::new(script) } else { Path::new(cwd.unwrap_or_default()) };
        let warning = format!(
            "{} is not in {}, where PM2 looks for it, but beside the file, in {}",
            what.display(),
            self.caller.display(),
            self.beside.display()
        );
        Place { directory: by_file, cwd: cwd.map(Into::into), warning: Some(warning) }
    }
}

/// Returns the interpreter that PM2 chooses for a script: by its ending, else node; none for what is
/// executable and has no such ending, and for the name of a command.
pub(super) fn usual_interpreter(script: &str, directory: &Path) -> String {
    let path = directory.join(script);
    let by_ending = program::interpreter_of(Path::new(script));
    match by_ending {
        Some(interpreter) => interpreter.into(),
        None if program::is_script(Path::new(script)) => "node".into(),
        None if !path.exists() || program::is_executable(&path) => "none".into(),
        None => "node".into(),
    }
}

/// Returns the shell that runs a script with spaces, as in PM2: `bash`, or else `sh`.
pub(super) fn shell() -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_bash = std::env::split_paths(&path).any(|directory| directory.join("bash").is_file());
    if has_bash { "bash" } else { "sh" }
}

/// Whether a shell runs a script: it is a command line, and no file.
pub(super) fn is_command_line(script: &str, directory: &Path) -> bool {
    script.contains(' ') && !directory.join(script).exists()
}

/// Returns the interpreter that a name stands for: `node@20.1.0` is one of nvm's.
pub(super) fn interpreter(name: &str) -> Result<String, String> {
    let Some(version) = name.strip_prefix("node@") else { return Ok(name.to_owned()) };
    let missing = |what: String| {
        Err(format!("interpreter {name}: {what}, so it runs under the node of the PATH"))
    };
    let Some(nvm) = std::env::var_os("NVM_DIR").filter(|path| !path.is_empty()) else {
        return missing("NVM_DIR is not set".into());
    };
    let version = version.trim_start_matches('v');
    let path = Path::new(&nvm).join(format!("versions/node/v{version}/bin/node"));
    match path.to_str().filter(|_| path.exists()) {
        Some(path) => Ok(path.to_owned()),
        None => missing(format!("there is no {}", path.display())),
    }
}

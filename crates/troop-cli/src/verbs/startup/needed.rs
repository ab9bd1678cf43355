//! The programs that an app needs from the `PATH`, and where they are.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use troop::program::safe_path::open_for_reading;

use super::unit::without_dots;
use crate::config::{self, App, Format};
use crate::program::is_script;

/// systemd's own `PATH`, and that of systems where these are links.
const USUAL: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Signs that separate the words of a command for a shell.
const SEPARATORS: [char; 12] = [' ', '\t', '\n', ';', '&', '|', '(', ')', '{', '}', '"', '\''];
/// The longest first line of a script.
const MAX_FIRST_LINE: u64 = 256;

/// What an app needs from the `PATH` of this process.
#[derive(Debug)]
pub(super) struct Needed {
    /// The directories of the `PATH` that systemd does not search by itself, in its order, with those
    /// that it does.
    directories: Vec<PathBuf>,
    /// The programs that were found, without the links that lead to them.
    pub(super) programs: Vec<PathBuf>,
}

impl Needed {
    pub(super) fn of(app: &App, file: &Path) -> Needed {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let search: Vec<_> =
            std::env::split_paths(&path).filter(|directory| directory.is_absolute()).collect();
        Needed::among(app, file, &search)
    }

    fn among(app: &App, file: &Path, search: &[PathBuf]) -> Needed {
        let mut names = Vec::new();
        let program = Path::new(&app.program);
        // PM2's .js files are programs for node, too.
        if config::format_of(file) == Some(Format::Pm2) || is_script(program) {
            names.push("node".to_owned());
        }
        let health = app.health.as_ref().and_then(|health| health.command.as_deref());
        let commands =
            [app.program.as_str()].into_iter().chain(app.args.iter().map(String::as_str));
        for command in commands.chain(health) {
            names.extend(command.split(SEPARATORS).map(str::to_owned));
        }
        let mut found: Vec<(PathBuf, PathBuf)> = Vec::new();
        let directory = without_dots(app.directory(file));
        let mut next: Vec<PathBuf> = vec![directory.join(program)];
        next.extend(names.iter().filter_map(|name| find(name, search, &mut found)));
        // A script's interpreter may be found on the `PATH` too, and be a script itself.
        while let Some(script) = next.pop() {
            next.extend(interpreter(&script).and_then(|name| find(&name, search, &mut found)));
        }
        let is_usual = |directory: &Path| USUAL.iter().any(|usual| Path::new(usual) == directory);
        let is_needed = |directory: &PathBuf| found.iter().any(|(of, _)| of == directory);
        let mut directories: Vec<PathBuf> = Vec::new();
        if found.iter().any(|(directory, _)| !is_usual(directory)) {
            for directory in search.iter().filter(|path| is_usual(path) || is_needed(path)) {
                if !directories.contains(directory) {
                    directories.push(directory.clone());
                }
            }
        }
        Needed { directories, programs: found.into_iter().map(|(_, program)| program).collect() }
    }

    /// Returns the `PATH` of the unit. `None` where systemd's own is enough.
    pub(super) fn path(&self) -> Option<String> {
        let joined = std::env::join_paths(&self.directories).ok()?;
        joined.into_string().ok().filter(|path| !path.is_empty())
    }

    /// Returns all places that must be readable for the programs.
    pub(super) fn places(&self) -> impl Iterator<Item = &Path> {
        self.directories.iter().chain(&self.programs).map(PathBuf::as_path)
    }
}

/// Finds a program by its name, and notes its directory. `None` if there is none, or it is known.
fn find(name: &str, search: &[PathBuf], found: &mut Vec<(PathBuf, PathBuf)>) -> Option<PathBuf> {
    if name.is_empty() || name.contains('/') {
        return None;
    }
    let directory = search.iter().find(|directory| is_executable(&directory.join(name)))?;
    let program = directory.join(name);
    let real = program.canonicalize().unwrap_or_else(|_| program.clone());
    if found.iter().any(|(of, known)| of == directory && *known == real) {
        return None;
    }
    found.push((directory.clone(), real));
    Some(program)
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Returns the name of the interpreter that `env` looks for in the first line of a script.
fn interpreter(script: &Path) -> Option<String> {
    let (file, _) = open_for_reading(script, u64::MAX).ok()?;
    let mut head = Vec::new();
    file.take(MAX_FIRST_LINE).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let is_env = Path::new(words.next()?).file_name() == Some(OsStr::new("env"));
    let mut names = words.filter(|word| !word.starts_with('-') && !word.contains('='));
    names.next().filter(|_| is_env).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_directories_of_needed_programs_stay_on_the_path() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let program = |path: &str, text: &str| {
            let path = home.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        program("node/bin/node", "\x7fELF");
        program("tools/bin/serve", "#!/usr/bin/env -S node --no-warnings\n");
        program("checks/bin/check", "\x7fELF");
        program("other/bin/other", "\x7fELF");
        program("app/own.sh", "#!/usr/bin/env node\n");
        let search: Vec<PathBuf> = ["other/bin", "tools/bin", "checks/bin", "node/bin"]
            .iter()
            .map(|directory| home.join(directory))
            .chain(["/usr/bin".into()])
            .collect();
        let path = |text: &str| {
            let app: App = toml::from_str(text).unwrap();
            let needed = Needed::among(&app, &home.join("app/troop.toml"), &search);
            let shown = needed.path().unwrap_or_default();
            shown.replace(home.to_str().unwrap(), "~")
        };
        for (app, expected) in [
            ("program = \"server.js\"", "~/node/bin:/usr/bin"),
            ("program = \"serve\"", "~/tools/bin:~/node/bin:/usr/bin"),
            ("program = \"./own.sh\"", "~/node/bin:/usr/bin"),
            ("program = \"./binary\"", ""),
            ("program = \"sh\"\nargs = [\"-c\", \"cd /x && other\"]", "~/other/bin:/usr/bin"),
            ("program = \"./binary\"\nhealth = { command = \"check 1\" }", "~/checks/bin:/usr/bin"),
        ] {
            assert_eq!(path(app), expected, "{app}");
        }
    }
}

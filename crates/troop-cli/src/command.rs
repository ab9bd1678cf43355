//! What a program on the command line means: a file, a directory with a `package.json`, or a whole
//! command in quotation marks.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::config::{self, App};
use crate::launcher;
use crate::program::is_executable;

/// Programs that are named on the command line before what is meant.
const INTERPRETERS: [&str; 11] =
    ["node", "nodejs", "python", "python3", "ruby", "php", "perl", "bash", "sh", "bun", "deno"];

/// A command, as it is executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TypedCommand {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    /// The directory in which it must run, if it is not the current one.
    pub(crate) cwd: Option<PathBuf>,
    /// The path from which the app gets its name.
    pub(crate) named_by: PathBuf,
}

/// Returns the command of a program that was typed with arguments, to run in this directory.
pub(crate) fn of(program: OsString, args: Vec<OsString>, directory: &Path) -> TypedCommand {
    let path = Path::new(&program);
    let found = match path.to_str() {
        Some(_) if path.is_dir() => of_directory(path),
        Some(text) if text.contains(char::is_whitespace) && !path.exists() => of_text(text, &args),
        _ => None,
    };
    let mut command = match found {
        Some(mut command) => {
            command.args.extend(args);
            command
        }
        None => TypedCommand { named_by: path.to_owned(), program, args, cwd: None },
    };
    if let Some(installed) = installed(Path::new(&command.program), directory) {
        command.program = installed.into();
    }
    command
}

/// Returns the program of a package that npm has installed in this directory or one above, if the `PATH`
/// has none of this name. `npm run` and `npx` find it, too.
pub(crate) fn installed(name: &Path, directory: &Path) -> Option<PathBuf> {
    let is_name = !name.as_os_str().as_encoded_bytes().contains(&b'/');
    if !is_name || name.as_os_str().is_empty() || config::is_on_path(name) {
        return None;
    }
    let own = Path::new("node_modules/.bin").join(name);
    let directory = std::path::absolute(directory).ok()?;
    let found = directory.ancestors().find(|at| is_executable(&at.join(&own)))?;
    // As it would be typed, where it is near.
    Some(if found == directory { own } else { found.join(own) })
}

/// Returns the command of a text such as `npm run dev`, by a shell where it needs one.
fn of_text(text: &str, args: &[OsString]) -> Option<TypedCommand> {
    let named_by = named_by(text);
    let App { program, args: mut words, .. } = config::app_of_command(text);
    // The words that were typed behind a script for the shell are arguments of its last command.
    if let ([option, script], "sh", false) = (&mut words[..], program.as_str(), args.is_empty())
        && option == "-c"
    {
        script.push_str(" \"$@\"");
        words.push("sh".into());
    }
    let args = words.into_iter().map(OsString::from).collect();
    Some(TypedCommand { program: program.into(), args, cwd: None, named_by })
}

/// Returns what a command is named by: the words before its first option, as an app of a file, or the
/// script of an interpreter.
fn named_by(text: &str) -> PathBuf {
    let before = text.split(" -").next().unwrap_or_default().trim();
    if INTERPRETERS.contains(&before) {
        let words = shlex::split(text).unwrap_or_default();
        let script = words.into_iter().skip(1).find(|word| Path::new(word).is_file());
        return script.map_or_else(|| before.into(), PathBuf::from);
    }
    let named = if before.is_empty() { text } else { before };
    PathBuf::from(named.replace('/', "-"))
}

/// Returns the command of a directory with a `package.json`: its main file, or `npm start`.
fn of_directory(directory: &Path) -> Option<TypedCommand> {
    let package = launcher::package(&directory.join("package.json"))?;
    let named_by = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let named_by = package["name"].as_str().map_or(named_by, |name| {
        // `@scope/name`
        PathBuf::from(name.rsplit('/').next().unwrap_or(name))
    });
    let main = package["main"].as_str().map(|main| directory.join(main));
    let usual = ["index.js", "server.js", "app.js"].map(|name| directory.join(name));
    let start = package["scripts"]["start"].is_string();
    let file = main.filter(|main| main.is_file());
    let file = file.or_else(|| usual.into_iter().find(|file| !start && file.is_file()));
    match file {
        Some(file) => {
            Some(TypedCommand { program: file.into(), args: Vec::new(), cwd: None, named_by })
        }
        None => start.then(|| TypedCommand {
            program: "npm".into(),
            args: vec!["start".into(), "--".into()],
            cwd: Some(directory.to_owned()),
            named_by,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(program: &str, args: &[&str]) -> (Vec<String>, String) {
        let args = args.iter().map(OsString::from).collect();
        let command = of(program.into(), args, Path::new("."));
        let words = std::iter::once(command.program).chain(command.args);
        let name = crate::names::of_program(&command.named_by);
        (words.map(|word| word.into_string().unwrap()).collect(), name)
    }

    #[test]
    fn a_command_in_quotation_marks_is_split_or_given_to_a_shell() {
        for (program, args, expected, name) in [
            ("npm run dev", &[][..], &["npm", "run", "dev"][..], "npm-run-dev"),
            ("python3 'a b.py'", &["-v"], &["python3", "a b.py", "-v"], "python3--a-b"),
            ("gunicorn -w 2 a:b", &[], &["gunicorn", "-w", "2", "a:b"], "gunicorn"),
            ("npm run dev -- --x", &[], &["npm", "run", "dev", "--", "--x"], "npm-run-dev"),
            ("php -S a:1", &[], &["php", "-S", "a:1"], "php"),
            ("sh -eu src/main.rs", &[], &["sh", "-eu", "src/main.rs"], "main"),
            ("php artisan serve", &[], &["php", "artisan", "serve"], "php-artisan-serve"),
            ("echo $A", &[], &["sh", "-c", "exec echo $A"], "echo--A"),
            ("echo $A", &["b c"], &["sh", "-c", "exec echo $A \"$@\"", "sh", "b c"], "echo--A"),
            ("server.js", &["x"], &["server.js", "x"], "server"),
            ("./a", &[], &["./a"], "a"),
        ] {
            let (words, named) = typed(program, args);
            assert_eq!(
                (&words[..], named.as_str()),
                (&expected.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()[..], name),
                "{program}"
            );
        }
    }

    #[test]
    fn a_directory_is_its_package() {
        let home = tempfile::tempdir().unwrap();
        let of = |files: &[(&str, &str)]| {
            let directory = tempfile::tempdir_in(home.path()).unwrap();
            for (name, text) in files {
                std::fs::write(directory.path().join(name), text).unwrap();
            }
            let (words, name) = typed(directory.path().to_str().unwrap(), &["x"]);
            let prefix = format!("{}/", directory.path().display());
            (words.iter().map(|word| word.replace(&prefix, "")).collect::<Vec<_>>().join(" "), name)
        };
        let main = r#"{ "name": "@a/web", "main": "main.js", "scripts": { "start": "x" } }"#;
        assert_eq!(
            of(&[("package.json", main), ("main.js", "")]),
            ("main.js x".into(), "web".into())
        );
        assert_eq!(of(&[("package.json", main), ("index.js", "")]).0, "npm start -- x");
        assert_eq!(of(&[("package.json", "{}"), ("index.js", "")]).0, "index.js x");
        assert!(of(&[("index.js", "")]).0.starts_with('/'), "it is no package");
    }

    #[test]
    fn a_program_that_npm_has_installed_is_found_by_its_name() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let below = home.path().join("packages/web");
        std::fs::create_dir_all(&below).unwrap();
        let bin = home.path().join("node_modules/.bin");
        std::fs::create_dir_all(&bin).unwrap();
        for (name, mode) in [("no-such-server", 0o755), ("not-executable", 0o644), ("sh", 0o755)] {
            std::fs::write(bin.join(name), "").unwrap();
            std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(mode))
                .unwrap();
        }
        let program = |typed: &str, directory: &Path| {
            let command = of(typed.into(), vec!["x".into()], directory);
            (command.program, crate::names::of_program(&command.named_by))
        };
        let own = OsString::from("node_modules/.bin/no-such-server");
        assert_eq!(program("no-such-server", home.path()), (own.clone(), "no-such-server".into()));
        assert_eq!(program("no-such-server --port 1", home.path()).0, own);
        let found = bin.join("no-such-server").into_os_string();
        assert_eq!(program("no-such-server", &below).0, found);
        for name in ["./no-such-server", "not-executable", "sh", "nothing"] {
            assert_eq!(program(name, home.path()).0, name);
        }
    }
}

//! What a program on the command line means: a file, a directory with a `package.json`, or a whole
//! command in quotation marks.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::config::{self, App};
use crate::launcher;

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

/// Returns the command of a program that was typed with arguments.
pub(crate) fn of(program: OsString, args: Vec<OsString>) -> TypedCommand {
    let path = Path::new(&program);
    let found = match path.to_str() {
        Some(_) if path.is_dir() => of_directory(path),
        Some(text) if text.contains(char::is_whitespace) && !path.exists() => of_text(text, &args),
        _ => None,
    };
    match found {
        Some(mut command) => {
            command.args.extend(args);
            command
        }
        None => TypedCommand { named_by: path.to_owned(), program, args, cwd: None },
    }
}

/// Returns the command of a text such as `npm run dev`, by a shell where it needs one.
fn of_text(text: &str, args: &[OsString]) -> Option<TypedCommand> {
    let named_by = PathBuf::from(text.replace('/', "-"));
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
        let command = of(program.into(), args.iter().map(OsString::from).collect());
        let words = std::iter::once(command.program).chain(command.args);
        let name = crate::names::of_program(&command.named_by);
        (words.map(|word| word.into_string().unwrap()).collect(), name)
    }

    #[test]
    fn a_command_in_quotation_marks_is_split_or_given_to_a_shell() {
        for (program, args, expected, name) in [
            ("npm run dev", &[][..], &["npm", "run", "dev"][..], "npm-run-dev"),
            ("python3 'a b.py'", &["-v"], &["python3", "a b.py", "-v"], "python3--a-b"),
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
}

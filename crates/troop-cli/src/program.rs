//! Turns a program and its arguments into settings for workers: node for scripts, with its options.

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use troop::program::safe_path::open_for_reading;
use troop::{Error, Setup};

/// Maximum number of bytes in which the kernel looks for the interpreter of a script.
const MAX_FIRST_LINE: u64 = 256;

/// Options of node that take the next argument as their value.
const WITH_VALUE: [&str; 10] = [
    "-r",
    "--require",
    "--import",
    "--loader",
    "--experimental-loader",
    "-C",
    "--conditions",
    "--env-file",
    "--title",
    "--icu-data-dir",
];

/// Returns the settings that start workers of a program. Scripts run under node, and so do programs
/// whose first line names it. The options in `node OPTIONS SCRIPT ARGS` are recognised, because some
/// must differ between workers (inspector ports, profile files). `cwd` is the workers' directory, and
/// `search` their `PATH`.
pub(crate) fn setup(
    program: &OsStr,
    node_args: &[String],
    args: Vec<OsString>,
    cwd: Option<&Path>,
    search: Option<&OsStr>,
) -> Result<Setup, Error> {
    let path = Path::new(program);
    match path.extension().and_then(OsStr::to_str) {
        Some("js" | "mjs" | "cjs") => Ok(Setup::new().script(path).args(args).exec_argv(node_args)),
        Some("ts" | "mts" | "cts") => {
            // Run once: later, as PID 1, the driver reaps every child, this one included.
            static FLAGS: OnceLock<Result<Vec<OsString>, String>> = OnceLock::new();
            let flags = match has_loader(node_args) {
                true => Vec::new(),
                false => {
                    let flags = FLAGS.get_or_init(|| typescript_flags().map_err(|e| e.chain()));
                    flags.clone().map_err(Error::Settings)?
                }
            };
            Ok(Setup::new()
                .script(path)
                .args(args)
                .exec_argv(flags.into_iter().chain(node_args.iter().map(Into::into))))
        }
        _ if path.file_name().is_some_and(|name| name == "node" || name == "nodejs") => {
            Ok(node(path, node_args.iter().map(Into::into).chain(args).collect()))
        }
        _ => match node_script(path, cwd, search) {
            Some((script, FirstLine { node, options })) => Ok(Setup::new()
                .program(node)
                .exec_argv(options.into_iter().chain(node_args.iter().map(Into::into)))
                .script(script)
                .args(args)),
            None if !node_args.is_empty() => Err(Error::Settings(format!(
                "node_args need a script that runs under node, and {} is not one",
                path.display()
            ))),
            None => Ok(Setup::new().program(path).args(args)),
        },
    }
}

/// The first line of a script that runs under node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FirstLine {
    node: PathBuf,
    options: Vec<OsString>,
}

/// Returns the script that is executed for a program, a path or a name on the `PATH`, if its first
/// line names node.
fn node_script(
    program: &Path,
    cwd: Option<&Path>,
    search: Option<&OsStr>,
) -> Option<(PathBuf, FirstLine)> {
    let from_cwd = |path: &Path| cwd.map_or_else(|| path.to_owned(), |cwd| cwd.join(path));
    let script = if program.as_os_str().as_encoded_bytes().contains(&b'/') {
        program.to_owned()
    } else {
        std::env::split_paths(search?)
            .map(|directory| directory.join(program))
            .find(|path| is_executable(&from_cwd(path)))?
    };
    let file = from_cwd(&script);
    let line = first_line(&file).filter(|_| is_executable(&file))?;
    Some((script, line))
}

/// Returns the first line of a script if it names node: `#!/usr/bin/env node`.
pub(crate) fn first_line(file: &Path) -> Option<FirstLine> {
    under_node(&interpreter_line(file)?)
}

/// Returns what the first line of a script names behind `#!`, and behind `env`.
pub(crate) fn interpreter_in(file: &Path) -> Option<String> {
    let line = interpreter_line(file)?;
    let mut words = line.split_whitespace();
    let first = words.next()?;
    if Path::new(first).file_name()? != "env" {
        return Some(first.to_owned());
    }
    words.find(|word| !word.starts_with('-') && !word.contains('=')).map(str::to_owned)
}

/// Returns the first line of a script behind `#!`.
fn interpreter_line(file: &Path) -> Option<String> {
    let (file, _) = open_for_reading(file, u64::MAX).ok()?;
    let mut head = Vec::new();
    file.take(MAX_FIRST_LINE).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    Some(std::str::from_utf8(line).ok()?.to_owned())
}

/// Splits the line as the kernel does: after the interpreter there is at most one argument.
fn under_node(line: &str) -> Option<FirstLine> {
    const SPACE: [char; 2] = [' ', '\t'];
    let is_node = |path: &str| {
        Path::new(path).file_name().is_some_and(|name| name == "node" || name == "nodejs")
    };
    let line = line.trim_matches(SPACE);
    let (interpreter, argument) = line.split_once(SPACE).unwrap_or((line, ""));
    let argument = argument.trim_start_matches(SPACE);
    let words: Vec<&str> = if is_node(interpreter) {
        [interpreter, argument].into_iter().filter(|word| !word.is_empty()).collect()
    } else if Path::new(interpreter).file_name()? != "env" {
        return None;
    } else {
        match argument.strip_prefix("-S") {
            // What `env` would expand is for `env`.
            Some(words) if words.contains(['"', '\'', '\\', '$', '#']) => return None,
            Some(words) => words.split_whitespace().collect(),
            None => vec![argument],
        }
    };
    let (node, options) = words.split_first().filter(|(node, _)| is_node(node))?;
    Some(FirstLine { node: node.into(), options: options.iter().map(Into::into).collect() })
}

/// Whether a file has an ending that node runs.
pub(crate) fn is_script(path: &Path) -> bool {
    path.extension()
        .and_then(OsStr::to_str)
        .is_some_and(|e| ["js", "mjs", "cjs", "ts", "mts", "cts"].contains(&e))
}

/// Returns the interpreter of a script in another language, by its ending.
pub(crate) fn interpreter_of(path: &Path) -> Option<&'static str> {
    Some(match path.extension()?.to_str()? {
        "py" => "python3",
        "rb" => "ruby",
        "sh" => "bash",
        "pl" => "perl",
        "php" => "php",
        _ => return None,
    })
}

pub(crate) fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Returns the command that runs a program without a primary.
pub(crate) fn alone(
    program: &OsStr,
    node_args: &[String],
    args: &[OsString],
) -> (OsString, Vec<OsString>) {
    let before = node_args.iter().map(OsString::from);
    if is_script(Path::new(program)) {
        return (
            "node".into(),
            before.chain([program.to_owned()]).chain(args.iter().cloned()).collect(),
        );
    }
    (program.to_owned(), before.chain(args.iter().cloned()).collect())
}

fn node(program: &Path, args: Vec<OsString>) -> Setup {
    let mut script = 0;
    while let Some(arg) = args.get(script).and_then(|a| a.to_str()).filter(|a| a.starts_with('-')) {
        script += if WITH_VALUE.contains(&arg) { 2 } else { 1 };
    }
    let script = script.min(args.len());
    let setup = Setup::new().program(program).exec_argv(args[..script].iter());
    match args.get(script) {
        Some(name) => setup.script(name).args(args[script + 1..].iter()),
        None => setup.args(Vec::<OsString>::new()),
    }
}

/// Whether these options of node load something before the program, which may be what runs
/// TypeScript: `--import tsx`, `-r ts-node/register`.
fn has_loader(node_args: &[String]) -> bool {
    const LOADERS: [&str; 5] = ["-r", "--require", "--import", "--loader", "--experimental-loader"];
    node_args
        .iter()
        .any(|arg| LOADERS.contains(&arg.split_once('=').map_or(arg.as_str(), |(name, _)| name)))
}

/// Returns the options by which node runs TypeScript: none from 22.18 and 23.6 on, a flag from 22.6
/// on.
fn typescript_flags() -> Result<Vec<OsString>, Error> {
    let output = Command::new("node").arg("--version").output().map_err(|source| Error::Spawn {
        program: "node".into(),
        step: "ask for its version".into(),
        source,
    })?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut numbers =
        version.trim_start_matches('v').split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    match (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) {
        (22, 18..) | (23, 6..) | (24.., _) => Ok(Vec::new()),
        (22, 6..) | (23, _) => Ok(vec!["--experimental-strip-types".into()]),
        _ => Err(Error::Settings(format!(
            "node {version} does not run TypeScript: node 22.6 or later is needed"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_may_run_typescript_where_node_does_not() {
        let args = |all: &[&str]| all.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        for with in [&["--import", "tsx"][..], &["--import=tsx"], &["-r", "ts-node/register"]] {
            assert!(has_loader(&args(with)), "{with:?}");
            let setup = setup("server.ts".as_ref(), &args(with), Vec::new(), None, None).unwrap();
            assert_eq!(setup.get_exec_argv(), with);
        }
        assert!(!has_loader(&args(&["--inspect", "--report-on-signal"])));
    }

    #[test]
    fn options_of_node_are_separated_from_the_script() {
        let args =
            ["--inspect", "-r", "x.js", "server.js", "--port", "1"].map(OsString::from).to_vec();
        let setup = node(Path::new("node"), args);
        assert_eq!(setup.get_exec_argv(), ["--inspect", "-r", "x.js"]);
        assert_eq!(setup.get_script(), Some(Path::new("server.js")));
        assert_eq!(setup.get_args().as_ref(), ["--port", "1"]);
    }

    fn words(line: &str) -> Option<String> {
        let FirstLine { node, options } = under_node(line)?;
        let words = std::iter::once(node.into_os_string()).chain(options);
        Some(words.map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join("|"))
    }

    #[test]
    fn a_first_line_is_split_as_the_kernel_and_env_split_it() {
        for (line, expected) in [
            ("/usr/bin/env node", "node"),
            (" /usr/bin/env \t node ", "node"),
            ("/usr/bin/node", "/usr/bin/node"),
            ("/opt/nodejs --a --b", "/opt/nodejs|--a --b"),
            ("/usr/bin/env -S node --a  --b=1", "node|--a|--b=1"),
            ("/usr/bin/env -S/opt/node", "/opt/node"),
        ] {
            assert_eq!(words(line).as_deref(), Some(expected), "{line}");
        }
        for line in [
            "/usr/bin/env python3",
            "/usr/bin/python3 node",
            "/bin/sh",
            "/usr/bin/env node --a",
            "/usr/bin/env node\r",
            "/usr/bin/env -S A=1 node",
            "/usr/bin/env -S node '--a b'",
            "/usr/bin/env",
            "/usr/bin/env -S",
            "",
        ] {
            assert_eq!(words(line), None, "{line}");
        }
    }

    #[test]
    fn programs_whose_first_line_names_node_run_under_it_and_others_by_themselves() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            let path = home.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("server", "#!/usr/bin/env -S node --a\n", 0o755);
        write("closed", "#!/usr/bin/env node\n", 0o644);
        write("snake", "#!/usr/bin/env python3\n", 0o755);
        write("binary", "\x7fELF", 0o755);
        std::fs::create_dir_all(home.path().join("modules/.bin")).unwrap();
        symlink("../../server", home.path().join("modules/.bin/link")).unwrap();
        let setup = |program: &str, node_args: &[&str]| {
            let node_args: Vec<String> = node_args.iter().map(|arg| (*arg).to_owned()).collect();
            let search = home.path().join("modules/.bin");
            let args = vec!["x".into()];
            setup(program.as_ref(), &node_args, args, Some(home.path()), Some(search.as_os_str()))
        };
        let found = home.path().join("modules/.bin/link");
        for (program, script) in [
            ("./server", Path::new("./server")),
            ("modules/.bin/link", Path::new("modules/.bin/link")),
            ("link", &found),
        ] {
            let setup = setup(program, &["--b"]).unwrap();
            assert_eq!(setup.get_program(), Some(Path::new("node")));
            assert_eq!(setup.get_script(), Some(script));
            assert_eq!(setup.get_exec_argv(), ["--a", "--b"]);
            assert_eq!(setup.get_args().as_ref(), ["x"]);
        }
        for program in ["./closed", "./snake", "./binary", "./none", "none"] {
            let alone = setup(program, &[]).unwrap();
            assert_eq!((alone.get_program(), alone.get_script()), (Some(Path::new(program)), None));
            assert!(setup(program, &["--b"]).is_err(), "{program}");
        }
    }
}

//! Turns a program and its arguments into settings for workers: node for scripts, with its options.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use troop::{Error, Setup};

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

/// Returns the settings that start workers of a program. Scripts run under node. The options in
/// `node OPTIONS SCRIPT ARGS` are recognised, because some must differ between workers (inspector
/// ports, profile files).
pub(crate) fn setup(
    program: &OsStr,
    node_args: &[String],
    args: Vec<OsString>,
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
        _ if !node_args.is_empty() => Err(Error::Settings(format!(
            "node_args need a script that runs under node, and {} is not one",
            path.display()
        ))),
        _ => Ok(Setup::new().program(path).args(args)),
    }
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
            let setup = setup("server.ts".as_ref(), &args(with), Vec::new()).unwrap();
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
}

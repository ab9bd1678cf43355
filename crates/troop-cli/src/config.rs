//! `troop.toml`: apps, so that they need not be typed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error as _};
use troop::{Pattern, Scheduling};

use crate::args::{self, LogFormat};
use crate::control::place;

/// The file that is looked for where nothing else is said.
pub(crate) const USUAL: &str = "troop.toml";

/// What there cannot be beside `bind`.
pub(crate) const NO_POLICY: &str = "with `bind` the kernel spreads the connections: there is no policy, and there are no weights";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    app: BTreeMap<String, App>,
}

/// One app. What is left out is as for `troop run`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct App {
    /// A script, a path, or a name on the `PATH`.
    pub(crate) program: String,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    #[serde(default, deserialize_with = "workers")]
    pub(crate) workers: Option<usize>,
    /// Sockets for programs that take them by activation.
    #[serde(default)]
    pub(crate) bind: Vec<String>,
    pub(crate) policy: Option<Scheduling>,
    /// Policies of certain listeners, by address.
    #[serde(default)]
    pub(crate) listeners: BTreeMap<String, Scheduling>,
    #[serde(default)]
    pub(crate) weights: Vec<u32>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Relative to the file. Default: where the file is.
    pub(crate) cwd: Option<PathBuf>,
    #[serde(default)]
    pub(crate) silent: bool,
    /// In seconds.
    #[serde(default, deserialize_with = "grace")]
    pub(crate) grace: Option<Duration>,
    pub(crate) log: Option<LogFormat>,
}

fn workers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let text = match toml::Value::deserialize(deserializer)? {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        _ => String::new(),
    };
    args::workers(&text).map(|workers| Some(workers.0)).map_err(D::Error::custom)
}

fn grace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = match toml::Value::deserialize(deserializer)? {
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        _ => String::new(),
    };
    args::seconds(&text).map(Some).map_err(D::Error::custom)
}

/// All apps of a file.
///
/// # Errors
/// What is wrong with it, where, and what it could be instead.
pub(crate) fn read(file: &Path) -> Result<BTreeMap<String, App>, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    parse(&text, file)
}

fn parse(text: &str, file: &Path) -> Result<BTreeMap<String, App>, String> {
    let shown = file.display();
    let File { app: apps } = toml::from_str(text).map_err(|e| format!("{shown}: {}", e.to_string().trim_end()))?;
    if apps.is_empty() {
        return Err(format!("{shown} has no app; an app begins with a line such as [app.web]"));
    }
    for (name, app) in &apps {
        if !place::is_name(name) {
            return Err(format!("{shown}: {name:?} cannot be an app's name: {}", args::NAME_RULE));
        }
        for listener in app.listeners.keys() {
            listener.parse::<Pattern>().map_err(|e| format!("{shown}: app.{name}.listeners: {e}"))?;
        }
        if let Some(bad) = app.env.keys().find(|key| key.is_empty() || key.contains('=')) {
            return Err(format!("{shown}: app.{name}.env: {bad:?} cannot be the name of a variable"));
        }
    }
    Ok(apps)
}

impl App {
    /// Where it runs.
    pub(crate) fn directory(&self, file: &Path) -> PathBuf {
        let beside = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = self.cwd.as_ref().map_or_else(|| beside.to_owned(), |cwd| beside.join(cwd));
        std::path::absolute(&directory).unwrap_or(directory)
    }

    /// What is executed: a script or a path is seen from where it runs, a name is looked for on the `PATH`.
    pub(crate) fn program(&self, file: &Path) -> PathBuf {
        let path = Path::new(&self.program);
        let is_script =
            path.extension().and_then(|e| e.to_str()).is_some_and(|e| ["js", "mjs", "cjs", "ts", "mts", "cts"].contains(&e));
        if is_script || self.program.contains('/') { self.directory(file).join(path) } else { path.to_owned() }
    }

    /// What would keep it from starting, as far as can be seen without doing it.
    pub(crate) fn problems(&self, file: &Path) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.bind.is_empty() && (self.policy.is_some() || !self.listeners.is_empty() || !self.weights.is_empty()) {
            problems.push(NO_POLICY.into());
        }
        let (directory, program) = (self.directory(file), self.program(file));
        if !directory.is_dir() {
            problems.push(format!("there is no directory {}", directory.display()));
        } else if program.is_absolute() && !program.exists() {
            problems.push(format!("there is no program {}", program.display()));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text, Path::new("x/troop.toml")).unwrap_err()
    }

    #[test]
    fn everything_can_be_said() {
        let text = r#"
            [app.web]
            program = "server.js"
            args = ["--port", "8000"]
            workers = 4
            policy = "steered"
            listeners = { "8000" = "sticky:cookie=sid", "udp:53" = "p2c" }
            weights = [5, 100]
            env = { NODE_ENV = "production" }
            cwd = "app"
            silent = true
            grace = 2.5
            log = "json"

            [app.jobs]
            program = "./jobs"
            workers = "auto"
        "#;
        let apps = parse(text, Path::new("x/troop.toml")).unwrap();
        let web = &apps["web"];
        assert_eq!((web.workers, web.grace), (Some(4), Some(Duration::from_millis(2500))));
        assert_eq!(web.listeners["8000"].to_string(), "sticky:cookie=sid");
        assert!(web.program(Path::new("x/troop.toml")).ends_with("x/app/server.js"));
        assert_eq!(apps["jobs"].workers, Some(troop::available_workers()));
        assert!(apps["jobs"].program(Path::new("/etc/troop.toml")).ends_with("/etc/jobs"));
    }

    #[test]
    fn what_is_wrong_is_shown_where_it_is() {
        for (text, parts) in [
            ("[app.web]\nprogram = \"x\"\npolcy = \"p2c\"", &["line 3", "polcy", "policy"][..]),
            ("[app.web]\nprogram = \"x\"\npolicy = \"sideways\"", &["line 3", "sideways", "round-robin"]),
            ("[app.web]\nprogram = \"x\"\nworkers = 0", &["line 3", "1 to 4096"]),
            ("[app.web]\nprogram = \"x\"\ngrace = \"long\"", &["line 3", "number of seconds"]),
            ("[app.web]\nworkers = 1", &["missing field `program`"]),
            ("[app.web]\nprogram = \"x\"\nlisteners = { \"1.2.3.4.5:x\" = \"p2c\" }", &["app.web.listeners"]),
            ("[app.\"a b\"]\nprogram = \"x\"", &["\"a b\"", "letters"]),
            ("[app.web]\nprogram = \"x\"\nenv = { \"A=B\" = \"c\" }", &["app.web.env", "A=B"]),
            ("[app.web\nprogram = \"x\"", &["line 1"]),
            ("", &["no app"]),
            ("[apps.web]\nprogram = \"x\"", &["apps", "app"]),
        ] {
            let error = error(text);
            for part in parts {
                assert!(error.contains(part), "{part} in {error}");
            }
        }
    }
}
